"""What the seeds say together: means, intervals over seeds, paired differences. Lecture 15."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

__all__ = ["Interval", "ablation_table", "collect", "colour_table", "interval", "values"]


class Interval(NamedTuple):
    """A mean over seeds and the half width of its 95 % interval by Student's t; printed as "0.91 ± 0.03"."""

    mean: float
    half: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.half:.2f}" if math.isfinite(self.half) else f"{self.mean:.2f}"


def interval(of_seeds: Sequence[float]) -> Interval:
    """Mean and 95 % interval of one number per seed; the half width of a single seed is infinite."""
    from scipy.stats import t

    if not of_seeds:
        raise ValueError("of_seeds must hold at least one number, got none")
    count = len(of_seeds)
    half = float(t.ppf(0.975, count - 1)) * stdev(of_seeds) / math.sqrt(count) if count > 1 else math.inf
    return Interval(mean(of_seeds), half)


def collect(folder: Path) -> dict[str, Any]:
    """Everything that runs have written under a folder: results by seed, then by file, without weights.

    Returns {"3": {"small": {"ablate": …, "evaluate": …}, "planted": …}, …}; ValueError if there is nothing.
    """
    found: dict[str, Any] = {}
    for file in sorted(Path(folder).glob("seed-*/**/*.json")):
        if file.name == "ranking.json":
            continue
        seed, *inside = file.relative_to(folder).with_suffix("").parts
        place = found.setdefault(seed.removeprefix("seed-"), {})
        for part in inside[:-1]:
            place = place.setdefault(part, {})
        place[inside[-1]] = json.loads(file.read_text(encoding="utf-8"))
    if not found:
        raise ValueError(
            f"folder must hold results of `python -m xaicourse.forensics`, seed-…/*.json; {folder} has none"
        )
    return dict(sorted(found.items(), key=lambda item: int(item[0])))


def values(results: dict[str, Any], *path: str) -> list[float]:
    """The number at a path of keys, one for every seed that has it.

    values(results, "small", "ablate", "baseline", "nearest", "precision")
    """
    found = []
    for of_seed in results.values():
        at: Any = of_seed
        for key in path:
            at = at.get(key) if isinstance(at, dict) else None
        if at is not None:
            found.append(float(at))
    return found


def ablation_table(results: dict[str, Any], detector: str, where: str = "after") -> list[list[str]]:
    """Rows of text: what was ablated, then AP, real and counterfeit accuracy for each generator.

    Each is a mean with its interval over seeds. The first row holds the generators' names.
    """
    first = next(r[detector]["ablate"] for r in results.values() if detector in r and "ablate" in r[detector])
    names = list(first["baseline"])
    rows = [["ablated", *names]]
    for kind in ("baseline", *first[where]):
        at = (detector, "ablate", "baseline") if kind == "baseline" else (detector, "ablate", where, kind)
        cells = ["  ".join(str(interval(values(results, *at, name, what))) for what in _QUALITY) for name in names]
        rows.append([kind, *cells])
    return rows


def colour_table(results: dict[str, Any], detector: str, what: str = "precision") -> list[list[str]]:
    """Rows of text: training, then colour and gray for each generator, as mean and interval over seeds."""
    first = next(r[detector]["evaluate"]["arms"] for r in results.values() if "evaluate" in r.get(detector, {}))
    names = [name for name in next(iter(first.values())) if name != "threshold"]
    rows = [["training", "pictures", *names]]
    for arm in first:
        for pictures in first[arm][names[0]]:
            at = (detector, "evaluate", "arms", arm)
            rows.append([arm, pictures, *(str(interval(values(results, *at, name, pictures, what))) for name in names)])
    return rows


_QUALITY = ("precision", "real", "fake")
