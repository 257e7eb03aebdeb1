"""Fillings that ask nothing of the places to remove: a fixed value, a token, the item itself made coarser."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..arguments import check_count, check_finite, check_positive, kind
from ..scores import wide
from .places import Removal, check, check_broadcast, check_channels, removing

__all__ = ["Filling", "baseline", "blur", "mean", "prepare", "token"]


@dataclass(frozen=True)
class Filling:
    """A removal whose filling does not depend on what is removed, so that it can be made once and used for many places.

    fill  a function from inputs (N, …) to what stands in their place, of the same shape, dtype and device
    """

    fill: Callable[[Tensor], Tensor]

    def __call__(self, inputs: Tensor, removed: Tensor) -> Tensor:
        check(inputs, removed)
        return torch.where(removed, self.fill(inputs), inputs)


def prepare(removal: Removal, inputs: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The same removal for many places in the same inputs: ``remove(item, removed)``; a `Filling` is made only once.

    ``item`` is a LongTensor (n,), an item of ``inputs`` may occur any number of times; ``removed`` broadcasts to (n, …).

    TypeError if ``removal`` is no function, ValueError if it gives anything but a finite tensor like its inputs.
    """
    if not callable(removal):
        raise TypeError(f"removal must be a function of inputs and removed places, got {type(removal).__name__}")

    if isinstance(removal, Filling):
        check_finite("inputs", inputs)
        filling = removal.fill(inputs)
        _check_same(filling, inputs)
        return lambda item, removed: torch.where(removed, filling[item], inputs[item])

    def remove(item: Tensor, removed: Tensor) -> Tensor:
        chosen = inputs[item]
        result = removal(chosen, removed)
        _check_same(result, chosen)
        return result

    return remove


def baseline(value: float | Tensor = 0.0) -> Removal:
    """Put a fixed value in the place of what is removed.

    value  a number, or a tensor that broadcasts to the inputs: (C, 1, 1) gives one value for each
           channel of images, (H, W) a picture, (D,) a row of a table

    Raises TypeError or ValueError if ``value`` is no number or float tensor, is not finite or does not broadcast.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, Tensor)):
        raise TypeError(f"value must be a number or a tensor, got {type(value).__name__}")
    filling = torch.as_tensor(value, dtype=None if isinstance(value, Tensor) else torch.float64)
    if not filling.is_floating_point():
        raise TypeError(f"value must be a number or a tensor of a float dtype, got {filling.dtype}")
    check_finite("value", filling)

    def fill(inputs: Tensor) -> Tensor:
        check_broadcast("value", filling, inputs)
        return filling.to(inputs).expand_as(inputs)

    return Filling(fill)


def mean(*, kept: bool = False) -> Removal:
    """Put each channel's mean in the place of what is removed, in images and time series.

    kept  False: the mean of all pixels (time steps) of that item, removed or not; True: the mean of those that are left, and
          of all where none is
    """

    def fill(inputs: Tensor) -> Tensor:
        check_channels(inputs)
        return inputs.mean(tuple(range(2, inputs.dim())), keepdim=True).expand_as(inputs)

    def fill_from_kept(inputs: Tensor, removed: Tensor) -> Tensor:
        everything = fill(inputs)
        space = tuple(range(2, inputs.dim()))
        left = (~removed).sum(space, keepdim=True)
        total = wide(inputs).masked_fill(removed, 0).sum(space, keepdim=True)
        return torch.where(left > 0, (total / left.clamp(min=1)).to(inputs), everything)

    return removing(fill_from_kept) if kept else Filling(fill)


def blur(sigma: float) -> Removal:
    """Put the blurred image, or time series, in the place of what is removed: colours stay, edges and texture go.

    sigma  width of the Gaussian in pixels (time steps), above 0; cut off at 4 sigma, the image mirrored at its border

    The whole image is blurred, so that what is removed still shines through at low frequencies.
    """
    check_positive("sigma", sigma)

    def fill(inputs: Tensor) -> Tensor:
        check_channels(inputs)
        *rows, columns = (_blur_matrix(size, sigma).to(inputs) for size in inputs.shape[2:])
        along = inputs @ columns.T
        return rows[0] @ along if rows else along

    return Filling(fill)


def token(id: int) -> Removal:
    """Put a token, such as that of a mask or of padding, in the place of what is removed.

    id  the token's number in the vocabulary of the model, at least 0

    The inputs are sequences of token numbers, integers (N, T); TypeError if they are not.
    """
    check_count("id", id, least=0)

    def fill(inputs: Tensor, removed: Tensor) -> Tensor:
        if inputs.dtype not in (torch.int64, torch.int32) or inputs.dim() != 2:
            raise TypeError(
                f"inputs must be token numbers of shape (N, T) and dtype int64 or int32, got {kind(inputs)}"
            )
        return torch.full_like(inputs, id)

    return removing(fill, integers=True)


def _blur_matrix(size: int, sigma: float) -> Tensor:
    """The blur of a line of pixels as a matrix (size, size): row i holds the weights that pixel i gives to each pixel."""
    radius = math.ceil(4 * sigma)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    period = max(2 * (size - 1), 1)  # a mirrored line repeats after there and back, without its two ends twice
    places = (torch.arange(size)[:, None] + offsets.long()) % period
    places = torch.minimum(places, period - places) if size > 1 else places
    return torch.zeros(size, size, dtype=torch.float64).scatter_add_(
        1, places, (weights / weights.sum()).expand(size, -1)
    )


def _check_same(result: Tensor, inputs: Tensor) -> None:
    if not isinstance(result, Tensor) or result.shape != inputs.shape or result.dtype != inputs.dtype:
        raise ValueError(f"removal must return a tensor like the inputs, {kind(inputs)}, got {kind(result)}")
    check_finite("what removal returns", result)
