"""The experiment at full scale: a folder in the ForenSynths layout, whose pictures stay on disk. Lecture 15."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from . import folders
from .miniature import Pair, Sets

__all__ = ["Some", "sets"]


class Some(Dataset[Tensor]):
    """Some pictures of ``folders.Images``, without their labels."""

    def __init__(self, images: folders.Images, at: list[int]) -> None:
        self.images = images
        self.at = at
        self.paths = [images.paths[each] for each in at]

    def __len__(self) -> int:
        return len(self.at)

    def __getitem__(self, at: int) -> Tensor:
        return self.images[self.at[at]][0]


def sets(root: Path, seen: str | None = None, *, size: int = 224, seed: int = 0) -> Sets:
    """Pictures to train, validate and test on, from a folder in the ForenSynths layout.

    seen  the generator to train on; None: the first. Of its pictures 60 % are for training, 20 % for validation and 20 % for
          testing, drawn at random within real and counterfeit; of the other generators' all are for testing
    size  pixels along a side of the centre crop

    ValueError if there is no such generator or its pictures are too few to be divided.
    """
    by_generator: dict[str, list[folders.Group]] = {}
    for group in folders.find(root):
        by_generator.setdefault(group.generator, []).append(group)
    seen = seen or next(iter(by_generator))
    if seen not in by_generator:
        raise ValueError(f"seen must be a generator in {root}, one of {', '.join(by_generator)}, got {seen!r}")
    test = {}
    for name, groups in by_generator.items():
        images = folders.Images(groups, size=size)
        truth = images.labels.bool()
        if name != seen:
            test[name] = Pair(*(Some(images, at.nonzero()[:, 0].tolist()) for at in (~truth, truth)))
            continue
        parts: list[list[Some]] = []
        draw = torch.Generator().manual_seed(seed)
        for of_class in (~truth, truth):
            known = of_class.nonzero()[:, 0]
            at: list[int] = known[torch.randperm(len(known), generator=draw)].tolist()
            middle, last = round(0.6 * len(at)), round(0.8 * len(at))
            pieces = (at[:middle], at[middle:last], at[last:])
            if not all(pieces):
                raise ValueError(
                    f"seen must have at least 5 real and 5 counterfeit pictures, {seen!r} has {len(at)} of one kind"
                )
            parts.append([Some(images, piece) for piece in pieces])
        train, validation, tested = (Pair(real, fake) for real, fake in zip(*parts, strict=True))
        test[name] = tested
    return Sets(seen, train, validation, {seen: test.pop(seen), **test})
