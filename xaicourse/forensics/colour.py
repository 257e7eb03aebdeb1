"""Is it colour? Which channels feel it, and an artefact planted in colour or in brightness alone. Lecture 15.

Chandrasegaran et al. 2022, Discovering transferable forensic features for CNN-generated images detection, ECCV, look at the
most relevant channels, find colour there, and compare the channels' activations on counterfeits with and without colour by
Mood's median test. Both are the same pictures, so that a paired test is due: Wilcoxon's. And many channels are tested, so that
some differ by chance: the false-discovery rate is controlled (Benjamini & Hochberg 1995, J. R. Stat. Soc. B 57).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..arguments import check_generator, check_positive
from ..scores import check_model
from . import patches
from .channels import Channel, norms

__all__ = ["ARTEFACTS", "Shift", "maxima", "most_active", "plant", "shifts", "tuning"]

ARTEFACTS = ("chroma", "luma")
"""What a planted checkerboard varies: colour at constant brightness, or brightness at constant colour."""

# (R, G, B) of the same length; the first leaves the luma 0.299 R + 0.587 G + 0.114 B alone, the second is gray.
_DIRECTIONS = {"chroma": (1.0, -0.299 / 0.587, 0.0), "luma": (1.0, 1.0, 1.0)}


def maxima(model: nn.Module, pictures: Tensor, *, chunk: int = 128) -> dict[str, Tensor]:
    """The largest activation over height and width of every channel at the outputs of the batch norms.

    Returns (N, channels) by path of the batch norm.
    """
    check_model(model)
    found: dict[str, list[Tensor]] = {path: [] for path in norms(model)}
    handles = [
        norm.register_forward_hook(lambda _m, _x, y, path=path: found[path].append(y.flatten(2).amax(2).cpu()))
        for path, norm in norms(model).items()
    ]
    device = next(model.parameters()).device
    try:
        with torch.no_grad():
            for part in pictures.split(chunk):
                model(part.to(device))
    finally:
        for handle in handles:
            handle.remove()
    return {path: torch.cat(parts) for path, parts in found.items()}


def most_active(model: nn.Module, pictures: Tensor) -> list[Channel]:
    """All channels by how active they are, the most active first: a ranking that no explanation has a part in.

    The largest activation of a channel in each picture, as a share of its layer's (negative ones count as 0), and the mean over
    pictures: normalised as ``channels.relevance`` is.
    """
    shares = {}
    for path, most in maxima(model, pictures).items():
        above = most.double().clamp(min=0)
        for index, share in enumerate((above / above.sum(1, keepdim=True).clamp(min=1e-12)).mean(0).tolist()):
            shares[path, index] = share
    return sorted(shares, key=lambda channel: -shares[channel])


@dataclass(frozen=True)
class Shift:
    """How activations differ between counterfeits with and without colour.

    channels  (path, number)
    median    p of Mood's median test for each, (C,): two groups of pictures
    paired    p of Wilcoxon's signed-rank test for each, (C,): the same pictures twice
    level     the rate of false discoveries
    """

    channels: tuple[Channel, ...]
    median: Tensor
    paired: Tensor
    level: float

    def found(self, test: str) -> Tensor:
        """Which channels differ by that test ("median" or "paired"), a share of ``level`` of them falsely, on average: (C,)."""
        from scipy.stats import false_discovery_control

        if test not in ("median", "paired"):
            raise ValueError(f"test must be 'median' or 'paired', got {test!r}")
        return torch.from_numpy(false_discovery_control(getattr(self, test).numpy())) < self.level


def shifts(model: nn.Module, pictures: Tensor, channels: Sequence[Channel], *, level: float = 0.05) -> Shift:
    """Test whether channels' largest activations differ between pictures and their gray copies.

    pictures  (N, 3, H, W) in [0, 1]
    channels  at least one
    level     the rate of false discoveries

    A channel whose activations are the same with and without colour has p = 1.
    """
    from scipy.stats import median_test, wilcoxon

    check_positive("level", level)
    if not channels:
        raise ValueError("channels must name at least one channel, got none")
    colour, gray = maxima(model, pictures), maxima(model, patches.grayscale(pictures))
    unpaired, paired = [], []
    for path, index in channels:
        a, b = colour[path][:, index].double().numpy(), gray[path][:, index].double().numpy()
        same = bool((a == b).all())
        constant = same or max(a.max(), b.max()) == min(a.min(), b.min())
        unpaired.append(1.0 if constant else _median(median_test, a, b))
        paired.append(1.0 if same else float(wilcoxon(a, b).pvalue))
    median, signed = torch.tensor([unpaired, paired], dtype=torch.float64)
    return Shift(tuple(channels), median, signed, level)


def _median(test: object, a: object, b: object) -> float:
    try:
        return float(test(a, b, ties="ignore").pvalue)  # type: ignore[operator]
    except ValueError:  # all values that are not the median lie on one side of it
        return 1.0


def plant(
    pictures: Tensor, artefact: str, strength: float = 0.03, *, generator: torch.Generator | None = None
) -> Tensor:
    """Make "counterfeits" of real patches with a known trace: a checkerboard of one pixel in colour or in brightness alone.

    pictures  (N, 3, H, W) in [0, 1]
    artefact  one of ``ARTEFACTS``
    strength  root mean square over R, G and B; both artefacts have the same, so that only their direction differs
    generator which of the two phases each picture gets; None: by PyTorch's own random numbers

    Returns quantised pictures of the same shape; near black and white the clip to [0, 1] leaves a little of the other kind.
    """
    if artefact not in ARTEFACTS:
        raise ValueError(f"artefact must be one of {', '.join(ARTEFACTS)}, got {artefact!r}")
    check_positive("strength", strength)
    check_generator(generator)
    direction = pictures.new_tensor(_DIRECTIONS[artefact])
    direction = direction / direction.square().mean().sqrt()
    rows, columns = torch.arange(pictures.shape[-2]), torch.arange(pictures.shape[-1])
    board = 1 - 2 * ((rows[:, None] + columns) % 2).to(pictures)
    phase = 1 - 2 * torch.randint(2, (len(pictures), 1, 1, 1), generator=generator).to(pictures)
    return patches.quantise(pictures + strength * phase * board * direction[:, None, None])


def tuning(model: nn.Module, *, count: int = 128, generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """How much more each channel answers to noise in colour than to noise in brightness, from -1 to 1.

    Both noises are white, on mid-gray, and of the same root mean square over R, G and B (0.1). With v the variance of the
    channel's output over places and pictures: (v_chroma - v_luma) / (v_chroma + v_luma). Neither photographs nor
    counterfeits take part. "Colour" is the direction of ``plant``, red against green; blue is not asked.

    Returns (channels,) by path of the batch norm.
    """
    check_model(model)
    check_generator(generator)
    noise = torch.randn(count, 1, patches.SIZE, patches.SIZE, generator=generator or torch.Generator().manual_seed(0))
    device, variances = next(model.parameters()).device, []
    for artefact in ARTEFACTS:
        direction = torch.tensor(_DIRECTIONS[artefact])
        direction = direction / direction.square().mean().sqrt()
        pictures = (0.5 + 0.1 * noise * direction[:, None, None]).clamp(0, 1)
        found: dict[str, Tensor] = {}

        def note(path: str, y: Tensor, found: dict[str, Tensor] = found) -> None:
            found[path] = y.double().var((0, 2, 3)).cpu()

        handles = [
            norm.register_forward_hook(lambda _m, _x, y, path=path, note=note: note(path, y))
            for path, norm in norms(model).items()
        ]
        try:
            with torch.no_grad():
                model(pictures.to(device))
        finally:
            for handle in handles:
                handle.remove()
        variances.append(found)
    chroma, luma = variances
    return {path: (chroma[path] - luma[path]) / (chroma[path] + luma[path]).clamp(min=1e-12) for path in chroma}
