"""Games of parts of photographs: what the network says now is what is recorded, and how coalitions compare with pictures."""

import pytest
import torch

from xaicourse import models, occlusion, photograph_games, shapley
from xaicourse.photograph_games import REMOVALS, SIZE, Photograph


@pytest.fixture(scope="module")
def coffee():
    return Photograph("coffee")


@pytest.mark.parametrize("players", ["patches", "segments"])
@pytest.mark.parametrize("how", [*REMOVALS])
def test_the_network_says_what_is_recorded(coffee, players, how):
    of = photograph_games.patches() if players == "patches" else photograph_games.recorded("coffee", "segments")
    recorded = photograph_games.recorded_game("coffee", players, how)
    asked = torch.rand(6, recorded.players, generator=torch.Generator().manual_seed(0)) < 0.5
    asked[0], asked[1] = True, False
    assert torch.allclose(coffee.game(of, how)(asked), recorded(asked), atol=5e-3)


def test_segments_are_recorded_as_they_are_cut_with_edges_on_every_fourth_pixel(coffee):
    recorded = photograph_games.recorded("coffee", "segments")
    assert recorded.max() < 9
    assert torch.equal(recorded, recorded[::4, ::4].repeat_interleave(4, 0).repeat_interleave(4, 1))
    assert (recorded == coffee.segments).double().mean() > 0.9


def test_removed_patches_are_filled_and_others_stay(coffee):
    removed = (photograph_games.patches() == 4)[None, None]
    for how in (*REMOVALS, photograph_games.CONTROL):
        left = coffee.removal(how)(coffee.x, removed)
        kept = ~removed.expand_as(left)
        assert torch.equal(left[kept], coffee.x[kept]) and not torch.allclose(left[~kept], coffee.x[~kept])


def test_described_pictures_have_their_score_class_and_distance(coffee):
    real = photograph_games.real_crops("coffee", 3, 0)  # three of those that say what is real
    score, probability, category, near, far = coffee.described(torch.cat([coffee.x, real])).T
    assert category[0] == coffee.target == models.categories().index("espresso")
    logits = coffee.network(coffee.x)[0]
    assert torch.isclose(score[0], logits.max(), atol=1e-4) and torch.isclose(probability[0], logits.softmax(0).max())
    assert (near[1:] < 0.1).all() and (far > 5).all() and near[0] < far[0]
    other = coffee.described(photograph_games.real_crops("rocket", 3, 0))  # real as well, of another photograph
    assert (other[:, 3:] < 0.1).all()


def test_coalitions_are_further_from_real_pictures_than_new_views():
    """S10 on all photographs."""
    for name in photograph_games.NAMES:
        views = photograph_games.recorded(name, "perturbed")[:, 3]
        for how in REMOVALS:
            distance = photograph_games.recorded(name, f"patches/{how}")[1:-1, 3]
            assert (distance[:, None] > views).double().mean() > 0.85


def test_hard_rise_is_half_a_banzhaf_value_and_the_mean_score(coffee):
    """S12: on the network, by the code that draws masks."""
    rise = occlusion.rise(
        coffee.network,
        coffee.x,
        coffee.target,
        masks="all",
        cells=3,
        soft=False,
        removal=coffee.removal("black"),
        chunk=16,
    )[0].sum(0)
    game = photograph_games.recorded_game("coffee", "patches", "black")
    expected = game(shapley.coalitions(9)).mean() + shapley.banzhaf(game).values / 2
    centre = slice(SIZE // 6, None, SIZE // 3)
    assert torch.allclose(rise[centre, centre].flatten().double(), expected, atol=5e-3)


def test_real_crops_are_the_same_for_a_seed_and_have_pixel_values():
    a, b = photograph_games.real_crops("rocket", 2, 7), photograph_games.real_crops("rocket", 2, 7)
    low, high = models.pixel_range()
    assert torch.equal(a, b) and a.shape == (2, 3, SIZE, SIZE)
    assert (a >= low - 1e-5).all() and (a <= high + 1e-5).all()
    assert not torch.equal(a, photograph_games.real_crops("rocket", 2, 8))


def test_bad_arguments_are_refused(coffee, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="name must be one of astronaut, .* got 'hubble'"):
        Photograph("hubble")
    with pytest.raises(ValueError, match="how must be one of black, .* got 'red'"):
        coffee.removal("red")
    with pytest.raises(ValueError, match="such as .*patches/black.* got 'coffee', 'patches/blak'"):
        photograph_games.recorded("coffee", "patches/blak")
    monkeypatch.setattr(photograph_games, "FILE", tmp_path / "photographs.npz")
    photograph_games._stored.cache_clear()
    with pytest.raises(FileNotFoundError, match=r"make\.py` makes it"):
        photograph_games.recorded("coffee", "segments")
    monkeypatch.undo()
    photograph_games._stored.cache_clear()
