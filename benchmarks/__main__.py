"""``python -m benchmarks [NAME …] [--only PATTERN] [--quick] [--json FILE] [--list]``; no NAME: all."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import benchmarks

from .framework import Result, Settings, read, run, write

_MACHINERY = {"framework", "networks", "__main__"}


def names() -> list[str]:
    """The benchmarks: every file in this folder that is not part of the machinery."""
    return sorted(m.name for m in pkgutil.iter_modules(benchmarks.__path__) if m.name not in _MACHINERY)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmarks that were asked for; 1 if a row does not hold."""
    known = ", ".join(names())
    parser = argparse.ArgumentParser("python -m benchmarks", description="Ours beside the peers on the same work.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {known}; all of them if none is given")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write figures to this file; rows that it has are not measured again"
    )
    parser.add_argument("--only", default="*", metavar="PATTERN", help="rows by name, such as 'resnet50*'")
    parser.add_argument("--rounds", type=int, help="how often to time everybody")
    parser.add_argument("--quick", action="store_true", help="small inputs, one round: does it run at all?")
    parser.add_argument("--list", action="store_true", help="print the names of the rows and stop")
    asked = parser.parse_args(arguments)
    if unknown := sorted(set(asked.names) - set(names())):
        parser.error(f"no benchmark called {', '.join(unknown)}; there are {known}")

    settings = Settings(asked.rounds or (1 if asked.quick else 3), memory=not asked.quick)
    results = read(asked.json)
    all_hold = True
    for name in asked.names or names():
        benchmark = importlib.import_module(f"benchmarks.{name}")
        rows = [row for row in benchmark.rows(quick=asked.quick) if fnmatchcase(row.name, asked.only)]
        if asked.list:
            print(*(f"{name}: {row.name}" for row in rows), sep="\n")
            continue
        print(f"== {name}")

        def save(result: Result, name: str = name) -> None:
            results[name] = result
            if asked.json:
                write(results, asked.json)

        show = partial(print, flush=True)
        result = run(rows, settings, show, benchmark.SUBJECT, results.get(name), save)
        asked_for = {row.name for row in rows}
        all_hold &= all(row["holds"] for row in result["rows"] if row["name"] in asked_for)
    return 0 if all_hold else 1


if __name__ == "__main__":
    sys.exit(main())
