"""Fillings from what is left of the item: the neighbours of a hole go on into it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..arguments import check_generator, check_positive
from ..scores import wide
from .places import Removal, check_channels, removing
from .samples import normal

__all__ = ["inpainting", "interpolation", "noisy_linear"]


def interpolation() -> Removal:
    """Fill removed steps of a time series (N, C, T) by straight lines from the last step before to the first one after.

    At either end the nearest step that is left goes on; a channel of which nothing is left becomes its own mean. With t the
    removed step between a and b, ``x_t = x_a + (x_b - x_a) (t - a) / (b - a)``.
    """

    def fill(inputs: Tensor, removed: Tensor) -> Tensor:
        if inputs.dim() != 3:
            raise ValueError(f"inputs must be time series of shape (N, C, T), got {tuple(inputs.shape)}")
        x, last = wide(inputs), inputs.shape[2] - 1
        step = torch.arange(last + 1, device=x.device).expand_as(x)
        before = step.masked_fill(removed, -1).cummax(2).values  # -1 where there is none
        after = step.masked_fill(removed, last + 1).flip(2).cummin(2).values.flip(2)
        before, after = torch.where(before < 0, after, before), torch.where(after > last, before, after)
        low, high = (x.gather(2, end.clamp(0, last)) for end in (before, after))
        share = (step - before).to(x) / (after - before).clamp(min=1)
        filled = low + (high - low) * share
        return torch.where(removed.all(2, keepdim=True), x.mean(2, keepdim=True), filled).to(inputs.dtype)

    return removing(fill)


def inpainting() -> Removal:
    """Fill what is removed with the smoothest surface through its surroundings, in images and time series.

    The surface solves the biharmonic equation ``Laplacian(Laplacian(x)) = 0`` at the removed pixels, so that slopes go on into
    the hole where `noisy_linear` flattens them; it stays within the range of what is left. A channel of which nothing is left
    becomes its own mean. scikit-image solves it on the CPU, in float64; it takes some tenths of a second for an image of
    224 x 224 pixels.

    Raises ImportError if scikit-image is not there.

    Damelin & Hoang, "On Surface Completion and Image Inpainting by Biharmonic Functions: Numerical Aspects", International
    Journal of Mathematics and Mathematical Sciences, 2018.
    """
    try:
        from skimage.restoration import inpaint_biharmonic
    except ImportError as missing:
        raise ImportError(
            'inpainting needs scikit-image, which is not installed. Run: pip install "xaicourse[course]"'
        ) from missing

    def fill(inputs: Tensor, removed: Tensor) -> Tensor:
        check_channels(inputs)
        filled, holes = inputs.detach().double().cpu().numpy().copy(), removed.cpu().numpy()
        for item, hole in zip(filled, holes, strict=True):
            # one system of equations for all channels that miss the same pixels
            parts = [item] if (hole == hole[:1]).all() else item[:, None]
            places = [hole[0]] if (hole == hole[:1]).all() else hole
            for part, place in zip(parts, places, strict=True):  # views into `filled`
                if place.all():
                    part[:] = part.mean(tuple(range(1, part.ndim)), keepdims=True)
                elif place.any():
                    part[:] = inpaint_biharmonic(part, place, channel_axis=0)
        return torch.from_numpy(filled).to(inputs)

    return removing(fill)


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
        _check_images(inputs)
        at_once = (
            1 if inputs.device.type == "cpu" else len(inputs)
        )  # one image fits a CPU's cache, and some need few steps
        parts = zip(inputs.split(at_once), removed.split(at_once), strict=True)
        filled = torch.cat([_harmonic(*part) for part in parts])
        return filled + std * normal(inputs, generator) if std else filled

    return removing(fill)


def _check_images(inputs: Tensor) -> None:
    if inputs.dim() != 4:
        raise ValueError(f"inputs must be images of shape (N, C, H, W), got {tuple(inputs.shape)}")


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
