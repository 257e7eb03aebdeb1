"""Gradients along lines and linear regions, held against hand calculations, brute force, theory and numpy."""

import contextlib
import copy
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from xaicourse import images, lrp, models, shattering
from xaicourse.evaluation import noisiness, sensitivity


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def point(*values):
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


class Mixed(nn.Module):
    """All that bends, by module, by function and by method, with a skip connection, a batch norm and a bent constant."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(36, 3)
        self.leaky, self.prelu = nn.LeakyReLU(0.1, inplace=True), nn.PReLU(4)

    def forward(self, x):
        x = self.leaky(self.norm(self.first(x)))
        x = x + F.relu6(self.second(x) * self.head.bias.abs().clamp(min=0.5)[0])
        x = self.prelu(F.max_pool2d(x, 3, stride=2, padding=1, ceil_mode=True))
        x = torch.cat([x.clamp(-0.5, 0.7)[:, :2], F.hardtanh(x)[:, 2:]], 1)
        x = torch.maximum(x, 0.3 * x.flip(1)).abs()
        return self.head(x.relu_().flatten(1))


def mixed():
    model = Mixed().eval()
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            parameter.copy_(0.6 * normal(*parameter.shape, seed=seed))
        model.norm.running_mean.copy_(0.2 * normal(4, seed=50))
    return model


def pattern_changes(model, start, end, points):
    """Where the slope of the first output along a line changes between neighbours of a fine grid: number of places."""
    gradients = shattering.gradients_on_line(model, start, end, 0, points=points, chunk=10_000)
    slopes = gradients.flatten(1) @ (end - start).flatten()
    jumps = slopes.diff().abs() > 1e-9 * slopes.abs().max()
    return jumps


# Networks


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_network_has_the_asked_number_of_relus_whatever_stands_around_them(skip, batch_norm):
    seen = []
    model = shattering.network(5, 7, inputs=3, outputs=2, skip=skip, batch_norm=batch_norm, generator=seeded())
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
    assert model(torch.ones(4, 3)).shape == (4, 2)
    assert seen == [7] * 5
    assert not model.training


def test_without_a_generator_a_network_is_that_of_the_global_one():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        one = shattering.network(3, 8)
        torch.manual_seed(3)
        two, other = shattering.network(3, 8), shattering.network(3, 8)
    x = normal(5, 1).float()
    assert torch.isfinite(one(x)).all()
    assert torch.equal(one(x), two(x)) and not torch.equal(one(x), other(x))


def test_a_network_is_that_of_its_generator_and_leaves_the_global_one_alone():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    one, two = (shattering.network(3, 8, generator=seeded(4)) for _ in range(2))
    other = shattering.network(3, 8, generator=seeded(5))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one[0].weight, other[0].weight)


def test_the_weights_have_the_variance_of_he_and_the_biases_half_of_it():
    layer = shattering.network(2, 500, generator=seeded())[1][1]
    assert layer.weight.var().item() == pytest.approx(2 / 500, rel=0.02)
    assert layer.bias.var().item() == pytest.approx(1 / 500, rel=0.2)


def test_a_skip_connection_adds_the_input_and_beta_times_the_block():
    plain = shattering.network(3, 6, inputs=2, generator=seeded()).double()
    skipping = shattering.network(3, 6, inputs=2, skip=True, beta=0.3, generator=seeded()).double()
    first, second, third, last = plain
    x = normal(5, 2)
    h = first(x)
    h = h + 0.3 * second(h)
    h = h + 0.3 * third(h)
    torch.testing.assert_close(skipping(x), last(h), rtol=1e-12, atol=1e-12)


def test_calibrated_batch_norms_do_in_evaluation_what_they_do_in_training_on_that_batch():
    model = shattering.network(4, 10, inputs=2, batch_norm=True, skip=True, generator=seeded()).double()
    x = normal(20, 2)
    twin = copy.deepcopy(model).train()
    shattering.calibrate(model, x)
    torch.testing.assert_close(model(x), twin(x), rtol=1e-10, atol=1e-10)
    assert not model.training
    torch.testing.assert_close(model(x)[3:5], model(x[3:5]), rtol=1e-10, atol=1e-10)  # items are independent
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_calibrating_works_on_images():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).double().eval()
    x = normal(5, 3, 6, 6)
    shattering.calibrate(model, x)
    torch.testing.assert_close(model(x), copy.deepcopy(model).train()(x), rtol=1e-10, atol=1e-10)


# The gradient along a line


def test_gradients_on_a_line_are_the_gradients_at_its_points():
    model, start, end = mixed().double(), normal(1, 5, 5, seed=1), normal(1, 5, 5, seed=2)
    found = shattering.gradients_on_line(model, start, end, 2, points=7, chunk=3)
    assert found.shape == (7, 1, 5, 5)
    for t, gradient in zip(torch.linspace(0, 1, 7, dtype=torch.float64), found, strict=True):
        x = (start + t * (end - start))[None].requires_grad_()
        torch.testing.assert_close(gradient, torch.autograd.grad(model(x)[0, 2], x)[0][0], rtol=1e-10, atol=1e-12)


def test_a_target_may_be_a_function_of_the_outputs_and_the_caller_may_want_no_gradients():
    model, start, end = mixed().double(), normal(1, 5, 5, seed=1), normal(1, 5, 5, seed=2)
    wanted = shattering.gradients_on_line(model, start, end, 1, points=5)
    with torch.no_grad():
        found = shattering.gradients_on_line(model, start, end, lambda z: z[:, 1], points=5, chunk=2)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    with torch.inference_mode():
        found = shattering.gradients_on_line(model, start, end, torch.tensor(1), points=5)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gradients_have_the_dtype_of_the_points(dtype):
    model = shattering.network(3, 8, inputs=2, generator=seeded()).to(dtype)
    found = shattering.gradients_on_line(model, torch.zeros(2, dtype=dtype), torch.ones(2, dtype=dtype), 0, points=4)
    assert found.dtype == dtype and found.shape == (4, 2)


# Autocorrelation


@given(st.integers(1, 4), st.integers(3, 30), st.integers(1, 3), st.integers(0, 2**16))
@settings(max_examples=25)
def test_autocorrelation_is_that_of_numpy(lines, points, features, seed):
    g = normal(lines, points, features, seed=seed)
    found = shattering.autocorrelation(g, lags=points - 1)
    for line, each in zip(g.numpy(), found.each.numpy(), strict=True):
        centred = line - line.mean(0)
        full = sum(np.correlate(column, column, "full")[points - 1 :] for column in centred.T)
        np.testing.assert_allclose(each, full / full[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.mean, found.each.mean(0))


def test_the_standard_error_is_that_of_the_mean_over_lines():
    found = shattering.autocorrelation(normal(5, 20), lags=3)
    torch.testing.assert_close(found.standard_errors, found.each.std(0) / math.sqrt(5))
    assert shattering.autocorrelation(normal(1, 20), lags=3).standard_errors.isnan().all()


def test_the_autocorrelation_of_three_numbers_by_hand():
    found = shattering.autocorrelation(point(0, 0, 3)[None], lags=2)  # centred: -1, -1, 2
    assert found.each.tolist() == [[1, -1 / 6, -2 / 6]]


def test_white_noise_has_the_autocorrelation_that_theory_says_and_brown_noise_falls_slowly():
    points, lines = 50, 4000
    white = shattering.autocorrelation(shattering.white_noise(lines, points, generator=seeded()), lags=5)
    for lag in range(1, 6):
        expected = -(points - lag) / (points * (points - 1))
        assert abs(white.mean[lag] - expected) < 4 * white.standard_errors[lag]
    brown = shattering.autocorrelation(shattering.brown_noise(lines, points, generator=seeded()), lags=5)
    assert brown.mean[1] > 0.85 and (brown.mean.diff() < 0).all()
    steps = shattering.brown_noise(3, 9, generator=seeded()).diff()
    assert torch.allclose(steps, shattering.white_noise(3, 9, generator=seeded())[:, 1:])


def test_scale_and_offset_of_a_gradient_do_not_matter():
    g = normal(3, 20, 2)
    one, other = shattering.autocorrelation(g, lags=4), shattering.autocorrelation(-7 * g + 3, lags=4)
    torch.testing.assert_close(one.each, other.each, rtol=1e-9, atol=1e-12)


def test_a_gradient_that_does_not_change_has_no_autocorrelation():
    g = normal(3, 20)
    g[1] = 0.25
    with pytest.raises(ValueError, match="constant along line 1$"):
        shattering.autocorrelation(g, lags=4)


# Linear regions on a line


@pytest.mark.parametrize("folds", [1, 2, 5, 9])
def test_the_sawtooth_has_two_to_the_power_of_its_folds_pieces(folds):
    model = shattering.sawtooth(folds)
    found = shattering.breakpoints(model, point(0), point(1))
    expected = torch.arange(1, 2**folds, dtype=torch.float64) / 2**folds
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert torch.equal(found, shattering.breakpoints(model, point(0), point(1), target=0))
    values = model(torch.cat([point(0), expected, point(1)])[:, None])[:, 0]
    assert torch.equal(values, torch.arange(2**folds + 1, dtype=torch.float64) % 2)  # zigzag between 0 and 1
    assert sum(m.out_features for m in model[:-1] if isinstance(m, nn.Linear)) == 2 * folds


def test_a_sawtooth_of_two_inputs_folds_the_square():
    model = shattering.sawtooth(3, inputs=2)
    x = torch.rand(10, 2, generator=seeded(), dtype=torch.float64)
    one = shattering.sawtooth(3)
    torch.testing.assert_close(model(x), one(x[:, :1]) + one(x[:, 1:]), rtol=1e-12, atol=1e-12)
    polygons = shattering.polygons_on_plane(model, point(0.5, 0.5), point(0.5, 0), point(0, 0.5))
    assert len(polygons) == 8**2


def test_one_layer_bends_where_each_of_its_neurons_is_zero():
    model, start, end = shattering.network(1, 30, inputs=3, generator=seeded()), normal(3, seed=1), normal(3, seed=2)
    weight, bias = model[0].weight.double(), model[0].bias.double()
    a, b = weight @ start + bias, weight @ end + bias
    expected = (a / (a - b))[(a * b) < 0].sort().values
    found = shattering.breakpoints(model, start, end)
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-12)
    assert shattering.switched_units(model, start, end) == len(found)


@given(st.integers(1, 5), st.integers(2, 8), st.booleans(), st.booleans(), st.integers(1, 20), st.integers(0, 2**16))
@settings(max_examples=15)
def test_every_breakpoint_of_the_function_is_found_and_nothing_bends_between_two(
    depth, width, skip, batch_norm, chunk, seed
):
    model = shattering.network(
        depth, width, inputs=2, skip=skip, batch_norm=batch_norm, generator=seeded(seed)
    ).double()
    shattering.calibrate(model, normal(50, 2, seed=seed))
    start, end = 2 * normal(2, seed=seed + 1), 2 * normal(2, seed=seed + 2)
    found = shattering.breakpoints(model, start, end, target=0, chunk=chunk)
    # brute force: between two neighbours of a fine grid the slope changes exactly where a breakpoint lies
    fine = 2000
    jumps = pattern_changes(model, start, end, fine)
    cells = torch.zeros(fine - 1, dtype=torch.bool)
    cells[(found * (fine - 1)).long()] = True
    assert torch.equal(jumps, cells)
    every = shattering.breakpoints(model, start, end, chunk=chunk)
    assert len(every) >= len(found) and torch.isin(found, every).all()
    # and none too many: on the two sides of each, other neurons are on
    ends = torch.cat([point(0), every, point(1)])
    masks = []
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda module, args, output: masks.append(output > 0))
    with torch.no_grad():
        model(start + (ends[1:] + ends[:-1])[:, None] / 2 * (end - start))
    assert (torch.cat(masks, 1).diff(dim=0)).any(1).all()


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_a_model_of_all_that_bends_is_affine_on_each_piece(chunk):
    model, start, end = mixed(), normal(1, 5, 5, seed=3), normal(1, 5, 5, seed=4)
    found = shattering.breakpoints(model, start, end, chunk=chunk)
    assert len(found) > 100
    ends = torch.cat([point(0), found, point(1)])
    t = ends[:-1] + torch.tensor([[0.0], [0.25], [0.5], [1.0]], dtype=torch.float64) * ends.diff()
    x = start + t.flatten()[:, None, None, None] * (end - start)
    with torch.no_grad():
        a, b, c, d = model.double()(x).view(4, -1, 3)
    torch.testing.assert_close(b, 0.75 * a + 0.25 * d, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(c, 0.5 * a + 0.5 * d, rtol=1e-10, atol=1e-10)


def test_in_a_model_of_all_that_bends_the_breakpoints_of_a_score_are_those_of_brute_force():
    model, start, end = mixed().double(), normal(1, 5, 5, seed=3), normal(1, 5, 5, seed=4)
    found = shattering.breakpoints(model, start, end, target=0)
    fine = 40_000
    jumps = pattern_changes(model, start, end, fine)
    assert torch.equal(jumps.nonzero()[:, 0], (found * (fine - 1)).long().unique())


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (torch.relu, [0.5]),
        (lambda x: x.relu(), [0.5]),
        (lambda x: x.clone().relu_(), [0.5]),
        (F.relu, [0.5]),
        (lambda x: F.relu6(16 * x), [0.5, 0.6875]),
        (lambda x: F.leaky_relu(x, 0.2), [0.5]),
        (lambda x: F.prelu(x, torch.full((1,), 0.3, dtype=torch.float64)), [0.5]),
        (torch.abs, [0.5]),
        (abs, [0.5]),
        (lambda x: x.clamp(-0.5, 0.75), [0.25, 0.875]),
        (lambda x: torch.clamp(x, max=0.5), [0.75]),
        (lambda x: x.clamp_min(-0.5), [0.25]),
        (lambda x: torch.clip(x, min=0.5), [0.75]),
        (lambda x: F.hardtanh(2 * x), [0.25, 0.75]),
        (lambda x: F.hardtanh(x, min_val=-0.5, max_val=0.5), [0.25, 0.75]),
        (lambda x: F.hardsigmoid(6 * x), [0.25, 0.75]),
        (lambda x: torch.maximum(x, -2 * x + 0.75), [0.625]),
        (lambda x: torch.minimum(input=x, other=0.5 - x), [0.625]),
        (lambda x: F.max_pool1d(torch.stack([x, -x, 0 * x], 2), 3).flatten(1), [0.5]),
        (lambda x: F.max_pool1d(torch.stack([x, -x, 0 * x + 0.5], 2), 3).flatten(1), [0.25, 0.75]),
        (lambda x: torch.relu(torch.relu(x) - 0.5), [0.5, 0.75]),
        (lambda x: 3 * x + 1, []),
    ],
)
def test_what_bends_bends_where_it_should(function, expected):
    found = shattering.breakpoints(function, point(-1), point(1))
    torch.testing.assert_close(found, point(*expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize("settings", [
    {"kernel_size": 2}, {"kernel_size": 3, "stride": 2, "padding": 1}, {"kernel_size": 3, "stride": 2, "ceil_mode": True},
    {"kernel_size": (3, 2), "stride": (1, 2), "dilation": (2, 1), "padding": (1, 0)}, {"kernel_size": 2, "stride": 3},
])  # fmt: skip
def test_the_windows_of_a_pooling_hold_what_it_chooses_from(settings):
    x = normal(2, 3, 7, 8)
    pooled = F.max_pool2d(x, **settings)
    windows = shattering._windows(pooled, 2, x, **settings)
    assert windows.shape[:-1] == pooled.shape
    offset = (windows.amax(-1) - pooled).flatten(1)
    torch.testing.assert_close(offset, offset[:, :1].expand_as(offset), rtol=1e-12, atol=1e-12)


def test_a_silent_network_behind_a_unit_hides_its_bend_from_the_score():
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)).double().eval()
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), (1, 0, 1, -10, 1, 0), strict=True):
            parameter.fill_(value)
    assert shattering.breakpoints(model, point(-1), point(1)).tolist() == [0.5]  # relu(relu(x) - 10): flat everywhere
    assert len(shattering.breakpoints(model, point(-1), point(1), target=lambda z: z[:, 0] + 0 * z[:, 0])) == 0
    assert len(shattering.breakpoints(model, point(-1), point(21), target=0)) == 1


def test_there_are_at_least_as_many_breakpoints_as_switched_units():
    for seed in range(5):
        model = shattering.network(4, 12, inputs=2, generator=seeded(seed))
        start, end = normal(2, seed=seed), normal(2, seed=seed + 50)
        switched = shattering.switched_units(model, start, end)
        found = shattering.breakpoints(model, start, end)
        assert 0 < switched <= len(found)
        near = start + (0.5 * found[0]) * (end - start)
        assert shattering.switched_units(model, start, near) == 0


def test_a_breakpoint_at_an_end_is_none():
    assert shattering.breakpoints(torch.relu, point(0), point(1)).tolist() == []
    assert shattering.breakpoints(torch.relu, point(-1), point(0)).tolist() == []


def test_a_trained_efficientnet_is_affine_between_its_breakpoints():
    model, crop = models.load(), models.transform()(images.load("chelsea"))[:, 64:128, 80:144]
    other = models.transform()(images.load("coffee"))[:, 64:128, 80:144]
    end = crop + 3e-5 * (other - crop)
    found = shattering.breakpoints(model, crop, end, chunk=8)
    assert 2 < len(found) < 60
    assert shattering.switched_units(model, crop, end) <= len(found)
    ends = torch.cat([point(0), found, point(1)])
    for a, b in itertools.pairwise(ends[:5].tolist()):
        t = torch.tensor([a, (a + b) / 2, b], dtype=torch.float64)[:, None, None, None]
        with torch.no_grad():
            left, middle, right = copy.deepcopy(model).double()(crop.double() + t * (end.double() - crop.double()))
        assert (middle - (left + right) / 2).abs().max() < 1e-10
    assert next(model.parameters()).dtype == torch.float32  # only a copy worked in float64


# Linear regions on a plane


def area(polygon):
    x, y = polygon.T
    return ((x * y.roll(-1) - y * x.roll(-1)).sum() / 2).abs().item()


@given(st.integers(1, 4), st.integers(2, 8), st.booleans(), st.integers(1, 9), st.integers(0, 2**16))
@example(4, 2, False, 1, 611)  # a line of one layer cuts off a mere sliver, and one of a deeper layer a part
@settings(max_examples=12)
def test_polygons_tile_the_square_and_the_network_is_affine_on_each(depth, width, skip, chunk, seed):
    model = shattering.network(depth, width, inputs=3, skip=skip, generator=seeded(seed)).double()
    origin, u, v = normal(3, seed=seed), normal(3, seed=seed + 1), normal(3, seed=seed + 2)
    polygons = shattering.polygons_on_plane(model, origin, u, v, chunk=chunk)
    assert sum(map(area, polygons)) == pytest.approx(4, abs=1e-9)
    inside = torch.stack([polygon.mean(0) for polygon in polygons])
    x = (origin + inside @ torch.stack([u, v])).requires_grad_()
    slopes = torch.autograd.grad(model(x).sum(), x)[0]
    with torch.no_grad():
        for polygon, middle, slope in zip(polygons, x.detach(), slopes, strict=True):
            corners = origin + polygon @ torch.stack([u, v])
            affine = model(middle[None])[0, 0] + (corners - middle) @ slope
            torch.testing.assert_close(model(corners)[:, 0], affine, rtol=1e-8, atol=1e-8)


def test_one_layer_cuts_the_plane_into_as_many_parts_as_its_lines():
    # three lines in general position that all meet inside the square make 1 + 3 + 3 regions
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).double().eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
        model[0].bias.copy_(point(0, 0, -0.5))
    square = (point(0, 0), point(1, 0), point(0, 1))
    polygons = shattering.polygons_on_plane(model, *square)
    assert sorted(round(area(p), 6) for p in polygons) == [0.125] * 3 + [0.875] * 3 + [1.0]
    assert shattering.regions_on_plane(model, *square, resolution=50).count == 7 == shattering.zaslavsky_bound(2, [3])


@pytest.mark.parametrize("depth", [1, 3])
def test_the_grid_names_the_polygon_that_each_of_its_points_lies_in(depth):
    model, resolution = shattering.network(depth, 6, inputs=2, generator=seeded(depth)), 60
    square = (point(0.1, 0.2), point(1, 0.3), point(-0.2, 1))
    plane = shattering.regions_on_plane(model, *square, resolution=resolution, chunk=501)
    polygons = shattering.polygons_on_plane(model, *square)
    side = torch.linspace(-1, 1, resolution, dtype=torch.float64)
    b, a = torch.meshgrid(side, side, indexing="ij")
    at = torch.stack([a.flatten(), b.flatten()], 1)
    owner = torch.full((resolution**2,), -1)
    for number, polygon in enumerate(polygons):
        edges, to = polygon.roll(-1, 0) - polygon, at[:, None] - polygon
        turn = edges[:, 0] * to[..., 1] - edges[:, 1] * to[..., 0]
        owner[(turn > 1e-12).all(1) | (turn < -1e-12).all(1)] = number
    inside = owner >= 0
    assert inside.float().mean() > 0.9
    both = set(zip(owner[inside].tolist(), plane.regions.flatten()[inside].tolist(), strict=True))
    assert len(both) == len({o for o, _ in both}) == len({r for _, r in both})  # one to one
    assert plane.count <= len(polygons) and plane.regions.max() == plane.count - 1


def test_a_line_through_the_plane_meets_the_regions_that_the_map_has_there():
    model = shattering.network(3, 10, inputs=2, generator=seeded(3)).double()
    plane = shattering.regions_on_plane(model, point(0, 0), point(1, 0), point(0, 1), resolution=101)
    for row, b in ((0, -1.0), (50, 0.0), (100, 1.0)):
        breaks = shattering.breakpoints(model, point(-1, b), point(1, b))
        steps = (plane.regions[row].diff() != 0).nonzero()[:, 0]
        assert torch.equal(steps, (breaks * 100).long().unique())


def test_max_pooling_is_seen_on_the_grid_and_refused_by_the_polygons():
    def model(x):
        return F.max_pool1d(torch.stack([x[:, :1], x[:, 1:], 0 * x[:, :1]], 2), 3).flatten(1)

    square = (point(0, 0), point(1, 0), point(0, 1))
    assert shattering.regions_on_plane(model, *square, resolution=40).count == 3
    with pytest.raises(ValueError, match="does not know max pooling; regions_on_plane does"):
        shattering.polygons_on_plane(model, *square)


# Bounds


def test_the_bounds_by_hand():
    assert shattering.zaslavsky_bound(1, [5]) == 6
    assert shattering.zaslavsky_bound(2, [3]) == 7
    assert shattering.zaslavsky_bound(2, [2]) == 4
    assert shattering.zaslavsky_bound(3, [3]) == 8
    assert shattering.zaslavsky_bound(2, [3, 4]) == 7 * 11
    assert shattering.zaslavsky_bound(3, [1, 4]) == 2 * 5  # one neuron leaves one dimension
    assert shattering.montufar_bound(1, [2, 2, 2]) == 2 * 2 * 3
    assert shattering.montufar_bound(2, [4, 4]) == 2**2 * 11
    assert shattering.montufar_bound(2, [5, 7, 3]) == 2**2 * 3**2 * 7
    assert shattering.montufar_bound(2, [8] * 100) == 4 ** (2 * 99) * (1 + 8 + 28)  # no float holds it


@given(st.integers(1, 3), st.lists(st.integers(3, 9), min_size=1, max_size=5))
def test_the_lower_bound_is_not_above_the_upper_one_and_equals_it_for_one_layer(inputs, widths):
    lower, upper = shattering.montufar_bound(inputs, widths), shattering.zaslavsky_bound(inputs, widths)
    assert lower <= upper
    assert len(widths) > 1 or lower == upper


def test_folding_reaches_what_the_bound_promises_up_to_the_last_layer():
    # beyond the cube the folds have pieces, too: on a wide enough line there are as many as the bound for two layers says
    model = shattering.sawtooth(2)
    found = shattering.breakpoints(model, point(-1), point(2))
    assert len(found) + 1 == shattering.montufar_bound(1, [2, 2]) == 6


# Claims of lecture 08


def gradients(depth, *, seeds, skip=False, batch_norm=False, beta=1.0, points=128, width=100):
    found = []
    for seed in seeds:
        model = shattering.network(depth, width, skip=skip, batch_norm=batch_norm, beta=beta, generator=seeded(seed))
        shattering.calibrate(model, torch.linspace(-2, 2, points)[:, None])
        start, end = torch.tensor([-2.0]), torch.tensor([2.0])
        found.append(shattering.gradients_on_line(model, start, end, 0, points=points, chunk=points))
    return torch.stack(found)


def at_lag(number, *args, **settings):
    """Mean autocorrelation at a lag and half its 95 % interval."""
    found = shattering.autocorrelation(gradients(*args, **settings), lags=number)
    return found.mean[number].item(), 1.96 * found.standard_errors[number].item()


def test_the_autocorrelation_of_the_gradient_falls_with_depth():
    shallow, deep, deeper = (at_lag(2, depth, seeds=range(20)) for depth in (1, 10, 50))
    assert shallow[0] - shallow[1] > deep[0] + deep[1]
    assert deep[0] - deep[1] > deeper[0] + deeper[1]
    normed = at_lag(5, 10, seeds=range(20), batch_norm=True)
    assert abs(normed[0]) < 0.15  # with batch norm ten layers are enough


def test_the_correlation_of_the_gradients_at_two_points_is_that_of_the_wide_limit():
    # arc-cosine kernels (Cho and Saul 2009): the angle between the two points shrinks from layer to layer, and each layer
    # multiplies the correlation by twice the share of neurons that are active at both
    inputs, depth, x = 200, 6, torch.zeros(2, 200, dtype=torch.float64)
    x[0, 0], x[1, 0], x[1, 1] = 1, 0.6, 0.8
    found = []
    for seed in range(30):
        model = shattering.network(depth, 200, inputs=inputs, generator=seeded(seed)).double()
        for module in model.modules():
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        found.append(torch.autograd.grad(model(x.requires_grad_()).sum(), x)[0])
    a, b = torch.stack(found).unbind(1)
    measured = ((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt()).item()
    cosine, expected = 0.6, 1.0
    for _ in range(depth):
        angle = math.acos(cosine)
        expected *= 1 - angle / math.pi
        cosine = (math.sin(angle) + (math.pi - angle) * cosine) / math.pi
    assert measured == pytest.approx(expected, abs=0.03)
    assert (
        measured > 10 * 0.5**depth
    )  # and not 1/2 per layer, which would need that they share a quarter of the neurons


def test_regions_grow_with_depth_and_with_the_number_of_neurons_but_not_with_depth_alone():
    square = (torch.zeros(2), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))

    def counted(depth, width):
        lines, planes = [], []
        for seed in range(8):
            model = shattering.network(depth, width, inputs=2, generator=seeded(seed))
            lines.append(len(shattering.breakpoints(model, -torch.ones(2), torch.ones(2))) + 1)
            planes.append(len(shattering.polygons_on_plane(model, *square)))
        return np.mean(lines), np.mean(planes)

    shallow, deep = counted(1, 16), counted(4, 16)
    assert deep[0] > 2 * shallow[0] and deep[1] > 4 * shallow[1]  # four times the neurons
    same = counted(1, 64)
    assert 0.5 < deep[0] / same[0] < 1.5 and 0.5 < deep[1] / same[1] < 1.5  # as many neurons, in one layer
    assert deep[1] < 1e-3 * shattering.montufar_bound(2, [16] * 4)  # far from what is possible
    assert deep[1] < shattering.zaslavsky_bound(2, [16] * 4)


def lines_met(depth, width, *, batch_norm, seeds=range(16)):
    """Borders on a line through the plane: their mean over networks, and half its 95 % interval."""
    start, end, found = torch.full((2,), -1.0).double(), torch.full((2,), 1.0).double(), []
    for seed in seeds:
        model = shattering.network(depth, width, inputs=2, batch_norm=batch_norm, generator=seeded(seed)).double()
        shattering.calibrate(model, 4 * torch.rand(300, 2, generator=seeded(seed), dtype=torch.float64) - 2)
        found.append(len(shattering.breakpoints(model, start, end)))
    return np.mean(found), 2.13 * np.std(found, ddof=1) / len(found) ** 0.5


def test_with_batch_norm_depth_multiplies_the_borders_of_as_many_neurons_and_without_it_does_not():
    flat, deep = (lines_met(*shape, batch_norm=False) for shape in ((1, 64), (8, 8)))
    assert deep[0] + deep[1] < 1.1 * (flat[0] + flat[1])
    flat, deep = (lines_met(*shape, batch_norm=True) for shape in ((1, 64), (8, 8)))
    assert flat[0] <= 64 and deep[0] - deep[1] > 1.3 * flat[0]


def test_with_one_input_all_normed_neurons_of_the_first_layer_switch_at_the_same_point():
    model = shattering.network(1, 50, batch_norm=True, generator=seeded(1)).double()
    x = torch.linspace(-2, 1, 100, dtype=torch.float64)[:, None]
    shattering.calibrate(model, x)
    (bend,) = shattering.breakpoints(model, x[0], x[-1])
    assert bend.item() == pytest.approx(0.5, abs=1e-9)


def test_the_product_of_shared_neurons_foretells_the_cosine_of_gradients_but_not_along_the_step_itself():
    found = []
    for seed in range(12):
        draw = seeded(seed)
        model = shattering.network(8, 100, inputs=60, batch_norm=True, generator=draw)
        middle, direction = torch.randn(2, 60, generator=draw) / 60**0.5
        x = middle + torch.linspace(-2, 2, 128)[:, None] * direction
        shattering.calibrate(model, x)
        shares = []
        for relu in [module for module in model.modules() if isinstance(module, nn.ReLU)]:
            relu.register_forward_hook(lambda module, args, output, shares=shares: shares.append((output > 0).float()))
        with torch.no_grad():
            model(x)
        product = math.prod(((on[3:] * on[:-3]).sum() / on[3:].sum()).item() for on in shares)
        g = shattering.gradients_on_line(model, x[0], x[-1], 0, points=128, chunk=128)
        along = g @ torch.nn.functional.normalize(direction, dim=0)[:, None]
        cosines = [((h[3:] * h[:-3]).sum() / (h[3:].norm() * h[:-3].norm())).item() for h in (g, along)]
        found.append([product, *cosines])
    product, whole, along = np.mean(found, 0)
    assert whole == pytest.approx(product, abs=0.1) and along < product - 0.2


def test_skips_slow_the_decay_and_batch_norm_alone_speeds_it_up():
    seeds, depth = range(12), 24
    plain = at_lag(2, depth, seeds=seeds)
    norms = at_lag(2, depth, seeds=seeds, batch_norm=True)
    both = at_lag(2, depth, seeds=seeds, skip=True, batch_norm=True)
    scaled = at_lag(2, depth, seeds=seeds, skip=True, batch_norm=True, beta=0.1)
    assert norms[0] < 0.1 < plain[0] - 0.3  # batch norm alone shatters most
    assert both[0] - both[1] > norms[0] + norms[1] + 0.1
    assert scaled[0] - scaled[1] > both[0] + both[1]
    alone = at_lag(2, depth, seeds=seeds, skip=True, beta=0.1)
    assert alone[0] - alone[1] > scaled[0]  # small branches need no batch norm


def test_depth_makes_more_jumps_of_the_gradient_at_the_same_width_and_not_larger_ones():
    start, end = torch.full((2,), -1.0).double(), torch.full((2,), 1.0).double()

    def jumps(depth, width):
        found = []
        for seed in range(12):
            model = shattering.network(depth, width, inputs=2, batch_norm=True, generator=seeded(seed)).double()
            shattering.calibrate(model, 4 * torch.rand(300, 2, generator=seeded(seed), dtype=torch.float64) - 2)
            bends = torch.cat([torch.zeros(1), shattering.breakpoints(model, start, end), torch.ones(1)])
            x = (start + (bends[1:] + bends[:-1])[:, None] / 2 * (end - start)).requires_grad_()
            slopes = torch.autograd.grad(model(x).sum(), x)[0]
            squares, length = slopes.diff(dim=0).square().sum(1), slopes.square().sum(1).mean()
            found.append([squares.mean().sqrt() / length.sqrt(), squares.sum() / (2 * length)])
        return torch.tensor(found).mean(0)

    shallow, deep, wide = jumps(1, 12), jumps(6, 12), jumps(1, 48)
    assert 0.7 < deep[0] / shallow[0] < 1.4 and wide[0] < 0.75 * shallow[0]  # it is the width that makes them small
    assert (
        deep[1] > 4 * shallow[1] and 0.4 < wide[1] / shallow[1] < 2.5
    )  # how often the gradient is exchanged on the line


def test_without_batch_norm_skips_slow_the_decay_a_little():
    plain, skips = (
        shattering.autocorrelation(gradients(24, seeds=range(100, 140), skip=skip), lags=2).each[:, 2]
        for skip in (False, True)
    )
    gain = skips - plain
    assert 0.25 > gain.mean() > 1.96 * gain.std() / len(gain) ** 0.5


def test_the_gradient_of_a_real_network_is_noisier_and_less_steady_than_lrp():
    model = models.load()
    crops = torch.stack([models.transform()(images.load(name)) for name in ("chelsea", "coffee", "flower")])[
        ..., 40:168, 40:168
    ]
    with torch.no_grad():
        said = model(crops).argmax(1)

    def by_gradient(model, x, target):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(model(x).gather(1, target[:, None]).sum(), x)[0] * x.detach()

    def by_lrp(model, x, target):
        return lrp.relevance(model, x, target, composite="epsilon_plus")

    assert (noisiness(by_gradient(model, crops, said)) > 1.2 * noisiness(by_lrp(model, crops, said))).all()
    moved = [
        sensitivity(model, crops, said, explain, radius=0.02, samples=1, generator=seeded()).average
        for explain in (by_gradient, by_lrp)
    ]
    assert (moved[0] > 2 * moved[1]).all()

    # the control: before training the gradient is white noise in space, and z+ is calm all the same
    torch.manual_seed(0)
    untrained = models.load(pretrained=False)
    shattering.calibrate(untrained, crops)
    white, calm = (noisiness(explain(untrained, crops, said)) for explain in (by_gradient, by_lrp))
    assert ((white - 1).abs() < 0.2).all() and (calm < 0.7).all()


# What does not go


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (nn.Sequential(nn.Linear(2, 3), nn.Sigmoid()), "sigmoid"),
        (nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.GELU()), "gelu"),
        (nn.Sequential(nn.Linear(2, 3), nn.SiLU(), nn.ReLU()), "silu"),
        (nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)), "layer_norm"),
        (nn.Sequential(nn.Linear(2, 3), nn.Softmax(1)), "softmax"),
        (nn.Sequential(nn.Linear(2, 3), nn.Hardswish()), "hardswish"),
        (nn.Sequential(nn.Linear(2, 3), nn.Threshold(0.1, 7)), "threshold"),
        (nn.Sequential(nn.Linear(2, 3), nn.ELU()), "elu"),
        (lambda x: x * x.relu(), "mul"),
        (lambda x: x**2, "pow"),
        (lambda x: x / (1 + x.abs()), "div"),
    ],
)
def test_a_model_that_is_not_piecewise_linear_is_refused_by_name(model, name):
    model = model.eval() if isinstance(model, nn.Module) else model
    square = (point(0, 0), point(1, 0), point(0, 1))
    for ask in (
        lambda: shattering.breakpoints(model, point(0, 0), point(1, 1e-6)),
        lambda: shattering.breakpoints(model, point(0, 0), point(1e-6, 0)),
        lambda: shattering.switched_units(model, point(0, 0), point(1, 1)),
        lambda: shattering.regions_on_plane(model, *square),
        lambda: shattering.polygons_on_plane(model, *square),
    ):
        with pytest.raises(ValueError, match=f"piecewise linear.*{name}.* is neither"):
            ask()


FIVE = torch.tensor(5.0, dtype=torch.float64)


@pytest.mark.parametrize(
    ("model", "start", "end", "name"),
    [
        (lambda x: torch.where(x > 5, x, FIVE), 0, 10, "where"),
        (lambda x: F.threshold(x, 5.0, 5.0), 0, 10, "threshold"),
        (lambda x: F.hardshrink(x, 5.0), 0, 10, "hardshrink"),
        (lambda x: F.softshrink(x, 5.0), 0, 10, "softshrink"),
        (lambda x: F.elu(x - 40), 60, 10, "elu"),
        (torch.floor, -1, 1, "floor"),
    ],
)
def test_a_bend_far_from_the_start_by_what_is_not_watched_is_refused_by_name(model, start, end, name):
    origin, u = (point((start + end) / 2, 0), point((end - start) / 2, 0))
    for ask in (
        lambda: shattering.breakpoints(model, point(start), point(end)),
        lambda: shattering.switched_units(model, point(start), point(end)),
        lambda: shattering.regions_on_plane(model, origin, u, point(0, 1)),
        lambda: shattering.polygons_on_plane(model, origin, u, point(0, 1)),
    ):
        with pytest.raises(ValueError, match=f"piecewise linear.*{name}.* is neither"):
            ask()


def hidden(function):
    """A model of which no function is seen, as of one that was compiled: only its outputs tell."""

    def model(x):
        return torch.from_numpy(function(x.detach().numpy()))

    return model


@pytest.mark.parametrize(
    "function",
    [
        lambda x: np.maximum(x, 0.3),
        lambda x: np.floor(x),
        lambda x: np.where(x > -0.9, x, x + 1),
        lambda x: 1e6 + np.abs(x + 0.99),
        lambda x: x**3,
        lambda x: x[:, :1] * x[:, -1:],
    ],
)
def test_what_was_found_is_held_against_the_outputs(function):
    model = hidden(function)
    for ask in (
        lambda: shattering.breakpoints(model, point(-1, -1), point(1, 1)),
        lambda: shattering.breakpoints(model, point(-1, -1), point(1, 1), target=0, chunk=1),
        lambda: shattering.regions_on_plane(model, point(0, 0), point(1, 0), point(0, 1), resolution=50),
        lambda: shattering.polygons_on_plane(model, point(0, 0), point(1, 0), point(0, 1), chunk=1),
    ):
        with pytest.raises(ValueError, match=r"bend only by relu.* are not affine"):
            ask()
    assert len(shattering.breakpoints(hidden(lambda x: 3 * x + 1), point(-1, -1), point(1, 1))) == 0


def test_a_step_at_a_known_bend_is_refused_too():
    step = hidden(lambda x: np.heaviside(x - 0.5, 1.0))
    with pytest.raises(ValueError, match="piecewise linear.*add is neither"):  # it is the sum that jumps
        shattering.breakpoints(lambda x: torch.relu(x - 0.5) + step(x), point(0), point(1))


def test_a_target_that_bends_the_outputs_is_refused():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).double().eval()
    for target in (lambda y: y.softmax(1)[:, 0], lambda y: y.square().sum(1)):
        with pytest.raises(ValueError, match="the score that target makes of them"):
            shattering.breakpoints(model, point(-3, -3), point(3, 2), target=target)


def test_a_model_that_counts_its_calls_is_as_good_as_one_that_does_not():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("n", torch.zeros(1))

        def forward(self, x):
            self.n += 1
            return torch.relu(x - 0.5)

    model = Counting().eval()
    assert shattering.breakpoints(model, point(0), point(1)).tolist() == [0.5]
    assert shattering.switched_units(model, point(0), point(1)) == 1
    assert model.n.item() == 0


def test_a_model_that_mixes_its_items_is_refused():
    with pytest.raises(ValueError, match="alone"):
        shattering.breakpoints(lambda x: torch.relu(x - x.mean(0, keepdim=True)), point(0), point(1))
    with pytest.raises(ValueError, match="along the first axis"):
        shattering.breakpoints(lambda x: torch.relu(x.T[:, :, None]).sum(0), point(0, 1, 2), point(1, 1, 1))


def test_a_model_that_does_something_else_with_some_inputs_is_refused():
    def moody(x):
        return x.relu() if x[0, 0] > 0 else (2 * x).relu() + 1

    with pytest.raises(ValueError, match="with every input|alone"):
        shattering.breakpoints(moody, point(0.0), point(1.0))


def test_too_many_breakpoints_are_an_error_that_says_what_to_do():
    with pytest.raises(ValueError, match="more than 10 breakpoints.*shorter segment"):
        shattering.breakpoints(shattering.sawtooth(6), point(0), point(1), most=10)
    model = shattering.network(2, 16, inputs=2, generator=seeded())
    with pytest.raises(ValueError, match="more than 10 regions.*smaller one"):
        shattering.polygons_on_plane(model, point(0, 0), point(1, 0), point(0, 1), most=10)


MODEL = shattering.network(2, 4, inputs=2, generator=seeded())
START, END = torch.zeros(2), torch.ones(2)
TRAINING = copy.deepcopy(MODEL).train()


@pytest.mark.parametrize(
    ("ask", "error", "words"),
    [
        (lambda: shattering.network(0, 3), ValueError, "depth must be at least 1"),
        (lambda: shattering.network(2, 2.0), TypeError, "width must be an int"),
        (lambda: shattering.network(2, 2, inputs=0), ValueError, "inputs must be at least 1"),
        (lambda: shattering.network(2, 2, beta=0.0), ValueError, "beta must be above 0"),
        (lambda: shattering.network(2, 2, generator=3), TypeError, "generator must be a torch.Generator"),
        (lambda: shattering.sawtooth(0), ValueError, "folds must be from 1"),
        (lambda: shattering.sawtooth(80), ValueError, "folds must be from 1 to 50"),
        (lambda: shattering.calibrate(torch.relu, START), TypeError, "model must be an nn.Module"),
        (lambda: shattering.calibrate(TRAINING, START), ValueError, "evaluation mode"),
        (lambda: shattering.calibrate(MODEL, [1]), TypeError, "inputs must be a tensor"),
        (lambda: shattering.gradients_on_line(3, START, END, 0), TypeError, "model must be"),
        (lambda: shattering.gradients_on_line(TRAINING, START, END, 0), ValueError, "evaluation mode"),
        (lambda: shattering.gradients_on_line(MODEL, START, END, 1), ValueError, "target must be from 0 to 0"),
        (lambda: shattering.gradients_on_line(MODEL, START, END, "a"), TypeError, "target must be"),
        (lambda: shattering.gradients_on_line(MODEL, START, START, 0), ValueError, "end must be another point"),
        (lambda: shattering.gradients_on_line(MODEL, START, END[:1], 0), ValueError, "end must be like"),
        (lambda: shattering.gradients_on_line(MODEL, START, END.double(), 0), ValueError, "end must be like"),
        (lambda: shattering.gradients_on_line(MODEL, START.long(), END, 0), TypeError, "start must be a tensor"),
        (lambda: shattering.gradients_on_line(MODEL, START * math.nan, END, 0), ValueError, "start must be finite"),
        (lambda: shattering.gradients_on_line(MODEL, START, END, 0, points=1), ValueError, "points must be at least 2"),
        (lambda: shattering.gradients_on_line(MODEL, START, END, 0, chunk=0), ValueError, "chunk must be at least 1"),
        (lambda: shattering.autocorrelation([1.0], lags=1), TypeError, "gradients must be a tensor"),
        (lambda: shattering.autocorrelation(torch.zeros(3), lags=1), ValueError, "gradients must have shape"),
        (lambda: shattering.autocorrelation(torch.zeros(3, 1), lags=1), ValueError, "at least two points"),
        (lambda: shattering.autocorrelation(torch.rand(3, 4) * math.inf, lags=1), ValueError, "must be finite"),
        (lambda: shattering.autocorrelation(torch.rand(3, 4), lags=4), ValueError, "lags must be from 1 to 3"),
        (lambda: shattering.white_noise(0, 4), ValueError, "lines must be at least 1"),
        (lambda: shattering.brown_noise(2, 1), ValueError, "points must be at least 2"),
        (lambda: shattering.breakpoints(MODEL, START, START), ValueError, "end must be another point"),
        (lambda: shattering.breakpoints(TRAINING, START, END), ValueError, "evaluation mode"),
        (lambda: shattering.breakpoints(MODEL, START, END, target=3), ValueError, "target must be from 0 to 0"),
        (lambda: shattering.breakpoints(MODEL, START, END, most=0), ValueError, "most must be at least 1"),
        (lambda: shattering.breakpoints(lambda x: [x], START, END), TypeError, "must return a tensor"),
        (lambda: shattering.switched_units(MODEL, START, START), ValueError, "end must be another point"),
        (lambda: shattering.regions_on_plane(MODEL, START, END, 2 * END), ValueError, "v must point in another"),
        (lambda: shattering.regions_on_plane(MODEL, START, END, START), ValueError, "v must point in another"),
        (lambda: shattering.regions_on_plane(MODEL, START, END, [1]), TypeError, "v must be a tensor"),
        (lambda: shattering.regions_on_plane(MODEL, START, END, point(1, 0).float(), resolution=1), ValueError, "resol"),
        (lambda: shattering.polygons_on_plane(MODEL, START, END[:1], END), ValueError, "u must be like"),
        (lambda: shattering.montufar_bound(2, [3, 1]), ValueError, "widths must be at least inputs=2"),
        (lambda: shattering.montufar_bound(0, [3]), ValueError, "inputs must be at least 1"),
        (lambda: shattering.montufar_bound(1, []), TypeError, "widths must be a sequence"),
        (lambda: shattering.zaslavsky_bound(1, 3), TypeError, "widths must be a sequence"),
        (lambda: shattering.zaslavsky_bound(1, [3, 0]), ValueError, "each of widths must be at least 1"),
    ],
)  # fmt: skip
def test_bad_input_is_an_error_that_says_so(ask, error, words):
    with pytest.raises(error, match=words):
        ask()


# The model afterwards


@pytest.mark.parametrize("fail", [False, True])
def test_the_model_comes_back_as_it_was_also_after_an_error(fail):
    model = mixed()
    state = copy.deepcopy(model.state_dict())
    wants = [parameter.requires_grad for parameter in model.parameters()]
    start, end = normal(1, 5, 5, seed=1).float(), normal(1, 5, 5, seed=2).float()
    plane = (start, end, start.flip(0, 1))
    target, most = (7, 3) if fail else (0, 100_000)
    for ask in (
        lambda: shattering.gradients_on_line(model, start, end, target, points=3),
        lambda: shattering.breakpoints(model, start, end, most=most),
        lambda: shattering.breakpoints(model, start, end, target=target),
        lambda: shattering.regions_on_plane(model, *plane, resolution=5),
    ):
        if fail:
            with contextlib.suppress(ValueError):
                ask()
        else:
            ask()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert wants == [parameter.requires_grad for parameter in model.parameters()]
    assert not model.training and all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_regions_are_found_under_no_grad_and_inference_mode():
    model, start, end = mixed(), normal(1, 5, 5, seed=1), normal(1, 5, 5, seed=2)
    wanted = shattering.breakpoints(model, start, end, target=0)
    with torch.no_grad():
        assert torch.equal(shattering.breakpoints(model, start, end, target=0), wanted)
    with torch.inference_mode():
        assert torch.equal(shattering.breakpoints(model, start, end, target=0), wanted)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_what_the_cpu_gives():
    model, start, end = mixed(), normal(1, 5, 5, seed=1), normal(1, 5, 5, seed=2)
    lines = shattering.breakpoints(model, start, end)
    gradients = shattering.gradients_on_line(model.double(), start, end, 0, points=9)
    plane = shattering.regions_on_plane(model, start, end, start.flip(1), resolution=20)
    model, start, end = model.cuda(), start.cuda(), end.cuda()
    found = shattering.breakpoints(model, start, end)
    assert found.device.type == "cuda"
    torch.testing.assert_close(found.cpu(), lines, rtol=0, atol=1e-9)
    found = shattering.gradients_on_line(model, start, end, 0, points=9)
    torch.testing.assert_close(found.cpu(), gradients, rtol=1e-8, atol=1e-9)
    assert shattering.regions_on_plane(model, start, end, start.flip(1), resolution=20).count == plane.count
    small = shattering.network(2, 6, inputs=2, generator=torch.Generator("cuda").manual_seed(0))
    origin, u, v = (values.cuda() for values in (point(0, 0), point(1, 0), point(0, 1)))
    assert len(shattering.polygons_on_plane(small, origin, u, v)) > 1
