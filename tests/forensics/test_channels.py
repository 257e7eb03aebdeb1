import copy
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from xaicourse import lrp
from xaicourse.forensics import channels, detectors, folders, patches

from .networks import same_state, settled, state, without_biases

LOGIT = 2.1972245773362196  # of a probability of 0.9


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    return patches.crop(patches.PHOTOGRAPHS, 30, generator=seeded(2))


def half_sure(detector: detectors.Detector, x: torch.Tensor) -> detectors.Detector:
    """Shift all logits of a copy, so that half of these pictures have a probability of at least 0.9."""
    detector = copy.deepcopy(detector)
    ordered = detectors.logits(detector, x).sort().values
    with torch.no_grad():
        detector.backbone[-1].bias += LOGIT - (ordered[len(x) // 2 - 1] + ordered[len(x) // 2]) / 2
    return detector


@pytest.fixture(scope="module")
def detector(pictures) -> detectors.Detector:
    """Batch norms as after training; half of the pictures are counterfeits to it with a probability of at least 0.9."""
    return half_sure(settled(detectors.build("small", seed=1)), pictures)


def same(a: channels.Ranking, b: channels.Ranking) -> bool:
    return (a.channels, a.pictures, a.model) == (b.channels, b.pictures, b.model) and torch.equal(
        a.relevance, b.relevance
    )


# ------------------------------------------------------------------------------------------------------------
# Relevance of channels
# ------------------------------------------------------------------------------------------------------------


def test_the_relevance_of_a_channel_is_its_positive_part_in_all_that_its_layer_has(detector, pictures):
    x = pictures[:3]
    layers = lrp.trace(detector, x, 0, composite=channels.COMPOSITE).layers
    found = channels.relevance(detector, x)
    assert list(found) == [f"backbone.{at}" for at in (1, 4, 7, 10, 13)]
    for path, shares in found.items():
        R = layers[path].tolist()
        assert shares.shape == (3, len(R[0]))
        assert shares.dtype == torch.float64
        for i in range(3):
            total = sum(abs(r) for channel in R[i] for row in channel for r in row)
            by_hand = [sum(max(r, 0.0) for row in channel for r in row) / total for channel in R[i]]
            assert shares[i].tolist() == pytest.approx(by_hand, abs=1e-12)


def test_shares_sum_to_one_where_no_relevance_is_negative_and_to_less_where_some_is(detector, pictures):
    signed = channels.relevance(detector, pictures[:6])
    positive = copy.deepcopy(detector)
    with torch.no_grad():
        positive.backbone[-1].weight.abs_()
    for path, shares in channels.relevance(positive, pictures[:6]).items():
        torch.testing.assert_close(shares.sum(1), torch.ones(6, dtype=torch.float64), atol=1e-6, rtol=0)
        assert (signed[path] >= 0).all()
        assert (signed[path].sum(1) < 0.999).all()


def test_a_layer_that_nothing_depends_on_has_shares_of_zero(detector, pictures):
    blind = copy.deepcopy(detector)
    with torch.no_grad():
        blind.backbone[7].weight.zero_()
        blind.backbone[7].bias.fill_(1)  # what comes after sees the same in every picture
    shares = channels.relevance(blind, pictures[:2])
    assert (shares["backbone.1"] == 0).all()
    assert shares["backbone.13"].sum() > 0


def test_without_biases_every_layer_has_the_whole_logit(pictures):
    model = without_biases(settled(detectors.build("small", seed=2))).double()
    with torch.no_grad():
        model.backbone[-1].weight.mul_(1000)  # beside which the stabiliser of the last layer is small
    trace = lrp.trace(model, pictures[:4].double(), 0, composite=channels.COMPOSITE)
    logit = trace.output[:, 0]
    assert logit.abs().min() > 0.1
    for path in channels.norms(model):
        torch.testing.assert_close(trace.layers[path].sum((1, 2, 3)), logit, rtol=1e-3, atol=1e-5)


def test_with_biases_a_layer_has_the_logit_less_what_the_ledger_kept_above_it(trained):
    x = trained.fake[:5].double()
    model = trained.detector.double()
    trace = lrp.trace(model, x, 0, composite=channels.COMPOSITE)
    assert abs(trace.ledger.unaccounted) < 1e-6 * trace.output.abs().sum()
    last = trace.layers["backbone.13"].sum((1, 2, 3))
    torch.testing.assert_close(last, trace.output[:, 0] - model.backbone[-1].bias, rtol=1e-4, atol=1e-4)
    for path in channels.norms(model):
        at = max(n for n, row in enumerate(trace.ledger) if _place(row.module) <= int(path.split(".")[1]))
        kept = sum(row.bias + row.stabiliser + row.dead_end for row in trace.ledger[at + 1 :])
        total = trace.layers[path].sum().item()
        assert total == pytest.approx(trace.output.sum().item() - kept, rel=1e-6)


def _place(module: str) -> int:
    """The number of a module in the backbone; what happens to the picture before comes first."""
    return int(module.split(".")[1]) if module.startswith("backbone.") else -1


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet50"])
def test_the_networks_of_imagenet_have_their_channels_ranked_as_well(name):
    model = detectors.build(name, pretrained=False)
    shares = channels.relevance(model, torch.rand(2, 3, 32, 32, generator=seeded(1)))
    assert list(shares) == list(channels.norms(model))
    for path, norm in channels.norms(model).items():
        assert shares[path].shape == (2, norm.num_features)
        assert (shares[path] >= 0).all()
        assert (shares[path].sum(1) <= 1 + 1e-9).all()


# ------------------------------------------------------------------------------------------------------------
# Ranking
# ------------------------------------------------------------------------------------------------------------


def test_the_ranking_is_the_mean_over_the_pictures_that_are_sure_to_be_counterfeit(detector, pictures):
    ranking = channels.rank(detector, pictures, shard=8)
    sure = [x[None] for x in pictures if torch.sigmoid(detectors.logits(detector, x[None]))[0] >= 0.9]
    assert len(sure) == 15
    mean: dict[channels.Channel, float] = {}
    for x in sure:
        for path, shares in channels.relevance(detector, x).items():
            for index, share in enumerate(shares[0].tolist()):
                mean[path, index] = mean.get((path, index), 0.0) + share / len(sure)
    assert ranking.pictures == 15
    assert set(ranking.channels) == set(mean)
    assert len(ranking.channels) == len(mean) == 32 + 32 + 64 + 64 + 96
    assert ranking.relevance.tolist() == pytest.approx([mean[c] for c in ranking.channels], abs=1e-7)
    assert (ranking.relevance.diff() <= 0).all()
    assert ranking.top(3) == list(ranking.channels[:3])
    assert ranking.low(3) == list(ranking.channels[-3:])
    assert ranking.top(288) == ranking.low(288) == list(ranking.channels)


def test_how_sure_pictures_must_be_can_be_chosen(detector, pictures):
    logits = detectors.logits(detector, pictures)
    everything = channels.rank(detector, pictures, least=0.0)
    few = channels.rank(detector, pictures, least=float(logits.max().sigmoid()) - 1e-6)
    assert everything.pictures == 30
    assert few.pictures == 1
    assert not torch.equal(everything.relevance, few.relevance)


@pytest.mark.parametrize("shard", [1, 7, 29, 30, 1000])
def test_the_ranking_does_not_depend_on_how_pictures_are_cut_into_shards(detector, pictures, shard):
    exact, x = copy.deepcopy(detector).double(), pictures.double()
    whole, cut = channels.rank(exact, x), channels.rank(exact, x, shard=shard)
    of_whole = dict(zip(whole.channels, whole.relevance.tolist(), strict=True))
    assert cut.pictures == whole.pictures
    assert cut.relevance.tolist() == pytest.approx([of_whole[c] for c in cut.channels], abs=1e-9)
    assert (whole.relevance - cut.relevance).abs().max() < 1e-9


def test_only_channels_of_the_part_that_is_asked_for_are_ranked(detector, pictures):
    part = channels.rank(detector, pictures, within="backbone.1")  # 1, 10 and 13
    whole = channels.rank(detector, pictures)
    assert {path for path, _ in part.channels} == {"backbone.1", "backbone.10", "backbone.13"}
    assert part.channels == tuple(c for c in whole.channels if c[0].startswith("backbone.1"))
    assert part.relevance.tolist() == [
        r for c, r in zip(whole.channels, whole.relevance.tolist(), strict=True) if c[0].startswith("backbone.1")
    ]


def test_ranking_leaves_model_and_random_numbers_alone(detector, pictures):
    before, random = state(detector), torch.get_rng_state()
    channels.rank(detector, pictures[:8], least=0.0)
    assert same_state(before, state(detector))
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.requires_grad for p in detector.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in detector.modules())


def test_a_detector_that_is_sure_of_nothing_is_not_ranked_and_told_why(detector, pictures):
    doubtful = copy.deepcopy(detector)
    with torch.no_grad():
        doubtful.backbone[-1].bias -= 50
    with pytest.raises(ValueError, match=r"at least 0.9: none of 30 is; a ranking would explain what .* not know"):
        channels.rank(doubtful, pictures)


def test_k_beyond_the_channels_is_refused_with_their_number(detector, pictures):
    ranking = channels.rank(detector, pictures)
    for take in (ranking.top, ranking.low):
        with pytest.raises(ValueError, match="k must be from 1 to 288, the channels that are ranked, got 289"):
            take(289)
        with pytest.raises(ValueError, match="k must be from 1 to 288"):
            take(0)
        with pytest.raises(TypeError, match="k must be an int"):
            take(2.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shard": 0}, "shard must be at least 1"),
        ({"least": 1.0}, "least must be a probability"),
        ({"least": -0.1}, "least must be a probability"),
        ({"within": "decoder."}, "within must begin the path of a batch norm, got 'decoder.'; there are backbone.1, "),
        ({"fake": torch.zeros(0, 3, 32, 32)}, "fake must hold at least one picture"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(3072, 1)).eval()}, "model must have batch norms"),
    ],
)
def test_what_cannot_be_ranked_is_refused(detector, pictures, change, message):
    with pytest.raises(ValueError, match=message):
        channels.rank(**({"model": detector, "fake": pictures} | change))


def test_a_model_in_training_mode_is_refused_before_it_sees_a_picture(pictures):
    model = detectors.build("small").train()
    before = state(model)
    with pytest.raises(ValueError, match="evaluation mode"):
        channels.rank(model, pictures)
    assert same_state(before, state(model))


# ------------------------------------------------------------------------------------------------------------
# Files
# ------------------------------------------------------------------------------------------------------------


def test_a_ranking_comes_back_from_its_file_as_it_was(detector, pictures, tmp_path):
    ranking = channels.rank(detector, pictures)
    ranking.save(tmp_path / "new" / "ranking.json")
    assert same(ranking, channels.Ranking.load(tmp_path / "new" / "ranking.json"))
    assert same(ranking, channels.Ranking.load(tmp_path / "new" / "ranking.json", copy.deepcopy(detector)))
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["ranking.json"]


def test_a_ranking_made_for_another_model_is_refused(detector, pictures, tmp_path):
    channels.rank(detector, pictures).save(tmp_path / "ranking.json")
    trained_on = copy.deepcopy(detector)
    with torch.no_grad():
        trained_on.backbone[3].weight[0, 0, 0, 0] += 1e-6
    statistics = copy.deepcopy(detector)
    statistics.backbone[1].running_var[5] *= 1.0001
    for other in (trained_on, statistics, detectors.build("small"), detectors.build("resnet50", pretrained=False)):
        with pytest.raises(ValueError, match="ranking must be of this model, Detector:.*, and was made for Detector:"):
            channels.Ranking.load(tmp_path / "ranking.json", other)


# ------------------------------------------------------------------------------------------------------------
# Killed and resumed
# ------------------------------------------------------------------------------------------------------------


class Counting:
    """Images of a folder that note which of them were read, and may stop the run at one of them."""

    def __init__(self, data: folders.Images, stop_at: int | None = None) -> None:
        self.data, self.paths, self.stop_at, self.read = data, data.paths, stop_at, []

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, at: int) -> object:
        if at == self.stop_at:
            raise KeyboardInterrupt
        self.read.append(at)
        return self.data[at]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> folders.Images:
    root = folders.make_sample(tmp_path_factory.mktemp("set") / "sample", count=4)
    return folders.Images(folders.find(root), size=32)  # 32 images


@pytest.fixture(scope="module")
def of_files(files) -> detectors.Detector:
    return half_sure(settled(detectors.build("small", seed=4)), patches.take(files, range(len(files))))


def test_a_run_that_was_killed_goes_on_where_it_stopped_to_the_same_ranking(files, of_files, tmp_path):
    undisturbed = channels.rank(of_files, files, shard=5)
    killed = Counting(files, stop_at=17)
    with pytest.raises(KeyboardInterrupt):
        channels.rank(of_files, killed, shard=5, folder=tmp_path)
    assert killed.read == [0, *range(17)], "the first one tells whether they are the same pictures"
    resumed, calls = Counting(files), []
    handle = of_files.backbone[0].register_forward_hook(lambda _m, x, _y: calls.append(len(x[0])))
    found = channels.rank(of_files, resumed, shard=5, folder=tmp_path)
    handle.remove()
    assert resumed.read == [0, *range(15, 32)], "three shards of five were kept"
    assert calls
    assert same(found, undisturbed)
    again, calls = Counting(files), []
    handle = of_files.backbone[0].register_forward_hook(lambda _m, x, _y: calls.append(len(x[0])))
    assert same(channels.rank(of_files, again, shard=5, folder=tmp_path), undisturbed)
    handle.remove()
    assert again.read == [0]
    assert not calls


def test_a_shard_that_was_not_written_to_its_end_does_not_count(files, of_files, tmp_path):
    undisturbed = channels.rank(of_files, files, shard=8, folder=tmp_path)
    kept = sorted(tmp_path.glob("shards-*/*"))
    assert [file.name for file in kept] == [f"{n:06d}.pt" for n in range(4)]
    whole = kept[1].read_bytes()
    kept[0].rename(kept[0].with_suffix(".4711"))  # killed before it had its name
    kept[1].write_bytes(whole[: len(whole) // 2])
    kept[2].write_bytes(b"")
    reading = Counting(files)
    assert same(channels.rank(of_files, reading, shard=8, folder=tmp_path), undisturbed)
    assert reading.read == [0, *range(24)]
    kept[3].write_bytes(b"not a shard")
    assert same(channels.rank(of_files, files, shard=8, folder=tmp_path), undisturbed)
    assert kept[1].read_bytes() == whole


def test_shards_of_other_weights_rules_settings_or_pictures_are_not_taken(files, of_files, tmp_path):
    channels.rank(of_files, files, shard=8, folder=tmp_path)
    other = copy.deepcopy(of_files)
    with torch.no_grad():
        other.backbone[0].weight[3] *= 1.5
    fewer = folders.Images(folders.find(Path(files.paths[0]).parents[3])[:2], size=32)
    changes = {
        "model": {"model": other},
        "rules": {"composite": "epsilon"},
        "box": {"composite": dataclasses.replace(channels.COMPOSITE, first=lrp.ZBox(-2.0, 1.0))},
        "least": {"least": 0.5},
        "part": {"within": "backbone.10"},
        "size of shards": {"shard": 9},
        "pictures": {"fake": fewer},
        "their size": {"fake": folders.Images(folders.find(Path(files.paths[0]).parents[3]), size=24)},
        "a tensor": {"fake": patches.take(files, range(20))},
        "another tensor": {"fake": patches.take(files, range(1, 21))},
    }
    for number, (what, change) in enumerate(changes.items()):
        settings = {"model": of_files, "fake": files, "shard": 8} | change
        assert same(channels.rank(**settings, folder=tmp_path), channels.rank(**settings)), what
        assert len(list(tmp_path.iterdir())) == number + 2, what


def test_shards_of_a_file_that_has_changed_are_not_taken(of_files, tmp_path):
    root = folders.make_sample(tmp_path / "sample", count=2)
    data = folders.Images(folders.find(root), size=32)
    first = channels.rank(of_files, data, least=0.0, folder=tmp_path / "kept")
    file = Path(data.paths[0])
    file.write_bytes(Path(data.paths[-1]).read_bytes())
    os.utime(file, ns=(1, 1))
    found = channels.rank(of_files, data, least=0.0, folder=tmp_path / "kept")
    assert same(found, channels.rank(of_files, data, least=0.0))
    assert not torch.equal(first.relevance, found.relevance)


def test_pictures_that_cannot_be_told_from_others_are_not_kept(of_files, files, tmp_path):
    class Nameless:
        def __len__(self):
            return len(files)

        def __getitem__(self, at):
            return files[at]

    with pytest.raises(TypeError, match="fake must be a tensor or a data set with paths for shards to be kept"):
        channels.rank(of_files, Nameless(), folder=tmp_path)
    assert same(channels.rank(of_files, Nameless()), channels.rank(of_files, files))


# ------------------------------------------------------------------------------------------------------------
# Two processes
# ------------------------------------------------------------------------------------------------------------

SCRIPT = """
import os, sys
from pathlib import Path
import torch
from torch import distributed
from xaicourse.forensics import channels, detectors, folders

out, sample, weights = map(Path, sys.argv[1:])
here = int(os.environ.get("RANK", 0))
if "WORLD_SIZE" in os.environ:
    distributed.init_process_group("gloo")
    assert distributed.get_world_size() == 2
torch.set_num_threads(1)

class Counting(folders.Images):
    read = 0

    def __getitem__(self, at):
        Counting.read += 1
        return super().__getitem__(at)

data = Counting(folders.find(sample), size=32)
detector = detectors.build("small").eval()
detector.load_state_dict(torch.load(weights))
found = {"logits": detectors.logits(detector, data, chunk=7)}
found["gray"] = detectors.logits(detector, data, gray=True, chunk=64)
Counting.read = 0
ranking = channels.rank(detector, data, shard=5, folder=out / "kept")
found["read"] = Counting.read
ranking.save(out / f"{here}.json")
one_shard = channels.rank(detector, data, least=0.0)
one_shard.save(out / f"{here}-one-shard.json")
try:
    channels.rank(detector, data, least=1 - 1e-9)
except ValueError as error:
    found["refusal"] = str(error)
torch.save(found, out / f"{here}.pt")
if "WORLD_SIZE" in os.environ:
    distributed.destroy_process_group()
"""


def test_two_processes_find_what_one_does_to_the_last_bit(files, of_files, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    torch.save(of_files.state_dict(), tmp_path / "weights.pt")
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")} | {"OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, sys.path))
    both = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

    def run(out, *launcher):
        (tmp_path / out).mkdir(exist_ok=True)
        arguments = [tmp_path / "script.py", tmp_path / out, Path(files.paths[0]).parents[3], tmp_path / "weights.pt"]
        done = subprocess.run(
            [sys.executable, *launcher, *map(str, arguments)], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return [torch.load(file) for file in sorted((tmp_path / out).glob("?.pt"))]

    (one,), two = run("one"), run("two", *both)
    assert len(two) == 2
    single, single_shard = (channels.Ranking.load(tmp_path / "one" / f"0{more}.json") for more in ("", "-one-shard"))
    assert single.pictures == 16
    assert one["read"] == 33
    assert [found["read"] for found in two] == [18, 16], "shards of five, by turns: 0, 2, 4, 6 and 1, 3, 5"
    for here, found in enumerate(two):
        assert same(channels.Ranking.load(tmp_path / "two" / f"{here}.json"), single)
        assert same(channels.Ranking.load(tmp_path / "two" / f"{here}-one-shard.json"), single_shard)
        assert torch.equal(found["logits"], one["logits"])
        assert torch.equal(found["gray"], one["gray"])
        assert "none of 32 is" in found["refusal"]
    again = Counting(files)  # one process takes up what two have kept
    assert same(channels.rank(of_files, again, shard=5, folder=tmp_path / "two" / "kept"), single)
    assert again.read == [0]
    assert same(channels.rank(of_files, files, shard=5), single)


def test_pictures_that_make_no_number_and_models_with_other_outputs_are_refused(detector, pictures):
    broken = pictures.clone()
    broken[1, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="the model's outputs for pictures 0 to .* must be finite"):
        channels.rank(detector, broken)

    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = detector
            self.eval()

        def forward(self, x):
            return self.inside(x).expand(-1, 2)

    with pytest.raises(ValueError, match=r"model must have outputs \(N, 1\)"):
        channels.rank(Two(), pictures)
