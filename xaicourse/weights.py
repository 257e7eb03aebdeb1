"""Weights of the small networks that the course trained: kept under ``data/`` with the checksums of their card (lecture 06)."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch
from torch import nn

__all__ = ["DATA", "read", "there", "write"]

DATA = Path(__file__).parents[1] / "data"
"""What the course ships beside the package, in folders of their own."""


def read(model: nn.Module, file: Path, *, made_by: str) -> nn.Module:
    """Put the weights of a file into a model and its dropout to rest; returns the model.

    made_by  the command that makes the file, for the error message

    FileNotFoundError if the file is not there (it comes with the course's folder, not with an installed package), RuntimeError
    if it is not the one in the ``sha256sums`` beside it.
    """
    if not file.exists():
        raise FileNotFoundError(f"the weights must be in {file}; `{made_by}` makes them")
    found, expected = _sha256(file), _checksums(file.parent).get(file.name)
    if found != expected:
        raise RuntimeError(f"{file.name} must have the sha256 of its card, {expected}, and has {found}")
    state = torch.load(file, weights_only=True)
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    return model.eval()


def there(file: Path) -> bool:
    """Whether a file of weights is there, whole: as the ``sha256sums`` beside it has it."""
    return file.exists() and _checksums(file.parent).get(file.name) == _sha256(file)


def write(model: nn.Module, file: Path) -> None:
    """Store a model's weights in half precision, and their checksum in ``sha256sums``."""
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}, file)
    sums = _checksums(file.parent) | {file.name: _sha256(file)}
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
    beside = file.parent / f"sha256sums.{os.getpid()}"  # a list cut off in the middle would vouch for none of the files
    beside.write_text(lines, encoding="utf-8")
    beside.replace(file.parent / "sha256sums")


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _checksums(folder: Path) -> dict[str, str]:
    file = folder / "sha256sums"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return {name: digest for digest, name in (line.split() for line in lines)}
