"""The cube of coalitions: what three players are worth in every combination, and what each adds on every way (lecture 05)."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from .arguments import kind
from .plotting import COLOURS, Picture, _check_alt, _house_style

__all__ = ["cube"]

_PLACES = {0: (0, 0), 1: (-1, 1), 2: (0, 1), 4: (1, 1), 3: (-1, 2), 5: (0, 2), 6: (1, 2), 7: (0, 3)}


@_house_style
def cube(values: Tensor, players: Sequence[str], *, alt: str, title: str = "") -> Picture:
    """Draw the eight coalitions of three players, nobody at the foot and everyone at the head, and the ways between them.

    values   (8,): the worth of each coalition, by its number (`shapley.coalitions`: player j is in it if bit j is set)
    players  three names
    alt      text alternative, not empty
    title    above the figure

    An edge has the colour of the player who joins and says what that player adds; its width is the weight that this marginal
    contribution has in the player's Shapley value: 1/3 first and last, 1/6 in between. The values stand below.

    Raises TypeError or ValueError if an argument is not as above.
    """
    _check_alt(alt)
    if not isinstance(values, Tensor) or values.shape != (8,):
        raise ValueError(f"values must be a tensor of shape (8,), got {kind(values)}")
    if len(players) != 3:
        raise ValueError(f"players must be three names, got {len(players)}")
    worth = [float(value) for value in values]
    figure = Figure(figsize=(8.4, 5.6), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlim=(-1.55, 1.55), ylim=(-0.62, 3.3))
    axes.set_axis_off()
    shares = [0.0, 0.0, 0.0]
    for number in range(8):
        for j, colour in enumerate(COLOURS[1:4]):
            if not number >> j & 1:
                weight = 1 / 3 if number == 0 or number | 1 << j == 7 else 1 / 6
                adds = worth[number | 1 << j] - worth[number]
                shares[j] += weight * adds
                _edge(axes, number, number | 1 << j, f"{adds:+.3g}".replace("-", "−"), colour, 12 * weight)
    for number, (x, y) in _PLACES.items():
        who = " ".join(name for j, name in enumerate(players) if number >> j & 1) or "nobody"
        box = {"boxstyle": "round,pad=0.35", "fc": "white", "ec": "0.35", "lw": 1.2}
        label = f"{who}\n{worth[number]:.4g}".replace("-", "−")
        axes.text(x, y, label, ha="center", va="center", fontsize=12, bbox=box, zorder=4)
    for j, (name, colour) in enumerate(zip(players, COLOURS[1:4], strict=True)):
        text = f"{name}: {shares[j]:.3g}".replace("-", "−")
        axes.text(1.05 * (j - 1), -0.5, text, ha="center", color=colour, fontsize=14, fontweight="bold")
    axes.text(-1.52, -0.5, "Shapley:", ha="left", fontsize=12)
    if title:
        axes.set_title(title)
    return Picture(figure, alt, sharpness=2)


def _edge(axes: Axes, low: int, high: int, text: str, colour: str, width: float) -> None:
    (x, y), (to_x, to_y) = _PLACES[low], _PLACES[high]
    axes.plot((x, to_x), (y, to_y), color=colour, lw=width, solid_capstyle="round", zorder=1)
    part = 0.34 if 0 < y < 2 and x != to_x else 0.5  # where two edges cross, neither label stands on the other
    box = {"boxstyle": "round,pad=0.12", "fc": "white", "ec": "none"}
    axes.text(
        x + part * (to_x - x),
        y + part * (to_y - y),
        text,
        color=colour,
        ha="center",
        va="center",
        fontsize=11,
        fontweight="bold",
        bbox=box,
        zorder=3,
    )
