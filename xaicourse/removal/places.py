"""What every removal shares: its type, its checks, and what it leaves untouched."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..arguments import check_finite, kind

__all__ = ["Removal", "check", "check_broadcast", "check_channels", "removing"]

Removal = Callable[[Tensor, Tensor], Tensor]


def removing(fill: Callable[[Tensor, Tensor], Tensor], *, integers: bool = False) -> Removal:
    """A removal out of a function ``fill(inputs, removed)`` that says what stands at the removed places.

    fill      sees ``removed`` in the shape of the inputs
    integers  whether the inputs may be integers, such as tokens
    """

    def remove(inputs: Tensor, removed: Tensor) -> Tensor:
        check(inputs, removed, integers=integers)
        return torch.where(removed, fill(inputs, removed.expand_as(inputs)), inputs)

    return remove


def check(inputs: Tensor, removed: Tensor, *, integers: bool = False) -> None:
    """TypeError or ValueError unless the inputs are finite floats, and the places a BoolTensor that broadcasts to them."""
    if not isinstance(inputs, Tensor) or not (inputs.is_floating_point() or integers):
        raise TypeError(f"inputs must be a tensor of a float dtype, got {kind(inputs)}")
    if not isinstance(removed, Tensor) or removed.dtype != torch.bool:
        raise TypeError(f"removed must be a BoolTensor, got {kind(removed)}")
    if removed.device != inputs.device:
        raise ValueError(f"removed must be on the device of the inputs, {inputs.device}, got {removed.device}")
    check_broadcast("removed", removed, inputs)
    check_finite("inputs", inputs)


def check_channels(inputs: Tensor) -> None:
    """ValueError unless the inputs are images or time series."""
    if inputs.dim() not in (3, 4):
        raise ValueError(
            f"inputs must be images (N, C, H, W) or time series (N, C, T), got shape {tuple(inputs.shape)}"
        )


def check_broadcast(name: str, tensor: Tensor, inputs: Tensor) -> None:
    """ValueError unless the tensor broadcasts to the shape of the inputs."""
    try:
        fits = torch.broadcast_shapes(tensor.shape, inputs.shape) == inputs.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(f"{name} must broadcast to the inputs, {tuple(inputs.shape)}, got {tuple(tensor.shape)}")
