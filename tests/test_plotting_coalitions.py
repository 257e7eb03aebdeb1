"""The cube of coalitions."""

import pytest
import torch

from xaicourse import plotting_coalitions, shapley


def texts(picture):
    return [text.get_text().replace("−", "-") for axes in picture.figure.axes for text in axes.texts]


def test_the_cube_says_what_each_coalition_is_worth_what_each_player_adds_and_the_shapley_values():
    values = torch.tensor([0.0, 6, 12, 12, 42, 42, 50, 57])
    picture = plotting_coalitions.cube(values, ["Ana", "Ben", "Cy"], alt="a cube", title="taxi")
    said = texts(picture)
    for who, worth in (
        ("nobody", "0"),
        ("Ana", "6"),
        ("Ben", "12"),
        ("Ana Ben", "12"),
        ("Cy", "42"),
        ("Ana Ben Cy", "57"),
    ):
        assert f"{who}\n{worth}" in said
    adds = sorted(text for text in said if text[0] in "+-")
    expected = [values[n | 1 << j] - values[n] for n in range(8) for j in range(3) if not n >> j & 1]
    assert adds == sorted(f"{value:+.3g}" for value in expected)
    exact = shapley.exact(shapley.Game(lambda s: values[(s.long() << torch.arange(3)).sum(1)], 3)).values
    for name, value in zip(("Ana", "Ben", "Cy"), exact.tolist(), strict=True):
        assert f"{name}: {value:.3g}" in said
    assert picture.png()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("values", "players", "alt", "said"),
    [
        (torch.zeros(4), ["a", "b", "c"], "x", "values must be a tensor of shape \\(8,\\)"),
        ([0.0] * 8, ["a", "b", "c"], "x", "values must be a tensor"),
        (torch.zeros(8), ["a", "b"], "x", "players must be three names, got 2"),
        (torch.zeros(8), ["a", "b", "c"], " ", "alt"),
    ],
)
def test_bad_input_to_the_cube_is_refused(values, players, alt, said):
    with pytest.raises((TypeError, ValueError), match=said):
        plotting_coalitions.cube(values, players, alt=alt)
