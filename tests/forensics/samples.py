"""Folders in the ForenSynths layout whose counterfeits a detector learns in a few steps, for the tests of case C."""

from pathlib import Path

import torch
import torchvision.transforms.functional as vision
from torch import Tensor

from xaicourse.forensics import patches

SIZE = 16


def pale(root: Path, counts: dict[str, int]) -> Path:
    """Write photographs and as many counterfeits for each generator, 16 x 16 pixels; a counterfeit is a pale photograph."""
    draw = torch.Generator().manual_seed(0)
    for at, (generator, count) in enumerate(counts.items()):
        _write(root / generator / "0_real", _cut(count, draw))
        contrast = 0.3 + 0.1 * at  # each generator's own
        _write(root / generator / "1_fake", 1 - contrast + contrast * _cut(count, draw))
    return root


def alike(root: Path, count: int) -> Path:
    """Write one generator whose counterfeits are the photographs themselves: there is nothing to learn."""
    cut = _cut(1, torch.Generator().manual_seed(0)).repeat(count, 1, 1, 1)
    for side in ("0_real", "1_fake"):
        _write(root / "first" / side, cut)
    return root


def _cut(count: int, draw: torch.Generator) -> Tensor:
    return patches.crop(("chelsea", "coffee"), count, generator=draw)[:, :, :SIZE, :SIZE]


def _write(folder: Path, pictures: Tensor) -> None:
    folder.mkdir(parents=True)
    for number, picture in enumerate(patches.quantise(pictures)):
        vision.to_pil_image(picture.mul(255).round().byte()).save(folder / f"{number:04d}.png")
