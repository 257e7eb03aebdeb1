"""Occlusion against captum and sums by hand; RISE against the expectation over all of its masks."""

import copy
import itertools
import math

import captum.attr
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from xaicourse import evaluation, occlusion, removal

ZERO = removal.baseline(0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


def network(channels=2, size=8, classes=3, dtype=torch.float64):
    """A small convolutional network with all that a real one has."""
    model = nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * (size // 2) ** 2, classes),
    ).to(dtype).eval()  # fmt: skip
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            parameter.copy_(0.3 * normal(*parameter.shape, seed=seed))
    return model


def dense(features, classes=3):
    model = nn.Sequential(nn.Flatten(), nn.Linear(features, 8), nn.Tanh(), nn.Linear(8, classes)).double().eval()
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            parameter.copy_(0.5 * normal(*parameter.shape, seed=seed))
    return model


def by_captum(model, inputs, target, window, stride, baselines=0):
    explain = captum.attr.Occlusion(model).attribute
    return explain(inputs, window, strides=stride, target=target, baselines=baselines).double()  # it rounds to float32


# Occlusion


@pytest.mark.parametrize(
    ("shape", "patch", "stride", "window", "strides"),
    [
        ((2, 8, 8), 2, None, (2, 2, 2), (2, 2, 2)),
        ((2, 8, 8), 3, 1, (2, 3, 3), (2, 1, 1)),
        ((2, 8, 8), 3, None, (2, 3, 3), (2, 3, 3)),  # the last windows are smaller
        ((2, 8, 8), 5, 2, (2, 5, 5), (2, 2, 2)),
        ((2, 8, 8), (1, 4, 3), (1, 3, 2), (1, 4, 3), (1, 3, 2)),  # one channel at a time
        ((2, 8, 8), 8, None, (2, 8, 8), (2, 8, 8)),
        ((3, 10), 4, 3, (3, 4), (3, 3)),
        ((3, 10), (2, 4), (1, 3), (2, 4), (1, 3)),
        ((7,), 1, None, (1,), (1,)),
        ((7,), 3, 2, (3,), (2,)),
    ],
)
def test_it_is_captums_where_windows_do_not_share(shape, patch, stride, window, strides):
    model = network() if shape == (2, 8, 8) else dense(math.prod(shape))
    inputs, target = normal(2, *shape, seed=3), torch.tensor([1, 2])
    baseline = normal(1, *shape, seed=4)
    ours = occlusion.occlusion(
        model, inputs, target,
        patch=patch, stride=stride, removal=removal.baseline(baseline), share=False, chunk=7,
    )  # fmt: skip
    theirs = by_captum(model, inputs, target, window, strides, baseline)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_shared_is_captums_over_the_size_of_the_window_where_all_windows_are_whole():
    model, inputs = network(), normal(2, 2, 8, 8)
    ours = occlusion.occlusion(model, inputs, 1, patch=4, stride=2)
    theirs = by_captum(model, inputs, 1, (2, 4, 4), (2, 2, 2)) / 32
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@given(
    st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)),
    st.data(),
)
@settings(max_examples=40)
def test_it_is_the_mean_over_windows_of_their_shared_fall(shape, data):
    patch = [data.draw(st.integers(1, size)) for size in shape]
    stride = [data.draw(st.integers(1, size)) for size in patch]
    model, inputs = dense(math.prod(shape)), normal(2, *shape, seed=5)
    sums, windows = torch.zeros_like(inputs), torch.zeros_like(inputs)
    starts = [range(0, max(size - p, 0) + s, s) for size, p, s in zip(shape, patch, stride, strict=True)]
    for start in itertools.product(*starts):
        inside = (slice(None), *(slice(a, a + p) for a, p in zip(start, patch, strict=True)))
        without = inputs.clone()
        without[inside] = 0
        fall = (model(inputs) - model(without))[:, 0]
        sums[inside] += (fall / sums[0][inside[1:]].numel()).view(-1, 1, 1, 1)
        windows[inside] += 1
    ours = occlusion.occlusion(model, inputs, 0, patch=tuple(patch), stride=tuple(stride), chunk=5)
    torch.testing.assert_close(ours, (sums / windows).detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("patch", [2, 3, 5, 8])
def test_without_overlap_the_relevance_of_a_patch_sums_to_the_fall_of_the_score(patch):
    model, inputs = network(), normal(2, 2, 8, 8)
    relevance = occlusion.occlusion(model, inputs, 1, patch=patch, removal=removal.mean())
    for y, x in itertools.product(range(0, 8, patch), repeat=2):
        there = (slice(None), slice(None), slice(y, y + patch), slice(x, x + patch))
        removed = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
        removed[there] = True
        fall = (model(inputs) - model(removal.mean()(inputs, removed)))[:, 1]
        torch.testing.assert_close(relevance[there].sum((1, 2, 3)), fall.detach(), rtol=0, atol=1e-12)


def test_a_linear_model_gets_each_features_contribution():
    weight, inputs = normal(5, seed=1), normal(3, 5)
    relevance = occlusion.occlusion(lambda x: x @ weight[:, None] + 7, inputs, 0, patch=1)
    torch.testing.assert_close(relevance, weight * inputs, rtol=0, atol=1e-12)


def test_the_largest_fall_is_what_a_greedy_search_takes_first():
    model, inputs = network(), normal(2, 2, 8, 8)
    relevance = occlusion.occlusion(model, inputs, 1, patch=2, removal=removal.blur(1))
    greedy = evaluation.oracle_bound(model, inputs, 1, removal=removal.blur(1), patch=2)
    ours = evaluation.pixel_flipping(model, inputs, 1, relevance, removal=removal.blur(1), patch=2, steps=16)
    torch.testing.assert_close(ours.scores[:, :2], greedy.scores[:, :2])


@pytest.mark.parametrize(
    "remove",
    [removal.baseline(0.3), removal.mean(), removal.blur(1.0), removal.noisy_linear(0), lambda x, r: x.masked_fill(r, 0.2)],
    ids=["baseline", "mean", "blur", "noisy_linear", "own"],
)  # fmt: skip
def test_any_removal_will_do(remove):
    model, inputs = network(), normal(2, 2, 8, 8)
    relevance = occlusion.occlusion(model, inputs, 0, patch=4, removal=remove)
    removed = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    removed[..., 4:, :4] = True
    fall = (model(inputs) - model(remove(inputs, removed)))[:, 0].detach()
    torch.testing.assert_close(relevance[..., 4:, :4].sum((1, 2, 3)), fall, rtol=0, atol=1e-10)


def test_a_filling_is_made_once():
    calls = []
    remove = removal.Filling(lambda x: calls.append(len(x)) or torch.zeros_like(x))
    for explain in (
        lambda: occlusion.occlusion(network(), normal(3, 2, 8, 8), 0, patch=2, removal=remove, chunk=4),
        lambda: occlusion.rise(network(), normal(3, 2, 8, 8), 0, masks=20, cells=2, removal=remove, chunk=4),
    ):
        calls.clear()
        explain()
        assert calls == [3]


# RISE


def by_hand(model, inputs, target, cells, keep, remove, centred):
    """Every hard mask, one at a time, with its probability: the expectations, pixel by pixel."""
    side = [torch.arange(size) * cells // size for size in inputs.shape[2:]]
    sum_f, sum_fm, sum_f0, sum_m = 0, 0, 0, 0
    for grid in itertools.product([0, 1], repeat=cells**2):
        weight = keep ** sum(grid) * (1 - keep) ** (cells**2 - sum(grid))
        mask = torch.tensor(grid, dtype=inputs.dtype).view(cells, cells)[side[0]][:, side[1]]
        score = model(remove(inputs, (mask == 0)[None, None]))[:, target].detach()[:, None, None]
        sum_fm, sum_f0, sum_m = (
            sum_fm + weight * score * mask,
            sum_f0 + weight * score * (1 - mask),
            sum_m + weight * mask,
        )
        sum_f = sum_f + weight * score
    return sum_fm / keep - sum_f0 / (1 - keep) if centred else sum_fm / sum_m


@pytest.mark.parametrize("remove", [removal.mean(), removal.mean(kept=True)], ids=["mean", "mean of what is kept"])
@pytest.mark.parametrize("keep", [0.5, 0.2])
@pytest.mark.parametrize("centred", [False, True])
def test_all_masks_give_the_expectation(remove, keep, centred):
    model, inputs = network(size=6), normal(2, 2, 6, 6)
    ours = occlusion.rise_estimate(
        model, inputs, 1, masks="all", cells=3, keep=keep, soft=False, centred=centred, removal=remove, chunk=100
    )
    wanted = by_hand(model, inputs, 1, 3, keep, remove, centred)
    torch.testing.assert_close(ours.relevance.sum(1), wanted, rtol=0, atol=1e-12)
    assert (ours.standard_errors == 0).all() and ours.evaluations == 512


@pytest.mark.parametrize("keep", [0.5, 0.2])
@pytest.mark.parametrize("centred", [False, True])
def test_random_masks_are_unbiased_and_their_standard_errors_honest(keep, centred):
    weight, inputs = normal(2, 36, 4, seed=2), normal(1, 2, 6, 6)

    def model(x):
        return (x.flatten(2).transpose(1, 2).permute(2, 0, 1) @ weight).tanh().sum((0, 2), keepdim=False)[:, None] + 3

    settings = {"cells": 3, "keep": keep, "soft": False, "centred": centred}
    exact = occlusion.rise(model, inputs, 0, masks="all", **settings)[0, 0, ::2, ::2]
    runs = [
        occlusion.rise_estimate(model, inputs, 0, masks=200, generator=seeded(seed), chunk=200, **settings)
        for seed in range(300)
    ]
    found = torch.stack([run.relevance[0, 0, ::2, ::2] for run in runs])
    errors = torch.stack([run.standard_errors[0, 0, ::2, ::2] for run in runs])
    z = (found.mean(0) - exact) / (found.std(0) / math.sqrt(len(runs)))
    assert z.abs().max() < 3.5  # nine cells
    ratio = (errors**2).mean(0).sqrt() / found.std(0)
    assert ((ratio > 0.85) & (ratio < 1.15)).all()
    covered = ((found - exact).abs() < 1.96 * errors).double().mean()
    assert 0.92 < covered < 0.97


def test_centred_is_unbiased_for_few_masks_too():
    """Of two masks, a covariance around their own mean would be half the true one."""
    inputs = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    runs = torch.cat(
        [
            occlusion.rise(
                lambda x: x.sum((1, 2, 3))[:, None] ** 2, inputs, 0,
                masks=2, cells=2, soft=False, centred=True, generator=seeded(seed),
            )
            for seed in range(1500)
        ]
    ).flatten(1)  # fmt: skip
    exact = occlusion.rise(
        lambda x: x.sum((1, 2, 3))[:, None] ** 2, inputs, 0, masks="all", cells=2, soft=False, centred=True
    ).flatten()
    z = (runs.mean(0) - exact) / (runs.std(0) / math.sqrt(len(runs)))
    assert z.abs().max() < 3.5 and (exact > 6 * runs.std(0) / math.sqrt(len(runs))).all()


def test_centred_a_constant_in_the_score_does_not_matter():
    model, inputs = network(), normal(1, 2, 8, 8)
    plain, shifted = (
        occlusion.rise_estimate(
            lambda x, c=constant: model(x) + c, inputs, 0, masks=50, cells=3, centred=True, generator=seeded()
        )
        for constant in (0, 1000)
    )
    torch.testing.assert_close(plain.relevance, shifted.relevance, rtol=0, atol=1e-9)
    torch.testing.assert_close(plain.standard_errors, shifted.standard_errors, rtol=0, atol=1e-9)


def test_soft_masks_are_the_papers_grids_interpolated_shifted_and_cropped():
    seen = []

    def model(x):
        seen.append(x[:, 0].clone())
        return x.sum((1, 2, 3))[:, None]

    height, width, cells = 10, 13, 3
    ones = torch.ones(1, 1, height, width, dtype=torch.float64)
    occlusion.rise(model, ones, 0, masks=50, cells=cells, generator=seeded(5), chunk=50)
    generator = seeded(5)
    grids = (torch.rand(50, cells, cells, generator=generator) < 0.5).double()
    cell = [math.ceil(size / cells) for size in (height, width)]
    shifts = [torch.randint(c, (50,), generator=generator).tolist() for c in cell]
    large = F.interpolate(grids[:, None], size=[(cells + 1) * c for c in cell], mode="bilinear", align_corners=False)
    masks = [
        mask[0, down : down + height, right : right + width] for mask, down, right in zip(large, *shifts, strict=True)
    ]
    torch.testing.assert_close(torch.cat(seen), torch.stack(masks), rtol=0, atol=1e-12)
    assert {min(s) for s in shifts} == {0} and [max(s) + 1 for s in shifts] == cell


@pytest.mark.parametrize("soft", [True, False])
def test_the_map_is_the_papers_weighted_mean_of_masks(soft):
    seen, model = [], network()

    def watched(x):
        seen.append(x)
        return model(x)

    plain = occlusion.rise(lambda x: x.sum((1, 2, 3))[:, None], torch.ones(1, 2, 8, 8).double(), 0, masks=2, cells=3)
    assert plain.shape == (1, 2, 8, 8)
    inputs = normal(1, 2, 8, 8).abs() + 1  # so that masks can be read off what the model saw
    ours = occlusion.rise(watched, inputs, 1, masks=60, cells=3, keep=0.4, soft=soft, generator=seeded(1), chunk=16)
    images = torch.cat(seen)
    masks = (images / inputs)[:, 0]
    wanted = (model(images)[:, 1, None, None] * masks).mean(0).detach() / 0.4
    torch.testing.assert_close(ours.sum(1)[0], wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours[:, 0], ours[:, 1])


@pytest.mark.parametrize("soft", [True, False])
def test_masks_have_the_mean_and_variance_they_are_normalised_by(soft):
    seen = []

    def model(x):
        seen.append(x[:, 0])
        return x.sum((1, 2, 3))[:, None]

    occlusion.rise(model, torch.ones(1, 1, 7, 9).double(), 0,
                   masks=20000, cells=3, keep=0.3, soft=soft, generator=seeded(), chunk=5000)  # fmt: skip
    masks = torch.cat(seen)
    grids = torch.zeros(2, 3, 3).double()
    _, variance = occlusion._masks(grids, 0.3, soft, seeded(), torch.ones(1, 1, 7, 9).double())
    assert (masks.mean(0) - 0.3).abs().max() < 5 * 0.5 / math.sqrt(20000)
    np.testing.assert_allclose(masks.var(0), variance, rtol=0.05)


def test_centred_a_pixel_that_does_not_matter_gets_nothing_and_uncentred_it_gets_the_mean_score():
    inputs = torch.ones(1, 1, 6, 6, dtype=torch.float64)

    def model(x):
        return 5 + x[:, :, :2, :2].sum((1, 2, 3))[:, None]  # the first of nine cells

    plain = occlusion.rise(model, inputs, 0, masks="all", cells=3, soft=False)[0, 0]
    centred = occlusion.rise(model, inputs, 0, masks="all", cells=3, soft=False, centred=True)[0, 0]
    torch.testing.assert_close(plain[2:, 2:], torch.full((4, 4), 7.0, dtype=torch.float64))
    torch.testing.assert_close(plain[:2, :2], torch.full((2, 2), 9.0, dtype=torch.float64))
    wanted = torch.zeros(6, 6, dtype=torch.float64)
    wanted[:2, :2] = 4
    torch.testing.assert_close(centred, wanted, rtol=0, atol=1e-12)


def test_centred_at_one_half_it_is_the_banzhaf_value_of_each_cell():
    model, inputs = network(size=4), normal(1, 2, 4, 4)
    ours = occlusion.rise(model, inputs, 0, masks="all", cells=2, soft=False, centred=True).sum(1)[0, ::2, ::2]

    def value(coalition):
        kept = torch.tensor(coalition).view(2, 2).repeat_interleave(2, 0).repeat_interleave(2, 1).bool()
        return model(ZERO(inputs, ~kept[None, None]))[0, 0].item()

    for player in range(4):
        others = [list(c) for c in itertools.product([0, 1], repeat=4) if not c[player]]
        gains = [value([*c[:player], 1, *c[player + 1 :]]) - value(c) for c in others]
        assert ours.flatten()[player].item() == pytest.approx(sum(gains) / 8, abs=1e-12)


def test_centred_soft_masks_give_the_slope_of_a_linear_model_along_its_cell():
    """With one cell the mask is one number, and the score a line in it."""
    inputs, weight = normal(1, 2, 5, 5), normal(1, 2, 5, 5, seed=1)
    relevance = occlusion.rise(
        lambda x: (weight * x).sum((1, 2, 3))[:, None] + 9, inputs, 0,
        masks=20000, cells=1, centred=True, generator=seeded(), chunk=5000,
    )  # fmt: skip
    wanted = (weight * inputs).sum() / 2
    assert (relevance - wanted).abs().max() < 0.05 * wanted.abs()


def test_errors_shrink_with_the_root_of_the_masks():
    model, inputs = network(), normal(1, 2, 8, 8)
    few, many = (
        occlusion.rise_estimate(
            model, inputs, 0, masks=n, cells=3, generator=seeded(), chunk=500
        ).standard_errors.mean()
        for n in (200, 3200)
    )
    assert 3.5 < few / many < 4.5


def test_the_generator_decides_and_the_chunk_does_not():
    model, inputs = network(), normal(2, 2, 8, 8)

    def explain(seed, chunk):
        return occlusion.rise(model, inputs, 0, masks=30, cells=3, generator=seeded(seed), chunk=chunk)

    torch.testing.assert_close(explain(0, 7), explain(0, 64), rtol=0, atol=1e-12)
    assert not torch.allclose(explain(0, 64), explain(1, 64))
    torch.manual_seed(3)
    first = occlusion.rise(model, inputs, 0, masks=30, cells=3)
    torch.manual_seed(3)
    assert torch.equal(first, occlusion.rise(model, inputs, 0, masks=30, cells=3))


# What all have in common

METHODS = {
    "occlusion": lambda *a, **k: occlusion.occlusion(*a, **{"patch": 4, "stride": 2} | k),
    "rise": lambda *a, **k: occlusion.rise(*a, **{"masks": 40, "cells": 3, "generator": seeded()} | k),
    "rise_centred": lambda *a, **k: occlusion.rise(
        *a, **{"masks": 40, "cells": 2, "soft": False, "centred": True, "generator": seeded()} | k
    ),
    "standard_errors": lambda *a, **k: (
        occlusion.rise_estimate(*a, **{"masks": 40, "cells": 3, "generator": seeded()} | k).standard_errors
    ),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


@every_method
def test_a_batch_is_its_items_one_at_a_time(method):
    model, inputs, target = network(), normal(3, 2, 8, 8), torch.tensor([0, 2, 1])
    together = method(model, inputs, target, removal=removal.mean(), chunk=5)
    alone = [method(model, x[None], int(t), removal=removal.mean()) for x, t in zip(inputs, target, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-12)


@every_method
def test_a_target_may_be_a_function_that_sees_all_items(method):
    model, inputs = network(), normal(3, 2, 8, 8)
    own = torch.tensor([0, 2, 1])
    asked = method(model, inputs, lambda y: y[torch.arange(3), own], chunk=4)
    torch.testing.assert_close(asked, method(model, inputs, own, chunk=4), rtol=0, atol=1e-12)


@every_method
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_relevance_is_like_the_inputs(method, dtype):
    model, inputs = network(dtype=dtype), normal(2, 2, 8, 8, dtype=dtype)
    before = inputs.clone()
    relevance = method(model, inputs, 1)
    assert relevance.shape == inputs.shape and relevance.dtype == dtype and not relevance.requires_grad
    assert torch.equal(inputs, before)
    exact = method(network(), inputs.double(), 1)
    tolerance = 50 * torch.finfo(dtype).eps * (1 + exact.abs().max())
    torch.testing.assert_close(relevance.double(), exact, rtol=0, atol=float(tolerance))


@every_method
def test_it_works_in_no_grad_inference_mode_and_with_inputs_that_need_a_gradient(method):
    model, inputs = network(), normal(2, 2, 8, 8)
    wanted = method(model, inputs, 1)
    with torch.no_grad():
        assert torch.equal(method(model, inputs, 1), wanted)
    with torch.inference_mode():
        assert torch.equal(method(model, inputs, 1), wanted)
    assert torch.equal(method(model, inputs.clone().requires_grad_(), 1), wanted)
    channels_last = inputs.contiguous(memory_format=torch.channels_last)
    assert torch.equal(method(model.to(memory_format=torch.channels_last), channels_last, 1), wanted)


class Counting(nn.Module):
    """Counts its calls in a buffer, and fails at the third."""

    def __init__(self, fails):
        super().__init__()
        self.inner, self.fails = network(), fails
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        if self.fails and self.calls == 3:
            raise RuntimeError("the third call")
        return self.inner(x)


@every_method
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_as_before_also_after_an_error(method, fails):
    model = Counting(fails).eval()
    before = copy.deepcopy(model.state_dict())
    if fails:
        with pytest.raises(RuntimeError, match="the third call"):
            method(model, normal(1, 2, 8, 8), 0, chunk=2)
    else:
        method(model, normal(1, 2, 8, 8), 0, chunk=2)
    assert all(torch.equal(now, before[name]) for name, now in model.state_dict().items())
    assert not model.training and all(p.requires_grad and p.grad is None for p in model.parameters())


@every_method
def test_the_model_never_sees_more_than_a_chunk(method):
    sizes, inner = [], network()

    def model(x):
        sizes.append(len(x))
        return inner(x)

    method(model, normal(3, 2, 8, 8), 0, chunk=5)
    assert max(sizes) == 5
    sizes.clear()
    method(model, normal(3, 2, 8, 8), lambda y: y[:, 0], chunk=2)
    assert set(sizes) == {3}  # a function sees all items


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every_method
def test_a_gpu_gives_what_the_cpu_gives(method):
    model, inputs = network(), normal(2, 2, 8, 8)
    wanted = method(model, inputs, torch.tensor([1, 2]), removal=removal.blur(1))
    got = method(model.cuda(), inputs.cuda(), torch.tensor([1, 2]), removal=removal.blur(1))
    assert got.device.type == "cuda"
    torch.testing.assert_close(got.cpu(), wanted, rtol=0, atol=1e-10)


# Errors


def explain_tables(**settings):
    return occlusion.occlusion(dense(6), normal(2, 6), 0, **settings)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, x: occlusion.occlusion(m, x, 0, patch=0), ValueError, "patch must be from 1 to 8, the size of the inputs"),
        (lambda m, x: occlusion.occlusion(m, x, 0, patch=9), ValueError, "patch must be from 1 to 8, .* got 9"),
        (lambda m, x: occlusion.occlusion(m, x, 0, patch=2.0), TypeError, "patch must be an int, got float"),
        (lambda m, x: occlusion.occlusion(m, x, 0, patch="2"), TypeError, "patch must be an int, got str"),
        (lambda m, x: occlusion.occlusion(m, x, 0, patch=(2, 2)), ValueError, r"patch must be one number, or .* \(2, 8, 8\)"),
        (lambda m, x: occlusion.occlusion(m, x, 0, patch=(3, 2, 2)), ValueError, r"patch\[0\] must be from 1 to 2, .* got 3"),
        (lambda m, x: occlusion.occlusion(m, x, 0, patch=2, stride=3), ValueError, "stride must be from 1 to 2, the size"),
        (lambda m, x: occlusion.occlusion(m, x, 0, patch=2, stride=0), ValueError, "stride must be from 1 to 2, .* got 0"),
        (lambda m, x: explain_tables(patch=7), ValueError, "patch must be from 1 to 6"),
        (lambda m, x: explain_tables(patch=2, removal=removal.blur(1)), ValueError, "inputs must be images"),
        (lambda m, x: occlusion.rise(m, x, 0, masks=1), ValueError, "masks must be at least 2, got 1"),
        (lambda m, x: occlusion.rise(m, x, 0, masks="each"), TypeError, "masks must be an int, got str"),
        (lambda m, x: occlusion.rise(m, x, 0, masks="all"), ValueError, 'masks: "all" is for soft=False and up to 16 cells'),
        (lambda m, x: occlusion.rise(m, x, 0, masks="all", soft=False, cells=5), ValueError, "got soft=False and 5 x 5 cells"),
        (lambda m, x: occlusion.rise(m, x, 0, cells=9), ValueError, "cells must be from 1 to 8, the shorter side"),
        (lambda m, x: occlusion.rise(m, x, 0, cells=0), ValueError, "cells must be from 1 to 8"),
        (lambda m, x: occlusion.rise(m, x, 0, keep=0), ValueError, "keep must be above 0"),
        (lambda m, x: occlusion.rise(m, x, 0, keep=1), ValueError, "keep must be below 1, got 1"),
        (lambda m, x: occlusion.rise(m, x, 0, keep="half"), TypeError, "keep must be a number, got str"),
        (lambda m, x: occlusion.rise(m, x, 0, generator=1), TypeError, "generator must be a torch.Generator or None, got int"),
        (lambda m, x: occlusion.rise(m, x[:, 0, 0], 0), ValueError, r"inputs must be images of shape \(N, C, H, W\)"),
    ],
)  # fmt: skip
def test_wrong_settings_are_an_error(call, error, message):
    with pytest.raises(error, match=message):
        call(network(), normal(2, 2, 8, 8))


@every_method
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": 3}, TypeError, "model must be an nn.Module or a function of tensors, got int"),
        ({"model": network().train()}, ValueError, "model must be in evaluation mode"),
        ({"model": lambda x: (x,)}, TypeError, "model must return a tensor, got tuple"),
        ({"model": lambda x: x.flatten(1)[:, :3] / 0}, ValueError, "the model's outputs must be finite"),
        ({"inputs": [1.0]}, TypeError, "inputs must be a tensor of a float dtype, got list"),
        ({"inputs": torch.full((2, 2, 8, 8), math.nan)}, ValueError, "inputs must be finite"),
        ({"inputs": torch.ones(0, 2, 8, 8)}, ValueError, "inputs must"),
        ({"target": 3}, ValueError, "target must be from 0 to 2, got 3"),
        ({"target": 1.5}, TypeError, "target must be an int, a LongTensor or a function"),
        ({"target": torch.tensor([1, 2, 0])}, ValueError, r"target must be a LongTensor of shape \(2,\)"),
        ({"target": lambda y: y}, ValueError, "target must give one float score for each item"),
        ({"chunk": 0}, ValueError, "chunk must be at least 1, got 0"),
        ({"chunk": 2.0}, TypeError, "chunk must be an int, got float"),
        ({"removal": 0}, TypeError, "removal must be a function of inputs and removed places, got int"),
        ({"removal": lambda x, r: x[:, :1]}, ValueError, "removal must return a tensor like the inputs"),
        ({"removal": lambda x, r: x.masked_fill(r, math.nan)}, ValueError, "what removal returns must be finite"),
        ({"removal": removal.baseline(torch.ones(5))}, ValueError, "value must broadcast to the inputs"),
    ],
)
def test_wrong_arguments_are_an_error(method, change, error, message):
    arguments = {"model": network(), "inputs": normal(2, 2, 8, 8), "target": 0} | change
    model, inputs, target = (arguments.pop(name) for name in ("model", "inputs", "target"))
    with pytest.raises(error, match=message):
        method(model, inputs, target, **arguments)
