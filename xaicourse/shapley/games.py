"""Games whose Shapley values are known: by them every estimator is tried (lecture 05).

Each function gives a `Known`: the game, and its Shapley values in closed form. `trees` is a game on real data, of high order,
whose values are known by asking all coalitions.
"""

from __future__ import annotations

import numbers
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..arguments import check_count, check_finite, check_generator, kind
from .exact import exact
from .game import Game

__all__ = ["Known", "additive", "airport", "pairwise", "trees", "unanimity", "unanimity_at_random", "voting"]


@dataclass(frozen=True)
class Known:
    """A game, and its Shapley values (players,), float64."""

    game: Game
    values: Tensor


def additive(worth: Tensor | Sequence[float]) -> Known:
    """Everyone is worth the same in all company, ``v(S) = sum of worth_j``: his Shapley value is his worth."""
    worth = _numbers("worth", worth, 1)
    return Known(Game(lambda present: present.double() @ worth, len(worth)), worth.clone())


def pairwise(together: Tensor | Sequence[Sequence[float]]) -> Known:
    """Every two players are worth something together: ``v(S) = sum over i < j in S of w_ij``, shared in halves.

    together  (players, players), symmetric; its diagonal is what a player is worth alone

    ``phi_j = w_jj + 1/2 sum over i != j of w_ij``.
    """
    together = _numbers("together", together, 2)
    if together.shape[0] != together.shape[1] or not torch.equal(together, together.T):
        raise ValueError(f"together must be a symmetric matrix (players, players), got {kind(together)}")
    alone = together.diagonal()

    def value(present: Tensor) -> Tensor:
        z = present.double()
        return ((z @ together) * z).sum(1) / 2 + z @ alone / 2

    return Known(Game(value, len(together)), (together.sum(1) + alone) / 2)


def unanimity(players: int, coalitions: Sequence[Sequence[int]], coefficients: Sequence[float] | Tensor) -> Known:
    """A sum of unanimity games: each coalition T is worth its coefficient if all of T are there.

    players       how many
    coalitions    the players of each T
    coefficients  m(T), as many

    The coefficients are the Moebius coefficients of the game (`moebius`), and every game is such a sum: ``v(S) = sum over T in
    S of m(T)``. An equal share to each member: ``phi_j = sum over T with j of m(T) / |T|``.
    """
    check_count("players", players)
    weight = _numbers("coefficients", coefficients, 1)
    if len(coalitions) != len(weight):
        raise ValueError(f"coefficients must be as many as coalitions, {len(coalitions)}, got {len(weight)}")
    members = torch.zeros(len(weight), players, dtype=torch.float64)
    for row, coalition in enumerate(coalitions):
        try:
            fits = all(operator.index(player) in range(players) for player in coalition)
        except TypeError:
            fits = False
        if not fits:
            raise ValueError(f"coalitions must be of players from 0 to {players - 1}, got {coalition!r}")
        members[row, list(coalition)] = 1
    size = members.sum(1)

    def value(present: Tensor) -> Tensor:
        return (present.double() @ members.T == size).double() @ weight

    return Known(Game(value, players), (weight / size.clamp(min=1)) @ members)


def unanimity_at_random(players: int, terms: int, *, order: int = 5, generator: torch.Generator | None = None) -> Known:
    """`unanimity` of random coalitions of 1 to ``order`` players, all sizes as likely, with standard normal coefficients."""
    check_count("players", players)
    check_count("terms", terms)
    check_count("order", order, most=players, most_is="all players")
    check_generator(generator)
    device = generator.device if generator is not None else "cpu"
    sizes = torch.randint(1, order + 1, (terms,), generator=generator, device=device).tolist()
    drawn = [torch.randperm(players, generator=generator, device=device)[:size].tolist() for size in sizes]
    return unanimity(players, drawn, torch.randn(terms, generator=generator, device=device, dtype=torch.float64))


def airport(costs: Tensor | Sequence[float]) -> Known:
    """Airlines share a runway, which must be as long as the longest of them needs: ``v(S) = max over S of cost_j``.

    costs  (players,), not negative; nobody needs no runway

    Those who need a piece of the runway share its cost equally.

    Littlechild & Owen, "A simple expression for the Shapley value in a special case", Management Science 1973.
    """
    costs = _numbers("costs", costs, 1)
    if bool((costs < 0).any()):
        raise ValueError(f"costs must not be negative, got {costs.min().item()}")
    ascending, order = costs.sort()
    piece = ascending.diff(prepend=costs.new_zeros(1))
    share = (piece / torch.arange(len(costs), 0, -1)).cumsum(0)
    values = torch.empty_like(costs)
    values[order] = share
    return Known(Game(lambda present: (present * costs).amax(1), len(costs)), values)


def voting(votes: Sequence[int], quota: int) -> Known:
    """Parties with votes: a coalition is worth 1 if it has at least the quota, else 0.

    votes  of each party, ints (or NumPy's) of at least 0
    quota  from 1 to the sum of the votes

    The values (Shapley and Shubik's index) count the coalitions by size and votes for which a party is decisive.

    Mann & Shapley, "Values of Large Games, VI: Evaluating the Electoral College Exactly", RAND 1962.
    """
    votes = list(votes)
    if not votes or not all(isinstance(vote, numbers.Integral) and vote >= 0 for vote in votes):
        raise ValueError(f"votes must be ints of at least 0, one for each party, got {votes}")
    votes = [int(vote) for vote in votes]
    check_count("quota", quota, most=sum(votes), most_is="the sum of the votes")
    players, weight = len(votes), torch.tensor(votes)

    def value(present: Tensor) -> Tensor:
        return ((present * weight).sum(1) >= quota).double()

    values = torch.zeros(players, dtype=torch.float64)
    for j, own in enumerate(votes):
        number = torch.zeros(players, quota, dtype=torch.float64)  # of coalitions, by size and votes below the quota
        number[0, 0] = 1
        for other in (*votes[:j], *votes[j + 1 :]):
            if other < quota:
                number[1:, other:] += number[:-1, : quota - other].clone()
        decisive = number[:, max(quota - own, 0) :].sum(1)
        sizes = torch.arange(players, dtype=torch.float64)
        log_weight = torch.lgamma(sizes + 1) + torch.lgamma(players - sizes) - torch.lgamma(sizes[:1] + players + 1)
        values[j] = (decisive * log_weight.exp()).sum()
    return Known(Game(value, players), values)


def trees(players: int = 16, *, trees: int = 100, depth: int = 6, item: int = 0, background: int = 4) -> Known:
    """A gradient-boosted model of real data: tumours, measured in 30 features (scikit-learn's breast cancer data).

    players     the first so many features, 1 to 25; the model has no others
    trees       how many, of ``depth`` each
    item        which tumour is explained
    background  so many other tumours stand for absence: a coalition is worth the mean log odds with the others' values

    The Shapley values are computed by asking all coalitions, which takes some seconds at 16 players. Needs scikit-learn.
    """
    from sklearn.datasets import load_breast_cancer
    from sklearn.ensemble import GradientBoostingClassifier

    check_count("players", players, most=25, most_is="what can be enumerated")
    data = load_breast_cancer()
    table, labels = data.data[:, :players], data.target
    check_count("item", item, least=0, most=len(table) - 1, most_is="the last tumour")
    check_count("background", background, most=len(table) - 1, most_is="the other tumours")
    model = GradientBoostingClassifier(n_estimators=trees, max_depth=depth, random_state=0).fit(table, labels)
    x = torch.from_numpy(table[item])
    rows = torch.arange(len(table))
    others = torch.from_numpy(table)[rows != item]
    absent = others[torch.linspace(0, len(others) - 1, background).long()]

    def value(present: Tensor) -> Tensor:
        mixed = torch.where(present[:, None], x, absent)
        odds = torch.from_numpy(model.decision_function(mixed.flatten(0, 1).numpy()))
        return odds.view(len(present), -1).mean(1)

    game = Game(value, players)
    return Known(game, exact(game).values)


def _numbers(name: str, given: object, dimensions: int) -> Tensor:
    try:
        numbers = torch.as_tensor(given, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be numbers, got {given!r}") from None
    if numbers.dim() != dimensions or 0 in numbers.shape:
        raise ValueError(f"{name} must have {dimensions} dimension(s) and not be empty, got {tuple(numbers.shape)}")
    check_finite(name, numbers)
    return numbers.cpu()
