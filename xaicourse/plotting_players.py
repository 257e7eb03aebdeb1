"""Figures of players coloured by their values: parts of a picture, words, hours of a day, atoms and bonds (lecture 06).

Rules as in ``plotting``: red above zero, blue below, one symmetric scale for all that is compared, its colour bar, the sum, and
a text alternative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torch import Tensor

from .molecules import ATOMS, Molecule, bond_list
from .plotting import _SIGNED, WIDTH, Picture, _check_alt, _house_style

__all__ = ["hours", "molecule", "parts", "words"]


@_house_style
def words(
    values: Mapping[str, Tensor], words: Sequence[str], *, alt: str, title: str = "", limit: float | None = None
) -> Picture:
    """Draw a sentence once for each name in ``values``: every word on the colour of its value, the number below it.

    values  name, such as that of a removal, to the values of the words, (words,)
    words   in their order; a player may also be a phrase
    limit   end of the scale; None: the largest absolute value
    """
    _check_alt(alt)
    for name, row in values.items():
        if row.shape != (len(words),):
            raise ValueError(f"values[{name!r}] must have shape ({len(words)},), got {tuple(row.shape)}")
    scale = limit or _largest(values)
    figure = Figure(figsize=(WIDTH, 0.62 * len(values) + 0.75))
    axes = figure.add_axes((0, 0.75 / figure.get_figheight(), 1, 0.62 * len(values) / figure.get_figheight()))
    wide = np.array([max(len(word), 5) + 1.2 for word in words])
    left = 1.5 + (WIDTH - 2.4) * (wide.cumsum() - wide) / wide.sum()
    wide = (WIDTH - 2.4) * wide / wide.sum()
    axes.set(xlim=(0, WIDTH), ylim=(len(values), 0))
    axes.set_axis_off()
    for y, (name, row) in enumerate(values.items()):
        axes.text(0.05, y + 0.5, name, va="center", fontsize=12, fontweight="bold")
        for x, width, word, value in zip(left, wide, words, row.tolist(), strict=True):
            shade = float(np.clip(value / scale, -1, 1))
            box = (x + 0.03, y + 0.06), width - 0.06, 0.88
            axes.add_patch(
                FancyBboxPatch(*box, boxstyle="round,pad=0,rounding_size=0.06", fc=_colour(shade), ec="0.85")
            )
            ink = "white" if abs(shade) > 0.65 else "black"
            axes.text(x + width / 2, y + 0.38, word, ha="center", va="center", fontsize=12, color=ink)
            axes.text(x + width / 2, y + 0.76, _number(value), ha="center", va="center", fontsize=9, color=ink)
        axes.text(WIDTH - 0.05, y + 0.5, f"sum {_number(float(row.sum()))}", ha="right", va="center", fontsize=10)
    return _finish(figure, scale, alt, title, bottom=0.45)


@_house_style
def hours(
    values: Mapping[str, Tensor],
    day: Tensor,
    *,
    alt: str,
    title: str = "",
    notes: Mapping[str, str] | None = None,
    limit: float | None = None,
    columns: int = 4,
    ylabel: str = "rides in an hour",
) -> Picture:
    """Draw a series once for each name in ``values``, with the value of the player that each moment belongs to behind it.

    values  name to the value at each moment, (T,): that of its player, as a whole
    day     the series, (T,)
    notes   what stands below a name
    limit   end of the scale; None: the largest absolute value. What lies beyond is said
    """
    _check_alt(alt)
    scale = limit or _largest(values)
    columns = min(columns, len(values))
    rows = -(-len(values) // columns)
    figure = Figure(figsize=(WIDTH, 2.1 * rows + 0.9))
    moments = np.arange(len(day))
    for number, (name, row) in enumerate(values.items()):
        y, x = divmod(number, columns)
        height = figure.get_figheight()
        axes = figure.add_axes(
            (0.06 + x * 0.94 / columns, 1 - (2.1 * y + 2.0) / height, 0.94 / columns - 0.02, 1.45 / height)
        )
        for moment, value in zip(moments, row.tolist(), strict=True):
            axes.axvspan(moment - 0.5, moment + 0.5, color=_colour(float(np.clip(value / scale, -1, 1))), lw=0)
        axes.plot(moments, day, color="black", lw=1.8)
        axes.set(xlim=(-0.5, len(day) - 0.5), ylim=(0, None), xticks=[0, 6, 12, 18])
        axes.set_title(name + (f"\n{notes[name]}" if notes else ""), fontsize=11, pad=4)
        axes.tick_params(labelsize=9)
        if x:
            axes.set_yticklabels([])
        else:
            axes.set_ylabel(ylabel, fontsize=10)
    label = "value of the player that the hour belongs to"
    if (most := _largest(values)) > scale:
        label += f"; beyond the scale, up to {most:.1f}"
    return _finish(figure, scale, alt, title, bottom=0.5, label=label)


@_house_style
def molecule(
    molecule: Molecule,
    atoms: Mapping[str, Tensor],
    bonds: Mapping[str, Tensor] | None = None,
    *,
    alt: str,
    title: str = "",
    columns: int = 4,
) -> Picture:
    """Draw a molecule once for each name: its atoms coloured by ``atoms``, or its bonds by ``bonds``, with the numbers.

    atoms  name to the values of the atoms, (n,)
    bonds  name to the values of the bonds, in the order of ``molecules.bond_list``
    """
    _check_alt(alt)
    bonds = bonds or {}
    scale = _largest({**atoms, **{f"bonds: {name}": row for name, row in bonds.items()}})
    names = [(name, atoms[name], None) for name in atoms] + [(name, None, bonds[name]) for name in bonds]
    columns = min(columns, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(WIDTH, WIDTH / columns * rows + 0.9))
    places = _places(molecule)
    for number, (name, of_atoms, of_bonds) in enumerate(names):
        y, x = divmod(number, columns)
        size = WIDTH / columns
        height = figure.get_figheight()
        axes = figure.add_axes((x / columns, 1 - (y + 1) * size / height, 1 / columns, (size - 0.25) / height))
        axes.set_title(name, fontsize=11, pad=2)
        _draw_molecule(axes, molecule, places, of_atoms, of_bonds, scale)
    return _finish(figure, scale, alt, title, bottom=0.5)


def _draw_molecule(
    axes: Axes, molecule: Molecule, places: np.ndarray, atoms: Tensor | None, bonds: Tensor | None, scale: float
) -> None:
    for number, (i, j) in enumerate(bond_list(molecule)):
        start, end = places[i], places[j]
        across = np.array([start[1] - end[1], end[0] - start[0]])
        across = 0.07 * across / np.hypot(*across)
        value = None if bonds is None else float(bonds[number])
        colour = "0.45" if value is None else _colour(value / scale)
        for shift in (-across, across) if molecule.bonds[i, j] == 2 else (0 * across,):
            line = np.stack([start + shift, end + shift]).T
            if value is not None:
                axes.plot(*line, color="0.6", lw=6.5, zorder=1, solid_capstyle="butt")
            axes.plot(*line, color=colour, lw=2 if value is None else 5.5, zorder=1, solid_capstyle="butt")
        if value is not None:
            side = (start + end) / 2 + 3.6 * across * (1 if across[1] >= 0 else -1)
            axes.text(side[0], side[1], _number(value), ha="center", va="center", fontsize=9, zorder=4)
    for i, (x, y) in enumerate(places):
        shade = 0.0 if atoms is None else float(atoms[i]) / scale
        h = int(molecule.hydrogens[i])
        label = ATOMS[int(molecule.atoms[i])] + ("H" if h else "") + ("₀₁₂₃₄"[h] if h > 1 else "")
        ink = "white" if abs(shade) > 0.65 else "black"
        axes.scatter(x, y, s=620, color=[_colour(shade)], edgecolor="0.4", zorder=2)
        axes.text(x, y, label, ha="center", va="center", fontsize=10, color=ink, zorder=3)
        if atoms is not None:
            axes.text(
                x, y - 0.46, _number(float(atoms[i])), ha="center", va="center", fontsize=8.5, zorder=4, bbox=_BOX
            )
    low, high = places.min(0), places.max(0)
    middle, half = (low + high) / 2, max((high - low).max() / 2 + 0.65, 1.5)
    axes.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] - half, middle[1] + half), aspect="equal")
    axes.set_axis_off()


_BOX = {"boxstyle": "round,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.85}


def _places(molecule: Molecule) -> np.ndarray:
    """Where to draw each atom, (n, 2): bonds about 1 long, everything else far apart."""
    size = len(molecule)
    steps = np.where(np.eye(size, dtype=bool), 0, np.where(molecule.bonds.numpy() > 0, 1, size)).astype(float)
    for middle in range(size):
        steps = np.minimum(steps, steps[:, [middle]] + steps[[middle]])
    best, least = np.zeros((size, 2)), np.inf
    for seed in range(8):  # stress by gradient descent, from a few starts
        place = np.random.default_rng(seed).normal(size=(size, 2)) * 2
        for turn in range(600):
            way = place[:, None] - place[None]
            length = np.sqrt((way**2).sum(2)) + np.eye(size)
            wrong = (length - steps - np.eye(size)) / np.maximum(steps, 1) ** 2
            place = place - (0.3 / (1 + turn / 200)) * (wrong[..., None] * way / length[..., None]).sum(1) / 2
        if (stress := float((wrong**2).sum())) < least:
            best, least = place, stress
    turned = best - best.mean(0)
    return turned @ np.linalg.svd(turned)[2].T  # the long way lies


@_house_style
def parts(
    maps: Sequence[Sequence[Tensor]],
    image: Tensor,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    notes: Sequence[Sequence[str]],
    players: Sequence[Tensor],
    alt: str,
    title: str = "",
) -> Picture:
    """Draw a table of maps on top of one photograph, the player with the largest value framed in black.

    Each row has a scale of its own, written below its name: values of few large players and of many small ones do not compare.

    maps     the value of the player that each pixel belongs to, (H, W): a list for each row, with one for each column
    image    the photograph, (3, H, W) in [0, 1]
    notes    what stands below each map
    players  which player each pixel belongs to, (H, W), one for each row
    """
    _check_alt(alt)
    scales = [max(float(one.abs().max()) for one in row) or 1.0 for row in maps]
    size = (WIDTH - 0.9) / len(columns)
    figure = Figure(figsize=(WIDTH, (size + 0.28) * len(rows) + 1.0))
    height = figure.get_figheight()
    pale = 0.5 + 0.5 * np.asarray(image.mean(0))
    for y, row in enumerate(maps):
        top = 1 - (0.3 + y * (size + 0.28)) / height
        middle = top - size / 2 / height
        figure.text(0.85 / WIDTH, middle, rows[y], ha="right", va="center", fontsize=11, fontweight="bold")
        if len(maps) > 1:
            below = middle - 0.25 / height
            figure.text(0.85 / WIDTH, below, f"±{scales[y]:.2g}", ha="right", va="center", fontsize=10)
        for x, one in enumerate(row):
            axes = figure.add_axes(
                ((0.9 + x * size) / WIDTH, top - size / height, (size - 0.06) / WIDTH, (size - 0.06) / height)
            )
            colour = _SIGNED((np.asarray(one) / scales[y] + 1) / 2)[..., :3]
            axes.imshow(colour * pale[..., None], interpolation="nearest")
            number = np.asarray(players[y])
            axes.imshow(np.ones((*number.shape, 4)) * _border(number)[..., None], interpolation="nearest")
            best = number == number.ravel()[np.argmax(np.asarray(one))]
            axes.contour(best, [0.5], colors="black", linewidths=2.2)
            axes.set(xticks=[], yticks=[])
            if y == 0:
                axes.set_title(columns[x], fontsize=11, pad=4)
            axes.set_xlabel(notes[y][x], fontsize=9.5, labelpad=2)
    if len(maps) == 1:
        label, scale = "value of the player that a pixel belongs to", scales[0]
    else:
        label, scale = "value of a player, in units of the scale at the left of its row", 1.0
    return _finish(figure, scale, alt, title, bottom=0.5, label=label, sharpness=1)


def _border(players: np.ndarray) -> np.ndarray:
    border = np.zeros_like(players, dtype=bool)
    border[1:] |= players[1:] != players[:-1]
    border[:, 1:] |= players[:, 1:] != players[:, :-1]
    return border


def _largest(values: Mapping[str, Tensor]) -> float:
    return max(float(row.abs().max()) for row in values.values()) or 1.0


def _colour(shade: float) -> tuple[float, float, float, float]:
    return _SIGNED((float(np.clip(shade, -1, 1)) + 1) / 2)


def _number(value: float) -> str:
    return "0.0" if abs(value) < 0.05 else f"{value:+.1f}".replace("-", "−")


def _finish(
    figure: Figure,
    scale: float,
    alt: str,
    title: str,
    *,
    bottom: float,
    label: str = "",
    sharpness: int = 2,
) -> Picture:
    """The colour bar at the foot, the title at the head."""
    height = figure.get_figheight()
    axes = figure.add_axes((0.3, bottom / height, 0.4, 0.12 / height))
    bar = figure.colorbar(
        ScalarMappable(Normalize(-scale, scale), _SIGNED), cax=axes, orientation="horizontal", ticks=[-scale, 0, scale]
    )
    end = f"{scale:.2g}"
    bar.ax.set_xticklabels([f"−{end}", "0", f"+{end}"], fontsize=9.5)
    bar.set_label(label or "value; one scale", fontsize=9.5, labelpad=1)
    if title:
        figure.text(0.5, 1 + 0.08 / height, title, ha="center", va="bottom", fontsize=13, fontweight="bold")
    return Picture(figure, alt, sharpness=sharpness)
