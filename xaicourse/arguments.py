"""Errors that name the argument, what came and what is expected: the checks that several methods share (all lectures)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["check_finite", "check_generator", "check_positive", "kind"]


def check_finite(name: str, values: Tensor) -> None:
    """ValueError if a value is NaN or infinite; ``name`` is what the message calls them."""
    if not bool(torch.isfinite(values).all()):
        bad = int((~torch.isfinite(values)).sum())
        raise ValueError(f"{name} must be finite: {bad} of {values.numel()} values are NaN or infinite")


def check_positive(name: str, value: float) -> None:
    """TypeError if it is no number, ValueError if it is not above 0 and finite."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be above 0 and finite, got {value}")


def check_generator(generator: torch.Generator | None) -> None:
    """TypeError if it is neither a generator nor None."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator or None, got {type(generator).__name__}")


def kind(value: object) -> str:
    """What came, in words: dtype and shape of a tensor, the type of anything else."""
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
