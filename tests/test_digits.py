"""The digits, and the networks that the course trained on them."""

import pytest
import torch

from xaicourse import digits


def test_digits_are_pictures_with_their_labels_and_no_test_digit_is_one_of_the_training_split():
    found = []
    for split, count in (("train", 4000), ("test", 1000)):
        pictures, labels = digits.samples(split)
        assert pictures.shape == (count, 1, 28, 28) and pictures.min() == 0 and pictures.max() == 1
        assert labels.dtype == torch.long and set(labels.tolist()) == set(range(10))
        assert pictures[:, :, 8:20, 8:20].mean() > 3 * pictures[:, :, :4].mean()  # the digit is in the middle, on black
        found.append({picture.numpy().tobytes() for picture in pictures})
    assert not found[0] & found[1]


def test_the_classifier_has_learned_the_digits_and_its_untrained_twin_has_not():
    model = digits.load()
    assert not model.training and digits.accuracy(model) > 0.97
    assert digits.accuracy(digits.load(pretrained=False)) < 0.3
    x = digits.samples("test")[0][:3]
    assert torch.allclose(model.head(model.features(x)), model(x)) and model.features(x).shape == (3, 64)


def test_the_autoencoder_knows_digits_from_noise_and_from_digits_in_pieces():
    model, x = digits.load("autoencoder"), digits.samples("test")[0][:200]
    error = digits.reconstruction_error(model, x)
    assert error.shape == (200,) and error.mean() < 0.15 * x.var()
    pieces = x.reshape(200, 1, 4, 7, 28)[:, :, [2, 0, 3, 1]].reshape(200, 1, 28, 28)
    assert digits.reconstruction_error(model, pieces).mean() > 2 * error.mean()
    noise = torch.rand(200, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert digits.reconstruction_error(model, noise).mean() > 5 * error.mean()
    untrained = digits.load("autoencoder", pretrained=False)
    assert digits.reconstruction_error(untrained, x).mean() > 3 * error.mean()


@pytest.mark.parametrize("name", ["classifier", "autoencoder"])
def test_training_changes_the_weights_and_is_repeatable(name):
    one, two = (digits.train(name, steps=2).state_dict() for _ in range(2))
    before = digits.load(name, pretrained=False).state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert any(not torch.equal(one[key], before[key]) for key in one)


def test_an_unknown_split_or_network_is_refused():
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'dev'"):
        digits.samples("dev")
    with pytest.raises(ValueError, match="name must be one of classifier, autoencoder, got 'vae'"):
        digits.load("vae")
