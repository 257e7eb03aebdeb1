"""Games and exact values, held against shap, sums over all orders by hand, closed forms and the axioms."""

import itertools
import math
import warnings

import numpy as np
import pytest
import shap
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xaicourse import shapley
from xaicourse.shapley import games

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def table_game(table, **settings):
    """A game whose values stand in a table, by the coalitions' numbers."""
    players = len(table).bit_length() - 1
    powers = torch.arange(players)
    return shapley.Game(lambda present: table[(present.cpu().long() << powers).sum(1)], players, **settings)


def random_table(players, *outputs, seed=0):
    return torch.randn(2**players, *outputs, generator=seeded(seed), dtype=torch.float64)


def by_orders(table):
    """The mean over all orders of what a player adds."""
    players = len(table).bit_length() - 1
    values = torch.zeros(players, *table.shape[1:], dtype=torch.float64)
    for order in itertools.permutations(range(players)):
        number = 0
        for player in order:
            values[player] += table[number | 1 << player] - table[number]
            number |= 1 << player
    return values / math.factorial(players)


def by_formula(table):
    """Formula (2) of the slides, term by term."""
    players = len(table).bit_length() - 1
    values = torch.zeros(players, dtype=torch.float64)
    for player in range(players):
        for number in range(2**players):
            if not number >> player & 1:
                size = number.bit_count()
                added = table[number | 1 << player] - table[number]
                values[player] += added / math.comb(players - 1, size) / players
    return values


# Exact values


@pytest.mark.parametrize("outputs", [(), (3,)])
def test_exact_values_are_the_mean_over_all_orders_of_seven_players(outputs):
    table = random_table(7, *outputs)
    result = shapley.exact(table_game(table))
    torch.testing.assert_close(result.values, by_orders(table), rtol=0, atol=1e-13)


def test_exact_values_are_those_of_shaps_exact_explainer():
    table = random_table(10)
    ours = shapley.exact(table_game(table)).values.numpy()
    powers = 1 << np.arange(10)
    masker = shap.maskers.Independent(np.zeros((1, 10)))
    explainer = shap.explainers.Exact(lambda rows: table.numpy()[(rows > 0.5) @ powers], masker)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = explainer(np.ones((1, 10)), max_evals=2000).values[0]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


@given(players=st.integers(1, 6), seed=st.integers(0, 2**16))
@settings(max_examples=30, deadline=None)
def test_exact_values_are_formula_2(players, seed):
    table = random_table(players, seed=seed)
    torch.testing.assert_close(shapley.exact(table_game(table)).values, by_formula(table), rtol=0, atol=1e-13)


def test_more_players_than_a_block_has_bits_are_streamed():
    known = games.unanimity_at_random(17, 40, order=6, generator=seeded())
    result = shapley.exact(known.game)
    torch.testing.assert_close(result.values, known.values, rtol=0, atol=1e-11)
    assert result.evaluations == known.game.evaluations == 2**17
    assert not result.standard_errors.any() and abs(result.gap) < 1e-11
    torch.testing.assert_close(result.interval()[0], result.values)


@pytest.mark.parametrize(
    "known",
    [
        games.additive([1.0, -2.0, 0.5]),
        games.pairwise([[1.0, 2.0, 3.0], [2.0, 0.0, -1.0], [3.0, -1.0, 5.0]]),
        games.unanimity_at_random(8, 30, generator=seeded(3)),
        games.airport([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0]),
        games.voting([5, 3, 2, 1, 1, 4, 0], 9),
        games.additive([4.0]),
    ],
    ids=["additive", "pairwise", "unanimity", "airport", "voting", "one player"],
)
def test_games_in_closed_form_have_their_values(known):
    result = shapley.exact(known.game)
    torch.testing.assert_close(result.values, known.values, rtol=0, atol=1e-12)
    assert abs(result.gap) < 1e-12


def test_three_parties_by_hand():
    known = games.voting([2, 1, 1], 3)  # the largest and any other win: he is decisive in 4 of 6 orders
    torch.testing.assert_close(known.values, torch.tensor([4, 1, 1], dtype=torch.float64) / 6)
    assert torch.equal(games.voting(np.array([2, 1, 1]), 3).values, known.values)


def test_trees_on_real_data_interact_beyond_pairs():
    known = games.trees(7, trees=20)
    order = shapley.coalitions(7).sum(1)
    assert (shapley.moebius(known.game)[order > 3].abs() > 1e-3).any()
    torch.testing.assert_close(
        known.values, by_formula(torch.cat([v for _, v in known.game.blocks()])), atol=1e-10, rtol=0
    )


# Axioms


@given(players=st.integers(2, 6), seed=st.integers(0, 2**16), player=st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_a_player_who_makes_no_difference_gets_nothing(players, seed, player):
    player %= players
    table = random_table(players, seed=seed)
    number = torch.arange(2**players)
    result = shapley.exact(table_game(table[number & ~(1 << player)]))
    assert abs(result.values[player]) < 1e-13 and abs(result.gap) < 1e-12


@given(players=st.integers(2, 6), seed=st.integers(0, 2**16))
@settings(max_examples=30, deadline=None)
def test_players_who_are_worth_the_same_get_the_same(players, seed):
    table = random_table(players, seed=seed)
    number = torch.arange(2**players)
    swapped = (number & ~3) | (number & 1) << 1 | (number >> 1 & 1)
    values = shapley.exact(table_game(table + table[swapped])).values
    assert abs(values[0] - values[1]) < 1e-12


@given(players=st.integers(1, 6), seed=st.integers(0, 2**16))
@settings(max_examples=30, deadline=None)
def test_values_share_out_all_there_is_and_are_linear(players, seed):
    one, two = random_table(players, seed=seed), random_table(players, seed=seed + 1)
    result = shapley.exact(table_game(one))
    assert abs(result.values.sum() - (one[-1] - one[0])) < 1e-12 and abs(result.gap) < 1e-12
    both = shapley.exact(table_game(2 * one - 3 * two)).values
    expected = 2 * result.values - 3 * shapley.exact(table_game(two)).values
    torch.testing.assert_close(both, expected, rtol=0, atol=1e-12)


# Games


def test_no_coalition_is_asked_twice():
    asked = []

    def value(present):
        asked.append(len(present))
        return present.double().sum(1)

    for players in (6, 30):  # a table, and a dictionary
        asked.clear()
        game = shapley.Game(value, players, chunk=7)
        some = torch.rand(20, players, generator=seeded()) < 0.5
        first = game(some)
        assert torch.equal(first, some.double().sum(1)) and max(asked) <= 7
        number = game.evaluations
        assert number == sum(asked) == len(torch.unique(some, dim=0))
        assert torch.equal(game(some.flip(0)), first.flip(0)) and game.evaluations == number
        game(torch.cat([some, ~some[:1]]))
        assert game.evaluations == number + 1


def test_what_is_known_is_not_asked_again_for_other_values():
    game = table_game(random_table(8))
    game(shapley.coalitions(8, 3, 5))
    shapley.exact(game)
    shapley.banzhaf(game)
    shapley.interactions(game)
    shapley.permutation(game, 100)
    assert game.evaluations == 256
    forgetful = table_game(random_table(8), cache=False)
    shapley.exact(forgetful)
    shapley.exact(forgetful)
    assert forgetful.evaluations == 512


@pytest.mark.parametrize("cache", [True, False])
def test_a_value_function_may_write_its_values_into_the_same_tensor_each_time(cache):
    kept = torch.zeros(2, dtype=torch.float64)

    def value(present):
        return kept.copy_(present.sum(1))

    game = shapley.Game(value, 3, chunk=2, cache=cache)
    assert game(shapley.coalitions(3)).tolist() == [0, 1, 1, 2, 1, 2, 2, 3]


@pytest.mark.parametrize("players", [6, 15])
def test_an_interrupted_computation_keeps_what_was_asked(players):
    table = random_table(players)
    powers, stop = torch.arange(players), [True]

    def value(present):
        if stop[0] and game.evaluations >= 40:
            raise KeyboardInterrupt
        return table[(present.long() << powers).sum(1)]

    game = shapley.Game(value, players, chunk=8)
    with pytest.raises(KeyboardInterrupt):
        shapley.exact(game)
    assert game.evaluations == 40
    stop[0] = False
    torch.testing.assert_close(shapley.exact(game).values, shapley.exact(table_game(table)).values)
    assert game.evaluations == 2**players, "what was asked before is not asked again"


def test_what_is_remembered_takes_memory_by_what_was_asked(monkeypatch):
    wide = shapley.Game(lambda present: present[:, :1].double().expand(-1, 300), 20)
    shapley.kernel(wide, 100, surrogate="linear", generator=seeded())
    assert wide._values.numel() <= 2 * wide.evaluations * 300, "not a row for each of 2^20 coalitions"
    monkeypatch.setattr("xaicourse.shapley.game._ALL", 2**8 * 2 - 1)
    table = random_table(8, 2)
    streamed = table_game(table)
    streamed(shapley.coalitions(8, 3, 5))
    for _ in range(2):
        torch.testing.assert_close(shapley.exact(streamed).values, by_orders_of(table))
    assert streamed.evaluations == 5 + 2 * 256 and len(streamed._values) <= 10


def by_orders_of(table):
    return torch.stack([by_formula(column) for column in table.unbind(1)], 1)


def test_what_is_remembered_in_inference_mode_can_be_added_to_outside():
    for players in (6, 30):
        game = shapley.Game(lambda present: present.double().sum(1), players)
        some = torch.rand(20, players, generator=seeded()) < 0.5
        with torch.inference_mode():
            game(some[:10])
        assert torch.equal(game(some), some.double().sum(1))


def test_packed_coalitions_are_told_apart():
    game = shapley.Game(lambda present: present.double() @ torch.arange(100.0).double(), 100)
    eye = torch.eye(100, dtype=torch.bool)
    assert torch.equal(game(torch.cat([eye, eye])), torch.arange(100.0).double().repeat(2))


def test_coalitions_count_in_binary():
    assert shapley.coalitions(3, 5, 2).tolist() == [[True, False, True], [False, True, True]]
    assert torch.equal(shapley.coalitions(4)[3:7], shapley.coalitions(4, 3, 4))
    assert shapley.coalitions(100, 2**40 + 1, 1)[0].nonzero().flatten().tolist() == [0, 40]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_values_of_any_device_and_dtype_are_taken_in_float64(device, dtype):
    def value(present):
        assert present.device.type == device
        return present.to(dtype).sum(1)

    result = shapley.exact(shapley.Game(value, 5, device=device))
    assert result.values.dtype == torch.float64 and result.values.device.type == "cpu"
    torch.testing.assert_close(result.values, torch.ones(5, dtype=torch.float64))


def test_a_game_computes_no_gradient_and_works_in_inference_mode():
    weight = torch.arange(4.0, dtype=torch.float64, requires_grad=True)
    game = shapley.Game(lambda present: present.double() @ weight, 4)
    with torch.inference_mode():
        inside = shapley.exact(game).values
    outside = shapley.exact(game).values
    assert torch.equal(inside, outside) and not outside.requires_grad
    torch.testing.assert_close(outside, weight.detach())


# Bad input


def test_too_many_players_says_how_many_the_memory_and_what_to_do():
    game = shapley.Game(lambda present: present.double().sum(1), 40)
    with pytest.raises(
        ValueError, match=r"up to 25 players; this game has 40 .* 1.1e\+12 .* 8.19e\+03 GiB.*shapley.kernel"
    ):
        shapley.exact(game)
    assert game.evaluations == 0
    with pytest.raises(ValueError, match=r"2\^2000 = 1e\+602 coalitions"):
        shapley.exact(shapley.Game(len, 2000))
    with pytest.raises(ValueError, match=r"this game has 70 .* 8.8e\+12 GiB"):
        shapley.exact(shapley.Game(len, np.int64(70)))
    with pytest.raises(ValueError, match="up to 20 players"):
        shapley.moebius(table_game(random_table(3)) and shapley.Game(lambda present: present.double().sum(1), 21))


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (lambda present: 1.0, TypeError, "value must give a tensor or an array of real numbers, got float"),
        (lambda present: present.sum(1) * 1j, TypeError, "array of real numbers, got torch.complex64"),
        (lambda present: np.full(len(present), None), TypeError, "array of real numbers, got an array of object"),
        (lambda present: present.double().sum(), ValueError, r"one value for each of 8 coalitions.*got \(\)"),
        (lambda present: present.double().sum(1)[1:], ValueError, r"one value for each of 8 coalitions.*got \(7,\)"),
        (lambda present: present.double()[:, :, None], ValueError, r"got \(8, 3, 1\)"),
        (lambda present: present.double().sum(1).log().log(), ValueError, "what value gives must be finite: . of 8"),
    ],
)
def test_a_value_function_that_gives_something_else_is_refused(value, error, message):
    with pytest.raises(error, match=message):
        shapley.exact(shapley.Game(value, 3))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (lambda present: present.sum(1) ** 2, [4.0, 4.0, 4.0, 4.0]),
        (lambda present: present.sum(1).numpy() ** 2, [4.0, 4.0, 4.0, 4.0]),
        (lambda present: (present.numpy() @ np.arange(4, dtype=np.uint8))[::-1][::-1], [0.0, 1.0, 2.0, 3.0]),
        (lambda present: (present.numpy() * np.float32(0.5))[:, ::-1].sum(1), [0.5, 0.5, 0.5, 0.5]),
        (lambda present: present.all(1), [0.25, 0.25, 0.25, 0.25]),
    ],
    ids=["whole numbers", "array", "bytes, reversed twice", "float32 array", "bools"],
)
def test_counts_votes_and_arrays_are_values_too(value, expected):
    game = shapley.Game(value, 4)
    assert game(torch.ones(1, 4, dtype=torch.bool)).dtype == torch.float64
    torch.testing.assert_close(shapley.exact(game).values, torch.tensor(expected, dtype=torch.float64))


def test_values_that_change_their_shape_are_refused():
    game = shapley.Game(lambda present: torch.zeros(len(present), int(present.any()) + 1), 3)
    game(torch.zeros(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"\(1, 1\), got \(1, 2\)"):
        game(torch.ones(1, 3, dtype=torch.bool))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: shapley.Game(3, 3), TypeError, "value must be a function"),
        (lambda: shapley.Game(len, 0), ValueError, "players must be at least 1"),
        (lambda: shapley.Game(len, 3, chunk=0), ValueError, "chunk must be at least 1"),
        (lambda: shapley.Game(len, 3)(torch.ones(2, 3)), TypeError, "coalitions must be a BoolTensor"),
        (lambda: shapley.Game(len, 3)(torch.ones(2, 4).bool()), ValueError, r"shape \(n, 3\), got \(2, 4\)"),
        (lambda: shapley.exact(len), TypeError, "game must be a shapley.Game"),
        (lambda: games.additive([[1.0]]), ValueError, "worth must have 1 dim"),
        (lambda: games.additive([float("nan")]), ValueError, "worth must be finite"),
        (lambda: games.pairwise([[1.0, 2.0], [3.0, 1.0]]), ValueError, "symmetric"),
        (lambda: games.unanimity(3, [[0, 3]], [1.0]), ValueError, "players from 0 to 2"),
        (lambda: games.unanimity(3, [[0.5]], [1.0]), ValueError, "players from 0 to 2"),
        (lambda: games.unanimity(3, [0], [1.0]), ValueError, "players from 0 to 2, got 0"),
        (lambda: shapley.coalitions(26), ValueError, "players must be from 1 to 25"),
        (lambda: shapley.coalitions(3, 6, 3), ValueError, r"first \+ count must be at most 2\^3.*got 9"),
        (lambda: shapley.coalitions(3.0), TypeError, "players must be an int"),
        (lambda: list(shapley.Game(len, 3).blocks(3)), ValueError, "size must be a power of 2, got 3"),
        (lambda: games.unanimity(3, [[0]], [1.0, 2.0]), ValueError, "as many as coalitions"),
        (lambda: games.airport([1.0, -1.0]), ValueError, "costs must not be negative"),
        (lambda: games.voting([1, 2], 4), ValueError, "quota must be from 1 to 3"),
        (lambda: games.voting([1.5], 1), ValueError, "votes must be ints"),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


# Results


def test_a_gap_is_shown():
    result = shapley.leave_one_out(games.airport([1.0, 2.0, 3.0]).game)
    assert result.gap.item() == -2 and "gap up to 2" in repr(result)


def test_values_are_painted_onto_what_players_hold():
    players = torch.tensor([[0, 0, 1], [-1, 0, 1]])
    values = torch.tensor([6.0, 4.0])
    assert shapley.spread(values, players).tolist() == [[2, 2, 2], [0, 2, 2]]
    assert shapley.spread(values, players, share=False).tolist() == [[6, 6, 4], [0, 6, 4]]
    for wrong in (torch.tensor([0, 2]), torch.tensor([0, -2])):
        with pytest.raises(ValueError, match="players must be from -1 to 1"):
            shapley.spread(values, wrong)
    with pytest.raises(TypeError, match="LongTensor"):
        shapley.spread(values, values)
    with pytest.raises(ValueError, match="level"):
        shapley.exact(games.additive([1.0]).game).interval(95)
