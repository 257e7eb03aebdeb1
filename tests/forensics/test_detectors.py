import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from xaicourse import models
from xaicourse.forensics import colour, detectors, folders, patches

from .networks import same_state, settled, state

# Few different values, so that there are ties within and between the two.
LOGITS = st.lists(st.integers(-6, 6).map(lambda n: n / 4), min_size=1, max_size=12).map(torch.tensor)
WIDE = st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=12).map(torch.tensor)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    return patches.crop(patches.PHOTOGRAPHS, 40, generator=seeded(11))


# ------------------------------------------------------------------------------------------------------------
# Building
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", detectors.NAMES)
def test_every_backbone_gives_one_logit_for_each_picture(name):
    detector = detectors.build(name, pretrained=False)
    x = torch.rand(3, 3, 32, 32, generator=seeded(0))
    with torch.no_grad():
        y = detector(x)
        assert y.shape == (3, 1)
        torch.testing.assert_close(y, detector.backbone(2 * x - 1))
    assert detector.name == name
    assert not any(module.training for module in detector.modules())


@pytest.mark.parametrize("name", detectors.NAMES)
def test_building_is_a_function_of_the_seed_and_leaves_random_numbers_alone(name):
    before = torch.get_rng_state()
    first = state(detectors.build(name, pretrained=False, seed=1))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(5)
    assert same_state(first, state(detectors.build(name, pretrained=False, seed=1)))
    assert not same_state(first, state(detectors.build(name, pretrained=False, seed=2)))


def test_the_pretrained_backbone_has_imagenets_weights_below_its_new_last_layer():
    known = models.load("efficientnet_lite0").state_dict()
    found = detectors.build("efficientnet_lite0").backbone.state_dict()
    assert found.keys() == known.keys()
    other = {
        name for name in known if found[name].shape != known[name].shape or not torch.equal(found[name], known[name])
    }
    assert other == {"classifier.weight", "classifier.bias"}
    assert found["classifier.weight"].shape == (1, 1280)


def test_weights_out_of_reach_are_an_error_and_never_replaced_by_random_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for variable in ("https_proxy", "http_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(models.WeightsUnavailable, match="resnet50.*pretrained=False"):
        detectors.build("resnet50", pretrained=True)


@pytest.mark.parametrize("name", ["", "resnet51", None, "Small"])
def test_an_unknown_backbone_is_refused_with_those_that_there_are(name):
    with pytest.raises(ValueError, match="name must be one of small, efficientnet_lite0, resnet50, got"):
        detectors.build(name)


# ------------------------------------------------------------------------------------------------------------
# Blur and JPEG
# ------------------------------------------------------------------------------------------------------------


def test_with_probability_zero_pictures_stay_as_they_are(pictures):
    out = detectors.augment(pictures, blur=0, jpeg=0, generator=seeded(0))
    assert torch.equal(out, pictures)
    assert out is not pictures


def test_with_probability_one_every_picture_changes_and_the_given_ones_do_not(pictures):
    given_before = pictures.clone()
    for blur, jpeg in ((1, 1), (0, 1)):
        out = detectors.augment(pictures, blur=blur, jpeg=jpeg, generator=seeded(1))
        assert ((out - pictures).abs().amax((1, 2, 3)) > 0).all()
        assert out.shape == pictures.shape
        assert out.min() >= 0
        assert out.max() <= 1
        assert torch.equal(out, patches.quantise(out)), "the last step was a file"
    assert torch.equal(pictures, given_before)


def test_half_of_the_pictures_change_where_the_probability_is_one_half(pictures):
    many = pictures.repeat(5, 1, 1, 1)
    for blur, jpeg in ((0.5, 0), (0, 0.5)):
        out = detectors.augment(many, blur=blur, jpeg=jpeg, generator=seeded(2))
        changed = ((out - many).abs().amax((1, 2, 3)) > 0).sum().item()
        assert 70 <= changed <= 130  # of 200; four standard deviations


def test_blur_takes_detail_and_keeps_brightness(pictures):
    out = detectors.augment(pictures, blur=1, jpeg=0, generator=seeded(3))

    def detail(x):
        return (x[..., 1:] - x[..., :-1]).square().mean((1, 2, 3))

    blurred = (out - pictures).abs().amax((1, 2, 3)) > 0
    assert blurred.float().mean() > 0.9  # a sigma below 0.1 changes nothing
    assert (detail(out) <= 1.001 * detail(pictures)).all()
    assert detail(out).mean() < 0.4 * detail(pictures).mean()
    assert (out.mean((2, 3)) - pictures.mean((2, 3))).abs().mean() < 0.02


def test_the_same_generator_changes_pictures_in_the_same_way(pictures):
    first = detectors.augment(pictures, generator=seeded(4))
    before = torch.get_rng_state()
    assert torch.equal(first, detectors.augment(pictures, generator=seeded(4)))
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(first, detectors.augment(pictures, generator=seeded(5)))


def test_a_smaller_sigma_leaves_more_detail(pictures):
    detail = [
        (out[..., 1:] - out[..., :-1]).square().mean().item()
        for sigma in (0.2, 1.0, 3.0)
        for out in [detectors.augment(pictures, blur=1, jpeg=0, sigma=sigma, generator=seeded(6))]
    ]
    assert detail[0] > detail[1] > detail[2]
    with pytest.raises(ValueError, match="sigma must be above 0"):
        detectors.augment(pictures, sigma=0.0)


@pytest.mark.parametrize("name", ["blur", "jpeg"])
@pytest.mark.parametrize("value", [-0.1, 1.01, float("nan"), "half", True])
def test_what_is_no_probability_is_refused(name, value, pictures):
    with pytest.raises((TypeError, ValueError), match=f"^{name} must be"):
        detectors.augment(pictures, **{name: value})


# ------------------------------------------------------------------------------------------------------------
# Training
# ------------------------------------------------------------------------------------------------------------


def test_training_makes_a_detector_that_tells_counterfeits_from_other_real_pictures(trained):
    test = patches.crop(patches.split(0)[2], 60, generator=seeded(3))
    with torch.no_grad():
        fake = patches.quantise(trained.autoencoder(test))
    real, fake = (detectors.logits(trained.detector, x) for x in (test, fake))
    assert detectors.quality(real, fake, 0.0).precision > 0.9
    detectors.check_detects(real, fake)
    assert not trained.detector.training


def test_training_is_a_function_of_the_seed_and_leaves_random_numbers_alone(pictures):
    fake = patches.grayscale(pictures)

    def weights(seed):
        return state(detectors.train(detectors.build("small"), pictures, fake, seed=seed, steps=2))

    before = torch.get_rng_state()
    first = weights(0)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(77)
    assert same_state(first, weights(0))
    assert not same_state(first, weights(1))


def test_gray_training_shows_gray_copies_and_nothing_else_changes(pictures):
    fake = patches.crop(("flower",), 9)
    gray = patches.grayscale(pictures), patches.grayscale(fake)
    by_share = detectors.train(detectors.build("small"), pictures, fake, steps=2, gray=1.0, gray_real=1.0)
    by_hand = detectors.train(detectors.build("small"), *gray, steps=2)
    fake_only = detectors.train(detectors.build("small"), pictures, fake, steps=2, gray=1.0)
    fake_only_by_hand = detectors.train(detectors.build("small"), pictures, gray[1], steps=2)
    assert same_state(state(by_share), state(by_hand))
    assert same_state(state(fake_only), state(fake_only_by_hand))
    assert not same_state(state(by_share), state(fake_only))


def test_half_of_the_counterfeits_lose_their_colour_and_always_the_same_ones():
    # flat pictures of one colour, each of another brightness: blur and JPEG leave them to be recognised
    brightness = 0.15 + 0.09 * torch.arange(8)
    reddish = torch.stack([brightness + 0.12, brightness - 0.12 * 0.299 / 0.587, brightness], 1)
    flat = reddish[:, :, None, None].expand(8, 3, 32, 32).contiguous()
    seen = []
    detector = detectors.build("small")
    detector.register_forward_pre_hook(lambda _m, x: seen.append(x[0]))
    detectors.train(detector, flat, flat, steps=6, gray=0.5)

    def which_and_gray(x):
        near = (patches.luma(x).mean((1, 2, 3))[:, None] - brightness).abs()
        assert near.amin(1).max() < 0.02
        return set(zip(near.argmin(1).tolist(), ((x[:, 0] - x[:, 1]).mean((1, 2)) < 0.09).tolist(), strict=True))

    real, fake = torch.cat([x[:32] for x in seen]), torch.cat([x[32:] for x in seen])
    assert which_and_gray(real) == {(at, False) for at in range(8)}
    shown = which_and_gray(fake)
    assert len(shown) == 8, "a picture is seen with its colour or without, not both"
    assert 2 <= sum(gray for _, gray in shown) <= 6


def test_a_data_set_trains_to_the_same_weights_as_a_tensor(tmp_path):
    groups = folders.find(folders.make_sample(tmp_path / "sample", count=6))
    data = folders.Images(groups, size=32)
    x, y = (torch.stack([data[i][0] for i in range(len(data)) if data[i][1] == label]) for label in (0, 1))

    class Side:
        def __init__(self, label):
            self.numbers = (data.labels == label).nonzero()[:, 0].tolist()

        def __len__(self):
            return len(self.numbers)

        def __getitem__(self, at):
            return data[self.numbers[at]]

    from_files = detectors.train(detectors.build("small"), Side(0), Side(1), steps=2)
    from_tensors = detectors.train(detectors.build("small"), x, y, steps=2)
    assert same_state(state(from_files), state(from_tensors))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"real": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}, "real must be a float tensor"),
        ({"fake": torch.zeros(2, 1, 8, 8)}, "fake must have shape"),
        ({"fake": torch.zeros(0, 3, 8, 8)}, "fake must have shape .* N at least 1"),
        ({"real": torch.full((2, 3, 8, 8), 1.1)}, "real must lie in"),
        ({"real": torch.full((2, 3, 8, 8), float("nan"))}, "real must lie in"),
        ({"real": []}, "real must hold at least one picture"),
        ({"fake": 3}, "fake must be a float tensor .* or a data set, got int"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"gray": 1.5}, "gray must be a share"),
        ({"gray_real": -0.5}, "gray_real must be at least 0"),
    ],
)
def test_what_cannot_be_trained_with_is_refused_and_the_detector_stays_as_it_was(change, message):
    detector = detectors.build("small")
    before = state(detector)
    arguments = {"real": torch.zeros(2, 3, 8, 8), "fake": torch.zeros(2, 3, 8, 8), "steps": 1} | change
    with pytest.raises((TypeError, ValueError), match=message):
        detectors.train(detector, **arguments)
    assert same_state(before, state(detector))
    assert not detector.training


# ------------------------------------------------------------------------------------------------------------
# Logits
# ------------------------------------------------------------------------------------------------------------


def test_a_data_set_is_read_to_the_same_logits_as_a_tensor(tmp_path):
    data = folders.Images(folders.find(folders.make_sample(tmp_path / "sample", count=3)), size=32)
    x = torch.stack([data[at][0] for at in range(len(data))])
    detector = settled(detectors.build("small"))
    found = detectors.logits(detector, data, chunk=7)
    assert found.shape == (len(data),)
    assert found.dtype == torch.float32
    assert torch.equal(found, detectors.logits(detector, x, chunk=7))
    assert torch.equal(detectors.logits(detector, data, gray=True), detectors.logits(detector, patches.grayscale(x)))


@pytest.mark.parametrize("chunk", [1, 7, 39, 40, 1000])
def test_logits_are_the_detectors_in_the_order_of_the_pictures_however_they_are_cut(pictures, chunk):
    detector = settled(detectors.build("small"))
    with torch.no_grad():
        torch.testing.assert_close(detectors.logits(detector, pictures, chunk=chunk), detector(pictures)[:, 0])


def test_a_detector_in_training_mode_is_refused_and_stays_as_it_was(pictures):
    detector = detectors.build("small").train()
    before = state(detector)
    with pytest.raises(ValueError, match="evaluation mode"):
        detectors.logits(detector, pictures)
    assert same_state(before, state(detector))


@pytest.mark.parametrize(
    "wrong", [torch.zeros(2, 8, 16, 16), torch.zeros(3, 32, 32), torch.ones(1, 3, 8, 8) * 2, 3, []]
)
def test_what_are_no_pictures_is_refused(wrong):
    with pytest.raises((TypeError, ValueError), match="^pictures must"):
        detectors.logits(detectors.build("small"), wrong)


# ------------------------------------------------------------------------------------------------------------
# Threshold and quality
# ------------------------------------------------------------------------------------------------------------


def balanced(real: torch.Tensor, fake: torch.Tensor, cut: float) -> float:
    """The mean of both accuracies, counted one by one."""
    r, f = real.tolist(), fake.tolist()
    return (sum(x < cut for x in r) / len(r) + sum(x >= cut for x in f) / len(f)) / 2


@settings(max_examples=300)
@given(LOGITS | WIDE, LOGITS | WIDE)
def test_no_cut_has_a_higher_mean_of_both_accuracies_than_the_threshold(real, fake):
    cut = detectors.threshold(real, fake)
    values = sorted({*real.tolist(), *fake.tolist()})
    between = [(a + b) / 2 for a, b in itertools.pairwise(values)]
    best = max(balanced(real, fake, c) for c in [*values, *between, float("inf"), -float("inf")])
    assert balanced(real, fake, cut) == pytest.approx(best, abs=1e-12)
    found = detectors.quality(real, fake, cut)
    assert (found.real + found.fake) / 2 == pytest.approx(best, abs=1e-6)
    assert abs(cut) < float("inf")


def test_the_threshold_lies_half_way_between_two_pictures():
    real, fake = torch.tensor([-3.0, -2.0, 1.0]), torch.tensor([0.5, 2.0, 4.0])
    assert detectors.threshold(real, torch.tensor([2.0, 4.0])) == 1.5
    assert detectors.threshold(real, fake) in (-0.75, 1.5)


def test_a_detector_that_is_wrong_throughout_is_cut_no_worse_than_chance():
    real, fake = torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0])
    assert balanced(real, fake, detectors.threshold(real, fake)) == 0.5


def average_precision(real: torch.Tensor, fake: torch.Tensor) -> float:
    """Sum over the cuts, from the highest, of precision times what recall gains."""
    total, recall = 0.0, 0.0
    for cut in sorted({*real.tolist(), *fake.tolist()}, reverse=True):
        hits, alarms = sum(x >= cut for x in fake.tolist()), sum(x >= cut for x in real.tolist())
        total += hits / (hits + alarms) * (hits / len(fake) - recall)
        recall = hits / len(fake)
    return total


@settings(max_examples=200)
@given(LOGITS | WIDE, LOGITS | WIDE)
def test_average_precision_is_scikit_learns_and_the_sum_over_cuts(real, fake):
    found = detectors.quality(real, fake, 0.0)
    truth = [0] * len(real) + [1] * len(fake)
    assert found.precision == average_precision_score(truth, torch.cat([real, fake]).numpy())
    assert found.precision == pytest.approx(average_precision(real, fake), abs=1e-12)
    assert found.real == pytest.approx(sum(x < 0 for x in real.tolist()) / len(real))
    assert found.fake == pytest.approx(sum(x >= 0 for x in fake.tolist()) / len(fake))


# ------------------------------------------------------------------------------------------------------------
# At chance
# ------------------------------------------------------------------------------------------------------------


def test_shuffled_labels_are_refused_as_chance_with_the_reason(trained):
    real, fake = (detectors.logits(trained.detector, x) for x in (trained.real, trained.fake))
    detectors.check_detects(real, fake)
    mixed = torch.cat([real, fake])[torch.randperm(len(real) + len(fake), generator=seeded(1))]
    with pytest.raises(
        ValueError, match=r"detector must tell .* at chance \(area under the ROC curve 0\.[45]\d, p = 0\."
    ):
        detectors.check_detects(mixed[: len(real)], mixed[len(real) :])


def test_an_untrained_detector_is_refused(pictures):
    detector = detectors.build("small", seed=3)
    fake = colour.plant(pictures, "chroma", 0.01, generator=seeded(0))
    with pytest.raises(ValueError, match="a ranking would explain what it does not know"):
        detectors.check_detects(detectors.logits(detector, pictures), detectors.logits(detector, fake))


def test_a_detector_that_is_wrong_throughout_or_says_always_the_same_is_refused():
    low, high = torch.arange(20.0), torch.arange(20.0) + 30
    detectors.check_detects(low, high)
    with pytest.raises(ValueError, match="curve 0.00"):
        detectors.check_detects(high, low)
    with pytest.raises(ValueError, match="curve 0.50"):
        detectors.check_detects(torch.zeros(20), torch.zeros(20))


def test_chance_is_refused_at_the_level_that_is_asked_for():
    refused = 0
    for seed in range(200):
        real, fake = torch.randn(2, 30, generator=seeded(seed))
        try:
            detectors.check_detects(real, fake, level=0.1)
        except ValueError:
            refused += 1
    assert 162 <= refused <= 196  # 180 expected; three and a half standard deviations or more


@pytest.mark.parametrize("change", [{"sigma": -1.0}, {"rate": 0.0}])
def test_settings_that_are_refused_leave_the_detector_in_evaluation_mode(change):
    detector, pictures = detectors.build("small"), torch.rand(2, 3, 32, 32)
    with pytest.raises(ValueError, match=f"{next(iter(change))} must be above 0"):
        detectors.train(detector, pictures, pictures, steps=1, **change)
    assert not any(module.training for module in detector.modules())


def test_a_training_that_breaks_off_leaves_the_detector_in_evaluation_mode():
    class Broken:
        paths = ()

        def __len__(self):
            return 3

        def __getitem__(self, at):
            raise OSError("no disk")

    detector = detectors.build("small")
    with pytest.raises(OSError, match="no disk"):
        detectors.train(detector, Broken(), torch.rand(2, 3, 32, 32), steps=1)
    assert not any(module.training for module in detector.modules())
