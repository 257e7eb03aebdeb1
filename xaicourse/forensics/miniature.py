"""The experiment in miniature: real patches, four generators, and the sets to train, validate and test on. Lecture 15.

Each seed deals the photographs anew, trains its own generators on the training photographs, and has them make counterfeits of all
patches. Detectors see those of one generator, the seen one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from .. import weights
from . import generators, patches
from .generators import Autoencoder
from .patches import Pictures

__all__ = ["SEEN", "Pair", "Sets", "autoencoders", "sets"]

SEEN = "transposed"
"""The generator whose counterfeits the detectors are trained on."""

_MADE_BY = "python -m xaicourse.forensics train"
_COUNTS = {"train": 3000, "validation": 600, "test": 400}


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
        if not weights.there(file):
            weights.write(generators.train(kind, train, seed=seed, progress=progress), file)
        found[kind] = weights.read(Autoencoder(kind), file, made_by=_MADE_BY)
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
    pairs = {part: Pair(real[part], generators.counterfeit(made[SEEN], real[part])) for part in ("train", "validation")}
    test = {kind: Pair(real["test"], generators.counterfeit(G, real["test"])) for kind, G in made.items()}
    return Sets(SEEN, pairs["train"], pairs["validation"], test)
