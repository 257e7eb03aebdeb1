"""Small networks whose batch norms have something to say, as after training, for the tests of case C."""

import torch
from torch import nn


def settled(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every batch norm statistics and a scale and shift of its own, in place; returns the model in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            n = module.num_features
            with torch.no_grad():
                module.weight.copy_(torch.rand(n, generator=generator) + 0.5)
                module.bias.copy_(torch.randn(n, generator=generator) * 0.2)
                module.running_mean.copy_(torch.randn(n, generator=generator) * 0.2)
                module.running_var.copy_(torch.rand(n, generator=generator) + 0.5)
    return model.eval()


def without_biases(model: nn.Module) -> nn.Module:
    """Set all that is added to 0, in place: shifts and means of batch norms, biases of other layers."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.zero_()
            if getattr(module, "bias", None) is not None:
                module.bias.zero_()
    return model


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of weights and buffers."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def same_state(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether all weights and buffers are equal, bit by bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
