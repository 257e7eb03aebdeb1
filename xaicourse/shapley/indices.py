"""Other values of the same game: what is lost when an axiom goes, and what players do together (lecture 05, claim S7).

Banzhaf, leave-one-out and add-one-in values are averages of the same marginal contributions as Shapley's, over other
coalitions; they do not add up to what there is to share, and their ``gap`` says by how much. Interaction indices say what two
players do beyond what each does. Owen values are Shapley's where players come in groups.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from ..arguments import kind
from .exact import check_enumerable, check_game, coalition_sizes, exact, fold, sums
from .game import MOST, Game, coalitions
from .result import Shapley

__all__ = ["Interaction", "add_one_in", "banzhaf", "interactions", "leave_one_out", "moebius", "owen"]

Interaction = Literal["shapley", "shapley-taylor", "banzhaf"]

_TABLE = 20


def banzhaf(game: Game, *, progress: bool = False) -> Shapley:
    """The Banzhaf values of a game of up to 25 players: the mean of what a player adds to all coalitions of the others.

    progress  show a progress bar, where tqdm is installed

        beta_j = 2^-(d - 1)  sum over S without j of (v(S + j) - v(S))

    Takes 2^d evaluations. Raises TypeError or ValueError if ``game`` is no game or has more players.

    Banzhaf, "Weighted voting doesn't work: a mathematical analysis", Rutgers Law Review 1965.
    """
    check_enumerable("banzhaf", game)
    weight = torch.full((game.players + 1,), 2.0 ** (1 - game.players), dtype=torch.float64)
    with_player, everything, ends = sums(game, weight, progress=progress)
    return _result(2 * with_player - everything, 2**game.players, *ends)


def leave_one_out(game: Game) -> Shapley:
    """What is lost when a player leaves everyone: ``v(everyone) - v(everyone without j)``, for d + 2 evaluations."""
    check_game(game)
    nobody, everyone = game.nobody_and_everyone()
    others = game(~torch.eye(game.players, dtype=torch.bool))
    return _result(everyone - others, game.players + 2, nobody, everyone)


def add_one_in(game: Game) -> Shapley:
    """What a player is worth alone: ``v(j) - v(nobody)``, for d + 2 evaluations."""
    check_game(game)
    nobody, everyone = game.nobody_and_everyone()
    alone = game(torch.eye(game.players, dtype=torch.bool))
    return _result(alone - nobody, game.players + 2, nobody, everyone)


def owen(game: Game, groups: Tensor, *, progress: bool = False) -> Shapley:
    """The Owen values of a game whose players come in groups, such as the pixels of segments or the words of sentences.

    game      the players
    groups    which group each player belongs to, a LongTensor (players,), numbered from 0 without holes
    progress  show a progress bar, where tqdm is installed

    Orders in which the members of a group come one right after the other, all as likely. With M the other groups, B the own
    one, m and b how many groups and members there are:

        phi_j = sum over R in M, S in B without j of (v(R + S + j) - v(R + S)) / (m binomial(m - 1, |R|) b binomial(b - 1, |S|))

    The values of a group sum to the Shapley value of the group as a player. Takes at most 2^(m + b - 1) evaluations for each
    group, less where coalitions are remembered.

    Raises TypeError or ValueError if an argument is not as above, or for more than 25 other groups and members together.

    Owen, "Values of games with a priori unions", Mathematical Economics and Game Theory, 1977.
    """
    check_game(game)
    if not isinstance(groups, Tensor) or groups.dtype != torch.long or groups.shape != (game.players,):
        raise TypeError(f"groups must be a LongTensor of shape {(game.players,)}, got {kind(groups)}")
    found = torch.unique(groups)
    if not torch.equal(found, torch.arange(len(found))):
        raise ValueError(f"groups must be numbered from 0 without holes, got {found[:8].tolist()} …")
    others = len(found) - 1
    sizes = torch.bincount(groups)
    if (most := others + int(sizes.max())) > MOST:
        raise ValueError(
            f"groups: other groups and own members together must be at most {MOST}, got {most}: 2^{most} coalitions"
        )
    asked = 2 + sum(2 ** (size + others) for size in sizes.tolist())
    with game.progress(asked, progress):
        ends = game.nobody_and_everyone()
        values = ends[0].new_zeros(game.players, *ends[0].shape)
        for group in range(len(found)):
            members = torch.where(groups == group)[0]
            values[members] = exact(_within(game, groups, group)).values
    return _result(values, asked, *ends)


def _within(game: Game, groups: Tensor, group: int) -> Game:
    """The game of a group's members: what a part of it is worth, averaged over which other groups are there before it."""
    own = groups == group
    others = int(groups.max())
    before = coalitions(others) if others else torch.zeros(1, 1, dtype=torch.bool)
    there = before[:, (groups - (groups > group).long()).clamp(max=max(others - 1, 0))]  # (2^others, players)
    count = before.sum(1).tolist()
    weight = torch.tensor([1 / ((others + 1) * math.comb(others, number)) for number in count], dtype=torch.float64)

    def value(part: Tensor) -> Tensor:
        whole = there.expand(len(part), -1, -1).clone()
        whole[:, :, own] = part[:, None]
        return torch.tensordot(game(whole.flatten(0, 1)).unflatten(0, (len(part), -1)), weight, ([1], [0]))

    return Game(value, int(own.sum()), chunk=max(1, game.chunk // len(there)), cache=False)


# ------------------------------------------------------------------------------------------------------------
# Interactions
# ------------------------------------------------------------------------------------------------------------


def moebius(game: Game) -> Tensor:
    """The Moebius coefficients of a game of up to 20 players: what each coalition is worth beyond all of its parts.

    Returns (2^players,) or (2^players, outputs), by the coalitions' numbers (`coalitions`): ``v(S) = sum over T in S of m(T)``.
    Rounding grows with the size of a coalition, by a factor of two for each player.

    Raises TypeError or ValueError if ``game`` is no game or has more players.
    """
    table = _table("moebius", game)
    for player in range(game.players):
        pairs = table.unflatten(0, (-1, 2, 2**player))
        pairs[:, 1] -= pairs[:, 0]
    return table


def interactions(game: Game, *, index: Interaction = "shapley", progress: bool = False) -> Tensor:
    """What every two players do together, beyond what each of them does, in a game of up to 20 players.

    index     "shapley": the mean over orders in which the two come as one; "banzhaf": the mean over all coalitions;
              "shapley-taylor": weights by which the whole matrix, each pair once, shares out the total
    progress  show a progress bar, where tqdm is installed

    Returns a symmetric matrix (players, players), or (players, players, outputs). With ``delta_ij(S) = v(S + i + j) - v(S + i)
    - v(S + j) + v(S)``, sums over S without i and j, s = |S| and d players:

        shapley          I_ij = sum of s! (d - s - 2)! / (d - 1)! delta_ij(S)          diagonal: Shapley values
        banzhaf          I_ij = 2^-(d - 2) sum of delta_ij(S)                          diagonal: Banzhaf values
        shapley-taylor   I_ij = 2 / d sum of 1 / binomial(d - 1, s) delta_ij(S)        diagonal: v(i) - v(nobody)

    Takes 2^d evaluations. Raises TypeError or ValueError if an argument is not as above or there are more players.

    Grabisch & Roubens, "An axiomatic approach to the concept of interaction among players in cooperative games", International
    Journal of Game Theory 1999; Sundararajan, Dhamdhere & Agarwal, "The Shapley Taylor Interaction Index", ICML 2020.
    """
    if index not in get_args(Interaction):
        raise ValueError(f"index must be one of {', '.join(map(repr, get_args(Interaction)))}, got {index!r}")
    table = _table("interactions", game, progress)
    d = game.players
    weight = torch.zeros(d + 2, dtype=torch.float64)  # by s; the last ones stay 0, also for s = -1 and -2
    for s in range(d - 1):
        weight[s] = {
            "shapley": 1 / ((d - 1) * math.comb(d - 2, s)),
            "banzhaf": 2.0 ** (2 - d),
            "shapley-taylor": 2 / (d * math.comb(d - 1, s)),
        }[index]
    size = coalition_sizes(d)
    none, one, both = (
        weight[size],
        weight[size - 1],
        weight[size - 2],
    )  # weights of S where S, S + i, S + i + j is meant
    shape = (-1, *[1] * (table.dim() - 1))
    everything = (none.view(shape) * table).sum(0)
    singles, _ = fold((none + one).view(shape) * table)
    paired = (none + 2 * one + both).view(shape) * table
    matrix = table.new_zeros(d, d, *table.shape[1:])
    for i in range(d):
        with_i = paired.unflatten(0, (-1, 2, 2**i))[:, 1].flatten(0, 1)  # numbers without their bit i
        together, _ = fold(with_i)
        row = everything - singles[i] - singles
        others = [j for j in range(d) if j != i]
        row[others] += together
        matrix[i] = row
    diagonal = {"shapley": exact, "banzhaf": banzhaf, "shapley-taylor": add_one_in}[index](game).values
    matrix[range(d), range(d)] = diagonal
    return matrix


def _table(name: str, game: Game, progress: bool = False) -> Tensor:
    check_enumerable(name, game, _TABLE)
    with game.progress(2**game.players, progress):
        return torch.cat([values.clone() for _, values in game.blocks()])


def _result(values: Tensor, evaluations: int, nobody: Tensor, everyone: Tensor) -> Shapley:
    return Shapley(
        values=values,
        standard_errors=torch.zeros_like(values),
        evaluations=evaluations,
        total=everyone - nobody,
        nobody=nobody,
        degrees=torch.full_like(values, math.inf),
    )
