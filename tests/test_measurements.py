"""The closing table says what the lectures measured, and a number that is no longer there is found."""

import importlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xaicourse import measurements
from xaicourse.measurements import Measurement, Source, Value

ROOT = Path(__file__).parents[1]
ROWS = measurements.rows()
OF_NOTEBOOKS = [row for row in ROWS if not any(source.file for source in row.sources)]


# the table of the course


def test_every_row_is_supported_by_what_the_lectures_have_stored():
    assert measurements.unsupported() == {}


def test_every_lecture_from_01_to_12_has_a_row():
    assert set(range(1, 13)) <= {row.lecture for row in ROWS}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_functions_that_a_row_names_are_in_the_package(row):
    for name in row.functions:
        module, _, function = name.rpartition(".")
        assert callable(getattr(importlib.import_module(f"xaicourse.{module}"), function)), name


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_measures_something_and_is_short_enough_to_be_shown(row):
    assert re.search(r"\d", row.measured)
    assert len(row.measured) <= 240 and len(row.caution) <= 240


@pytest.mark.parametrize("row", OF_NOTEBOOKS, ids=lambda row: row.name)
def test_a_number_that_the_prose_changes_is_found(row):
    number = re.search(r"(?<![\w.-])\d+\.\d+(?!\w)|(?<![\w.-])\d+ %", row.measured) or re.search(r"\d\d+", row.measured)
    drifted = replace(row, measured=row.measured.replace(number[0], "777.7", 1))
    assert any("777.7" in problem for problem in measurements.check(drifted))


@pytest.mark.parametrize("row", OF_NOTEBOOKS, ids=lambda row: row.name)
def test_a_quote_with_another_first_digit_is_found(row):
    for place, source in enumerate(row.sources):
        for quote in source.quoted:
            other = re.sub(r"\d", lambda digit: str((int(digit[0]) + 1) % 10), quote, count=1)
            changed = replace(source, quoted=(other,))
            drifted = replace(row, sources=(*row.sources[:place], changed, *row.sources[place + 1 :]))
            assert other == quote or any(repr(other) in each for each in measurements.check(drifted)), other


def test_a_lecture_that_is_executed_again_with_another_number_fails_by_name(tmp_path):
    (tmp_path / "lectures").mkdir()
    (notebook,) = ROOT.glob("lectures/03_*.ipynb")
    text = notebook.read_text(encoding="utf-8")
    assert "3.11 ± 0.79" in text
    (tmp_path / "lectures" / notebook.name).write_text(text.replace("3.11 ± 0.79", "3.12 ± 0.79"), encoding="utf-8")
    found = measurements.unsupported([row for row in ROWS if row.lecture == 3], root=tmp_path)
    assert list(found) == ["lecture 03, N3 (nearest samples in feature space)"]
    assert found["lecture 03, N3 (nearest samples in feature space)"][0].startswith(
        "lecture 03, cell 'N3' does not say 'without the 40 nearest the log odds"
    )


# the checker itself, on a small course


def course(folder: Path, output="of 20 wrong labels 19 are\n   found,  by chance 0.4 ± 0.1\n", record=None) -> Path:
    cells = [
        {"cell_type": "markdown", "metadata": {"tags": ["A1"]}, "source": ["show(picture): 18"]},
        {
            "cell_type": "code",
            "metadata": {"tags": ["A1"]},
            "source": ["print(found)\n", "assert found"],
            "outputs": [
                {"output_type": "stream", "name": "stdout", "text": [output[:7]]},
                {"output_type": "stream", "name": "stderr", "text": ["of 20 wrong labels 17 are found"]},
                {"output_type": "stream", "name": "stdout", "text": [output[7:]]},
            ],
        },
        {
            "cell_type": "code",
            "metadata": {},
            "source": ["show(picture)"],
            "outputs": [{"output_type": "execute_result", "data": {"text/plain": ["two maps differ by −0.25"]}}],
        },
    ]
    (folder / "lectures").mkdir(parents=True, exist_ok=True)
    (folder / "lectures" / "03_labels.ipynb").write_text(json.dumps({"cells": cells}), encoding="utf-8")
    if record is not None:
        (folder / "data" / "labels").mkdir(parents=True)
        (folder / "data" / "labels" / "found.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


def row(measured="Of 20 wrong labels 19 are found.", caution="Few.", sources=None) -> Measurement:
    quoted = ("of 20 wrong labels 19 are found",)
    sources = (Source(3, cell="A1", quoted=quoted),) if sources is None else sources
    return Measurement("Which labels are wrong?", "values", ("neighbors.nearest",), measured, caution, 3, "A1", sources)


def test_a_quote_is_found_whatever_blanks_and_pieces_the_output_came_in(tmp_path):
    assert measurements.check(row(), root=course(tmp_path)) == []


@pytest.mark.parametrize(
    "quote", ["of 20 wrong labels 18 are", "of 20 wrong labels 17 are", "9 are found", "by chance 0"]
)
def test_prose_errors_and_pieces_of_numbers_are_not_what_a_cell_says(tmp_path, quote):
    sources = (Source(3, cell="A1", quoted=("of 20 wrong labels 19 are", quote)),)
    assert measurements.check(row(sources=sources), root=course(tmp_path)) == [
        f"lecture 03, cell 'A1' does not say {quote!r}"
    ]


def test_a_cell_without_a_tag_is_found_by_a_piece_of_its_source(tmp_path):
    sources = (Source(3, snippet="show(picture)", quoted=("maps differ by -0.25",)),)
    assert measurements.check(row("They differ by 0.25, or −0.25.", sources=sources), root=course(tmp_path)) == []
    for snippet, times in (("nothing like it", 0), (")", 2)):
        other = (replace(sources[0], snippet=snippet),)
        (problem, *_) = measurements.check(row("Apart.", sources=other), root=course(tmp_path))
        assert problem == f"{times} code cells of lecture 03 have {snippet!r} in them; expected one"


def test_a_cell_or_a_notebook_that_is_gone_is_named(tmp_path):
    gone = replace(row(), cell="A2")
    assert measurements.check(gone, root=course(tmp_path)) == ["no cell of lecture 03 is tagged 'A2'"]
    (tmp_path / "lectures" / "03_labels.ipynb").unlink()
    assert "lecture 03 has no notebook" in measurements.check(row(), root=tmp_path)[0]


@pytest.mark.parametrize(
    ("measured", "stray"),
    [
        ("Of 20 wrong labels 18 are found.", "18"),
        ("Found 19 of 20, by chance 0.4 ± 0.2.", "0.4 … 0.2"),
        ("Found 19 ± 20.", "19 … 20"),  # both are quoted, and not as a mean and its interval
        ("Found 20 % [19, 20].", "20 … 19 … 20"),
        ("Found −19.", "-19"),
        ("Found 1,019 of 20.", "1,019"),
    ],
)
def test_a_number_of_the_prose_that_is_not_quoted_is_named(tmp_path, measured, stray):
    quoted = ("of 20 wrong labels 19 are", "by chance 0.4 ± 0.1")
    root = course(tmp_path)
    for field in ("measured", "caution"):
        said = replace(row(sources=(Source(3, cell="A1", quoted=quoted),)), **{field: measured})
        assert measurements.check(said, root=root) == [f"{field} says {stray}, which is not quoted"]


@pytest.mark.parametrize("words", ["LRP-0 and z⁺ on R²", "f(x0) of conv2d", "lecture B12"])
def test_names_with_digits_are_no_numbers(tmp_path, words):
    assert measurements.check(row(f"{words}: 19 of 20."), root=course(tmp_path)) == []


@settings(max_examples=60)
@given(mean=st.integers(-999, 999), half=st.integers(0, 99), drift=st.integers(0, 2))
def test_a_mean_and_its_interval_are_supported_exactly_when_the_output_says_them(tmp_path_factory, mean, half, drift):
    root = course(tmp_path_factory.mktemp("course"), output=f"loss {(mean + drift) / 100:+.2f} ± {half / 100:.2f}\n")
    said = f"{mean / 100:+.2f} ± {half / 100:.2f}"
    found = measurements.check(row(said, sources=(Source(3, cell="A1", quoted=(f"loss {said}",)),)), root=root)
    assert (found == []) == (drift == 0)


RECORD = {"share": {"0.05": [0.3712, 0.0449]}, "seeds": 8, "all": True, "name": "top-k"}


def recorded(*values: Value, measured="Of 8 seeds 37 ± 4 %.") -> Measurement:
    values = (Value(("seeds",), equals=8), *values)
    return replace(row(measured, sources=(Source(15, file="data/labels/found.json", values=values),)), lecture=15)


SHARE = (Value(("share", "0.05", 0), rounded="37 %"), Value(("share", "0.05", "1"), rounded="4%"))


def test_a_row_may_rest_on_values_of_a_file_and_needs_no_notebook(tmp_path):
    exact = (Value(("all",), equals=True), Value(("name",), equals="top-k"))
    assert measurements.check(recorded(*SHARE, *exact), root=course(tmp_path, record=RECORD)) == []


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (Value(("share", "0.05", 0), rounded="38 %"), "share.0.05.0 is 0.3712, not 38 %"),
        (Value(("share", "0.05", 0), rounded="0.37"), ""),
        (Value(("share", "0.05", 0), rounded="0.370"), "is 0.3712, not 0.370"),
        (Value(("share", "0.05", 2), rounded="0.37"), "share.0.05.2 has nothing"),
        (Value(("share", "0.1", 0), rounded="0.37"), "share.0.1.0 has nothing"),
        (Value(("seeds", "a"), rounded="8"), "seeds.a has nothing"),
        (Value(("seeds",), equals=9), "seeds is 8, not 9"),
        (Value(("all",), equals=1), "all is True, not 1"),
        (Value(("name",), rounded="1"), "name is no number: 'top-k'"),
    ],
)
def test_a_value_that_a_file_does_not_hold_is_named(tmp_path, value, problem):
    found = measurements.check(recorded(*SHARE, value), root=course(tmp_path, record=RECORD))
    assert len(found) == bool(problem) and all(each.endswith(problem) for each in found)


def test_a_file_that_is_gone_or_no_json_is_named(tmp_path):
    assert measurements.check(recorded(*SHARE), root=course(tmp_path)) == ["data/labels/found.json is not there"]
    (tmp_path / "data" / "labels").mkdir(parents=True)
    (tmp_path / "data" / "labels" / "found.json").write_text("{")
    assert measurements.check(recorded(*SHARE), root=tmp_path)[0].startswith("data/labels/found.json is no JSON")


# the format

GOOD = {
    "question": '"Which labels are wrong?"',
    "method": '"values"',
    "functions": '["neighbors.nearest"]',
    "measured": '"19 of 20."',
    "caution": '"Few."',
    "lecture": "3",
    "cell": '"A1"',
    "quoted": '["19 are found of 20"]',
}


def written(folder: Path, *entries: dict[str, str]) -> Path:
    tables = ["[[row]]\n" + "".join(f"{key} = {value}\n" for key, value in each.items() if value) for each in entries]
    (folder / "rows.toml").write_text("\n".join(tables), encoding="utf-8")
    return folder / "rows.toml"


def test_a_row_is_read_as_it_was_written(tmp_path):
    value = '[{ path = "share.0", rounded = "−37 %" }, { path = ["share", "0.05", 1], equals = 8 }]'
    also = f'[{{ lecture = 5, snippet = "show(x)", quoted = ["x is 1"] }}, {{ file = "data/a.json", value = {value} }}]'
    (found,) = measurements.rows(written(tmp_path, GOOD | {"also": also}))
    assert found == Measurement(
        "Which labels are wrong?",
        "values",
        ("neighbors.nearest",),
        "19 of 20.",
        "Few.",
        3,
        "A1",
        (
            Source(3, cell="A1", quoted=("19 are found of 20",)),
            Source(5, snippet="show(x)", quoted=("x is 1",)),
            Source(
                3,
                file="data/a.json",
                values=(Value(("share", "0"), rounded="-37 %"), Value(("share", "0.05", 1), equals=8)),
            ),
        ),
    )
    assert {found: 1}[found] == 1  # hashable, being frozen


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": ""}, r"row 1 \(values\): question must be a text, got nothing"),
        ({"caution": '" "'}, r"row 1 \(values\): caution must be a text, got ' '"),
        ({"method": "3"}, r"row 1: method must be a text, got 3"),
        ({"functions": '"neighbors.nearest"'}, r"functions must be a list of texts"),
        ({"lecture": '"3"'}, r"lecture must be its number, got '3'"),
        ({"lecture": "0"}, r"lecture must be its number, got 0"),
        ({"lecture": "true"}, r"lecture must be its number, got True"),
        ({"metod": '"values"'}, r"row 1 \(values\): 'metod' is not known; expected also, caution"),
        ({"quoted": ""}, r"needs a source: quoted, or file and value, or also"),
        ({"quoted": "[]"}, r"quoted must be a list of texts, got \[\]"),
        ({"quoted": '["3.11 ± 0.79"]'}, r"quoted must have words with its numbers.*got '3.11 ± 0.79'"),
        ({"also": '"N3"'}, r"also must be a list of tables, got 'N3'"),
        ({"also": '[{ cell = "N3" }]'}, r"row 1 \(values\), also 1: quoted must be a list of texts, got nothing"),
        ({"also": '[{ quoted = ["of 20"] }]'}, r"also 1: cell must be a text, got nothing"),
        ({"also": '[{ cell = "a", snippet = "b", quoted = ["of 20"] }]'}, r"either cell or snippet, got both"),
        ({"also": '[{ tag = "a", quoted = ["of 20"] }]'}, r"also 1: 'tag' is not known"),
        ({"file": '"data/a.json"'}, r"either quoted, from a notebook, or file and value, from JSON; got both"),
        ({"quoted": "", "file": '"data/a.json"'}, r"value must be a table with path and equals or rounded, got None"),
        ({"quoted": "", "value": "[]"}, r"file must be a text, got nothing"),
        ({"quoted": "", "file": '"data/a.json"', "value": "[]"}, r"value must be a table or a list of tables"),
        (
            {"quoted": "", "file": '"/etc/a.json"', "value": "[]"},
            r"file must be a .json under data/, got '/etc/a.json'",
        ),
        ({"quoted": "", "file": '"data/../a.json"', "value": "[]"}, r"file must be a .json under data/"),
    ],
)
def test_a_malformed_row_is_refused_by_name(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        measurements.rows(written(tmp_path, GOOD | change))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('{ path = "a", equals = 1, rounded = "1" }', "either equals or rounded"),
        ('{ path = "a" }', "either equals or rounded"),
        ('{ path = "a", rounded = 0.9 }', r"rounded must be a number as it is printed.*got 0.9"),
        ('{ path = "a", rounded = "about 1" }', r"rounded must be a number as it is printed"),
        ('{ path = "a", equals = [1] }', r"equals must be a number, a text or true or false, got \[1\]"),
        ('{ path = "a..b", equals = 1 }', r"path must be like 'a.b.0'.*got 'a..b'"),
        ("{ equals = 1 }", r"path must be like 'a.b.0'.*got None"),
        ('{ path = "a", equal = 1 }', r"value: 'equal' is not known"),
    ],
)
def test_a_malformed_value_is_refused_by_name(tmp_path, value, message):
    with pytest.raises(ValueError, match=r"row 1 \(values\).*" + message):
        measurements.rows(written(tmp_path, GOOD | {"quoted": "", "file": '"data/a.json"', "value": value}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[row]\n", "rows.toml is no TOML"),
        ("", "got nothing"),
        ("row = 1\n", r"must hold \[\[row\]\] tables"),
        ("[[rows]]\n", r"got \['rows'\]"),
        ("row = [1]\n", "row 1 must be a table, got 1"),
    ],
)
def test_a_malformed_file_is_refused_by_name(tmp_path, text, message):
    (tmp_path / "rows.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        measurements.rows(tmp_path / "rows.toml")


def test_a_row_that_stands_there_twice_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"lecture 03, A1 \(values\) stands there more than once"):
        measurements.rows(written(tmp_path, GOOD, GOOD))


def test_a_missing_file_says_where_it_should_be(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"the measurements must be in .*none.toml"):
        measurements.rows(tmp_path / "none.toml")


# the table


def test_rows_of_one_question_stand_together_and_lead_to_their_notebooks(tmp_path):
    other = replace(row(), question="How much?", measured="Of |R| 19.")
    recorded_in = (Source(15, file="data/labels/found.json", values=SHARE),)
    late = replace(row(sources=recorded_in), method="later", lecture=15, cell="F2")
    drawn = measurements.table([row(), other, late], root=course(tmp_path))
    lines = drawn.replace("\N{NO-BREAK SPACE}", " ").splitlines()
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert {len(each) for each in cells} == {5}
    assert [each[0] for each in cells] == ["question", ":---", "**Which labels are wrong?**", "", "**How much?**"]
    assert cells[2][1] == "values<br>`neighbors.nearest`" and cells[3][1].startswith("later")
    assert [each[4] for each in cells[2:]] == [
        "[03 · A1](03_labels.ipynb)",
        "15 · F2, [found](../data/labels/found.json)",
        "[03 · A1](03_labels.ipynb)",
    ]
    assert cells[4][2] == r"Of \|R\| 19."


def test_a_line_of_the_table_does_not_end_within_an_interval(tmp_path):
    drawn = measurements.table([row("Found 0.4 ± 0.1 and 37 %.")], root=course(tmp_path))
    assert "0.4\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}0.1 and 37\N{NO-BREAK SPACE}%." in drawn


def test_the_table_of_the_course_has_every_row_and_every_link_leads_somewhere():
    drawn = measurements.table(ROWS)
    assert len(drawn.splitlines()) == len(ROWS) + 2
    links = re.findall(r"\]\(([^)]+)\)", drawn)
    assert links and all((ROOT / "lectures" / link).exists() for link in links)


def test_a_table_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one row"):
        measurements.table([])


def test_the_table_needs_no_heavy_import():
    code = "import sys; from xaicourse import measurements; print({'torch', 'numpy', 'matplotlib'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
