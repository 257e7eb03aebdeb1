"""Where in a picture a channel looks: the place of its largest relevance, and the pixels that this place can see. Lecture 15.

For picture i and channel c the lecture takes (h*, w*) = argmax_hw R_i[0, c, h, w] and shows the region of the picture that
corresponds to it: its receptive field.

Chandrasegaran et al. 2022, Discovering transferable forensic features for CNN-generated images detection, ECCV.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import lrp
from .channels import COMPOSITE, Channel, norms

__all__ = ["Box", "colourfulness", "receptive_field", "strongest"]

Box = tuple[int, int, int, int]
"""Top, left, bottom, right of a region in pixels; the last two are outside it."""


def strongest(
    model: nn.Module, pictures: Tensor, channels: Sequence[Channel], *, composite: str | lrp.Composite = COMPOSITE
) -> tuple[Tensor, Tensor]:
    """Find where each channel has its largest relevance, and how large it is.

    Returns places LongTensor (N, channels, 2), row and column in the channel's own map, and the relevance there (N, channels).
    """
    layers = lrp.trace(model, pictures, 0, composite=composite).layers
    maps = [layers[path][:, index] for path, index in channels]
    most = [m.flatten(1).max(1) for m in maps]
    places = [
        torch.stack([best.indices // m.shape[2], best.indices % m.shape[2]], 1)
        for best, m in zip(most, maps, strict=True)
    ]
    return torch.stack(places, 1), torch.stack([best.values for best in most], 1)


def receptive_field(model: nn.Module, path: str, place: tuple[int, int], size: Sequence[int]) -> Box:
    """The pixels that an entry of a batch norm's output can depend on.

    place  row and column of the entry in its map
    size   height and width of the picture

    Found on a copy of the model whose weights are all positive, so that nothing cancels: there the gradient is not 0 exactly
    where a pixel is seen. ValueError for a path that is no batch norm and a place outside its map.
    """
    if path not in norms(model):
        raise ValueError(f"path must be of a batch norm, got {path!r}; there are {', '.join(norms(model))}")
    positive = copy.deepcopy(model).double().eval()
    for module in positive.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    found: list[Tensor] = []
    handle = norms(positive)[path].register_forward_hook(lambda _m, _x, y: found.append(y))
    x = torch.full(
        (1, 3, *size), 0.51, dtype=torch.float64, requires_grad=True
    )  # a detector sees 2 x - 1: still positive
    positive(x)
    handle.remove()
    row, column = place
    height, width = found[0].shape[-2:]
    if not (0 <= row < height and 0 <= column < width):
        raise ValueError(f"place must lie in a map of {height} x {width}, got {place}")
    (gradient,) = torch.autograd.grad(found[0][0, :, row, column].sum(), x)
    rows, columns = (gradient[0].sum((0, axis)).nonzero()[:, 0] for axis in (2, 1))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def colourfulness(pictures: Tensor) -> Tensor:
    """How far each pixel is from gray: the standard deviation over R, G and B, (N, 3, H, W) -> (N, H, W)."""
    return pictures.std(1, correction=0)
