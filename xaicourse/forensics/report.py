"""What the seeds say together: means, intervals over seeds, paired differences. Lecture 15."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from ..weights import DATA
from .ablation import KINDS
from .channels import norms
from .colour import ARTEFACTS
from .experiment import ARMS
from .generators import Autoencoder
from .miniature import SEEN

__all__ = [
    "shipped",
    "Interval",
    "ablation_table",
    "collect",
    "complete",
    "colour_table",
    "difference",
    "difference_table",
    "fooled_table",
    "interval",
    "summary",
    "values",
]


_MADE_BY = "python -m xaicourse.forensics report"


class Interval(NamedTuple):
    """A mean over seeds and the half width of its 95 % interval by Student's t; printed as "0.91 ± 0.03".

    Seeds of the miniature deal the same nine photographs: the interval is about further deals of these, not about others.
    """

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


def shipped() -> dict[str, Any]:
    """The results that come with the course, as ``collect`` gives them: the miniature over fresh seeds.

    FileNotFoundError if they are not there; they come with the course's folder, not with an installed package.
    """
    file = DATA / "forensics" / "results.json"
    if not file.exists():
        raise FileNotFoundError(f"the results must be in {file}; `{_MADE_BY}` makes them")
    return json.loads(file.read_text(encoding="utf-8"))


def values(results: dict[str, Any], *path: str) -> list[float]:
    """The number at a path of keys, one for every seed that has it; "*" stands for the mean over all generators.

    values(results, "small", "ablate", "baseline", "nearest", "precision")
    values(results, "small", "ablate", "after", "top", "*", "precision")
    """
    found = [_at(of_seed, path) for of_seed in results.values()]
    return [value for value in found if value is not None]


def _at(place: Any, path: Sequence[str]) -> float | None:
    for number, key in enumerate(path):
        if not isinstance(place, dict):
            return None
        if key == "*":  # what is no dictionary stands beside the generators: a threshold
            inside = [_at(each, path[number + 1 :]) for each in place.values() if isinstance(each, dict)]
            known = [value for value in inside if value is not None]
            return mean(known) if known else None
        place = place.get(key)
    return None if place is None or isinstance(place, dict) else float(place)


def difference(results: dict[str, Any], path: Sequence[str], other: Sequence[str]) -> Interval:
    """The number at a path minus that at another, paired: within each seed that has both; ValueError if none has.

    difference(results, ("small", "ablate", "after", "top", "nearest", "fake"),
                        ("small", "ablate", "after", "layer-matched", "nearest", "fake"))
    """
    pairs = [(values({"": one}, *path), values({"": one}, *other)) for one in results.values()]
    of_seeds = [a[0] - b[0] for a, b in pairs if a and b]
    if not of_seeds:
        raise ValueError(
            f"path and other must be numbers of one seed at least, got {' / '.join(path)}, {' / '.join(other)}"
        )
    return interval(of_seeds)


def ablation_table(results: dict[str, Any], detector: str, where: str = "after") -> list[list[str]]:
    """Rows of text: what was ablated, then AP, real and counterfeit accuracy for each generator.

    Each is a mean with its interval over seeds. The first row holds the generators' names. ValueError if no seed has results of
    this step for the detector.
    """
    first = _first(results, detector, "ablate")
    if where not in first:
        raise ValueError(f"where must be a place where {detector} was ablated, got {where!r}")
    names = list(first["baseline"])
    rows = [["ablated", *names]]
    for kind in ("baseline", *first[where]):
        at = (detector, "ablate", "baseline") if kind == "baseline" else (detector, "ablate", where, kind)
        cells = ["  ".join(str(interval(values(results, *at, name, what))) for what in _QUALITY) for name in names]
        rows.append([kind, *cells])
    return rows


def colour_table(results: dict[str, Any], detector: str, what: str = "precision") -> list[list[str]]:
    """Rows of text: training, then colour and gray for each generator, as mean and interval over seeds.

    ValueError if no seed has results of this step for the detector.
    """
    first = _first(results, detector, "evaluate")["arms"]
    names = [name for name in next(iter(first.values())) if name != "threshold"]
    rows = [["training", "pictures", *names]]
    for arm in first:
        for pictures in first[arm][names[0]]:
            at = (detector, "evaluate", "arms", arm)
            rows.append([arm, pictures, *(str(interval(values(results, *at, name, pictures, what))) for name in names)])
    return rows


def difference_table(results: dict[str, Any], detector: str, what: str = "precision") -> list[list[str]]:
    """Rows of text: paired differences, within seeds, on each generator: mean and interval over seeds.

    The top channels against each control, ablated after the batch norm; gray counterfeits against coloured ones, for each
    training; and on gray ones each training against that in colour. Rows of a step without results are left out.
    """
    ablated, shown = (detector, "ablate", "after"), (detector, "evaluate", "arms")
    pairs: list[tuple[str, _Path, _Path]] = []
    names: list[str] = []
    if any("ablate" in one.get(detector, {}) for one in results.values()):
        first = _first(results, detector, "ablate")
        names = list(first["baseline"])
        pairs += [
            (f"top minus {kind}, ablated", (*ablated, "top", None, what), (*ablated, kind, None, what))
            for kind in first["after"]
            if kind != "top"
        ]
    if any("evaluate" in one.get(detector, {}) for one in results.values()):
        arms = _first(results, detector, "evaluate")["arms"]
        names = names or [name for name in next(iter(arms.values())) if name != "threshold"]
        gray, colour = (None, "gray", what), (None, "colour", what)
        pairs += [
            (f"gray minus colour, trained in {arm}", (*shown, arm, *gray), (*shown, arm, *colour)) for arm in arms
        ]
        pairs += [
            (f"trained in {arm} minus in colour, on gray", (*shown, arm, *gray), (*shown, "colour", *gray))
            for arm in arms
            if arm != "colour"
        ]
    rows = [["difference", *names]]
    for label, *ends in pairs:
        one, other = ([[name if key is None else key for key in path] for name in names] for path in ends)
        rows.append([label, *(str(difference(results, a, b)) for a, b in zip(one, other, strict=True))])
    return rows


def fooled_table(results: dict[str, Any]) -> list[list[str]]:
    """Rows of text: what was ablated in the generator, then for each k the share of pictures found and their distortion."""
    ks: list[str] = []
    for one in results.values():
        ks = ks or list(one.get("fooled", {}).get("top", {}))
    rows = [["ablated", *(f"k = {k}" for k in ks)]]
    for kind in KINDS if ks else ():
        at = ("fooled", kind)
        cells = [[str(interval(values(results, *at, k, what))) for what in ("detected", "distortion")] for k in ks]
        rows.append([kind, *("  ".join(cell) for cell in cells)])
    return rows


def complete(results: dict[str, Any]) -> bool:
    """Whether there is all that ``summary`` needs: the miniature, with both detectors that the lecture shows."""
    steps = {"small": ("ablate", "evaluate"), "efficientnet_lite0": ("ablate", "evaluate")}
    return all(
        {"planted", "fooled", "tuned"} <= set(one)
        and all(set(needed) <= set(one.get(name, {})) for name, needed in steps.items())
        for one in results.values()
    )


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """The figures that the closing page of the course quotes: mean and half width over seeds, averaged over generators.

    Keys are as in the results of a seed; "difference" has the paired ones.
    """
    found: dict[str, Any] = {"seeds": len(results)}
    for name in ("small", "efficientnet_lite0"):
        rows: dict[str, tuple[str, ...]] = {"nothing": (name, "ablate", "baseline", "*", "precision")}
        rows |= {kind: (name, "ablate", "after", kind, "*", "precision") for kind in KINDS}
        gray, colour = ((name, "evaluate", "arms", "colour", "*", shown, "precision") for shown in ("gray", "colour"))
        found[name] = {row: list(interval(values(results, *path))) for row, path in rows.items()}
        found[name]["lost beyond layers"] = list(difference(results, rows["layer-matched"], rows["top"]))
        found[name]["difference"] = {"gray, colour": list(difference(results, gray, colour))}
    found["planted"] = {kind: list(interval(values(results, "planted", kind, "outrank"))) for kind in ARTEFACTS}
    found["tuned"] = list(interval(values(results, "tuned", "outrank")))
    found["gray photographs called real"] = {
        arm: list(interval(values(results, "small", "evaluate", "arms", arm, "*", "all gray", "real"))) for arm in ARMS
    }
    found["fooled"] = {"whole": list(interval(values(results, "fooled", "whole")))} | {
        kind: {what: list(interval(values(results, "fooled", kind, _OFF, what))) for what in ("detected", "distortion")}
        for kind in KINDS
    }
    of_generator = norms(Autoencoder(SEEN).decoder).values()
    found["fooled"] |= {"channels off": int(_OFF), "channels": sum(norm.num_features for norm in of_generator)}
    return found


def _first(results: dict[str, Any], detector: str, step: str) -> dict[str, Any]:
    for one in results.values():
        if step in one.get(detector, {}):
            return one[detector][step]
    raise ValueError(f"results must hold those of step {step!r} for detector {detector!r}; there are none")


_Path = tuple[str | None, ...]  # of keys; None stands for a generator's name
_QUALITY = ("precision", "real", "fake")
_OFF = "8"  # channels of the generator, of those numbers that were tried
