"""Every notebook as a page: what somebody reads without a running kernel."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(
    path for folder in ("lectures", "solutions", "exercises") for path in (ROOT / folder).glob("*.ipynb")
)

pytestmark = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


class _Images(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.found.append(dict(attrs))


def _cells(notebook: Path) -> list[dict]:
    return json.loads(notebook.read_text(encoding="utf-8"))["cells"]


def _outputs(notebook: Path) -> list[dict]:
    return [o for cell in _cells(notebook) for o in cell.get("outputs", [])]


def test_every_picture_has_words_for_those_who_cannot_see_it(notebook: Path):
    pages = _Images()
    for output in _outputs(notebook):
        assert "image/png" not in output.get("data", {}), "a bare PNG loses its alt text; show a plotting.Picture"
        pages.feed("".join(output.get("data", {}).get("text/html", "")))
    assert pages.found, "a lecture without a picture?"
    assert all(len(image.get("alt") or "") > 20 for image in pages.found)


def test_nothing_comes_from_elsewhere(notebook: Path):
    text = "".join("".join(o.get("data", {}).get("text/html", "")) for o in _outputs(notebook))
    assert not re.findall(r"<(?:script|link|iframe)\b|src=[\"'](?!data:)", text)


def test_cells_are_short(notebook: Path):
    for cell in _cells(notebook):
        if cell["cell_type"] == "code":
            lines = "".join(cell["source"]).splitlines()
            assert len(lines) <= 40, lines[0]


def test_a_widget_has_a_picture_of_one_of_its_states(notebook: Path):
    """Before the widget, its drawing function was called once, so that the page reads the same without a kernel."""
    code = [cell for cell in _cells(notebook) if cell["cell_type"] == "code"]
    for number, cell in enumerate(code):
        for draw in re.findall(r"widgets\.explore\(\s*(\w+)", "".join(cell["source"])):
            before = [c for c in code[:number] if re.search(rf"(?<!def ){draw}\(", "".join(c["source"]))]
            assert any("<img" in "".join(o.get("data", {}).get("text/html", "")) for c in before for o in c["outputs"])


def test_nothing_was_written_to_stderr(notebook: Path):
    assert [o["text"] for o in _outputs(notebook) if o.get("name") == "stderr"] == []
