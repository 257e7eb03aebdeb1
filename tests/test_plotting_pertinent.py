"""Figures of pertinent positives and negatives: colours say what the change is, and what does not fit is refused."""

import numpy as np
import pytest
import torch

from xaicourse import plotting_pertinent
from xaicourse.plotting import Picture

INK = torch.zeros(2, 1, 6, 6)
INK[:, :, 2:4, 1:5] = 1.0
CHANGE = torch.zeros(2, 1, 6, 6)
CHANGE[:, :, 2, 1] = 1.0


def drawn(kind, change=CHANGE):
    picture = plotting_pertinent.contrasts([INK], [change], [kind], alt="x", names=["row"], titles=[["a", "b"]])
    assert isinstance(picture, Picture) and len(picture.png()) > 500
    return picture.figure.axes[0].images[0].get_array()


def test_what_is_kept_is_cyan_on_a_pale_picture_and_what_is_added_is_pink_on_a_black_one():
    kept, added, neither = drawn("positive"), drawn("negative"), drawn("none")
    assert kept[2, 1, 2] > 0.7 > 0.1 > kept[2, 1, 0] and (kept[3, 3] > 0.7).all()
    assert added[2, 1, 0] > 0.8 > 0.1 > added[2, 1, 1] and (added[3, 3] == 0).all()
    assert (neither[2, 1] == 0).all() and (neither[0, 0] == 1).all()


def test_what_is_taken_away_has_a_colour_of_its_own():
    assert not np.allclose(drawn("negative", -CHANGE)[2, 1], drawn("negative")[2, 1])


def test_the_pictures_of_a_row_may_be_of_different_kinds():
    picture = plotting_pertinent.contrasts([INK], [CHANGE], [["none", "negative"]], alt="x")
    first, second = (axes.images[0].get_array() for axes in picture.figure.axes)
    assert (first[2, 1] == 0).all() and second[2, 1, 0] > 0.8


def test_a_frequency_map_shows_shares_from_none_to_all():
    picture = plotting_pertinent.frequency([CHANGE[:, 0]], INK, names=["r"], alt="x", label="of 3", title="t")
    image = picture.figure.axes[0].images[0]
    assert image.get_clim() == (0, 1) and image.get_array()[2, 1] == 1 and len(picture.png()) > 500


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"alt": ""}, "alt"),
        ({"kinds": ["both"]}, r"kinds\[0\] must be 'positive', 'negative' or 'none', .* got 'both'"),
        ({"kinds": [["none"]]}, r"kinds\[0\] must be .* one of these for each picture, got \['none'\]"),
        ({"changes": [CHANGE[:1]]}, r"changes\[0\] must have shape \(2, 1, 6, 6\), got \(1, 1, 6, 6\)"),
        ({"pictures": [INK[0]]}, r"pictures\[0\] must have shape \(n, 1, H, W\)"),
        ({"kinds": []}, "must be as many, got 1, 1 and 0"),
        ({"changes": [CHANGE / 0]}, r"changes\[0\] must be finite"),
    ],
)
def test_what_does_not_fit_is_refused(changed, message):
    arguments = {"pictures": [INK], "changes": [CHANGE], "kinds": ["positive"], "alt": "x"}
    with pytest.raises(ValueError, match=message):
        plotting_pertinent.contrasts(**(arguments | changed))


def test_shares_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"shares\[0\] must have shape \(2, 6, 6\)"):
        plotting_pertinent.frequency([CHANGE], INK, names=["r"], alt="x")
