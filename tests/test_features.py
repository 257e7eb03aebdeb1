"""Features at any layer, held against what the layers themselves give."""

import pytest
import torch
from torch import nn

from xaicourse import digits, features, images, models


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 6),
        nn.ReLU(),
        nn.Linear(6, 3),
    ).eval()


def test_penultimate_features_are_what_enters_the_last_linear_layer():
    model, x = network(), torch.randn(7, 1, 9, 9)
    found = features.extract(model, x, chunk=3)
    assert torch.allclose(found, model[:6](x)) and not found.requires_grad
    assert torch.allclose(model[6](found), model(x))
    x = digits.samples("test")[0][:5]
    assert torch.allclose(features.extract(digits.load(), x), digits.load().features(x))


def test_penultimate_features_of_the_courses_network_give_its_logits():
    model = models.load()
    x = models.transform()(images.load("chelsea"))[None]
    found = features.extract(model, x)
    with torch.no_grad():
        assert found.shape == (1, 1280) and torch.allclose(model.classifier(found), model(x), atol=1e-4)


@pytest.mark.parametrize("layer", ["0", "1", "4"])
def test_a_named_layer_gives_its_output_pooled_or_flat(layer):
    model, x = network(), torch.randn(5, 1, 9, 9)
    output = model[: int(layer) + 1](x)
    flat = features.extract(model, x, layer=layer, pool=False)
    assert torch.allclose(flat, output.flatten(1))
    pooled = features.extract(model, x, layer=layer)
    assert torch.allclose(pooled, output.mean((2, 3)) if output.dim() == 4 else output)


def test_the_model_is_as_it_was_also_after_an_error():
    model = network()
    for layer in (None, "1"):
        features.extract(model, torch.randn(2, 1, 9, 9), layer=layer)
        with pytest.raises(RuntimeError):
            features.extract(model, torch.randn(2, 1, 2, 2), layer=layer)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_bad_input_is_named():
    model, x = network(), torch.randn(2, 1, 9, 9)
    with pytest.raises(
        ValueError, match="layer must be the path of a module of the model, got 'head'; there are 7, such as '0', '1'"
    ):
        features.extract(model, x, layer="head")
    with pytest.raises(TypeError, match="model must be an nn.Module"):
        features.extract(lambda x: x, x)
    with pytest.raises(ValueError, match="evaluation mode"):
        features.extract(network().train(), x)
    with pytest.raises(ValueError, match="layer must be given for a model without a linear layer"):
        features.extract(nn.Sequential(nn.Conv2d(1, 2, 3)).eval(), x)
    with pytest.raises(ValueError, match="chunk"):
        features.extract(model, x, chunk=0)
    twice = nn.Sequential(model[0], model[1], model[1]).eval()
    with pytest.raises(ValueError, match="called once in a forward pass, and was called 2 times"):
        features.extract(twice, x, layer="1")
    with pytest.raises(ValueError, match="give inputs\\[None\\]"):
        features.extract(nn.Sequential(nn.Flatten(), nn.Linear(81, 2)).eval(), torch.randn(1, 9, 9)[0])
