"""The experiment in miniature: real patches, four generators, and the sets to train, validate and test on. Lecture 15.

Each seed deals the photographs anew, trains its own generators on the training photographs, and has them make counterfeits of
all patches. Detectors see those of one generator, the seen one.

Two further experiments need generators or real patches of our own: ``planted``, in which the trace is known, and ``fooled``, in
which the generator loses the channels that give it away.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

from .. import weights
from . import ablation, channels, colour, detectors, fooling, generators, patches
from .generators import Autoencoder
from .patches import Pictures

__all__ = ["SEEN", "SETTINGS", "SIGMA", "Pair", "Sets", "autoencoders", "fooled", "outrank", "planted", "sets"]

SEEN = "transposed"
"""The generator whose counterfeits the detectors are trained on."""

SIGMA = 1.0
"""The strongest blur in training, in pixels: on 32 of them the 3 of Wang et al. leave little."""

SETTINGS: dict[str, dict[str, Any]] = {
    "small": {"sigma": SIGMA},
    "efficientnet_lite0": {"sigma": SIGMA, "arms": ("colour", "gray"), "places": ("after",)},
    "resnet50": {"sigma": SIGMA, "arms": ("colour", "gray"), "places": ("after",)},
}
"""How each detector is run; the large ones are trained in two of the three ways and ablated in one place, to save time."""

_MADE_BY = "python -m xaicourse.forensics train"
_COUNTS = {"train": 3000, "validation": 600, "test": 400}
_PLANTED = (2000, 400, 400)  # patches to train, validate and test a planted artefact on


@dataclass(frozen=True)
class Pair:
    """Real pictures and the counterfeits of one generator."""

    real: Pictures
    fake: Pictures


@dataclass(frozen=True)
class Sets:
    """What an experiment works on.

    seen        the generator that detectors are trained on
    train       its pictures to train on
    validation  its pictures to choose the threshold on
    test        pictures to report on, by generator
    """

    seen: str
    train: Pair
    validation: Pair
    test: dict[str, Pair]


def autoencoders(seed: int, folder: Path, *, progress: bool = False) -> dict[str, Autoencoder]:
    """The generators of a seed by kind: read from the folder, or trained and kept there.

    They are stored in half precision, and always read back, so that counterfeits do not depend on who made them first.
    """
    train, _, _ = patches.split(seed)
    found = {}
    for kind in generators.KINDS:
        file = folder / f"{kind.replace(' ', '_')}.pt"
        with torch.random.fork_rng():
            model = Autoencoder(kind)
        if not weights.there(file):
            weights.write(generators.train(kind, train, seed=seed, progress=progress), file)
        weights.read(model, file, made_by=_MADE_BY)
        found[kind] = model
    return found


def sets(seed: int, made: dict[str, Autoencoder]) -> Sets:
    """Patches of the seed's photographs and the generators' versions of them.

    seed  of the photographs' split and of the places where patches are cut
    made  the generators, as ``autoencoders`` gives them
    """
    names = dict(zip(_COUNTS, patches.split(seed), strict=True))
    real = {
        part: patches.crop(names[part], count, generator=torch.Generator().manual_seed(1000 * seed + at))
        for at, (part, count) in enumerate(_COUNTS.items())
    }
    draw = torch.Generator().manual_seed(seed)
    pairs = {
        part: Pair(real[part], generators.counterfeit(made[SEEN], real[part], generator=draw))
        for part in ("train", "validation")
    }
    test = {
        kind: Pair(real["test"], generators.counterfeit(G, real["test"], generator=draw)) for kind, G in made.items()
    }
    return Sets(SEEN, pairs["train"], pairs["validation"], test)


def planted(seed: int, artefact: str, *, steps: int = 300, strength: float = 0.03) -> dict[str, Any]:
    """Plant an artefact in real patches, train a small detector on it, and ask the ranking which channels it lives on.

    artefact  "chroma" or "luma", see ``colour.plant``
    strength  of the artefact, root mean square

    Returns the detector's average precision on tested patches; and "outrank", the probability that of two channels of one
    layer the one tuned to colour (``colour.tuning``) is the more relevant: one half where tuning does not matter (``outrank``).
    "random" is the same for a random ranking.
    """
    train, validation, test = (
        0.1 + 0.8 * patches.crop(names, count, generator=torch.Generator().manual_seed(7000 + 10 * seed + at))
        for at, (names, count) in enumerate(zip(patches.split(seed), _PLANTED, strict=True))
    )
    phase = torch.Generator().manual_seed(seed)
    real = [patches.quantise(part) for part in (train, validation, test)]
    fake = [colour.plant(part, artefact, strength, generator=phase) for part in (train, validation, test)]
    detector = detectors.train(
        detectors.build("small", seed=seed), real[0], fake[0], seed=seed, steps=steps, sigma=SIGMA
    )
    validated, tested = ((detectors.logits(detector, real[at]), detectors.logits(detector, fake[at])) for at in (1, 2))
    detectors.check_detects(*validated)
    ranking = channels.rank(detector, fake[0])
    shuffled = torch.randperm(len(ranking.channels), generator=phase)
    tuned = colour.tuning(detector)
    return {
        "precision": detectors.quality(*tested, detectors.threshold(*validated)).precision,
        "outrank": outrank(ranking, tuned),
        "random": outrank(replace(ranking, relevance=ranking.relevance[shuffled]), tuned),
        "steps": steps,
        "strength": strength,
    }


def outrank(ranking: channels.Ranking, tuned: dict[str, Tensor]) -> float:
    """The probability that of two channels of one layer the one with the higher tuning is the more relevant.

    tuned  of each channel by path of the batch norm, as ``colour.tuning`` gives it

    The mean over layers of the Mann-Whitney statistic between the upper and the lower half of a layer's tuning.
    """
    of_layers = []
    for path, tuning in tuned.items():
        R = torch.zeros(len(tuning), dtype=torch.float64)
        for (at, index), value in zip(ranking.channels, ranking.relevance.tolist(), strict=True):
            if at == path:
                R[index] = value
        order = tuning.argsort()
        low, high = R[order[: len(R) // 2]], R[order[len(R) // 2 :]]
        wins = (high[:, None] > low).double() + 0.5 * (high[:, None] == low).double()
        of_layers.append(wins.mean().item())
    return mean(of_layers)


def fooled(
    seed: int,
    autoencoder: Autoencoder,
    detector: nn.Module,
    sets: Sets,
    cut: float,
    ks: tuple[int, ...] = (4, 8, 16, 32),
) -> dict[str, Any]:
    """Switch off channels of the generator of the seen counterfeits: how many are still detected, and how distorted are they?

    cut  the detector's threshold

    Returns for each kind of ``ablation.KINDS`` and each k the share called counterfeit and the mean absolute distortion, at
    random as the mean of five draws; under "whole" the share for the generator as it is.
    """
    network = fooling.Counterfeiter(autoencoder, detector)
    learned, z = (
        generators.codes(autoencoder, patches.take(real, range(min(most, len(real)))))
        for real, most in ((sets.train.real, 512), (sets.test[sets.seen].real, 200))
    )
    # the pixels' box is no bound on codes, which the first convolution sees here
    ranking = channels.rank(network, learned, composite="epsilon_plus", within="decoder.")
    draw = torch.Generator().manual_seed(seed)
    found: dict[str, Any] = {"whole": (fooling.attack(network, z, []).detected.double() >= cut).double().mean().item()}
    for kind in ablation.KINDS:
        found[kind] = {}
        for k in ks:
            draws = 5 if kind in ("random", "layer-matched") else 1
            tries = [
                fooling.attack(network, z, ablation.choose(ranking, k, kind, generator=draw)) for _ in range(draws)
            ]
            found[kind][str(k)] = {
                "detected": mean((one.detected.double() >= cut).double().mean().item() for one in tries),
                "distortion": mean(one.distortion.double().mean().item() for one in tries),
            }
    return found
