"""Steps are kept whole or not at all, in one process and in two; a detector at chance is not ranked, but evaluated."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed

from xaicourse import weights
from xaicourse.forensics import detectors, experiment, looks, patches
from xaicourse.forensics.experiment import Run, keep
from xaicourse.forensics.miniature import Pair, Sets

from .networks import same_state, state


def _sets(real: torch.Tensor, fake: torch.Tensor) -> Sets:
    """Forty pictures to train on, forty to validate on, forty of each of two generators to test on."""
    real, fake = real[:, :, 8:24, 8:24], fake[:, :, 8:24, 8:24]
    tested = real[80:120]  # the generators share it
    test = {"one": Pair(tested, fake[80:120]), "two": Pair(tested, fake[120:])}
    return Sets("one", Pair(real[:40], fake[:40]), Pair(real[40:80], fake[40:80]), test)


@pytest.fixture(scope="module")
def sets(one_thread) -> Sets:
    real = patches.crop(patches.PHOTOGRAPHS, 160, generator=torch.Generator().manual_seed(0))
    return _sets(real, patches.quantise(0.7 + 0.3 * real.flip(0)))


@pytest.fixture(scope="module")
def _trained(sets, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    Run(folder, sets, "small", 5, steps=25).train()
    return folder


@pytest.fixture
def run(_trained, sets, tmp_path) -> Run:
    """One whose detectors are trained, in a folder of its own."""
    shutil.copytree(_trained, tmp_path / "run")
    return Run(tmp_path / "run", sets, "small", 5, steps=25, k=12)


# ------------------------------------------------------------------------------------------------------------
# Whole or not at all
# ------------------------------------------------------------------------------------------------------------


def test_what_is_kept_is_computed_once(tmp_path):
    file, calls = tmp_path / "folder" / "a.json", []

    def compute():
        calls.append(1)
        return {"x": 0.1}

    first = keep(file, compute)
    assert first["x"] == 0.1 and first["versions"] == experiment.versions()
    assert keep(file, compute) == first and calls == [1]
    assert [path.name for path in file.parent.iterdir()] == ["a.json"], "nothing is left beside it"


def test_a_result_that_cannot_be_written_whole_is_not_there(tmp_path):
    file = tmp_path / "a.json"
    with pytest.raises(TypeError):
        keep(file, lambda: {"whole": 1, "not a number": torch.ones(1)})
    assert not file.exists()
    assert keep(file, lambda: {"whole": 1})["whole"] == 1


def test_training_goes_on_with_the_next_arm_and_takes_no_half_written_weights(sets, tmp_path, monkeypatch):
    whole, write, cut_off = tmp_path / "whole", weights.write, []

    def killed(model, file):
        if file.name == "gray.pt":
            file.write_bytes(b"half of the weig")
            cut_off.append(file)
            raise KeyboardInterrupt
        write(model, file)

    run = Run(tmp_path / "killed", sets, "small", 1, steps=1)
    monkeypatch.setattr(weights, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    monkeypatch.setattr(weights, "write", write)
    first = (run.folder / "colour.pt").stat().st_mtime_ns
    run.train()
    assert (run.folder / "colour.pt").stat().st_mtime_ns == first
    again = Run(whole, sets, "small", 1, steps=1)
    again.train()
    for arm in experiment.ARMS:
        assert same_state(state(run.detector(arm)), state(again.detector(arm)))
    assert not same_state(state(run.detector("colour")), state(run.detector("gray")))


def test_the_arms_that_are_asked_for_are_trained(sets, tmp_path):
    run = Run(tmp_path, sets, "small", 1, steps=1, arms=("colour",))
    run.train()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["colour.pt", "sha256sums"]
    assert run.settings()["gray shares of counterfeit and real"] == {"colour": [0.0, 0.0]}


def test_what_has_not_been_trained_is_said_to_be_missing(sets, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"must be in .*colour\.pt; `python -m xaicourse.forensics train` makes"
    ):
        Run(tmp_path, sets, "small", 1).rank()


def test_a_ranking_of_other_weights_is_refused(run):
    run.rank()
    weights.write(detectors.build("small", seed=9), run.folder / "colour.pt")
    with pytest.raises(ValueError, match="ranking must be of this model"):
        Run(run.folder, run.sets, "small", 5).ablate()


# ------------------------------------------------------------------------------------------------------------
# What is measured
# ------------------------------------------------------------------------------------------------------------


def test_accuracies_are_averaged_over_draws_not_probabilities():
    draws = [{"a": {"fake": 0.2}, "b": 1.0}, {"a": {"fake": 0.6}, "b": 0.0}]
    assert experiment._average(draws) == {"a": {"fake": pytest.approx(0.4)}, "b": 0.5}


def test_ablation_is_measured_at_the_threshold_of_validation_pictures(run):
    found, detector, sets = run.ablate(), run.detector(), run.sets
    validated = [detectors.logits(detector, side) for side in (sets.validation.real, sets.validation.fake)]
    assert found["threshold"] == detectors.threshold(*validated)
    for name, pair in sets.test.items():
        real, fake = detectors.logits(detector, pair.real), detectors.logits(detector, pair.fake)
        assert found["baseline"][name]["real"] == pytest.approx((real < found["threshold"]).double().mean().item())
        assert found["baseline"][name]["fake"] == pytest.approx((fake >= found["threshold"]).double().mean().item())
    assert same_state(state(detector), state(Run(run.folder, sets, "small", 5).detector()))


def test_top_channels_are_ablated_by_hand(run):
    """The first convolution's channels are set to 0 by setting their scale and shift to 0."""
    found, detector = run.ablate(), run.detector()
    by_hand = detectors.build("small")
    by_hand.load_state_dict(detector.state_dict())
    for path, index in run.rank().top(12):
        norm = by_hand.get_submodule(path)
        norm.weight.data[index] = norm.bias.data[index] = 0
    pair = run.sets.test["two"]
    logits = [detectors.logits(by_hand.eval(), side) for side in (pair.real, pair.fake)]
    expected = detectors.quality(*logits, found["threshold"])
    assert found["after"]["top"]["two"]["precision"] == pytest.approx(expected.precision)
    assert found["after"]["top"]["two"]["fake"] == pytest.approx(expected.fake)
    assert found["after"] != found["before"]


def test_evaluation_tells_gray_counterfeits_from_coloured_ones_and_looks_at_the_right_places(run):
    found, detector = run.evaluate(), run.detector()
    pair, cut = run.sets.test["two"], found["arms"]["colour"]["threshold"]
    real, gray = detectors.logits(detector, pair.real), detectors.logits(detector, patches.grayscale(pair.fake))
    both = detectors.logits(detector, patches.grayscale(pair.real))
    for pictures, against in (("gray", real), ("all gray", both)):
        expected = detectors.quality(against, gray, cut)
        assert found["arms"]["colour"]["two"][pictures]["precision"] == pytest.approx(expected.precision)
        assert found["arms"]["colour"]["two"][pictures]["real"] == pytest.approx(expected.real)
    assert set(found["looks"]) == set(found["activations"]) == {"top", "layer-matched"}


def test_colour_where_channels_look_is_the_mean_over_pictures_and_channels_one_by_one(run):
    sample, chosen = run.sets.test["one"].fake[:3], run.rank().top(12)
    assert 1 < len({path for path, _ in chosen}) < 12, "several layers, with several channels"
    ratios = []
    for picture in sample.split(1):
        colourful = looks.colourfulness(picture)[0]
        for channel in chosen:
            place = looks.strongest(run.detector(), picture, [channel])[0][0, 0].tolist()
            top, left, bottom, right = looks.receptive_field(run.detector(), channel[0], tuple(place), (16, 16))
            ratios.append((colourful[top:bottom, left:right].mean() / colourful.mean()).item())
    assert run._colour_looked_at(sample, chosen) == pytest.approx(sum(ratios) / 36, rel=1e-4)


def test_a_detector_at_chance_is_refused_by_rank_and_by_what_needs_a_ranking(sets, tmp_path):
    same = Pair(sets.train.real, sets.train.real)
    run = Run(tmp_path, Sets("one", same, same, {"one": same}), "small", 1, steps=1)
    run.train()
    for step in (run.rank, run.ablate, run.evaluate):
        with pytest.raises(ValueError, match="at chance"):
            step()
    assert not list(tmp_path.glob("*.json"))


def test_a_training_that_fails_is_evaluated_where_the_ranked_detector_holds(run):
    """Gray training may leave a detector at chance; that is a result, and no reason to lose the others."""
    blind = detectors.build("small")
    blind.backbone[-1].weight.data.zero_()
    weights.write(blind, run.folder / "gray.pt")
    found = run.evaluate()["arms"]
    assert found["gray"]["one"]["colour"]["precision"] == pytest.approx(0.5)
    assert found["colour"]["one"]["colour"]["precision"] > 0.9


def test_results_do_not_depend_on_what_ran_before(run, tmp_path):
    torch.manual_seed(1)
    first = run.ablate()
    torch.manual_seed(2)
    shutil.copytree(run.folder, tmp_path / "again")
    (tmp_path / "again" / "ablate.json").unlink()
    assert Run(tmp_path / "again", run.sets, "small", 5, steps=25, k=12).ablate() == first


# ------------------------------------------------------------------------------------------------------------
# Several processes
# ------------------------------------------------------------------------------------------------------------


def test_several_processes_do_not_train(sets, tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        with pytest.raises(
            ValueError, match=r"colour\.pt must be there before several processes share the work: run `python"
        ):
            Run(tmp_path / "run", sets, "small", 1, steps=1).train()
    finally:
        distributed.destroy_process_group()
    assert not (tmp_path / "run").exists()


LATE = """
import os, sys, time
from pathlib import Path
from torch import distributed
from xaicourse.forensics.experiment import keep

distributed.init_process_group("gloo")
here = distributed.get_rank()
for name in ("a", "b"):
    if here:
        time.sleep(1)  # the first has written its file by now, if it did not wait
    found = keep(Path(sys.argv[1]) / f"{name}.json", lambda: {"by": here})
    assert found["by"] == 0, found
flag = [here]
distributed.broadcast_object_list(flag)  # both are at the same place
assert flag == [0]
distributed.destroy_process_group()
"""


def test_a_process_that_comes_late_finds_what_the_first_has_written(tmp_path):
    (tmp_path / "late.py").write_text(LATE)
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")} | {"OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, sys.path))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, str(tmp_path / "late.py"), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "b.json").read_text())["by"] == 0


def test_results_of_another_seed_or_k_in_the_same_folder_are_refused(run):
    run.ablate()
    for other, said in (({"seed": 6}, "seed = 5, asked for is 6"), ({"k": 3}, "k = 12, asked for is 3")):
        settings = {"seed": 5, "steps": 25, "k": 12} | other
        with pytest.raises(ValueError, match=said):
            Run(run.folder, run.sets, "small", **settings).ablate()
    assert run.ablate()["k"] == 12
