"""The command line: every command ends, results say what they are of, a killed run goes on, two processes equal one."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from xaicourse import weights
from xaicourse.forensics import channels, detectors, folders, generators, miniature
from xaicourse.forensics.__main__ import main

from . import samples

STEPS = ("train", "rank", "ablate", "evaluate")
RESULTS = ("ranking.json", "ablate.json", "evaluate.json")


def options(data: Path, out: Path) -> list[str]:
    return [*f"--data {data} --out {out} --size {samples.SIZE} --steps 25 --shard 4".split()]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return samples.pale(
        tmp_path_factory.mktemp("data"), {"first": 40, "second": 136}
    )  # 136: more than one chunk of logits


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """A folder in which all steps are done, one command after the other."""
    out = tmp_path_factory.mktemp("finished")
    for command in STEPS:
        assert main([command, *options(data, out)]) == 0
    return out


@pytest.fixture
def trained(finished: Path, tmp_path: Path) -> Path:
    """A copy of that folder with no step done but training."""
    out = tmp_path / "trained"
    shutil.copytree(finished, out)
    for file in RESULTS:
        (out / "seed-0" / "small" / file).unlink()
    for shards in (out / "seed-0" / "small").glob("shards-*"):
        shutil.rmtree(shards)
    return out


def times(out: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.is_file()}


def python(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")} | {"OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, sys.path))
    return subprocess.run([sys.executable, *map(str, arguments)], env=environment, capture_output=True, text=True)


# ------------------------------------------------------------------------------------------------------------
# Every command
# ------------------------------------------------------------------------------------------------------------


def test_data_counts_the_images_of_a_folder(tmp_path, capsys):
    folders.make_sample(tmp_path, count=3)
    assert main(["data", "--data", str(tmp_path), "--size", "32"]) == 0
    said = capsys.readouterr().out
    assert "12 real images, 12 counterfeits; shortest side 32 pixels" in said
    assert "quarter/things: 3 real, 3 counterfeit" in said


def test_data_of_the_miniature_says_how_each_seed_splits_the_photographs(capsys):
    assert main(["data", "--seeds", "0", "7"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said[1:]] == ["seed 0", "seed 7"] and said[1] != said[2].replace("7", "0")


def test_every_result_says_seed_versions_and_configuration(finished):
    for file in RESULTS:
        found = json.loads((finished / "seed-0" / "small" / file).read_text())
        assert found["seed"] == 0
        assert found["versions"]["torch"] == torch.__version__.split("+")[0]
        settings = found["configuration"]
        assert (settings["detector"], settings["steps"], settings["k"], settings["seen"]) == ("small", 25, 30, "first")
        assert settings["pictures"] == {"train": [24, 24], "validation": [8, 8], "first": [8, 8], "second": [136, 136]}
    assert json.loads((finished / "configuration.json").read_text())["size"] == samples.SIZE


def test_every_kind_of_ablation_and_every_training_is_measured_on_every_generator(finished):
    ablate, evaluate = (json.loads((finished / "seed-0" / "small" / f"{step}.json").read_text()) for step in STEPS[2:])
    assert ablate["channels"] == 288 and sum(ablate["layers"].values()) == ablate["k"] == 30
    for where in ("after", "before"):
        assert set(ablate[where]) == {"top", "random", "layer-matched", "low"}
        for found in ablate[where].values():
            assert set(found) == {"first", "second"} and set(found["first"]) == {"precision", "real", "fake"}
    assert set(evaluate["arms"]) == {"colour", "gray", "both gray"}
    for arm in evaluate["arms"].values():
        assert set(arm["second"]) == {"colour", "gray", "all gray"}
    assert ablate["baseline"]["first"]["precision"] > 0.9
    assert ablate["baseline"] == {name: evaluate["arms"]["colour"][name]["colour"] for name in ("first", "second")}


def test_the_report_shows_tables_and_keeps_results(finished, capsys):
    assert main(["report", "--out", str(finished)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("1 seed; ") and "small: AP in colour and gray, by training" in said
    assert re.search(r"^layer-matched( +\d\.\d\d){6}$", said, re.MULTILINE)
    assert "top minus layer-matched, ablated" in said
    kept = json.loads((finished / "results.json").read_text())
    assert kept["0"]["small"]["ablate"] == json.loads((finished / "seed-0" / "small" / "ablate.json").read_text())


def test_what_is_done_is_not_done_again(finished, data, monkeypatch):
    def never(*_):
        raise AssertionError("a network ran")

    monkeypatch.setattr(detectors.Detector, "forward", never)
    before = times(finished)
    for command in STEPS:
        assert main([command, *options(data, finished)]) == 0
    assert times(finished) == before


def test_a_step_does_those_before_it(trained, finished, data):
    assert main(["ablate", *options(data, trained)]) == 0
    for file in RESULTS[:2]:
        assert (trained / "seed-0" / "small" / file).read_bytes() == (finished / "seed-0" / "small" / file).read_bytes()
    assert not (trained / "seed-0" / "small" / "evaluate.json").exists()


def test_the_miniature_runs_from_its_generators_to_its_report(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(miniature, "_COUNTS", {"train": 64, "validation": 24, "test": 16})
    monkeypatch.setitem(miniature.SETTINGS, "small", {"sigma": 0.5, "arms": ("colour",)})
    planted = {kind: {"precision": 1.0, "outrank": 0.75, "random": 0.5} for kind in ("chroma", "luma")}
    seed = tmp_path / "seed-0"
    torch.manual_seed(0)
    for kind in generators.KINDS:  # untrained ones, which are read and not trained: what they make is easy to tell
        model = generators.Autoencoder(kind)
        model.decoder[-1].weight.data.mul_(1000)
        weights.write(model, seed / "generators" / f"{kind.replace(' ', '_')}.pt")
    (seed / "planted.json").write_text(json.dumps(planted))
    before = times(seed / "generators")
    assert main(["evaluate", "--out", str(tmp_path), "--steps", "25", "--k", "5"]) == 0
    assert times(seed / "generators") == before
    fooled = json.loads((seed / "fooled.json").read_text())
    assert fooled["seed"] == 0 and fooled["configuration"]["sigma"] == 0.5 and "versions" in fooled
    evaluate = json.loads((seed / "small" / "evaluate.json").read_text())
    assert list(evaluate["arms"]) == ["colour"] and set(evaluate["arms"]["colour"]) == {"threshold", *generators.KINDS}
    capsys.readouterr()
    assert main(["report", "--out", str(tmp_path)]) == 0
    assert "planted in chroma: precision 1.00, outrank 0.75, random 0.50" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------------
# Killed, and shared out
# ------------------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from xaicourse.forensics import channels
from xaicourse.forensics.__main__ import main

shard, left = channels._shard, 3

def killed(*arguments):
    global left
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    return shard(*arguments)

channels._shard = killed
main(sys.argv[1:])
"""


def test_a_killed_ranking_goes_on_and_ends_as_if_nothing_had_been(trained, finished, data, monkeypatch):
    done = python("-c", KILLED, "rank", *options(data, trained))
    assert done.returncode == -signal.SIGKILL, done.stderr
    folder = trained / "seed-0" / "small"
    assert not (folder / "ranking.json").exists()
    kept = sorted(folder.glob("shards-*/*.pt"))
    assert [file.name for file in kept] == ["000000.pt", "000001.pt", "000002.pt"]
    (kept[0].with_name("000003.pt")).write_bytes(kept[0].read_bytes()[:100])  # half written, as if the power had gone
    before, computed, shard = times(folder), [], channels._shard

    def counted(model, fake, pictures, *arguments):
        computed.append(pictures.start // 4)
        return shard(model, fake, pictures, *arguments)

    monkeypatch.setattr(channels, "_shard", counted)
    assert main(["rank", *options(data, trained)]) == 0
    assert computed == [3, 4, 5]
    after = times(folder)
    assert {file: after[file] for file in kept} == {file: before[file] for file in kept}
    assert (folder / "ranking.json").read_bytes() == (finished / "seed-0" / "small" / "ranking.json").read_bytes()


def test_two_processes_write_what_one_does_byte_by_byte(trained, finished, data):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "-m", "xaicourse.forensics"]
    done = python(*launcher, "evaluate", *options(data, trained))
    assert done.returncode == 0, done.stderr
    for file in RESULTS:
        assert (trained / "seed-0" / "small" / file).read_bytes() == (finished / "seed-0" / "small" / file).read_bytes()
    assert sorted(file.name for file in (trained / "seed-0" / "small").iterdir() if file.is_file()) == sorted(
        file.name for file in (finished / "seed-0" / "small").iterdir() if file.is_file()
    )


def test_torchrun_trains_nothing(data, tmp_path, monkeypatch, capsys):
    for command, arguments, said in (
        ("train", ["--data", str(data)], "train runs in one process"),
        ("report", [], "report runs in one process"),
        ("rank", [], "the miniature runs in one process"),
    ):
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(SystemExit, match="2"):
            main([command, *arguments, "--out", str(tmp_path / "out")])
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------------
# Refused
# ------------------------------------------------------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a command that cannot be done says on the error stream."""
    capsys.readouterr()
    assert main([*map(str, arguments)]) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("rank --seeds 3 -1", "--seeds must be at least 0, got -1"),
        ("rank --steps 0", "--steps must be at least 1, got 0"),
        ("ablate --k 0", "--k must be at least 1, got 0"),
        ("rank --shard -2", "--shard must be at least 1, got -2"),
        ("rank --seen nearest", "--seen and --size are for images of your own"),
        ("rank --size 32", "--seen and --size are for images of your own"),
        ("rank --detector vgg", "invalid choice: 'vgg'"),
        ("explain", "invalid choice: 'explain'"),
    ],
)
def test_options_that_mean_nothing_are_refused_at_once(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(arguments.split())
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_results_of_other_settings_are_not_mixed(finished, data, capsys):
    before = times(finished)
    said = refused(capsys, "rank", *options(data, finished), "--k", 7, "--steps", 26)
    assert "--out must be of the same settings" in said
    assert "steps: 25 there, 26 asked for; k: None there, 7 asked for" in said
    assert times(finished) == before


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--k 289", "--k must be from 1 to 288, the channels of small, got 289"),
        ("--seen third", "seen must be a generator in .*, one of first, second, got 'third'"),
        (
            "--size 17",
            "80 of 80 images cannot be used with size=17, least=17; move them away",
        ),
        ("--device nowhere", "--device must be one that this machine has, got 'nowhere'"),
    ],
)
def test_what_cannot_be_done_is_refused_before_training_and_claims_no_folder(more, said, data, tmp_path, capsys):
    assert re.search(said, refused(capsys, "train", *options(data, tmp_path / "out"), *more.split()))
    assert not (tmp_path / "out").exists()


def test_folders_that_are_not_as_expected_are_refused_with_what_is_wrong(tmp_path, capsys):
    nowhere = tmp_path / "nowhere"
    assert f"root='{nowhere}' is not there" in refused(capsys, "data", "--data", nowhere)
    root = folders.make_sample(tmp_path / "sample", count=2)
    shutil.rmtree(root / "half" / "nature" / "0_real")
    for command in ("data", "train"):
        said = refused(capsys, command, "--data", root, "--out", tmp_path / "out", "--size", 32)
        assert f"{root / 'half' / 'nature'} has no real images: 0_real is missing" in said
    assert not (tmp_path / "out").exists()


def test_damaged_and_tiny_images_are_listed(tmp_path, capsys):
    root = folders.make_sample(tmp_path / "sample", count=2)
    damaged, tiny = (root / "half" / "things" / "1_fake" / f"000{at}.png" for at in (0, 1))
    damaged.write_bytes(damaged.read_bytes()[:60])
    tiny.write_bytes((samples.pale(tmp_path / "small", {"first": 1}) / "first" / "0_real" / "0000.png").read_bytes())
    said = refused(capsys, "data", "--data", root, "--size", 32)
    assert f"unreadable: {damaged}: " in said and f"tiny: {tiny}: 16 x 16 pixels" in said
    said = refused(capsys, "train", "--data", root, "--out", tmp_path / "out", "--size", 32)
    assert f"{tiny}: 16 x 16 pixels, expected at least 32 x 32" in said
    assert "shortest side" not in said and not (tmp_path / "out").exists()


def test_a_detector_at_chance_is_not_ranked(tmp_path, capsys):
    data = samples.alike(tmp_path / "data", 20)
    arguments = ["--data", data, "--out", tmp_path / "out", "--size", samples.SIZE, "--steps", 1]
    assert main([*map(str, ["train", *arguments])]) == 0
    said = refused(capsys, "rank", *arguments)
    assert "at chance (area under the ROC curve 0.50" in said and "would explain what it does not know" in said
    assert not (tmp_path / "out" / "seed-0" / "small" / "ranking.json").exists()


def test_a_report_of_nothing_is_refused(tmp_path, capsys):
    assert "has none" in refused(capsys, "report", "--out", tmp_path / "out")
