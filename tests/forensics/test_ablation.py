import copy
import dataclasses
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from xaicourse.forensics import ablation, channels, detectors, patches

from .networks import same_state, settled, state


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def outputs(model: nn.Module, x: torch.Tensor, paths: list[str]) -> dict[str, torch.Tensor]:
    """What modules give out, as whoever comes after them sees it."""
    found: dict[str, torch.Tensor] = {}
    handles = [
        model.get_submodule(path).register_forward_hook(lambda _m, _x, y, path=path: found.update({path: y.clone()}))
        for path in paths
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return patches.crop(patches.PHOTOGRAPHS, 9, generator=seeded(1))


@pytest.fixture
def detector() -> detectors.Detector:
    return settled(detectors.build("small", seed=2))


CHOSEN = [("backbone.4", 3), ("backbone.4", 31), ("backbone.10", 0)]


# ------------------------------------------------------------------------------------------------------------
# Switching off
# ------------------------------------------------------------------------------------------------------------


def test_after_the_batch_norm_the_channels_are_zero_and_the_others_as_they_were(detector, x):
    norms = list(channels.norms(detector))
    plain = outputs(detector, x, norms)
    with ablation.ablated(detector, CHOSEN[:2]) as same_model:
        assert same_model is detector
        found = outputs(detector, x, norms)
    kept = [at for at in range(32) if at not in (3, 31)]
    assert (found["backbone.4"][:, [3, 31]] == 0).all()
    assert torch.equal(found["backbone.4"][:, kept], plain["backbone.4"][:, kept])
    assert (plain["backbone.4"][:, [3, 31]] != 0).any()
    assert torch.equal(found["backbone.1"], plain["backbone.1"])
    assert not torch.equal(found["backbone.7"], plain["backbone.7"])


def test_before_the_batch_norm_the_channel_becomes_its_constant(detector, x):
    plain = outputs(detector, x, ["backbone.4"])["backbone.4"]
    with ablation.ablated(detector, CHOSEN[:2], where="before"):
        found = outputs(detector, x, ["backbone.4"])["backbone.4"]
    norm = detector.backbone[4]
    for channel in (3, 31):
        gamma, beta, mean, variance = (
            t[channel].item() for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        )
        constant = beta - gamma * mean / (variance + norm.eps) ** 0.5
        torch.testing.assert_close(found[:, channel], torch.full_like(found[:, channel], constant))
        assert abs(constant) > 1e-3
    kept = [at for at in range(32) if at not in (3, 31)]
    assert torch.equal(found[:, kept], plain[:, kept])


def test_ablation_is_what_setting_weights_by_hand_does(detector, x):
    with torch.no_grad():
        for path, channel in CHOSEN:  # constants above 0, which the ReLU after them lets through
            norm = detector.get_submodule(path)
            norm.bias[channel] = (
                0.3 + norm.weight[channel] * norm.running_mean[channel] / norm.running_var[channel] ** 0.5
            )
        after, before = copy.deepcopy(detector), copy.deepcopy(detector)
        for path, channel in CHOSEN:
            at = int(path.split(".")[1])
            after.backbone[at].weight[channel] = after.backbone[at].bias[channel] = 0
            before.backbone[at - 1].weight[channel] = 0
        for where, by_hand in (("after", after), ("before", before)):
            with ablation.ablated(detector, CHOSEN, where=where):
                torch.testing.assert_close(detector(x), by_hand(x))
        assert (after(x) - before(x)).abs().max() > 1e-5


@pytest.mark.parametrize("where", ["after", "before"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_comes_back_as_it_was_whatever_happens(detector, x, where, fails):
    mine = detector.backbone[4].register_forward_hook(lambda _m, _x, _y: None)
    before, plain = state(detector), detector(x)
    try:
        with ablation.ablated(detector, CHOSEN, where=where):
            assert not torch.equal(detector(x), plain)
            assert hooks(detector) == 3
            if fails:
                raise RuntimeError("in the middle")
    except RuntimeError:
        assert fails
    assert hooks(detector) == 1
    assert same_state(before, state(detector))
    assert torch.equal(detector(x), plain)
    assert not detector.training
    mine.remove()


def test_ablations_within_one_another_add_up(detector, x):
    with ablation.ablated(detector, CHOSEN):
        together = detector(x)
    with ablation.ablated(detector, CHOSEN[:1]), ablation.ablated(detector, CHOSEN[1:]):
        assert torch.equal(detector(x), together)
    with ablation.ablated(detector, CHOSEN + CHOSEN):
        assert torch.equal(detector(x), together)
    with ablation.ablated(detector, []):
        assert not torch.equal(detector(x), together)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ([("backbone.4", 32)], r"got \('backbone.4', 32\); there are backbone.1 \(0 to 31\), "),
        ([("backbone.4", -1)], "channels must be of the model's batch norms"),
        ([("backbone.4", 1), ("backbone.3", 0)], r"got \('backbone.3', 0\)"),
        ([("layer1.bn1", 0)], r"got \('layer1.bn1', 0\)"),
    ],
)
def test_channels_that_the_model_does_not_have_are_refused(detector, chosen, message):
    with pytest.raises(ValueError, match=message), ablation.ablated(detector, chosen):
        pass
    assert not hooks(detector)


def test_another_place_is_refused(detector):
    with (
        pytest.raises(ValueError, match="where must be 'after' or 'before'"),
        ablation.ablated(detector, CHOSEN, where="between"),
    ):
        pass


# ------------------------------------------------------------------------------------------------------------
# Choosing
# ------------------------------------------------------------------------------------------------------------


def ranked(seed: int) -> channels.Ranking:
    """A ranking of 4 + 10 + 26 channels in an order of its own."""
    known = [(path, at) for path, n in (("b", 4), ("a", 10), ("c.0", 26)) for at in range(n)]
    order = torch.randperm(40, generator=seeded(seed)).tolist()
    relevance = torch.linspace(1, 0, 40, dtype=torch.float64)
    return channels.Ranking(tuple(known[at] for at in order), relevance, 7, "a model")


@given(st.integers(1, 40), st.integers(0, 10**6))
def test_every_kind_chooses_k_different_channels(k, seed):
    ranking = ranked(seed)
    for kind in ablation.KINDS:
        chosen = ablation.choose(ranking, k, kind, generator=seeded(seed))
        assert len(chosen) == len(set(chosen)) == k
        assert set(chosen) <= set(ranking.channels)
    assert ablation.choose(ranking, k, "top") == list(ranking.channels[:k])
    assert ablation.choose(ranking, k, "low") == list(ranking.channels[40 - k :])


@given(st.integers(1, 40), st.integers(0, 10**6))
def test_layer_matched_has_as_many_of_each_layer_as_the_top_k(k, seed):
    ranking = ranked(seed)
    matched = ablation.choose(ranking, k, "layer-matched", generator=seeded(seed))
    assert Counter(path for path, _ in matched) == Counter(path for path, _ in ranking.top(k))


def test_random_channels_depend_on_the_generator_and_not_on_the_ranking():
    first = ablation.choose(ranked(0), 12, "random", generator=seeded(5))
    assert first == ablation.choose(ranked(1), 12, "random", generator=seeded(5))
    assert first != ablation.choose(ranked(0), 12, "random", generator=seeded(6))


def test_layer_matched_channels_depend_on_the_ranking_by_the_counts_alone():
    ranking = ranked(3)
    backwards = {path: [c for c in ranking.channels if c[0] == path][::-1] for path in ("a", "b", "c.0")}
    order = tuple(backwards[path].pop(0) for path, _ in ranking.channels)
    other = dataclasses.replace(ranking, channels=order)
    assert other.channels[:9] != ranking.channels[:9]
    chosen = [ablation.choose(r, 9, "layer-matched", generator=seeded(2)) for r in (ranking, other)]
    assert chosen[0] == chosen[1]


def test_random_draws_take_every_channel_equally_often():
    counts = Counter(c for s in range(400) for c in ablation.choose(ranked(0), 10, "random", generator=seeded(s)))
    assert len(counts) == 40
    assert min(counts.values()) >= 65  # 100 expected, standard deviation 8.7
    assert max(counts.values()) <= 135
    matched = Counter(
        c for s in range(400) for c in ablation.choose(ranked(0), 10, "layer-matched", generator=seeded(s))
    )
    per_layer = Counter(path for path, _ in ranked(0).top(10))
    for path, size in (("b", 4), ("a", 10), ("c.0", 26)):
        for at in range(size):
            expected = 400 * per_layer[path] / size
            assert abs(matched[path, at] - expected) <= 45


@pytest.mark.parametrize("kind", ablation.KINDS)
def test_k_beyond_the_channels_is_refused(kind):
    with pytest.raises(ValueError, match="k must be from 1 to 40"):
        ablation.choose(ranked(0), 41, kind)


def test_what_cannot_be_chosen_by_is_refused():
    with pytest.raises(ValueError, match="kind must be one of top, random, layer-matched, low, got 'best'"):
        ablation.choose(ranked(0), 3, "best")
    with pytest.raises(TypeError, match="generator must be"):
        ablation.choose(ranked(0), 3, "random", generator=5)


# ------------------------------------------------------------------------------------------------------------
# What the ranking says
# ------------------------------------------------------------------------------------------------------------


def planted_detector(decisive: int) -> nn.Module:
    """Eight channels read brightness; one of them alone decides: its weight is 30, the others' are a thousandth of that."""
    model = detectors.build("small")
    convolution = nn.Conv2d(3, 8, 1, bias=False)
    model.backbone = nn.Sequential(
        convolution, nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1)
    )
    with torch.no_grad():
        convolution.weight.fill_(1 / 3)
        model.backbone[1].bias.fill_(1)  # brightness 2 x - 1, above 0
        model.backbone[5].weight.fill_(0.03)
        model.backbone[5].weight[0, decisive] = 30
        model.backbone[5].bias.fill_(-20)
    return model.eval()


@pytest.mark.parametrize("decisive", [0, 5])
def test_without_the_one_channel_that_decides_the_detector_is_blind_and_without_others_it_is_not(decisive):
    model = planted_detector(decisive)
    real, fake = torch.rand(2, 20, 3, 16, 16, generator=seeded(0)) * 0.2
    fake = fake + 0.7
    plain = detectors.quality(detectors.logits(model, real), detectors.logits(model, fake), 0.0)
    assert (plain.real, plain.fake) == (1, 1)
    ranking = channels.rank(model, fake)
    assert ranking.top(1) == [("backbone.1", decisive)]
    for kind, k, seen in (("top", 1, 0), ("low", 1, 1), ("low", 7, 1), ("low", 8, 0)):
        with ablation.ablated(model, ablation.choose(ranking, k, kind)):
            found = detectors.quality(detectors.logits(model, real), detectors.logits(model, fake), 0.0)
        assert (found.real, found.fake) == (1, seen), (kind, k)


def test_a_trained_detector_loses_more_with_the_top_channels_than_with_the_lowest(trained):
    ranking = channels.rank(trained.detector, trained.fake)
    lost = {}
    plain = detectors.logits(trained.detector, trained.fake)
    for kind in ("top", "low"):
        with ablation.ablated(trained.detector, ablation.choose(ranking, 20, kind)):
            lost[kind] = (plain - detectors.logits(trained.detector, trained.fake)).mean().item()
    assert lost["top"] > 5 * abs(lost["low"])
