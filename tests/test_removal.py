"""What stands in the place of removed pixels, held against scipy, Quantus and sums by hand."""

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

from xaicourse import images, removal


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


REMOVALS = {
    "baseline": lambda: removal.baseline(0.5),
    "mean": removal.mean,
    "blur": lambda: removal.blur(1.5),
    "noise": lambda: removal.noise(0.3, generator=seeded()),
    "noisy_linear": lambda: removal.noisy_linear(0.1, generator=seeded()),
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


@pytest.mark.parametrize("name", ["baseline", "mean", "blur"])
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
    for remove in (removal.mean(), removal.blur(1), removal.noisy_linear()):
        with pytest.raises(ValueError, match=r"inputs must be images of shape \(N, C, H, W\), got \(2, 5\)"):
            remove(torch.ones(2, 5), torch.ones(2, 5).bool())


def test_importing_it_is_light():
    program = (
        "import sys, xaicourse.evaluation; print([p for p in ('matplotlib', 'sklearn', 'scipy') if p in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
