"""Figures of lecture 02: they carry their text, show what they are given, and refuse what does not fit."""

import pytest
import torch

from xaicourse import plotting_maximization
from xaicourse.maximization import TopSamples
from xaicourse.plotting import Picture


def best(k=2, values=(3.5, 2.25)):
    boxes = torch.tensor([[2, 3, 10, 12]] * k)
    relevance = torch.zeros(k, 3, 16, 16)
    relevance[:, 0, 4, 5] = 1.5
    places = torch.zeros(k, 2, dtype=torch.long)
    return TopSamples(torch.arange(k), torch.tensor(values[:k]), torch.rand(k, 3, 16, 16), places, boxes, relevance)


def pictures(alt):
    yield plotting_maximization.gallery(
        [[torch.rand(3, 8, 8), torch.rand(1, 8, 8)[0]]], [["a", "b\nc"]], rows=["row"], title="t", alt=alt
    )
    yield plotting_maximization.growth({0: torch.rand(3, 8, 8), 4: torch.rand(3, 8, 8)}, torch.arange(5.0), alt=alt)
    yield plotting_maximization.seen({"7": torch.rand(3, 9, 9)}, {"7": best()}, alt=alt, notes={"7": "up"}, boxes=True)


def texts(picture):
    return [text.get_text() for text in picture.figure.findobj(match=lambda artist: hasattr(artist, "get_text"))]


def test_every_figure_carries_its_text_and_draws():
    for picture in pictures("what it shows"):
        assert isinstance(picture, Picture) and picture.alt == "what it shows" and len(picture.png()) > 1000


def test_every_figure_needs_its_text():
    with pytest.raises(ValueError, match="alt"):
        next(pictures(""))


def test_a_gallery_shows_its_captions_rows_and_title():
    assert {"a", "b\nc", "row", "t"} <= set(texts(next(pictures("x"))))


def test_growth_marks_the_steps_whose_images_it_shows():
    picture = plotting_maximization.growth({3: torch.rand(3, 8, 8), 1: torch.rand(3, 8, 8)}, torch.arange(5.0), alt="x")
    curve, *marks = picture.figure.axes[0].lines
    assert curve.get_ydata().tolist() == [0, 1, 2, 3, 4]
    assert sorted(float(mark.get_ydata()[0]) for mark in marks) == [1, 3]
    assert [axes.get_title() for axes in picture.figure.axes[1:]] == ["step 1", "step 3"]


def test_what_is_seen_stands_with_its_activation_and_the_sum_of_its_relevance():
    picture = plotting_maximization.seen({"7": torch.rand(3, 9, 9)}, {"7": best()}, alt="x", boxes=True)
    assert {"7", "active 3.50", "active 2.25", "sum R = 1.50"} <= set(texts(picture))
    (frame,) = picture.figure.axes[2].patches
    assert (frame.get_x(), frame.get_y(), frame.get_width(), frame.get_height()) == (2.5, 1.5, 9, 8)
    plain = plotting_maximization.seen({"7": torch.rand(3, 9, 9)}, {"7": best()}, alt="x")
    assert not plain.figure.axes[2].patches


def test_positive_relevance_is_red_and_negative_blue():
    found = best(k=1)
    found.relevance[0, 0, 4, 5], found.relevance[0, 0, 9, 9] = 1.0, -1.0
    picture = plotting_maximization.seen({"7": torch.rand(3, 9, 9)}, {"7": found}, alt="x", quantile=1.0)
    shown = picture.figure.axes[2].images[0].get_array()
    assert shown[4, 5, 0] > shown[4, 5, 2] and shown[9, 9, 2] > shown[9, 9, 0]


def test_what_does_not_fit_is_refused():
    image = torch.rand(3, 8, 8)
    with pytest.raises(ValueError, match="captions must be one for each image"):
        plotting_maximization.gallery([[image, image]], [["a"]], alt="x")
    with pytest.raises(ValueError, match="pictures must hold"):
        plotting_maximization.gallery([], [], alt="x")
    with pytest.raises(ValueError, match="images must be of steps from 0 to 4, got"):
        plotting_maximization.growth({5: image}, torch.arange(5.0), alt="x")
    with pytest.raises(ValueError, match="must name the same channels"):
        plotting_maximization.seen({"7": image}, {"8": best()}, alt="x")
    with pytest.raises(ValueError, match="as many samples for each channel"):
        plotting_maximization.seen({"7": image, "8": image}, {"7": best(1), "8": best(2)}, alt="x")
    with pytest.raises(ValueError, match="quantile"):
        plotting_maximization.seen({"7": image}, {"7": best()}, alt="x", quantile=0)
