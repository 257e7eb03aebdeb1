"""Progress bars: shown where they are asked for and tqdm is installed, else nothing (all lectures)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["bar"]


@contextmanager
def bar(total: int, unit: str, shown: bool) -> Iterator[Callable[..., object]]:
    """Inside, a bar of so many units, if ``shown`` and where tqdm is installed; gives what moves it: ``advance(by=1)``."""
    if shown:
        try:
            from tqdm.auto import tqdm
        except ImportError:
            shown = False
    if not shown:
        yield lambda by=1: None
        return
    with tqdm(total=total, unit=f" {unit}", leave=False) as moving:
        yield moving.update
