"""The package as a whole: light to import, of use without the course, and as the README says."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_importing_the_package_is_light():
    heavy = "torch, matplotlib, ipywidgets, sklearn, skimage, scipy, pandas, shap, captum, zennit"
    code = f"import sys, xaicourse; print(*sorted(set({heavy!r}.split(', ')) & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_the_helpers_do_without_the_libraries_of_the_course():
    """A plain `pip install .` brings none of these, and is enough for whoever wants only the explanations."""
    absent = ["matplotlib", "ipywidgets", "sklearn", "skimage", "shap", "captum", "zennit", "pandas"]
    code = f"import sys; sys.modules.update(dict.fromkeys({absent})); import xaicourse"
    code += "; from xaicourse import images, lrp, models, syllabus"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_examples_in_the_readme_run():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    run = subprocess.run([sys.executable, "-c", "\n".join(blocks)], capture_output=True, text=True, check=True)
    assert "cat" in run.stdout and "torch.Size([1, 3, 224, 224])" in run.stdout and "unaccounted" in run.stdout


def test_what_the_pages_point_to_is_there():
    for page in ("README.md", "CONTRIBUTING.md", "LICENSE-TEXT.md"):
        links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text(encoding="utf-8"))
        assert [link for link in links if not (ROOT / link).exists()] == [], page
