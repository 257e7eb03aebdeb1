"""Pertinent negatives and positives of a hundred test digits: how many are found, and what one costs (lecture 04).

A negative counts if the model, asked anew about the digit with what was added, says another class; a positive, if the model,
asked about nothing but what was kept, says the class of the digit; both by the margin kappa, where one is asked for. All
digits are searched in one batch, and a tenth of them once more one by one: the figures are seconds per digit. There is no
contender: the authors' code and its descendants need another framework, so that the row stands beside the model's own passes,
forward and backward, as many as the search made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import xaicourse
from xaicourse import contrastive, digits

from .framework import THREADS, Result, Settings, timed

SUBJECT = xaicourse

_SEARCHES: Mapping[str, Callable[..., contrastive.Contrast]] = {
    "negatives": contrastive.pertinent_negative,
    "positives": contrastive.pertinent_positive,
}


class Counted(nn.Module):
    """A model that counts the items of its passes, those with a gradient apart."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.forward_only = self.with_gradient = 0

    def forward(self, x: Tensor) -> Tensor:
        """Give what the model gives."""
        if torch.is_grad_enabled() and x.requires_grad:
            self.with_gradient += len(x)
        else:
            self.forward_only += len(x)
        return self.model(x)


@dataclass(frozen=True)
class Contrasts:
    """How many contrasts are found and hold, and the seconds of each."""

    name: str
    kind: str
    count: int
    plausible: bool
    kappa: float = 0.0
    configuration: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        about = {"digits": self.count, "autoencoder": self.plausible, "kappa": self.kappa}
        object.__setattr__(self, "configuration", about)

    def measure(self, settings: Settings) -> Result:
        """The shares, and the median over rounds of the seconds per digit, in one batch and one by one."""
        torch.set_num_threads(THREADS)
        model = digits.load()
        chosen = torch.randperm(1000, generator=torch.Generator().manual_seed(1))[: self.count]
        pictures = digits.samples("test")[0][chosen]
        about: dict[str, Any] = {"kappa": self.kappa}
        if self.plausible:
            about |= {"autoencoder": digits.load("autoencoder"), "gamma": 10.0}
        search = partial(_SEARCHES[self.kind], **about)
        counted = Counted(model).eval()
        found = search(counted, pictures)  # warms up, too
        batched = [timed(lambda: search(model, pictures).picture)[0] for _ in range(settings.rounds)]
        alone = pictures[: max(1, self.count // 10)]
        single = timed(lambda: torch.cat([search(model, one[None]).picture for one in alone]))[0]
        bare = timed(partial(_passes, model, pictures, counted))[0]
        with torch.no_grad():
            before, after = model(pictures).argmax(1), model(found.picture)
        others = after.scatter(1, before[:, None], -torch.inf).amax(1)
        ahead = after.gather(1, before[:, None])[:, 0] - others
        ahead = -ahead if self.kind == "negatives" else ahead
        as_asked = ahead >= self.kappa if self.kappa else ahead > 0
        held = int((as_asked & found.found).sum())
        seconds = median(batched) / self.count
        least = round(0.95 * self.count)
        return {
            "holds": bool((as_asked | ~found.found).all()),
            "why": "the model does not say of a picture what was reported",
            "held": held,
            "said to be found": int(found.found.sum()),
            "seconds": seconds,
            "seconds, one by one": single / len(alone),
            "of own passes": median(batched) / bare,
            "goals": [
                {"goal": f"held >= {least} of {self.count}", "measured": held, "met": held >= least},
                {"goal": "seconds per digit, batched <= 2", "measured": seconds, "met": seconds <= 2},
            ],
        }

    def report(self, result: Result) -> str:
        """The row as text."""
        head = f"\n{self.name}    ({', '.join(f'{k} {v}' for k, v in self.configuration.items())})"
        if not result["holds"]:
            return f"{head}\n  does not hold: {result['why']}"
        lines = [
            head,
            f"  held by the model: {result['held']} of {self.count} ({result['said to be found']} said to be found)",
            f"  {result['seconds']:.3f} s per digit in a batch, {result['seconds, one by one']:.3f} s one by one; "
            f"{result['of own passes']:.2f} of the model's own passes",
        ]
        lines += [
            f"  {goal['goal']:36} {goal['measured']:8.3f}  {'met' if goal['met'] else 'missed'}"
            for goal in result["goals"]
        ]
        return "\n".join(lines)


def _passes(model: nn.Module, pictures: Tensor, counted: Counted) -> Tensor:
    """As many passes of the model alone as the search made."""
    for _ in range(counted.with_gradient // len(pictures)):
        leaf = pictures.clone().requires_grad_()
        torch.autograd.grad(model(leaf).sum(), leaf)
    with torch.no_grad():
        for _ in range(counted.forward_only // len(pictures)):
            model(pictures)
    return pictures


def rows(quick: bool = False) -> list[Contrasts]:
    """Both searches, without and with the autoencoder, and with the margin that lecture 04 asks for."""
    count = 10 if quick else 100
    plain = [Contrasts(kind, kind, count, plausible=False) for kind in _SEARCHES]
    plausible = [Contrasts(f"{kind}, plausible", kind, count, plausible=True) for kind in _SEARCHES]
    sure = [Contrasts(f"{kind}, plausible, by a margin", kind, count, plausible=True, kappa=5.0) for kind in _SEARCHES]
    return [*plain, *plausible, *sure]
