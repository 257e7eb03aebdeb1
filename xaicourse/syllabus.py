"""The manifest of the course, syllabus.toml: read it, find the promises that are not kept, draw its table.

``python -m xaicourse.syllabus --write README.md`` brings the README's table of lectures up to date.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import json
import re
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Claim", "Lecture", "Syllabus", "insert", "problems", "read", "table"]

LONGEST = 60  # seconds a lecture may run on two cores
BEGIN, END = "<!-- lectures: made by `make table` -->", "<!-- end of lectures -->"


@dataclass(frozen=True)
class Lecture:
    """One lecture; see the head of syllabus.toml for the meaning of each field."""

    number: int
    topic: str
    title: str
    question: str
    part: str
    slides: str
    minutes: int
    prerequisites: list[int]
    status: str
    seconds: float | None = None

    @property
    def notebook(self) -> str:
        """The path of the notebook, from the root of the course."""
        return f"lectures/{self.number:02d}_{self.topic}.ipynb"


@dataclass(frozen=True)
class Claim:
    """What a lecture claims, the cell that shows it and the test that checks it."""

    id: str
    lecture: int
    statement: str
    cell: str = ""
    test: str = ""


@dataclass(frozen=True)
class Syllabus:
    """Every lecture and every claim, in the order of the manifest."""

    lectures: list[Lecture]
    claims: list[Claim]


def read(path: str | Path) -> Syllabus:
    """Read a manifest.

    Raises
    ------
    ValueError
        If a table lacks a field or has one that is not known; the message names the table.
    """
    manifest = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    return Syllabus(
        [_build(Lecture, each) for each in manifest.get("lecture", [])],
        [_build(Claim, each) for each in manifest.get("claim", [])],
    )


def _build(kind: Any, entry: dict[str, Any]) -> Any:
    try:
        return kind(**entry)
    except TypeError as error:
        name = entry.get("id", entry.get("number", "without a name"))
        raise ValueError(f"{kind.__name__.lower()} {name}: {error}") from None


def problems(syllabus: Syllabus, root: str | Path) -> list[str]:
    """Compare a manifest with the course under `root`: one sentence for each promise that is not kept."""
    root = Path(root)
    lectures = {each.number: each for each in syllabus.lectures}
    claimed = {claim.lecture for claim in syllabus.claims}
    names = [f"lecture {each.number}" for each in syllabus.lectures]
    names += [f"claim {each.id}" for each in syllabus.claims]
    found = [f"{name} stands more than once" for name, times in Counter(names).items() if times > 1]
    for lecture in syllabus.lectures:
        here = _lecture(lecture, lectures, root)
        if lecture.status == "ready" and lecture.number not in claimed:
            here.append("is ready and claims nothing")
        found += [f"lecture {lecture.number} {each}" for each in here]
    for claim in syllabus.claims:
        if claim.lecture not in lectures:
            found.append(f"claim {claim.id} belongs to lecture {claim.lecture}, which does not stand here")
        elif lectures[claim.lecture].status == "ready":
            here = _claim(claim, root / lectures[claim.lecture].notebook, root)
            found += [f"claim {claim.id} {each}" for each in here]
    return found


def _lecture(lecture: Lecture, lectures: dict[int, Lecture], root: Path) -> list[str]:
    found = [
        f"builds on lecture {number}, which does not come before it"
        for number in lecture.prerequisites
        if number not in lectures or number >= lecture.number
    ]
    path = root / lecture.notebook
    if lecture.status not in ("planned", "ready"):
        found.append(f"is {lecture.status!r}; expected 'planned' or 'ready'")
    elif path.exists() != (lecture.status == "ready"):
        found.append(f"is {lecture.status}, and {lecture.notebook} is {'there' if path.exists() else 'not there'}")
    if lecture.status != "ready" or not path.exists():
        return found
    if lecture.seconds is None or not 0 < lecture.seconds <= LONGEST:
        found.append(f"runs in {lecture.seconds} seconds; expected more than 0 and at most {LONGEST}")
    cells = _cells(path)
    title = _title(cells)
    if title != lecture.title:
        found.append(f"is called {lecture.title!r} here and {title!r} in its notebook")
    code = [cell for cell in cells if cell["cell_type"] == "code" and _source(cell).strip()]
    counts = [cell.get("execution_count") for cell in code]
    if counts != list(range(1, len(code) + 1)):
        found.append(f"is not committed as executed from top to bottom in a fresh kernel: its counts are {counts}")
    failed = [o for cell in code for o in cell.get("outputs", []) if o.get("output_type") == "error"]
    found += [f"is committed with an error: {each.get('ename')}: {each.get('evalue')}" for each in failed]
    return found


def _claim(claim: Claim, notebook: Path, root: Path) -> list[str]:
    found = []
    if not claim.cell:
        found.append("has no cell")
    elif notebook.exists():
        tagged = [c for c in _cells(notebook) if claim.cell in c.get("metadata", {}).get("tags", [])]
        if not tagged:
            found.append(f"has no cell: none in {notebook.name} is tagged {claim.cell!r}")
        elif not any(cell["cell_type"] == "code" and _asserts(_source(cell)) for cell in tagged):
            found.append(f"is not asserted by the cell tagged {claim.cell!r} in {notebook.name}")
    if not claim.test:
        found.append("has no test")
    elif not _test_exists(claim.test, root):
        found.append(f"has no test: {claim.test!r} is not there, or never runs")
    return found


def _cells(notebook: Path) -> list[dict[str, Any]]:
    return json.loads(notebook.read_text(encoding="utf-8"))["cells"]


def _source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def _title(cells: list[dict[str, Any]]) -> str | None:
    """The first heading, without its number: '# Lecture 11 · LRP: the rules' gives 'LRP: the rules'."""
    headings = (
        re.match(r"#\s+(?:(?:Lecture\s+)?\d+\W+)?(.+)", line)
        for cell in cells
        if cell["cell_type"] == "markdown"
        for line in _source(cell).splitlines()
    )
    return next((heading[1].strip() for heading in headings if heading), None)


def _asserts(source: str) -> bool:
    """Whether code asserts something: an assert of more than a constant, or a call of assert_something."""
    code = "\n".join("pass" if line.startswith(("%", "!")) else line for line in source.splitlines())
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Assert) and not isinstance(node.test, ast.Constant):
            return True
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1].startswith("assert_"):
            return True
    return False


def _test_exists(node_id: str, root: Path) -> bool:
    """Whether tests/test_file.py::test_name, or ...::TestClass::test_name, is a test that pytest runs."""
    file, *names = node_id.split("[")[0].split("::")
    if not names or not names[-1].startswith("test") or not (root / file).is_file():
        return False
    body: list[ast.stmt] = ast.parse((root / file).read_text(encoding="utf-8")).body
    for name in names:
        named = [n for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == name]
        if not named or re.search(r"\bmark\.(skip|xfail)\b", " ".join(map(ast.unparse, named[-1].decorator_list))):
            return False
        body = named[-1].body
    return True


def table(syllabus: Syllabus) -> str:
    """Draw the lectures as a Markdown table, part by part; the title of a ready one leads to its notebook."""
    ready = sum(lecture.status == "ready" for lecture in syllabus.lectures)
    lines = [
        f"Ready so far: {ready} of {len(syllabus.lectures)}.",
        "",
        "| | lecture | the question it answers | slides | minutes | builds on | status |",
        "|---:|---|---|---|---:|---|---|",
    ]
    for part, lectures in itertools.groupby(syllabus.lectures, key=lambda lecture: lecture.part):
        lines.append(f"| | **{part}** | | | | | |")
        for lecture in lectures:
            title = f"[{lecture.title}]({lecture.notebook})" if lecture.status == "ready" else lecture.title
            needs = ", ".join(f"{number:02d}" for number in lecture.prerequisites)
            lines.append(
                f"| {lecture.number:02d} | {title} | {lecture.question} | {lecture.slides} "
                f"| {lecture.minutes} | {needs} | {lecture.status} |"
            )
    return "\n".join(lines)


def insert(text: str, table: str) -> str:
    """Put a table between the two markers of a text.

    Raises
    ------
    ValueError
        If the text does not have each marker once, in their order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"expected one line {BEGIN!r} and, after it, one line {END!r}")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.split(END)[1]}"


def main() -> None:
    """Write the table into a file, from the syllabus.toml beside it."""
    parser = argparse.ArgumentParser(description=main.__doc__, prog="python -m xaicourse.syllabus")
    parser.add_argument("--write", type=Path, required=True, metavar="FILE", help="for instance README.md")
    file = parser.parse_args().write
    file.write_text(insert(file.read_text(encoding="utf-8"), table(read(file.parent / "syllabus.toml"))), "utf-8")


if __name__ == "__main__":
    main()
