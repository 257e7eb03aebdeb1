"""Other values and interactions, held against Moebius coefficients, all orders of groups, and games that are known."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xaicourse import shapley
from xaicourse.shapley import games

from .test_exact import random_table, seeded, table_game


def table_of(game):
    return torch.cat([values for _, values in game.blocks()])


@given(players=st.integers(1, 7), seed=st.integers(0, 2**16))
@settings(max_examples=20, deadline=None)
def test_moebius_coefficients_add_up_to_the_game(players, seed):
    table = random_table(players, 2, seed=seed)
    coefficients = shapley.moebius(table_game(table))
    for number in range(2**players):
        parts = [part for part in range(2**players) if part & number == part]
        torch.testing.assert_close(coefficients[parts].sum(0), table[number], rtol=0, atol=1e-10)


def test_moebius_coefficients_of_unanimity_games_are_their_coefficients():
    game = games.unanimity(5, [[0], [1, 3], [0, 2, 4]], [1.5, -2.0, 3.0]).game
    found = shapley.moebius(game)
    assert {number: found[number].item() for number in found.nonzero().flatten().tolist()} == {1: 1.5, 10: -2, 21: 3}
    before = table_of(game).clone()
    shapley.moebius(game)
    assert torch.equal(table_of(game), before), "what the game remembers is not touched"


@pytest.mark.parametrize("index", ["shapley", "banzhaf", "shapley-taylor"])
@pytest.mark.parametrize("players", [2, 3, 7])
def test_interactions_follow_from_the_moebius_coefficients(index, players):
    game = table_game(random_table(players, seed=players))
    matrix, coefficients = shapley.interactions(game, index=index), shapley.moebius(game)
    present = shapley.coalitions(players)
    size = present.sum(1).double()
    weight = {"shapley": 1 / (size - 1), "banzhaf": 2 ** (2 - size), "shapley-taylor": 2 / (size * (size - 1))}[index]
    for i, j in itertools.permutations(range(players), 2):
        both = present[:, i] & present[:, j]
        torch.testing.assert_close(matrix[i, j], (coefficients * weight)[both].sum(), rtol=0, atol=1e-11)
    other = {"shapley": shapley.exact, "banzhaf": shapley.banzhaf, "shapley-taylor": shapley.add_one_in}[index]
    torch.testing.assert_close(matrix.diagonal(), other(game).values)


def test_shapley_taylor_interactions_share_out_the_total():
    table = random_table(6, 2)
    matrix = shapley.interactions(table_game(table), index="shapley-taylor")
    pairs = torch.ones(6, 6).triu().bool()
    torch.testing.assert_close(matrix[pairs].sum(0), table[-1] - table[0])


def test_banzhaf_values_by_their_formula_do_not_add_up():
    table = random_table(6)
    result = shapley.banzhaf(table_game(table))
    number = torch.arange(64)
    for player in range(6):
        without = number[number >> player & 1 == 0]
        torch.testing.assert_close(result.values[player], (table[without | 1 << player] - table[without]).mean())
    assert abs(result.gap) > 0.1 and result.evaluations == 64
    torch.testing.assert_close(result.gap, result.values.sum() - result.total)


def test_leave_one_out_and_add_one_in_by_hand():
    game = games.unanimity(3, [[0, 1], [2]], [4.0, 1.0]).game
    assert shapley.leave_one_out(game).values.tolist() == [4, 4, 1] and shapley.leave_one_out(game).gap.item() == 4
    assert shapley.add_one_in(game).values.tolist() == [0, 0, 1] and shapley.add_one_in(game).gap.item() == -4
    assert shapley.exact(game).values.tolist() == pytest.approx([2, 2, 1])


@pytest.mark.parametrize("groups", [[0, 0, 1, 1, 2, 0], [0, 0, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5], [1, 0, 1, 0, 1, 0]])
@pytest.mark.parametrize("outputs", [(), (2,)])
def test_owen_values_are_the_mean_over_orders_that_keep_groups_together(groups, outputs):
    table = random_table(6, *outputs)
    expected, orders = torch.zeros(6, *outputs, dtype=torch.float64), 0
    for order in itertools.permutations(range(6)):
        sequence = [groups[player] for player in order]
        if len(list(itertools.groupby(sequence))) > len(set(groups)):
            continue
        orders, number = orders + 1, 0
        for player in order:
            expected[player] += table[number | 1 << player] - table[number]
            number |= 1 << player
    game = table_game(table)
    result = shapley.owen(game, torch.tensor(groups))
    torch.testing.assert_close(result.values, expected / orders, rtol=0, atol=1e-12)
    assert (result.gap.abs() < 1e-12).all() and game.evaluations <= 64


def test_a_groups_owen_values_sum_to_its_value_as_a_player():
    known = games.unanimity_at_random(9, 30, generator=seeded())
    groups = torch.tensor([0, 1, 1, 2, 2, 2, 0, 3, 3])
    owen = shapley.owen(known.game, groups).values
    united = shapley.exact(shapley.Game(lambda present: known.game(present[:, groups]), 4)).values
    torch.testing.assert_close(torch.zeros(4, dtype=torch.float64).index_add(0, groups, owen), united)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda g: shapley.interactions(g, index="owen"), ValueError, "index must be one of 'shapley'"),
        (lambda g: shapley.owen(g, torch.tensor([0, 1])), TypeError, r"groups must be a LongTensor of shape \(3,\)"),
        (lambda g: shapley.owen(g, torch.tensor([0, 2, 2])), ValueError, "numbered from 0 without holes"),
        (lambda g: shapley.banzhaf(g.value), TypeError, "game must be a shapley.Game"),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call(games.additive([1.0, 2.0, 3.0]).game)


def test_groups_that_are_too_many_are_refused():
    game = shapley.Game(lambda present: present.double().sum(1), 40)
    with pytest.raises(ValueError, match="at most 25, got 40"):
        shapley.owen(game, torch.arange(40))
