"""Maps of many dimensions: what stands in the pictures."""

import pytest
import torch

from xaicourse import embedding, plotting_embedding


def gaussian(count, width, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def said(picture):
    picture.figure.draw_without_rendering()
    texts = [text for axes in picture.figure.axes for text in axes.texts]
    labels = [axes.get_title() for axes in picture.figure.axes] + [axes.get_xlabel() for axes in picture.figure.axes]
    return [text.get_text().replace("−", "-") for text in texts] + labels


def dots(picture):
    return [axes.collections[0] for axes in picture.figure.axes if axes.collections and axes.get_title()]


def test_every_map_has_its_name_its_note_a_dot_for_each_point_and_one_scale_for_all():
    points = {"one": gaussian(20, 2), "two": gaussian(20, 2, 1)}
    values = {name: torch.linspace(0.4, 1, 20) for name in points}
    picture = plotting_embedding.maps(
        points, values=values, labels=["a"] * 10 + ["b"] * 10, notes={"one": "T = 0.9"}, alt="two maps"
    )
    assert {"one", "two", "T = 0.9", "a", "b"} <= set(said(picture))
    for scatter, each in zip(dots(picture), points.values(), strict=True):
        assert torch.allclose(torch.as_tensor(scatter.get_offsets().data), each.double())
        assert (scatter.norm.vmin, scatter.norm.vmax) == (0.5, 1.0)
        assert torch.allclose(torch.as_tensor(scatter.get_array().data), values["one"].double())
    assert picture.png()[:4] == b"\x89PNG"


def test_a_label_stands_on_one_of_its_points():
    points = gaussian(30, 2)
    picture = plotting_embedding.maps({"m": points}, labels=[str(i % 3) for i in range(30)], alt="a map")
    for text in picture.figure.axes[0].texts:
        place = torch.tensor(text.get_position())
        assert (points[int(text.get_text()) :: 3] - place).norm(dim=1).min() < 1e-6


def test_pictures_stand_where_their_points_are():
    points = torch.tensor([[0.0, 0], [10, 0], [10, 4]])
    picture = plotting_embedding.pictures(
        points, torch.rand(3, 1, 8, 8), alt="three pictures", values=torch.tensor([0.5, 0.7, 1])
    )
    middles = [
        ((left + right) / 2, (low + high) / 2)
        for left, right, low, high in (image.get_extent() for image in picture.figure.axes[0].images)
    ]
    assert torch.allclose(torch.tensor(middles).double(), torch.tensor([[0.0, 0], [1, 0], [1, 1]]).double())


def test_ink_is_black_where_it_is_and_see_through_where_it_is_not_and_frames_are_the_colours_of_values():
    ink = torch.tensor([[[[0.0, 1.0]]], [[[0.5, 0.0]]]])
    picture = plotting_embedding.pictures(gaussian(2, 2), ink, alt="two pictures", values=torch.tensor([0.5, 1.0]))
    drawn = [image.get_array() for image in picture.figure.axes[0].images]
    assert drawn[0].tolist() == [[[0, 0, 0, 0], [0, 0, 0, 1]]] and drawn[1].tolist() == [[[0, 0, 0, 0.5], [0, 0, 0, 0]]]
    low, high = (patch.get_edgecolor() for patch in picture.figure.axes[0].patches)
    assert low[0] > low[2] and high[2] > high[0]  # orange, blue


def test_the_regions_that_matter_most_are_shown_in_full_and_the_others_pale():
    photograph = torch.zeros(3, 8, 12)
    values = torch.arange(6.0).reshape(2, 3)
    picture = plotting_embedding.top_regions(
        photograph, {"once": {"a": values, "b": -values}, "again": {"a": values}}, top=2, alt="three photographs"
    )
    a, b, again = (axes.images[0].get_array() for axes in picture.figure.axes)
    assert (a[4:, 4:] == 0).all() and (a[:4] == 0.75).all() and (a[4:, :4] == 0.75).all()
    assert (b[:4, :8] == 0).all() and (b[4:] == 0.75).all() and (again == a).all()
    assert {"a", "b"} <= set(said(picture)) and picture.figure.axes[0].get_ylabel() == "once"


def test_a_table_of_agreement_has_every_number():
    table = torch.tensor([[0.9, -0.1], [-0.1, 0.8]])
    picture = plotting_embedding.agreement({"features": table}, ["a", "b"], alt="a table", scale="correlation")
    assert {"+0.90", "-0.10", "+0.80"} <= set(said(picture))


@pytest.mark.parametrize("perplexity", [2, 10])
def test_a_state_of_the_widget_says_its_settings_and_the_distortion_that_was_measured(perplexity):
    x = gaussian(60, 5)
    picture = plotting_embedding.tsne(x, perplexity=perplexity, seed=3, samples=40)
    drawn = embedding.embed(
        x[:40].double(), perplexity=perplexity, start="random", generator=torch.Generator().manual_seed(3)
    )
    texts = said(picture)
    assert f"perplexity {perplexity}, seed 3, 40 samples" in texts
    for measure in (embedding.trustworthiness, embedding.continuity, embedding.stress):
        assert f"{measure(x[:40].double(), drawn):.2f}" in texts
    groups = int(embedding.clusters(drawn).max()) + 1
    assert any(text.startswith(f"{groups} group") for text in texts)
    (scatter,) = dots(picture)
    assert torch.allclose(torch.as_tensor(scatter.get_offsets().data), drawn)
    assert f"perplexity {perplexity}" in picture.alt and picture.png()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plotting_embedding.maps({}, alt="x"), "points must hold at least one map"),
        (
            lambda: plotting_embedding.maps({"a": torch.zeros(3, 3)}, alt="x"),
            r"points\['a'\] must be the points of a map",
        ),
        (lambda: plotting_embedding.maps({"a": torch.zeros(3, 2)}, alt=" "), "alt"),
        (
            lambda: plotting_embedding.maps({"a": torch.zeros(3, 2)}, values={"a": torch.zeros(2)}, alt="x"),
            r"values\['a'\] must have a value for each of the 3 points",
        ),
        (
            lambda: plotting_embedding.maps({"a": torch.zeros(3, 2)}, labels=["u"], alt="x"),
            "labels must be one for each of the 3 points, got 1",
        ),
        (
            lambda: plotting_embedding.pictures(torch.zeros(3, 2), torch.zeros(2, 1, 4, 4), alt="x"),
            "images must be one",
        ),
        (
            lambda: plotting_embedding.agreement({"f": torch.zeros(2, 3)}, ["a", "b"], alt="x", scale="r"),
            r"values\['f'\] must have shape \(2, 2\)",
        ),
        (
            lambda: plotting_embedding.top_regions(torch.zeros(3, 8, 8), {"a": {"b": torch.zeros(3, 3)}}, alt="x"),
            "must have shape",
        ),
        (
            lambda: plotting_embedding.top_regions(torch.zeros(3, 8, 8), {"a": {"b": torch.zeros(2, 2)}}, alt="x"),
            "top must be from 1 to 4",
        ),
        (lambda: plotting_embedding.top_regions(torch.zeros(3, 8, 8), {}, alt="x"), "answers must hold at least one"),
        (lambda: plotting_embedding.tsne(torch.zeros(20, 3), samples=30), "samples must be from 5 to 20"),
        (lambda: plotting_embedding.tsne(gaussian(20, 3), samples=20, perplexity=20), "perplexity must be"),
    ],
)
def test_bad_input_is_refused(draw, message):
    with pytest.raises((TypeError, ValueError), match=message):
        draw()
