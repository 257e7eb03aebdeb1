"""Shapley values by regression over coalitions (lecture 05, claim S8).

Sorted by coalition, with ``z_j = 1`` where j is in S and s = |S|, formula (2) of the slides is

    phi_j = total / d + sum over sizes s from 1 to d - 1 of  W_s  mean over S of size s of (z_j - s / d) v(S),

with ``W_s = d / (s (d - s))``: these are also the weights with which a linear model, fitted to all coalitions so that its
slopes sum to the total, has the Shapley values as its slopes. Four things make an estimate of it good:

- Coalitions come in pairs, S and all others: then only the odd part ``o(S) = (v(S) - v(not S)) / 2`` counts, and whatever is
  even in the game, all interactions of two players among it, drops out exactly.
- Small and large coalitions weigh most and are few: they are enumerated, as far as the budget goes.
- Of the others, each size gets its share of the budget, and no coalition is drawn twice.
- What is easily predicted need not be sampled. A surrogate g, of which the Shapley values are known exactly, is fitted to the
  sample, and only those of ``v - g`` are estimated, each residual by a surrogate that has not seen it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ..arguments import check_generator
from .exact import check_game, exact
from .game import Game, packed
from .result import Shapley
from .sampling import check_budget

__all__ = ["Surrogate", "kernel", "kernel_steps"]

Surrogate = Literal["odd", "linear"]

_FLOAT = 10**300  # populations beyond it count as it
_FIT = 2048  # pairs that a surrogate is fitted to, at most
_TRY = 256  # pairs on which its settings are chosen
_FOLDS = 6


def kernel(
    game: Game,
    evaluations: int,
    *,
    surrogate: Surrogate = "odd",
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Shapley:
    """Estimate Shapley values by a regression over pairs of coalitions.

    game         of d players
    evaluations  the budget: at most so many coalitions are looked at; at least 2 d + 2, or all there are
    surrogate    "linear": the slopes of the weighted linear regression are the estimate (KernelSHAP);
                 "odd": a surrogate with interactions of three, five, … players is fitted by kernel regression, and its
                 Shapley values are corrected by those of its residuals
    generator    where the coalitions come from; None is torch's global one
    progress     show a progress bar, where tqdm is installed

    Returns a `Shapley`, which adds up exactly, whose standard errors are those of the residuals in stratified sampling without
    replacement; nothing is left to chance where all coalitions are asked. "linear" is a little biased while there are few
    coalitions, less than its error, and its standard errors are about half of what they should be below some 3 d evaluations;
    "odd" is not biased, since no residual is predicted by a surrogate that has seen it. Interrupted (KeyboardInterrupt), it
    returns what stands with the coalitions that were asked, if they are enough.

    The odd surrogate is ``g(x) = sum over sampled i of a_i (k(x, x_i) - k(x, -x_i)) / 2`` of ``x = 2 z - 1``, with
    ``k(x, y) = product over j of (1 + rho_j x_j y_j)``: a prior variance of ``product of rho_j`` for an interaction of those
    players. The Shapley values of k are an integral along the diagonal of the cube, ``phi_j = integral over t from -1 to 1 of
    rho_j y_j product over i != j of (1 + rho_i y_i t)``, which Gauss-Legendre quadrature gives exactly. The ``rho_j`` are
    those of some candidates that leave least variance. The surrogate is fitted to 2,048 pairs at most.

    Raises TypeError or ValueError if an argument is not as above.

    Lundberg & Lee, "A Unified Approach to Interpreting Model Predictions", NeurIPS 2017; Covert & Lee, "Improving KernelSHAP",
    AISTATS 2021 (pairs, unbiasedness); Musco & Witter, "Provably Accurate Shapley Value Estimation via Leverage Score
    Sampling", ICLR 2025; Witter, Liu & Musco, "Regression-adjusted Monte Carlo Estimators for Shapley Values and
    Probabilistic Values", NeurIPS 2025.
    """
    (result,) = kernel_steps(game, evaluations, surrogate=surrogate, generator=generator, progress=progress)
    return result


def kernel_steps(
    game: Game,
    evaluations: int,
    *,
    surrogate: Surrogate = "odd",
    generator: torch.Generator | None = None,
    every: int | None = None,
    progress: bool = False,
) -> Iterator[Shapley]:
    """The estimates of `kernel` while they come, after about every ``every`` evaluations; None is only the last."""
    check_game(game)
    if surrogate not in get_args(Surrogate):
        raise ValueError(f"surrogate must be one of {', '.join(map(repr, get_args(Surrogate)))}, got {surrogate!r}")
    check_generator(generator)
    d = game.players
    everything = 2**d if d < 64 else math.inf
    least = min(2 * d + 2, everything)
    evaluations = check_budget(evaluations, int(least), f"nobody, everyone and {d} pairs of coalitions of {d} players")
    return _kernel_steps(game, int(min(evaluations, everything)), surrogate, generator, every, progress)


def _kernel_steps(
    game: Game,
    evaluations: int,
    surrogate: Surrogate,
    generator: torch.Generator | None,
    every: int | None,
    progress: bool,
) -> Iterator[Shapley]:
    if game.players == 1:
        yield exact(game)
        return
    with game.progress(evaluations, progress):
        yield from _pairs_asked(game, evaluations, surrogate, generator, every)


def _pairs_asked(
    game: Game, evaluations: int, surrogate: Surrogate, generator: torch.Generator | None, every: int | None
) -> Iterator[Shapley]:
    nobody, everyone = game.nobody_and_everyone()
    strata = _strata(game.players, (evaluations - 2) // 2)
    coalitions, size = _draw(game.players, strata, generator)
    at_once = max(1, game.chunk // 2)
    odd: list[Tensor] = []
    done = shown = 0

    def estimate() -> Shapley | None:
        sample = _Sample(coalitions[:done], size[:done], torch.cat(odd), strata)
        return _estimate(sample, nobody, everyone, surrogate) if sample.suffices() else None

    parts = coalitions.split(min(at_once, max(1, every // 2)) if every else at_once)
    try:
        for part in parts:
            values = game(torch.cat([part, ~part]))
            odd.append((values[: len(part)] - values[len(part) :]) / 2)
            done += len(part)
            if every and done < len(coalitions) and 2 * (done - shown) >= every:
                shown = done
                result = estimate()
                if result is not None:
                    yield result
    except KeyboardInterrupt:
        if not odd or estimate() is None:
            raise
    result = estimate()
    assert result is not None
    yield result


# ------------------------------------------------------------------------------------------------------------
# Which coalitions
# ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stratum:
    """Pairs of coalitions of ``size`` and of the others: ``population`` of them, ``count`` to be drawn, of that ``weight``."""

    size: int
    population: int
    count: int
    weight: float


def _strata(players: int, pairs: int) -> list[_Stratum]:
    """Share the pairs out: each size as its part in the variance asks for, none more than there are, none less than two."""
    sizes = range(1, players // 2 + 1)
    halves = [2 if 2 * s == players else 1 for s in sizes]  # there, a coalition's others have the same size
    population = [math.comb(players, s) // half for s, half in zip(sizes, halves, strict=True)]
    weight = [2 * players / (s * (players - s)) / half for s, half in zip(sizes, halves, strict=True)]
    # W_s times the length of (z_j - s / d) over the players, if residuals are as large at all sizes
    share = np.array([w * math.sqrt(s * (players - s)) for s, w in zip(sizes, weight, strict=True)])
    most = np.array([min(number, pairs) for number in population], dtype=float)  # populations may exceed all floats
    least = np.minimum(most, 2)

    low, high = 0.0, pairs / share.min() + 1  # by how much shares have to be multiplied so that the pairs are used up
    for _ in range(100):
        level = (low + high) / 2
        low, high = (level, high) if np.clip(share * level, least, most).sum() <= pairs else (low, level)
    wanted = np.clip(share * low, least, most)
    count = np.floor(wanted + 1e-9)
    left = int(min(pairs - count.sum(), (count < most).sum()))
    for place in np.argsort(np.where(count < most, count - wanted, np.inf), kind="stable")[: max(left, 0)]:
        count[place] += 1
    rows = zip(sizes, population, count.astype(int).tolist(), weight, strict=True)
    return [_Stratum(*row) for row in rows]


def _draw(players: int, strata: list[_Stratum], generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Coalitions (n, players), one of each pair, and their sizes (n,), in an order whose beginnings are stratified too."""
    drawn, sizes, turn = [], [], []
    for stratum in strata:
        drawn.append(_subsets(players, stratum, generator))
        sizes.append(torch.full((stratum.count,), stratum.size))
        turn.append((torch.arange(stratum.count) + 0.5) / stratum.count)
    order = torch.cat(turn).argsort(stable=True)
    return torch.cat(drawn)[order], torch.cat(sizes)[order]


def _subsets(players: int, stratum: _Stratum, generator: torch.Generator | None) -> Tensor:
    """Different random coalitions of that size; at half of the players those with player 0, who stand for their pair."""
    size, count = stratum.size, stratum.count
    device = generator.device if generator is not None else "cpu"
    fixed = int(2 * size == players)  # player 0 is in
    if 4 * count > stratum.population:
        every = torch.combinations(torch.arange(fixed, players), size - fixed)
        if size == fixed:
            every = torch.zeros(1, 0, dtype=torch.long)
        members = every[torch.randperm(len(every), generator=generator, device=device).cpu()[:count]]
        found = torch.zeros(count, players, dtype=torch.bool).scatter_(1, members, True)
        found[:, :fixed] = True
        return found
    different: dict[bytes, Tensor] = {}
    while len(different) < count:
        draw = torch.rand(count, players, generator=generator, device=device, dtype=torch.float64).cpu()
        draw[:, :fixed] = -1
        members = torch.zeros(count, players, dtype=torch.bool)
        members.scatter_(1, draw.topk(size, largest=False).indices, True)
        for key, coalition in zip(packed(members), members, strict=True):
            different.setdefault(key, coalition)
    return torch.stack(list(different.values())[:count])


# ------------------------------------------------------------------------------------------------------------
# The estimate
# ------------------------------------------------------------------------------------------------------------


class _Sample:
    """Pairs of coalitions with the odd part of their values, and what each counts for.

    x       (n, players), 1 for those in the coalition, -1 for the others
    odd     (n, outputs)
    lever   (n, players), z_j - s / d
    weight  (n,), W_s / n_s: the weighted sum of lever * odd estimates the values less total / d
    open    (n,), True where not all coalitions of that size were asked
    left    (n,), which part of that size has not been asked
    """

    def __init__(self, coalitions: Tensor, size: Tensor, odd: Tensor, strata: list[_Stratum]) -> None:
        self.players = coalitions.shape[1]
        self.size, self.odd = size, odd if odd.dim() == 2 else odd[:, None]
        self.x = coalitions.double() * 2 - 1
        self.lever = coalitions.double() - size.double()[:, None] / self.players
        self.strata = strata
        self.counts = [int((size == stratum.size).sum()) for stratum in strata]
        index = size - 1
        count = torch.tensor(self.counts)[index]
        population = torch.tensor([float(min(s.population, _FLOAT)) for s in strata], dtype=torch.float64)[index]
        self.population, self.count = population, count
        self.weight = torch.tensor([stratum.weight for stratum in strata], dtype=torch.float64)[index] / count
        self.open = count < population
        self.left = 1 - count / population

    def suffices(self) -> bool:
        return all(n == s.population or n >= 2 for n, s in zip(self.counts, self.strata, strict=True))

    def variance(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Of the estimate, (players, outputs), and its degrees of freedom (Satterthwaite), by the residuals (n, outputs)."""
        variance = torch.zeros(self.players, residual.shape[1], dtype=torch.float64)
        squares = torch.zeros_like(variance)
        for stratum, count in zip(self.strata, self.counts, strict=True):
            if count == stratum.population:
                continue
            rows = self.size == stratum.size
            part = self.lever[rows][:, :, None] * residual[rows][:, None]
            of_stratum = stratum.weight**2 * (1 - count / stratum.population) * part.var(0) / count
            variance += of_stratum
            squares += of_stratum**2 / (count - 1)
        degrees = torch.where(squares > 0, variance**2 / squares.clamp(min=1e-300), math.inf)
        return variance, degrees


def _estimate(sample: _Sample, nobody: Tensor, everyone: Tensor, surrogate: Surrogate) -> Shapley:
    total = everyone - nobody
    share = torch.atleast_1d(total) / sample.players
    if not sample.open.any():
        values = share + _weighted(sample, sample.odd)
        variance = torch.zeros_like(values)
        degrees = torch.full_like(values, math.inf)
    elif surrogate == "linear":
        values, variance, degrees = _linear(sample, share)
    else:
        values, variance, degrees = _adjusted(sample, share)
    shape = (sample.players, *total.shape)
    return Shapley(
        values=values.view(shape),
        standard_errors=variance.sqrt().view(shape),
        evaluations=2 + 2 * len(sample.odd),
        total=total,
        nobody=nobody,
        degrees=degrees.view(shape),
    )


def _weighted(sample: _Sample, odd: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
    """The formula at the top of this file, on the sample: (players, outputs)."""
    return sample.lever[rows].T @ (sample.weight[rows, None] * odd)


def _linear(sample: _Sample, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The slopes b of ``o(S) = sum of b_j x_j / 2``, weighted, that sum to the total."""
    x = sample.x / 2
    weighted = x.T * sample.weight
    inverse = torch.linalg.pinv(weighted @ x, hermitian=True)
    slopes = inverse @ (weighted @ sample.odd)
    along = inverse.sum(1, keepdim=True)
    slopes = slopes - along * ((slopes.sum(0) - share * sample.players) / along.sum())
    residual = sample.odd - x @ slopes
    exactly = residual.abs().amax(0) <= 1e-11 * sample.odd.abs().amax(0)  # a game of order two, up to rounding
    variance, degrees = sample.variance(torch.where(exactly, 0.0, residual))
    n, fitted = len(x), sample.players - 1
    return slopes, variance * (n / max(1, n - fitted)), (degrees - fitted).clamp(min=1)


def _adjusted(sample: _Sample, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The Shapley values of a surrogate, and those of its residuals: each is predicted from others."""
    linear = _linear(sample, share)
    if not linear[1].any():  # nothing is left to explain
        return linear
    open_, asked = torch.where(sample.open)[0], torch.where(~sample.open)[0]
    borders = asked[: _FIT // 2]
    inside = open_[: _FIT - len(borders)]  # the order is random, sizes in proportion
    rest = open_[len(inside) :]
    rows = torch.cat([borders, inside])
    fold = torch.full((len(sample.odd),), -1)
    fold[inside] = torch.arange(len(inside)) % _FOLDS

    values = share.expand(sample.players, -1).clone()
    residual = torch.zeros_like(sample.odd)
    unseen = torch.zeros_like(sample.weight)  # the part of a size that a row's surrogate has not seen
    for half in (0, 1):  # settings too come from pairs on which they are not used
        here = fold % 2 == half
        chosen = torch.cat([borders, inside[~here[inside]]])
        rho = _choose(sample, chosen)
        inverse, coefficients = _fit(sample, rows, rho)
        mean = torch.zeros_like(coefficients)
        for number in range(half, min(_FOLDS, len(inside)), 2):
            out = torch.where(fold[rows] == number)[0]
            residual[rows[out]] = torch.linalg.solve(inverse[out][:, out], coefficients[out])
            without = coefficients - inverse[:, out] @ residual[rows[out]]  # as if these had not been there
            without[out] = 0
            mean += without * (len(out) / len(open_))
            _not_seen(sample, unseen, rows[out], rows[fold[rows] != number])
        mine = rest[half::2]
        residual[mine] = sample.odd[mine] - _predict(sample, mine, rows, rho, coefficients)
        mean += coefficients * (len(mine) / len(open_))
        _not_seen(sample, unseen, mine, rows)
        known = _shapley_of_kernel(sample.x[rows], rho).T @ mean
        values += known - known.mean(0)
        # the borders have been asked, so that no surrogate is needed there
        values -= _weighted(sample, _predict(sample, asked, rows, rho, mean), asked)
    values += _weighted(sample, sample.odd[asked], asked)
    values += _weighted(sample, unseen[open_, None] * residual[open_], open_)
    variance, degrees = sample.variance(residual)
    return values, variance, degrees


def _not_seen(sample: _Sample, unseen: Tensor, rows: Tensor, seen: Tensor) -> None:
    """Residuals of these rows stand for what the surrogate has not seen; of what it has seen, none is left."""
    for stratum in sample.strata:
        here = rows[sample.size[rows] == stratum.size]
        unseen[here] = 1 - int((sample.size[seen] == stratum.size).sum()) / stratum.population


def _choose(sample: _Sample, rows: Tensor) -> Tensor:
    """Of some candidates the rho that leave the least variance: first all alike, then more for those who matter more."""
    few = rows[torch.linspace(0, len(rows) - 1, min(len(rows), _TRY)).long()]
    cost = (sample.weight**2 * sample.left * (sample.lever**2).sum(1))[few, None]
    scale = sample.odd.square().mean(0).clamp(min=1e-300)
    best, least = torch.zeros(0), math.inf

    def attempt(relative: Tensor, level: float) -> None:
        nonlocal best, least
        rho = (relative * level / relative.sum()).clamp(max=0.9)
        inverse, coefficients = _fit(sample, few, rho)
        left_out = coefficients / inverse.diagonal()[:, None]
        variance = float((cost * left_out**2 / scale).sum())
        if variance < least:
            best, least = rho, variance

    alike = torch.ones(sample.players, dtype=torch.float64)
    for level in (0.1, 0.4, 0.8, 1.6, 3.2):
        attempt(alike, level)
    matters = _energy(sample, few, best).clamp(min=1e-300)
    level = float(best.sum())
    for power in (0.25, 0.5):
        relative = (matters / matters.max()).pow(power).clamp(min=1e-3)
        for factor in (0.5, 1.0, 2.0):
            attempt(relative, factor * level)
    return best


def _energy(sample: _Sample, rows: Tensor, rho: Tensor) -> Tensor:
    """How much each player matters to the surrogate: the mean square of half the change when he changes sides, (players,)."""
    _, coefficients = _fit(sample, rows, rho)
    x = sample.x[rows]
    energy = torch.zeros(sample.players, dtype=torch.float64)
    plain = _log_kernel(x, x, rho)
    for output in range(coefficients.shape[1]):
        a = coefficients[:, output, None]
        change = torch.zeros_like(x)
        for sign in (1, -1):  # k(x, y) and k(x, -y), of which g is half the difference
            product = torch.exp(sign * plain)
            same, other = rho / (1 + rho), -rho / (1 - rho)  # the factor of j is 1 + rho or 1 - rho
            change += (same - other) * (product @ (a * x)) + sign * x * (same + other) * (product @ a)
        energy += change.square().mean(0) / sample.odd[:, output].square().mean().clamp(min=1e-300)
    return energy


def _fit(sample: _Sample, rows: Tensor, rho: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of the kernel matrix of these pairs, (m, m), and the surrogate's coefficients (m, outputs)."""
    matrix = _kernel(sample.x[rows], sample.x[rows], rho)
    matrix.diagonal().add_(1e-10)
    root = torch.linalg.cholesky(matrix)
    inverse = torch.cholesky_inverse(root)
    return inverse, torch.cholesky_solve(sample.odd[rows], root)


def _predict(sample: _Sample, rows: Tensor, fitted: Tensor, rho: Tensor, coefficients: Tensor) -> Tensor:
    found = torch.zeros(len(rows), coefficients.shape[1], dtype=torch.float64)
    for part in torch.arange(len(rows)).split(_FIT):
        found[part] = _kernel(sample.x[rows[part]], sample.x[fitted], rho) @ coefficients
    return found


def _log_kernel(x: Tensor, y: Tensor, rho: Tensor) -> Tensor:
    """log of k(x, y), less what all pairs have in common."""
    return (x * torch.atanh(rho)) @ y.T


def _kernel(x: Tensor, y: Tensor, rho: Tensor) -> Tensor:
    """The odd part of the product over j of (1 + rho_j x_j y_j), divided by its value at x = y."""
    return _log_kernel(x, y, rho).sinh_() / torch.atanh(rho).sum().sinh()


def _shapley_of_kernel(y: Tensor, rho: Tensor) -> Tensor:
    """The Shapley values of the game S -> _kernel(x, y), (m, players)."""
    nodes, weights = np.polynomial.legendre.leggauss(min(32, y.shape[1] // 2 + 1))
    common = torch.log1p(-(rho**2)).sum() / 2  # what _log_kernel leaves out
    values = torch.zeros_like(y)
    for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
        factor = 1 + rho * y * node
        values += weight * rho * y * torch.exp(factor.log().sum(1, keepdim=True) - common) / factor
    return values / torch.atanh(rho).sum().sinh()
