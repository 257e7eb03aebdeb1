"""The prototype network: its logits are sums of similarity times weight, and each prototype is a training patch."""

import pytest
import torch

from xaicourse import digits, prototypes


@pytest.fixture(scope="module")
def model():
    return prototypes.load()


def test_the_network_has_learned_the_digits_and_its_untrained_twin_has_not(model):
    assert digits.accuracy(model) > 0.93
    assert digits.accuracy(prototypes.load(pretrained=False)) < 0.4


def test_every_logit_is_exactly_the_sum_of_similarity_times_weight(model):
    x = digits.samples("test")[0][:50]
    parts = prototypes.decompose(model, x)
    assert parts.shape == (50, len(model.prototypes), 10)
    with torch.no_grad():
        assert torch.allclose(parts.sum(1), model(x), atol=1e-5)
    similarity = model.similarities(x)[0]
    assert torch.allclose(parts[:, 3, 7], similarity[:, 3] * model.last.weight[7, 3])


def test_after_projection_every_prototype_is_a_patch_of_a_training_digit_of_its_class(model):
    pictures, labels = digits.samples("train")
    index, row, column = model.source.unbind(1)
    with torch.no_grad():
        patches = model.features(pictures[index])[torch.arange(len(index)), :, row, column]
    assert (patches - model.prototypes).abs().max() < 1e-6
    assert torch.equal(labels[index], model.classes)
    assert len({tuple(source) for source in model.source.tolist()}) == len(model.source)  # no two are the same patch
    similarity, place = model.similarities(pictures[index])
    own = torch.arange(len(index))
    assert torch.allclose(similarity[own, own], torch.tensor(100.0).log(), atol=1e-2)  # d = 0: log(1 / 0.01)
    assert torch.equal(place[own, own], 7 * row + column)


def test_projection_takes_the_nearest_patch_of_the_class():
    model = prototypes.load(pretrained=False)
    pictures, labels = (part[:200] for part in digits.samples("train"))
    with torch.no_grad():
        before = model.distances(pictures).flatten(2)
    prototypes.project(model, pictures, labels)
    for number in (0, 17, 41):
        members = (labels == model.classes[number]).nonzero()[:, 0]
        index, row, column = model.source[number].tolist()
        assert labels[index] == model.classes[number]
        chosen = before[index, number, 7 * row + column]
        nearer = (before[members, number] < chosen - 1e-6).sum()
        assert nearer <= len(model.prototypes)  # but for patches that another prototype has taken


def test_a_patch_box_is_what_the_features_at_a_place_depend_on():
    model = prototypes.load(pretrained=False)
    for row, column in ((0, 0), (3, 2), (6, 5)):
        x = torch.rand(1, 1, 28, 28, generator=torch.Generator().manual_seed(0)).requires_grad_()
        model.features(x)[0, :, row, column].sum().backward()
        top, left, bottom, right = prototypes.patch_box(row, column)
        outside = x.grad[0, 0].clone()
        outside[top:bottom, left:right] = 0
        assert outside.abs().max() == 0 and x.grad.abs().max() > 0
        assert 8 <= bottom - top <= 16 and 8 <= right - left <= 16


def test_training_moves_the_network_and_is_repeatable():
    one, two = (prototypes.train(steps=4) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert (one.source >= 0).all() and not one.training


def test_bad_input_is_named(model):
    with pytest.raises(TypeError, match="model must be a PrototypeNetwork, got Classifier"):
        prototypes.decompose(digits.load(), torch.zeros(1, 1, 28, 28))
    with pytest.raises(ValueError, match=r"pictures of shape \(N, 1, 28, 28\), got \(1, 3, 28, 28\)"):
        prototypes.decompose(model, torch.zeros(1, 3, 28, 28))
    with pytest.raises(ValueError, match="evaluation mode"):
        prototypes.decompose(prototypes.load(pretrained=False).train(), torch.zeros(1, 1, 28, 28))
    fresh = prototypes.load(pretrained=False)
    with pytest.raises(ValueError, match="labels must be a LongTensor of shape"):
        prototypes.project(fresh, torch.zeros(3, 1, 28, 28), torch.zeros(2).long())
    with pytest.raises(ValueError, match="labels must have every class; there is no picture of"):
        prototypes.project(fresh, torch.zeros(3, 1, 28, 28), torch.zeros(3).long())
