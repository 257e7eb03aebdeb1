"""Controls beside a figure: every state of a widget is one call of a pure drawing function (all lectures).

A notebook calls the drawing function once itself, so that its page reads the same without a running kernel.
"""

from __future__ import annotations

import functools
import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets
from IPython.display import HTML
from torch import Tensor

__all__ = ["explore", "tsne"]


def explore(draw: Callable[..., Any], **controls: Any) -> ipywidgets.VBox:
    """Put one control per argument above the figure that `draw` makes of them, and redraw when one moves.

    Parameters
    ----------
    draw
        A function of keyword arguments that returns something a notebook can show, such as a
        `plotting.Picture`. Defaults of its arguments are where the controls start.
    controls
        For each argument of `draw` that can be moved: a tuple (low, high, step) for a slider, a list or a mapping of
        choices for a menu, True or False for a box to tick, or any ipywidgets widget.

    Returns
    -------
    ipywidgets.VBox
        Values that do not go together (a ValueError of `draw`) are said in words in the figure's place.

    Raises
    ------
    TypeError
        If draw is not a function, or there are no controls.
    """
    if not callable(draw):
        raise TypeError(f"draw must be a function that makes a figure, got {type(draw).__name__}")
    if not controls:
        raise TypeError("controls must name at least one argument of draw, got none")

    @functools.wraps(draw)
    def drawn(**settings: Any) -> Any:
        try:
            return draw(**settings)
        except ValueError as error:
            return HTML(f"<p>These settings do not go together: {html.escape(str(error))}</p>")

    box = ipywidgets.interactive(drawn, **controls)
    for control in box.children[:-1]:
        control.style = {"description_width": "110px"}
        control.layout = {"width": "420px"}
        if control.has_trait("continuous_update"):  # draw when the mouse lets go, not a hundred times on the way
            control.continuous_update = False
    return box


def tsne(data: Mapping[str, tuple[Tensor, Sequence[str] | None]]) -> ipywidgets.VBox:
    """Put perplexity, seed and sample count of a t-SNE above the map and its distortion (lecture 01).

    Parameters
    ----------
    data
        The name of each set of samples to its features (N, D), N at least 50, and what each sample belongs to, or None.

    Returns
    -------
    ipywidgets.VBox
        Every state is a picture of `plotting_embedding.tsne`, drawn within a second and kept.

    Raises
    ------
    TypeError
        If there is no data.
    """
    if not data:
        raise TypeError("data must name at least one set of samples, got none")
    from . import plotting_embedding  # matplotlib, for those who draw maps

    @functools.cache
    def draw(data_set: str = next(iter(data)), perplexity: int = 2, seed: int = 0, samples: int = 50) -> Any:
        features, labels = data[data_set]
        title = f"{data_set}: perplexity {perplexity}, seed {seed}, {samples} samples"
        return plotting_embedding.tsne(features, labels, perplexity=perplexity, seed=seed, samples=samples, title=title)

    return explore(draw, data_set=list(data), perplexity=[2, 5, 10, 30, 60], seed=(0, 9, 1), samples=[50, 100, 200])
