"""What lecture 09 claims about averages of gradients, on the course's real network, and on what data/smoothing/ holds."""

import json
import math
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xaicourse import evaluation, gradients, images, lime, models, scores

DATA = Path(__file__).parent.parent / "data" / "smoothing"


@cache
def network() -> nn.Module:
    return models.load()


@cache
def photograph(name: str) -> tuple[Tensor, int]:
    x = models.transform()(images.load(name))[None]
    with torch.no_grad():
        return x, int(network()(x).argmax())


def stored(file: str) -> list[dict]:
    return json.loads((DATA / file).read_text())


def strength(relevance: Tensor) -> Tensor:
    return relevance.abs().sum(1, keepdim=True)


def test_smoothgrad_makes_the_map_of_the_rocket_less_grainy_and_that_of_chelsea_not():
    grain = {}
    for name in ("rocket", "chelsea"):
        x, y = photograph(name)
        R = gradients.smoothgrad(network(), x, y, noise=0.15, samples=32, generator=torch.Generator().manual_seed(7))
        plain = gradients.gradient(network(), x, y)
        grain[name] = (evaluation.noisiness(strength(R)) / evaluation.noisiness(strength(plain))).item()
    assert grain["rocket"] < 0.8 and grain["chelsea"] > 0.9


def test_averaging_n_noisy_gradients_divides_their_variance_by_n_and_others_foretell_their_agreement():
    x, y = photograph("rocket")
    x = x[..., 64:160, 64:160]  # a part of it, so that the test is short
    generator = torch.Generator().manual_seed(7)
    noisy = x + 0.15 * (x.max() - x.min()) * torch.randn(96, *x.shape[1:], generator=generator)
    G = torch.cat([scores.gradient(network(), part, y)[1] for part in noisy.split(16)]).flatten(1).double()
    some, others = G.split([32, 64])
    gram = some @ some.T
    rho = ((gram.sum() - gram.trace()) / 31 / gram.trace()).item()
    for n in (4, 16, 32):
        means = torch.stack([part.mean(0) for part in others.split(n)])
        agreement = F.cosine_similarity(means[0::2], means[1::2]).mean().item()
        assert agreement == pytest.approx(n * rho / (1 + (n - 1) * rho), abs=0.1)
        difference = (means[0::2] - means[1::2]).square().mean().item()
        expected = 2 * (gram.trace() / 32 * (1 - rho)).item() / G.shape[1] / n
        assert difference == pytest.approx(expected, rel=0.15)
    sizes = [strength(part.mean(0).view(1, *x.shape[1:])).flatten() for part in others.split(32)]
    drawn = torch.corrcoef(torch.stack(sizes))[0, 1].item()
    assert drawn > agreement + 0.1, "what is drawn, the size, is steadier than the gradient"


def test_what_is_stored_about_smoothgrad_follows_the_same_formula():
    rows = stored("smoothgrad.json")
    assert {row["photograph"] for row in rows} == set(images.names()) and len(rows) == 3 * len(images.names())
    for row in rows:
        rho = row["rho_1"]
        assert row["agreement"]["128"] == pytest.approx(128 * rho / (1 + 127 * rho), abs=0.03)
        plain = evaluation.noisiness(strength(gradients.gradient(network(), *photograph(row["photograph"])))).item()
        assert row["grain_of_gradient"] == pytest.approx(plain, rel=0.02), "the file is of this network"


@pytest.mark.parametrize("baseline", ["black", "gray"])
def test_integrated_gradients_reach_completeness_to_one_per_cent_by_adding_points(baseline):
    x, y = photograph("coffee")
    start = models.pixel_range()[0] if baseline == "black" else torch.zeros(1, 3, 1, 1)
    found = gradients.integrate(network(), x, y, baseline=start, steps="auto", tolerance=0.01)
    with torch.no_grad():
        difference = (network()(x) - network()(start.expand_as(x)))[0, y].item()
    assert found.relevance.sum().item() == pytest.approx(difference, rel=0.01)
    (row,) = (r for r in stored("completeness.json") if (r["photograph"], r["baseline"]) == ("coffee", baseline))
    assert row["difference"] == pytest.approx(difference, rel=1e-3), "the file is of this network"


def test_completeness_is_stored_for_every_photograph_and_both_baselines_and_holds_to_one_per_cent():
    rows = stored("completeness.json")
    assert {(r["photograph"], r["baseline"]) for r in rows} == {
        (n, b) for n in images.names() for b in ("black", "gray")
    }
    assert all(abs(row["sum"] - row["difference"]) <= 0.01 * abs(row["difference"]) for row in rows)


def test_the_rule_whose_sum_is_better_can_have_the_worse_map():
    x, y = photograph("chelsea")
    black = models.pixel_range()[0]
    with torch.no_grad():
        difference = (network()(x) - network()(black.expand_as(x)))[0, y].item()
    reference = torch.load(DATA / "reference.pt")["chelsea"].float()
    assert reference.sum().item() == pytest.approx(difference, rel=0.02)
    sums, maps = {}, {}
    for rule in ("right", "gausslegendre"):
        R = gradients.integrated_gradients(network(), x, y, baseline=black, steps=64, quadrature=rule)
        sums[rule] = abs(R.sum().item() / difference - 1)
        maps[rule] = ((R - reference).norm() / reference.norm()).item()
    assert sums["right"] < sums["gausslegendre"] and maps["right"] > maps["gausslegendre"]


def test_as_points_are_added_the_map_improves_steadily_and_its_sum_jumps():
    rows = stored("quadrature.json")
    assert {row["photograph"] for row in rows} == set(images.names())
    falls = {
        what: sum(
            row[what][rule]["16"] > row[what][rule]["32"] > row[what][rule]["64"] for row in rows for rule in row[what]
        )
        for what in ("sum", "map")
    }
    assert falls["map"] >= 20 > 16 > falls["sum"]
    x, y = photograph("hubble")
    (row,) = (row for row in rows if row["photograph"] == "hubble")
    black = models.pixel_range()[0]
    R = gradients.integrated_gradients(network(), x, y, baseline=black, steps=16, quadrature="right")
    with torch.no_grad():
        difference = (network()(x) - network()(black.expand_as(x)))[0, y].item()
    assert abs(R.sum().item() / difference - 1) == pytest.approx(row["sum"]["right"]["16"], abs=0.02), "this network"


def test_what_equals_the_baseline_gets_no_relevance():
    x, y = photograph("camera")
    black, white = models.pixel_range()
    coat = (models.denormalize(x).mean(1, keepdim=True) < 0.1).float()
    share = [
        ((strength(R) * coat).sum() / strength(R).sum()).item()
        for R in (gradients.integrated_gradients(network(), x, y, baseline=b, steps=16) for b in (black, white))
    ]
    assert share[0] < 0.5 * share[1]


def test_lime_is_steadier_with_more_samples_and_unstable_with_few():
    x, y = photograph("coffee")
    segments = lime.slic(x, segments=20)
    found = [
        lime.spread(
            network(), x, y, segments=segments, samples=n, runs=3, generator=torch.Generator().manual_seed(7)
        ).rank_correlation.item()
        for n in (40, 160)
    ]
    assert found[0] < 0.8 and found[0] < found[1]
    rows = {(row["photograph"], row["samples"]): row for row in stored("lime.json")}
    more = [rows[name, 300]["rank_correlation"] - rows[name, 100]["rank_correlation"] for name in images.names()]
    assert all(gain > 0 for gain in more)
    assert all(math.isfinite(row["r2"]) and row["r2"] < 1 for row in rows.values())


def test_guided_backpropagation_draws_the_same_picture_for_another_class_and_the_gradient_does_not():
    x, y = photograph("chelsea")
    alike = {}
    for method in (gradients.gradient, gradients.guided_backprop):
        maps = [strength(method(network(), x, target)).flatten() for target in (y, (y + 500) % 1000)]
        alike[method.__name__] = torch.corrcoef(torch.stack(maps))[0, 1].item()
    assert alike["guided_backprop"] > 0.95 > alike["gradient"] + 0.1
