"""What a network makes of its inputs on the way to its outputs: the features at any layer (lectures 01 and 03)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .arguments import check_count, check_finite, check_layer, kind
from .scores import check_inputs, check_model, first_axis_kept, laid_out, unchanged

__all__ = ["extract"]


def extract(
    model: nn.Module, inputs: Tensor, *, layer: str | None = None, pool: bool = True, chunk: int = 64
) -> Tensor:
    """The features of each input at a layer, as vectors.

    model   an nn.Module in evaluation mode; it is not changed
    inputs  (N, …), any float dtype and device
    layer   path of a module, as in ``model.named_modules()``: its output; None: the penultimate features, what enters the last
            linear layer that is called
    pool    average feature maps (N, C, H, W) over their places, to (N, C); otherwise they are flattened
    chunk   how many inputs the model sees at once

    Returns (N, D) without a graph, on the device of the model's features.

    Raises TypeError or ValueError if an argument is not as above, no module has that path (saying which do), it is not
    called once, the model has no linear layer, or a feature is not finite.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    check_model(model)
    check_inputs(inputs)
    check_count("chunk", chunk)
    named = None if layer is None else check_layer("layer", model, layer)
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if layer is None and not linear:
        raise ValueError(
            "layer must be given for a model without a linear layer, whose input the penultimate features are"
        )
    seen: list[Tensor] = []

    def enters(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen[:] = args[:1]  # the last one stays

    def leaves(module: nn.Module, args: Any, output: Any) -> None:
        seen.append(output)

    with unchanged(model), torch.no_grad():
        hooks = (
            [module.register_forward_pre_hook(enters) for module in linear]
            if named is None
            else [named.register_forward_hook(leaves)]
        )
        try:
            found = []
            for part in inputs.split(chunk):
                seen.clear()
                with first_axis_kept(model, part):
                    model(laid_out(part.detach()).clone())
                found.append(_vectors(seen, len(part), layer, pool))
        finally:
            for hook in hooks:
                hook.remove()
    features = torch.cat(found)
    check_finite("the features", features)
    return features


def _vectors(seen: list[Tensor], items: int, layer: str | None, pool: bool) -> Tensor:
    name = "the last linear layer" if layer is None else repr(layer)
    if len(seen) != 1:
        raise ValueError(f"layer: {name} must be called once in a forward pass, and was called {len(seen)} times")
    values = seen[0]
    if not isinstance(values, Tensor) or not values.is_floating_point() or values.dim() < 2 or len(values) != items:
        raise ValueError(f"layer: {name} must have float features (N, …) with N = {items}, got {kind(values)}")
    values = values.detach().clone()
    if pool and values.dim() > 2:
        return values.flatten(2).mean(2)
    return values.flatten(1)
