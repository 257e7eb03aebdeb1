"""Fillings from elsewhere: noise, and the values that other data have at the same places."""

from __future__ import annotations

import torch
from torch import Tensor

from ..arguments import check_count, check_finite, check_generator, check_positive, kind
from .places import Removal, check_broadcast, removing

__all__ = ["marginal", "nearest", "noise"]


def noise(std: float, *, generator: torch.Generator | None = None) -> Removal:
    """Put Gaussian noise of mean 0 in the place of what is removed: new noise at every call.

    std        standard deviation, in the units of the inputs; above 0
    generator  where the noise comes from; None is torch's global one
    """
    check_positive("std", std)
    check_generator(generator)

    def fill(inputs: Tensor, removed: Tensor) -> Tensor:
        return std * normal(inputs, generator)

    return removing(fill)


def marginal(background: Tensor, *, generator: torch.Generator | None = None) -> Removal:
    """Put the values of other data in the place of what is removed: those of one random sample for each item, at every call.

    background  the samples to draw from, (M, …) in the shape of the items; floats, or integers where the inputs are tokens
    generator   where the draws come from; None is torch's global one

    All that is removed from an item comes from the same sample, so that it fits together; it need not fit what is left. The
    average over many calls is the expectation over the marginal distribution of the removed features.

    Raises TypeError or ValueError if ``background`` is not as above or its samples have another shape than the items.

    Lundberg & Lee, "A Unified Approach to Interpreting Model Predictions", NeurIPS 2017 (there: features independent).
    """
    _check_samples(background)
    check_generator(generator)

    def fill(inputs: Tensor, removed: Tensor) -> Tensor:
        _check_fits(background, inputs)
        return background[_draw(len(background), len(inputs), generator, background)].to(inputs)

    return removing(fill, integers=not background.is_floating_point())


def nearest(
    background: Tensor, *, k: int = 1, scale: Tensor | None = None, generator: torch.Generator | None = None
) -> Removal:
    """Put the values of similar data in the place of what is removed: of a sample that is near to the item in what is left.

    background  the samples to choose from, (M, …) in the shape of the items, floats
    k           choose at random among the k nearest samples, 1 to M; 1 leaves nothing to chance
    scale       what differences are divided by before they are compared, positive, broadcasts to an item: None for features of
                one unit, such as pixels, ``background.std(0)`` for the columns of a table
    generator   where the choices come from; None is torch's global one

    With S the features that are left, the distance of an item x to a sample b is ``sum over d in S of ((x_d - b_d) / s_d)^2``;
    of equally near samples, the earlier comes first. The values follow, roughly, the distribution of what is removed given
    what is left; the fewer samples there are, the more roughly. An item that is itself a sample is nearest to itself: leave it
    out of them.

    Raises TypeError or ValueError if an argument is not as above or the samples have another shape than the items.
    """
    _check_samples(background, integers=False)
    check_count("k", k, most=len(background), most_is="the number of samples")
    check_generator(generator)
    if scale is not None:
        if not isinstance(scale, Tensor) or not scale.is_floating_point():
            raise TypeError(f"scale must be a tensor of a float dtype or None, got {kind(scale)}")
        check_broadcast("scale", scale, background[0])
        check_finite("scale", scale)
        if not bool((scale > 0).all()):
            raise ValueError(f"scale must be above 0, got {scale.min().item()}")
    centre = background.double().mean(0)  # subtracted, for the precision of the squares

    def even(values: Tensor) -> Tensor:
        values = values.double() - centre.to(values.device)
        return (values if scale is None else values / scale.to(values)).flatten(1)

    def fill(inputs: Tensor, removed: Tensor) -> Tensor:
        _check_fits(background, inputs)
        x, samples, left = even(inputs), even(background.to(inputs.device)), (~removed).flatten(1).double()
        distance = left @ (samples**2).T - 2 * (left * x) @ samples.T  # but for a term that all samples share
        first = distance.argsort(dim=1, stable=True)[:, :k]
        if k == 1:
            chosen = first[:, 0]
        else:
            chosen = first.gather(1, _draw(k, len(inputs), generator, inputs)[:, None])[:, 0]
        return background.to(inputs)[chosen]

    return removing(fill)


def normal(inputs: Tensor, generator: torch.Generator | None) -> Tensor:
    """Gaussian noise of mean 0 and standard deviation 1, shaped like the inputs."""
    device = generator.device if generator is not None else inputs.device
    return torch.randn(inputs.shape, generator=generator, device=device).to(inputs)


def _draw(among: int, items: int, generator: torch.Generator | None, like: Tensor) -> Tensor:
    device = generator.device if generator is not None else like.device
    return torch.randint(among, (items,), generator=generator, device=device).to(like.device)


def _check_samples(background: Tensor, *, integers: bool = True) -> None:
    if not isinstance(background, Tensor) or background.is_complex() or background.dtype == torch.bool:
        raise TypeError(f"background must be a tensor of samples (M, …), got {kind(background)}")
    if not integers and not background.is_floating_point():
        raise TypeError(f"background must be a tensor of a float dtype, got {kind(background)}")
    if background.dim() < 2 or 0 in background.shape:
        raise ValueError(f"background must have shape (M, …) with at least one sample, got {tuple(background.shape)}")
    check_finite("background", background)


def _check_fits(background: Tensor, inputs: Tensor) -> None:
    if background.shape[1:] != inputs.shape[1:]:
        raise ValueError(
            f"background must have samples in the shape of the items, {tuple(inputs.shape[1:])}, got "
            f"{tuple(background.shape[1:])}"
        )
    if background.is_floating_point() != inputs.is_floating_point():
        raise TypeError(
            f"background must be of a dtype like that of the inputs, {inputs.dtype}, got {background.dtype}"
        )
