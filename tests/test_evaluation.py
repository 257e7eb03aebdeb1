"""Measures of explanations, held against sums by hand on a linear model, against Quantus, scipy and captum."""

import copy
import itertools
import math

import captum.metrics
import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from xaicourse import evaluation, images, models, removal

ZERO = removal.baseline(0)


@pytest.fixture(scope="module")
def quantus():
    return pytest.importorskip("quantus", exc_type=ImportError)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


def linear(channels=2, height=4, width=4, classes=3, dtype=torch.float64):
    """y = W x + b, for which everything is known."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, classes)).to(dtype).eval()
    with torch.no_grad():
        model[1].weight.copy_(normal(*model[1].weight.shape, seed=7))
        model[1].bias.copy_(normal(classes, seed=8))
    return model


def network(channels=1, size=8, classes=3, dtype=torch.float32):
    """A small convolutional network with all that a real one has."""
    model = nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * (size // 2) ** 2, classes),
    ).to(dtype).eval()  # fmt: skip
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            parameter.copy_(0.3 * normal(*parameter.shape, seed=seed))
    return model


def score(model, inputs, target):
    outputs = model(inputs)
    if callable(target):
        return target(outputs)
    return outputs.gather(1, torch.as_tensor(target).expand(len(inputs))[:, None])[:, 0]


def gradient(model, inputs, target):
    x = inputs.detach().clone().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(score(model, x, target).sum(), x)[0]


def gradient_x_input(model, inputs, target):
    return inputs * gradient(model, inputs, target)


def patch_sums(values, patch):
    """(N, C, H, W) -> (N, patches), the size a multiple of the patch."""
    items, _, height, width = values.shape
    tiles = values.reshape(items, -1, height // patch, patch, width // patch, patch)
    return tiles.sum((1, 3, 5)).flatten(1)


# Pixel flipping


@given(
    order=st.sampled_from(["descending", "ascending"]),
    patch=st.sampled_from([1, 2]),
    steps=st.integers(1, 4),
    chunk=st.integers(1, 20),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=30)
def test_on_a_linear_model_the_curve_is_the_score_less_what_was_taken(order, patch, steps, chunk, seed):
    model, inputs, relevance = linear(), normal(3, 2, 4, 4, seed=seed), normal(3, 2, 4, 4, seed=seed + 1)
    target = torch.tensor([2, 0, 1])
    curve = evaluation.pixel_flipping(
        model, inputs, target, relevance, removal=ZERO, order=order, patch=patch, steps=steps, chunk=chunk
    )
    parts = patch_sums(gradient_x_input(model, inputs, target), patch)
    sequence = patch_sums(relevance, patch).argsort(1, descending=order == "descending")
    taken = torch.cat([torch.zeros(3, 1), parts.gather(1, sequence).cumsum(1)], 1)
    patches = parts.shape[1]
    counts = [round(step * patches / steps) for step in range(steps + 1)]
    assert curve.fractions.tolist() == [count / patches for count in counts]
    expected = score(model, inputs, target)[:, None] - taken[:, counts]
    torch.testing.assert_close(curve.scores, expected.detach(), rtol=1e-10, atol=1e-10)


def test_the_curve_of_four_pixels_by_hand():
    def model(x):
        return x.flatten(1).sum(1, keepdim=True)

    inputs = torch.tensor([[[[1.0, 2.0], [4.0, 8.0]]]])
    curve = evaluation.pixel_flipping(model, inputs, 0, inputs, removal=ZERO, steps=4)
    assert curve.fractions.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert curve.scores.tolist() == [[15, 7, 3, 1, 0]]
    assert curve.area.tolist() == [(15 / 2 + 7 + 3 + 1) / 4]
    curve = evaluation.pixel_flipping(model, inputs, 0, inputs, removal=ZERO, steps=4, order="ascending")
    assert curve.scores.tolist() == [[15, 14, 12, 8, 0]]
    curve = evaluation.pixel_flipping(model, inputs, 0, inputs, removal=removal.mean(), steps=2)
    assert curve.scores.tolist() == [[15, 3 + 2 * 3.75, 15]]


def test_patches_at_the_border_are_smaller_and_count_by_their_sum():
    def model(x):
        return x.flatten(1).sum(1, keepdim=True)

    inputs = torch.ones(1, 1, 3, 5)
    inputs[..., -1, -1] = 3  # the mean of its patch is the highest, the sum is not
    curve = evaluation.pixel_flipping(model, inputs, 0, inputs, removal=ZERO, steps=6, patch=2)
    assert (-curve.scores.diff()).tolist() == [[4, 4, 3, 2, 2, 2]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_curve_begins_with_the_image_and_ends_with_nothing_left(dtype):
    model, inputs = network(dtype=dtype), normal(2, 1, 8, 8, dtype=dtype)
    for order in ("descending", "ascending", "random"):
        curve = evaluation.pixel_flipping(model, inputs, 1, inputs, removal=ZERO, steps=7, order=order)
        both = torch.stack([model(inputs)[:, 1], model(torch.zeros_like(inputs))[:, 1]], 1)
        assert curve.scores.shape == (2, 8) and curve.area.shape == (2,)
        torch.testing.assert_close(curve.scores[:, [0, -1]], both.to(curve.scores.dtype), rtol=1e-5, atol=1e-2)


@given(chunk=st.integers(1, 50), kind=st.sampled_from(["index", "indices", "function", "function of the items"]))
@settings(max_examples=20)
def test_items_and_chunks_are_independent_and_a_target_may_be_an_index_or_a_function(chunk, kind):
    model, inputs, relevance = network(dtype=torch.float64), normal(3, 1, 8, 8), normal(3, 1, 8, 8, seed=1)
    labels = torch.tensor([2, 2, 2] if kind in ("index", "function") else [2, 0, 1])
    target = {
        "index": 2,
        "indices": labels,
        "function": lambda outputs: outputs[:, 2],
        "function of the items": lambda outputs: outputs[torch.arange(3), labels],
    }[kind]
    together = evaluation.pixel_flipping(model, inputs, target, relevance, removal=ZERO, steps=5, chunk=chunk)
    for i in range(3):
        alone = evaluation.pixel_flipping(
            model, inputs[i : i + 1], int(labels[i]), relevance[i : i + 1], removal=ZERO, steps=5
        )
        torch.testing.assert_close(together.scores[i], alone.scores[0], rtol=1e-10, atol=1e-10)


def test_of_equal_relevance_the_first_goes_first_and_ascending_is_descending_backwards():
    model, inputs = linear(channels=1), normal(1, 1, 4, 4)
    equal = torch.ones_like(inputs)
    down = evaluation.pixel_flipping(model, inputs, 0, equal, removal=ZERO, steps=16)
    parts = gradient_x_input(model, inputs, 0).flatten(1)
    torch.testing.assert_close(-down.scores.diff(), parts)
    up = evaluation.pixel_flipping(model, inputs, 0, equal, removal=ZERO, steps=16, order="ascending")
    torch.testing.assert_close(-up.scores.diff(), parts.flip(1))


def test_pixel_flipping_is_quantus_pixel_flipping(quantus):
    model, inputs, relevance = network(), normal(4, 1, 8, 8, dtype=torch.float32), normal(4, 1, 8, 8, seed=1)
    labels = torch.tensor([0, 1, 2, 1])
    metric = quantus.PixelFlipping(
        features_in_step=4, normalise=False, perturb_baseline=0.25, disable_warnings=True, display_progressbar=False
    )
    theirs = metric(
        model=model,
        x_batch=inputs.numpy(),
        y_batch=labels.numpy(),
        a_batch=relevance.float().numpy(),
        softmax=False,
        device="cpu",
    )
    ours = evaluation.pixel_flipping(model, inputs, labels, relevance.float(), removal=removal.baseline(0.25), steps=16)
    np.testing.assert_allclose(ours.scores[:, 1:].numpy(), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("theirs", "order"), [("morf", "descending"), ("lerf", "ascending")])
def test_flipping_patches_is_quantus_region_perturbation(quantus, theirs, order):
    model, inputs = network(3), normal(3, 3, 8, 8, dtype=torch.float32)
    relevance, labels = gradient_x_input(model, inputs, 1), torch.tensor([1, 0, 2])
    metric = quantus.RegionPerturbation(
        patch_size=2, order=theirs, regions_evaluation=16, normalise=False, perturb_baseline=-0.5, disable_warnings=True
    )
    fall = metric(
        model=model,
        x_batch=inputs.numpy(),
        y_batch=labels.numpy(),
        a_batch=relevance.numpy(),
        softmax=False,
        device="cpu",
    )
    ours = evaluation.pixel_flipping(
        model, inputs, labels, relevance, removal=removal.baseline(-0.5), steps=16, patch=2, order=order
    )
    np.testing.assert_allclose((ours.scores[:, :1] - ours.scores[:, 1:]).numpy(), fall, rtol=1e-5, atol=1e-6)


# Insertion and deletion


def test_insertion_and_deletion_by_hand():
    def model(x):
        return x.flatten(1).sum(1, keepdim=True)

    inputs = torch.tensor([[[[1.0, 2.0], [4.0, 8.0]]]])
    deleted = evaluation.deletion(model, inputs, 0, inputs, steps=4)
    assert deleted.scores.tolist() == [[15, 7, 3, 1, 0]]
    inserted = evaluation.insertion(model, inputs, 0, inputs, steps=4, removal=ZERO)
    assert inserted.fractions.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert inserted.scores.tolist() == [[0, 8, 12, 14, 15]]


@given(seed=st.integers(0, 2**16), steps=st.integers(1, 9))
@settings(max_examples=20)
def test_on_a_linear_model_the_two_areas_add_up_to_both_ends(seed, steps):
    """What is inserted into nothing is what deletion takes away: s_in(f) + s_del(f) = f(x) + f(0)."""
    model, inputs, relevance = linear(), normal(2, 2, 4, 4, seed=seed), normal(2, 2, 4, 4, seed=seed + 1)
    steps = 2 ** (steps % 5)  # of 16 pixels: the same number each time
    inserted = evaluation.insertion(model, inputs, 1, relevance, removal=ZERO, steps=steps)
    deleted = evaluation.deletion(model, inputs, 1, relevance, steps=steps)
    ends = (model(inputs) + model(torch.zeros_like(inputs)))[:, 1].detach()
    torch.testing.assert_close(inserted.scores + deleted.scores, ends[:, None].expand(-1, steps + 1))
    torch.testing.assert_close(inserted.area + deleted.area, ends)


def test_insertion_starts_from_the_blurred_image():
    model, inputs = network(dtype=torch.float64), normal(2, 1, 8, 8)
    inserted = evaluation.insertion(model, inputs, lambda y: y.softmax(1)[:, 2], inputs, steps=4)
    blurred = removal.blur(5)(inputs, torch.ones(1, 1, 8, 8, dtype=torch.bool))
    ends = torch.stack([model(blurred).softmax(1)[:, 2], model(inputs).softmax(1)[:, 2]], 1)
    torch.testing.assert_close(inserted.scores[:, [0, -1]], ends.detach())


# Bounds


@given(seed=st.integers(0, 2**16), patch=st.sampled_from([1, 2]))
@settings(max_examples=15)
def test_on_a_linear_model_no_order_passes_the_oracle(seed, patch):
    model, inputs, relevance = linear(), normal(2, 2, 4, 4, seed=seed), normal(2, 2, 4, 4, seed=seed + 1)
    lowest = evaluation.oracle_bound(model, inputs, 1, removal=ZERO, patch=patch)
    highest = evaluation.oracle_bound(model, inputs, 1, removal=ZERO, patch=patch, order="ascending", chunk=7)
    for order in ("descending", "ascending", "random"):
        curve = evaluation.pixel_flipping(
            model, inputs, 1, relevance, removal=ZERO, order=order, patch=patch,
            steps=len(lowest.fractions) - 1, generator=seeded(seed),
        )  # fmt: skip
        assert (lowest.scores <= curve.scores + 1e-9).all() and (curve.scores <= highest.scores + 1e-9).all()
        assert (lowest.area <= curve.area + 1e-9).all() and (curve.area <= highest.area + 1e-9).all()


@pytest.mark.parametrize("order", ["descending", "ascending"])
def test_on_a_linear_model_the_oracle_is_gradient_x_input(order):
    model, inputs = linear(), normal(3, 2, 4, 4)
    parts = gradient_x_input(model, inputs, 2)
    oracle = evaluation.oracle_bound(model, inputs, 2, removal=ZERO, patch=2, order=order)
    curve = evaluation.pixel_flipping(model, inputs, 2, parts, removal=ZERO, patch=2, steps=4, order=order)
    torch.testing.assert_close(oracle.scores, curve.scores)
    torch.testing.assert_close(oracle.fractions, curve.fractions)


def test_the_oracle_is_the_greedy_search_over_all_patches_of_a_network():
    model, inputs, labels = network(dtype=torch.float64), normal(2, 1, 8, 8), torch.tensor([1, 2])
    oracle = evaluation.oracle_bound(model, inputs, labels, removal=removal.mean(), patch=4, chunk=3)
    places = [(y, x) for y in (0, 4) for x in (0, 4)]

    def without(item, gone):
        removed = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
        for y, x in gone:
            removed[..., y : y + 4, x : x + 4] = True
        return model(removal.mean()(inputs[item : item + 1], removed))[0, labels[item]].item()

    for item in range(2):
        gone, expected = [], [without(item, [])]
        while len(gone) < 4:
            best = min((place for place in places if place not in gone), key=lambda p: without(item, [*gone, p]))
            gone.append(best)
            expected.append(without(item, gone))
        assert oracle.scores[item].tolist() == pytest.approx(expected, rel=1e-9)
        first = min(without(item, [place]) for place in places)
        assert oracle.scores[item, 1].item() == pytest.approx(first)
    half = evaluation.oracle_bound(model, inputs, labels, removal=removal.mean(), patch=4, steps=2)
    assert half.fractions.tolist() == [0, 0.5, 1] and torch.allclose(half.scores, oracle.scores[:, ::2])


def test_random_orders_average_to_a_straight_line_on_a_linear_model():
    model, inputs = linear(), normal(2, 2, 4, 4)
    random = evaluation.random_bounds(model, inputs, 1, removal=ZERO, orders=200, steps=8, generator=seeded())
    ends = torch.stack([model(inputs)[:, 1], model(torch.zeros_like(inputs))[:, 1]], 1).detach()
    line = ends[:, :1] * (1 - random.fractions) + ends[:, 1:] * random.fractions
    assert random.curves.shape == (200, 2, 9)
    middle = random.standard_errors[:, 1:-1]
    assert ((random.scores - line)[:, 1:-1].abs() < 4 * middle).all() and (middle > 0).all()
    torch.testing.assert_close(random.scores[:, [0, -1]], ends)
    assert ((random.area - ends.mean(1)).abs() < 4 * random.area_standard_errors).all()
    # a sample without replacement, k of n: the variance of its sum is k (n - k) / n of that of the parts
    parts = patch_sums(gradient_x_input(model, inputs, 1), 1)
    taken = 16 * random.fractions[1:-1]
    spread = (taken * (16 - taken) / 16 * parts.var(1, keepdim=True)).sqrt() / math.sqrt(200)
    torch.testing.assert_close(middle, spread, rtol=0.25, atol=0)
    again = evaluation.random_bounds(model, inputs, 1, removal=ZERO, orders=200, steps=8, generator=seeded())
    assert torch.equal(random.curves, again.curves)


def test_on_a_real_network_random_orders_lie_between_the_two_oracles():
    model = models.load()
    inputs = models.transform()(images.load("chelsea"))[None, :, 48:176, 48:176]
    label = int(model(inputs).argmax())
    settings = {"removal": removal.blur(8), "patch": 43}
    lowest = evaluation.oracle_bound(model, inputs, label, **settings)
    highest = evaluation.oracle_bound(model, inputs, label, **settings, order="ascending")
    random = evaluation.random_bounds(model, inputs, label, **settings, orders=4, steps=9, generator=seeded())
    assert lowest.area < random.area - 4 * random.area_standard_errors
    assert random.area + 4 * random.area_standard_errors < highest.area


# Randomised parameters


def test_ranks_are_scipys():
    values = torch.tensor([[3.0, 1.0, 3.0, -2.0, 3.0, 1.0], [1, 2, 3, 4, 5, 6]], dtype=torch.float64)
    np.testing.assert_array_equal(evaluation._ranks(values).numpy(), scipy.stats.rankdata(values.numpy(), axis=1))


@pytest.mark.parametrize("cascading", [True, False])
def test_each_row_compares_the_explanation_before_and_after(cascading):
    model, inputs, target = network(dtype=torch.float64), normal(3, 1, 8, 8), torch.tensor([0, 1, 2])
    seen = []

    def explainer(model, inputs, target):
        seen.append(gradient_x_input(model, inputs, target))
        return seen[-1]

    check = evaluation.randomisation_check(model, inputs, target, explainer, cascading=cascading, generator=seeded())
    assert check.layers == ("7", "4", "1", "0") and len(seen) == 5
    before = seen[0].flatten(1)
    torch.testing.assert_close(before, gradient_x_input(model, inputs, target).flatten(1))
    for row, after in enumerate(seen[1:]):
        after = after.flatten(1)
        for item in range(3):
            a, b = before[item].numpy(), after[item].numpy()
            measured = [
                check.rank_correlation, check.absolute_rank_correlation, check.cosine, check.magnitude
            ]  # fmt: skip
            expected = [
                scipy.stats.spearmanr(a, b).statistic,
                scipy.stats.spearmanr(abs(a), abs(b)).statistic,
                a @ b / np.sqrt((a @ a) * (b @ b)),
                abs(b).sum() / abs(a).sum(),
            ]
            assert [float(m[row, item]) for m in measured] == pytest.approx(expected, rel=1e-9, abs=1e-12)


def parameters_seen_by_the_explainer(model, **settings):
    seen = []

    def explainer(model, inputs, target):
        seen.append({name: parameter.clone() for name, parameter in model.named_parameters()})
        return inputs

    inputs = normal(1, 1, 8, 8, dtype=torch.float32)
    evaluation.randomisation_check(model, inputs, 0, explainer, generator=seeded(), **settings)
    return [{name.rsplit(".", 1)[0] for name in now if not torch.equal(now[name], seen[0][name])} for now in seen]


def test_cascading_adds_layer_to_layer_and_independent_takes_them_one_by_one():
    changed = parameters_seen_by_the_explainer(network())
    assert changed == [set(), {"7"}, {"7", "4"}, {"7", "4", "1"}, {"7", "4", "1", "0"}]
    changed = parameters_seen_by_the_explainer(network(), cascading=False)
    assert changed == [set(), {"7"}, {"4"}, {"1"}, {"0"}]
    assert parameters_seen_by_the_explainer(network(), layers=["0", "7"]) == [set(), {"0"}, {"0", "7"}]


def test_a_container_stands_for_all_it_contains():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), nn.Flatten(), nn.Linear(72, 2)).eval()
    assert parameters_seen_by_the_explainer(model, layers=["2", "0"]) == [set(), {"2"}, {"2", "0.0"}]


class Scaled(nn.Module):
    """A layer with a parameter of its own that nobody told how to reset."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(5 + 0.1 * normal(1, 1, 8, 8, seed=3, dtype=torch.float32))

    def forward(self, x):
        return self.scale * x


def test_a_parameter_that_cannot_be_reset_is_drawn_with_its_own_mean_and_spread():
    model = nn.Sequential(Scaled(), nn.Flatten(), nn.Linear(64, 2)).eval()
    check = evaluation.randomisation_check(
        model, torch.ones(1, 1, 8, 8), 0, lambda model, x, target: model[0].scale.expand_as(x), layers=["0"]
    )
    assert abs(check.rank_correlation.item()) < 0.5 and 0.95 < check.magnitude.item() < 1.05


def test_the_model_and_the_global_generator_are_as_before_also_after_an_error():
    model, inputs = network(), normal(2, 1, 8, 8, dtype=torch.float32)
    model[0].weight.requires_grad_(False)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()

    def broken(twin, inputs, target):
        assert twin is not model and not twin.training and not twin[0].weight.requires_grad
        if not torch.equal(twin[7].weight, model[7].weight):
            raise RuntimeError("it broke")
        return gradient(twin, inputs, target)

    with pytest.raises(RuntimeError, match="it broke"):
        evaluation.randomisation_check(model, inputs, 0, broken, generator=seeded())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state) and not model[0]._forward_hooks


def test_the_same_generator_gives_the_same_and_another_gives_another():
    model, inputs = network(), normal(2, 1, 8, 8, dtype=torch.float32)
    one, same, other = (
        evaluation.randomisation_check(model, inputs, 0, gradient, generator=seeded(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one.cosine, same.cosine) and not torch.equal(one.cosine, other.cosine)


def test_magnitudes_show_what_rank_correlation_hides():
    model, inputs = linear(), normal(2, 2, 4, 4)

    def fading(model, inputs, target):
        return inputs * model[1].weight.abs().mean() ** 20

    check = evaluation.randomisation_check(model, inputs, 0, fading, generator=seeded())
    assert torch.allclose(check.rank_correlation, torch.ones(1, 2).double())
    assert (check.magnitude < 1e-6).all()


def test_a_map_that_becomes_constant_has_no_rank_correlation():
    def explainer(twin, inputs, target):
        return inputs if torch.equal(twin[1].weight, model[1].weight) else torch.zeros_like(inputs)

    model = linear()
    check = evaluation.randomisation_check(model, normal(2, 2, 4, 4), 0, explainer, generator=seeded())
    assert check.rank_correlation.isnan().all() and check.cosine.isnan().all() and (check.magnitude == 0).all()


class Repeatable(nn.Linear):
    """A linear layer that resets itself to the same values whoever asks."""

    def reset_parameters(self):
        with torch.no_grad():
            self.weight.copy_(normal(*self.weight.shape, seed=self.in_features, dtype=torch.float32))
            self.bias.zero_()


@pytest.mark.parametrize(("cascading", "order"), [(True, "top_down"), (False, "independent")])
def test_rank_correlations_are_those_of_quantus(quantus, cascading, order):
    model = nn.Sequential(nn.Flatten(), Repeatable(64, 20), nn.ReLU(), Repeatable(20, 10), nn.ReLU(), Repeatable(10, 3))
    with torch.no_grad():
        for seed, parameter in enumerate(model.eval().parameters()):
            parameter.copy_(0.3 * normal(*parameter.shape, seed=100 + seed))
    inputs, labels = normal(4, 1, 8, 8, dtype=torch.float32), torch.tensor([0, 1, 2, 0])

    def explainer(model, inputs, targets, **_):
        inputs, targets = torch.as_tensor(inputs).float(), torch.as_tensor(targets)
        return gradient_x_input(model, inputs, targets).numpy()

    for absolute in (False, True):
        metric = quantus.MPRT(
            layer_order=order, abs=absolute, normalise=False, disable_warnings=True, display_progressbar=False
        )
        theirs = metric(
            model=model,
            x_batch=inputs.numpy(),
            y_batch=labels.numpy(),
            explain_func=explainer,
            softmax=False,
            device="cpu",
        )
        ours = evaluation.randomisation_check(model, inputs, labels, gradient_x_input, cascading=cascading)
        correlations = ours.absolute_rank_correlation if absolute else ours.rank_correlation
        assert set(ours.layers) == {"5", "3", "1"} and "original" in theirs
        for name, row in zip(ours.layers, correlations, strict=True):
            np.testing.assert_allclose(row.numpy(), theirs[name], rtol=1e-6, atol=1e-7)


# Localisation


def halves():
    """Three maps on 2 x 2 pixels, and the upper row as the object."""
    relevance = torch.tensor([[[3.0, 1.0], [0.0, -9.0]], [[1.0, 1.0], [1.0, 1.0]], [[-1.0, -2.0], [4.0, 0.0]]])
    mask = torch.tensor([[True, True], [False, False]]).expand(3, 1, 2, 2)
    return relevance[:, None], mask


def test_localisation_by_hand():
    relevance, mask = halves()
    assert evaluation.localisation(relevance, mask).tolist() == [1, 0.5, 0]
    assert evaluation.rank_accuracy(relevance, mask).tolist() == [1, 0.5, 0]
    assert evaluation.pointing_game(relevance, mask).tolist() == [1, 0.5, 0]
    both = torch.cat([relevance, torch.tensor([0.0, 0.0, 5.0, 0.0]).view(1, 1, 2, 2).expand(3, 1, 2, 2)], 1)
    assert evaluation.localisation(both, mask).tolist() == pytest.approx([4 / 9, 2 / 9, 0])
    assert evaluation.rank_accuracy(both, mask).tolist() == pytest.approx([1 / 2, 2 / 3 / 2, 0])
    assert evaluation.pointing_game(both, mask).tolist() == [0, 0, 0]


def test_no_positive_relevance_has_no_share_but_ranks():
    relevance, mask = -torch.ones(1, 1, 2, 2), torch.tensor([[[[True, False], [False, False]]]])
    assert evaluation.localisation(relevance, mask).isnan().all()
    assert evaluation.rank_accuracy(relevance, mask).tolist() == [0.25]
    assert evaluation.pointing_game(relevance, mask).tolist() == [0.25]


MEASURES = (evaluation.localisation, evaluation.rank_accuracy, evaluation.pointing_game)


@pytest.mark.parametrize("measure", MEASURES)
@given(seed=st.integers(0, 2**16), factor=st.floats(0.01, 100))
@settings(max_examples=20)
def test_a_share_is_between_0_and_1_whatever_the_scale(measure, seed, factor):
    relevance, mask = normal(3, 2, 5, 6, seed=seed), normal(3, 1, 5, 6, seed=seed + 1) > 0.3
    mask[:, :, 0, 0] = True
    shares = measure(relevance, mask)
    assert shares.shape == (3,) and ((shares >= 0) & (shares <= 1)).all()
    torch.testing.assert_close(measure(factor * relevance, mask), shares)
    torch.testing.assert_close(torch.cat([measure(relevance[i : i + 1], mask[i : i + 1]) for i in range(3)]), shares)
    assert measure(mask.double(), mask).tolist() == [1, 1, 1]
    assert measure(mask.double(), mask.logical_not().index_fill(3, torch.tensor([5]), True)).max() < 1
    everywhere = torch.ones_like(relevance)
    torch.testing.assert_close(measure(everywhere, mask), mask.double().mean((1, 2, 3)), check_dtype=False)


@pytest.mark.parametrize(
    ("measure", "name"),
    [
        (evaluation.localisation, "RelevanceMassAccuracy"),
        (evaluation.rank_accuracy, "RelevanceRankAccuracy"),
        (evaluation.pointing_game, "PointingGame"),
    ],
)
def test_localisation_is_that_of_quantus(quantus, measure, name):
    relevance, mask = normal(16, 1, 8, 8, dtype=torch.float32), normal(16, 1, 8, 8, seed=1) > 0.5
    positive = relevance.clamp(min=0)  # theirs divides by the signed sum
    metric = getattr(quantus, name)(abs=False, normalise=False, disable_warnings=True, display_progressbar=False)
    theirs = metric(
        model=network(), x_batch=relevance.numpy(), y_batch=np.zeros(16, int), a_batch=positive.numpy(),
        s_batch=mask.numpy(), softmax=False, device="cpu",
    )  # fmt: skip
    np.testing.assert_allclose(measure(positive, mask).numpy(), np.array(theirs, float), rtol=1e-6)
    assert 0 < measure(positive, mask).mean() < 1
    if measure is evaluation.localisation:
        torch.testing.assert_close(measure(relevance, mask), measure(positive, mask))


# Sensitivity


def test_the_gradient_of_a_linear_model_does_not_move_and_gradient_x_input_moves_with_the_input():
    model, inputs = linear(), normal(3, 2, 4, 4)
    still = evaluation.sensitivity(model, inputs, 1, gradient, radius=0.3, samples=5)
    assert still.average.tolist() == still.maximal.tolist() == [0, 0, 0]
    moving = evaluation.sensitivity(model, inputs, 1, gradient_x_input, radius=0.3, samples=5, generator=seeded())
    generator = seeded()
    noise = [0.3 * (2 * torch.rand(inputs.shape, generator=generator, dtype=torch.float64) - 1) for _ in range(5)]
    weights = gradient(model, inputs, 1)
    expected = torch.stack([(weights * e).flatten(1).norm(dim=1) for e in noise])
    expected = expected / (weights * inputs).flatten(1).norm(dim=1)
    torch.testing.assert_close(moving.average, expected.mean(0))
    torch.testing.assert_close(moving.maximal, expected.amax(0))


def test_sensitivity_is_that_of_quantus(quantus):
    model, inputs, labels = network(), normal(3, 1, 8, 8, dtype=torch.float32), torch.tensor([0, 1, 2])

    def explainer(model, inputs, targets, **_):
        return gradient(model, torch.as_tensor(inputs).float(), torch.as_tensor(targets)).numpy()

    ours = evaluation.sensitivity(model, inputs, labels, gradient, radius=0.2, samples=6, generator=seeded())
    for name, mine in (("AvgSensitivity", ours.average), ("MaxSensitivity", ours.maximal)):
        generator = seeded()

        def same_noise(arr, generator=generator, **_):
            return arr + 0.2 * (2 * torch.rand(inputs.shape, generator=generator).flatten(1).numpy() - 1)

        metric = getattr(quantus, name)(
            nr_samples=6, perturb_func=same_noise, normalise=False, disable_warnings=True, display_progressbar=False
        )
        theirs = metric(
            model=model,
            x_batch=inputs.numpy(),
            y_batch=labels.numpy(),
            explain_func=explainer,
            softmax=False,
            device="cpu",
        )
        np.testing.assert_allclose(mine.numpy(), theirs, rtol=1e-5)


def test_maximal_sensitivity_is_that_of_captum():
    model, inputs = network(dtype=torch.float64), normal(3, 1, 8, 8)
    generator = seeded()

    def same_noise(x, radius):
        noise = [torch.rand(inputs.shape, generator=generator, dtype=torch.float64) for _ in range(6)]
        return (x + radius * (2 * torch.stack(noise, 1).flatten(0, 1) - 1),)  # an item's samples beside each other

    def explainer(x):
        return (gradient(model, x[0], 1),)

    theirs = captum.metrics.sensitivity_max(
        explainer, (inputs,), perturb_func=same_noise, perturb_radius=0.2, n_perturb_samples=6
    )
    ours = evaluation.sensitivity(model, inputs, 1, gradient, radius=0.2, samples=6, generator=seeded())
    torch.testing.assert_close(ours.maximal, theirs)


def test_no_relevance_at_all_has_no_sensitivity():
    measured = evaluation.sensitivity(
        linear(), normal(2, 2, 4, 4), 0, lambda model, x, target: torch.zeros_like(x), radius=1
    )
    assert measured.average.isnan().all() and measured.maximal.isnan().all()


# Noisiness


def test_noisiness_by_hand():
    line = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 4)  # differences 1, variance 5/3
    assert evaluation.noisiness(line).item() == pytest.approx(1 / (2 * 5 / 3))
    board = (torch.arange(8)[:, None] + torch.arange(6)).remainder(2).double()[None, None]
    assert evaluation.noisiness(board).item() == pytest.approx(2 * 47 / 48)
    assert evaluation.noisiness(torch.ones(2, 3, 4, 4)).isnan().all()


def test_the_mean_noisiness_of_all_arrangements_is_exactly_1():
    values = torch.tensor([0.3, -2.0, 0.0, 11.0, 1.0, 1.0], dtype=torch.float64)
    maps = torch.stack([torch.stack(order) for order in itertools.permutations(values)]).view(-1, 1, 2, 3)
    assert evaluation.noisiness(maps).mean().item() == pytest.approx(1, abs=1e-12)


@given(seed=st.integers(0, 2**16), factor=st.floats(0.01, 100), offset=st.floats(-10, 10))
@settings(max_examples=20)
def test_noisiness_knows_neither_scale_nor_sign_nor_offset(seed, factor, offset):
    maps = normal(3, 2, 5, 6, seed=seed)
    torch.testing.assert_close(evaluation.noisiness(-factor * maps + offset), evaluation.noisiness(maps))
    torch.testing.assert_close(evaluation.noisiness(maps.transpose(2, 3)), evaluation.noisiness(maps))


def test_white_noise_is_1_and_the_blurred_noise_is_less():
    noise = normal(1, 1, 200, 200)
    smooth = removal.blur(2)(noise, torch.ones(1, 1, 200, 200, dtype=torch.bool))
    assert evaluation.noisiness(noise).item() == pytest.approx(1, abs=0.02)
    assert evaluation.noisiness(smooth).item() < 0.1


# The contract


def every_measure(model, inputs, target=0, relevance=None, explainer=gradient):
    relevance = torch.ones_like(inputs) if relevance is None else relevance
    return {
        "pixel_flipping": lambda: evaluation.pixel_flipping(model, inputs, target, relevance, removal=ZERO, steps=2),
        "deletion": lambda: evaluation.deletion(model, inputs, target, relevance, steps=2),
        "insertion": lambda: evaluation.insertion(model, inputs, target, relevance, steps=2),
        "random_bounds": lambda: evaluation.random_bounds(model, inputs, target, removal=ZERO, orders=2, steps=2),
        "oracle_bound": lambda: evaluation.oracle_bound(model, inputs, target, removal=ZERO, patch=4),
        "randomisation_check": lambda: evaluation.randomisation_check(model, inputs, target, explainer),
        "sensitivity": lambda: evaluation.sensitivity(model, inputs, target, explainer, radius=0.1, samples=2),
    }


every_name = pytest.mark.parametrize("name", every_measure(None, torch.ones(1)))


@every_name
def test_the_model_comes_back_as_it_was(name):
    model, inputs = network(), normal(2, 1, 8, 8, dtype=torch.float32)
    before, copied = copy.deepcopy(model.state_dict()), inputs.clone()
    every_measure(model, inputs)[name]()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(inputs, copied) and not inputs.requires_grad
    assert all(p.requires_grad and p.grad is None for p in model.parameters()) and not model.training


@pytest.mark.parametrize("name", ["randomisation_check", "sensitivity"])
def test_an_explainer_that_works_in_its_inputs_leaves_ours_alone(name):
    def careless(model, x, target):
        score(model, x.requires_grad_(), target).sum().backward()
        return x.detach().mul_(x.grad)

    inputs = normal(2, 1, 8, 8, dtype=torch.float32)
    copied = inputs.clone()
    every_measure(network(), inputs, explainer=careless)[name]()
    assert torch.equal(inputs, copied) and not inputs.requires_grad and inputs.grad is None


@every_name
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"inputs": torch.ones(2, 1, 8, 8).long()}, TypeError, "inputs must be a tensor of a float dtype, got torch.int64"),
        ({"inputs": torch.ones(2, 8, 8)}, ValueError, r"inputs must be images of shape \(N, C, H, W\).*got \(2, 8, 8\)"),
        ({"inputs": torch.ones(0, 1, 8, 8)}, ValueError, r"inputs must be images .*, not empty, got \(0, 1, 8, 8\)"),
        ({"inputs": torch.full((2, 1, 8, 8), math.nan)}, ValueError, "inputs must be finite: 128 of 128 values"),
        ({"target": 3}, ValueError, "target must be from 0 to 2, got 3"),
        ({"target": torch.tensor([0, -1])}, ValueError, "target must be from 0 to 2, got -1"),
        ({"target": torch.tensor([0, 1, 2])}, ValueError, r"target must be a LongTensor of shape \(2,\)"),
        ({"target": "cat"}, TypeError, "target must be an int, a LongTensor or a function of the outputs, got str"),
        ({"target": lambda y: y}, ValueError, r"target must give one float score for each item, shape \(2,\)"),
        ({"target": lambda y: y[:, 0] / 0}, ValueError, "the score must be finite: 2 of 2 values"),
        ({"model": network().train()}, ValueError, "model must be in evaluation mode"),
        ({"model": network()[:1].eval()}, ValueError, r"target: an index needs outputs of shape \(N, classes\), got "),
    ],
)  # fmt: skip
def test_wrong_arguments_are_errors_that_say_so(name, change, error, message):
    arguments = {"model": network(), "inputs": normal(2, 1, 8, 8, dtype=torch.float32)} | change
    with pytest.raises(error, match=message):
        every_measure(**arguments)[name]()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"relevance": None}, TypeError, "relevance must be a tensor of a float dtype, got NoneType"),
        ({"relevance": torch.ones(2, 1, 8, 7)}, ValueError, r"relevance must have the shape .* got \(2, 1, 8, 7\)"),
        ({"relevance": torch.full((2, 1, 8, 8), math.inf)}, ValueError, "relevance must be finite: 128 of 128"),
        ({"steps": 0}, ValueError, "steps must be from 1 to 64, the number of patches, got 0"),
        ({"steps": 65}, ValueError, "steps must be from 1 to 64, the number of patches, got 65"),
        ({"steps": 2.0}, TypeError, "steps must be an int, got float"),
        ({"patch": 0}, ValueError, "patch must be from 1 to 8, the longer side of the images, got 0"),
        ({"patch": 4, "steps": 5}, ValueError, "steps must be from 1 to 4, the number of patches, got 5"),
        ({"order": "morf"}, ValueError, """order must be "descending", "ascending" or "random", got 'morf'"""),
        ({"removal": "blur"}, TypeError, "removal must be a function of inputs and removed places, got str"),
        ({"removal": lambda x, m: x[:, :, 1:]}, ValueError, "removal must return a tensor like the inputs"),
        ({"removal": lambda x, m: x / 0}, ValueError, "what removal returns must be finite"),
        ({"chunk": 0}, ValueError, "chunk must be at least 1, got 0"),
        ({"generator": 3, "order": "random"}, TypeError, "generator must be a torch.Generator or None, got int"),
    ],
)  # fmt: skip
def test_wrong_settings_of_pixel_flipping_are_errors_before_the_model_runs(change, error, message):
    calls = []

    def model(x):
        calls.append(len(x))
        return x.flatten(1)[:, :3]

    inputs = normal(2, 1, 8, 8, dtype=torch.float32)
    arguments = {"relevance": inputs, "removal": ZERO, "steps": 2} | change
    with pytest.raises(error, match=message):
        evaluation.pixel_flipping(model, inputs, 0, **arguments)
    assert not calls


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, x: evaluation.random_bounds(m, x, 0, removal=ZERO, orders=1), ValueError, "orders must be at least 2"),
        (lambda m, x: evaluation.oracle_bound(m, x, 0, removal=ZERO, patch=4, order="random"), ValueError, "order must be"),
        (lambda m, x: evaluation.oracle_bound(m, x, 0, removal=ZERO, patch=4, steps=5), ValueError, "from 1 to 4"),
        (lambda m, x: evaluation.sensitivity(m, x, 0, gradient, radius=0), ValueError, "radius must be above 0"),
        (lambda m, x: evaluation.sensitivity(m, x, 0, gradient, radius=1, samples=0), ValueError, "samples must be at"),
        (lambda m, x: evaluation.sensitivity(m, x, 0, "lrp", radius=1), TypeError, "explainer must be a function"),
        (lambda m, x: evaluation.sensitivity(m, x, 0, lambda *_: x[:1], radius=1), ValueError, "explainer must return"),
        (lambda m, x: evaluation.sensitivity(m, x, 0, lambda *_: x / 0, radius=1), ValueError, "what explainer returns"),
        (lambda m, x: evaluation.randomisation_check(m, x, 0, None), TypeError, "explainer must be a function"),
        (lambda m, x: evaluation.randomisation_check(m.forward, x, 0, gradient), TypeError, "model must be an nn.Module"),
        (lambda m, x: evaluation.randomisation_check(m, x, 0, gradient, layers="7"), TypeError, "layers must be a seq"),
        (lambda m, x: evaluation.randomisation_check(m, x, 0, gradient, layers=["9"]), ValueError, "'9' is no module"),
        (lambda m, x: evaluation.randomisation_check(m, x, 0, gradient, layers=["2"]), ValueError, "'2' has no param"),
        (lambda m, x: evaluation.randomisation_check(nn.Flatten().eval(), x, 0, gradient), ValueError, "no parameters"),
        (lambda m, x: evaluation.pixel_flipping(lambda x: (x,), x, 0, x, removal=ZERO), TypeError, "must return a tensor"),
        (lambda m, x: evaluation.pixel_flipping(lambda x: x[:1], x, 0, x, removal=ZERO), ValueError, "one row for each"),
        (lambda m, x: evaluation.pixel_flipping(lambda x: x / 0, x, 0, x, removal=ZERO), ValueError, "outputs must be fin"),
        (lambda m, x: evaluation.pixel_flipping(3, x, 0, x, removal=ZERO), TypeError, "model must be an nn.Module or a"),
        (lambda m, x: evaluation.noisiness(x[0]), ValueError, "relevance must have shape"),
        (lambda m, x: evaluation.noisiness(x[..., :1, :1]), ValueError, "at least two pixels"),
        (lambda m, x: evaluation.noisiness(x.long()), TypeError, "relevance must be a tensor of a float dtype"),
    ],
)  # fmt: skip
def test_other_wrong_settings_are_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(network(), normal(2, 1, 8, 8, dtype=torch.float32))


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (torch.ones(2, 1, 3, 4), TypeError, "mask must be a BoolTensor, got torch.float32"),
        (torch.ones(2, 3, 3, 4).bool(), ValueError, r"mask must have shape \(2, 1, 3, 4\).*got \(2, 3, 3, 4\)"),
        (torch.ones(1, 1, 3, 4).bool(), ValueError, r"mask must have shape \(2, 1, 3, 4\).*got \(1, 1, 3, 4\)"),
        (torch.tensor([True, False])[:, None, None, None].expand(2, 1, 3, 4), ValueError, "it is empty in item 1"),
    ],
)
def test_a_wrong_mask_is_an_error(measure, mask, error, message):
    with pytest.raises(error, match=message):
        measure(normal(2, 3, 3, 4), mask)
    with pytest.raises(ValueError, match="relevance must be finite"):
        measure(torch.full((2, 3, 3, 4), math.nan), torch.ones(2, 1, 3, 4).bool())
