"""Nearest samples against scikit-learn; their values against exact Shapley values of the game that they come from."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors
from torch import nn

from xaicourse import digits, features, neighbors, shapley


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("metric", ["euclidean", "manhattan", "cosine"])
@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_the_nearest_samples_are_scikit_learns(metric, chunk):
    queries, samples = normal(20, 6), normal(90, 6, seed=1)
    found = neighbors.nearest(queries, samples, k=8, metric=metric, chunk=chunk)
    distances, indices = (
        NearestNeighbors(n_neighbors=8, metric=metric, algorithm="brute").fit(samples).kneighbors(queries)
    )
    assert (found.indices.numpy() == indices).all()
    assert torch.allclose(found.distances, torch.from_numpy(distances), atol=1e-12)


def test_of_equally_near_samples_the_first_is_taken_and_a_sample_is_nearest_to_itself():
    samples = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]])
    found = neighbors.nearest(samples, samples, k=2)
    assert found.indices.tolist() == [[0, 2], [1, 3], [0, 2], [1, 3]] and found.distances.abs().max() == 0
    far = 1e4 + normal(5, 3).float() * 1e-2
    assert neighbors.nearest(far, far, k=1).indices[:, 0].tolist() == list(range(5))  # no digits are lost


def voting_game(queries, query_labels, samples, labels, k):
    order = neighbors.nearest(queries, samples, k=len(samples)).indices

    def value(present):
        worth = torch.zeros(len(present), dtype=torch.float64)
        for row, y in zip(order, query_labels, strict=True):
            there = present[:, row]
            votes = there & (there.long().cumsum(1) <= k)
            worth += (votes & (labels[row] == y)).double().sum(1) / k
        return worth / len(queries)

    return shapley.Game(value, len(samples))


@given(seed=st.integers(0, 2**16), k=st.integers(1, 10), classes=st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_the_closed_form_is_the_exact_shapley_value_of_the_vote(seed, k, classes):
    generator = torch.Generator().manual_seed(seed)
    queries, samples = normal(4, 3, seed=seed), normal(10, 3, seed=seed + 1)
    y, labels = (torch.randint(classes, (n,), generator=generator) for n in (4, 10))
    found = neighbors.shapley_values(queries, y, samples, labels, k=k, chunk=3)
    exact = shapley.exact(voting_game(queries, y, samples, labels, k))
    assert torch.allclose(found, exact.values, atol=1e-12)
    assert torch.isclose(found.sum(), exact.total, atol=1e-12)


def test_one_nearest_neighbour_and_three_samples_by_hand():
    samples, labels = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([0, 1, 1])
    found = neighbors.shapley_values(torch.zeros(1, 1), torch.tensor([1]), samples, labels, k=1)
    # worth 1 if the nearest of those that are there has label 1: {2}, {3}, {2, 3}; sample 1 in front spoils it
    assert torch.allclose(found, torch.tensor([-2 / 3, 1 / 3, 1 / 3], dtype=torch.float64))


def test_mislabelled_digits_have_the_lowest_values():
    pictures, labels = (part[:600] for part in digits.samples("train"))
    tests, truth = (part[:300] for part in digits.samples("test"))
    z, q = (features.extract(digits.load(), part) for part in (pictures, tests))
    planted = torch.randperm(600, generator=torch.Generator().manual_seed(0))[:20]
    wrong = labels.clone()
    wrong[planted] = (labels[planted] + 1 + torch.arange(20) % 9) % 10
    worth = neighbors.shapley_values(q, truth, z, wrong, k=5)
    lowest = set(worth.argsort()[:30].tolist())
    assert len(lowest & set(planted.tolist())) >= 16
    clean = neighbors.shapley_values(q, truth, z, labels, k=5)  # the control: the same digits, rightly labelled
    assert len(set(clean.argsort()[:30].tolist()) & set(planted.tolist())) <= 5


def test_training_without_a_sample_leaves_it_out_and_nothing_else():
    x, y = normal(12, 3), torch.arange(12) % 2
    kept = []

    def fit(indices):
        kept.append(indices.tolist())
        weight = torch.linalg.lstsq(x[indices], y[indices, None].double()).solution
        return lambda z: z @ weight

    removed = [torch.tensor([], dtype=torch.long), torch.tensor([3]), torch.tensor([0, 5, 5])]
    found = neighbors.retrain_without(fit, 12, removed, normal(1, 3, seed=2), 0)
    assert kept == [list(range(12)), [i for i in range(12) if i != 3], [i for i in range(12) if i not in (0, 5)]]
    assert found.shape == (3,) and len(found.unique()) == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"queries": torch.zeros(2, 3).long()}, "queries must be a tensor of a float dtype"),
        ({"samples": torch.zeros(5, 4)}, "samples must have the width, dtype and device of queries"),
        ({"samples": torch.zeros(0, 3)}, "samples must have shape"),
        ({"samples": torch.full((5, 3), torch.nan)}, "samples"),
        ({"k": 6}, "k .*at most 5|k must be"),
        ({"k": 0}, "k must be"),
        ({"metric": "hamming"}, "metric must be one of 'euclidean', 'manhattan', 'cosine', got 'hamming'"),
        ({"metric": "cosine", "samples": torch.zeros(5, 3)}, "samples: the cosine needs vectors of some length; row 0"),
        ({"labels": torch.zeros(4).long()}, "labels must be a LongTensor of shape \\(5,\\)"),
        ({"query_labels": torch.zeros(2)}, "query_labels must be a LongTensor"),
    ],
)
def test_bad_input_is_named(change, said):
    given = {
        "queries": torch.ones(2, 3), "query_labels": torch.zeros(2).long(), "samples": torch.ones(5, 3),
        "labels": torch.zeros(5).long(), "k": 2, "metric": "euclidean",
    } | change  # fmt: skip
    with pytest.raises((TypeError, ValueError), match=said):
        neighbors.shapley_values(**given)


def test_bad_sets_to_remove_are_named():
    fit, query = (lambda indices: nn.Linear(3, 2).eval()), torch.zeros(1, 3)
    for removed, said in (
        ([[1]], r"removed\[0\] must be a LongTensor"),
        ([torch.tensor([7])], r"removed\[0\] must be indices from 0 to 3"),
        ([torch.arange(4)], r"removed\[0\] must leave at least one sample"),
    ):
        with pytest.raises((TypeError, ValueError), match=said):
            neighbors.retrain_without(fit, 4, removed, query, 0)
    with pytest.raises(ValueError, match="query must be one input"):
        neighbors.retrain_without(fit, 4, [], torch.zeros(2, 3), 0)


def test_another_layer_names_other_neighbours_and_later_ones_are_of_the_same_digit_more_often():
    (pictures, labels), (tests, truth) = (tuple(part[:300] for part in digits.samples(s)) for s in ("train", "test"))
    pure, found = [], []
    for layer in ("features.2", "features.5", None):
        z, q = (features.extract(digits.load(), x, layer=layer, pool=False) for x in (pictures, tests))
        found.append(neighbors.nearest(q, z, k=10).indices)
        pure.append((labels[found[-1]] == truth[:, None]).double().mean().item())
    assert pure == sorted(pure) and pure[2] > pure[0] + 0.05
    shared = (found[0][:, :, None] == found[2][:, None]).any(2).double().mean()
    assert shared < 0.6


def test_training_without_the_nearest_samples_costs_more_than_without_random_ones_of_the_class():
    (pictures, labels), (tests, truth) = (
        tuple(part[:n] for part in digits.samples(s)) for s, n in (("train", 800), ("test", 30))
    )
    z, q = (features.extract(digits.load(), x) for x in (pictures, tests))
    x = pictures.flatten(1).double()

    def fit(kept):  # ridge regression on the labels
        inputs, wanted = x[kept], nn.functional.one_hot(labels[kept], 10).double()
        weight = torch.linalg.solve(inputs.T @ inputs + 10 * torch.eye(784).double(), inputs.T @ wanted)
        return lambda picture: picture.flatten(1).double() @ weight

    generator, more = torch.Generator().manual_seed(0), []
    for number, answer in enumerate(truth.tolist()):
        of_class = (labels == answer).nonzero()[:, 0]
        near = neighbors.nearest(q[number : number + 1], z, k=30).indices[0]
        random = of_class[torch.randperm(len(of_class), generator=generator)[:30]]
        scores = neighbors.retrain_without(fit, 800, [near, random], tests[number : number + 1], answer)
        more.append(scores[1] - scores[0])
    more = torch.stack(more)
    assert more.mean() > 2 * more.std() / len(more) ** 0.5
