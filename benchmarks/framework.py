"""How every benchmark measures: first whether the contenders agree, then their time, then their memory.

Equality. Before anything is timed, each peer's result is held against ours, as a rule in float64 on fewer
items. If they differ by more than the row allows, ``Unequal`` is raised: comparing two different things is
not worth a number.

Time. All contenders run in one process, one after the other in every round, so that a busy machine slows
all of them. We report the median over rounds of each contender's time, and of its ratio to ours within the
same round. The first call, in which caches are cold, stands apart.

Memory. Each contender runs once more in a process of its own. Its peak is the high-water mark of resident
memory, less what was resident when imports were done and the model stood.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

OURS = "ours"
THREADS = 2

Work = Callable[[], Tensor]


class Unequal(AssertionError):
    """Two contenders that should give the same result do not."""


@dataclass(frozen=True)
class Contender:
    """One way to do the work.

    prepare   prepare(exact) builds whatever is not part of the work (model, inputs, hooks) and returns the
              work itself; with ``exact``, in float64 and on as few items as suffice to see that results
              are equal. A module-level function or a ``functools.partial`` of one, since memory is
              measured in another process
    agrees    its result must equal ours; False for a yardstick that computes something else
    memory    whether its peak memory is worth a process
    settings  how it was set up, in words, for the report
    """

    prepare: Callable[[bool], Work]
    agrees: bool = True
    memory: bool = True
    settings: str = ""


@dataclass(frozen=True)
class Goal:
    """A bound on a ratio of two contenders' medians: ``Goal("time", "ours", "plain", at_most=1.2)``."""

    quantity: str  # "time" or "memory"
    numerator: str
    denominator: str
    at_most: float | None = None
    at_least: float | None = None

    def __str__(self) -> str:
        sign, bound = ("<=", self.at_most) if self.at_most is not None else (">=", self.at_least)
        return f"{self.quantity} {self.numerator} / {self.denominator} {sign} {bound:g}"

    def met(self, ratio: float) -> bool:
        low_enough = self.at_most is None or ratio <= self.at_most
        return low_enough and (self.at_least is None or ratio >= self.at_least)


@dataclass(frozen=True)
class Row:
    """One piece of work and everybody who does it; ``tolerance`` bounds max |difference| / max |result|."""

    name: str
    contenders: Mapping[str, Contender]
    tolerance: float
    goals: Sequence[Goal] = ()
    configuration: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """How often to measure."""

    rounds: int = 5
    memory: bool = True


Result = dict[str, Any]


# -------------------------------------------------------------------------------------------------- measuring


def difference(result: Tensor, peer: Tensor) -> float:
    """max |result - peer| / max |peer|."""
    if result.shape != peer.shape:
        raise Unequal(f"results have shapes {tuple(result.shape)} and {tuple(peer.shape)}")
    return ((result - peer).abs().max() / peer.abs().max()).item()


def equality(row: Row) -> dict[str, float]:
    """How far each peer's exact result is from ours; ``Unequal`` if one is above the row's tolerance."""
    result = row.contenders[OURS].prepare(True)()
    found = {}
    for name, contender in row.contenders.items():
        if name != OURS and contender.agrees:
            found[name] = difference(result, contender.prepare(True)())
            if not found[name] <= row.tolerance:  # also if it is NaN
                raise Unequal(f"{row.name}: ours and {name} differ by {found[name]:.1e}, allowed {row.tolerance:.1e}")
    return found


def times(row: Row, rounds: int) -> Result:
    """Seconds of each contender's first and later calls, interleaved, and how far their results differ."""
    works = {name: contender.prepare(False) for name, contender in row.contenders.items()}
    yardsticks = [name for name, contender in row.contenders.items() if not contender.agrees]
    if yardsticks:
        works[yardsticks[0]]()  # PyTorch's own warm-up is nobody's first call
    first, results = {}, {}
    for name, work in works.items():
        first[name], results[name] = _timed(work)
    differences = {
        name: difference(results[OURS], results[name])
        for name, contender in row.contenders.items()
        if name != OURS and contender.agrees
    }
    del results
    later: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            later[name].append(_timed(work)[0])
    return {
        "first_call": first,
        "later_calls": later,
        "median": {name: median(seconds) for name, seconds in later.items()},
        "difference_as_timed": differences,
    }


def _timed(work: Work) -> tuple[float, Tensor]:
    gc.collect()  # nobody pays for another's garbage
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def peak_memory(contender: Contender) -> float:
    """MiB that two calls of the work need at their peak, beyond model and inputs; in a fresh process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_memory, args=(contender.prepare, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise RuntimeError("the process that measures memory died") from None
    finally:
        process.join()


def _measure_memory(prepare: Callable[[bool], Work], sender: Any) -> None:
    torch.set_num_threads(THREADS)
    work = prepare(False)
    gc.collect()
    before = _resident()
    work()
    work()
    sender.send((_high_water_mark() - before) / 2**20)


def _resident() -> int:
    """Bytes resident now; where the system does not tell, the most there were so far."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return _high_water_mark()


def _high_water_mark() -> int:
    """The most bytes that were resident at any time in this process."""
    try:  # Linux counts a parent's memory into a child's ru_maxrss, but not into this
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


def measure(row: Row, settings: Settings) -> Result:
    """Everything about one row; raises ``Unequal`` before any timing if results differ."""
    torch.set_num_threads(THREADS)
    result: Result = {"name": row.name, "configuration": dict(row.configuration), "tolerance": row.tolerance}
    result["settings"] = {name: c.settings for name, c in row.contenders.items() if c.settings}
    result["difference"] = equality(row)
    result |= times(row, settings.rounds)
    result["load"] = os.getloadavg()[0]
    if settings.memory:
        result["memory"] = {name: peak_memory(c) for name, c in row.contenders.items() if c.memory}
    result["goals"] = [_judge(goal, result) for goal in row.goals]
    return result


def _ratio(result: Result, numerator: str, denominator: str) -> float:
    """The median over rounds of the ratio of two contenders' times."""
    seconds = result["later_calls"]
    return median(a / b for a, b in zip(seconds[numerator], seconds[denominator], strict=True))


def _judge(goal: Goal, result: Result) -> Result:
    judged: Result = {"goal": str(goal), "measured": None, "met": None}
    if goal.quantity == "time":  # round by round, since the machine's speed drifts
        judged["measured"] = _ratio(result, goal.numerator, goal.denominator)
    elif "memory" in result:
        judged["measured"] = result["memory"][goal.numerator] / result["memory"][goal.denominator]
    if judged["measured"] is not None:
        judged["met"] = goal.met(judged["measured"])
    return judged


# -------------------------------------------------------------------------------------------------- reporting


def facts() -> Result:
    """What figures depend on, with nothing in it that belongs to one machine's owner."""
    versions = {"python": platform.python_version()}
    for package in ("torch", "torchvision", "numpy", "zennit", "captum", "shap"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    machine = {
        "system": platform.system(),
        "architecture": platform.machine(),
        "cpu_count": os.cpu_count(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": THREADS,
    }
    return {"versions": versions, "machine": machine}


def report(result: Result) -> str:
    """One row as text."""
    lines = [f"{result['name']}    ({', '.join(f'{k} {v}' for k, v in result['configuration'].items())})"]
    for name, found in result["difference"].items():
        timed = result["difference_as_timed"][name]
        lines.append(
            f"  equal: ours and {name} differ by {found:.1e} in float64 (at most {result['tolerance']:.0e}), "
            f"{timed:.1e} as timed"
        )
    memory = result.get("memory", {})
    rows = [("", "later calls", "x ours", "first call", "peak memory", "settings")]
    for name, seconds in result["median"].items():
        first = result["first_call"][name]
        peak = f"{memory[name]:.0f} MiB" if name in memory else "-"
        setting = result["settings"].get(name, "")
        ratio = _ratio(result, name, OURS)
        rows.append((name, f"{seconds:.3f} s", f"{ratio:.2f}", f"{first:.3f} s", peak, setting))
    lines += ["", *_table(rows)]
    goals = [("target", "measured", "")]
    for goal in result["goals"]:
        if goal["measured"] is not None:
            goals.append((goal["goal"], f"{goal['measured']:.2f}", "met" if goal["met"] else "missed"))
    if len(goals) > 1:
        lines += ["", *_table(goals)]
    return "\n".join(lines)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        middle = [cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True)]
        lines.append("  " + "  ".join([row[0].ljust(widths[0]), *middle, row[-1]]).rstrip())
    return [lines[0], "  " + "-" * (max(map(len, lines)) - 2), *lines[1:]]


def run(rows: Sequence[Row], settings: Settings, show: Callable[[str], None] = print) -> Result:
    """Measure and show row by row."""
    about = facts()
    show(
        f"{', '.join(f'{k} {v}' for k, v in about['versions'].items())}; "
        f"{about['machine']['cpu_count']} cores, {about['machine']['threads']} threads, "
        f"{about['machine']['vector_instructions']}; {settings.rounds} rounds, medians"
    )
    results = []
    for row in rows:
        results.append(measure(row, settings))
        show("\n" + report(results[-1]))
    return {**about, "rounds": settings.rounds, "rows": results}


def write(results: Mapping[str, Result], path: Path) -> None:
    """All benchmarks' results as JSON."""
    path.write_text(json.dumps(results, indent=2) + "\n")
