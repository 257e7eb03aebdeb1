"""Widgets draw by pure functions, and say in words what cannot be drawn."""

import ipywidgets
import pytest
import torch
from IPython.display import HTML

from xaicourse import plotting, widgets


def _drawn(box: ipywidgets.VBox) -> object:
    """What the box shows after its controls moved."""
    box.update()
    return box.result


def test_a_control_moves_the_argument_that_it_is_named_after():
    box = widgets.explore(lambda beta=0.5, rule="a": (rule, beta), beta=(0.0, 1.0, 0.1), rule=["a", "b"])
    assert _drawn(box) == ("a", 0.5), "controls start at the defaults"
    by_name = {control.description: control for control in box.children[:-1]}
    by_name["beta"].value, by_name["rule"].value = 1.0, "b"
    assert _drawn(box) == ("b", 1.0)


def test_settings_that_do_not_go_together_are_said_in_words():
    def draw(low: int = 0) -> int:
        if low > 1:
            raise ValueError("low must be < 2")
        return low

    box = widgets.explore(draw, low=(0, 3))
    box.children[0].value = 3
    assert isinstance(shown := _drawn(box), HTML) and "low must be &lt; 2" in shown.data
    box.children[0].value = 1
    assert _drawn(box) == 1


def test_sliders_wait_until_the_mouse_lets_go():
    (slider, _) = widgets.explore(lambda x=1: x, x=(0, 3)).children
    assert slider.continuous_update is False


@pytest.mark.parametrize(("draw", "controls"), [(3, {"x": (0, 1)}), (print, {})])
def test_what_is_not_a_function_or_has_no_controls_is_refused(draw: object, controls: dict[str, object]):
    with pytest.raises(TypeError, match="draw must be a function|controls must name"):
        widgets.explore(draw, **controls)


def test_the_widget_of_t_sne_draws_each_state_once_and_says_what_does_not_go_together():
    noise = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    box = widgets.tsne({"noise": (noise, None)})
    first = _drawn(box)
    assert isinstance(first, plotting.Picture) and "50 samples, perplexity 2, seed 0" in first.alt
    by_name = {control.description: control for control in box.children[:-1]}
    by_name["perplexity"].value = 5
    assert "perplexity 5" in _drawn(box).alt
    by_name["perplexity"].value = 2
    assert _drawn(box) is first
    by_name["perplexity"].value = 60
    assert isinstance(shown := _drawn(box), HTML) and "perplexity must be" in shown.data
    with pytest.raises(TypeError, match="data must name"):
        widgets.tsne({})
