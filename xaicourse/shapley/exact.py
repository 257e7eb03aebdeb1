"""Shapley values by formula (2) of the slides, every coalition asked (lecture 05, claims S1 to S8).

Formula (2) runs over pairs of coalitions, for each player anew. Sorted by coalition it reads, with d players and s = |S|,

    phi_j = P_j - mean of all P + total / d,        P_j = sum over S with j in S, S not everyone, of omega_s v(S),

with ``omega_s = (s - 1)! (d - s - 1)! / (d - 1)!`` and ``total = v(everyone) - v(nobody)``. Each coalition is asked once, its
value used once for all players: the work is 2^d, not d 2^d, and only a block of values is in memory at any time.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .game import MOST, Game
from .result import Shapley

__all__ = ["check_enumerable", "check_game", "exact", "omega", "sums"]

_BLOCK = 2**14


def exact(game: Game, *, progress: bool = False) -> Shapley:
    """The Shapley values of a game, all its coalitions asked.

    game      of 1 to 25 players
    progress  show a progress bar of the coalitions that are asked, where tqdm is installed

    Returns a `Shapley`, without standard errors: for player j of d, over all coalitions S without j,

        phi_j = 1/d  sum over S of (v(S + j) - v(S)) / binomial(d - 1, |S|)

    Takes 2^d evaluations, and memory for 16,384 values beside what the game remembers: interrupted, it goes on from there when
    it is called again.

    Raises TypeError or ValueError if ``game`` is no game or has more players.

    Shapley, "A value for n-person games", Contributions to the Theory of Games II, 1953.
    """
    check_enumerable("exact", game)
    with_player, _, (nobody, everyone) = sums(game, omega(game.players), progress=progress)
    total = everyone - nobody
    values = with_player - with_player.mean(0) + total / game.players
    return Shapley(
        values=values,
        standard_errors=torch.zeros_like(values),
        evaluations=2**game.players,
        total=total,
        nobody=nobody,
        degrees=torch.full_like(values, math.inf),
    )


def omega(players: int) -> Tensor:
    """The weight (s - 1)! (d - s - 1)! / (d - 1)! of coalitions of each size s, (players + 1,); 0 for nobody and everyone."""
    weights = [players / (s * (players - s) * math.comb(players, s)) for s in range(1, players)]
    return torch.tensor([0.0, *weights, 0.0], dtype=torch.float64)


def sums(game: Game, weight: Tensor, *, progress: bool = False) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Weighted sums of the values of all coalitions.

    weight  of a coalition by its size, (players + 1,)

    Returns the sum over all coalitions that contain each player, (players, …); the sum over all; v(nobody) and v(everyone).
    Values are taken relative to v(nobody), which changes no difference and keeps rounding small.
    """
    bits = min(_BLOCK.bit_length() - 1, game.players)
    size = coalition_sizes(bits)
    weights = [weight[outside + size] for outside in range(game.players - bits + 1)]
    folded: Tensor | None = None  # the sum of all blocks: what happens within a block is the same in all
    outside_sums: Tensor | None = None
    nobody = everyone = torch.zeros(())
    with game.progress(2**game.players, progress):
        for first, values in game.blocks(_BLOCK):
            if folded is None or outside_sums is None:
                nobody = values[0].clone()
                folded = torch.zeros_like(values)
                outside_sums = values.new_zeros(game.players - bits, *values.shape[1:])
            outside = first >> bits
            here = weights[outside.bit_count()]
            weighted = (values - nobody) * (here if values.dim() == 1 else here[:, None])
            folded += weighted
            if outside:
                players = [player for player in range(game.players - bits) if outside >> player & 1]
                outside_sums[players] += weighted.sum(0)
            everyone = values[-1]
    assert folded is not None and outside_sums is not None
    inside, everything = fold(folded)
    return torch.cat([inside, outside_sums]), everything, (nobody, everyone.clone())


def fold(values: Tensor) -> tuple[Tensor, Tensor]:
    """The sum over coalitions with each player, (players, …), and over all, of values (2^players, …) by coalition number."""
    players = len(values).bit_length() - 1
    with_player = values.new_zeros(players, *values.shape[1:])
    for player in reversed(range(players)):
        without, with_ = values.chunk(2)  # the highest player is in the upper half
        with_player[player] = with_.sum(0)
        values = without + with_  # and now it no longer matters whether he is there
    return with_player, values[0]


def coalition_sizes(players: int) -> Tensor:
    """How many players each coalition has, by its number: (2^players,)."""
    size = torch.zeros(1, dtype=torch.long)
    for _ in range(players):
        size = torch.cat([size, size + 1])
    return size


def check_game(game: Game) -> None:
    """TypeError if it is no game."""
    if not isinstance(game, Game):
        raise TypeError(f"game must be a shapley.Game, got {type(game).__name__}")


def check_enumerable(name: str, game: Game, most: int = MOST) -> None:
    """TypeError if it is no game, ValueError if it has more players than can be enumerated."""
    check_game(game)
    if game.players > most:
        raise ValueError(
            f"{name} asks all coalitions, which is for up to {most} players; this game has {game.players} and so "
            f"2^{game.players} = {_power(game.players)} coalitions, whose values alone are {_power(game.players - 27)} GiB: "
            f"estimate them with shapley.kernel(game, evaluations) or shapley.permutation(game, evaluations)"
        )


def _power(exponent: int) -> str:
    return f"{2.0**exponent:.3g}" if exponent < 1024 else f"1e+{int(exponent * math.log10(2))}"
