"""The task with known evidence, and the networks that the course trained on it."""

import pytest
import torch
from torch import nn

from xaicourse import digits, mosaics


def test_the_quarter_in_the_mask_holds_the_class_and_no_other_does():
    pictures, classes, masks = mosaics.sample(64)
    assert pictures.shape == (64, 3, 56, 56) and classes.shape == (64,) and masks.shape == (64, 1, 56, 56)
    assert pictures.min() >= 0 and pictures.max() <= 1 and set(classes.tolist()) <= set(range(5))
    assert (masks.sum((1, 2, 3)) == 28 * 28).all()
    label_of = {digit.numpy().tobytes(): int(label) for digit, label in zip(*digits.samples("test"), strict=True)}
    for picture, number, mask in zip(pictures[:, 0], classes, masks[:, 0], strict=True):
        for top in (0, 28):
            for left in (0, 28):
                cell = (slice(top, top + 28), slice(left, left + 28))
                label = label_of[picture[cell].contiguous().numpy().tobytes()]
                assert (label == number) if mask[cell].all() else (label >= 5)


def test_the_same_mosaics_come_each_time_and_others_from_another_generator():
    a, b = mosaics.sample(5), mosaics.sample(5)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    other = mosaics.sample(5, generator=torch.Generator().manual_seed(3))
    assert not torch.equal(a[0], other[0])


def test_no_digit_of_the_test_split_is_one_of_the_training_split():
    train, test = ({d.numpy().tobytes() for d in digits.samples(split)[0]} for split in ("train", "test"))
    assert len(train) > 3900 and len(test) > 990
    assert not train & test


@pytest.mark.parametrize(
    ("name", "at_least"),
    [("resnet", 0.95), ("densenet", 0.95), ("efficientnet", 0.92), ("convnext", 0.82), ("vit", 0.8), ("lstm", 0.75)],
)
def test_each_network_has_learned_the_task_and_its_untrained_twin_has_not(name, at_least):
    network = mosaics.load(name)
    assert not network.training
    assert mosaics.accuracy(network, 300) > at_least
    assert mosaics.accuracy(mosaics.load(name, pretrained=False), 300) < 0.35


def test_training_learns():
    torch.set_num_threads(1)
    network = mosaics.train("lstm", steps=3)
    before = mosaics.load("lstm", pretrained=False)
    assert any(not torch.equal(a, b) for a, b in zip(network.parameters(), before.parameters(), strict=True))
    assert isinstance(network, nn.Module) and not network.training


@pytest.mark.parametrize("count", [0, -1, 1.5])
def test_a_count_that_is_no_positive_int_is_refused(count):
    with pytest.raises(ValueError, match="count must be an int of at least 1"):
        mosaics.sample(count)


def test_an_unknown_split_or_network_is_refused():
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'dev'"):
        mosaics.sample(1, split="dev")
    with pytest.raises(ValueError, match="name must be one of resnet, .* got 'vgg'"):
        mosaics.load("vgg")


def test_weights_that_are_missing_or_not_those_of_the_card_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(mosaics, "_FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match="the weights must be in .*lstm.pt.*mosaics train"):
        mosaics.load("lstm")
    (tmp_path / "lstm.pt").write_bytes(b"something else")
    (tmp_path / "sha256sums").write_text("0123  lstm.pt\n")
    with pytest.raises(RuntimeError, match=r"lstm\.pt must have the sha256 of its card, 0123"):
        mosaics.load("lstm")
