"""What stands in the place of removed features, held against scipy, scikit-image, Quantus, numpy and sums by hand."""

import math
import subprocess
import sys

import numpy as np
import pytest
import scipy.ndimage
import scipy.sparse
import scipy.sparse.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.restoration import inpaint_biharmonic

from xaicourse import images, removal


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def samples(*shape, seed=9):
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


REMOVALS = {
    "baseline": lambda: removal.baseline(0.5),
    "mean": removal.mean,
    "mean of what is kept": lambda: removal.mean(kept=True),
    "blur": lambda: removal.blur(1.5),
    "noise": lambda: removal.noise(0.3, generator=seeded()),
    "noisy_linear": lambda: removal.noisy_linear(0.1, generator=seeded()),
    "inpainting": removal.inpainting,
    "marginal": lambda: removal.marginal(samples(6, 3, 7, 5), generator=seeded()),
    "nearest": lambda: removal.nearest(samples(6, 3, 7, 5)),
    "nearest of three": lambda: removal.nearest(samples(6, 3, 7, 5), k=3, generator=seeded()),
}
SERIES = {
    "baseline": lambda: removal.baseline(0.5),
    "mean": removal.mean,
    "mean of what is kept": lambda: removal.mean(kept=True),
    "blur": lambda: removal.blur(1.5),
    "noise": lambda: removal.noise(0.3, generator=seeded()),
    "inpainting": removal.inpainting,
    "interpolation": removal.interpolation,
    "marginal": lambda: removal.marginal(samples(6, 3, 9), generator=seeded()),
    "nearest": lambda: removal.nearest(samples(6, 3, 9)),
}
every_removal = pytest.mark.parametrize("name", REMOVALS)


def some(dtype=torch.float64, items=2, channels=3, height=7, width=5, share=0.5, seed=0):
    """Random images and random places, the first pixel of each image left and the last removed."""
    generator = seeded(seed)
    inputs = torch.randn(items, channels, height, width, generator=generator, dtype=torch.float64).to(dtype)
    removed = torch.rand(items, 1, height, width, generator=generator) < share
    removed[:, :, 0, 0], removed[:, :, -1, -1] = False, True
    return inputs, removed


# What all have in common


@every_removal
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_what_is_not_removed_stays_and_what_is_removed_changes(name, dtype):
    inputs, removed = some(dtype)
    before = inputs.clone()
    result = REMOVALS[name]()(inputs, removed)
    assert result.shape == inputs.shape and result.dtype == dtype and result.device == inputs.device
    gone = removed.expand_as(inputs)
    assert torch.equal(result[~gone], inputs[~gone]) and (result[gone] != inputs[gone]).double().mean() > 0.95
    assert torch.isfinite(result).all() and torch.equal(inputs, before)


@every_removal
def test_nothing_removed_is_the_image_itself_and_everything_removed_is_finite(name):
    inputs, removed = some()
    assert torch.equal(REMOVALS[name]()(inputs, torch.zeros_like(removed)), inputs)
    assert torch.isfinite(REMOVALS[name]()(inputs, torch.ones_like(removed))).all()


@every_removal
def test_one_place_for_all_items_is_the_same_as_that_place_for_each(name):
    inputs, removed = some()
    one = removed[:1]
    assert torch.equal(REMOVALS[name]()(inputs, one), REMOVALS[name]()(inputs, one.expand(2, -1, -1, -1)))
    assert torch.equal(REMOVALS[name]()(inputs, one[0, 0]), REMOVALS[name]()(inputs, one.expand_as(inputs)))


@pytest.mark.parametrize("name", ["baseline", "mean", "mean of what is kept", "blur", "inpainting", "nearest"])
@given(seed=st.integers(0, 2**16), share=st.floats(0, 1))
@settings(max_examples=20)
def test_an_item_does_not_depend_on_the_others(name, seed, share):
    inputs, removed = some(items=3, share=share, seed=seed)
    alone = torch.cat([REMOVALS[name]()(inputs[i : i + 1], removed[i : i + 1]) for i in range(3)])
    assert torch.allclose(REMOVALS[name]()(inputs, removed), alone, rtol=1e-12, atol=1e-12)


@given(seed=st.integers(0, 2**16), share=st.floats(0, 1))
@settings(max_examples=20)
def test_a_filled_item_does_not_depend_on_the_others(seed, share):
    inputs, removed = some(items=3, share=share, seed=seed)
    fill = removal.noisy_linear(0)
    alone = torch.cat([fill(inputs[i : i + 1], removed[i : i + 1]) for i in range(3)])
    assert torch.allclose(fill(inputs, removed), alone, atol=1e-12)


@pytest.mark.parametrize("name", SERIES)
@given(seed=st.integers(0, 2**16), share=st.floats(0, 1), each=st.booleans(), half=st.booleans())
@settings(max_examples=20)
def test_in_time_series_too_what_is_not_removed_stays_to_the_bit(name, seed, share, each, half):
    generator = seeded(seed)
    inputs = torch.randn(2, 3, 9, generator=generator).to(torch.float16 if half else torch.float64)
    removed = torch.rand(2, 3 if each else 1, 9, generator=generator) < share
    before = inputs.clone(), removed.clone()
    result = SERIES[name]()(inputs, removed)
    gone = removed.expand_as(inputs)
    assert result.shape == inputs.shape and result.dtype == inputs.dtype and torch.isfinite(result).all()
    assert torch.equal(result[~gone], inputs[~gone])
    assert torch.equal(inputs, before[0]) and torch.equal(removed, before[1])
    assert torch.equal(SERIES[name]()(inputs, gone), result)  # broadcast or not
    if name not in ("noise", "marginal"):
        alone = torch.cat([SERIES[name]()(inputs[i : i + 1], removed[i : i + 1]) for i in range(2)])
        assert torch.allclose(result, alone, atol=1e-12)


@every_removal
@given(
    seed=st.integers(0, 2**16), share=st.floats(0, 1), shape=st.sampled_from([(2, 3, 7, 5), (1, 3, 7, 5), (3, 7, 5)])
)
@settings(max_examples=15)
def test_channels_may_lose_different_pixels(name, seed, share, shape):
    inputs, _ = some(seed=seed)
    removed = torch.rand(shape, generator=seeded(seed)) < share
    result = REMOVALS[name]()(inputs, removed)
    gone = removed.expand_as(inputs)
    assert torch.equal(result[~gone], inputs[~gone]) and torch.isfinite(result).all()


@pytest.mark.parametrize("name", ["mean", "blur", "mean of what is kept"])
def test_a_time_series_is_an_image_one_pixel_high(name):
    series = torch.randn(2, 3, 12, generator=seeded(), dtype=torch.float64)
    removed = torch.rand(2, 1, 12, generator=seeded(1)) < 0.4
    as_image = REMOVALS[name]()(series[:, :, None], removed[:, :, None])[:, :, 0]
    torch.testing.assert_close(REMOVALS[name]()(series, removed), as_image, rtol=0, atol=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", [name for name in REMOVALS if name not in ("noise", "noisy_linear")])
def test_a_gpu_gives_what_the_cpu_gives(name):
    inputs, removed = some()
    got = REMOVALS[name]()(inputs.cuda(), removed.cuda())
    assert got.device.type == "cuda"
    torch.testing.assert_close(got.cpu(), REMOVALS[name]()(inputs, removed), rtol=0, atol=1e-10)


# Many places in the same inputs


@every_removal
def test_prepared_it_is_the_same_removal(name):
    inputs, _ = some(items=3)
    item = torch.tensor([2, 0, 0, 1, 2])
    removed = torch.rand(5, 1, 7, 5, generator=seeded(4)) < 0.5
    prepared = removal.prepare(REMOVALS[name](), inputs)
    torch.testing.assert_close(prepared(item, removed), REMOVALS[name]()(inputs[item], removed), rtol=0, atol=1e-12)


def test_what_is_prepared_is_checked():
    inputs, removed = some()
    item = torch.tensor([0, 1])
    with pytest.raises(TypeError, match="removal must be a function of inputs and removed places, got float"):
        removal.prepare(0.0, inputs)
    with pytest.raises(ValueError, match="removal must return a tensor like the inputs, .*, got torch.float32"):
        removal.prepare(lambda x, r: x.float(), inputs)(item, removed)
    with pytest.raises(ValueError, match="removal must return a tensor like the inputs"):
        removal.prepare(removal.Filling(lambda x: x[:1]), inputs)
    with pytest.raises(ValueError, match="what removal returns must be finite: 210 of"):
        removal.prepare(removal.Filling(lambda x: x / 0), inputs)


# Each by itself


def test_a_baseline_is_a_number_or_a_tensor_that_broadcasts():
    inputs, removed = some()
    assert (removal.baseline(3)(inputs, removed)[removed.expand_as(inputs)] == 3).all()
    assert (removal.baseline()(inputs, removed)[removed.expand_as(inputs)] == 0).all()
    colour = torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    everywhere = torch.ones_like(removed)
    assert torch.equal(removal.baseline(colour)(inputs, everywhere), colour.expand_as(inputs).double())
    other = torch.rand(inputs.shape, generator=seeded(1), dtype=torch.float64)
    assert torch.equal(removal.baseline(other)(inputs, removed), torch.where(removed, other, inputs))
    assert removal.baseline(0.1)(inputs, everywhere)[0, 0, 0, 0].item() == 0.1  # not rounded to float32 on the way


def test_a_baseline_takes_the_features_of_a_table_too():
    row = torch.tensor([[1.0, 2.0, 3.0]])
    result = removal.baseline(torch.tensor([7.0, 8.0, 9.0]))(row, torch.tensor([[False, True, True]]))
    assert result.tolist() == [[1, 8, 9]]


def test_the_mean_is_that_of_the_item_and_channel():
    inputs = torch.tensor([[[[1.0, 3.0]], [[10.0, 20.0]]]])
    assert removal.mean()(inputs, torch.tensor([[[[True, False]]]])).tolist() == [[[[2, 3]], [[15, 20]]]]


def test_the_mean_of_what_is_kept_leaves_out_the_rest():
    inputs = torch.tensor([[[1.0, 3.0, 8.0], [10.0, 20.0, 60.0]]])
    removed = torch.tensor([[[True, False, False], [True, True, True]]])
    assert removal.mean(kept=True)(inputs, removed).tolist() == [[[5.5, 3, 8], [30, 30, 30]]]


@given(
    st.tuples(st.integers(1, 12), st.integers(1, 12)), st.floats(0.3, 20), st.integers(0, 2**16)
)  # images smaller than the blur is wide among them
@settings(max_examples=40)
def test_the_blur_is_scipys_with_a_mirrored_border(size, sigma, seed):
    picture = torch.randn(1, 2, *size, generator=seeded(seed), dtype=torch.float64)
    ours = removal.blur(sigma)(picture, torch.ones(1, 1, *size, dtype=torch.bool))[0]
    radius = math.ceil(4 * sigma)
    for mine, channel in zip(ours, picture[0].numpy(), strict=True):
        theirs = scipy.ndimage.gaussian_filter(channel, sigma, mode="mirror", radius=radius)
        np.testing.assert_allclose(mine.numpy(), theirs, atol=1e-12)


def test_noise_has_mean_0_and_its_standard_deviation_and_is_new_at_every_call():
    inputs = torch.full((2, 3, 100, 100), 9.0)
    everything = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    remove = removal.noise(0.3, generator=seeded())
    first, second = remove(inputs, everything), remove(inputs, everything)
    assert abs(first.mean()) < 4 * 0.3 / math.sqrt(first.numel())
    assert abs(first.std() / 0.3 - 1) < 4 / math.sqrt(2 * first.numel())
    assert not torch.equal(first, second)
    assert torch.equal(first, removal.noise(0.3, generator=seeded())(inputs, everything))


# Filling from the surroundings


def solved(channel, removed):
    """The same system, pixel by pixel, for scipy's direct solver."""
    height, width = channel.shape
    weights = {(i, j): 1 / 6 if 0 in (i, j) else 1 / 12 for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)}
    system, right = scipy.sparse.lil_matrix((channel.size, channel.size)), np.zeros(channel.size)
    for y in range(height):
        for x in range(width):
            here = y * width + x
            if not removed[y, x]:
                system[here, here], right[here] = 1, channel[y, x]
                continue
            for (dy, dx), weight in weights.items():
                if 0 <= y + dy < height and 0 <= x + dx < width:
                    system[here, here] += weight
                    system[here, (y + dy) * width + x + dx] -= weight
    return scipy.sparse.linalg.spsolve(system.tocsr(), right).reshape(channel.shape)


@given(
    st.tuples(st.integers(2, 10), st.integers(2, 10)), st.floats(0, 1), st.integers(0, 2**16), st.sampled_from([1, 1e6])
)
@settings(max_examples=40)
def test_filling_solves_the_linear_system_of_the_paper(size, share, seed, scale):
    inputs, removed = some(items=2, channels=2, height=size[0], width=size[1], share=share, seed=seed)
    inputs = inputs * scale + 100
    ours = removal.noisy_linear(0)(inputs, removed)
    theirs = [
        [solved(channel.numpy(), gone[0].numpy()) for channel in item]
        for item, gone in zip(inputs, removed, strict=True)
    ]
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-7 * scale)


def test_filling_is_quantus_noisy_linear_imputation():
    quantus = pytest.importorskip("quantus.functions.perturb_func", exc_type=ImportError)
    inputs, removed = some(items=1, channels=3, height=16, width=16, share=0.7)
    theirs = quantus.noisy_linear_imputation(inputs[0].numpy(), np.flatnonzero(removed[0, 0].numpy()), noise=0)
    np.testing.assert_allclose(removal.noisy_linear(0)(inputs, removed)[0].numpy(), theirs, atol=1e-8)


def test_a_ramp_with_a_hole_is_filled_with_the_ramp():
    ramp = (2 * torch.arange(8.0, dtype=torch.float64)[:, None] - torch.arange(9.0) + 3)[None, None]
    hole = torch.zeros_like(ramp, dtype=torch.bool)
    hole[..., 2:6, 1:7] = True
    assert torch.allclose(removal.noisy_linear(0)(ramp, hole), ramp, atol=1e-8)


def test_one_pixel_left_fills_the_image_and_none_left_gives_the_mean():
    inputs, _ = some()
    removed = torch.ones(2, 1, 7, 5, dtype=torch.bool)
    removed[0, :, 3, 2] = False
    filled = removal.noisy_linear(0)(inputs, removed)
    assert torch.allclose(filled[0], inputs[0, :, 3:4, 2:3].expand(-1, 7, 5), atol=1e-12)
    assert torch.allclose(filled[1], inputs[1].mean((1, 2), keepdim=True).expand(-1, 7, 5), atol=1e-12)


def test_a_filled_photograph_in_float32_is_that_in_float64():
    photograph = images.load("chelsea")[None, :, :120, 100:220]
    removed = (torch.rand(1, 1, 15, 15, generator=seeded()) < 0.8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    exact = removal.noisy_linear(0)(photograph.double(), removed)
    assert (removal.noisy_linear(0)(photograph, removed) - exact).abs().max() < 2e-3
    low, high = photograph[~removed.expand_as(photograph)].min(), photograph[~removed.expand_as(photograph)].max()
    assert low <= exact.min() and exact.max() <= high  # a mean of means leaves no range


def test_filling_adds_its_noise_to_removed_pixels_only():
    inputs, removed = some(height=60, width=60)
    plain = removal.noisy_linear(0)(inputs, removed)
    noisy = removal.noisy_linear(0.01, generator=seeded())(inputs, removed)
    added = (noisy - plain)[removed.expand_as(inputs)]
    assert abs(added.std() / 0.01 - 1) < 4 / math.sqrt(2 * added.numel())
    assert torch.equal(noisy, removal.noisy_linear(0.01, generator=seeded())(inputs, removed))


def inpainted(item, gone, per_channel):
    """Item (C, H, W) as scikit-image fills it, channel by channel or all at once."""
    if per_channel:
        return np.stack(
            [inpaint_biharmonic(*pair) if pair[1].any() else pair[0] for pair in zip(item, gone, strict=True)]
        )
    return inpaint_biharmonic(item, gone[0], channel_axis=0)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(("shape", "scale"), [((2, 3, 12, 10), 1), ((2, 3, 12, 10), 1000), ((2, 3, 40), 1)])
def test_inpainting_is_scikit_images(per_channel, shape, scale):
    inputs = torch.randn(shape, generator=seeded(), dtype=torch.float64)
    removed = torch.rand(shape, generator=seeded(3)) < 0.4
    removed = removed if per_channel else removed[:, :1]
    ours = removal.inpainting()(inputs * scale, removed)
    pairs = zip((inputs * scale).numpy(), removed.expand_as(inputs).numpy(), strict=True)
    theirs = np.stack([inpainted(*pair, per_channel) for pair in pairs])
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=1e-10 * scale)


def test_inpainting_goes_on_with_a_slope_where_straight_filling_flattens_it():
    valley = (torch.linspace(-1, 1, 15, dtype=torch.float64) ** 2).expand(1, 1, 15, 15)
    hole = torch.zeros(1, 1, 15, 15, dtype=torch.bool)
    hole[..., 5:10, 5:10] = True
    smooth, flat = (f(valley, hole) for f in (removal.inpainting(), removal.noisy_linear(0)))
    assert (smooth - valley).abs().max() < 0.3 * (flat - valley).abs().max()


def test_inpainting_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.restoration", None)
    with pytest.raises(ImportError, match=r'inpainting needs scikit-image.*pip install "xaicourse\[course\]"'):
        removal.inpainting()


def test_a_channel_of_which_nothing_is_left_is_filled_with_its_mean():
    inputs, _ = some()
    removed = torch.zeros(2, 3, 7, 5, dtype=torch.bool)
    removed[0, 1], removed[1, 2, 0, 0] = True, True
    for remove in (removal.inpainting(), removal.mean(kept=True)):
        filled = remove(inputs, removed)[0, 1]
        torch.testing.assert_close(filled, inputs[0, 1].mean().expand(7, 5), rtol=0, atol=1e-12)


# Time series and tokens


@given(st.integers(1, 12), st.integers(0, 2**16), st.floats(0, 1))
@settings(max_examples=60)
def test_interpolation_is_numpys(steps, seed, share):
    generator = seeded(seed)
    series = torch.randn(2, 3, steps, generator=generator, dtype=torch.float64)
    removed = torch.rand(2, 3, steps, generator=generator) < share
    ours = removal.interpolation()(series, removed)
    for channel, gone, filled in zip(series.flatten(0, 1), removed.flatten(0, 1), ours.flatten(0, 1), strict=True):
        left = (~gone).nonzero()[:, 0].numpy()
        theirs = np.interp(np.arange(steps), left, channel.numpy()[left]) if len(left) else channel.mean().expand(steps)
        np.testing.assert_allclose(filled.numpy(), theirs, rtol=0, atol=1e-12)


def test_a_token_stands_for_what_is_removed():
    tokens = torch.tensor([[5, 6, 7], [8, 9, 10]])
    removed = torch.tensor([False, True, False])
    for dtype in (torch.int64, torch.int32):
        result = removal.token(103)(tokens.to(dtype), removed)
        assert result.tolist() == [[5, 103, 7], [8, 103, 10]] and result.dtype == dtype
    with pytest.raises(TypeError, match=r"inputs must be token numbers of shape \(N, T\).*got torch.float32"):
        removal.token(103)(tokens.float(), removed)
    with pytest.raises(TypeError, match="inputs must be token numbers"):
        removal.token(103)(tokens[None], removed)


# From other data


@pytest.mark.parametrize("shape", [(5,), (2, 6), (3, 4, 4)])
def test_marginal_takes_all_that_is_removed_from_one_sample(shape):
    background, inputs = samples(8, *shape), samples(40, *shape, seed=1)
    removed = torch.rand(40, *shape, generator=seeded(2)) < 0.5
    result = removal.marginal(background, generator=seeded(3))(inputs, removed)
    fits = ((result[:, None] == background) | ~removed[:, None]).flatten(2).all(2)  # (items, samples)
    assert (fits.sum(1) == 1).sum() > 35 and fits.any(1).all()


def test_marginal_draws_every_sample_as_often_and_anew_at_every_call():
    background = torch.arange(5.0)[:, None].expand(5, 3)
    inputs, removed = torch.full((10000, 3), -1.0), torch.tensor([True, False, True])
    remove = removal.marginal(background, generator=seeded())
    first, second = remove(inputs, removed), remove(inputs, removed)
    assert not torch.equal(first, second)
    assert torch.equal(first, removal.marginal(background, generator=seeded())(inputs, removed))
    assert torch.equal(first[:, 0], first[:, 2]) and (first[:, 1] == -1).all()
    counts = first[:, 0].long().bincount(minlength=5)
    assert (counts - 2000).abs().max() < 4.5 * math.sqrt(10000 * 0.2 * 0.8)


def test_marginal_takes_tokens_too():
    result = removal.marginal(torch.tensor([[1, 2, 3]]))(torch.tensor([[7, 8, 9]]), torch.tensor([False, True, True]))
    assert result.tolist() == [[7, 2, 3]] and result.dtype == torch.int64


@given(
    st.sampled_from([(5,), (2, 6), (2, 3, 4)]), st.integers(0, 2**16), st.floats(0, 0.95),
    st.sampled_from([0, 1e3]), st.booleans(),
)  # fmt: skip
@settings(max_examples=50)
def test_nearest_is_found_by_trying_every_sample(shape, seed, share, offset, scaled):
    background, inputs = offset + samples(30, *shape, seed=seed), offset + samples(6, *shape, seed=seed + 1)
    removed = torch.rand(6, *shape, generator=seeded(seed)) < share
    scale = 0.5 + samples(*shape, seed=seed + 2).abs() if scaled else None
    result = removal.nearest(background, scale=scale)(inputs, removed)
    for x, gone, found in zip(inputs, removed, result, strict=True):
        difference = (background - x) / (1 if scale is None else scale)
        distance = (difference.masked_fill(gone, 0) ** 2).flatten(1).sum(1)
        assert torch.equal(found, torch.where(gone, background[distance.argmin()], x))


def test_one_of_the_k_nearest_is_chosen_at_random():
    background = torch.tensor([[0.0, 1.0], [0.1, 2.0], [0.3, 3.0], [5.0, 4.0]])
    inputs, removed = torch.zeros(9000, 2), torch.tensor([False, True])
    result = removal.nearest(background, k=3, generator=seeded())(inputs, removed)
    counts = result[:, 1].long().bincount(minlength=5).tolist()
    assert counts[0] == counts[4] == 0 and all(abs(n - 3000) < 4.5 * math.sqrt(9000 * 2 / 9) for n in counts[1:4])
    assert torch.equal(result, removal.nearest(background, k=3, generator=seeded())(inputs, removed))


def test_of_equally_near_samples_the_first_is_taken():
    background = samples(5, 3)
    inputs, everything = samples(2, 3, seed=1), torch.ones(2, 3, dtype=torch.bool)
    assert torch.equal(removal.nearest(background)(inputs, everything), background[:1].expand(2, 3))


def test_nearest_knows_what_goes_together_and_marginal_does_not():
    """Two features that are always equal: the removed one follows from the other."""
    both = samples(500, 1).expand(500, 2)
    inputs, removed = samples(200, 1, seed=1).expand(200, 2), torch.tensor([False, True])
    near = removal.nearest(both)(inputs, removed) - inputs
    drawn = removal.marginal(both, generator=seeded())(inputs, removed) - inputs
    assert near[:, 1].abs().median() < 0.01 and drawn[:, 1].abs().median() > 0.5


# Errors


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: removal.baseline("black"), TypeError, "value must be a number or a tensor, got str"),
        (lambda: removal.baseline(True), TypeError, "value must be a number or a tensor, got bool"),
        (lambda: removal.baseline(torch.tensor(1)), TypeError, "value must be .* float dtype, got torch.int64"),
        (lambda: removal.baseline(math.nan), ValueError, "value must be finite: 1 of 1"),
        (lambda: removal.blur(0), ValueError, "sigma must be above 0 and finite, got 0"),
        (lambda: removal.blur("5"), TypeError, "sigma must be a number, got str"),
        (lambda: removal.noise(-1), ValueError, "std must be above 0 and finite, got -1"),
        (lambda: removal.noise(1, generator=3), TypeError, "generator must be a torch.Generator or None, got int"),
        (lambda: removal.token(-1), ValueError, "id must be at least 0, got -1"),
        (lambda: removal.token("[MASK]"), TypeError, "id must be an int, got str"),
        (lambda: removal.marginal([[1.0]]), TypeError, "background must be a tensor of samples .* got list"),
        (lambda: removal.marginal(torch.ones(2, 2).bool()), TypeError, "background must be .* got torch.bool"),
        (lambda: removal.marginal(torch.ones(3)), ValueError, r"background must have shape \(M, …\).*got \(3,\)"),
        (lambda: removal.marginal(torch.ones(0, 3)), ValueError, "background must have shape .* at least one sample"),
        (lambda: removal.marginal(torch.full((2, 3), math.inf)), ValueError, "background must be finite: 6 of 6"),
        (lambda: removal.marginal(torch.ones(2, 3), generator=0), TypeError, "generator must be a torch.Generator"),
        (lambda: removal.nearest(torch.ones(2, 3).long()), TypeError, "background must be .* float dtype"),
        (
            lambda: removal.nearest(torch.ones(2, 3), k=0),
            ValueError,
            "k must be from 1 to 2, the number of samples, got 0",
        ),
        (lambda: removal.nearest(torch.ones(2, 3), k=3), ValueError, "k must be from 1 to 2, .* got 3"),
        (lambda: removal.nearest(torch.ones(2, 3), k=1.0), TypeError, "k must be an int, got float"),
        (lambda: removal.nearest(torch.ones(2, 3), scale=2.0), TypeError, "scale must be a tensor .* got float"),
        (lambda: removal.nearest(torch.ones(2, 3), scale=torch.ones(4)), ValueError, "scale must broadcast"),
        (lambda: removal.nearest(torch.ones(2, 3), scale=torch.zeros(3)), ValueError, "scale must be above 0, got 0.0"),
        (lambda: removal.nearest(torch.ones(2, 3), generator=0), TypeError, "generator must be a torch.Generator"),
        (lambda: removal.noisy_linear(-0.1), ValueError, "std must be above 0 and finite, got -0.1"),
        (lambda: removal.noisy_linear(math.inf), ValueError, "std must be above 0 and finite, got inf"),
    ],
)
def test_a_wrong_setting_is_an_error_when_the_removal_is_made(make, error, message):
    with pytest.raises(error, match=message):
        make()


@every_removal
@pytest.mark.parametrize(
    ("inputs", "removed", "error", "message"),
    [
        ([1.0], torch.ones(1, 1, 2, 2).bool(), TypeError, "inputs must be a tensor of a float dtype, got list"),
        (torch.ones(1, 3, 2, 2).long(), torch.ones(1, 1, 2, 2).bool(), TypeError, "inputs .* got torch.int64"),
        (torch.ones(1, 3, 2, 2), torch.ones(1, 1, 2, 2), TypeError, "removed must be a BoolTensor, got torch.float32"),
        (torch.ones(1, 3, 2, 2), torch.ones(1, 1, 2, 3).bool(), ValueError, r"removed must broadcast .*\(1, 1, 2, 3\)"),
        (torch.ones(1, 3, 2, 2), torch.ones(2, 1, 2, 2).bool(), ValueError, r"removed must broadcast .*\(2, 1, 2, 2\)"),
        (torch.full((1, 3, 2, 2), math.nan), torch.ones(1, 1, 2, 2).bool(), ValueError, "inputs must be finite: 12 of"),
    ],
)
def test_wrong_images_or_places_are_an_error(name, inputs, removed, error, message):
    with pytest.raises(error, match=message):
        REMOVALS[name]()(inputs, removed)


def test_a_baseline_that_does_not_fit_and_a_table_without_an_image_are_errors():
    with pytest.raises(ValueError, match=r"value must broadcast to the inputs, \(1, 3, 2, 2\), got \(3,\)"):
        removal.baseline(torch.ones(3))(torch.ones(1, 3, 2, 2), torch.ones(1, 1, 2, 2).bool())
    for remove in (removal.mean(), removal.mean(kept=True), removal.blur(1), removal.inpainting()):
        with pytest.raises(ValueError, match=r"inputs must be images .* or time series .* got shape \(2, 5\)"):
            remove(torch.ones(2, 5), torch.ones(2, 5).bool())
    with pytest.raises(ValueError, match=r"inputs must be images of shape \(N, C, H, W\), got \(2, 5\)"):
        removal.noisy_linear()(torch.ones(2, 5), torch.ones(2, 5).bool())
    with pytest.raises(ValueError, match=r"inputs must be time series of shape \(N, C, T\), got \(2, 5\)"):
        removal.interpolation()(torch.ones(2, 5), torch.ones(2, 5).bool())


@pytest.mark.parametrize("make", [removal.marginal, removal.nearest])
def test_a_background_of_another_width_or_kind_is_an_error(make):
    remove = make(torch.ones(4, 6))
    with pytest.raises(ValueError, match=r"background must have samples in the shape of the items, \(5,\), got \(6,\)"):
        remove(torch.ones(2, 5), torch.ones(5).bool())
    with pytest.raises(TypeError, match="must be"):
        remove(torch.ones(2, 6).long(), torch.ones(6).bool())


def test_importing_it_is_light():
    program = (
        "import sys, xaicourse.occlusion; heavy = ('matplotlib', 'sklearn', 'scipy', 'skimage')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
