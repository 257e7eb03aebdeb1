import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import chi2, median_test, wilcoxon
from torch import nn

from xaicourse.forensics import channels, colour, detectors, patches

from .networks import same_state, settled, state

LUMA = torch.tensor([0.299, 0.587, 0.114])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return patches.crop(patches.PHOTOGRAPHS, 36, generator=seeded(5))


@pytest.fixture(scope="module")
def detector() -> detectors.Detector:
    return settled(detectors.build("small", seed=3))


def every(model: nn.Module) -> list[channels.Channel]:
    return [(path, at) for path, norm in channels.norms(model).items() for at in range(norm.num_features)]


# ------------------------------------------------------------------------------------------------------------
# Activations
# ------------------------------------------------------------------------------------------------------------


def maxima_by_hand(model: detectors.Detector, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Module by module, one picture at a time."""
    found: dict[str, list[list[float]]] = {}
    with torch.no_grad():
        for picture in x:
            y = 2 * picture[None] - 1
            for at, module in enumerate(model.backbone):
                y = module(y)
                if isinstance(module, nn.BatchNorm2d):
                    found.setdefault(f"backbone.{at}", []).append([channel.max().item() for channel in y[0]])
    return {path: torch.tensor(rows) for path, rows in found.items()}


def test_the_largest_activation_is_over_the_places_of_a_channel_at_its_batch_norm(detector, x):
    by_hand = maxima_by_hand(detector, x[:7])
    for chunk in (1, 3, 128):
        found = colour.maxima(detector, x[:7], chunk=chunk)
        assert list(found) == list(by_hand)
        for path in found:
            torch.testing.assert_close(found[path], by_hand[path])


def test_looking_at_activations_leaves_the_model_as_it_was_also_after_an_exception(detector, x):
    before = state(detector)
    with pytest.raises(RuntimeError):
        colour.maxima(detector, torch.zeros(2, 4, 8, 8))
    colour.maxima(detector, x[:2])
    colour.tuning(detector, count=4)
    assert same_state(before, state(detector))
    assert not any(m._forward_hooks for m in detector.modules())


def test_a_model_in_training_mode_is_refused_and_stays_as_it_was(x):
    model = detectors.build("small").train()
    before = state(model)
    for look in (lambda: colour.maxima(model, x), lambda: colour.tuning(model, count=2)):
        with pytest.raises(ValueError, match="evaluation mode"):
            look()
    assert same_state(before, state(model))


# ------------------------------------------------------------------------------------------------------------
# Tests of them
# ------------------------------------------------------------------------------------------------------------


def mood(a: torch.Tensor, b: torch.Tensor) -> float:
    """p of Mood's median test by hand: above and below the median of all, chi squared of the 2 x 2 table, Yates' correction."""
    middle = torch.cat([a, b]).quantile(0.5)
    table = torch.tensor([[(s > middle).sum(), (s < middle).sum()] for s in (a, b)], dtype=torch.float64)
    expected = table.sum(1, keepdim=True) * table.sum(0) / table.sum()
    off = (table - expected).abs()
    return float(chi2.sf(((off - off.clamp(max=0.5)) ** 2 / expected).sum(), 1))


def test_p_values_are_scipys_on_the_largest_activations(detector, x):
    chosen = every(detector)[::9]
    found = colour.shifts(detector, x, chosen)
    with_colour, without = maxima_by_hand(detector, x), maxima_by_hand(detector, patches.grayscale(x))
    assert found.channels == tuple(chosen)
    assert found.level == 0.05
    for number, (path, at) in enumerate(chosen):
        a, b = with_colour[path][:, at].double(), without[path][:, at].double()
        assert found.paired[number].item() == pytest.approx(wilcoxon(a.numpy(), b.numpy()).pvalue, rel=0.02)
        assert found.median[number].item() == pytest.approx(median_test(a.numpy(), b.numpy(), ties="ignore").pvalue)
        assert found.median[number].item() == pytest.approx(mood(a, b))
    assert (found.paired < 1e-3).any()
    assert (found.paired > 0.05).any()


def test_what_has_no_colour_differs_in_no_channel(detector, x):
    found = colour.shifts(detector, patches.grayscale(x), every(detector))
    assert (found.median == 1).all()
    assert (found.paired == 1).all()
    assert not found.found("median").any()
    assert not found.found("paired").any()


def reader(*weights: list[float]) -> nn.Module:
    """A detector whose channels read these combinations of R, G and B of what it sees, each pixel by itself."""
    model = detectors.build("small")
    convolution = nn.Conv2d(3, len(weights), 1, bias=False)
    model.backbone = nn.Sequential(
        convolution, nn.BatchNorm2d(len(weights)), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    model.backbone.append(nn.Linear(len(weights), 1))
    with torch.no_grad():
        convolution.weight.copy_(torch.tensor(weights)[:, :, None, None])
    return settled(model, seed=4)


def test_a_channel_that_reads_colour_differs_and_a_dead_one_does_not(x):
    colourful = colour.plant(x, "chroma", 0.1, generator=seeded(0))  # so that no picture is bluish throughout
    found = colour.shifts(reader([1.0, -1.0, 0.0], [0.0, 0.0, 0.0]), colourful, [("backbone.1", 0), ("backbone.1", 1)])
    assert found.found("paired").tolist() == [True, False]
    assert found.found("median").tolist() == [True, False]
    assert found.median[1] == found.paired[1] == 1


def step_up(p: list[float], level: float) -> list[bool]:
    """Benjamini and Hochberg 1995 as they wrote it: reject the k smallest, with the largest k where p_(k) <= k level / m."""
    ordered = sorted(p)
    k = max((k for k in range(1, len(p) + 1) if ordered[k - 1] <= k * level / len(p)), default=0)
    return [value <= ordered[k - 1] if k else False for value in p]


@given(st.lists(st.floats(1e-6, 1) | st.floats(1e-6, 0.05), min_size=1, max_size=25), st.floats(0.01, 0.5))
def test_discoveries_are_those_of_benjamini_and_hochberg(p, level):
    ordered = sorted(p)
    assume(all(abs(value - (k + 1) * level / len(p)) > 1e-9 for k, value in enumerate(ordered)))
    ones = torch.ones(len(p), dtype=torch.float64)
    names = tuple(("path", at) for at in range(len(p)))
    values = torch.tensor(p, dtype=torch.float64)
    assert colour.Shift(names, ones, values, level).found("paired").tolist() == step_up(p, level)
    assert colour.Shift(names, values, ones, level).found("median").tolist() == step_up(p, level)
    assert not colour.Shift(names, values, ones, level).found("paired").any()


def test_where_nothing_differs_but_by_chance_discoveries_are_rare(detector, x):
    with_colour, without = (
        torch.cat(list(colour.maxima(detector, p).values()), 1)[:, ::6] for p in (x, patches.grayscale(x))
    )
    names = tuple(("", at) for at in range(with_colour.shape[1]))
    difference, both = (with_colour - without).double(), torch.cat([with_colour, without]).double()
    runs = {"paired": 0, "median": 0}
    for seed in range(100):
        flipped = difference * (1 - 2.0 * torch.randint(2, (len(x), 1), generator=seeded(seed)))
        mixed = both[torch.randperm(len(both), generator=seeded(seed))]
        paired = torch.from_numpy(wilcoxon(flipped.numpy(), axis=0).pvalue)
        median = torch.tensor([mood(a, b) for a, b in zip(mixed[: len(x)].T, mixed[len(x) :].T, strict=True)])
        shift = colour.Shift(names, median.double(), paired, 0.05)
        for test in runs:
            runs[test] += bool(shift.found(test).any())
    assert runs["paired"] <= 12  # of 100, where 5 are allowed for: three standard deviations more
    assert runs["median"] <= 12
    found = colour.Shift(
        names, torch.ones(len(names)), torch.from_numpy(wilcoxon(difference.numpy(), axis=0).pvalue), 0.05
    )
    assert found.found("paired").sum() > 5, "and true differences are found with as many pictures"


@pytest.mark.parametrize(
    ("change", "message"),
    [({"channels": []}, "channels must name"), ({"level": 0.0}, "level must be above 0"), ({"level": "5 %"}, "level")],
)
def test_what_cannot_be_tested_is_refused(detector, x, change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        colour.shifts(**({"model": detector, "pictures": x, "channels": [("backbone.1", 0)]} | change))
    with pytest.raises(ValueError, match="test must be 'median' or 'paired', got 'mood'"):
        colour.Shift((("a", 0),), torch.ones(1), torch.ones(1), 0.05).found("mood")


# ------------------------------------------------------------------------------------------------------------
# Planted artefacts
# ------------------------------------------------------------------------------------------------------------


def luma(x: torch.Tensor) -> torch.Tensor:
    return (x * LUMA[:, None, None]).sum(1)


@pytest.fixture(scope="module")
def middling(x) -> torch.Tensor:
    """Pictures between 0.15 and 0.85, which nothing planted pushes beyond black or white."""
    return patches.quantise(0.15 + 0.7 * x)


HALF = 0.5 / 255 + 1e-6  # what quantising moves a value by


@pytest.mark.parametrize("strength", [0.01, 0.03, 0.08])
def test_a_chroma_artefact_leaves_brightness_alone_and_a_luma_one_colour(middling, strength):
    in_colour = colour.plant(middling, "chroma", strength, generator=seeded(0)) - middling
    in_luma = colour.plant(middling, "luma", strength, generator=seeded(0)) - middling
    assert luma(in_colour).abs().max() <= HALF
    assert (in_luma[:, 0] - in_luma[:, 1]).abs().max() <= 2 * HALF
    assert (in_luma[:, 0] - in_luma[:, 2]).abs().max() <= 2 * HALF
    assert (in_colour[:, 0] - in_colour[:, 1]).abs().mean() > 1.5 * strength
    assert luma(in_luma).abs().mean() == pytest.approx(strength, abs=HALF)


@pytest.mark.parametrize("artefact", colour.ARTEFACTS)
@pytest.mark.parametrize("strength", [0.02, 0.05])
def test_both_artefacts_have_the_strength_that_is_asked_for(middling, artefact, strength):
    added = colour.plant(middling, artefact, strength, generator=seeded(1)) - middling
    assert added.square().mean((1, 2, 3)).sqrt().tolist() == pytest.approx([strength] * len(added), abs=0.3 / 255)


@pytest.mark.parametrize("artefact", colour.ARTEFACTS)
def test_the_artefact_is_a_checkerboard_of_one_pixel_in_either_phase(middling, artefact):
    added = (colour.plant(middling, artefact, 0.05, generator=seeded(2)) - middling)[:, 0]
    assert (added[:, :, 1:] * added[:, :, :-1] < 0).all()
    assert (added[:, 1:] * added[:, :-1] < 0).all()
    assert 5 <= (added[:, 0, 0] > 0).sum() <= 31


def test_planted_pictures_are_as_files_hold_them_and_a_function_of_the_generator(x):
    kept, planted = x.clone(), colour.plant(x, "chroma", 0.2, generator=seeded(3))
    assert torch.equal(x, kept)
    assert torch.equal(planted, planted.clamp(0, 1).mul(255).round().div(255))
    assert torch.equal(planted, colour.plant(x, "chroma", 0.2, generator=seeded(3)))
    assert not torch.equal(planted, colour.plant(x, "chroma", 0.2, generator=seeded(4)))
    assert planted.dtype == x.dtype


def test_gray_copies_lose_the_chroma_artefact_and_keep_the_luma_one(middling):
    for artefact, lost in (("chroma", True), ("luma", False)):
        planted = colour.plant(middling, artefact, 0.05, generator=seeded(5))
        changed = (patches.grayscale(planted) - patches.grayscale(middling)).abs().mean().item()
        assert (changed < 0.5 / 255) == lost


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"artefact": "noise"}, "artefact must be one of chroma, luma, got 'noise'"),
        ({"strength": 0.0}, "strength must be above 0"),
        ({"strength": None}, "strength must be a number"),
        ({"generator": 3}, "generator must be"),
    ],
)
def test_what_cannot_be_planted_is_refused(x, change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        colour.plant(**({"pictures": x, "artefact": "chroma"} | change))


# ------------------------------------------------------------------------------------------------------------
# Tuning
# ------------------------------------------------------------------------------------------------------------


def test_tuning_of_channels_that_read_pixels_is_what_their_weights_say():
    weights = [
        [1.0, -1.0, 0.0],
        [0.299, 0.587, 0.114],
        [1.0, 1.0, 1.0],
        [1.0, 0.0, 0.0],
        [0.0, 1.0, 0.0],
        [0.0, 0.0, 1.0],
        [0.7, -0.4, 0.3],
        [0.0, 0.0, 0.0],
    ]
    found = colour.tuning(reader(*weights), count=64)["backbone.1"].tolist()

    def energy(w, direction):
        """How much of noise along a direction passes, from the definition: the noise has a root mean square of one."""
        length = (sum(d * d for d in direction) / 3) ** 0.5
        return (sum(a * d for a, d in zip(w, direction, strict=True)) / length) ** 2

    for w, tuned in zip(weights, found, strict=True):
        chroma, brightness = energy(w, [1, -0.299 / 0.587, 0]), energy(w, [1, 1, 1])
        expected = (chroma - brightness) / (chroma + brightness) if any(w) else 0.0
        assert tuned == pytest.approx(expected, abs=0.004), w  # a pixel in a thousand is clipped to black or white
    assert found[0] == pytest.approx(1, abs=1e-6), "R - G sees no noise in brightness at all"
    assert found[1] == pytest.approx(-1, abs=1e-3), "brightness sees noise in colour where it is clipped only"
    assert found[5] == pytest.approx(-1, abs=1e-6), "B has no part in the noise in colour"
    assert found[7] == 0, "a dead channel answers to neither"


def test_tuning_is_the_definition_for_noise_of_ones_own(detector):
    found = colour.tuning(detector, count=16, generator=seeded(9))
    noise = torch.randn(16, 1, 32, 32, generator=seeded(9))
    energies = []
    for direction in (torch.tensor([1, -0.299 / 0.587, 0]), torch.ones(3)):
        unit = direction / direction.square().mean().sqrt()
        y = 2 * (0.5 + 0.1 * noise * unit[:, None, None]).clamp(0, 1) - 1
        energy = {}
        with torch.no_grad():
            for at, module in enumerate(detector.backbone):
                y = module(y)
                if isinstance(module, nn.BatchNorm2d):
                    energy[f"backbone.{at}"] = torch.tensor([y[:, c].double().var() for c in range(y.shape[1])])
        energies.append(energy)
    assert list(found) == list(energies[0])
    for path, tuned in found.items():
        chroma, brightness = energies[0][path], energies[1][path]
        torch.testing.assert_close(tuned, (chroma - brightness) / (chroma + brightness), atol=1e-5, rtol=1e-4)
        assert (tuned.abs() <= 1).all()


def test_tuning_is_the_same_each_time_and_leaves_random_numbers_alone(detector):
    before = torch.get_rng_state()
    first, again = (colour.tuning(detector, count=8) for _ in range(2))
    other = colour.tuning(detector, count=8, generator=seeded(1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[path], again[path]) for path in first)
    assert not torch.equal(first["backbone.1"], other["backbone.1"])
