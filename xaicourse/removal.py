"""Ways to take pixels of an image away: what stands in their place (lecture 12; used by ``evaluation``, occlusion, Shapley).

A network needs a number at every pixel, so that no pixel can be taken away: it can only be replaced, and by what decides
what the network makes of it. A removal is a plain function from images and from the places to remove to images::

    remove = removal.blur(sigma=5)
    remove(inputs, removed)     # inputs (N, C, H, W); removed is True where a pixel goes: BoolTensor (N, 1, H, W)

The result has the shape, dtype and device of ``inputs``, and equals them where nothing is removed. Write another removal as a
function of the same two arguments; `baseline` and `noise` take inputs of any shape (N, …), tables as well as images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .arguments import check_finite, check_generator, check_positive, kind

__all__ = ["Filling", "Removal", "baseline", "blur", "mean", "noise", "noisy_linear", "prepare"]

Removal = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Filling:
    """A removal whose filling does not depend on what is removed, so that it can be made once and used for many places.

    fill  a function from inputs (N, …) to what stands in their place, of the same shape, dtype and device
    """

    fill: Callable[[Tensor], Tensor]

    def __call__(self, inputs: Tensor, removed: Tensor) -> Tensor:
        _check(inputs, removed)
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

    value  a number, or a tensor that broadcasts to the inputs: (C, 1, 1) gives one value for each channel, (H, W) a picture

    Raises TypeError or ValueError if ``value`` is no number or float tensor, is not finite or does not broadcast.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, Tensor)):
        raise TypeError(f"value must be a number or a tensor, got {type(value).__name__}")
    filling = torch.as_tensor(value, dtype=None if isinstance(value, Tensor) else torch.float64)
    if not filling.is_floating_point():
        raise TypeError(f"value must be a number or a tensor of a float dtype, got {filling.dtype}")
    check_finite("value", filling)

    def fill(inputs: Tensor) -> Tensor:
        _check_broadcast("value", filling, inputs)
        return filling.to(inputs).expand_as(inputs)

    return Filling(fill)


def mean() -> Removal:
    """Put each channel's mean in the place of what is removed: the mean of all pixels of that item, removed or not."""

    def fill(inputs: Tensor) -> Tensor:
        _check_images(inputs)
        return inputs.mean((2, 3), keepdim=True).expand_as(inputs)

    return Filling(fill)


def blur(sigma: float) -> Removal:
    """Put the blurred image in the place of what is removed: the colours stay, edges and texture go.

    sigma  width of the Gaussian in pixels, above 0; cut off at 4 sigma, the image mirrored at its border

    The whole image is blurred, so that what is removed still shines through at low frequencies.
    """
    check_positive("sigma", sigma)

    def fill(inputs: Tensor) -> Tensor:
        _check_images(inputs)
        rows, columns = (_blur_matrix(size, sigma).to(inputs) for size in inputs.shape[2:])
        return rows @ inputs @ columns.T

    return Filling(fill)


def noise(std: float, *, generator: torch.Generator | None = None) -> Removal:
    """Put Gaussian noise of mean 0 in the place of what is removed: new noise at every call.

    std        standard deviation, in the units of the inputs; above 0
    generator  where the noise comes from; None is torch's global one
    """
    check_positive("std", std)
    check_generator(generator)

    def fill(inputs: Tensor, removed: Tensor) -> Tensor:
        return std * _normal(inputs, generator)

    return _removal(fill)


def noisy_linear(std: float = 0.01, *, generator: torch.Generator | None = None) -> Removal:
    """Fill what is removed from its surroundings: every removed pixel is the weighted mean of its neighbours, plus noise.

    std        standard deviation of the noise, in the units of the inputs; 0 for none
    generator  where the noise comes from; None is torch's global one

    With N(p) the up to eight neighbours of a pixel p inside the image, ``x_p = sum w_q x_q / sum w_q`` over q in N(p), where
    w is 1/6 beside and above, 1/12 on the diagonal. Removed neighbours are unknown too, hence a linear system, which the
    method of conjugate gradients solves for each item and channel. A channel of which nothing is left becomes its own mean.
    The solution is exact to about 1e-3 of the image's range in float32, which the noise drowns, and to 1e-8 in float64. On a
    CPU it takes some tenths of a second for an image of 224 x 224 pixels, longer than a small network.

    Rong et al., "A Consistent and Efficient Evaluation Strategy for Attribution Methods", ICML 2022.
    """
    if std != 0:
        check_positive("std", std)
    check_generator(generator)

    def fill(inputs: Tensor, removed: Tensor) -> Tensor:
        removed = removed.expand_as(inputs)
        at_once = (
            1 if inputs.device.type == "cpu" else len(inputs)
        )  # one image fits a CPU's cache, and some need few steps
        parts = zip(inputs.split(at_once), removed.split(at_once), strict=True)
        filled = torch.cat([_harmonic(*part) for part in parts])
        return filled + std * _normal(inputs, generator) if std else filled

    return _removal(fill, images=True)


def _removal(fill: Callable[[Tensor, Tensor], Tensor], *, images: bool = False) -> Removal:
    """A removal out of a function of inputs and removed places that says what stands there."""

    def remove(inputs: Tensor, removed: Tensor) -> Tensor:
        _check(inputs, removed)
        if images:
            _check_images(inputs)
        return torch.where(removed, fill(inputs, removed), inputs)

    return remove


def _check(inputs: Tensor, removed: Tensor) -> None:
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        raise TypeError(f"inputs must be a tensor of a float dtype, got {kind(inputs)}")
    if not isinstance(removed, Tensor) or removed.dtype != torch.bool:
        raise TypeError(f"removed must be a BoolTensor, got {kind(removed)}")
    if removed.device != inputs.device:
        raise ValueError(f"removed must be on the device of the inputs, {inputs.device}, got {removed.device}")
    _check_broadcast("removed", removed, inputs)
    check_finite("inputs", inputs)


def _check_images(inputs: Tensor) -> None:
    if inputs.dim() != 4:
        raise ValueError(f"inputs must be images of shape (N, C, H, W), got {tuple(inputs.shape)}")


def _check_same(result: Tensor, inputs: Tensor) -> None:
    if not isinstance(result, Tensor) or result.shape != inputs.shape or result.dtype != inputs.dtype:
        raise ValueError(f"removal must return a tensor like the inputs, {kind(inputs)}, got {kind(result)}")
    check_finite("what removal returns", result)


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


def _harmonic(inputs: Tensor, removed: Tensor) -> Tensor:
    """Solve for the removed pixels; conjugate gradients, for each item and channel by itself."""
    x = inputs.double() if inputs.dtype == torch.float64 else inputs.float()
    tolerance = 1e-10 if x.dtype == torch.float64 else 1e-5  # of the largest difference from the mean
    unknown = removed.to(x)
    known = 1 - unknown
    kernel = x.new_tensor([[1, 2, 1], [2, 0, 2], [1, 2, 1]])[None, None] / 12

    def neighbours(values: Tensor) -> Tensor:
        return F.conv2d(values.flatten(0, 1)[:, None], kernel, padding=1).view_as(values)

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum((2, 3), keepdim=True)

    weight = neighbours(torch.ones_like(x[:1, :1]))  # 1, less at the border of the image
    left = known.sum((2, 3), keepdim=True)
    middle = torch.where(left > 0, dot(known, x) / left.clamp(min=1), x.mean((2, 3), keepdim=True))
    # With x = middle + y, y = 0 at first: nothing is left to solve where the whole channel is removed.
    residual = unknown * neighbours(known * (x - middle))
    y, direction, square = torch.zeros_like(x), residual, dot(residual, residual)
    enough = tolerance * (x - middle).abs().amax((2, 3), keepdim=True)
    for _ in range(inputs[0, 0].numel()):  # as many steps as unknowns solve it exactly; far fewer are enough
        open_ = residual.abs().amax((2, 3), keepdim=True) > enough  # a solved channel stays as it is
        if not open_.any():
            break
        slope = unknown * (weight * direction - neighbours(direction))
        step = torch.where(open_, square / dot(direction, slope).where(open_, 1), 0)
        y, residual = y + step * direction, residual - step * slope
        before, square = square, dot(residual, residual)
        direction = residual + torch.where(open_, square / before.where(open_, 1), 0) * direction
    return (middle + y).to(inputs.dtype)


def _normal(inputs: Tensor, generator: torch.Generator | None) -> Tensor:
    device = generator.device if generator is not None else inputs.device
    return torch.randn(inputs.shape, generator=generator, device=device).to(inputs)


def _check_broadcast(name: str, tensor: Tensor, inputs: Tensor) -> None:
    try:
        fits = torch.broadcast_shapes(tensor.shape, inputs.shape) == inputs.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(f"{name} must broadcast to the inputs, {tuple(inputs.shape)}, got {tuple(tensor.shape)}")
