"""This looks like that: a network that compares patches of its input with patches of training samples (lecture 03).

A few convolutions turn a digit into 7 x 7 feature vectors. Each prototype, five for a class, is such a vector; how similar it
is to the most similar place of the input is a number, and the logits are a linear function of these numbers, and of nothing
else. After `project` every prototype *is* the vector of a patch of a training digit, so that each part of a logit can be
pointed at: this patch looks like that patch, so similar, times such a weight. (Chen et al., "This Looks Like That: Deep
Learning for Interpretable Image Recognition", NeurIPS 2019.)

Weights and the sources of the prototypes are in ``data/prototypes``, and this made them:

    python -m xaicourse.prototypes train
"""

from __future__ import annotations

import argparse
import logging

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import digits, weights
from .scores import check_inputs, check_model

__all__ = ["PrototypeNetwork", "decompose", "load", "patch_box", "project", "train"]

PER_CLASS, WIDTH = 5, 48
_FILE = weights.DATA / "prototypes" / "network.pt"
_log = logging.getLogger(__name__)


class PrototypeNetwork(nn.Module):
    """Pictures (N, 1, 28, 28) in [0, 1] to logits (N, 10), through the similarities to 50 prototypes.

    ``prototypes`` (50, 48) are points in the space of features, of class ``classes`` (50,). ``source`` (50, 3) says of which
    training digit, row and column each one is the patch, or -1 before `project`.
    """

    classes: Tensor
    source: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, WIDTH, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(WIDTH, WIDTH, 1), nn.Sigmoid(),
        )  # fmt: skip
        count = digits.CLASSES * PER_CLASS
        self.prototypes = nn.Parameter(torch.rand(count, WIDTH))
        self.last = nn.Linear(count, digits.CLASSES, bias=False)
        self.register_buffer("classes", torch.arange(count) // PER_CLASS)
        self.register_buffer("source", torch.full((count, 3), -1))
        with torch.no_grad():  # each prototype speaks for its class, and a little against the others
            own = F.one_hot(self.classes, digits.CLASSES).float().T
            self.last.weight.copy_(own - 0.5 * (1 - own))

    def distances(self, x: Tensor) -> Tensor:
        """Squared distances of every place to every prototype, (N, 50, 7, 7)."""
        z = self.features(x)
        squares = z.square().sum(1, keepdim=True) - 2 * F.conv2d(z, self.prototypes[:, :, None, None])
        return (squares + self.prototypes.square().sum(1)[:, None, None]).clamp(min=0)

    def similarities(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """How similar the most similar place is to each prototype, (N, 50), and which place that is, row by row, (N, 50).

        ``log((d^2 + 1) / (d^2 + 0.01))`` for a distance d: about 4.6 at d = 0, falling towards 0.
        """
        nearest, place = self.distances(x).flatten(2).min(2)
        return ((nearest + 1) / (nearest + 0.01)).log(), place

    def forward(self, x: Tensor) -> Tensor:
        """Give the logits: the similarities, weighed."""
        return self.last(self.similarities(x)[0])


def decompose(model: PrototypeNetwork, inputs: Tensor) -> Tensor:
    """Every logit as a sum over prototypes, similarity times weight: (N, 50, 10), whose sum over prototypes is the logits.

    Raises TypeError or ValueError unless ``inputs`` are pictures (N, 1, 28, 28) and the model is in evaluation mode.
    """
    _check(model, inputs)
    with torch.no_grad():
        return model.similarities(inputs)[0][:, :, None] * model.last.weight.T


def project(model: PrototypeNetwork, pictures: Tensor, labels: Tensor) -> None:
    """Move each prototype, in place, onto the nearest patch of a training picture of its class, and note where that is.

    pictures, labels  (M, 1, 28, 28) in [0, 1], and LongTensor (M,) with at least one picture of each class

    No two prototypes get the same patch. Raises TypeError or ValueError if an argument is not as above.
    """
    _check(model, pictures)
    if not isinstance(labels, Tensor) or labels.dtype != torch.long or labels.shape != (len(pictures),):
        raise ValueError(f"labels must be a LongTensor of shape ({len(pictures)},), one for each picture")
    if missing := set(model.classes.tolist()) - set(labels.tolist()):
        raise ValueError(f"labels must have every class; there is no picture of {sorted(missing)}")
    with torch.no_grad():
        distances = torch.cat([model.distances(part).flatten(2) for part in pictures.split(500)])
        taken: set[tuple[int, int]] = set()
        moved, source = torch.empty_like(model.prototypes), torch.empty_like(model.source)
        for number, of_class in enumerate(model.classes.tolist()):
            members = (labels == of_class).nonzero()[:, 0]
            distance = distances[members, number]
            for flat in distance.flatten().topk(len(taken) + 1, largest=False).indices.tolist():
                index, place = int(members[flat // distance.shape[1]]), flat % distance.shape[1]
                if (index, place) not in taken:
                    break
            taken.add((index, place))
            row, column = divmod(place, 7)
            moved[number] = model.features(pictures[index : index + 1])[0, :, row, column]
            source[number] = torch.tensor([index, row, column])
        model.prototypes.copy_(moved)
        model.source.copy_(source)


def patch_box(row: int, column: int) -> tuple[int, int, int, int]:
    """The pixels that the features at a place can see: top, left, bottom, right (the last two exclusive), clipped."""
    top, left = 4 * row - 6, 4 * column - 6  # two convolutions of 5 and two poolings by 2
    return max(top, 0), max(left, 0), min(top + 16, digits.SIZE), min(left + 16, digits.SIZE)


def load(*, pretrained: bool = True) -> PrototypeNetwork:
    """The trained and projected network in evaluation mode; ``pretrained=False``: as it began.

    FileNotFoundError if the weights are not there, RuntimeError if they are not those of the card.
    """
    model = _untrained()
    if pretrained:
        weights.read(model, _FILE, made_by="python -m xaicourse.prototypes train")
        _project_again(model)
    return model


def _project_again(model: PrototypeNetwork) -> None:
    """Compute the prototypes once more from their sources: weights are stored in half precision."""
    pictures, _ = digits.samples("train")
    with torch.no_grad():
        z = model.features(pictures[model.source[:, 0]])
        model.prototypes.copy_(z[torch.arange(len(z)), :, model.source[:, 1], model.source[:, 2]])


def train(*, steps: int = 2000) -> PrototypeNetwork:
    """Train on the training digits, shifted by up to two pixels: features and prototypes, projection, then the last layer.

    The loss is the cross-entropy, plus 0.8 times the distance of each digit to the nearest prototype of its class, less 0.08
    times that to the nearest of another; for the last layer the cross-entropy, plus 1e-4 times the weights across classes.
    """
    pictures, labels = digits.samples("train")
    model = _untrained().train()
    generator = torch.Generator().manual_seed(1)
    own = F.one_hot(model.classes, digits.CLASSES).bool()
    for phase, count in (("all", steps), ("last", steps // 4)):
        chosen = [model.last.weight] if phase == "last" else [*model.features.parameters(), model.prototypes]
        optimiser = torch.optim.Adam(chosen, 3e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 6e-3, total_steps=count)
        for step in range(count):
            batch = torch.randint(len(pictures), (64,), generator=generator)
            shift = torch.randint(-2, 3, (2,), generator=generator).tolist()
            x, y = pictures[batch].roll(shift, (2, 3)), labels[batch]
            loss = F.cross_entropy(model(x), y)
            if phase == "all":
                distance = model.distances(x).flatten(2).amin(2)
                of_class = own.T[y]
                loss = loss + 0.8 * distance.masked_fill(~of_class, torch.inf).amin(1).mean()
                loss = loss - 0.08 * distance.masked_fill(of_class, torch.inf).amin(1).mean()
            else:
                loss = loss + 1e-4 * (model.last.weight.T * ~own).abs().sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            if step % 500 == 499:
                _log.info("%s: step %d, loss %.3f", phase, step + 1, loss.item())
        if phase == "all":
            project(model.eval(), pictures, labels)
            model.train()
    return model.eval()


def _untrained() -> PrototypeNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PrototypeNetwork().eval()


def _check(model: PrototypeNetwork, pictures: Tensor) -> None:
    if not isinstance(model, PrototypeNetwork):
        raise TypeError(f"model must be a PrototypeNetwork, got {type(model).__name__}")
    check_model(model)
    check_inputs(pictures, images=True)
    if pictures.shape[1:] != (1, digits.SIZE, digits.SIZE):
        raise ValueError(f"inputs must be pictures of shape (N, 1, 28, 28), got {tuple(pictures.shape)}")


def main() -> None:
    """Train the network if it has no weights yet."""
    parser = argparse.ArgumentParser("python -m xaicourse.prototypes", description="Train the network of lecture 03.")
    parser.add_argument("command", choices=["train"])
    parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if _FILE.exists():
        _log.info("%s: there already", _FILE.name)
    else:
        weights.write(train(), _FILE)
    _log.info("%.1f %% right", 100 * digits.accuracy(load()))


if __name__ == "__main__":
    main()
