"""Controls beside a figure: every state of a widget is one call of a pure drawing function (all lectures).

A notebook calls the drawing function once itself, so that its page reads the same without a running kernel.
"""

from __future__ import annotations

import functools
import html
from collections.abc import Callable
from typing import Any

import ipywidgets
from IPython.display import HTML

__all__ = ["explore"]


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
