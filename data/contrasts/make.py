"""Whom pertinent negatives convince (lecture 04): ``python data/contrasts/make.py``.

Of 400 test digits, for each strength of the plausibility term: what was found, and what judges that the search did not see say
of it. Writes judges.json beside itself, one strength after the other; one that is there is not searched again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from xaicourse import contrastive, digits, neighbors, prototypes

FILE = Path(__file__).parent / "judges.json"
STRENGTHS = [0.0, 1.0, 10.0, 100.0]
FIRST, COUNT = 300, 400  # the first 300 served to choose the settings

network, autoencoder, second = digits.load(), digits.load("autoencoder"), prototypes.load()
train, of_train = digits.samples("train")
pictures, labels = digits.samples("test")
with torch.no_grad():
    right = (network(pictures).argmax(1) == labels).nonzero()[:, 0][FIRST : FIRST + COUNT]


def judged(x: Tensor) -> dict[str, list[int]]:
    """What the five nearest training digits and the prototype network call pictures."""
    near = neighbors.nearest(x.flatten(1), train.flatten(1), k=5).indices
    with torch.no_grad():
        return {"neighbours": of_train[near].mode(1).values.tolist(), "prototypes": second(x).argmax(1).tolist()}


def measure(gamma: float) -> dict[str, Any]:
    """Pertinent negatives by a margin of 5, and what is said of them."""
    x = pictures[right]
    about: dict[str, Any] = {"autoencoder": autoencoder, "gamma": gamma} if gamma else {}
    found = contrastive.pertinent_negative(network, x, kappa=5.0, chunk=50, **about)
    distance = 784 * digits.reconstruction_error(autoencoder, found.picture)
    return {
        "found": found.found.tolist(),
        "class": found.class_after.tolist(),
        "ink": [round(value, 3) for value in found.l1.nan_to_num(-1).tolist()],
        "distance": [round(value, 3) for value in distance.tolist()],
        **judged(found.picture),
    }


def main() -> None:
    """Measure what is not there yet."""
    stored = json.loads(FILE.read_text()) if FILE.exists() else {}
    if "digits" not in stored:
        distance = 784 * digits.reconstruction_error(autoencoder, pictures[right])
        stored["digits"] = {
            "class": labels[right].tolist(),
            "distance": [round(value, 3) for value in distance.tolist()],
            **judged(pictures[right]),
        }
    for gamma in tqdm(STRENGTHS):
        if str(gamma) not in stored:
            stored[str(gamma)] = measure(gamma)
            FILE.write_text(json.dumps(stored))
    FILE.write_text(json.dumps(stored))


if __name__ == "__main__":
    main()
