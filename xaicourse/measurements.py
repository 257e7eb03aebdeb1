"""Which method for which question: the course's own measurements, held against the outputs they come from (lecture 15).

``data/measurements.toml`` has one ``[[row]]`` for each; what its fields mean stands at its head. A row quotes the stored
output of the lecture that measured it, or a value of a JSON file under ``data/``. When a lecture is executed again and says
something else, `unsupported` names the row.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

__all__ = ["Measurement", "Source", "Value", "check", "rows", "table", "unsupported"]

ROOT = Path(__file__).parents[1]
FILE = Path("data") / "measurements.toml"

TEXTS = ("question", "method", "measured", "caution", "cell")
SOURCE_KEYS = {"quoted", "file", "value"}
ROW_KEYS = {*TEXTS, "functions", "lecture", "also", *SOURCE_KEYS}
ALSO_KEYS = {"lecture", "cell", "snippet", *SOURCE_KEYS}

# not inside a word, nor behind a letter and a hyphen (LRP-0), nor a part of another number; - and + before it are its sign
NUMBER = re.compile(
    r"(?<![\w.])(?<![A-Za-z_]-)([-+]?)(\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?(?:e[-+]?\d+)?)(?![\w])(?!\.\d)"
)


@dataclass(frozen=True)
class Value:
    """A place in a JSON file, and what stands there: exactly (``equals``) or rounded as it is printed ("0.90", "37 %")."""

    path: tuple[str | int, ...]
    equals: bool | int | float | str | None = None
    rounded: str = ""


@dataclass(frozen=True)
class Source:
    """Where numbers come from: strings in the output of a notebook's cell, or values of a JSON file.

    lecture  the number of the lecture whose notebook it is
    cell     the tag of the cell; or
    snippet  text that stands in the source of this cell and of no other
    quoted   strings of its stored output; runs of blanks and line ends count as one blank
    file     a JSON file, from the root of the course; then
    values   what it must hold
    """

    lecture: int
    cell: str = ""
    snippet: str = ""
    quoted: tuple[str, ...] = ()
    file: str = ""
    values: tuple[Value, ...] = ()


@dataclass(frozen=True)
class Measurement:
    """One row: a question as a student asks it, a method, what the course measured of it, and what that does not show."""

    question: str
    method: str
    functions: tuple[str, ...]
    measured: str
    caution: str
    lecture: int
    cell: str
    sources: tuple[Source, ...]

    @property
    def name(self) -> str:
        """What messages call it: its lecture, its cell and its method."""
        return f"lecture {self.lecture:02d}, {self.cell} ({self.method})"


def rows(path: str | Path | None = None) -> list[Measurement]:
    """Read the measurements, in the order of the file; by default ``data/measurements.toml`` of the course.

    Raises
    ------
    FileNotFoundError
        If there is no such file (it comes with the course's folder, not with an installed package).
    ValueError
        If the file is no TOML, or a row lacks a field, has one that is not known or of another kind, or stands there twice; the
        message names the row and the field.
    """
    path = ROOT / FILE if path is None else Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"the measurements must be in {path}; they come with the course's folder")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path.name} is no TOML: {error}") from None
    unknown = sorted(set(content) - {"row"})
    if unknown or not isinstance(content.get("row"), list) or not content["row"]:
        raise ValueError(f"{path.name} must hold [[row]] tables and nothing else, got {sorted(content) or 'nothing'}")
    found = [_row(entry, number) for number, entry in enumerate(content["row"], start=1)]
    twice = [name for name, times in Counter(row.name for row in found).items() if times > 1]
    if twice:
        raise ValueError(f"{path.name}: {twice[0]} stands there more than once")
    return found


def check(row: Measurement, *, root: str | Path | None = None) -> list[str]:
    """Hold a row against its sources under ``root``: one sentence for everything that does not stand there.

    Every number of ``measured`` and ``caution`` must occur in what is quoted, so that the prose cannot drift from its source; a
    number without a sign stands for both signs.
    """
    root = ROOT if root is None else Path(root)
    asked = list(row.sources)
    if not any(source.file or source.cell == row.cell for source in asked):
        asked.insert(0, Source(row.lecture, cell=row.cell))  # it quotes other cells, and still leads to this one
    found = []
    for source in asked:
        found += _check_file(source, root) if source.file else _check_notebook(source, root)
    known = [_numbers(text) for source in row.sources for text in _quotes(source)]
    for field in ("measured", "caution"):
        strays = [said for said in _together(_numbers(getattr(row, field))) if not _occurs(said, known)]
        found += [f"{field} says {' … '.join(each.text for each in said)}, which is not quoted" for said in strays]
    return found


def unsupported(
    measurements: list[Measurement] | None = None, *, root: str | Path | None = None
) -> dict[str, list[str]]:
    """Check every row: the names of those that their sources do not support, and what is missing; empty if all is well.

    ``assert not (wrong := measurements.unsupported()), wrong`` stops a notebook and says which row it was.
    """
    checked = {row.name: check(row, root=root) for row in (rows() if measurements is None else measurements)}
    return {name: problems for name, problems in checked.items() if problems}


def table(measurements: list[Measurement], *, root: str | Path | None = None) -> str:
    """Draw rows as a Markdown table: question, method, measured, caution, where; rows of one question stand together.

    A question stands where its first row does; the last column leads to the notebooks, as seen from ``lectures/``.

    Raises
    ------
    ValueError
        If there is nothing to draw.
    """
    if not measurements:
        raise ValueError("measurements must hold at least one row, got none")
    root = ROOT if root is None else Path(root)
    lines = ["| question | method | measured in this course | caution | where |", "|:---|:---|:---|:---|:---|"]
    for question in dict.fromkeys(row.question for row in measurements):
        for number, row in enumerate(row for row in measurements if row.question == question):
            names = "<br>".join(f"`{each}`" for each in row.functions)
            said = [
                f"**{_escaped(question)}**" if number == 0 else "",
                f"{_escaped(row.method)}<br>{names}",
                _escaped(row.measured),
                _escaped(row.caution),
                _where(row, root),
            ]
            lines.append(f"| {' | '.join(said)} |")
    return "\n".join(lines)


# reading


def _row(entry: Any, number: int) -> Measurement:
    who = f"row {number}"
    if not isinstance(entry, dict):
        raise ValueError(f"{who} must be a table, got {entry!r}")
    if isinstance(entry.get("method"), str):
        who += f" ({entry['method']})"
    _only(entry, ROW_KEYS, who)
    texts = {field: _text(entry, field, who) for field in TEXTS}
    lecture = _lecture(entry, who)
    functions = _texts(entry, "functions", who)
    sources = []
    if SOURCE_KEYS & set(entry):
        own = {key: entry[key] for key in SOURCE_KEYS & set(entry)}
        sources.append(_source(own | {"cell": texts["cell"]}, lecture, who))
    also = entry.get("also", [])
    if not isinstance(also, list) or not all(isinstance(each, dict) for each in also):
        raise ValueError(f"{who}: also must be a list of tables, got {also!r}")
    for place, each in enumerate(also, start=1):
        _only(each, ALSO_KEYS, f"{who}, also {place}")
        there = _lecture(each, f"{who}, also {place}") if "lecture" in each else lecture
        sources.append(_source(each, there, f"{who}, also {place}"))
    if not sources:
        raise ValueError(f"{who}: needs a source: quoted, or file and value, or also")
    return Measurement(**texts, lecture=lecture, functions=functions, sources=tuple(sources))


def _source(entry: dict[str, Any], lecture: int, who: str) -> Source:
    if "file" in entry or "value" in entry:
        if "quoted" in entry or "snippet" in entry:
            raise ValueError(f"{who}: takes either quoted, from a notebook, or file and value, from JSON; got both")
        file = _text(entry, "file", who)
        if not file.startswith("data/") or ".." in Path(file).parts or not file.endswith(".json"):
            raise ValueError(f"{who}: file must be a .json under data/, got {file!r}")
        given = entry.get("value")
        given = given if isinstance(given, list) else [given]
        if not given:
            raise ValueError(f"{who}: value must be a table or a list of tables, got an empty list")
        return Source(lecture, file=file, values=tuple(_value(each, who) for each in given))
    if "snippet" in entry and "cell" in entry:
        raise ValueError(f"{who}: takes either cell or snippet, got both")
    quoted = _texts(entry, "quoted", who)
    for each in quoted:
        if not re.search(r"[^\W\d_]", each):
            raise ValueError(f"{who}: quoted must have words with its numbers, to be found in one place; got {each!r}")
    if "snippet" in entry:
        return Source(lecture, snippet=_text(entry, "snippet", who), quoted=quoted)
    return Source(lecture, cell=_text(entry, "cell", who), quoted=quoted)


def _value(entry: Any, who: str) -> Value:
    if not isinstance(entry, dict):
        raise ValueError(f"{who}: value must be a table with path and equals or rounded, got {entry!r}")
    _only(entry, {"path", "equals", "rounded"}, f"{who}, value")
    path = entry.get("path")
    steps = tuple(path.split(".")) if isinstance(path, str) else tuple(path) if isinstance(path, list) else ()
    if not steps or not all(
        isinstance(step, (str, int)) and not isinstance(step, bool) and step != "" for step in steps
    ):
        raise ValueError(f"{who}: path must be like 'a.b.0', or a list of keys and places, got {path!r}")
    if ("equals" in entry) == ("rounded" in entry):
        raise ValueError(f"{who}: value must have either equals or rounded, got {sorted(entry)}")
    if "equals" in entry:
        if not isinstance(entry["equals"], (bool, int, float, str)):
            raise ValueError(f"{who}: equals must be a number, a text or true or false, got {entry['equals']!r}")
        return Value(steps, equals=entry["equals"])
    rounded = entry["rounded"]
    if not isinstance(rounded, str) or not re.fullmatch(r"[-+]?\d+(\.\d+)?( ?%)?", _plain(rounded)):
        raise ValueError(
            f"{who}: rounded must be a number as it is printed, in quotes ('0.90', '37 %'), got {rounded!r}"
        )
    return Value(steps, rounded=_plain(rounded))


def _only(entry: dict[str, Any], known: set[str], who: str) -> None:
    unknown = sorted(set(entry) - known)
    if unknown:
        raise ValueError(f"{who}: {unknown[0]!r} is not known; expected {', '.join(sorted(known))}")


def _text(entry: dict[str, Any], field: str, who: str) -> str:
    text = entry.get(field)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{who}: {field} must be a text, got {'nothing' if text is None else repr(text)}")
    return text


def _texts(entry: dict[str, Any], field: str, who: str) -> tuple[str, ...]:
    texts = entry.get(field)
    if not isinstance(texts, list) or not texts or not all(isinstance(each, str) and each.strip() for each in texts):
        raise ValueError(f"{who}: {field} must be a list of texts, got {'nothing' if texts is None else repr(texts)}")
    return tuple(texts)


def _lecture(entry: dict[str, Any], who: str) -> int:
    lecture = entry.get("lecture")
    if isinstance(lecture, bool) or not isinstance(lecture, int) or lecture < 1:
        raise ValueError(f"{who}: lecture must be its number, got {'nothing' if lecture is None else repr(lecture)}")
    return lecture


# checking


def _check_notebook(source: Source, root: Path) -> list[str]:
    path = _notebook(source.lecture, root)
    if path is None:
        return [f"lecture {source.lecture:02d} has no notebook in {root / 'lectures'}"]
    content = json.loads(path.read_text(encoding="utf-8"))
    cells = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    if source.snippet:
        named = [cell for cell in cells if source.snippet in "".join(cell["source"])]
        if len(named) != 1:
            return [
                f"{len(named)} code cells of lecture {source.lecture:02d} have {source.snippet!r} in them; expected one"
            ]
    else:
        named = [cell for cell in cells if source.cell in cell.get("metadata", {}).get("tags", [])]
        if not named:
            return [f"no cell of lecture {source.lecture:02d} is tagged {source.cell!r}"]
    output = _plain("".join(map(_output, named)))
    where = f"lecture {source.lecture:02d}, cell {source.cell or source.snippet!r}"
    return [f"{where} does not say {quote!r}" for quote in source.quoted if not _stands(_plain(quote), output)]


def _check_file(source: Source, root: Path) -> list[str]:
    try:
        content = json.loads((root / source.file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return [f"{source.file} is not there"]
    except json.JSONDecodeError as error:
        return [f"{source.file} is no JSON: {error}"]
    found = []
    for value in source.values:
        where = f"{source.file} at {'.'.join(map(str, value.path))}"
        there: Any = content
        try:
            for step in value.path:
                there = there[int(step)] if isinstance(there, list) else there[str(step)]
        except (KeyError, IndexError, ValueError, TypeError):
            found.append(f"{where} has nothing")
            continue
        if value.rounded:
            if isinstance(there, bool) or not isinstance(there, (int, float)):
                found.append(f"{where} is no number: {there!r}")
            elif _rounded(there, value.rounded) != Decimal(value.rounded.rstrip(" %")):
                found.append(f"{where} is {there}, not {value.rounded}")
        elif there != value.equals or isinstance(there, bool) != isinstance(value.equals, bool):
            found.append(f"{where} is {there!r}, not {value.equals!r}")
    return found


def _rounded(number: float, like: str) -> Decimal:
    """Rounded as Python prints it, to the digits of ``like``; "37 %" is a hundred times the number."""
    digits = len(like.rstrip(" %").partition(".")[2])
    kind = "%" if like.endswith("%") else "f"
    text = format(number, f".{digits}{kind}").rstrip("%")
    return Decimal(text)


def _notebook(lecture: int, root: Path) -> Path | None:
    return next(iter(sorted((root / "lectures").glob(f"{lecture:02d}_*.ipynb"))), None)


def _output(cell: dict[str, Any]) -> str:
    """What a cell has printed and shown, as text; standard error is left out."""
    parts = []
    for output in cell.get("outputs", []):
        if output.get("output_type") == "stream" and output.get("name") == "stdout":
            parts.append("".join(output["text"]))
        elif output.get("output_type") in ("execute_result", "display_data"):
            parts.append("\n" + "".join(output["data"].get("text/plain", "")) + "\n")
    return "".join(parts)


def _plain(text: str) -> str:
    """One blank for any run of blanks and line ends, and one character for minus."""
    return " ".join(text.replace("\N{MINUS SIGN}", "-").split())


def _stands(quote: str, output: str) -> bool:
    """Whether a quote stands in an output without cutting a number in two: '9 of 20' does not stand in '19 of 200'."""
    before = r"(?<![\d.,])" if quote[0].isdigit() else ""
    after = r"(?!\d|[.,]\d)" if quote[-1].isdigit() else ""
    return re.search(before + re.escape(quote) + after, output) is not None


@dataclass(frozen=True)
class _Number:
    text: str  # as it stands there
    sign: str  # '', '+' or '-'
    size: Decimal
    bound: bool  # to the number before it: a mean and its "±", or the two ends of an interval in brackets

    def is_said_by(self, other: _Number) -> bool:
        return self.size == other.size and (not self.sign or (self.sign == "-") == (other.sign == "-"))


def _numbers(text: str) -> list[_Number]:
    text, end = _plain(text), 0
    found: list[_Number] = []
    for each in NUMBER.finditer(text):
        start = each.start()
        bracket = text.rfind("[", 0, start) > text.rfind("]", 0, start)
        bound = bool(found) and (bracket or re.fullmatch(" ?%? ?± ?", text[end:start]) is not None)
        found.append(_Number(each[0], each[1], Decimal(each[2].replace(",", "")), bound))
        end = each.end()
    return found


def _together(numbers: list[_Number]) -> list[list[_Number]]:
    """Numbers in groups that must be quoted together."""
    groups: list[list[_Number]] = []
    for number in numbers:
        if number.bound:
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups


def _quotes(source: Source) -> list[str]:
    return [*source.quoted, " ".join(value.rounded or str(value.equals) for value in source.values)]


def _occurs(said: list[_Number], known: list[list[_Number]]) -> bool:
    """Whether numbers that belong together stand in one quote, one right after the other."""
    return any(
        all(one.is_said_by(other) for one, other in zip(said, quote[start:], strict=False))
        for quote in known
        for start in range(len(quote) - len(said) + 1)
    )


# drawing


def _escaped(text: str) -> str:
    text = " ".join(text.replace("|", r"\|").split())
    return re.sub(r" (?=±|%)|(?<=±) ", "\N{NO-BREAK SPACE}", text)  # no line ends within "3.11 ± 0.79" or "37 %"


def _where(row: Measurement, root: Path) -> str:
    # its own cell; another lecture is named once, by the first of its cells; a file by a link to it
    cells = {row.lecture: row.cell}
    for source in row.sources:
        if not source.file:
            cells.setdefault(source.lecture, source.cell)
    links = []
    for lecture, cell in cells.items():
        label = f"{lecture:02d}\N{NO-BREAK SPACE}·\N{NO-BREAK SPACE}{cell}" if cell else f"{lecture:02d}"
        path = _notebook(lecture, root)
        links.append(f"[{label}]({path.name})" if path else label)
    files = dict.fromkeys(source.file for source in row.sources if source.file)
    return ", ".join([*links, *(f"[{Path(file).stem}](../{file})" for file in files)])
