"""Folders in the ForenSynths layout whose counterfeits a detector learns in a few steps, for the tests of case C."""

from pathlib import Path

import torch
import torchvision.transforms.functional as vision

from xaicourse.forensics import patches

SIZE = 16
COUNT = 40


def bright(root: Path, *, count: int = COUNT, generators: tuple[str, ...] = ("first", "second"), seed: int = 0) -> Path:
    """Write ``count`` photographs and as many counterfeits per generator, 16 x 16 pixels; counterfeits are pale."""
    draw = torch.Generator().manual_seed(seed)
    for at, generator in enumerate(generators):
        real = patches.crop(("chelsea", "coffee"), count, generator=draw)[:, :, :SIZE, :SIZE]
        pale = 0.3 + 0.1 * at  # each generator's own
        write(root / generator / "0_real", real)
        write(root / generator / "1_fake", patches.quantise(pale * real + 1 - pale))
    return root


def same(root: Path, *, count: int = COUNT) -> Path:
    """The same, but counterfeits are photographs like the others: there is nothing to learn."""
    cut = patches.crop(("chelsea", "coffee"), 2 * count, generator=torch.Generator().manual_seed(0))[..., :SIZE, :SIZE]
    write(root / "first" / "0_real", cut[0::4].repeat(2, 1, 1, 1))
    write(root / "first" / "1_fake", cut[0::4].repeat(2, 1, 1, 1))
    return root


def write(folder: Path, pictures: torch.Tensor) -> None:
    """Write pictures (N, 3, H, W) as PNG."""
    folder.mkdir(parents=True)
    for number, picture in enumerate(pictures):
        vision.to_pil_image(picture.mul(255).round().byte()).save(folder / f"{number:04d}.png")
