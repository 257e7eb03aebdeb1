"""Channels switched off: is what LRP ranks high what the detector lives on? Lecture 15.

    chosen = ablation.choose(ranking, 30, "top")
    with ablation.ablated(detector, chosen):
        scores = detectors.logits(detector, pictures)

*Where*: a channel is set to 0 at the output of its batch norm, before the activation, so that nothing of it is left ("after").
The code published with the paper sets the convolution's channel to 0 *before* the batch norm, which then puts a constant of
its own in its place, beta - gamma mean / sd: the channel no longer sees the picture, but still speaks ("before"). Both are
offered, and measured.

Chandrasegaran et al. 2022, Discovering transferable forensic features for CNN-generated images detection, ECCV.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import check_generator
from .channels import Channel, Ranking, norms

__all__ = ["KINDS", "ablated", "choose"]

KINDS = ("top", "random", "layer-matched", "low")
"""The most relevant k; k of all; at random as many of each layer as the top k has; the least relevant k."""


def choose(ranking: Ranking, k: int, kind: str, *, generator: torch.Generator | None = None) -> list[Channel]:
    """Choose k channels: "top", "low", or at random, from all ("random") or from the layers of the top k ("layer-matched").

    Random draws may hit a channel of the top k, as in the paper; ``generator`` None: by PyTorch's own random numbers. TypeError
    or ValueError for a k that is not from 1 to the number of channels and for another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    check_generator(generator)
    top = ranking.top(k)
    if kind in ("top", "low"):
        return top if kind == "top" else ranking.low(k)
    pools: list[tuple[Sequence[Channel], int]] = [(ranking.channels, k)]
    if kind == "layer-matched":
        of_layer = Counter(path for path, _ in top)
        pools = [([c for c in ranking.channels if c[0] == path], n) for path, n in sorted(of_layer.items())]
    chosen: list[Channel] = []
    for pool, n in pools:
        known = sorted(pool)  # a draw does not depend on the ranking
        chosen += [known[at] for at in torch.randperm(len(known), generator=generator)[:n].tolist()]
    return chosen


@contextmanager
def ablated(model: nn.Module, channels: Sequence[Channel], *, where: str = "after") -> Iterator[nn.Module]:
    """Inside, the model runs with these channels at 0; afterwards it is as it was, whatever happened.

    channels  batch norms by path, with the number of a channel each
    where     "after" the batch norm, or "before" it, where its constant takes the channel's place

    ValueError for a channel that the model does not have and for another place.
    """
    if where not in ("after", "before"):
        raise ValueError(f"where must be 'after' or 'before' the batch norm, got {where!r}")
    found = norms(model)
    off: dict[str, list[int]] = {}
    for path, index in channels:
        if path not in found or not 0 <= index < found[path].num_features:
            raise ValueError(
                f"channels must be of the model's batch norms, got {(path, index)!r}; there are {_widths(found)}"
            )
        off.setdefault(path, []).append(index)
    handles = []
    try:
        for path, indices in off.items():
            keep = torch.ones(found[path].num_features)
            keep[indices] = 0
            keep = keep[:, None, None]
            if where == "after":
                handles.append(found[path].register_forward_hook(lambda _m, _x, y, keep=keep: _times(y, keep)))
            else:
                handles.append(found[path].register_forward_pre_hook(lambda _m, x, keep=keep: (_times(x[0], keep),)))
        yield model
    finally:
        for handle in handles:
            handle.remove()


def _times(y: Any, keep: Tensor) -> Tensor:
    return y * keep.to(y)


def _widths(found: dict[str, nn.BatchNorm2d]) -> str:
    return ", ".join(f"{path} (0 to {norm.num_features - 1})" for path, norm in found.items())
