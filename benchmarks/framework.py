"""How every benchmark measures: first whether the contenders agree, then their time, then their memory.

Equality. Before anything is timed, each peer's result is held against ours, as a rule in float64 on fewer
items. If they differ by more than the row allows, the row does not hold and nothing in it is timed: comparing
two different things is not worth a number. Peers of which this is not expected are tried: one that does not
run, or gives something else, is left out, and the row says why.

Time. All contenders run in one process, one after the other in every round, so that a busy machine slows
all of them. We report the median over rounds of each contender's time, and of its ratio to ours within the
same round. The first call, in which caches are cold, stands apart.

Memory. Each contender runs once more in a process of its own. Its peak is the high-water mark of resident
memory, less what was resident when imports were done and the model stood.

Figures are written after every row. A row that a file already has, measured with the same versions on the same
machine, is taken from there, so that a run that was killed goes on where it stopped.
"""

from __future__ import annotations

import gc
import hashlib
import json
import multiprocessing
import os
import platform
import resource
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor

OURS = "ours"
THREADS = 2

Work = Callable[[], Tensor]
Result = dict[str, Any]


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
    tried     why it may be unable to: if it raises, or its result is not ours, the row says so in place of its figures
    memory    whether its peak memory is worth a process
    settings  how it was set up, in words, for the report
    """

    prepare: Callable[[bool], Work]
    agrees: bool = True
    tried: str = ""
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
class Settings:
    """How often to measure."""

    rounds: int = 5
    memory: bool = True


class Measurable(Protocol):
    """What ``run`` needs of a row. A result has at least ``holds``, and ``why`` not."""

    @property
    def name(self) -> str: ...

    @property
    def configuration(self) -> Mapping[str, Any]: ...

    def measure(self, settings: Settings) -> Result: ...

    def report(self, result: Result) -> str: ...


@dataclass(frozen=True)
class Row:
    """One piece of work and everybody who does it; ``tolerance`` bounds max |difference| / max |result|."""

    name: str
    contenders: Mapping[str, Contender]
    tolerance: float
    goals: Sequence[Goal] = ()
    configuration: Mapping[str, Any] = field(default_factory=dict)

    def measure(self, settings: Settings) -> Result:
        """Everything about the row; raises ``Unequal`` before any timing if results differ that should not."""
        return _measure(self, settings)

    def report(self, result: Result) -> str:
        """The row as text."""
        return "\n" + report(result)


# -------------------------------------------------------------------------------------------------- measuring


def difference(peer: Tensor, ours: Tensor) -> float:
    """max |peer - ours| / max |ours|."""
    if peer.shape != ours.shape:
        raise Unequal(f"results have shapes {tuple(peer.shape)} and {tuple(ours.shape)}")
    return ((peer - ours).abs().max() / ours.abs().max()).item()


def equality(row: Row) -> tuple[dict[str, float], dict[str, str]]:
    """How far each peer's exact result is from ours, and why those that were only tried are unable to give it.

    ``Unequal`` if another one is above the row's tolerance.
    """
    result = row.contenders[OURS].prepare(True)()
    found: dict[str, float] = {}
    unable: dict[str, str] = {}
    for name, contender in row.contenders.items():
        if name == OURS or not contender.agrees:
            continue
        try:
            off = difference(contender.prepare(True)(), result)
        except Exception as error:
            if not contender.tried:
                raise
            unable[name] = _one_line(error)
            continue
        if off <= row.tolerance:
            found[name] = off
        elif contender.tried:  # also if it is NaN
            unable[name] = f"runs, but differs by {off:.1e}: {contender.tried}"
        else:
            raise Unequal(f"ours and {name} differ by {off:.1e}, allowed {row.tolerance:.1e}")
    return found, unable


def _one_line(error: Exception) -> str:
    first = str(error).strip().split("\n")[0].split(". ")[0]
    return f"{type(error).__name__}: {first}"


def times(row: Row, rounds: int) -> Result:
    """Seconds of each contender's first and later calls, interleaved, and how far their results differ."""
    works = {name: contender.prepare(False) for name, contender in row.contenders.items()}
    yardsticks = [name for name, contender in row.contenders.items() if not contender.agrees]
    if yardsticks:
        works[yardsticks[0]]()  # PyTorch's own warm-up is nobody's first call
    first, results = {}, {}
    for name, work in works.items():
        first[name], results[name] = timed(work)
    differences = {
        name: difference(results[name], results[OURS])
        for name, contender in row.contenders.items()
        if name != OURS and contender.agrees
    }
    del results
    later: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            later[name].append(timed(work)[0])
    return {
        "first_call": first,
        "later_calls": later,
        "median": {name: median(seconds) for name, seconds in later.items()},
        "difference_as_timed": differences,
    }


def timed(work: Work) -> tuple[float, Tensor]:
    """The seconds that one call takes, and its result."""
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


def _measure(row: Row, settings: Settings) -> Result:
    torch.set_num_threads(THREADS)
    result: Result = {"tolerance": row.tolerance}
    result["difference"], result["unable"] = equality(row)
    row = replace(row, contenders={name: c for name, c in row.contenders.items() if name not in result["unable"]})
    result["settings"] = {name: c.settings for name, c in row.contenders.items() if c.settings}
    result |= times(row, settings.rounds)
    result["load"] = os.getloadavg()[0]
    if settings.memory:
        result["memory"] = {name: peak_memory(c) for name, c in row.contenders.items() if c.memory}
    result["goals"] = [_judge(goal, result) for goal in row.goals]
    return {**result, "holds": True}


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


def facts(subject: ModuleType | None = None) -> Result:
    """What figures depend on, with nothing in it that belongs to one machine's owner; ``subject`` is what is measured."""
    versions = {"python": platform.python_version()}
    if subject is not None:
        versions[subject.__name__] = _digest(subject)
    for package in ("torch", "torchvision", "numpy", "zennit", "captum", "grad-cam", "shap", "shapiq", "timm"):
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


def _digest(package: ModuleType) -> str:
    """The version of a package that is being worked on: some letters that change with its code."""
    code = hashlib.sha256()
    for file in sorted(Path(next(iter(package.__path__))).glob("**/*.py")):
        code.update(file.read_bytes())
    return code.hexdigest()[:8]


def report(result: Result) -> str:
    """One row as text."""
    lines = [f"{result['name']}    ({', '.join(f'{k} {v}' for k, v in result['configuration'].items())})"]
    if not result["holds"]:
        return f"{lines[0]}\n  does not hold: {result['why']}"
    for name, found in result["difference"].items():
        as_timed = result["difference_as_timed"][name]
        lines.append(
            f"  equal: ours and {name} differ by {found:.1e} in float64 (at most {result['tolerance']:.0e}), "
            f"{as_timed:.1e} as timed"
        )
    lines += [f"  unable: {name} ({why})" for name, why in result["unable"].items()]
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


def run(
    rows: Sequence[Measurable],
    settings: Settings,
    show: Callable[[str], None] = print,
    subject: ModuleType | None = None,
    earlier: Result | None = None,
    save: Callable[[Result], None] | None = None,
) -> Result:
    """Measure, show and save row by row; rows that hold in the ``earlier`` result are taken from there.

    A row that raises does not hold, and the next one follows.
    """
    about = {**facts(subject), **asdict(settings)}
    show(
        f"{', '.join(f'{k} {v}' for k, v in about['versions'].items())}; "
        f"{about['machine']['cpu_count']} cores, {about['machine']['threads']} threads, "
        f"{about['machine']['vector_instructions']}; {settings.rounds} rounds, medians"
    )
    measured: dict[str, Result] = {}
    if earlier is not None and {key: earlier.get(key) for key in about} == about:
        measured = {result["name"]: result for result in earlier["rows"]}
    elif earlier is not None:
        show("the earlier figures come from other versions, settings or machines: everything is measured again")
    for row in rows:
        known = measured.get(row.name)
        if known is None or not known["holds"] or known["configuration"] != dict(row.configuration):
            measured[row.name] = _attempt(row, settings)
            if save is not None:
                save({**about, "rows": list(measured.values())})
        show(row.report(measured[row.name]))
    failed = [row.name for row in rows if not measured[row.name]["holds"]]
    show(f"\n{len(rows) - len(failed)} of {len(rows)} hold" + (f"; not {', '.join(failed)}" if failed else ""))
    return {**about, "rows": list(measured.values())}


def _attempt(row: Measurable, settings: Settings) -> Result:
    result: Result = {"name": row.name, "configuration": dict(row.configuration)}
    try:
        return result | row.measure(settings)
    except Exception as error:
        if not isinstance(error, Unequal):
            traceback.print_exc()
        return {**result, "holds": False, "why": _one_line(error)}


def read(path: Path | None) -> dict[str, Result]:
    """What ``write`` wrote; nothing if the file is not there."""
    return json.loads(path.read_text()) if path is not None and path.exists() else {}


def write(results: Mapping[str, Result], path: Path) -> None:
    """All benchmarks' results as JSON; the file is replaced at once, so that there is always a whole one."""
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(json.dumps(results, indent=2) + "\n")
    unfinished.replace(path)
