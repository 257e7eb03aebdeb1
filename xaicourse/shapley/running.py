"""An estimate while it comes: look at it after every few evaluations, and stop when it is good enough (lecture 05)."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..arguments import check_count
from .game import Game
from .regression import kernel, kernel_steps
from .result import Shapley
from .sampling import permutation, permutation_steps

__all__ = ["running"]

_STEPS: dict[Callable[..., Shapley], Callable[..., Iterator[Shapley]]] = {
    permutation: permutation_steps,
    kernel: kernel_steps,
}


def running(
    estimator: Callable[..., Shapley],
    game: Game,
    evaluations: int,
    *,
    every: int | None = None,
    generator: torch.Generator | None = None,
    **settings: Any,
) -> Iterator[Shapley]:
    """The results of an estimator, one after the other, while its budget is used up::

        for result in shapley.running(shapley.kernel, game, 100_000):
            if result.standard_errors.max() < 0.01:
                break

    estimator    ``shapley.permutation`` or ``shapley.kernel``; ``settings`` are its own
    evaluations  the budget
    every        evaluations from one result to the next, about; None is a twentieth of the budget
    generator    where the draws come from; None is torch's global one

    Yields a `Shapley` each time: of `kernel`, as soon as there are two coalitions of each size. Stopping when the standard
    errors are small makes them look a little smaller than they are.

    Raises TypeError or ValueError if an argument is not as above.
    """
    if estimator not in _STEPS:
        raise ValueError(f"estimator must be shapley.permutation or shapley.kernel, got {estimator!r}")
    if every is None:
        every = max(1, int(evaluations) // 20) if isinstance(evaluations, numbers.Integral) else 1
    check_count("every", every)
    return _STEPS[estimator](game, evaluations, every=every, generator=generator, **settings)
