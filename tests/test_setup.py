"""pyproject.toml, constraints.txt, environment.yml and Makefile agree, and make does what it says."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import torch
import torchvision
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import xaicourse

ROOT = Path(__file__).parents[1]
OLDEST = Version("3.11.0")


def text(name):
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def project():
    return tomllib.loads(text("pyproject.toml"))


@pytest.fixture(scope="module")
def pins():
    lines = [line for line in text("constraints.txt").splitlines() if not line.startswith("#")]
    found = [re.fullmatch(r"([\w.-]+)==([\w.]+)", line) for line in lines]
    assert None not in found, lines[found.index(None)]  # a local version such as 2.13.0+cpu is on no index
    named = {canonicalize_name(pin[1]): Version(pin[2]) for pin in found}
    assert len(named) == len(found), "a name is pinned twice"
    return named


def installed_as_pinned(pins):
    """The distributions whose metadata can vouch for the pins: all in .venv, fewer where versions differ."""
    for each in metadata.distributions():
        name = canonicalize_name(each.metadata["Name"])
        if name in pins and Version(each.version) == pins[name]:
            yield each


def applies(requirement, extra=""):
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


# The pins


def test_every_declared_dependency_is_pinned_to_a_version_that_it_allows(project, pins):
    declared = project["project"]["dependencies"] + sum(project["project"]["optional-dependencies"].values(), [])
    for requirement in map(Requirement, declared):
        if requirement.name != "xaicourse":
            assert pins[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_an_extra_names_only_extras_that_exist(project):
    extras = project["project"]["optional-dependencies"]
    for requirement in map(Requirement, sum(extras.values(), [])):
        if requirement.name == "xaicourse":
            assert requirement.extras <= set(extras)


@pytest.mark.skipif(sys.platform != "linux", reason="the pins were resolved on Linux; others need a few more")
def test_the_pins_are_closed_and_agree_with_one_another(pins):
    for each in installed_as_pinned(pins):
        for requirement in map(Requirement, each.requires or []):
            if applies(requirement):
                name = canonicalize_name(requirement.name)
                assert name in pins, f"{each.name} needs {requirement}, which is not pinned"
                assert pins[name] in requirement.specifier, f"{each.name} needs {requirement}, pinned is {pins[name]}"


def test_no_pin_asks_for_a_newer_python_than_the_course(pins):
    for each in installed_as_pinned(pins):
        assert OLDEST in SpecifierSet(each.metadata.get("Requires-Python", "")), each.name


def test_the_pins_keep_out_a_torch_without_its_torchvision(pins):
    """torch 2.13.0+cpu is an example: no torchvision is beside it, the pinned one fails to import on it."""
    assert Version("2.13.0+cpu") not in SpecifierSet(f"=={pins['torch']}")
    (needs,) = [r for r in map(Requirement, metadata.requires("torchvision")) if r.name == "torch" and applies(r)]
    assert Version(metadata.version("torch")) in needs.specifier
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.9]])  # nms is compiled against torch's own library
    assert torchvision.ops.nms(boxes, torch.tensor([0.5, 1.0]), 0.5).tolist() == [1]


# One set-up, told three times


def test_conda_and_make_install_the_same_from_the_same_pins():
    dependencies = yaml.safe_load(text("environment.yml"))["dependencies"]
    assert dependencies[1:] == ["pip", {"pip": ["--constraint constraints.txt", "--editable .[test]"]}]
    assert "--constraint constraints.txt --editable '.[test]'" in text("Makefile")


def test_the_python_versions_agree(project):
    oldest = f"{OLDEST.major}.{OLDEST.minor}"
    assert project["project"]["requires-python"] == f">={oldest}"
    assert project["tool"]["ruff"]["target-version"] == "py" + oldest.replace(".", "")
    assert project["tool"]["mypy"]["python_version"] == oldest
    assert yaml.safe_load(text("environment.yml"))["dependencies"][0] == f"python={oldest}"
    assert f"sys.version_info < ({OLDEST.major}, {OLDEST.minor})" in text("Makefile")
    assert f"--python-version {OLDEST}" in text("Makefile")
    assert f"Python {oldest} or newer" in text("Makefile") and f"Python {oldest} or newer" in text("README.md")


def test_there_is_one_version():
    assert yaml.safe_load(text("CITATION.cff"))["version"] == xaicourse.__version__


def test_no_file_names_a_package_registry_or_a_path_of_somebodys_machine():
    # the brackets keep these lines from finding themselves
    addresses = r"pypi[.]org|pythonhosted[.]org|anaconda[.](?:org|com)|pytorch[.]org/whl|index[-]url|find[-]links"
    paths = r"(?<![\w.:/])/(?:wor[k]|far[m]|roo[t]|hom[e]|tm[p]|op[t]|User[s])/[\w.]"
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        files = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    for name in filter(lambda name: (ROOT / name).is_file(), files):
        found = re.search(f"{addresses}|{paths}", (ROOT / name).read_text(encoding="utf-8", errors="ignore"))
        assert found is None, f"{name}: {found[0]}"


# make itself, with a python that only notes what it is asked

PYTHON = """#!/bin/sh
echo "$@" >> "$LOG"
case "$*" in
    *--version*) echo "Python $VERSION" ;;
    *version_info*) test "$VERSION" != 3.9.2 ;;
    *--clear*) rm -rf .venv; mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
    *"pip install"*) test "$PIP" != fails ;;
esac
"""


@pytest.fixture
def make(tmp_path):
    if shutil.which("make") is None:
        pytest.skip("there is no make here")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    fake, log = tmp_path / "a python", tmp_path / "log"
    fake.write_text(PYTHON)
    fake.chmod(0o755)

    def run(*arguments, version="3.11.7", pip="works"):
        log.write_text("")
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}  # we may run under make test
        environment |= {"LOG": str(log), "VERSION": version, "PIP": pip}
        command = ["make", f"PYTHON='{fake}'", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        return done, log.read_text()

    return run


def test_make_sets_up_once_and_then_leaves_a_current_environment_alone(make):
    done, log = make()
    assert done.returncode == 0 and "-m venv --clear .venv" in log
    assert "-m pip install --disable-pip-version-check --constraint constraints.txt --editable .[test]" in log
    done, log = make()
    assert done.returncode == 0 and log == ""


def test_make_starts_afresh_after_an_installation_that_did_not_end(make):
    assert make(pip="fails")[0].returncode != 0
    done, log = make()
    assert done.returncode == 0 and "-m venv --clear .venv" in log and "pip install" in log


def test_make_installs_into_the_same_environment_when_the_pins_change(make, tmp_path):
    make()
    later = (tmp_path / ".venv/.up-to-date").stat().st_mtime + 10
    os.utime(tmp_path / "constraints.txt", (later, later))
    assert make(pip="fails")[0].returncode != 0
    assert "-m venv --clear .venv" in make()[1]  # the change was cut off half-way
    os.utime(tmp_path / "constraints.txt", (later + 10, later + 10))
    done, log = make()
    assert done.returncode == 0 and "venv" not in log.replace(".venv", "") and "pip install" in log


def test_make_refuses_an_older_python_and_says_what_to_do(make, tmp_path):
    done, _ = make("lab", version="3.9.2")
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stderr and "is Python 3.9.2" in done.stderr
    assert "make PYTHON=python3.12 lab" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_make_lab_opens_the_first_lecture_that_is_there(make, tmp_path):
    (tmp_path / "lectures").mkdir()
    for name in ("11_lrp_rules", "05_shapley", "06_shapley_beyond_tables"):
        (tmp_path / "lectures" / f"{name}.ipynb").touch()
    _, log = make("lab")
    assert "default_url=/lab/tree/lectures/05_shapley.ipynb" in log


@pytest.mark.parametrize(
    ("target", "command"),
    [
        ("lab", "-m jupyterlab --LabApp.default_url=/lab/tree/"),
        ("test", "-m pytest"),
        ("bench", "-m benchmarks"),
        ("lint", "-m ruff check ."),
        ("table", "-m xaicourse.syllabus --write README.md"),
        ("pins", "-m pip wheel --disable-pip-version-check --quiet --no-deps --wheel-dir .venv/wheels grad-cam lime"),
    ],
)
def test_every_target_sets_up_by_itself_and_runs_in_that_environment(make, target, command):
    done, log = make(target)
    assert done.returncode == 0
    assert log.index("pip install") < log.index(command)
