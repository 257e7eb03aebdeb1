"""LIME, held against marcotcr's lime on the same samples, scikit-learn's regressions, and games solved by hand."""

import copy
import math
import warnings

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lime.lime_base import LimeBase
from lime.lime_image import LimeImageExplainer
from sklearn.linear_model import Lasso, Ridge
from torch import nn

from xaicourse import images, lime, models, removal

ZERO = removal.baseline(0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


def tiles(height=8, width=8, side=2):
    """Square segments (H, W), numbered row by row."""
    rows, columns = torch.arange(height) // side, torch.arange(width) // side
    return rows[:, None] * math.ceil(width / side) + columns


class Counting(nn.Module):
    """Counts its calls and keeps what it saw last, as careless models do."""

    def __init__(self, model):
        super().__init__()
        self.model, self.seen = model, []
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.eval()

    def forward(self, x):
        self.calls += 1
        self.seen.append(len(x))
        return self.model(x)


def network(channels=3, size=8, classes=4, dtype=torch.float64):
    model = nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * (size // 2) ** 2, classes),
    ).to(dtype).eval()  # fmt: skip
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            parameter.copy_(0.3 * normal(*parameter.shape, seed=seed))
    return model


def linear(features, classes=3):
    model = nn.Sequential(nn.Flatten(), nn.Linear(features, classes)).double().eval()
    with torch.no_grad():
        model[1].weight.copy_(normal(classes, features, seed=7))
        model[1].bias.copy_(normal(classes, seed=8))
    return model


def product(x):
    """Two features that only count together."""
    return x.prod(1, keepdim=True)


def agree(got, wanted, tolerance=1e-9):
    np.testing.assert_allclose(np.asarray(got), np.asarray(wanted), rtol=tolerance, atol=tolerance)


# The same as the lime package


@pytest.mark.parametrize("kernel_width", [0.25, 1.0])
def test_on_the_same_samples_the_line_is_that_of_the_lime_package(kernel_width):
    found = lime.fit(
        network(), normal(2, 3, 8, 8), torch.tensor([1, 3]),
        segments=tiles(), samples=60, kernel_width=kernel_width, generator=seeded(),
    )  # fmt: skip
    data = found.samples.numpy().astype(float)
    distances = sklearn.metrics.pairwise_distances(data, data[:1], metric="cosine").ravel()
    base = LimeBase(lambda d: np.sqrt(np.exp(-(d**2) / kernel_width**2)), random_state=0)
    for item in range(2):
        labels = found.scores[item].numpy()[:, None]
        model = Ridge(alpha=1, fit_intercept=True)
        intercept, pairs, r2, at_input = base.explain_instance_with_data(
            data, labels, distances, 0, 16, feature_selection="none", model_regressor=model
        )
        agree(found.coefficients[item], [value for _, value in sorted(pairs)])
        agree(found.intercept[item], intercept)
        agree(found.r2[item], r2)
        agree(found.local_prediction[item], at_input[0])


def test_the_image_explainer_of_the_lime_package_gives_the_same_from_end_to_end():
    model, inputs = network(), normal(1, 3, 8, 8, seed=3)
    segments = lime.slic(inputs, segments=9, compactness=1.0)[0]

    def classify(batch):
        with torch.no_grad():
            return model(torch.from_numpy(batch).permute(0, 3, 1, 2)).softmax(1).numpy()

    explainer, captured = LimeImageExplainer(random_state=5), []
    data_labels = explainer.data_labels
    explainer.data_labels = lambda *args, **kwargs: captured.append(data_labels(*args, **kwargs)) or captured[0]
    image = inputs[0].permute(1, 2, 0).numpy()
    theirs = explainer.explain_instance(
        image, classify, labels=(2,), top_labels=None, num_samples=150, segmentation_fn=lambda _: segments.numpy()
    )
    ((data, labels),) = captured
    samples = torch.from_numpy(data[1:]).bool()
    found = lime.fit(model, inputs, lambda y: y.softmax(1)[:, 2], segments=segments, samples=samples)
    agree(found.samples, data.astype(bool))
    agree(found.scores[0], labels[:, 2], 1e-12)
    agree(found.coefficients[0], [value for _, value in sorted(theirs.local_exp[2])])
    agree(found.intercept[0], theirs.intercept[2])
    agree(found.r2[0], theirs.score)


# The regression


@given(
    seed=st.integers(0, 2**16),
    penalty=st.sampled_from(["ridge", "lasso"]),
    alpha=st.sampled_from([0.003, 0.1, 1.0, 30.0]),
    kernel_width=st.sampled_from([0.1, 0.25, 3.0]),
)
@settings(max_examples=25, deadline=None)
def test_the_line_is_scikit_learns_with_the_same_weights(seed, penalty, alpha, kernel_width):
    model, inputs = network(), normal(2, 3, 8, 8, seed=seed)
    found = lime.fit(
        model, inputs, 2, segments=tiles(side=4), samples=40, penalty=penalty, alpha=alpha, kernel_width=kernel_width,
        generator=seeded(seed),
    )  # fmt: skip
    z = found.samples.double().numpy()
    cosine = 1 - z.sum(1) / np.maximum(np.sqrt(z.sum(1) * z.shape[1]), 1e-300)
    weights = np.exp(-(cosine**2) / (2 * kernel_width**2))
    for item, y in enumerate(found.scores.numpy()):
        line = Ridge(alpha=alpha) if penalty == "ridge" else Lasso(alpha=alpha, tol=1e-12, max_iter=10**6)
        line.fit(z, y, sample_weight=weights)
        agree(found.weights[item], weights)
        agree(found.coefficients[item], line.coef_, 1e-7)
        agree(found.intercept[item], float(line.intercept_), 1e-7)
        agree(found.r2[item], sklearn.metrics.r2_score(y, line.predict(z), sample_weight=weights), 1e-7)


def test_a_lasso_leaves_segments_out_and_a_strong_one_all():
    model, inputs = network(), normal(1, 3, 8, 8)
    some = lime.fit(model, inputs, 0, segments=tiles(), penalty="lasso", alpha=0.03, samples=200, generator=seeded())
    assert 0 < (some.coefficients == 0).sum() < 16
    none = lime.fit(model, inputs, 0, segments=tiles(), penalty="lasso", alpha=1e3, samples=200, generator=seeded())
    assert not none.coefficients.any() and none.r2.abs() < 1e-12
    agree(none.intercept, (none.weights * none.scores).sum(1) / none.weights.sum(1))


def test_left_to_itself_alpha_is_1_for_a_ridge_and_a_hundredth_for_a_lasso():
    model, inputs = network(), normal(1, 3, 8, 8)
    for penalty, alpha in (("ridge", 1.0), ("lasso", 0.01)):
        one, other = (
            lime.lime(model, inputs, 0, segments=tiles(), penalty=penalty, alpha=a, samples=99, generator=seeded())
            for a in (None, alpha)
        )
        assert torch.equal(one, other) and one.any()


@given(seed=st.integers(0, 2**16), side=st.sampled_from([2, 4]))
@settings(max_examples=20, deadline=None)
def test_a_linear_score_is_recovered_exactly(seed, side):
    model, inputs, segments = linear(3 * 64), normal(2, 3, 8, 8, seed=seed), tiles(side=side)
    target = torch.tensor([2, 0])
    found = lime.fit(model, inputs, target, segments=segments, alpha=0.0, removal=ZERO, generator=seeded(seed))
    parts = (inputs * model[1].weight[target].view(2, 3, 8, 8)).sum(1).flatten(1).detach()
    effects = torch.zeros(2, int(segments.max()) + 1).double().index_add_(1, segments.flatten(), parts)
    agree(found.coefficients, effects)
    agree(found.intercept, model[1].bias[target].detach())
    agree(found.r2, torch.ones(2).double())
    agree(found.local_prediction, found.score)


def test_two_features_that_only_count_together_by_hand():
    """y = z1 z2 with equal weights: the least squares line through 0, 0, 0, 1 is (z1 + z2) / 2 - 1 / 4."""
    inputs = torch.ones(1, 2, dtype=torch.float64)
    others = torch.tensor([[False, False], [False, True], [True, False]])
    found = lime.fit(product, inputs, 0, removal=ZERO, samples=others, alpha=0.0, kernel_width=1e6)
    agree(found.coefficients, [[0.5, 0.5]])
    agree(found.intercept, [-0.25])
    agree(found.r2, [1 - 0.25 / 0.75])
    agree(found.local_prediction, [0.75])
    assert found.score.tolist() == [1] and found.scores.tolist() == [[1, 0, 0, 0]]
    weights = lime.fit(product, inputs, 0, removal=ZERO, samples=others).weights
    agree(weights, [[1, math.exp(-8), *[math.exp(-8 * (1 - math.sqrt(0.5)) ** 2)] * 2]])


def test_a_constant_score_has_no_share_explained():
    found = lime.fit(lambda x: torch.ones(len(x), 1), normal(2, 3, 4, 4), 0, segments=tiles(4, 4), samples=20)
    assert found.r2.isnan().all()
    agree(found.coefficients, torch.zeros(2, 4))
    agree(found.intercept, [1.0, 1.0])


# Relevance


def test_the_relevance_of_a_segment_sums_to_its_coefficient():
    model, inputs = network(), normal(2, 3, 8, 8)
    segments = tiles(side=3)  # of nine, six and four pixels
    relevance = lime.lime(model, inputs, 1, segments=segments, generator=seeded(2))
    found = lime.fit(model, inputs, 1, segments=segments, generator=seeded(2))
    assert relevance.shape == inputs.shape and relevance.dtype == inputs.dtype and relevance.is_contiguous()
    sums = torch.zeros(2, 9).double().index_add_(1, segments.flatten(), relevance.sum(1).flatten(1))
    agree(sums, found.coefficients)
    agree(relevance.sum((1, 2, 3)), found.local_prediction - found.intercept)
    assert relevance[0, 0, 0, 0] == relevance[0, 2, 2, 2] == relevance[0, 1, 0, 1]  # equal within a segment
    assert torch.equal(found.coefficient_map, found.coefficients[:, segments])
    assert found.segments.shape == (2, 8, 8)


def test_what_is_missing_has_the_mean_colour_of_its_segment():
    seen = []

    def model(x):
        seen.append(x)
        return x.flatten(1).sum(1, keepdim=True)

    inputs, segments = normal(1, 2, 4, 4), tiles(4, 4)
    found = lime.fit(model, inputs, 0, segments=segments, samples=torch.tensor([[True, False, True, False]]))
    whole, half = torch.cat(seen)
    assert torch.equal(whole, inputs[0]) and found.samples.tolist()[0] == [True] * 4
    for segment in range(4):
        there = segments == segment
        expected = inputs[0][:, there] if segment in (0, 2) else inputs[0][:, there].mean(1, keepdim=True).expand(2, 4)
        agree(half[:, there], expected)


def test_another_removal_is_asked_for_what_is_missing_and_a_removal_may_draw_at_random():
    model, inputs = network(), normal(2, 3, 8, 8)

    def negative(x, removed):
        assert removed.shape == (len(x), 1, 8, 8) and removed.dtype == torch.bool
        return torch.where(removed, -x, x)

    found = lime.fit(model, inputs, 1, segments=tiles(side=4), removal=negative, samples=torch.zeros(1, 4) > 0)
    agree(found.scores, torch.stack([model(inputs)[:, 1], model(-inputs)[:, 1]], 1).detach())
    runs = [
        lime.lime(model, inputs, 1, segments=tiles(), removal=removal.noise(1.0, generator=seeded(s)), generator=seeded())
        for s in (0, 0, 1)
    ]  # fmt: skip
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_tables_and_series_have_their_features_and_steps_as_segments():
    model, table = linear(5), normal(3, 5)
    relevance = lime.lime(model, table, 1, removal=ZERO, alpha=0.0, samples=64, generator=seeded())
    agree(relevance, (table * model[1].weight[1]).detach())
    pairs = lime.lime(
        model, table, 1, removal=ZERO, alpha=0.0, samples=64, segments=torch.tensor([0, 1, 0, 1, 1]), generator=seeded()
    )
    agree(pairs[:, 0], (table * model[1].weight[1])[:, [0, 2]].sum(1).detach() / 2)
    model, series = linear(2 * 6), normal(3, 2, 6)
    relevance = lime.lime(
        model, series, 1, removal=ZERO, alpha=0.0, samples=64, segments=torch.arange(6), generator=seeded()
    )
    effects = (series * model[1].weight[1].view(2, 6)).sum(1, keepdim=True).detach()
    agree(relevance, (effects / 2).expand(3, 2, 6))


def test_segments_may_be_numbered_with_gaps_and_differ_between_items():
    model, inputs = network(), normal(2, 3, 8, 8)
    segments = torch.stack([tiles(side=4) * 2 + 1, tiles()])  # 1, 3, 5, 7 and 0 to 15
    found = lime.fit(model, inputs, 0, segments=segments, generator=seeded())
    assert found.coefficients.shape == (2, 16)
    assert (found.coefficients[0] != 0).nonzero().flatten().tolist() == [1, 3, 5, 7]
    assert (found.coefficients[1] != 0).all()
    four = found.samples[:, [1, 3, 5, 7]].sum(1)
    agree(found.weights[0], torch.exp(-8 * (1 - (four / 4).double().sqrt()) ** 2))


# The contract of every attribution


def targets():
    return [2, torch.tensor([3, 0, 1]), lambda y: y.softmax(1)[torch.arange(3), torch.tensor([3, 0, 1])]]


@pytest.mark.parametrize("target", targets(), ids=["index", "tensor", "function"])
def test_a_batch_gives_what_its_items_give_and_chunks_change_nothing(target):
    model, inputs = network(), normal(3, 3, 8, 8)
    segments = torch.stack([tiles(), tiles(side=3), tiles(side=4)])
    whole = lime.lime(model, inputs, target, segments=segments, samples=50, generator=seeded())
    for chunk in (1, 7, 1000):
        again = lime.lime(model, inputs, target, segments=segments, samples=50, generator=seeded(), chunk=chunk)
        agree(again, whole)
    for item in range(3):
        alone = {2: target} if isinstance(target, int) else {}
        one = alone.get(2, [3, 0, 1][item]) if not callable(target) else lambda y, c=[3, 0, 1][item]: y.softmax(1)[:, c]
        one = lime.lime(model, inputs[item : item + 1], one, segments=segments[item], samples=50, generator=seeded())
        agree(one[0], whole[item])


def test_chunks_bound_what_the_model_sees_at_once():
    model = Counting(network())
    lime.lime(model, normal(3, 3, 8, 8), 1, segments=tiles(), samples=50, chunk=8)
    assert max(model.seen) == 8 and sum(model.seen) == 150


def test_the_seed_decides_and_the_global_one_stands_in_for_it():
    model, inputs = network(), normal(1, 3, 8, 8)

    def explain(generator):
        return lime.lime(model, inputs, 1, segments=tiles(), samples=50, generator=generator)

    assert torch.equal(explain(seeded(1)), explain(seeded(1))) and not torch.equal(
        explain(seeded(1)), explain(seeded(2))
    )
    torch.manual_seed(1)
    assert torch.equal(explain(None), explain(seeded(1)))
    before = torch.get_rng_state()
    explain(seeded())
    assert torch.equal(torch.get_rng_state(), before)


def test_each_segment_is_there_in_half_of_the_samples_independently():
    found = lime.fit(product, normal(1, 6), 0, removal=ZERO, samples=4000, generator=seeded())
    z = found.samples[1:].double()
    assert found.samples.shape == (4000, 6) and found.samples[0].all()
    assert (z.mean(0) - 0.5).abs().max() < 4 * 0.5 / math.sqrt(4000)
    assert (torch.corrcoef(z.T) - torch.eye(6)).abs().max() < 4 / math.sqrt(4000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_float_types_give_nearly_the_same(dtype):
    model, inputs = network(), normal(2, 3, 8, 8)
    exact = lime.lime(model, inputs, 1, segments=tiles(), generator=seeded())
    rough = lime.lime(copy.deepcopy(model).to(dtype), inputs.to(dtype), 1, segments=tiles(), generator=seeded())
    assert rough.dtype == dtype
    accuracy = 1e-5 if dtype == torch.float32 else 0.1
    assert (rough.double() - exact).norm() < accuracy * exact.norm()


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_it_does_not_matter_what_the_caller_has_switched_off(context):
    model, inputs = network(), normal(2, 3, 8, 8)
    expected = lime.lime(model, inputs, 1, segments=tiles(), generator=seeded())
    with context():
        assert torch.equal(lime.lime(model, inputs.clone(), 1, segments=tiles(), generator=seeded()), expected)
    wanted = inputs.clone().requires_grad_()
    found = lime.lime(model, wanted, 1, segments=tiles(), generator=seeded())
    assert torch.equal(found, expected) and not found.requires_grad and wanted.grad is None


def test_any_memory_format_gives_the_same():
    model, inputs = network(), normal(2, 3, 8, 8)
    expected = lime.lime(model, inputs, 1, segments=tiles(), generator=seeded())
    last = inputs.contiguous(memory_format=torch.channels_last)
    agree(
        lime.lime(model.to(memory_format=torch.channels_last), last, 1, segments=tiles(), generator=seeded()), expected
    )


def test_model_and_inputs_are_unchanged_also_after_an_error():
    model, inputs = Counting(network()), normal(2, 3, 8, 8)
    state, kept = copy.deepcopy(model.state_dict()), inputs.clone()
    hooks, flags = model._forward_hooks.copy(), [p.requires_grad for p in model.parameters()]

    def broken(x, removed):
        raise RuntimeError("no removal today")

    lime.lime(model, inputs, 1, segments=tiles(), samples=20)
    with pytest.raises(RuntimeError, match="today"):
        lime.lime(model, inputs, 1, segments=tiles(), removal=broken)
    with pytest.raises(ValueError, match="target must be from 0 to 3"):
        lime.lime(model, inputs, 4, segments=tiles())
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert torch.equal(inputs, kept) and model._forward_hooks == hooks and not model.training
    assert [p.requires_grad for p in model.parameters()] == flags and all(p.grad is None for p in model.parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_what_the_cpu_gives():
    model, inputs = network(), normal(2, 3, 8, 8)
    target = torch.tensor([1, 3])
    expected = lime.lime(model, inputs, target, segments=tiles(), generator=seeded())
    model, inputs = model.cuda(), inputs.cuda()
    found = lime.lime(model, inputs, target, segments=tiles(), generator=seeded())
    assert found.device == inputs.device
    agree(found.cpu(), expected)
    assert lime.slic(inputs).device == inputs.device
    on_device = torch.Generator("cuda").manual_seed(0)
    assert lime.lime(model, inputs, target, generator=on_device, samples=20).isfinite().all()


# How much of it is luck


def test_the_spread_is_that_of_separate_fits():
    model, inputs = network(), normal(2, 3, 8, 8)
    generator = seeded(4)
    fits = [lime.fit(model, inputs, 1, segments=tiles(), samples=60, generator=generator) for _ in range(4)]
    found = lime.spread(model, inputs, 1, segments=tiles(), samples=60, generator=seeded(4), runs=4)
    c = torch.stack([each.coefficients for each in fits])
    assert torch.equal(found.coefficients, c) and torch.equal(found.r2, torch.stack([each.r2 for each in fits]))
    agree(found.mean, c.mean(0))
    agree(found.standard_deviations, torch.from_numpy(np.std(c.numpy(), axis=0, ddof=1)))
    for item in range(2):
        rho = scipy.stats.spearmanr(c[:, item].numpy().T).statistic
        agree(found.rank_correlation[item], rho[np.triu_indices(4, 1)].mean())
        sets = [set(map(int, each.abs().topk(3).indices)) for each in c[:, item]]
        shares = [len(a & b) / len(a | b) for i, a in enumerate(sets) for b in sets[i + 1 :]]
        agree(found.jaccard(3)[item], sum(shares) / 6)
    assert found.jaccard(16).tolist() == [1, 1]


def test_segments_that_an_item_has_not_got_do_not_make_it_look_steady():
    model, inputs = network(), normal(2, 3, 8, 8)
    segments = torch.stack([tiles(side=4) * 2 + 1, tiles()])
    both = lime.spread(model, inputs, 1, segments=segments, samples=40, generator=seeded(), runs=3)
    alone = lime.spread(model, inputs[:1], 1, segments=segments[0], samples=40, generator=seeded(), runs=1 + 1)
    assert both.segments.shape == (2, 8, 8) and alone.coefficients.shape == (2, 1, 8)
    rho = scipy.stats.spearmanr(both.coefficients[:, 0, [1, 3, 5, 7]].numpy().T).statistic
    agree(both.rank_correlation[0], rho[np.triu_indices(3, 1)].mean())
    with pytest.raises(ValueError, match="top must be from 1 to 4, the number of segments, got 5"):
        both.jaccard()


def test_ties_share_their_ranks_and_runs_without_any_difference_have_no_rank_correlation():
    coefficients = torch.tensor([[[0.0, 0.0, 3.0, 1.0]], [[2.0, 0.0, 0.0, 0.0]]]).double()
    found = lime.Spread(coefficients, torch.ones(2, 1), torch.arange(4)[None])
    agree(found.rank_correlation[0], scipy.stats.spearmanr(*coefficients[:, 0].numpy()).statistic)
    flat = lime.Spread(torch.zeros(2, 1, 4).double(), torch.ones(2, 1), torch.arange(4)[None])
    assert flat.rank_correlation.isnan().all()


def test_more_samples_spread_less():
    model, inputs = network(), normal(1, 3, 8, 8)
    few, many = (
        lime.spread(model, inputs, 1, segments=tiles(), samples=n, generator=seeded(), runs=8) for n in (50, 800)
    )
    assert 2.5 < (few.standard_deviations.norm() / many.standard_deviations.norm()) < 8  # about 4, the root of 16
    assert many.rank_correlation > few.rank_correlation


# Segments


def test_slic_is_scikit_images_and_numbers_its_segments_from_0_without_gaps():
    from skimage.segmentation import slic

    inputs = nn.functional.interpolate(images.load("astronaut")[None], size=96, mode="area")
    found = lime.slic(inputs, segments=20, compactness=5.0, sigma=1.0)
    theirs = slic(inputs[0].permute(1, 2, 0).double().numpy(), 20, compactness=5.0, sigma=1.0, start_label=0)
    assert found.shape == (1, 96, 96) and found.dtype == torch.long
    assert found.unique().tolist() == list(range(len(np.unique(theirs)))) and 5 < len(np.unique(theirs)) < 40
    assert torch.equal(found[0], torch.from_numpy(theirs))
    assert torch.equal(found, lime.slic(inputs * 3 - 1, segments=20, compactness=5.0, sigma=1.0))


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_slic_follows_the_edge_of_two_colours(channels):
    inputs = torch.zeros(2, channels, 32, 32)
    inputs[0, :, :, 13:] = 1
    inputs[1, :, 9:] = 1
    found = lime.slic(inputs, segments=8, compactness=0.1)
    left, right = found[0, :, :13].unique(), found[0, :, 13:].unique()
    above, below = found[1, :9].unique(), found[1, 9:].unique()
    assert not set(left.tolist()) & set(right.tolist()) and not set(above.tolist()) & set(below.tolist())


def test_images_are_cut_by_slic_where_no_segments_are_given():
    model, inputs = network(size=32), nn.functional.interpolate(normal(1, 3, 4, 4), size=32, mode="bilinear")
    found = lime.fit(model, inputs, 1, samples=80, generator=seeded())
    assert torch.equal(found.segments, lime.slic(inputs))
    again = lime.spread(model, inputs, 1, samples=80, generator=seeded(), runs=2)
    assert torch.equal(again.segments, found.segments) and torch.equal(again.coefficients[0], found.coefficients)


def test_a_real_network_finds_each_thing_in_its_half_of_the_picture():
    model, transform = models.load(), models.transform()
    left, right = (transform(images.load(name))[:, :, 56:168] for name in ("coffee", "chelsea"))
    inputs = torch.cat([left, right], 2)[None].expand(2, -1, -1, -1)
    target = torch.tensor([967, 285])  # espresso, Egyptian cat
    found = lime.fit(model, inputs, target, segments=tiles(224, 224, 28), samples=100, generator=seeded())
    in_left = found.coefficient_map[:, :, :112].mean((1, 2)) - found.coefficient_map[:, :, 112:].mean((1, 2))
    assert in_left[0] > 0.1 and in_left[1] < -0.1, in_left
    assert ((found.r2 > 0.3) & (found.r2 < 1)).all(), found.r2


def test_a_progress_bar_counts_the_inputs_that_the_model_has_seen_if_it_is_asked_for(capfd):
    model, inputs = Counting(network()), normal(2, 3, 8, 8)
    for shown in (False, True):
        lime.lime(model, inputs, 1, segments=tiles(), samples=20, chunk=8, progress=shown, generator=seeded())
        written = capfd.readouterr().err
        assert ("/40 " in written and "inputs/s" in written) == shown, written
    lime.spread(model, inputs, 1, segments=tiles(), samples=20, runs=2, progress=True, generator=seeded())
    assert "/40 " in capfd.readouterr().err


# What is refused


@pytest.mark.parametrize("method", [lime.lime, lime.fit, lime.spread])
def test_fewer_samples_than_the_line_has_numbers_are_warned_of(method):
    ask = {"model": network(), "inputs": normal(1, 3, 8, 8), "target": 1, "segments": tiles(), "chunk": 8}
    with pytest.warns(RuntimeWarning, match="17 numbers to fit, one for each of 16 segments .* and 16 samples"):
        method(**ask, samples=16, generator=seeded())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method(**ask, samples=17, generator=seeded())


def test_a_pixel_gets_its_part_of_the_coefficient_and_the_map_of_a_fit_the_whole():
    ask = {"model": network(), "inputs": normal(1, 3, 8, 8), "target": 1, "segments": tiles(), "samples": 40}
    found = lime.fit(**ask, generator=seeded())
    R = lime.lime(**ask, generator=seeded())
    assert torch.equal(found.coefficient_map[0, :2, :2], found.coefficients[0, 0].expand(2, 2))
    agree(R[0, :, :2, :2], found.coefficients[0, 0].expand(3, 2, 2) / (3 * 4))


def bad(**changes):
    good = {
        "model": network(), "inputs": normal(2, 3, 8, 8), "target": 1, "segments": tiles(), "samples": 20, "removal": None,
        "penalty": "ridge", "alpha": 1.0, "kernel_width": 0.25, "generator": None, "chunk": 8,
    }  # fmt: skip
    arguments = good | changes
    return [arguments.pop(name) for name in ("model", "inputs", "target")], arguments


NAN = normal(2, 3, 8, 8).where(torch.arange(8) > 0, math.nan)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": 3}, TypeError, "model must be an nn.Module or a function"),
        ({"model": network().train()}, ValueError, "model must be in evaluation mode"),
        ({"inputs": NAN}, ValueError, "inputs must be finite"),
        ({"inputs": torch.ones(2, 3, 8, 8).long()}, TypeError, "inputs must be a tensor of a float dtype"),
        ({"inputs": torch.ones(8)}, ValueError, "inputs must have shape"),
        ({"target": 1.5}, TypeError, "target must be an int"),
        ({"target": 9}, ValueError, "target must be from 0 to 3, got 9"),
        ({"target": torch.tensor([1])}, ValueError, "target must be a LongTensor"),
        ({"target": lambda y: y}, ValueError, "target must give one float score for each item"),
        ({"segments": tiles(8, 6)}, ValueError, r"segments must be a LongTensor of shape \(8, 8\) or \(2, 8, 8\), got"),
        ({"segments": tiles()[None].expand(3, 8, 8)}, ValueError, r"got torch.int64 of shape \(3, 8, 8\)"),
        ({"segments": tiles().double()}, ValueError, "segments must be a LongTensor .* got torch.float64"),
        ({"segments": tiles().numpy()}, ValueError, "segments must be a LongTensor .* got ndarray"),
        ({"segments": 9}, ValueError, "segments must be a LongTensor .* got int"),
        ({"segments": tiles() - 1}, ValueError, "segments must be numbered from 0 .* got -1"),
        ({"segments": tiles() * 100}, ValueError, "segments must be numbered from 0 to at most 63.* got 1500"),
        ({"segments": torch.zeros(8, 8).long()}, ValueError, "segments must be at least two in each item"),
        ({"segments": torch.stack([tiles(), tiles() * 0])}, ValueError, "segments must be at least two in each item"),
        ({"inputs": torch.ones(2, 5), "segments": None}, ValueError, "removal must be given for tables"),
        ({"inputs": torch.ones(2, 3, 5), "segments": None}, ValueError, "segments must be given for inputs of shape"),
        ({"samples": 1}, ValueError, "samples must be at least 2, got 1"),
        ({"samples": 20.0}, TypeError, "samples must be an int, got float"),
        ({"samples": 16, "alpha": 0.0}, ValueError, "samples must be above the number of segments, 16, .* got 16"),
        ({"samples": torch.ones(40, 16) > 0, "alpha": 0.0}, ValueError, "samples do not determine the coefficients"),
        ({"samples": torch.ones(9, 15) > 0}, ValueError, r"samples must be an int, or a BoolTensor \(n, 16\)"),
        ({"samples": torch.ones(9, 16)}, ValueError, "samples must be an int, or a BoolTensor .* got torch.float32"),
        ({"samples": torch.ones(0, 16) > 0}, ValueError, "samples must be an int, or a BoolTensor"),
        ({"removal": "grey"}, TypeError, "removal must be a function of inputs and removed places, got str"),
        ({"removal": lambda x, r: x[:, :1]}, ValueError, "removal must return a tensor like the inputs"),
        ({"removal": lambda x, r: x.float()}, ValueError, "removal must return a tensor like the inputs"),
        ({"removal": lambda x, r: x / 0}, ValueError, "what removal returns must be finite"),
        ({"penalty": "elastic"}, ValueError, "penalty must be \"ridge\" or \"lasso\", got 'elastic'"),
        ({"alpha": -1.0}, ValueError, "alpha must be above 0 and finite, got -1"),
        ({"alpha": math.inf}, ValueError, "alpha must be above 0 and finite"),
        ({"alpha": "1"}, TypeError, "alpha must be a number, got str"),
        ({"alpha": False}, TypeError, "alpha must be a number, got bool"),
        ({"alpha": 0.0, "penalty": "lasso"}, ValueError, "alpha must be above 0 and finite, got 0"),
        ({"kernel_width": 0.0}, ValueError, "kernel_width must be above 0"),
        ({"kernel_width": 1e-170}, ValueError, "kernel_width must be larger: at 1e-170 all samples but the input"),
        ({"kernel_width": 1e-3}, ValueError, "kernel_width must be larger: at 0.001 all samples but the input"),
        ({"model": lambda x: 1e308 * x.flatten(1).sign()}, ValueError, "the coefficients must be finite"),
        ({"kernel_width": None}, TypeError, "kernel_width must be a number"),
        ({"generator": 3}, TypeError, "generator must be a torch.Generator or None, got int"),
        ({"chunk": 0}, ValueError, "chunk must be at least 1, got 0"),
        ({"progress": 1}, TypeError, "progress must be True or False, got int"),
        ({"model": lambda x: x.flatten(1) / 0}, ValueError, "the model's outputs must be finite"),
        ({"model": lambda x: [x]}, TypeError, "model must return a tensor, got list"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_words(changes, error, message):
    places, arguments = bad(**changes)
    for method in (lime.lime, lime.fit):
        with pytest.raises(error, match=message):
            method(*places, **arguments)
    if not isinstance(arguments["samples"], torch.Tensor):
        with pytest.raises(error, match=message):
            lime.spread(*places, **arguments, runs=2)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"runs": 1}, ValueError, "runs must be at least 2, got 1"),
        ({"runs": "3"}, TypeError, "runs must be an int, got str"),
        ({"samples": torch.ones(9, 16) > 0}, TypeError, "samples must be an int, got Tensor"),
    ],
)
def test_a_spread_needs_runs_that_differ(changes, error, message):
    places, arguments = bad(**{key: value for key, value in changes.items() if key != "runs"})
    with pytest.raises(error, match=message):
        lime.spread(*places, **arguments, runs=changes.get("runs", 3))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"inputs": normal(3, 8)}, ValueError, r"inputs must be images of shape \(N, C, H, W\)"),
        ({"inputs": NAN}, ValueError, "inputs must be finite"),
        ({"segments": 0}, ValueError, "segments must be at least 1"),
        ({"segments": 9.0}, TypeError, "segments must be an int"),
        ({"compactness": -1.0}, ValueError, "compactness must be above 0"),
        ({"sigma": -1.0}, ValueError, "sigma must be above 0"),
    ],
)
def test_slic_refuses_what_is_no_image(changes, error, message):
    with pytest.raises(error, match=message):
        lime.slic(**({"inputs": normal(2, 3, 8, 8)} | changes))


def test_relevance_that_its_dtype_cannot_hold_is_an_error():
    def model(x):
        return 3e4 * x.mean((1, 2, 3), keepdim=False)[:, None]

    inputs, segments = torch.ones(1, 1, 1, 2, dtype=torch.float16), torch.tensor([[0, 1]])
    settings_ = {"segments": segments, "removal": removal.baseline(0.0), "samples": 200, "alpha": 0.0}
    steep = [lambda y: 10 * y[:, 0].double(), lambda y: y[:, 0].double()]
    assert lime.lime(model, inputs, steep[1], generator=seeded(), **settings_).isfinite().all()
    with pytest.raises(ValueError, match="the relevance must be finite"):
        lime.lime(model, inputs, steep[0], generator=seeded(), **settings_)
