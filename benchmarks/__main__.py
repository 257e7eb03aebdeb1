"""``python -m benchmarks [NAME …] [--only PATTERN] [--quick] [--json FILE] [--list]``; no NAME: all."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import benchmarks

from .framework import Result, Settings, Unequal, run, write

_MACHINERY = {"framework", "__main__"}


def names() -> list[str]:
    """The benchmarks: every file in this folder that is not part of the machinery."""
    return sorted(m.name for m in pkgutil.iter_modules(benchmarks.__path__) if m.name not in _MACHINERY)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmarks that were asked for; 1 if contenders turn out not to be equal."""
    known = ", ".join(names())
    parser = argparse.ArgumentParser("python -m benchmarks", description="Ours beside the peers on the same work.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {known}; all of them if none is given")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="rows by name, such as 'resnet50*'")
    parser.add_argument("--rounds", type=int, help="how often to time everybody")
    parser.add_argument("--quick", action="store_true", help="small inputs, one round: does it run at all?")
    parser.add_argument("--list", action="store_true", help="print the names of the rows and stop")
    asked = parser.parse_args(arguments)
    if unknown := sorted(set(asked.names) - set(names())):
        parser.error(f"no benchmark called {', '.join(unknown)}; there are {known}")

    rounds = asked.rounds or (1 if asked.quick else 5)
    results: dict[str, Result] = {}
    for name in asked.names or names():
        rows = [
            row
            for row in importlib.import_module(f"benchmarks.{name}").rows(quick=asked.quick)
            if fnmatchcase(row.name, asked.only)
        ]
        if asked.list:
            print(*(f"{name}: {row.name}" for row in rows), sep="\n")
            continue
        print(f"== {name}")
        try:
            results[name] = run(rows, Settings(rounds, memory=not asked.quick))
        except Unequal as difference:
            print(f"NOT EQUAL, so not timed. {difference}", file=sys.stderr)
            return 1
    if asked.json and results:
        write(results, asked.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
