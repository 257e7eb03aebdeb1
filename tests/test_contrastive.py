"""Pertinent positives and negatives: closed forms, real digits, independence of items, refusals (lecture 04)."""

import json

import pytest
import torch
from scipy import stats
from torch import nn

from xaicourse import contrastive, digits, gradients, removal, shapley, weights

BOTH = pytest.mark.parametrize("find", [contrastive.pertinent_negative, contrastive.pertinent_positive])


def nothing_is_known(x, removed):
    return x  # each value stands for itself, so that a negative may move it either way


def linear(weight, bias=0.0):
    """Two classes; class 1 is ahead by weight . x + bias."""
    layer = nn.Linear(len(weight), 2).double()
    with torch.no_grad():
        layer.weight.copy_(torch.stack([torch.zeros(len(weight)), torch.as_tensor(weight)]))
        layer.bias.copy_(torch.tensor([0.0, bias]))
    return layer.eval()


@pytest.fixture(scope="module")
def few():
    return digits.load(), digits.samples("test")[0][:12]


@pytest.fixture(scope="module")
def negatives(few):
    return contrastive.pertinent_negative(*few, steps=40, searches=5)


@pytest.fixture(scope="module")
def positives(few):
    return contrastive.pertinent_positive(*few, steps=40, searches=5)


# ------------------------------------------------------------------------------------------------- by hand


def test_the_smallest_change_of_a_linear_classifier_is_its_distance_to_the_boundary_along_the_weights():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, generator=generator, dtype=torch.float64)
    x = torch.full((3, 6), 0.5, dtype=torch.float64) + 0.05 * torch.rand(3, 6, generator=generator, dtype=torch.float64)
    ahead = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    for item, gap in zip(x, ahead, strict=True):
        model = linear(weight, float(gap - weight @ item))
        result = contrastive.pertinent_negative(model, item[None], removal=nothing_is_known, beta=0.0, steps=200)
        closed = -gap * weight / weight.square().sum()
        assert result.found.all()
        assert result.l2.item() == pytest.approx(closed.norm().item(), rel=5e-3)
        assert torch.allclose(result.perturbation[0], closed, atol=0.02 * closed.norm().item())


def test_if_a_negative_may_only_add_its_closed_form_uses_the_weights_that_help():
    weight = torch.tensor([-2.0, 1.0, -1.0], dtype=torch.float64)
    x = torch.full((1, 3), 0.2, dtype=torch.float64)
    model = linear(weight, 0.3 - (weight @ x[0]).item())
    result = contrastive.pertinent_negative(model, x, beta=0.0, steps=200)
    helps = (-weight).clamp(min=0)
    assert torch.allclose(result.perturbation[0], 0.3 * helps / helps.square().sum(), atol=3e-3)


def test_the_first_norm_finds_the_one_weight_that_needs_least():
    weight = torch.tensor([-3.0, -2.0, -2.0, -2.0], dtype=torch.float64)
    x = torch.full((1, 4), 0.2, dtype=torch.float64)
    model = linear(weight, 0.6 - (weight @ x[0]).item())
    sparse = contrastive.pertinent_negative(model, x, beta=5.0, steps=300)
    spread = contrastive.pertinent_negative(model, x, beta=0.0, steps=300)
    assert (sparse.perturbation[0] != 0).tolist() == [True, False, False, False]
    assert sparse.perturbation[0, 0].item() == pytest.approx(0.2, abs=2e-3)
    assert spread.pixels.item() == 4 and spread.l2 < sparse.l2 and spread.l1 > sparse.l1


def test_the_first_norm_keeps_the_one_value_that_alone_holds_the_class():
    x = torch.full((1, 4), 0.8, dtype=torch.float64)
    result = contrastive.pertinent_positive(linear([3.0, 1.0, 1.0, -1.0], -1.5), x, beta=5.0, steps=300)
    assert (result.perturbation[0] != 0).tolist() == [True, False, False, False]
    assert result.perturbation[0, 0].item() == pytest.approx(0.5, abs=5e-3)


def test_the_smallest_part_is_nothing_if_what_stands_for_deleted_has_the_class():
    result = contrastive.pertinent_positive(linear([1.0, 1.0], 0.5), torch.full((1, 2), 0.5, dtype=torch.float64))
    assert result.found.item() and result.pixels.item() == 0 and result.l2.item() == 0


def test_with_kappa_the_class_is_lost_by_that_margin():
    x = torch.full((1, 2), 0.2, dtype=torch.float64)
    result = contrastive.pertinent_negative(linear([-2.0, -2.0], 1.0), x, kappa=0.5, steps=200)
    behind = result.scores_after[0, 0] - result.scores_after[0, 1]
    assert 0.5 <= behind.item() <= 0.51


# ------------------------------------------------------------------------------------------- what is not there


def test_not_finding_one_is_a_result_that_says_so():
    x = torch.tensor([[0.5, 0.5], [0.1, 0.0]], dtype=torch.float64)
    result = contrastive.pertinent_negative(linear([1.0, 1.0], -0.5), x)  # to add only helps class 1
    assert result.found.tolist() == [False, True]
    assert (result.perturbation[0] == 0).all() and torch.equal(result.picture[0], x[0])
    assert result.l1[0].isnan() and result.l2[0].isnan() and result.constant[0].isnan()
    assert result.class_after.tolist() == [1, 1]


def test_no_part_of_an_input_has_a_class_that_it_speaks_against():
    result = contrastive.pertinent_positive(linear([1.0, 1.0], 0.5), torch.full((1, 2), 0.5, dtype=torch.float64), 0)
    assert not result.found.any() and (result.perturbation == 0).all()


# ------------------------------------------------------------------------------------------------ real digits


def test_the_positive_alone_keeps_the_class(few, positives):
    model, x = few
    with torch.no_grad():
        before, after = model(x).argmax(1), model(positives.perturbation).argmax(1)
    assert positives.found.all() and torch.equal(before, after)
    assert (positives.perturbation >= 0).all() and (positives.perturbation <= x).all()
    kept = positives.pixels.double() / (x > 0).flatten(1).sum(1)
    assert kept.median() < 0.9 and (positives.l2 < 0.6 * x.flatten(1).norm(dim=1)).all()


def test_the_negative_flips_the_class(few, negatives):
    model, x = few
    with torch.no_grad():
        before, after = model(x).argmax(1), model(x + negatives.perturbation).argmax(1)
    assert negatives.found.all() and (before != after).all()
    assert torch.equal(before, negatives.class_before) and torch.equal(after, negatives.class_after)
    assert (negatives.perturbation >= 0).all() and (x + negatives.perturbation <= 1 + 1e-6).all()


def test_the_class_that_must_come_comes(few):
    model, x = few
    result = contrastive.pertinent_negative(
        model, x[:6], towards=(model(x[:6]).argmax(1) + 1) % 10, steps=40, searches=5
    )
    assert result.found.sum() >= 5
    assert torch.equal(result.class_after[result.found], ((result.class_before + 1) % 10)[result.found])


@pytest.mark.parametrize("deleted", [removal.baseline(0.3), removal.blur(3.0), removal.mean()])
def test_a_positive_lies_between_deleted_and_the_input_and_a_negative_moves_away(few, deleted):
    model, x = few
    b = deleted(x, torch.ones_like(x, dtype=torch.bool))
    kept = contrastive.pertinent_positive(model, x, removal=deleted, steps=15, searches=3)
    added = contrastive.pertinent_negative(model, x, removal=deleted, steps=15, searches=3)
    assert kept.found.all() and torch.allclose(kept.picture, b + kept.perturbation)
    assert (kept.picture >= torch.minimum(b, x) - 1e-6).all() and (kept.picture <= torch.maximum(b, x) + 1e-6).all()
    assert (added.perturbation * (x - b) >= 0).all()
    assert (added.picture >= -1e-6).all() and (added.picture <= 1 + 1e-6).all()
    black = contrastive.pertinent_positive(model, x, steps=15, searches=3)
    assert not torch.equal(kept.perturbation != 0, black.perturbation != 0)


def test_the_plausibility_term_moves_the_negative_towards_the_autoencoder_and_costs_size(few, negatives):
    model, x = few
    guided = contrastive.pertinent_negative(
        model, x, autoencoder=digits.load("autoencoder"), gamma=10.0, steps=40, searches=5
    )
    without = digits.reconstruction_error(digits.load("autoencoder"), negatives.picture) * 784
    both = guided.found & negatives.found
    assert both.sum() >= 11
    assert (guided.implausibility < without)[both].double().mean() > 0.8
    assert guided.l2[both].median() > negatives.l2[both].median()
    assert torch.allclose(
        guided.implausibility, digits.reconstruction_error(digits.load("autoencoder"), guided.picture) * 784
    )
    assert negatives.implausibility.isnan().all()


def test_judges_that_the_search_has_not_seen_follow_more_often_with_an_autoencoder_and_mostly_do_not():
    stored = json.loads((weights.DATA / "contrasts" / "judges.json").read_text())

    def follow(gamma):
        row = {key: torch.tensor(value) for key, value in stored[gamma].items()}
        judges = torch.stack([row["neighbours"] == row["class"], row["prototypes"] == row["class"]])
        assert row["found"].all() and judges.shape == (2, 400)
        return judges.double()

    gain = (follow("10.0") - follow("0.0")).mean(0)
    assert gain.mean() > 1.96 * gain.std() / 400**0.5
    assert follow("100.0").mean() < 0.4
    own = [torch.tensor(stored["digits"][judge]) for judge in ("neighbours", "prototypes")]
    assert all((judge == torch.tensor(stored["digits"]["class"])).double().mean() > 0.9 for judge in own)


def test_other_starts_give_other_masks_and_the_same_start_the_same(few):
    model, x = few
    seeds = [
        contrastive.pertinent_positive(
            model, x[:2], generator=torch.Generator().manual_seed(seed), steps=15, searches=3
        )
        for seed in (0, 1, 0)
    ]
    assert all(found.found.all() for found in seeds)
    assert not torch.equal(seeds[0].perturbation != 0, seeds[1].perturbation != 0)
    assert torch.equal(seeds[0].perturbation, seeds[2].perturbation)


def test_three_decompositions_are_complete_and_differ(few):
    model, x = few[0], few[1][:5]
    grid = (torch.arange(28) - 4).clamp(0, 19) // 7  # nine patches of where the ink is
    players = grid[:, None] * 3 + grid
    ranks = []
    for item in x.split(1):
        said = int(model(item).argmax())
        with torch.no_grad():
            gap = (model(item) - model(torch.zeros_like(item)))[0, said].item()
        game = shapley.masking_game(model, item, said, players=players, removal=removal.baseline(0.0))
        fair = shapley.exact(game).values.double()
        integrated = gradients.integrated_gradients(model, item, said, steps=256)
        path = torch.zeros(9, dtype=torch.float64).index_add_(0, players.flatten(), integrated.double().flatten())
        one_by_one = game.value(torch.ones(10, 9).tril(-1).bool()).double().diff()  # what each adds, in reading order
        found = torch.stack([fair, path, one_by_one])
        assert torch.allclose(found.sum(1), torch.full((3,), gap, dtype=torch.float64), atol=0.02)
        pairs = ((0, 1), (0, 2), (1, 2))
        assert all((found[a] - found[b]).abs().max() > 0.01 * abs(gap) for a, b in pairs)
        ranks.append([stats.spearmanr(found[a], found[b])[0] for a, b in pairs])
    assert (torch.tensor(ranks).mean(0) < 0.99).all()


# -------------------------------------------------------------------------------------------------- contract


@BOTH
@pytest.mark.parametrize("seed", [None, 3])
def test_a_batch_equals_its_items_one_at_a_time(few, find, seed):
    model, x = digits.load().double(), few[1][:3].double()
    settings = {"steps": 12, "searches": 3, "autoencoder": digits.load("autoencoder").double()}

    def generator():
        return None if seed is None else torch.Generator().manual_seed(seed)

    together = find(model, x, generator=generator(), **settings)
    same = generator()
    alone = [find(model, item[None], generator=same, **settings) for item in x]
    assert together.perturbation.dtype == torch.float64
    assert torch.allclose(together.perturbation, torch.cat([one.perturbation for one in alone]), atol=1e-8)
    assert torch.equal(together.found, torch.cat([one.found for one in alone]))
    chunks = find(model, x, generator=generator(), chunk=2, **settings)
    assert torch.allclose(together.perturbation, chunks.perturbation, atol=1e-8)


@BOTH
def test_the_model_comes_back_as_it_was(few, find):
    model = digits.load()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    find(model, few[1][:2], steps=3, searches=2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training and all(p.requires_grad and p.grad is None for p in model.parameters())


@BOTH
def test_it_works_inside_inference_mode_and_gives_no_graph(few, find):
    with torch.inference_mode():
        found = find(few[0], few[1][:2], steps=3, searches=2)
    assert not found.perturbation.requires_grad and not found.scores_after.requires_grad


def wrong_size(x):
    return x[:, :, 1:]


X = torch.full((2, 1, 28, 28), 0.5)


@BOTH
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"inputs": X + 1}, ValueError, r"inputs must lie in \[0, 1\], got values from 1.5"),
        ({"inputs": X - 1}, ValueError, r"inputs must lie in \[0, 1\]"),
        ({"inputs": X * float("nan")}, ValueError, "inputs must be finite"),
        ({"inputs": X.long()}, TypeError, "inputs must be a tensor of a float dtype"),
        ({"target": 10}, ValueError, "target must be from 0 to 9, got 10"),
        ({"target": -1}, ValueError, "target must be from 0 to 9, got -1"),
        ({"target": torch.tensor([1, 2, 3])}, ValueError, "target must be a LongTensor of shape"),
        ({"target": 1.0}, TypeError, "target must be an int"),
        ({"target": lambda out: out[:, 0]}, TypeError, "target must be an int, a LongTensor or None"),
        ({"beta": -1.0}, ValueError, "beta must be at least 0"),
        ({"gamma": float("inf")}, ValueError, "gamma must be at least 0 and finite"),
        ({"kappa": "1"}, TypeError, "kappa must be a number"),
        ({"rate": 0.0}, ValueError, "rate must be above 0"),
        ({"steps": 0}, ValueError, "steps must be at least 1"),
        ({"searches": 2.0}, TypeError, "searches must be an int"),
        ({"chunk": 0}, ValueError, "chunk must be at least 1"),
        ({"generator": 3}, TypeError, "generator must be a torch.Generator"),
        ({"autoencoder": wrong_size}, ValueError, "autoencoder must give what it was given"),
        ({"autoencoder": lambda x: x.double()}, ValueError, "autoencoder must give what it was given, torch.float32"),
        ({"removal": removal.baseline(2.0)}, ValueError, r"removal must put values in \[0, 1\]"),
        ({"removal": lambda x, removed: x / 0}, ValueError, "what removal returns must be finite"),
        ({"removal": lambda x, removed: x.double()}, ValueError, "removal must return a tensor like the inputs"),
        ({"removal": 0.0}, TypeError, "removal must be a function"),
        ({"model": lambda x: digits.load()(x.detach())}, ValueError, "score does not depend on the inputs"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(784, 1)).eval()}, ValueError, "at least 2 classes"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(784, 3)).train()}, ValueError, "evaluation mode"),
    ],
)
def test_bad_input_is_named(few, find, change, error, message):
    change = dict(change)
    model, inputs = change.pop("model", few[0]), change.pop("inputs", X)
    with pytest.raises(error, match=message):
        find(model, inputs, **change)


def test_a_class_cannot_go_and_come(few):
    with pytest.raises(ValueError, match="towards must differ from target"):
        contrastive.pertinent_negative(few[0], X, 3, towards=3)
    with pytest.raises(ValueError, match="towards must be from 0 to 9, got 12"):
        contrastive.pertinent_negative(few[0], X, 3, towards=12)
