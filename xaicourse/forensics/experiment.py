"""One detector on one collection of pictures: trained, ranked, ablated, evaluated, each step kept as it is done. Lecture 15.

    run = experiment.Run(folder, sets, "small", seed=3)
    run.train(); run.rank(); run.ablate(); run.evaluate()

Every step writes one file, whole or not at all, and does nothing where its file is there: a run that was killed goes on. Under
``torchrun`` ranking and the logits of pictures are shared out, the rest is done by all; the first process writes.
"""

from __future__ import annotations

import json
import logging
import os
import platform
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, distributed, nn

from .. import weights
from . import ablation, channels, colour, detectors, looks, patches
from .channels import Channel, Ranking
from .detectors import Detector
from .miniature import Sets

__all__ = ["ARMS", "K", "Run", "keep", "versions"]

ARMS = {"colour": (0.0, 0.0), "gray": (0.5, 0.0), "both gray": (0.5, 0.5)}
"""Shares of counterfeits and of real pictures that are gray in training: none; half of the counterfeits, as in the lecture;
half of both, the control in which "gray" says nothing."""

K = {"small": 30, "efficientnet_lite0": 27, "resnet50": 114}
"""How many channels are ablated; the paper's numbers for the large networks (its EfficientNet is B0)."""

_DRAWS = 5
_LOOKED_AT = 48  # pictures whose strongest places are sought
_STEPS = {"small": 400, "efficientnet_lite0": 100, "resnet50": 100}
_VERSIONS = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "xaicourse")
_log = logging.getLogger(__name__)


@dataclass
class Run:
    """One detector, one seed.

    folder      where results are kept
    sets        the pictures
    name        of the detector, out of ``detectors.NAMES``
    seed        of its training and of all random draws
    device      where it runs
    pretrained  whether it starts from ImageNet's weights
    steps       of training; None: what suits the detector
    k           how many channels are ablated; None: ``K``
    sigma       the strongest blur in training, in pixels
    arms        of training, out of ``ARMS``; "colour" is ranked and ablated
    places      where channels are ablated, see ``ablation.ablated``
    shard       pictures that are ranked, kept and resumed together
    """

    folder: Path
    sets: Sets
    name: str
    seed: int
    device: str = "cpu"
    pretrained: bool = True
    steps: int | None = None
    k: int | None = None
    sigma: float = 3.0
    arms: Sequence[str] = tuple(ARMS)
    places: Sequence[str] = ("after", "before")
    shard: int = 64
    progress: bool = False
    _read: dict[str, Detector] = field(default_factory=dict, repr=False)

    def detector(self, arm: str = "colour") -> Detector:
        """The trained detector of an arm of ``ARMS``, read from its file; FileNotFoundError if it has not been trained."""
        if arm not in self._read:
            blank = detectors.build(self.name, pretrained=False)
            made = weights.read(blank, self._weights(arm), made_by="python -m xaicourse.forensics train")
            self._read[arm] = made.to(self.device)  # type: ignore[assignment]
        return self._read[arm]

    def train(self) -> None:
        """Train a detector for each arm that has none yet; ValueError if there is one to train and several processes run."""
        for arm in self.arms:
            if weights.there(self._weights(arm)):
                continue
            if distributed.is_initialized():
                raise ValueError(
                    f"{self._weights(arm)} must be there before several processes share the work: run "
                    "`python -m xaicourse.forensics train` with the same options first, without torchrun"
                )
            gray, gray_real = ARMS[arm]
            blank = detectors.build(self.name, pretrained=self.pretrained, seed=self.seed).to(self.device)
            made = detectors.train(
                blank,
                self.sets.train.real,
                self.sets.train.fake,
                seed=self.seed,
                steps=self.settings()["steps"],
                gray=gray,
                gray_real=gray_real,
                sigma=self.sigma,
                progress=self.progress,
            )
            weights.write(made, self._weights(arm))
            _log.info("%s, seed %d: detector %s trained", self.name, self.seed, arm)

    def rank(self) -> Ranking:
        """Rank the channels of the detector that was trained in colour; ValueError if it is at chance."""
        file = self.folder / "ranking.json"
        if not _there(file):
            detectors.check_detects(*self._validated("colour"))
            # of training pictures, as in the paper: tested ones take no part in the choice of channels
            made = channels.rank(
                self.detector(), self.sets.train.fake, shard=self.shard, folder=self.folder, progress=self.progress
            )
            if _first():
                made.save(file, self._about())
            _wait()
        return Ranking.load(file, self.detector())

    def ablate(self) -> dict[str, Any]:
        """Average precision and accuracies on every generator with channels off: each kind, after and before the batch norm."""
        return self._keep("ablate.json", self._ablate)

    def evaluate(self) -> dict[str, Any]:
        """All arms in colour and gray on every generator; how activations shift; where the top channels look."""
        return self._keep("evaluate.json", self._evaluate)

    def rivals(self) -> dict[str, Any]:
        """Average precision without the top k of three rankings by the same pictures: LRP, LRP-epsilon, largest activation."""
        return self._keep("rivals.json", self._rivals)

    def _keep(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        file = self.folder / name
        if _there(file):
            _check_same(file, self._about())
        return keep(file, lambda: compute() | self._about())

    def settings(self) -> dict[str, Any]:
        """What the results depend on beside the seed."""
        return {
            "detector": self.name,
            "pretrained": self.pretrained and self.name != "small",
            "steps": _STEPS[self.name] if self.steps is None else self.steps,
            "k": K[self.name] if self.k is None else self.k,
            "draws": _DRAWS,
            "gray shares of counterfeit and real": {arm: list(ARMS[arm]) for arm in self.arms},
            "sigma": self.sigma,
            "seen": self.sets.seen,
            "pictures": {
                part: [len(pair.real), len(pair.fake)]
                for part, pair in {
                    "train": self.sets.train,
                    "validation": self.sets.validation,
                    **self.sets.test,
                }.items()
            },
        }

    def _about(self) -> dict[str, Any]:
        return {"seed": self.seed, "configuration": self.settings(), "versions": versions()}

    def _weights(self, arm: str) -> Path:
        return self.folder / f"{arm.replace(' ', '_')}.pt"

    def cut(self, arm: str = "colour") -> float:
        """The threshold of an arm's detector on validation pictures."""
        return detectors.threshold(*self._validated(arm))

    def _validated(self, arm: str) -> tuple[Tensor, Tensor]:
        validation, detector = self.sets.validation, self.detector(arm)
        return detectors.logits(detector, validation.real), detectors.logits(detector, validation.fake)

    def _quality(self, model: nn.Module, cut: float) -> dict[str, Any]:
        """On every generator; real pictures that generators share are looked at once."""
        seen: dict[int, Tensor] = {}
        found = {}
        for generator, pair in self.sets.test.items():
            if id(pair.real) not in seen:
                seen[id(pair.real)] = detectors.logits(model, pair.real)
            found[generator] = asdict(detectors.quality(seen[id(pair.real)], detectors.logits(model, pair.fake), cut))
        return found

    def _chosen(self, kind: str, k: int) -> list[list[Channel]]:
        ranking, random = self.rank(), torch.Generator().manual_seed(self.seed)
        draws = _DRAWS if kind in ("random", "layer-matched") else 1
        return [ablation.choose(ranking, k, kind, generator=random) for _ in range(draws)]

    def _ablate(self) -> dict[str, Any]:
        detector, cut, k = self.detector(), self.cut("colour"), self.settings()["k"]
        found: dict[str, Any] = {"k": k, "channels": len(self.rank().channels), "threshold": cut}
        found["layers"] = dict(sorted(Counter(path for path, _ in self.rank().top(k)).items()))
        found["baseline"] = self._quality(detector, cut)
        for where in self.places:
            found[where] = {}
            for kind in ablation.KINDS:
                draws = []
                for chosen in self._chosen(kind, k):
                    with ablation.ablated(detector, chosen, where=where):
                        draws.append(self._quality(detector, cut))
                found[where][kind] = _average(draws)
            _log.info("%s, seed %d: ablated %s the batch norm", self.name, self.seed, where)
        return found

    def _rivals(self) -> dict[str, Any]:
        detector, cut, k = self.detector(), self.cut(), self.settings()["k"]
        learned = patches.take(self.sets.train.fake, range(min(512, len(self.sets.train.fake))))
        sure = learned[detectors.logits(detector, learned).sigmoid() >= 0.9]
        chosen = {
            "LRP": channels.rank(detector, sure).top(k),  # of the same pictures as the others
            # in a network of ReLUs this is gradient x activation, a theorem of lecture 11
            "LRP-epsilon": channels.rank(detector, sure, composite="epsilon").top(k),
            "largest activation": colour.most_active(detector, sure)[:k],
        }
        found: dict[str, Any] = {}
        for name, off in chosen.items():
            with ablation.ablated(detector, off):
                found[name] = self._quality(detector, cut)
            found[name]["in common with LRP"] = len(set(off) & set(chosen["LRP"])) / k
        return found

    def _evaluate(self) -> dict[str, Any]:
        found: dict[str, Any] = {"arms": {}}
        for arm in self.arms:
            model, cut = self.detector(arm), self.cut(arm)
            found["arms"][arm] = {"threshold": cut}
            real = {gray: {} for gray in (False, True)}  # type: ignore[var-annotated]
            for generator, pair in self.sets.test.items():
                for gray in (False, True):
                    if id(pair.real) not in real[gray]:
                        real[gray][id(pair.real)] = detectors.logits(model, pair.real, gray=gray)
                fake = {gray: detectors.logits(model, pair.fake, gray=gray) for gray in (False, True)}
                at = id(pair.real)
                found["arms"][arm][generator] = {
                    "colour": asdict(detectors.quality(real[False][at], fake[False], cut)),
                    "gray": asdict(detectors.quality(real[False][at], fake[True], cut)),
                    "all gray": asdict(detectors.quality(real[True][at], fake[True], cut)),
                }
        shown = self.sets.test[self.sets.seen].fake
        k, sample = self.settings()["k"], patches.take(shown, range(min(200, len(shown))))
        found["activations"] = {}
        found["looks"] = {}
        for kind in ("top", "layer-matched"):
            rows, where = [], []
            for chosen in self._chosen(kind, k):
                shift = colour.shifts(self.detector(), sample, chosen)
                rows.append({test: shift.found(test).double().mean().item() for test in ("median", "paired")})
                where.append(self._colour_looked_at(sample[:_LOOKED_AT], chosen))
            found["activations"][kind] = _average(rows)
            found["looks"][kind] = mean(where)
        return found

    def _colour_looked_at(self, pictures: Tensor, chosen: Sequence[Channel]) -> float:
        """Colourfulness of the regions where channels have their largest relevance, relative to that of the whole pictures."""
        places, _ = looks.strongest(self.detector(), pictures.to(self.device), chosen)
        of_pixels, ratios = looks.colourfulness(pictures), []
        for path in dict(chosen):
            here = [c for c, (layer, _index) in enumerate(chosen) if layer == path]
            of_path = [(row, column) for row, column in places[:, here].flatten(0, 1).tolist()]
            fields = looks.receptive_fields(self.detector(), path, of_path, pictures.shape[-2:])
            for at, (top, left, bottom, right) in enumerate(fields):
                seen = of_pixels[at // len(here)]
                ratios.append(seen[top:bottom, left:right].mean() / seen.mean().clamp(min=1e-6))
        return float(torch.stack(ratios).mean())


def _check_same(file: Path, about: dict[str, Any]) -> None:
    """ValueError if a JSON file was made with another seed or configuration; keys that only one of them has do not count."""
    there = json.loads(file.read_text(encoding="utf-8"))
    pairs = [("seed", there.get("seed"), about["seed"])]
    known = there.get("configuration", {})
    pairs += [(key, known[key], value) for key, value in about["configuration"].items() if key in known]
    for key, old, new in pairs:
        if json.loads(json.dumps(new)) != old and old is not None:
            raise ValueError(f"folder must be of this run: {file} was made with {key} = {old!r}, asked for is {new!r}")


def keep(file: Path, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a JSON file holds, or else the result of the computation, which is then written, whole or not at all."""
    if not _there(file):
        found = compute() | {"versions": versions()}
        if _first():
            file.parent.mkdir(parents=True, exist_ok=True)
            beside = file.with_name(f"{file.name}.{os.getpid()}")
            beside.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            beside.replace(file)
        _wait()
    return json.loads(file.read_text(encoding="utf-8"))


def versions() -> dict[str, str]:
    """What the figures were made with."""
    return {"python": platform.python_version()} | {name: version(name) for name in _VERSIONS}


def _average(draws: Sequence[Any]) -> Any:
    """The mean of numbers in dictionaries of one shape: the lecture averages accuracies over draws, not probabilities."""
    if isinstance(draws[0], dict):
        return {key: _average([draw[key] for draw in draws]) for key in draws[0]}
    return mean(draws)


def _first() -> bool:
    return not distributed.is_initialized() or distributed.get_rank() == 0


def _there(file: Path) -> bool:
    """Whether a file is there, as the first process sees it: another may look when the first has written it already."""
    answer = [file.exists()]
    if distributed.is_initialized():
        distributed.broadcast_object_list(answer)
    return answer[0]


def _wait() -> None:
    if distributed.is_initialized():
        distributed.barrier()
