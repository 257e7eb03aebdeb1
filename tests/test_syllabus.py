"""What syllabus.toml promises is kept, and a promise that is not kept is found."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from xaicourse import syllabus
from xaicourse.syllabus import Claim, Lecture, Syllabus

ROOT = Path(__file__).parents[1]


def test_the_course_keeps_every_promise_of_its_manifest():
    assert syllabus.problems(syllabus.read(ROOT / "syllabus.toml"), ROOT) == []


def test_the_manifest_has_fifteen_lectures_in_order():
    assert [each.number for each in syllabus.read(ROOT / "syllabus.toml").lectures] == list(range(1, 16))


def test_every_notebook_of_a_lecture_stands_in_the_manifest():
    known = {each.notebook for each in syllabus.read(ROOT / "syllabus.toml").lectures}
    assert {f"lectures/{path.name}" for path in ROOT.glob("lectures/*.ipynb")} <= known


def test_the_table_in_the_readme_is_current():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme == syllabus.insert(readme, syllabus.table(syllabus.read(ROOT / "syllabus.toml"))), "run: make table"


# The checker itself, on a small course that is right, and then on one with a single thing wrong.

LECTURE = {
    "number": 1,
    "topic": "sums",
    "title": "Sums: an example",
    "question": "Does it add up?",
    "part": "I. Arithmetic",
    "slides": "none",
    "minutes": 5,
    "prerequisites": [],
    "status": "ready",
    "seconds": 1.5,
}
CLAIM = {
    "id": "A1",
    "lecture": 1,
    "statement": "It adds up.",
    "cell": "A1",
    "test": "tests/test_sums.py::test_sum",
}
NOTEBOOK = {
    "cells": [
        {
            "cell_type": "markdown",
            "metadata": {},
            "source": ["# Lecture 1 · Sums: an example\n", "with text"],
        },
        {
            "cell_type": "code",
            "metadata": {},
            "execution_count": 1,
            "outputs": [],
            "source": "%time\ntotal = 1 + 1",
        },
        {
            "cell_type": "code",
            "metadata": {"tags": ["A1"]},
            "execution_count": 2,
            "outputs": [],
            "source": ["assert total == 2"],
        },
    ]
}
TESTS = """
import pytest

def test_sum():
    assert 1 + 1 == 2

@pytest.mark.skip
def test_never_runs():
    assert False

class TestSums:
    def test_sum(self):
        assert 1 + 1 == 2
"""


def problems(root, lecture=(), claim=(), notebook=NOTEBOOK):
    (root / "lectures").mkdir(exist_ok=True)
    (root / "tests").mkdir(exist_ok=True)
    if notebook is not None:
        (root / "lectures/01_sums.ipynb").write_text(json.dumps(notebook))
    (root / "tests/test_sums.py").write_text(TESTS)
    lectures, claims = [Lecture(**LECTURE | dict(lecture))], [Claim(**CLAIM | dict(claim))]
    return syllabus.problems(Syllabus(lectures, claims), root)


def changed(cell, **fields):
    notebook = copy.deepcopy(NOTEBOOK)
    notebook["cells"][cell] |= fields
    return notebook


def test_a_course_that_keeps_its_promises_has_no_problems(tmp_path):
    assert problems(tmp_path) == []
    assert problems(tmp_path, claim={"test": "tests/test_sums.py::TestSums::test_sum"}) == []
    assert problems(tmp_path, notebook=changed(2, source="torch.testing.assert_close(total, 2)")) == []


@pytest.mark.parametrize(
    ("claim", "notebook", "problem"),
    [
        ({"cell": ""}, NOTEBOOK, "claim A1 has no cell"),
        ({"cell": "A2"}, NOTEBOOK, "claim A1 has no cell: none in 01_sums.ipynb is tagged 'A2'"),
        ({}, changed(2, source="total == 2"), "claim A1 is not asserted by the cell tagged 'A1'"),
        (
            {},
            changed(2, source="# assert total == 2\ntotal"),
            "claim A1 is not asserted by the cell tagged 'A1'",
        ),
        ({}, changed(2, source="assert True"), "claim A1 is not asserted by the cell tagged 'A1'"),
        ({}, changed(2, cell_type="markdown"), "claim A1 is not asserted by the cell tagged 'A1'"),
        ({"test": ""}, NOTEBOOK, "claim A1 has no test"),
        ({"test": "TODO"}, NOTEBOOK, "claim A1 has no test: 'TODO'"),
        ({"test": "tests/test_sums.py"}, NOTEBOOK, "claim A1 has no test"),
        ({"test": "tests/test_sums.py::test_product"}, NOTEBOOK, "claim A1 has no test"),
        ({"test": "tests/test_sums.py::test_never_runs"}, NOTEBOOK, "claim A1 has no test"),
        ({"test": "tests/test_products.py::test_sum"}, NOTEBOOK, "claim A1 has no test"),
    ],
)
def test_a_claim_without_a_cell_that_asserts_it_and_a_test_is_found(tmp_path, claim, notebook, problem):
    (found,) = problems(tmp_path, claim=claim, notebook=notebook)
    assert found.startswith(problem)


@pytest.mark.parametrize(
    ("lecture", "notebook", "problem"),
    [
        ({}, None, "is ready, and lectures/01_sums.ipynb is not there"),
        ({"status": "planned"}, NOTEBOOK, "is planned, and lectures/01_sums.ipynb is there"),
        ({"status": "perhaps"}, None, "is 'perhaps'; expected 'planned' or 'ready'"),
        ({"title": "Products"}, NOTEBOOK, "is called 'Products' here and 'Sums: an example' in its notebook"),
        ({"seconds": None}, NOTEBOOK, "runs in None seconds"),
        ({"seconds": 61}, NOTEBOOK, "runs in 61 seconds"),
        ({"prerequisites": [2]}, NOTEBOOK, "builds on lecture 2, which does not come before it"),
        ({}, changed(1, execution_count=None), "is not committed as executed"),
        ({}, changed(1, execution_count=7), "is not committed as executed"),
        (
            {},
            changed(1, outputs=[{"output_type": "error", "ename": "ValueError", "evalue": "2"}]),
            "is committed with an error: ValueError: 2",
        ),
    ],
)
def test_a_lecture_that_is_not_as_announced_is_found(tmp_path, lecture, notebook, problem):
    (found,) = problems(tmp_path, lecture=lecture, notebook=notebook)
    assert found.startswith(f"lecture 1 {problem}")


def test_numbers_and_names_that_stand_twice_or_nowhere_are_found(tmp_path):
    planned = Lecture(**LECTURE | {"status": "planned"})
    claims = [Claim("A1", 1, "It adds up."), Claim("A1", 2, "It adds up.")]
    assert syllabus.problems(Syllabus([planned, planned], claims), tmp_path) == [
        "lecture 1 stands more than once",
        "claim A1 stands more than once",
        "claim A1 belongs to lecture 2, which does not stand here",
    ]


def test_a_ready_lecture_without_a_claim_is_found(tmp_path):
    problems(tmp_path)
    assert syllabus.problems(Syllabus([Lecture(**LECTURE)], []), tmp_path) == ["lecture 1 is ready and claims nothing"]


def test_a_table_of_the_manifest_with_a_wrong_field_is_named(tmp_path):
    (tmp_path / "syllabus.toml").write_text('[[claim]]\nid = "A1"\nlecture = 1\n')
    with pytest.raises(ValueError, match=r"claim A1: .*statement"):
        syllabus.read(tmp_path / "syllabus.toml")
    (tmp_path / "syllabus.toml").write_text("[[lecture]]\nnumber = 1\nminuets = 3\n")
    with pytest.raises(ValueError, match=r"lecture 1: .*minuets"):
        syllabus.read(tmp_path / "syllabus.toml")


def test_the_command_writes_the_table_between_the_markers_and_nothing_else(tmp_path):
    shutil.copy(ROOT / "syllabus.toml", tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{syllabus.BEGIN}\nstale\n{syllabus.END}\nafter\n", encoding="utf-8")
    subprocess.run([sys.executable, "-m", "xaicourse.syllabus", "--write", str(readme)], cwd=ROOT, check=True)
    before, rest = readme.read_text(encoding="utf-8").split(syllabus.BEGIN)
    table, after = rest.split(syllabus.END)
    assert (before, after) == ("before\n", "\nafter\n")
    assert "[LRP: the rules](lectures/11_lrp_rules.ipynb)" in table and "stale" not in table


def test_a_text_without_the_markers_is_refused():
    with pytest.raises(ValueError, match="expected one line"):
        syllabus.insert("no markers", "table")
