"""Patches of real photographs, split by photograph: what a detector may call real. Lecture 15.

    train, validation, test = patches.split(seed=3)          # names of photographs, no photograph in two of them
    real = patches.crop(train, 1000, generator=generator)    # (1000, 3, 32, 32) in [0, 1], on the grid of 8-bit files

Neighbouring crops of one photograph share edges, light and noise: a detector that has seen one has seen the other. So what is
split is the photographs, never the crops.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import images
from ..arguments import check_count, check_generator

__all__ = ["GRAY", "PHOTOGRAPHS", "SIZE", "Pictures", "Split", "crop", "grayscale", "luma", "quantise", "split", "take"]

SIZE = 32
"""Pixels along a side of a patch."""

GRAY = ("camera", "coins")
"""Photographs without colour. Were they among the real ones, "gray" would mean "real"."""

PHOTOGRAPHS = tuple(name for name in images.names() if name not in GRAY)
"""The nine colour photographs that installed packages carry."""

# A patch as flat as this shows nothing that a generator could get wrong: the night sky, the rim of a lens.
_LEAST_CONTRAST = 0.03
_LUMA = (0.299, 0.587, 0.114)


class Pictures(Protocol):
    """A tensor (N, 3, H, W), or a data set whose items are pictures (3, H, W), or pictures with their label."""

    def __len__(self) -> int: ...
    def __getitem__(self, at: Any) -> Any: ...


Split = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]


def split(seed: int) -> Split:
    """Deal the nine photographs: five to train on, two to validate on, two to test on.

    Every seed deals anew, so that over seeds each photograph is tested on. TypeError or ValueError for a seed that is no int
    of at least 0.
    """
    check_count("seed", seed, least=0)
    order = torch.randperm(len(PHOTOGRAPHS), generator=torch.Generator().manual_seed(seed)).tolist()
    dealt = [PHOTOGRAPHS[at] for at in order]
    return tuple(dealt[:5]), tuple(dealt[5:7]), tuple(dealt[7:])


def crop(names: tuple[str, ...] | list[str], count: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Cut patches out of photographs at half their size, as many from each, anywhere, some of them mirrored.

    names      of photographs, out of ``PHOTOGRAPHS``
    count      how many patches in all
    generator  where; None: at the same places each time

    Returns float32 (count, 3, 32, 32) in [0, 1], RGB, in multiples of 1/255 as a file would have them. Halving the size
    first weakens the grid of 8 x 8 blocks that JPEG left in some of the files, which would tell real ones from others (the
    retina keeps some of it). Patches
    whose luma varies by less than 0.03 (standard deviation) are left out.

    TypeError or ValueError for unknown names and a count below 1.
    """
    if isinstance(names, str) or not names or any(name not in PHOTOGRAPHS for name in names):
        raise ValueError(f"names must be some of {', '.join(PHOTOGRAPHS)}, got {names!r}")
    check_count("count", count)
    check_generator(generator)
    generator = generator or torch.Generator().manual_seed(0)
    cut: list[Tensor] = []
    while len(cut) < count:
        photograph = _halved(names[len(cut) % len(names)])
        top, left = (int(torch.randint(s - SIZE + 1, (), generator=generator)) for s in photograph.shape[-2:])
        mirrored = bool(torch.randint(2, (), generator=generator))
        patch = photograph[:, top : top + SIZE, left : left + SIZE]
        if luma(patch).std() >= _LEAST_CONTRAST:
            cut.append(patch.flip(-1) if mirrored else patch)
    return torch.stack(cut)


def take(pictures: Pictures, at: Iterable[int]) -> Tensor:
    """The pictures of these numbers as one tensor, read from a tensor or from a data set."""
    if isinstance(pictures, Tensor):
        return pictures[torch.as_tensor(list(at))]
    items = [pictures[each] for each in at]
    return torch.stack([item[0] if isinstance(item, tuple) else item for item in items])


def quantise(pictures: Tensor) -> Tensor:
    """Clip to [0, 1] and round to multiples of 1/255, as writing a file does; photographs have been through one."""
    return pictures.clamp(0, 1).mul(255).round().div(255)


def luma(pictures: Tensor) -> Tensor:
    """What a gray-scale copy keeps, Y = 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601): (…, 3, H, W) -> (…, 1, H, W)."""
    return (pictures * pictures.new_tensor(_LUMA)[:, None, None]).sum(-3, keepdim=True)


def grayscale(pictures: Tensor) -> Tensor:
    """The same pictures without colour, three equal channels, in multiples of 1/255: (…, 3, H, W) to the same shape."""
    if not pictures.is_floating_point():
        raise TypeError(f"pictures must be floats in [0, 1], got {pictures.dtype}")
    if pictures.dim() < 3 or pictures.shape[-3] != 3:
        raise ValueError(f"pictures must have shape (…, 3, H, W), got {tuple(pictures.shape)}")
    return quantise(luma(pictures)).expand_as(pictures).contiguous()


@cache
def _halved(name: str) -> Tensor:
    picture = images.load(name)[None]
    half = (picture.shape[-2] // 2, picture.shape[-1] // 2)
    return quantise(F.interpolate(picture, half, mode="bicubic", antialias=True, align_corners=False))[0]
