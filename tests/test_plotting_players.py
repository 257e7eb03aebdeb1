"""Figures of players: they carry their text, one scale, and refuse what does not fit."""

import numpy as np
import pytest
import torch
from matplotlib.text import Text

from xaicourse import molecules, plotting_players
from xaicourse.plotting import Picture

ACID = next(m for m in molecules.sample(20) if molecules.acid(m).any())
BONDS = len(molecules.bond_list(ACID))
HALVES = torch.arange(16).expand(16, 16) // 8


def pictures(alt):
    yield plotting_players.words({"a": torch.tensor([1.0, -2.0])}, ["not", "good"], alt=alt, title="t")
    yield plotting_players.hours({"a": torch.arange(24.0)}, torch.rand(24), alt=alt, notes={"a": "n"}, limit=5)
    yield plotting_players.molecule(ACID, {"a": torch.randn(len(ACID))}, {"b": torch.randn(BONDS)}, alt=alt)
    yield plotting_players.parts(
        [[HALVES.double() - 0.4]],
        torch.rand(3, 16, 16),
        rows=["r"],
        columns=["c"],
        notes=[["n"]],
        players=[HALVES],
        alt=alt,
    )


def texts(picture):
    return [text.get_text() for text in picture.figure.findobj(match=Text)]


def test_every_figure_carries_its_text_and_draws():
    for picture in pictures("what it shows"):
        assert isinstance(picture, Picture) and picture.alt == "what it shows" and len(picture.png()) > 1000


def test_every_figure_needs_its_text():
    with pytest.raises(ValueError, match="alt"):
        next(pictures(""))


def test_words_show_their_numbers_and_their_sum():
    shown = texts(plotting_players.words({"deletion": torch.tensor([1.0, -3.0])}, ["not", "good"], alt="x"))
    assert {"not", "good", "+1.0", "−3.0", "sum −2.0", "−3", "+3", "deletion"} <= set(shown)


def test_what_lies_beyond_a_limit_is_said():
    shown = texts(plotting_players.hours({"a": torch.arange(24.0)}, torch.rand(24), alt="x", limit=5))
    assert any("up to 23.0" in text for text in shown)


def test_the_player_with_the_largest_value_is_framed():
    column = torch.arange(16).expand(16, 16)
    players = (column >= 10).long() + (column >= 13).long()
    values = torch.tensor([2.0, -5.0, 3.0])[players]
    picture = plotting_players.parts(
        [[values]], torch.rand(3, 16, 16), rows=["r"], columns=["c"], notes=[["n"]], players=[players], alt="x"
    )
    (frame,) = picture.figure.axes[0].collections[0].get_paths()
    assert (frame.vertices[:, 0] == 12.5).all()
    assert {"−5", "+5", "value of the player that a pixel belongs to"} <= set(texts(picture))


def test_each_row_of_parts_has_the_scale_that_stands_beside_it():
    """Nine players share out as much as thirty-six: on one scale, their rows would not be read together."""
    few, many = HALVES, torch.arange(256).view(16, 16) // 8
    maps = [[torch.tensor([4.0, -2.0])[few]], [torch.linspace(-0.5, 0.25, 32)[many]]]
    picture = plotting_players.parts(
        maps,
        torch.ones(3, 16, 16),
        rows=["few", "many"],
        columns=["c"],
        notes=[["n"], ["n"]],
        players=[few, many],
        alt="x",
    )
    assert {"±4", "±0.5", "−1", "+1"} <= set(texts(picture))
    ends = [axes.images[0].get_array()[0, 0] for axes in picture.figure.axes[:2]]
    np.testing.assert_allclose(ends[0], plotting_players._colour(1)[:3])
    np.testing.assert_allclose(ends[1], plotting_players._colour(-1)[:3], err_msg="the end of its own scale")


def test_atoms_that_are_bound_are_drawn_apart_and_near():
    places = torch.as_tensor(plotting_players._places(ACID))
    for i, j in molecules.bond_list(ACID):
        assert 0.5 < (places[i] - places[j]).norm() < 1.5


def test_values_that_do_not_fit_the_words_are_refused():
    with pytest.raises(ValueError, match=r"values\['a'\] must have shape \(2,\), got \(3,\)"):
        plotting_players.words({"a": torch.zeros(3)}, ["not", "good"], alt="x")
