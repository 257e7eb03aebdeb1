"""Maps and what they do to distances, held against scikit-learn, hand calculations and chance."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import decomposition, manifold

from xaicourse import digits, embedding, features


def gaussian(count, width, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def real():
    pictures, labels = digits.samples("test")
    return features.extract(digits.load(), pictures[:300]), labels[:300]


# What a map does to distances


@pytest.mark.parametrize("shape", [(40, 2), (101, 7)])
def test_the_identity_is_a_perfect_map_also_scaled_turned_and_moved(shape):
    x = gaussian(*shape)
    turn = torch.linalg.qr(gaussian(shape[1], shape[1], 1)).Q
    for drawn in (x, 3 * x @ turn + 5):
        assert embedding.trustworthiness(x, drawn, k=6) == embedding.continuity(x, drawn, k=6) == 1
        assert embedding.stress(x, drawn) < 1e-6
    assert embedding.trustworthiness(x.round(), x.round(), k=6) == 1  # with samples that coincide


def test_a_permuted_map_has_what_chance_gives():
    x = gaussian(400, 3)
    k, count = 10, 400
    found = [embedding.trustworthiness(x, x[torch.randperm(count)], k=k) for _ in range(5)]
    # the expected excess rank of a random sample, by the definition: ranks k + 1 to N - 1, each with probability 1 / (N - 1)
    chance = 1 - 2 / (2 * count - 3 * k - 1) * sum(r - k for r in range(k + 1, count)) / (count - 1)
    assert abs(torch.stack(found).mean() - chance) < 0.01 and abs(chance - 0.5) < 0.02


def test_trustworthiness_of_five_points_on_a_line_is_that_of_a_hand_calculation():
    x = torch.tensor([[0.0], [1.0], [3.0], [6.0], [10.0]], dtype=torch.float64)
    drawn = x[[4, 1, 2, 3, 0]]  # the two ends change places
    # k = 1. On the map the nearest are samples 3, 4, 1, 2, 1; their true ranks are 3, 4, 1, 1, 3: excess 2, 3, 0, 0, 2
    each = embedding.trustworthiness(x, drawn, k=1, per_point=True)
    assert torch.allclose(each, 1 - 2 / 6 * torch.tensor([2, 3, 0, 0, 2], dtype=torch.float64))
    theirs = manifold.trustworthiness(x.numpy(), drawn.numpy(), n_neighbors=1)
    assert each.mean().item() == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("k", [1, 5, 12])
@pytest.mark.parametrize("chunk", [7, 500])
def test_trustworthiness_and_continuity_are_scikit_learns_and_the_points_average_to_them(real, k, chunk):
    x = real[0].double()
    drawn = embedding.embed(x, "pca")
    theirs = manifold.trustworthiness(x.numpy(), drawn.numpy(), n_neighbors=k)
    theirs_exchanged = manifold.trustworthiness(drawn.numpy(), x.numpy(), n_neighbors=k)
    assert embedding.trustworthiness(x, drawn, k=k, chunk=chunk).item() == pytest.approx(theirs, abs=1e-12)
    assert embedding.continuity(x, drawn, k=k, chunk=chunk).item() == pytest.approx(theirs_exchanged, abs=1e-12)
    each = embedding.trustworthiness(x, drawn, k=k, per_point=True)
    assert each.shape == (300,) and each.mean().item() == pytest.approx(theirs, abs=1e-12)
    assert each.std() > 0.01


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(8, 40))
def test_measures_lie_between_their_bounds_and_do_not_depend_on_scale_or_the_order_of_samples(seed, count):
    x, drawn = gaussian(count, 5, seed), gaussian(count, 2, seed + 1)
    order = torch.randperm(count)
    for measure in (embedding.trustworthiness, embedding.continuity):
        value = measure(x, drawn, k=3)
        assert 0 <= value <= 1 and math.isclose(value, measure(x[order], 7 * drawn[order], k=3), abs_tol=1e-12)
    value = embedding.stress(x, drawn, chunk=5)
    assert 0 < value < 1 and math.isclose(value, embedding.stress(x[order], 7 * drawn[order]), abs_tol=1e-9)


def test_stress_is_what_the_best_of_many_scales_leaves():
    x, drawn = gaussian(30, 4), gaussian(30, 2, 1)
    true, shown = torch.pdist(x), torch.pdist(drawn)
    by_search = min(
        ((true - a * shown).square().sum() / true.square().sum()).sqrt() for a in torch.linspace(0, 5, 5001)
    )
    assert embedding.stress(x, drawn).item() == pytest.approx(by_search.item(), abs=1e-6)


def test_on_real_features_t_sne_keeps_neighbours_pca_keeps_distances_and_each_more_than_maps_of_nothing(real):
    x = real[0]
    generator = torch.Generator().manual_seed(0)
    drawn = {
        "p": embedding.embed(x, "pca"),
        "i": embedding.embed(x, "isomap"),
        "t": embedding.embed(x, generator=generator),
    }
    near = {name: embedding.trustworthiness(x, points) for name, points in drawn.items()}
    far = {name: embedding.stress(x, points) for name, points in drawn.items()}
    assert near["p"] < near["i"] < near["t"] and far["p"] < min(far["i"], far["t"])
    for nothing in (gaussian(300, 2), drawn["t"][torch.randperm(300, generator=generator)]):
        assert abs(embedding.trustworthiness(x, nothing) - 0.5) < 0.05 and embedding.continuity(x, nothing) < 0.6
        assert embedding.stress(x, nothing) > max(far.values()) and min(near.values()) > 0.8


# The maps


def test_pca_is_scikit_learns_and_needs_no_seed(real):
    x = real[0].double()
    theirs = torch.as_tensor(decomposition.PCA(2, svd_solver="full").fit_transform(x.numpy()))
    assert torch.allclose(embedding.embed(x, "pca"), theirs)


def test_isomap_unrolls_a_spiral():
    turn = torch.linspace(3, 12, 200, dtype=torch.float64)
    x = torch.stack([turn * turn.cos(), turn * turn.sin()], 1)
    drawn = embedding.embed(x, "isomap", neighbors=4, dimensions=1)[:, 0]
    flat = embedding.embed(x, "pca", dimensions=1)[:, 0]
    assert abs(stats.spearmanr(drawn, turn)[0]) > 0.999 > abs(stats.spearmanr(flat, turn)[0])


def test_a_graph_that_falls_apart_is_joined_without_a_warning(recwarn):
    x = torch.cat([gaussian(20, 3), gaussian(20, 3, 1) + 100])
    assert embedding.embed(x, "isomap", neighbors=3).isfinite().all() and not recwarn.list


@pytest.mark.parametrize("start", ["pca", "random"])
def test_the_same_seed_gives_the_same_map_in_the_dtype_of_the_features(start):
    x = gaussian(60, 5).float()
    one, again, other = (
        embedding.embed(x, perplexity=5, start=start, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, again) and one.shape == (60, 2) and one.dtype == torch.float32
    assert start == "pca" or not torch.allclose(one, other)


@pytest.mark.parametrize("scale", [1e-30, 1e30, 1e200])
def test_a_t_sne_does_not_depend_on_the_unit_of_the_features_however_small_or_large(scale):
    x = gaussian(40, 5)
    extent = (x.amax(0) - x.amin(0)).max()
    there = x / extent
    found, wanted = (
        embedding.embed(each, perplexity=5, generator=torch.Generator().manual_seed(0)) for each in (scale * x, there)
    )
    assert embedding.trustworthiness(x, found, k=5) > 0.8 and found.std() > 1
    assert abs(embedding.trustworthiness(x, found, k=5) - embedding.trustworthiness(x, wanted, k=5)) < 0.1


@pytest.mark.parametrize("method", ["pca", "isomap", "t-sne"])
def test_no_map_touches_the_global_random_numbers(method):
    x, before, state = gaussian(250, 5), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    embedding.embed(x, method, perplexity=5, generator=torch.Generator().manual_seed(0))
    after = np.random.get_state()  # noqa: NPY002
    assert before[2] == after[2] and (before[1] == after[1]).all() and torch.equal(state, torch.get_rng_state())


# What t-SNE starts from, and what looks like a group


@pytest.mark.parametrize("perplexity", [1.5, 5, 30])
def test_neighbour_probabilities_have_their_perplexity_and_are_scikit_learns(real, perplexity):
    from sklearn.manifold import _utils

    x = real[0]
    p = embedding.neighbor_probabilities(x, perplexity)
    assert torch.allclose(p.sum(1), torch.ones(300).double()) and (p.diagonal() == 0).all()
    assert torch.allclose((torch.special.entr(p).sum(1)).exp(), torch.full((300,), perplexity).double(), rtol=1e-6)
    square = torch.cdist(x.double(), x.double()).square().float().numpy()
    theirs = torch.from_numpy(_utils._binary_search_perplexity(square, perplexity, 0))
    found = torch.special.entr(theirs).sum(1).exp()
    there = (found - perplexity).abs() < 1e-3  # theirs gives up on one row at 1.5
    assert there.sum() >= 299 and torch.allclose(p[there], theirs[there].double(), atol=1e-4)


def test_probabilities_depend_on_ratios_of_distances_only_and_a_hermit_has_as_many_neighbours_as_anyone():
    x = gaussian(30, 4)
    x[0] += 1000
    p = embedding.neighbor_probabilities(x, 4)
    assert torch.allclose(p, embedding.neighbor_probabilities(7 * x, 4), atol=1e-9)
    assert torch.special.entr(p[0]).sum().exp() == pytest.approx(4) and p[1:, 0].max() < 1e-9


def test_equally_near_samples_share_their_probability():
    triangle = torch.tensor([[0.0, 0], [1, 0], [0.5, 0.75**0.5], [50, 50]], dtype=torch.float64)
    p = embedding.neighbor_probabilities(triangle, 1.2)
    assert torch.allclose(p[0, 1:3], torch.full((2,), 0.5).double(), atol=1e-6)


def test_clusters_are_the_groups_that_are_apart_and_noise_is_one_whatever_its_scale():
    x = torch.cat([gaussian(30, 2), gaussian(20, 2, 1) + 90, gaussian(25, 2, 2) - 90])
    assert embedding.clusters(x, gap=12).tolist() == [0] * 30 + [1] * 20 + [2] * 25
    assert torch.equal(embedding.clusters(3 * x + 1, gap=12), embedding.clusters(x, gap=12))
    assert embedding.clusters(x, gap=1000).max() == 0
    line = torch.tensor([[0.0], [1], [2], [5], [6], [20]])  # nearest neighbours at 1, 1, 1, 1, 1, 14
    assert embedding.clusters(line, gap=2).tolist() == [0, 0, 0, 1, 1, 2]
    assert embedding.clusters(line, gap=3).tolist() == [0, 0, 0, 0, 0, 1]


def test_noise_falls_into_groups_on_a_t_sne_of_low_perplexity_and_not_in_its_own_space_or_at_a_high_one():
    count = {2: [], 15: [], "itself": []}
    for seed in range(6):
        x = gaussian(40, 5, seed)
        for perplexity in (2, 15):
            drawn = embedding.embed(
                x, perplexity=perplexity, start="random", generator=torch.Generator().manual_seed(seed)
            )
            count[perplexity].append(int(embedding.clusters(drawn).max()) + 1)
        count["itself"].append(int(embedding.clusters(x).max()) + 1)
    assert min(count[2]) >= 3 and max(count[15]) <= 2 and max(count["itself"]) == 1, count


def test_on_a_t_sne_sizes_of_classes_say_little_gaps_are_wider_than_they_are_and_depend_on_the_seed(real):
    x, labels = real

    def centres(points):
        return torch.stack([points[labels == digit].double().mean(0) for digit in range(10)])

    def radii(points):
        return torch.stack(
            [(points[labels == d].double() - c).norm(dim=1).mean() for d, c in enumerate(centres(points))]
        )

    def gaps(points):
        return torch.pdist(centres(points))

    one, other = (
        embedding.embed(x, perplexity=5, start="random", generator=torch.Generator().manual_seed(seed))
        for seed in (0, 1)
    )
    for drawn in (one, other):
        assert abs(stats.spearmanr(radii(x), radii(drawn))[0]) < 0.6
        assert gaps(drawn).mean() / radii(drawn).mean() > 2 * gaps(x).mean() / radii(x).mean()
    assert stats.spearmanr(gaps(one), gaps(other))[0] < 0.8


# What one sees on a map, confirmed in the original space


def test_purity_of_two_far_groups_is_one_and_of_five_points_that_of_a_hand_calculation():
    labels = torch.tensor([0] * 10 + [1] * 10)
    x = gaussian(20, 3) + 100 * labels[:, None]
    assert torch.equal(embedding.purity(x, labels, k=9), torch.ones(20, dtype=torch.float64))
    assert embedding.purity(x, labels, k=19).mean() == pytest.approx(9 / 19)
    line = torch.tensor([[0.0], [1.0], [3.0], [6.0], [10.0]])
    assert embedding.purity(line, torch.tensor([0, 0, 1, 1, 0]), k=2).tolist() == [0.5, 0.5, 0, 0.5, 0]


def test_the_null_mean_is_the_share_of_pairs_of_one_label_and_its_spread_is_that_of_permutations(real):
    x, labels = real
    test = embedding.purity_test(x, labels, permutations=499, generator=torch.Generator().manual_seed(0))
    sizes = labels.bincount().double()
    pairs = (sizes * (sizes - 1)).sum() / (300 * 299)
    assert test.null_mean == pytest.approx(pairs.item(), abs=4 * test.null_spread / 499**0.5)
    assert test.value == pytest.approx(embedding.purity(x, labels).mean().item())
    assert test.value > 0.9 and test.p == 1 / 500 and test.permutations == 499


def test_the_network_gathers_the_digits_and_an_untrained_one_less(real):
    x, labels = real
    untrained = features.extract(digits.load(pretrained=False), digits.samples("test")[0][:300])
    difference = embedding.purity(x, labels) - embedding.purity(untrained, labels)
    assert difference.mean() > 3 * difference.std() / 300**0.5


def test_neighbours_in_the_features_lean_alike_in_an_untrained_network_too_and_labels_of_no_meaning_stay_silent():
    pictures, labels = (part[500:] for part in digits.samples("test"))
    ink, at = pictures[:, 0], torch.arange(28.0)
    row, column = ((ink.sum(side) * at).sum(1) / ink.sum((1, 2)) for side in (2, 1))
    down, right = at[None, :, None] - row[:, None, None], at[None, None] - column[:, None, None]
    slant = (ink * down * right).sum((1, 2)) / (ink * down**2).sum((1, 2))
    generator = torch.Generator().manual_seed(0)
    small = {"trained": 0, "untrained": 0, "shuffled": 0}
    for name, network in (("trained", digits.load()), ("untrained", digits.load(pretrained=False))):
        x = features.extract(network, pictures)
        for own in (labels == digit for digit in range(10)):
            leans = (slant[own] > slant[own].median()).long()
            small[name] += embedding.purity_test(x[own], leans, k=5, permutations=199, generator=generator).p <= 0.005
            if name == "trained":
                shuffled = leans[torch.randperm(len(leans), generator=generator)]
                test = embedding.purity_test(x[own], shuffled, k=5, permutations=199, generator=generator)
                small["shuffled"] += test.p <= 0.005
    assert min(small["trained"], small["untrained"]) >= 8 and small["shuffled"] <= 1, small


def test_groups_read_off_a_map_of_noise_pass_a_test_on_the_same_numbers_and_not_on_others():
    passed = {"same": 0, "others": 0}
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        x = gaussian(40, 10, seed)
        for name, seen, tested in (("same", x, x), ("others", x[:, :5], x[:, 5:])):
            label = embedding.clusters(embedding.embed(seen, perplexity=2, start="random", generator=generator))
            if label.max() > 0:
                test = embedding.purity_test(tested, label, k=3, permutations=99, generator=generator)
                passed[name] += test.p <= 0.05
    assert passed["same"] >= 5 and passed["others"] <= 2, passed


def test_p_values_are_uniform_when_labels_mean_nothing():
    generator = torch.Generator().manual_seed(3)
    found = []
    for seed in range(300):
        x = gaussian(100, 3, seed)  # few samples have few purities, whose ties make the test conservative
        labels = torch.randint(3, (100,), generator=generator)
        found.append(embedding.purity_test(x, labels, permutations=99, generator=generator).p)
    found = torch.tensor(found)
    assert stats.kstest(found.numpy(), "uniform").pvalue > 0.01
    for level in (0.05, 0.1, 0.2):
        assert (found <= level).double().mean() < level + 2.6 * (level * (1 - level) / 300) ** 0.5


# Bad input


def test_bad_input_is_named_before_any_work():
    x, labels = gaussian(20, 3), torch.arange(20) % 2
    for settings_, message in (
        ({"perplexity": 20.0}, "perplexity must be at least 1 and below the number of samples, 20, got 20"),
        ({"perplexity": 0.5}, "perplexity"),
        ({"method": "isomap", "neighbors": 20}, "neighbors must be from 1 to 19"),
        ({"method": "umap"}, "method must be one of 'pca', 'isomap', 't-sne', got 'umap'"),
        ({"method": "pca", "dimensions": 4}, "dimensions"),
        ({"dimensions": 4}, "dimensions"),
        ({"start": "middle"}, "start"),
    ):
        with pytest.raises(ValueError, match=message):
            embedding.embed(x, **settings_)
    for method in ("pca", "isomap", "t-sne"):
        with pytest.raises(ValueError, match="features must not be the same for all samples"):
            embedding.embed(torch.ones(20, 3), method, perplexity=5)
    with pytest.raises(TypeError, match="generator"):
        embedding.embed(x, generator=0)
    for measure in (embedding.trustworthiness, embedding.continuity):
        with pytest.raises(ValueError, match="k must be from 1 to 9, below half of the 20 samples, got 10"):
            measure(x, x, k=10)
        with pytest.raises(ValueError, match="embedding must have a row for each of the 20 samples, got 19"):
            measure(x, x[1:])
    for bad in (x[0], x.long(), x[:2], x / 0):
        with pytest.raises(ValueError, match="features"):
            embedding.embed(bad)
    with pytest.raises(TypeError, match="features must be a Tensor, got list"):
        embedding.stress([[1.0]], x)
    with pytest.raises(ValueError, match="embedding must not be the same"):
        embedding.stress(x, torch.ones(20, 2))
    for test in (embedding.purity, embedding.purity_test):
        with pytest.raises(ValueError, match="labels must be of at least two classes, got 0 for all 20 samples"):
            test(x, torch.zeros(20, dtype=torch.long))
        with pytest.raises(ValueError, match=r"labels must be a LongTensor \(20,\)"):
            test(x, labels[1:])
        with pytest.raises(ValueError, match="k must be from 1 to 19"):
            test(x, labels, k=20)
    for bad in (0.5, 19.0):
        with pytest.raises(ValueError, match="perplexity must be at least 1 and below the number of others, 19, got"):
            embedding.neighbor_probabilities(x, bad)
    with pytest.raises(ValueError, match="gap must be"):
        embedding.clusters(x, gap=0.0)
    with pytest.raises(ValueError, match="points"):
        embedding.clusters(x[0])
    with pytest.raises(ValueError, match="permutations"):
        embedding.purity_test(x, labels, permutations=0)


def test_a_model_without_the_layer_is_refused_with_those_it_has_and_stays_as_it_was():
    model, x = digits.load(), torch.rand(4, 1, 28, 28)
    before = [values.clone() for values in model.state_dict().values()]
    with pytest.raises(
        ValueError, match=r"layer must be the path of a module of the model, got 'featured.8'.*'features.8'"
    ):
        features.extract(model, x, layer="featured.8")
    features.extract(model, x, layer="features.8", chunk=3)
    assert not model.training and all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))


def test_the_module_loads_neither_scikit_learn_nor_matplotlib():
    import subprocess
    import sys

    code = "import sys, xaicourse.embedding; assert not {'sklearn', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
