"""What coalitions of parts of a photograph are worth, by six removals (lecture 06): ``python data/photograph_games/make.py``.

Writes photographs.npz beside itself, photograph by photograph; what is there already is not measured again. Lecture 06 reads
it with ``xaicourse.photograph_games``.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from xaicourse import photograph_games, shapley

FINE = 400  # evaluations for 6 x 6 patches
REPEATED, RUNS = "coffee", 16  # of one estimate, on one photograph


def enumerated(photograph: photograph_games.Photograph, players: Tensor, how: str) -> np.ndarray:
    """Score, highest probability, its class, distance to real pictures and to those of other photographs, (2^players, 5)."""
    game = photograph.game(players, how, everything=True)
    return torch.cat([values for _, values in game.blocks()]).numpy().astype(np.float32)


def estimated(photograph: photograph_games.Photograph, how: str, seed: int = 0) -> np.ndarray:
    """Shapley values of 6 x 6 patches and their standard errors, (2, 36)."""
    game = photograph.game(
        shapley.patches(photograph_games.SIZE, photograph_games.SIZE, photograph_games.SIZE // 6), how
    )
    found = shapley.kernel(game, FINE, generator=torch.Generator().manual_seed(seed))
    return torch.stack([found.values, found.standard_errors]).numpy().astype(np.float32)


def measure(name: str) -> dict[str, np.ndarray]:
    """All that is stored of one photograph."""
    photograph = photograph_games.Photograph(name)
    found = {
        "segments": photograph.segments.numpy().astype(np.uint8),
        "real": photograph.described(photograph.held_out).numpy().astype(np.float32),
        "perturbed": photograph.described(photograph.perturbed).numpy().astype(np.float32),
    }
    for how in photograph_games.REMOVALS:
        found[f"patches/{how}"] = enumerated(photograph, photograph_games.patches(), how)
        found[f"segments/{how}"] = enumerated(photograph, photograph.segments, how)
        found[f"fine/{how}"] = estimated(photograph, how)
    return {f"{name}/{key}": values for key, values in found.items()}


def main() -> None:
    """Measure the photographs that the file has not got, or those named on the command line."""
    stored = dict(np.load(photograph_games.FILE)) if photograph_games.FILE.exists() else {}
    for name in tqdm(sys.argv[1:] or photograph_games.NAMES):
        if f"{name}/real" not in stored:
            stored |= measure(name)
            np.savez_compressed(photograph_games.FILE, **stored)
        if (key := f"{name}/patches/{photograph_games.CONTROL}") not in stored:
            photograph = photograph_games.Photograph(name)
            stored[key] = enumerated(photograph, photograph_games.patches(), photograph_games.CONTROL)
            np.savez_compressed(photograph_games.FILE, **stored)
    if (key := f"{REPEATED}/runs/black") not in stored:
        photograph = photograph_games.Photograph(REPEATED)
        runs = [estimated(photograph, "black", seed) for seed in range(1, 1 + RUNS)]
        np.savez_compressed(photograph_games.FILE, **stored, **{key: np.stack(runs)})


if __name__ == "__main__":
    main()
