"""The miniature's sets are split by photograph, and its planted trace and its fooled detector are what they are said to be."""

import pytest
import torch

from xaicourse.forensics import ablation, channels, colour, detectors, generators, miniature, patches
from xaicourse.forensics.miniature import Pair, Sets

COUNTS = {"train": 30, "validation": 12, "test": 10}


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(miniature, "_COUNTS", COUNTS)


@pytest.fixture(scope="module")
def made() -> dict[str, generators.Autoencoder]:
    """Generators of one step; at the trained ones of ``conftest.py`` there is one kind alone."""
    photographs = patches.split(3)[0]
    return {kind: generators.train(kind, photographs, seed=3, steps=1) for kind in generators.KINDS}


def test_sets_hold_patches_of_each_parts_own_photographs(few, made):
    sets = miniature.sets(3, made)
    train, validation, test = patches.split(3)
    assert not {*train} & {*validation} and not {*train, *validation} & {*test}
    tested = sets.test[miniature.SEEN]
    for names, pair, count in zip(
        (train, validation, test), (sets.train, sets.validation, tested), (30, 12, 10), strict=True
    ):
        assert pair.real.shape == pair.fake.shape == (count, 3, 32, 32)
        # every patch is found, pixel by pixel, in one of the part's photographs and in none of the others
        for patch, name in zip(pair.real[:6], names * 6, strict=False):
            assert _holds(name, patch)
        assert not any(_holds(name, pair.real[0]) for name in patches.PHOTOGRAPHS if name not in names)


def _holds(name: str, patch: torch.Tensor) -> bool:
    photograph = patches._halved(name)
    rows = photograph.unfold(2, patches.SIZE, 1)[:, : -patches.SIZE + 1]  # (3, places down, places across, 32)
    return any(bool((rows == p[:, None, None, 0]).all(0).all(-1).any()) for p in (patch, patch.flip(-1)))


def test_all_generators_make_counterfeits_near_the_same_real_patches(few, made):
    sets = miniature.sets(3, made)
    assert sets.seen == miniature.SEEN and set(sets.test) == set(generators.KINDS)
    reals = [pair.real for pair in sets.test.values()]
    assert all(real is reals[0] for real in reals), "one set, so that it is looked at once"
    fakes = [pair.fake for pair in sets.test.values()]
    assert not any(torch.equal(a, b) for at, a in enumerate(fakes) for b in fakes[at + 1 :])
    for fake in fakes:
        assert torch.equal(fake, patches.quantise(fake)), "as a file would have them"


def test_counterfeits_are_made_from_their_own_real_patches(few, made):
    """A generator that gives codes back as they are shows whose code it got."""

    class Same(torch.nn.Module):
        encoder = decoder = torch.nn.Identity()

    sets = miniature.sets(3, {kind: Same().eval() for kind in generators.KINDS})
    for pair in (sets.train, sets.validation, *sets.test.values()):
        distances = torch.cdist(pair.fake.flatten(1), pair.real.flatten(1))
        assert torch.equal(distances.argmin(1), torch.arange(len(pair.real)))


def test_sets_are_the_same_for_a_seed_and_others_for_another(few, made):
    a, b, c = (miniature.sets(seed, made) for seed in (3, 3, 4))
    assert torch.equal(a.train.fake, b.train.fake) and torch.equal(a.test["nearest"].fake, b.test["nearest"].fake)
    assert not torch.equal(a.train.real, c.train.real)


def test_generators_are_trained_once_on_the_training_photographs_and_read_back(tmp_path, monkeypatch):
    asked, train = [], generators.train

    def one_step(kind, photographs, *, seed, progress):
        asked.append((kind, photographs, seed))
        return train(kind, photographs, seed=seed, steps=1)

    monkeypatch.setattr(generators, "train", one_step)
    first = miniature.autoencoders(6, tmp_path)
    assert asked == [(kind, patches.split(6)[0], 6) for kind in generators.KINDS]
    second = miniature.autoencoders(6, tmp_path)
    assert len(asked) == 4, "nothing is trained again"
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for kind, model in first.items():
        assert model.kind == kind and not model.training
        assert torch.equal(model(x), second[kind](x))
    (tmp_path / "nearest.pt").write_bytes(b"half")  # cut off while it was written
    third = miniature.autoencoders(6, tmp_path)
    assert [kind for kind, *_ in asked[4:]] == ["nearest"]
    assert torch.equal(third["nearest"](x), first["nearest"](x))


# ------------------------------------------------------------------------------------------------------------
# The planted trace
# ------------------------------------------------------------------------------------------------------------


def test_outranking_by_hand():
    names = (("a", 2), ("b", 1), ("a", 3), ("b", 0), ("a", 0), ("a", 1))
    relevance = torch.tensor([0.6, 0.5, 0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    # layer a: by tuning 2 and 3 are the upper half, and win all four comparisons; layer b: channel 0 is tuned, and loses
    tuned = {"a": torch.tensor([-0.9, -0.5, 0.1, 0.2]), "b": torch.tensor([0.3, -0.3])}

    def of(relevance, tuned):
        return miniature.outrank(channels.Ranking(names, relevance, 1, "of a test"), tuned)

    assert of(relevance, tuned) == 0.5
    assert of(relevance, {"a": tuned["a"]}) == 1.0
    assert of(torch.ones(6, dtype=torch.float64), tuned) == 0.5, "a tie is half a win"


@pytest.fixture(scope="module")
def planted():
    """Both arms of one seed; the trace is three times as strong as by default, so that 40 steps do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(miniature, "_PLANTED", (250, 60, 60))
        return {artefact: miniature.planted(0, artefact, steps=40, strength=0.1) for artefact in colour.ARTEFACTS}


def test_channels_tuned_to_colour_outrank_where_the_trace_is_colour(planted):
    assert planted["chroma"]["precision"] > 0.9 and planted["luma"]["precision"] > 0.9
    assert planted["chroma"]["outrank"] > 0.57
    assert planted["chroma"]["outrank"] > planted["luma"]["outrank"] + 0.1
    assert planted["chroma"]["outrank"] > planted["chroma"]["random"] + 0.05
    for found in planted.values():
        assert abs(found["random"] - 0.5) < 0.15
        assert (found["steps"], found["strength"]) == (40, 0.1)


def test_a_trace_that_is_not_learned_is_not_ranked(monkeypatch):
    monkeypatch.setattr(miniature, "_PLANTED", (40, 40, 40))
    with pytest.raises(ValueError, match="at chance"):
        miniature.planted(0, "luma", steps=1, strength=1e-6)
    with pytest.raises(ValueError, match="artefact must be one of chroma, luma, got 'red'"):
        miniature.planted(0, "red", steps=1)


# ------------------------------------------------------------------------------------------------------------
# The fooled detector
# ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def fooled(trained):
    pair, few = Pair(trained.real, trained.fake), Pair(trained.real[:50], trained.fake[:50])
    sets = Sets("transposed", pair, few, {"transposed": few})
    cut = detectors.threshold(
        detectors.logits(trained.detector, pair.real), detectors.logits(trained.detector, pair.fake)
    )
    assert generators.codes(trained.autoencoder, pair.real).abs().max() > 1, (
        "codes are not in the box that pixels are in"
    )
    before = [trained.detector(pair.fake), trained.autoencoder(pair.real)]
    found = miniature.fooled(4, trained.autoencoder, trained.detector, sets, cut, ks=(1, 64))
    assert torch.equal(trained.detector(pair.fake), before[0]) and torch.equal(
        trained.autoencoder(pair.real), before[1]
    )
    again = miniature.fooled(4, trained.autoencoder, trained.detector, sets, cut, ks=(1,))
    assert found["random"]["1"] == again["random"]["1"], "draws are of the seed"
    return found


def test_every_kind_and_number_of_channels_is_detected_and_distorted_so_much(fooled):
    assert set(fooled) == {"whole", *ablation.KINDS}
    assert fooled["whole"] > 0.8, "counterfeits are detected before anything is ablated"
    for kind in ablation.KINDS:
        assert set(fooled[kind]) == {"1", "64"}
        assert all(set(found) == {"detected", "distortion"} for found in fooled[kind].values())
    # all 64 channels of the generator are the same whoever chooses them: the picture is black
    assert len({(found["64"]["detected"], found["64"]["distortion"]) for found in map(fooled.get, ablation.KINDS)}) == 1
    assert 0 <= fooled["top"]["1"]["distortion"] < fooled["top"]["64"]["distortion"]
