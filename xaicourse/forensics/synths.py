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
          testing, drawn at random by name within a class: a counterfeit and the picture that it was made from have one name in
          paired sets and stay together. Of the other generators' pictures all are for testing; where generators share real
          pictures under other names, tested ones may have been trained on
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
        # a counterfeit and the picture that it was made from have one name in paired sets: they stay together
        names = [(path.parent.parent, path.stem) for path in images.paths]
        known = sorted(set(names))
        draw = torch.Generator().manual_seed(seed)
        place = {
            known[at]: order / len(known)
            for order, at in enumerate(torch.randperm(len(known), generator=draw).tolist())
        }
        parts = []
        for low, high in ((0.0, 0.6), (0.6, 0.8), (0.8, 1.0)):
            inside = [at for at, name_of in enumerate(names) if low <= place[name_of] < high]
            pieces = [[at for at in inside if bool(truth[at]) == fake] for fake in (False, True)]
            if not all(pieces):
                raise ValueError(
                    f"seen must have enough pictures to be divided in three, {seen!r} has {int((~truth).sum())} real and "
                    f"{int(truth.sum())} counterfeit ones"
                )
            parts.append(Pair(*(Some(images, at) for at in pieces)))
        train, validation, test[name] = parts
    return Sets(seen, train, validation, {seen: test.pop(seen), **test})
