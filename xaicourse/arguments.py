"""Errors that name the argument, what came and what is expected: the checks that several methods share (all lectures)."""

from __future__ import annotations

import difflib
import math
import numbers

import torch
from torch import Tensor, nn

__all__ = ["check_count", "check_finite", "check_generator", "check_layer", "check_positive", "kind"]


def check_finite(name: str, values: Tensor) -> None:
    """ValueError if a value is NaN or infinite; ``name`` is what the message calls them."""
    if bool(values.sum().isfinite()):  # one pass: no NaN or infinity is lost in a sum, though a sum may overflow
        return
    if not bool(torch.isfinite(values).all()):
        bad = int((~torch.isfinite(values)).sum())
        raise ValueError(f"{name} must be finite: {bad} of {values.numel()} values are NaN or infinite")


def check_positive(name: str, value: float) -> None:
    """TypeError if it is no number, ValueError if it is not above 0 and finite."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be above 0 and finite, got {value}")


def check_weight(name: str, value: float) -> None:
    """TypeError if it is no number, ValueError if it is not at least 0 and finite."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be at least 0 and finite, got {value}")


def check_switch(name: str, value: bool) -> None:
    """TypeError unless it is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {type(value).__name__}")


def check_count(name: str, value: int, *, least: int = 1, most: int | None = None, most_is: str = "") -> None:
    """TypeError if it is no int (or NumPy's), ValueError if it is not from ``least`` to ``most``; ``most_is`` says what."""
    if isinstance(value, bool) or not isinstance(value, (int, numbers.Integral)):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < least or (most is not None and value > most):
        limit = f"at least {least}" if most is None else f"from {least} to {most}, {most_is}"
        raise ValueError(f"{name} must be {limit}, got {value}")


def check_layer(name: str, model: object, path: str) -> nn.Module:
    """The module of that path; TypeError if the model has none, ValueError with the nearest names if there is no such path."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module for {name} to name a part of it, got {type(model).__name__}")
    if not isinstance(path, str):
        raise TypeError(f"{name} must be the path of a module, a string, got {type(path).__name__}")
    modules = dict(model.named_modules(remove_duplicate=False))
    if not path or path not in modules:
        known = [known for known in modules if known]
        near = difflib.get_close_matches(path, known, n=5, cutoff=0.4) or known[:5]
        raise ValueError(
            f"{name} must be the path of a module of the model, got {path!r}; there are {len(known)}, such as "
            f"{', '.join(map(repr, near))}"
        )
    return modules[path]


def check_generator(generator: torch.Generator | None) -> None:
    """TypeError if it is neither a generator nor None."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator or None, got {type(generator).__name__}")


def kind(value: object) -> str:
    """What came, in words: dtype and shape of a tensor, the type of anything else."""
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
