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

__all__ = ["Box", "colourfulness", "receptive_field", "receptive_fields", "strongest"]

Box = tuple[int, int, int, int]
"""Top, left, bottom, right of a region in pixels; the last two are outside it."""


def strongest(
    model: nn.Module,
    pictures: Tensor,
    channels: Sequence[Channel],
    *,
    composite: str | lrp.Composite = COMPOSITE,
    chunk: int = 16,
) -> tuple[Tensor, Tensor]:
    """Find where each channel has its largest relevance, and how large it is.

    Returns places LongTensor (N, channels, 2), row and column in the channel's own map, and the relevance there (N, channels).
    Of places that are equal it is the first, row by row. ValueError for a channel that the model does not have.
    """
    found = norms(model)
    for path, index in channels:
        if path not in found or not 0 <= index < found[path].num_features:
            raise ValueError(f"channels must be of the model's batch norms, got {(path, index)!r}")
    parts = [_strongest(model, part, channels, composite) for part in pictures.split(chunk)]
    places, most = (torch.cat(each) for each in zip(*parts, strict=True))
    return places, most


def _strongest(
    model: nn.Module, pictures: Tensor, channels: Sequence[Channel], composite: str | lrp.Composite
) -> tuple[Tensor, Tensor]:
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

    Found on a copy of the model whose weights are all positive, so that nothing cancels, and whose max poolings are means, so
    that nothing is left out: there the gradient is not 0 exactly where a pixel is seen. ValueError for a path that is no
    batch norm and a place outside its map.
    """
    return receptive_fields(model, path, [place], size)[0]


def receptive_fields(model: nn.Module, path: str, places: Sequence[tuple[int, int]], size: Sequence[int]) -> list[Box]:
    """``receptive_field`` for several places in the map of one batch norm: a gradient for each row and column among them.

    Windows of convolutions and poolings are boxes: which rows are seen depends on the row of the place alone.
    """
    if path not in norms(model):
        raise ValueError(f"path must be of a batch norm, got {path!r}; there are {', '.join(norms(model))}")
    positive = copy.deepcopy(model).double().eval()
    for module in list(positive.modules()):
        for name, part in module.named_children():
            if isinstance(part, nn.MaxPool2d):
                mean = nn.AvgPool2d(part.kernel_size, part.stride, part.padding, ceil_mode=part.ceil_mode)
                setattr(module, name, mean)
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    found: list[Tensor] = []
    handle = norms(positive)[path].register_forward_hook(lambda _m, _x, y: found.append(y))
    x = torch.full((1, 3, *size), 0.51, dtype=torch.float64)  # a detector sees 2 x - 1: still positive
    x = x.to(next(model.parameters()).device).requires_grad_()
    positive(x)
    handle.remove()
    y = found[0][0].sum(0)
    for row, column in places:
        if not (0 <= row < len(y) and 0 <= column < y.shape[1]):
            raise ValueError(f"place must lie in a map of {len(y)} x {y.shape[1]}, got {(row, column)}")
    rows = {row: _seen(y[row], x, 2) for row in {row for row, _ in places}}
    columns = {column: _seen(y[:, column], x, 1) for column in {column for _, column in places}}
    return [(rows[r][0], columns[c][0], rows[r][1], columns[c][1]) for r, c in places]


def _seen(line: Tensor, x: Tensor, axis: int) -> tuple[int, int]:
    """The first row or column on which a line of a map depends, and the one behind the last."""
    (gradient,) = torch.autograd.grad(line.sum(), x, retain_graph=True)
    at = gradient[0].sum((0, axis)).nonzero()[:, 0]
    return int(at[0]), int(at[-1]) + 1


def colourfulness(pictures: Tensor) -> Tensor:
    """How far each pixel is from gray: the standard deviation over R, G and B, (N, 3, H, W) -> (N, H, W)."""
    return pictures.std(1, correction=0)
