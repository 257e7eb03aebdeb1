"""Every figure of the course: numbers in, a `Picture` out (all lectures; the network graph is lecture 11's).

House rules, kept by every function here: a signed map has a symmetric scale centred on zero, red above and
blue below; a colour bar states the scale; the signed sum is printed; what lies beyond a scale is said, never
hidden; text for those who cannot see the picture (`alt=`) is required and travels with the image into the
notebook, its web page and JupyterLab. A NaN or an infinity is an error, never a picture.

Nothing here touches pyplot, so no figure is drawn twice and none stays open.
"""

from __future__ import annotations

import base64
import functools
import html
import io
import math
import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Patch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

__all__ = ["COLOURS", "Picture", "bars", "grid", "heatmap", "lines", "network_graph", "overlay", "photograph"]

Array = NDArray[np.float64]

WIDTH = 9.5  # inches: a notebook page
_PIXELS_PER_INCH = 100  # on the page; a picture may hold more for a sharp projection

COLOURS = ("#000000", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Of curves, in their order; told apart by colour-blind eyes (Okabe and Ito, Color Universal Design, 2008)."""

_SIGNED = matplotlib.colormaps["RdBu_r"]  # told apart also by colour-blind eyes, and in gray by its white middle
_SIZES = LinearSegmentedColormap.from_list("sizes", _SIGNED(np.linspace(0.5, 1, 128)))  # its upper half
_POSITIVE, _NEGATIVE, _NEUTRAL = "#b2182b", "#2166ac", "#8c8c8c"
_SEE_THROUGH = LinearSegmentedColormap.from_list(
    "signed_opacity",
    [
        (*_SIGNED(0.06)[:3], 1.0),
        (*_SIGNED(0.2)[:3], 0.0),
        (*_SIGNED(0.8)[:3], 0.0),
        (*_SIGNED(0.94)[:3], 1.0),
    ],
)
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture everywhere
    "font.size": 11,
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
}

P = ParamSpec("P")


@dataclass(frozen=True, eq=False)
class Picture:
    """A figure with its text alternative; shows itself in a notebook as an image that carries the text.

    The image goes into the notebook as HTML, `<img alt="...">`, because JupyterLab and nbconvert drop the
    text that comes with a bare PNG. `figure` is the matplotlib figure, to be changed or saved in other
    formats.
    """

    figure: Figure
    alt: str
    sharpness: int = 1  # pixels of the image per pixel on the page

    def png(self) -> bytes:
        """Give the picture as the content of a PNG file, cropped to what is drawn, with a small white
        margin."""
        content = io.BytesIO()
        with matplotlib.style.context(["default", _STYLE]):
            self.figure.savefig(
                content,
                format="png",
                dpi=_PIXELS_PER_INCH * self.sharpness,
                bbox_inches="tight",
                pad_inches=0.08,
                metadata={"Software": None},  # or each version of matplotlib would change a committed notebook
            )
        image = Image.open(content).convert("RGB")
        if self.sharpness > 1:  # line art: 256 colours do, and a third of the bytes
            image = image.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        smaller = io.BytesIO()
        image.save(smaller, format="png", optimize=True)
        return smaller.getvalue()

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write the picture to a PNG file."""
        with open(file, "wb") as stream:
            stream.write(self.png())

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        content = self.png()
        width = Image.open(io.BytesIO(content)).width // self.sharpness
        source = base64.b64encode(content).decode()
        image = f'<img alt="{html.escape(self.alt)}" width="{width}" src="data:image/png;base64,{source}">'
        return {"text/html": image, "text/plain": self.alt}


def _house_style(draw: Callable[P, Picture]) -> Callable[P, Picture]:
    """Draw in the house style, whatever the notebook has set, and leave its settings as they were."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Picture:
        with matplotlib.style.context(["default", _STYLE]):
            return draw(*args, **kwargs)

    return drawn


# ------------------------------------------------------------------------------------------------------------
# Maps of relevance
# ------------------------------------------------------------------------------------------------------------


@_house_style
def heatmap(
    relevance: Tensor | Array,
    *,
    alt: str,
    title: str | None = None,
    limit: float | None = None,
    quantile: float | None = None,
    unsigned: bool = False,
) -> Picture:
    """Draw one map of signed relevance, with its sum above it and its scale below it.

    Parameters
    ----------
    relevance
        Shape (H, W) or (C, H, W), any unit, signed; channels are summed.
    alt
        What the picture shows, for those who cannot see it.
    title
        Stands above the map.
    limit
        The scale runs from -limit to +limit; None: from -max |R| to +max |R|.
    quantile
        In (0, 1]: put the limit at this quantile of |R| over the pixels instead.
    unsigned
        As in `grid`.

    Returns
    -------
    Picture
        Where the scale leaves pixels out, it says which share of them, and the largest |R|.

    Raises
    ------
    TypeError, ValueError
        For a wrong shape, a NaN or infinity, an empty alt, a limit that is not positive, limit with quantile,
        a negative value in an unsigned map.
    """
    _check_alt(alt)
    values = _check_map("relevance", relevance)
    _check_unsigned(unsigned, {"relevance": values})
    panel = _Panel(
        _check_title(title), values, _scale([values], limit, quantile), unsigned=unsigned, summed=not unsigned
    )
    return Picture(_draw_panels([panel], 1), alt)


@_house_style
def overlay(
    image: Tensor | Array,
    relevance: Tensor | Array,
    *,
    alt: str,
    title: str | None = None,
    limit: float | None = None,
    quantile: float | None = None,
) -> Picture:
    """Draw signed relevance in colour on top of the photograph in gray: the more |R|, the more opaque.

    Parameters
    ----------
    image
        The photograph as displayed, shape (3, H, W) or (H, W), values in [0, 1].
    relevance
        Shape (H, W) or (C, H, W) with the photograph's H and W; channels are summed.
    alt, title, limit, quantile
        As in `heatmap`. Opacity grows linearly from zero at R = 0 to one at the limit.

    Raises
    ------
    TypeError, ValueError
        As `heatmap`, and if the sizes differ or the image leaves [0, 1].
    """
    _check_alt(alt)
    pixels, values = _check_image(image), _check_map("relevance", relevance)
    _check_same_size(pixels, values, "relevance")
    panel = _Panel(_check_title(title), values, _scale([values], limit, quantile), pixels)
    return Picture(_draw_panels([panel], 1), alt)


@_house_style
def grid(
    relevances: Mapping[str, Tensor | Array],
    image: Tensor | Array | None = None,
    *,
    alt: str,
    title: str | None = None,
    shared: bool = False,
    limit: float | None = None,
    quantile: float | None = None,
    columns: int | None = None,
    image_title: str = "photograph",
    unsigned: bool = False,
    sums: bool = True,
) -> Picture:
    """Draw several maps side by side, the photograph first; each has its own scale unless they share one.

    Parameters
    ----------
    relevances
        Name of the method (or network, or photograph) to its map, shape (H, W) or (C, H, W); channels are
        summed.
    image
        The photograph as displayed, shape (3, H, W) or (H, W), values in [0, 1]; None: maps only.
    alt, title
        As in `heatmap`; the title stands above all panels.
    shared
        False: each panel has the scale of its own largest |R|, and the figure says so. True: one scale for
        all.
    limit, quantile
        As in `heatmap`; a limit is one scale for all panels, a quantile is taken per panel, or over all if
        shared.
    columns
        Panels in a row; None: up to five in one row, else rows of four.
    image_title
        What stands above the image, if it is no photograph.
    unsigned
        True: the maps are sizes, never negative, |R| for instance. The scale runs from 0 to the limit, white
        to red, and no sum is printed, since sizes sum to nothing in particular.
    sums
        False: print no sums, where a map holds something that does not add up over pixels.

    Raises
    ------
    TypeError, ValueError
        As `heatmap`, with the name of the map at fault.
    """
    _check_alt(alt)
    if not isinstance(relevances, Mapping):
        raise TypeError(f"relevances must map names to tensors, got {type(relevances).__name__}")
    if not relevances:
        raise ValueError("relevances must hold at least one map, got none")
    maps = {
        _check_text("a name in relevances", name): _check_map(f"relevances[{name!r}]", r)
        for name, r in relevances.items()
    }
    _check_unsigned(unsigned, {f"relevances[{name!r}]": values for name, values in maps.items()})
    if not isinstance(sums, bool):
        raise TypeError(f"sums must be True or False, got {type(sums).__name__}")
    summed = sums and not unsigned
    pixels = None if image is None else _check_image(image)
    if pixels is not None:
        for name, values in maps.items():
            _check_same_size(pixels, values, f"relevances[{name!r}]")
    count = len(maps) + (pixels is not None)
    if columns is None:
        columns = count if count <= 5 else 4
    if isinstance(columns, bool) or not isinstance(columns, int) or columns < 1:
        raise ValueError(f"columns must be a positive integer or None, got {columns!r}")
    shared = shared or limit is not None
    together = _scale(list(maps.values()), limit, quantile)
    panels = [] if pixels is None else [_Panel(_check_text("image_title", image_title), pixels=pixels)]
    for name, values in maps.items():
        scale = together if shared else _scale([values], None, quantile)
        panels.append(_Panel(name, values, scale, unsigned=unsigned, summed=summed))
    return Picture(_draw_panels(panels, columns, _check_title(title), together if shared else None), alt)


@_house_style
def photograph(image: Tensor | Array, *, alt: str, title: str | None = None) -> Picture:
    """Draw an image as it is: shape (3, H, W) or (H, W), values in [0, 1]; a wrong shape or range is an
    error."""
    _check_alt(alt)
    return Picture(_draw_panels([_Panel(_check_title(title), pixels=_check_image(image))], 1), alt)


@dataclass(frozen=True)
class _Panel:
    """A map of relevance, a photograph, or a map on top of its photograph."""

    title: str
    values: Array | None = None  # (H, W)
    scale: float = 1.0
    pixels: Array | None = None  # (H, W, 3) or (H, W)
    unsigned: bool = False  # a scale from 0 on
    summed: bool = True  # whether its sum stands above it


def _draw_panels(panels: list[_Panel], columns: int, title: str = "", shared: float | None = None) -> Figure:
    """Lay panels out in rows, photographs and maps level with each other; shared is the scale that all maps
    have."""
    columns = min(columns, len(panels))
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    cell = min(WIDTH / columns, 5.0)
    size = cell - 0.25
    aspect = min(max(_height_by_width(panel) for panel in panels), 2.0)
    maps = [panel for panel in panels if panel.values is not None]
    clipped = any(_beyond([panel]) for panel in maps)
    titles = {id(panel): textwrap.fill(panel.title, max(int(cell * 10), 8)) for panel in panels}

    # inches, from the top of the page downwards
    foot = 0.2 if shared or not maps else 0.9 if clipped else 0.55
    note = 0.3 if len(maps) > 1 and not shared else 0.0
    bar = (1.05 if clipped else 0.7) if shared else 0.0
    heads = [
        max(0.21 * (titles[id(panel)].count("\n") + 1) * bool(panel.title) for panel in row) + 0.28 for row in rows
    ]
    height = 0.4 * bool(title) + sum(heads) + len(rows) * (size * aspect + foot) + note + bar
    figure = Figure(figsize=(columns * cell, height))

    def axes_at(left: float, top: float, width: float, tall: float) -> Axes:
        return figure.add_axes(
            (left / (columns * cell), 1 - (top + tall) / height, width / (columns * cell), tall / height)
        )

    def write(x: float, y: float, text: str, **style: Any) -> None:
        figure.text(x / (columns * cell), 1 - y / height, text, ha="center", va="bottom", **style)

    top = 0.4 * bool(title)
    if title:
        write(columns * cell / 2, 0.3, title, fontsize=14, fontweight="bold")
    for row, head in zip(rows, heads, strict=True):
        top += head
        for place, panel in enumerate(row):
            left = place * cell + (cell - size) / 2
            _draw_panel(axes_at(left, top, size, size * aspect), panel)
            above = 0.07
            if panel.values is not None and panel.summed:
                write(left + size / 2, top - above, f"sum R = {_signed(panel.values.sum(), digits=4)}")
                above = 0.28
            write(left + size / 2, top - above, titles[id(panel)], fontsize=12, fontweight="bold")
            if panel.values is not None and not shared:
                narrow = axes_at(left + 0.04 * size, top + size * aspect + 0.08, 0.92 * size, 0.11)
                _draw_colour_bar(figure, narrow, [panel])
        top += size * aspect + foot
    if shared:
        wide = axes_at(columns * cell / 2 - 2, top + 0.2, 4.0, 0.14)
        wide.set_title("one scale for all panels" if len(maps) > 1 else "", fontsize=10, fontweight="normal", pad=4)
        _draw_colour_bar(figure, wide, maps)
    elif note:
        write(columns * cell / 2, top + 0.22, "each panel has its own scale", fontsize=10)
    return figure


def _draw_panel(axes: Axes, panel: _Panel) -> None:
    if panel.pixels is not None:
        # under a map pale and gray, so that both of its colours stand out on every part
        pixels = panel.pixels if panel.values is None else 0.45 + 0.5 * _gray(panel.pixels)
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="antialiased")
    if panel.values is not None:
        norm = Normalize(0 if panel.unsigned else -panel.scale, panel.scale)
        axes.imshow(panel.values, cmap=_colours(panel), norm=norm, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=True, color="0.8")


def _draw_colour_bar(figure: Figure, axes: Axes, panels: list[_Panel]) -> None:
    """A horizontal colour bar from -scale, or from 0, to scale, which says what lies beyond it."""
    scale, beyond, unsigned = panels[0].scale, _beyond(panels), panels[0].unsigned
    low = 0 if unsigned else -scale
    axes.set_facecolor("0.75")  # what shows through the colours of an overlay
    bar = figure.colorbar(
        ScalarMappable(Normalize(low, scale), _colours(panels[0])),
        cax=axes,
        orientation="horizontal",
        ticks=[0, scale] if unsigned else [-scale, 0, scale],
        extend=("max" if unsigned else "both") if beyond else "neither",
    )
    _write_scale(bar, scale, unsigned)
    if beyond:
        bar.set_label(beyond, fontsize=9.5)


def _write_scale(bar: Colorbar, scale: float, unsigned: bool = False) -> None:
    """Write the ends of a scale below its colour bar, and its zero, as far as there is room."""
    end = _number(scale)
    if unsigned:
        labels = bar.ax.set_xticklabels(["0", end], fontsize=10)
        labels[1].set_horizontalalignment("right")
        return
    inches = bar.ax.get_position().width * bar.ax.figure.get_size_inches()[0]  # type: ignore[union-attr]
    room = inches / 0.088 * (1 if bar.extend == "neither" else 0.9) - 2 * (len(end) + 1.2)  # in characters
    words = [f"−{end}", "0", f"+{end}"] if room > 4 else [f"−{end}", "", f"+{end}"]  # white says zero
    if room < 1:
        words = ["", f"±{end}", ""]
    labels = bar.ax.set_xticklabels(words, fontsize=10)
    labels[0].set_horizontalalignment("left")  # inwards, so that neighbours never touch
    labels[2].set_horizontalalignment("right")


def _beyond(panels: list[_Panel]) -> str:
    """What a scale leaves out, in words; nothing if it holds every pixel."""
    magnitude = np.concatenate([np.abs(panel.values).ravel() for panel in panels if panel.values is not None])
    out = magnitude > panels[0].scale
    return f"{_percent(out.mean())} of pixels beyond,\nup to |R| = {_number(magnitude.max())}" if out.any() else ""


def _colours(panel: _Panel) -> Colormap:
    if panel.unsigned:
        return _SIZES
    return _SIGNED if panel.pixels is None else _SEE_THROUGH


def _height_by_width(panel: _Panel) -> float:
    shown = panel.pixels if panel.values is None else panel.values
    assert shown is not None
    return shown.shape[0] / shown.shape[1]


def _scale(maps: list[Array], limit: float | None, quantile: float | None) -> float:
    """The end of the colour scale: a limit that is given, a quantile of |R|, or the largest |R| (1 if all are
    0)."""
    if limit is not None and quantile is not None:
        raise ValueError(f"limit and quantile exclude each other, got limit={limit!r} and quantile={quantile!r}")
    if limit is not None:
        return _check_positive("limit", limit)
    if quantile is not None and _check_positive("quantile", quantile) > 1:
        raise ValueError(f"quantile must be in (0, 1], got {quantile!r}")
    magnitude = np.concatenate([np.abs(values).ravel() for values in maps])
    return float(np.quantile(magnitude, 1.0 if quantile is None else quantile)) or float(magnitude.max()) or 1.0


# ------------------------------------------------------------------------------------------------------------
# A network as a graph
# ------------------------------------------------------------------------------------------------------------

_RADIUS, _ROW, _THICKEST = 0.36, 1.12, 11.0  # inches, inches, points


@_house_style
def network_graph(
    relevance: Sequence[Tensor | Array],
    messages: Sequence[Tensor | Array],
    *,
    alt: str,
    labels: Sequence[Sequence[str]] | None = None,
    layers: Sequence[str] | None = None,
    title: str | None = None,
    limit: float | None = None,
) -> Picture:
    """Draw a small network as a graph with the relevance of its neurons and of the messages between them.

    A neuron's colour and number are its relevance R_k. An edge's width, colour and number are the message
    R_(i<-k), the part of R_k that goes back to neuron i. Inputs stand on the left, outputs on the right;
    below each layer stands its sum. Places depend on the network alone, so that with a fixed limit a setting
    can be moved and the pictures compared.

    Parameters
    ----------
    relevance
        One tensor (n_l,) per layer, input first, output last; at least two layers, at most ten neurons in
        each.
    messages
        One tensor (n_l, n_(l+1)) per pair of neighbouring layers: row i, column k holds R_(i<-k).
    alt, title
        As in `heatmap`.
    labels
        The name of each neuron, per layer, as plain text or mathtext ("$x_1$").
    layers
        The name of each layer, above it.
    limit
        End of the scale of colours and widths; None: the largest absolute value in the picture. The picture
        says how many values lie beyond it.

    Raises
    ------
    TypeError, ValueError
        If shapes do not fit together, a value is NaN or infinite, alt is empty, limit is not positive.

    Reference: Bach et al., On pixel-wise explanations for non-linear classifier decisions by layer-wise
    relevance propagation, PLoS ONE 10(7), 2015.
    """
    _check_alt(alt)
    neurons, edges = _check_network(relevance, messages)
    sizes = [len(values) for values in neurons]
    names = _check_labels(labels, sizes)
    if layers is not None and len(layers) != len(neurons):
        raise ValueError(f"layers must name all {len(neurons)} layers, got {len(layers)} names")
    everything = np.abs(np.concatenate([values.ravel() for values in (*neurons, *edges)]))
    scale = (float(everything.max()) or 1.0) if limit is None else _check_positive("limit", limit)

    bottom, top = 0.75, 0.45 if layers is not None else 0.2
    height = max(sizes) * _ROW + bottom + top
    figure = Figure(figsize=(WIDTH, height + 0.75))
    axes = figure.add_axes((0, 0.75 / (height + 0.75), 1, height / (height + 0.75)))
    axes.set(xlim=(0, WIDTH), ylim=(0, height))
    axes.set_axis_off()

    columns = np.linspace(0.9, WIDTH - 0.9, len(sizes))
    middle = bottom + max(sizes) * _ROW / 2
    places = [[(x, middle + _ROW * ((n - 1) / 2 - i)) for i in range(n)] for x, n in zip(columns, sizes, strict=True)]

    for level, weights in enumerate(edges):
        for (i, k), at in _places_of_numbers(places[level], places[level + 1]).items():
            _draw_message(axes, places[level][i], places[level + 1][k], float(weights[i, k]), scale, at)
    for level, values in enumerate(neurons):
        for i, (x, y) in enumerate(places[level]):
            _draw_neuron(axes, x, y, float(values[i]), names[level][i], scale)
        axes.text(columns[level], 0.36, "sum R", ha="center", va="bottom", fontsize=10, color="0.35")
        axes.text(
            columns[level],
            0.3,
            _signed(values.sum(), digits=4),
            ha="center",
            va="top",
            fontsize=13,
            fontweight="bold",
        )
        if layers is not None:
            axes.text(
                columns[level],
                height - 0.1,
                _check_text("layers", layers[level]),
                ha="center",
                va="top",
                fontweight="bold",
            )
    for between in (columns[:-1] + columns[1:]) / 2:
        axes.annotate(
            "",
            (between - 0.35, 0.25),
            (between + 0.35, 0.25),
            arrowprops={"arrowstyle": "->", "color": "0.35", "lw": 1.5},
        )

    beyond = int((everything > scale).sum())
    bar = figure.colorbar(
        ScalarMappable(Normalize(-scale, scale), _SIGNED),
        cax=figure.add_axes((0.28, 0.55 / (height + 0.75), 0.44, 0.15 / (height + 0.75))),
        orientation="horizontal",
        ticks=[-scale, 0, scale],
        extend="both" if beyond else "neither",
    )
    _write_scale(bar, scale)
    words = "relevance of neurons and of messages; an edge is as wide as its message is large"
    if beyond:
        words += f"\n{beyond} of {everything.size} values beyond, up to |R| = {_number(everything.max())}"
    bar.set_label(words, fontsize=10)
    if title is not None:
        axes.set_title(_check_text("title", title), fontsize=13)
    return Picture(figure, alt, sharpness=2)


def _draw_neuron(axes: Axes, x: float, y: float, value: float, name: str, scale: float) -> None:
    shade = float(np.clip(value / scale, -1, 1))
    axes.add_patch(
        Circle((x, y), _RADIUS, facecolor=_SIGNED((shade + 1) / 2), edgecolor="0.25", linewidth=1.3, zorder=4)
    )
    ink = "white" if abs(shade) > 0.65 else "black"
    axes.text(x, y, _decimal(value, scale), ha="center", va="center_baseline", color=ink, zorder=5, fontsize=10.5)
    axes.text(x, y + _RADIUS + 0.04, name, ha="center", va="bottom", zorder=5, fontsize=11)


def _draw_message(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], value: float, scale: float, at: float
) -> None:
    """An edge between two neurons, with its number at a fraction of its length."""
    (x0, y0), (x1, y1) = start, end
    size = min(abs(value) / scale, 1.0)
    colour = _POSITIVE if value > 0 else _NEGATIVE if value < 0 else "0.75"
    axes.plot(
        [x0, x1],
        [y0, y1],
        color=colour,
        linewidth=max(_THICKEST * size, 0.9),
        linestyle="-" if value else (0, (3, 3)),
        alpha=0.75,
        solid_capstyle="butt",
        zorder=1 + size,
    )
    axes.text(
        x0 + at * (x1 - x0),
        y0 + at * (y1 - y0),
        _decimal(value, scale),
        ha="center",
        va="center",
        fontsize=9.5,
        color=colour if value else "0.45",
        fontweight="bold" if value else "normal",
        zorder=3,
        bbox={"boxstyle": "round,pad=0.12", "facecolor": "white", "edgecolor": "none", "alpha": 0.92},
    )


def _places_of_numbers(
    left: list[tuple[float, float]], right: list[tuple[float, float]]
) -> dict[tuple[int, int], float]:
    """For each edge the fraction of its length where its number stands clear of other numbers and other
    edges."""
    pairs = [(i, k) for i in range(len(left)) for k in range(len(right))]
    starts = np.array([left[i] for i, _ in pairs])
    ways = np.array([right[k] for _, k in pairs]) - starts
    lengths = np.hypot(*ways.T)
    fractions = np.linspace(0, 1, 61)
    chosen = np.full(len(pairs), 0.5)
    for _ in range(4):  # place each anew, given the others
        for edge in range(len(pairs)):
            others = np.arange(len(pairs)) != edge
            ends = (_RADIUS + 0.28) / lengths[edge]
            at = fractions[(fractions >= ends) & (fractions <= 1 - ends)]
            points = starts[edge] + at[:, None] * ways[edge]
            numbers = starts[others] + chosen[others, None] * ways[others]
            gaps = points[:, None] - numbers
            # a number is two and a half times as wide as high
            clear = np.hypot(gaps[..., 0] / 2.5, gaps[..., 1]).min(axis=1, initial=0.35)
            offsets = points[:, None] - starts[others]
            across = offsets[..., 0] * ways[others, 1] - offsets[..., 1] * ways[others, 0]
            free = (np.abs(across) / lengths[others]).min(axis=1, initial=0.2)
            chosen[edge] = at[np.argmax(clear + 0.9 * free - 0.1 * np.abs(at - 0.5))]
    return dict(zip(pairs, chosen.tolist(), strict=True))


# ------------------------------------------------------------------------------------------------------------
# Relevance by layer
# ------------------------------------------------------------------------------------------------------------


@_house_style
def bars(
    names: Sequence[str],
    signed: Sequence[float],
    absolute: Sequence[float],
    *,
    alt: str,
    title: str | None = None,
    log: bool | None = None,
) -> Picture:
    """Draw, layer by layer, the sum of relevance beside the sum of its absolute values.

    What both have in common is passed on; what lies between them cancels out. sum R alone can look sound
    while positive and negative relevance grow beyond all bounds.

    Parameters
    ----------
    names
        One per layer, drawn from top to bottom.
    signed, absolute
        sum R and sum |R| of each layer, as long as names.
    alt, title
        As in `heatmap`.
    log
        True: a logarithmic axis, with dots since bars would have no foot there; the sign of sum R is in the
        colour. False: bars on a linear axis. None: logarithmic if the sums span more than a factor of fifty.

    Raises
    ------
    TypeError, ValueError
        If lengths differ, nothing is given, a value is NaN or infinite, sum |R| is less than |sum R|, alt is
        empty.
    """
    _check_alt(alt)
    rows = [_check_text("names", name) for name in names]
    total, size = _check_sums("signed", signed, len(rows)), _check_sums("absolute", absolute, len(rows))
    short = size < np.abs(total) * (1 - 1e-5) - 1e-12
    if short.any():
        at = int(np.argmax(short))
        raise ValueError(
            f"absolute must be sum |R|, at least |sum R| in every layer; "
            f"in layer {rows[at]!r} it is {size[at]:.6g} and the sum is {total[at]:.6g}"
        )
    positive = np.abs(np.concatenate([total, size]))
    positive = positive[positive > 0]
    if log is None:
        log = bool(positive.size and positive.max() > 50 * positive.min())
    row = 0.3 if len(rows) <= 24 else 0.21
    figure = Figure(figsize=(WIDTH, row * len(rows) + 1.4), layout="constrained")
    axes = figure.add_subplot()
    heights = np.arange(len(rows))
    colours = np.where(total > 0, _POSITIVE, np.where(total < 0, _NEGATIVE, _NEUTRAL))
    if log and positive.size:
        floor = positive.min() / 2
        axes.set_xscale("log")
        axes.set_xlim(floor, positive.max() * (positive.max() / floor) ** 0.25)
        shown = np.maximum(np.abs(total), floor)
        axes.hlines(heights, shown, np.maximum(size, floor), color="0.82", linewidth=5, zorder=1)
        axes.scatter(np.maximum(size, floor), heights, marker="D", s=42, facecolor="white", edgecolor="0.3", zorder=2)
        axes.scatter(shown, heights, s=52, c=colours, zorder=3, clip_on=False)
        axes.set_xlabel("size, on a logarithmic axis")
    else:
        axes.barh(heights, size, height=0.72, facecolor="0.9", edgecolor="0.55")
        axes.barh(heights, total, height=0.4, color=colours)
        axes.axvline(0, color="0.3", linewidth=1)
        low, high = min(0.0, total.min()), max(size.max(), total.max()) or 1.0
        axes.set_xlim(low * 1.05, high + 0.22 * (high - low))
        axes.set_xlabel("relevance")
    for y, (value, magnitude) in enumerate(zip(total, size, strict=True)):
        axes.annotate(
            f"{_signed(value)}  of  {_number(magnitude)}",
            (max(magnitude, positive.min() / 2 if log and positive.size else 0), y),
            (9, 0),
            textcoords="offset points",
            va="center",
            fontsize=9.5,
        )
    axes.set_yticks(heights, rows, fontsize=11 if len(rows) <= 24 else 8.5)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    dots = bool(log and positive.size)
    shapes: list[Any] = [
        axes.scatter([], [], s=52, color=_POSITIVE) if dots else Patch(color=_POSITIVE),
        axes.scatter([], [], s=52, color=_NEGATIVE) if dots else Patch(color=_NEGATIVE),
        axes.scatter([], [], s=42, marker="D", facecolor="white", edgecolor="0.3")
        if dots
        else Patch(facecolor="0.9", edgecolor="0.55"),
    ]
    figure.legend(
        shapes,
        ["sum R > 0", "sum R < 0", "sum |R|"],
        loc="outside upper right",
        ncols=3,
        frameon=False,
        fontsize=10,
    )
    if title is not None:
        axes.set_title(_check_text("title", title), loc="left")
    return Picture(figure, alt, sharpness=2)


# ------------------------------------------------------------------------------------------------------------
# Curves
# ------------------------------------------------------------------------------------------------------------


@_house_style
def lines(
    curves: Mapping[str, Any],
    *,
    x: Sequence[float] | Tensor | Array | None = None,
    bands: Mapping[str, Any] | None = None,
    alt: str,
    xlabel: str,
    ylabel: str,
    title: str | None = None,
    logx: bool = False,
    logy: bool = False,
) -> Picture:
    """Draw one curve per name over a common or its own x, with intervals around those that have one.

    Parameters
    ----------
    curves
        Name to values (n,) over the common x, or to a tuple (x, values) of two sequences. Up to seven; curves of at most
        twelve points show each of them.
    x
        Where the values stand, (n,); None counts them from 0, which no logarithmic axis shows.
    bands
        Name to half the width of an interval at each point, (n,); drawn as a shade.
    xlabel, ylabel
        What the axes show, with units.
    logx, logy
        Logarithmic axes, for values above 0.
    alt, title
        As in `heatmap`.

    Raises
    ------
    TypeError, ValueError
        If there are no curves or more than seven, lengths differ, a value is NaN or infinite or, on a logarithmic axis, not
        above 0, a band belongs to no curve or is negative, alt is empty.
    """
    _check_alt(alt)
    if not isinstance(curves, Mapping) or not 1 <= len(curves) <= len(COLOURS):
        got = len(curves) if isinstance(curves, Mapping) else type(curves).__name__
        raise ValueError(f"curves must map 1 to {len(COLOURS)} names to values, got {got}")
    if strange := set(bands or {}) - set(curves):
        raise ValueError(f"bands must belong to curves, got {sorted(strange)}; there are {list(curves)}")
    figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, given) in enumerate(curves.items()):
        argument = f"curves[{name!r}]"
        own, values = given if _is_pair(given) else (x, given)
        values = _check_curve(argument, values, logy)
        if own is None and logx:
            raise ValueError(f"x of {argument} must be given on a logarithmic axis: counted from 0, it is not above 0")
        at = np.arange(len(values), dtype=float) if own is None else _check_curve(f"x of {argument}", own, logx)
        if len(at) != len(values):
            raise ValueError(f"{argument} must have one value for each of {len(at)} points, got {len(values)}")
        style: dict[str, Any] = {"color": COLOURS[number], "linestyle": ("-", "--", "-.", ":")[number // 2 % 4]}
        few = len(values) <= 12
        axes.plot(at, values, label=name, linewidth=1.8, marker="osD^vPX"[number] if few else "", markersize=5, **style)
        if bands and name in bands:
            width = _check_finite(f"bands[{name!r}]", bands[name])
            if width.shape != values.shape or (width < 0).any():
                raise ValueError(f"bands[{name!r}] must hold {len(values)} widths of at least 0")
            low = values - width
            low = np.maximum(low, values[values > 0].min() * 1e-3) if logy else low
            axes.fill_between(at, low, values + width, color=COLOURS[number], alpha=0.18, linewidth=0)
    if logx:
        axes.set_xscale("log")
        if x is not None and len(x) <= 12:  # few points: they are the ticks
            axes.set_xticks(_check_finite("x", x), [_tick(value) for value in x])
            axes.minorticks_off()
    if logy:
        axes.set_yscale("log")
    elif axes.get_ylim()[0] < 0 < axes.get_ylim()[1]:
        axes.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    axes.set_xlabel(_check_text("xlabel", xlabel))
    axes.set_ylabel(_check_text("ylabel", ylabel))
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    if len(curves) > 1:
        figure.legend(loc="outside right upper", frameon=False, fontsize=10.5)
    if title is not None:  # above the legend, too, which may be wide
        figure.suptitle(_check_text("title", title), x=0.01, ha="left", fontsize=13, fontweight="bold")
    return Picture(figure, alt, sharpness=2)


def _is_pair(given: Any) -> bool:
    """Whether a curve is given as (x, values), and not as a tuple of its values."""
    return isinstance(given, tuple) and len(given) == 2 and all(np.ndim(part) > 0 for part in given)


def _check_curve(argument: str, values: Any, logarithmic: bool) -> Array:
    found = _check_finite(argument, values)
    if found.ndim != 1 or found.size == 0:
        raise ValueError(f"{argument} must have shape (n,), not empty, got {found.shape}")
    if logarithmic and (found <= 0).any():
        raise ValueError(f"{argument} must be above 0 on a logarithmic axis, got {found.min():.4g}")
    return found


# ------------------------------------------------------------------------------------------------------------
# Numbers as text
# ------------------------------------------------------------------------------------------------------------

_RAISED = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def _number(value: float, digits: int = 3) -> str:
    """A number with so many significant digits: 0.00123, 12.3, 2.93×10¹¹; the minus is a real one."""
    text = f"{float(value):.{digits}g}"
    mantissa, _, exponent = text.partition("e")
    if exponent and -3 <= int(exponent) < 5:
        text = f"{float(text):.{max(digits - 1 - int(exponent), 0)}f}"
    elif exponent or abs(float(text)) >= 1e5:
        mantissa, exponent = f"{float(text):.{digits - 1}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        text = f"{mantissa}×10{str(int(exponent)).translate(_RAISED)}"
    return text.replace("-", "−")


def _tick(value: float) -> str:
    """A number beside an axis: a whole one is a count, of which all digits are meant."""
    return _number(value, 5 if float(value).is_integer() and abs(value) < 1e5 else 3)


def _signed(value: float, digits: int = 3) -> str:
    """The same with its sign; zero has none."""
    text = _number(value, digits)
    return text.removeprefix("−") if float(value) == 0 else text if text.startswith("−") else f"+{text}"


def _decimal(value: float, scale: float) -> str:
    """A number with its sign and as many decimals as fit the scale, so that numbers in one picture
    compare."""
    if value == 0 or not 1e-3 <= scale < 1e4:
        return _signed(value, digits=2)
    return f"{value:+.{max(2 - math.floor(math.log10(scale)), 0)}f}".replace("-", "−")


def _percent(share: float) -> str:
    """A share as a percentage that never rounds down to nothing."""
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"


# ------------------------------------------------------------------------------------------------------------
# Checks
# ------------------------------------------------------------------------------------------------------------


def _check_text(argument: str, text: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"{argument} must be a string, got {type(text).__name__}")
    return text


def _check_title(title: str | None) -> str:
    return "" if title is None else _check_text("title", title)


def _check_alt(alt: str) -> None:
    if not _check_text("alt", alt).strip():
        raise ValueError("alt must say what the picture shows, for those who cannot see it; got an empty string")


def _check_positive(argument: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating, np.integer)):
        raise TypeError(f"{argument} must be a number, got {type(value).__name__}")
    if not 0 < value < math.inf:
        raise ValueError(f"{argument} must be positive and finite, got {value!r}")
    return float(value)


def _check_finite(argument: str, values: Tensor | Array | Sequence[float]) -> Array:
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{argument} must hold real numbers, got {type(values).__name__}") from error
    if array.size == 0:
        raise ValueError(f"{argument} must not be empty, got shape {array.shape}")
    bad = int((~np.isfinite(array)).sum())
    if bad:
        raise ValueError(f"{argument} must be finite, got {bad} NaN or infinite of {array.size} values")
    return array


def _check_map(argument: str, relevance: Tensor | Array) -> Array:
    """Relevance as (H, W), channels summed."""
    values = _check_finite(argument, relevance)
    if values.ndim not in (2, 3):
        hint = "; take one item of the batch, [0]" if values.ndim == 4 else ""
        raise ValueError(f"{argument} must have shape (H, W) or (C, H, W), got {values.shape}{hint}")
    return values if values.ndim == 2 else values.sum(axis=0)


def _check_unsigned(unsigned: bool, maps: Mapping[str, Array]) -> None:
    if not isinstance(unsigned, bool):
        raise TypeError(f"unsigned must be True or False, got {type(unsigned).__name__}")
    for argument, values in maps.items():
        if unsigned and values.min() < 0:
            raise ValueError(
                f"{argument} must not be negative where unsigned=True, got {values.min():.4g}; take its absolute value"
            )


def _check_image(image: Tensor | Array) -> Array:
    """A photograph as (H, W, 3), or (H, W) if it is gray."""
    pixels = _check_finite("image", image)
    if not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[0] == 3)):
        raise ValueError(f"image must have shape (3, H, W) or (H, W), got {pixels.shape}")
    if pixels.min() < -1e-3 or pixels.max() > 1 + 1e-3:  # denormalised pixels may be off by rounding
        raise ValueError(
            f"image must have values in [0, 1], got {pixels.min():.4g} to {pixels.max():.4g}; "
            "models.denormalize gives a network's input back as an image"
        )
    pixels = pixels.clip(0, 1)
    return pixels if pixels.ndim == 2 else np.moveaxis(pixels, 0, -1)


def _gray(pixels: Array) -> Array:
    """Luma (ITU-R BT.601)."""
    return pixels if pixels.ndim == 2 else pixels @ np.array([0.299, 0.587, 0.114])


def _check_same_size(pixels: Array, values: Array, argument: str) -> None:
    if pixels.shape[:2] != values.shape:
        raise ValueError(f"{argument} must have the size of the image, {pixels.shape[:2]}, got {values.shape}")


def _check_network(
    relevance: Sequence[Tensor | Array], messages: Sequence[Tensor | Array]
) -> tuple[list[Array], list[Array]]:
    neurons = [_check_finite(f"relevance[{i}]", values) for i, values in enumerate(relevance)]
    edges = [_check_finite(f"messages[{i}]", values) for i, values in enumerate(messages)]
    if len(neurons) < 2:
        raise ValueError(f"relevance must have at least two layers, got {len(neurons)}")
    for i, values in enumerate(neurons):
        if values.ndim != 1 or len(values) > 10:
            raise ValueError(f"relevance[{i}] must have shape (n,) with n up to 10, got {values.shape}")
    if len(edges) != len(neurons) - 1:
        raise ValueError(f"messages must have one matrix per pair of layers, {len(neurons) - 1}, got {len(edges)}")
    for i, matrix in enumerate(edges):
        expected = (len(neurons[i]), len(neurons[i + 1]))
        if matrix.shape != expected:
            raise ValueError(f"messages[{i}] must have shape {expected}, got {matrix.shape}")
    return neurons, edges


def _check_labels(labels: Sequence[Sequence[str]] | None, sizes: list[int]) -> list[list[str]]:
    if labels is None:
        return [[""] * n for n in sizes]
    if [len(layer) for layer in labels] != sizes:
        raise ValueError(f"labels must name the neurons of each layer, {sizes}, got {[len(layer) for layer in labels]}")
    return [[_check_text("labels", name) for name in layer] for layer in labels]


def _check_sums(argument: str, values: Sequence[float], count: int) -> Array:
    array = _check_finite(argument, values)
    if array.shape != (count,):
        raise ValueError(f"{argument} must have one number per name, {count}, got shape {array.shape}")
    return array
