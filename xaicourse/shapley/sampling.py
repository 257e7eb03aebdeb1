"""Shapley values as an average over orders in which the players arrive (lecture 05, claims S2 and S8).

In an order, every player adds to the value of those before him; his Shapley value is the mean of what he adds over all d!
orders. The mean over some random orders estimates it without bias, and errs like 1 / sqrt(orders). What is shared out in each
order is ``v(everyone) - v(nobody)``, so that estimates add up as the exact values do.
"""

from __future__ import annotations

import numbers
from collections import deque
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor

from ..arguments import check_generator
from .exact import check_game, exact
from .game import Game
from .result import Shapley

__all__ = ["Orders", "check_budget", "permutation", "permutation_steps"]

Orders = Literal["plain", "antithetic", "stratified"]


def permutation(
    game: Game,
    evaluations: int,
    *,
    orders: Orders = "antithetic",
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Shapley:
    """Estimate Shapley values by what players add in random orders.

    game         of d players
    evaluations  the budget: at most so many coalitions are looked at; at least two draws of orders
    orders       "plain": a draw is one order, for d - 1 evaluations;
                 "antithetic": an order and its reverse, for 2 (d - 1), which cancels all that is of order two in the game;
                 "stratified": the players sit down at a round table in random order, and a draw is all 2 d orders in which
                 they can be picked up along it, clockwise or not, from any seat on: every player is at every place as often,
                 for d (d - 1)
    generator    where the orders come from; None is torch's global one
    progress     show a progress bar, where tqdm is installed

    Returns a `Shapley`: unbiased; standard errors are those of the mean over draws. Of a player who seldom makes a difference,
    few draws may show none: his standard error is then 0, and wrong. With 30 draws and more, intervals cover at about their
    rate where every player often matters; with fewer, the result is marked ``doubtful``. Interrupted (KeyboardInterrupt), it
    returns what stands after the draws that are done, if there are two.

    Raises TypeError or ValueError if an argument is not as above.

    Castro, Gómez & Tejada, "Polynomial calculation of the Shapley value based on sampling", Computers & Operations Research
    2009; Mitchell et al., "Sampling Permutations for Shapley Value Estimation", JMLR 2022 (antithetic).
    """
    results: deque[Shapley] = deque(maxlen=1)
    try:
        results.extend(permutation_steps(game, evaluations, orders=orders, generator=generator, progress=progress))
    except KeyboardInterrupt:
        if not results:
            raise
    return results[0]


def permutation_steps(
    game: Game,
    evaluations: int,
    *,
    orders: Orders = "antithetic",
    generator: torch.Generator | None = None,
    every: int | None = None,
    progress: bool = False,
) -> Iterator[Shapley]:
    """The estimates of `permutation` while they come, after about every ``every`` evaluations; None is the game's chunk."""
    check_game(game)
    if orders not in get_args(Orders):
        raise ValueError(f"orders must be one of {', '.join(map(repr, get_args(Orders)))}, got {orders!r}")
    check_generator(generator)
    d = game.players
    cost = (d - 1) * {"plain": 1, "antithetic": 2, "stratified": d}[orders]
    evaluations = check_budget(evaluations, 2 + 2 * cost, f"nobody, everyone and two draws of {cost} coalitions each")
    return _permutation_steps(game, evaluations, cost, orders, generator, every, progress)


def _permutation_steps(
    game: Game,
    evaluations: int,
    cost: int,
    orders: Orders,
    generator: torch.Generator | None,
    every: int | None,
    progress: bool,
) -> Iterator[Shapley]:
    if game.players == 1:
        yield exact(game)
        return
    d, draws = game.players, (evaluations - 2) // cost
    at_once = max(1, (every or game.chunk) // cost)
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())
    with game.progress(2 + draws * cost, progress):
        ends = game.nobody_and_everyone()
        for last in range(at_once, draws + at_once, at_once):
            number = min(max(last, 2), draws) - count  # one draw alone says nothing of its error
            if number == 0:
                continue
            place = _random((number, d), generator).argsort(1)  # of each player in the order
            added = _around_the_table(game, place, ends) if orders == "stratified" else _along(game, place, ends)
            if orders == "antithetic":
                added = (added + _along(game, d - 1 - place, ends)) / 2
            squares = squares + ((added - added.mean(0)) ** 2).sum(0)
            squares = squares + (added.mean(0) - mean) ** 2 * (count * number / (count + number))
            mean = mean + (added.mean(0) - mean) * (number / (count + number))
            count += number
            yield Shapley(
                values=mean,
                standard_errors=(squares / (count - 1) / count).sqrt(),
                evaluations=2 + count * cost,
                total=ends[1] - ends[0],
                nobody=ends[0],
                degrees=torch.full_like(mean, count - 1),
            )


def _along(game: Game, place: Tensor, ends: tuple[Tensor, Tensor]) -> Tensor:
    """What each player adds when he comes at that place, (orders, players) -> (orders, players, …)."""
    orders, d = place.shape
    values = torch.cat(
        [  # a few arrivals at a time: all coalitions of an order of thousands of players would not fit into memory
            game((place[:, None, :] < arrivals[:, None]).flatten(0, 1)).unflatten(0, (orders, -1))
            for arrivals in torch.arange(1, d).split(max(1, game.chunk // orders))
        ],
        dim=1,
    )
    nobody, everyone = (end.expand(orders, 1, *end.shape) for end in ends)
    steps = torch.cat([nobody, values, everyone], 1).diff(dim=1)
    return steps[torch.arange(orders)[:, None], place]


def _around_the_table(game: Game, seat: Tensor, ends: tuple[Tensor, Tensor]) -> Tensor:
    """The mean of what each player adds in the orders along a round table: seats (tables, players) -> (tables, players, …)."""
    tables, d = seat.shape
    around = torch.arange(d)
    found = []
    for start in around.split(max(1, game.chunk // (tables * (d - 1)))):
        # those who sit on `length` seats from seat `start` on: (tables, start, length, players)
        arcs = (seat[:, None, None, :] - start[:, None, None]) % d < torch.arange(1, d)[:, None]
        found.append(game(arcs.flatten(0, 2)).unflatten(0, (tables, len(start), d - 1)))
    values = torch.cat(found, 1)
    nobody, everyone = (end.expand(tables, d, 1, *end.shape) for end in ends)
    values = torch.cat([nobody, values, everyone], 2)
    # who sits at `around` joins those before him, who start at any seat, and those after him, who are any number
    start, length = around[None, :], (around[:, None] - around[None, :]) % d
    joins_before = values[:, start, length + 1] - values[:, start, length]
    joins_after = values[:, around, 1:] - values[:, (around + 1) % d, :-1]
    by_seat = (joins_before.mean(2) + joins_after.mean(2)) / 2
    return by_seat[torch.arange(tables)[:, None], seat]


def check_budget(evaluations: int, least: int, what: str) -> int:
    """The budget; TypeError if it is no int (or NumPy's), ValueError if it is less than is needed for what."""
    if isinstance(evaluations, bool) or not isinstance(evaluations, (int, numbers.Integral)):
        raise TypeError(f"evaluations must be an int, got {type(evaluations).__name__}")
    if evaluations < least:
        raise ValueError(f"evaluations must be at least {least} ({what}), got {evaluations}")
    return int(evaluations)


def _random(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    device = generator.device if generator is not None else "cpu"
    return torch.rand(shape, generator=generator, device=device, dtype=torch.float64).cpu()
