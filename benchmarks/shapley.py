"""Shapley values beside shap's and shapiq's: the time of exact ones, and the error of estimates by their evaluations.

Exact values. The game costs nothing (its value is whether player 0 is there), so that what is timed is each library's own
work: making the coalitions and adding up their values. That results are equal is checked on a game of ten players with random
values. shap's explainer gets a model of 0 and 1 and a background of zeros, and compiles itself in its first call, which stands
apart; shapiq's computer evaluates and adds up. On a real model the yardstick is the model alone: as many images, already made,
in batches of the same size.

Estimates. A gradient-boosted model of real data, 16 features, trees of depth 6: interactions go far beyond pairs, of which
pairing would make estimates exact. All coalitions are in a table, from which every contender reads, so that time is what the
estimator itself takes. The error is the Euclidean distance to the exact values over their length, the median of 15 seeds;
evaluations are those that were counted, at most the budget. shap.KernelExplainer works without its selection of features
(l1_reg=False), which is for sparse explanations, and shapiq's KernelSHAP with its pairing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from statistics import median
from typing import Any

import numpy as np
import shap
import torch
from torch import Tensor

from xaicourse import removal, shapley

from .framework import OURS, THREADS, Contender, Goal, Result, Row, Settings, Work, timed
from .networks import images, network

SUBJECT = shapley

Lookup = Callable[[np.ndarray], np.ndarray]
_SMALL = 10


# ------------------------------------------------------------------------------------------------------- exact


def _values(exact: bool) -> Lookup:
    """Values of rows of 0 and 1: free ones, or random ones of ten players."""
    if not exact:
        return lambda rows: rows[:, 0] * 1.0
    table = torch.randn(2**_SMALL, generator=torch.Generator().manual_seed(0), dtype=torch.float64).numpy()
    return lambda rows: table[(rows > 0.5) @ (1 << np.arange(_SMALL))]


def ours(exact: bool, players: int) -> Work:
    """``shapley.exact`` on a game that remembers nothing."""
    players = _SMALL if exact else players
    values = _values(exact)

    def value(present: Tensor) -> Tensor:
        return torch.from_numpy(values(present.numpy())) if exact else present[:, 0].double()

    game = shapley.Game(value, players, cache=False)
    return lambda: shapley.exact(game).values


def shap_exact(exact: bool, players: int) -> Work:
    """shap's exact explainer."""
    players = _SMALL if exact else players
    explainer = shap.explainers.Exact(_values(exact), shap.maskers.Independent(np.zeros((1, players))))
    x = np.ones((1, players))
    return lambda: torch.from_numpy(explainer(x, max_evals=2**players + 1, silent=True).values[0])


def shapiq_exact(exact: bool, players: int) -> Work:
    """shapiq's exact computer."""
    from shapiq import ExactComputer

    players = _SMALL if exact else players
    values = _values(exact)

    def work() -> Tensor:
        found = ExactComputer(values, n_players=players)("SV", order=1)
        return torch.tensor([found[(player,)] for player in range(players)], dtype=torch.float64)

    return work


def ours_on_a_network(exact: bool, players: int, size: int) -> Work:
    """``shapley.exact`` on ``masking_game``: vertical strips of an image."""
    game = shapley.masking_game(
        network("resnet18", size),
        images(1, size),
        0,
        players=shapley.intervals(size, players),
        removal=removal.blur(size / 20),
        cache=False,
    )
    return lambda: shapley.exact(game).values


def network_alone(exact: bool, players: int, size: int) -> Work:
    """The model on as many images."""
    model = network("resnet18", size)
    batch = images(32, size).contiguous(memory_format=torch.channels_last)

    def work() -> Tensor:
        with torch.no_grad():
            return torch.cat([model(batch)[:, 0] for _ in range(max(1, 2**players // 32))])

    return work


# --------------------------------------------------------------------------------------------------- estimates


@cache
def _trees(players: int) -> tuple[Tensor, np.ndarray]:
    """All values of the game of trees, by the coalitions' numbers, and its Shapley values."""
    known = shapley.games.trees(players, depth=6)
    table = torch.cat([values.clone() for _, values in known.game.blocks()])
    return table, known.values.numpy()


class Counted:
    """Values from the table, for rows of 0 and 1; counts them."""

    def __init__(self, players: int) -> None:
        self.table, self.powers, self.evaluations = _trees(players)[0].numpy(), 1 << np.arange(players), 0

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        rows = np.atleast_2d(rows)
        self.evaluations += len(rows)
        return self.table[(rows > 0.5) @ self.powers]


def _our_estimate(players: int, budget: int, seed: int, kind: str) -> tuple[np.ndarray, int]:
    table = _trees(players)[0]
    powers = torch.arange(players)
    game = shapley.Game(lambda present: table[(present.long() << powers).sum(1)], players, cache=False)
    generator = torch.Generator().manual_seed(seed)
    if kind == "antithetic":
        result = shapley.permutation(game, budget, generator=generator)
    else:
        result = shapley.kernel(game, budget, surrogate=kind, generator=generator)  # type: ignore[arg-type]
    return result.values.numpy(), game.evaluations


def _shap_kernel(players: int, budget: int, seed: int) -> tuple[np.ndarray, int]:
    values = Counted(players)
    np.random.seed(seed)  # noqa: NPY002 - shap draws from the global generator
    explainer = shap.KernelExplainer(values, np.zeros((1, players)))
    found = explainer.shap_values(np.ones((1, players)), nsamples=budget - 2, l1_reg=False, silent=True)
    return found[0], values.evaluations


def _shap_permutation(players: int, budget: int, seed: int) -> tuple[np.ndarray, int]:
    values = Counted(players)
    masker = shap.maskers.Independent(np.zeros((1, players)))
    found = shap.explainers.Permutation(values, masker, seed=seed)(np.ones((1, players)), max_evals=budget, silent=True)
    return found.values[0], values.evaluations


def _shapiq(players: int, budget: int, seed: int, name: str) -> tuple[np.ndarray, int]:
    import shapiq

    values = Counted(players)
    settings: dict[str, Any] = {"pairing_trick": True} if name == "KernelSHAP" else {}
    found = getattr(shapiq, name)(n=players, random_state=seed, **settings).approximate(budget, values)
    return np.array([found[(player,)] for player in range(players)]), values.evaluations


_ESTIMATES: Mapping[str, Callable[..., tuple[np.ndarray, int]]] = {
    "ours, kernel (odd)": partial(_our_estimate, kind="odd"),
    "ours, kernel (linear)": partial(_our_estimate, kind="linear"),
    "ours, permutation": partial(_our_estimate, kind="antithetic"),
    "shap, Kernel": _shap_kernel,
    "shap, Permutation": _shap_permutation,
    "shapiq, KernelSHAP": partial(_shapiq, name="KernelSHAP"),
    "shapiq, PermutationSamplingSV": partial(_shapiq, name="PermutationSamplingSV"),
    "shapiq, SVARM": partial(_shapiq, name="SVARM"),
}


@dataclass(frozen=True)
class Estimates:
    """Errors and times of all estimators, by their budgets."""

    name: str
    players: int
    budgets: tuple[int, ...]
    seeds: int
    configuration: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        about = {"players": self.players, "budgets": list(self.budgets), "seeds": self.seeds, "depth": 6}
        object.__setattr__(self, "configuration", about)

    def measure(self, settings: Settings) -> Result:
        """The median error, its quartiles, evaluations and seconds of each contender at each budget; seed by seed in turn."""
        torch.set_num_threads(THREADS)
        logging.getLogger("shap").setLevel(logging.ERROR)
        exact = _trees(self.players)[1]
        result: Result = {"estimates": {}, "unable": {}}
        for budget in self.budgets:
            runs: dict[str, list[tuple[float, int, float]]] = {name: [] for name in _ESTIMATES}
            for seed in range(-1, self.seeds):  # the first one warms up
                for name, estimate in _ESTIMATES.items():
                    if name in result["unable"]:
                        continue
                    try:
                        seconds, (values, asked) = timed(partial(estimate, self.players, budget, max(seed, 0)))  # type: ignore[arg-type]
                    except Exception as error:
                        if name.startswith("ours"):
                            raise
                        result["unable"][name] = f"{type(error).__name__}: {error}"
                        continue
                    if seed >= 0:
                        off = float(np.linalg.norm(values - exact) / np.linalg.norm(exact))
                        runs[name].append((off, asked, seconds))
            result["estimates"][str(budget)] = {
                name: {
                    "error": median(error for error, _, _ in found),
                    "errors": [error for error, _, _ in found],
                    "evaluations": max(asked for _, asked, _ in found),
                    "seconds": median(seconds for _, _, seconds in found),
                }
                for name, found in runs.items()
                if found
            }
        result["goals"] = list(self._goals(result["estimates"]))
        return {**result, "holds": True}

    def _goals(self, found: Result) -> Any:
        """Half of shap's evaluations at equal error, with a tenth of its time."""
        for budget in self.budgets:
            if str(2 * budget) in found:
                for name in ("ours, kernel (odd)", "ours, kernel (linear)"):
                    ours, theirs = found[str(budget)][name]["error"], found[str(2 * budget)]["shap, Kernel"]["error"]
                    goal = f"error {name} at {budget} / shap, Kernel at {2 * budget} <= 1"
                    yield {"goal": goal, "measured": ours / theirs, "met": ours <= theirs}
        for budget in self.budgets:
            for name in ("ours, kernel (odd)", "ours, kernel (linear)"):
                ratio = found[str(budget)]["shap, Kernel"]["seconds"] / found[str(budget)][name]["seconds"]
                goal = f"time shap, Kernel / {name} at {budget} >= 10"
                yield {"goal": goal, "measured": ratio, "met": ratio >= 10}

    def report(self, result: Result) -> str:
        """The row as text: a line for each contender, a column for each budget."""
        lines = ["", f"{self.name}    ({', '.join(f'{k} {v}' for k, v in self.configuration.items())})"]
        if not result["holds"]:
            return f"{lines[1]}\n  does not hold: {result['why']}"
        lines += [f"  unable: {name} ({why})" for name, why in result["unable"].items()]
        lines.append("  median error (evaluations, ms):")
        for name in _ESTIMATES:
            cells = [
                f"{at[name]['error']:9.2e} ({at[name]['evaluations']:4}, {1000 * at[name]['seconds']:6.1f})"
                for at in result["estimates"].values()
                if name in at
            ]
            if cells:
                lines.append(f"  {name:30}" + "  ".join(cells))
        lines.append("")
        for goal in result["goals"]:
            lines.append(f"  {goal['goal']:66} {goal['measured']:8.3f}  {'met' if goal['met'] else 'missed'}")
        return "\n".join(lines)


# -------------------------------------------------------------------------------------------------------- rows


def rows(quick: bool = False) -> list[Row | Estimates]:
    """Exact values of games that cost nothing, of a network, and estimates."""
    found: list[Row | Estimates] = [_free(players) for players in ((12,) if quick else (18, 20))]
    found.append(_real(6 if quick else 10, 32 if quick else 96))
    if quick:
        found.append(Estimates("estimates, trees", players=8, budgets=(64, 128), seeds=2))
    else:
        found.append(Estimates("estimates, trees", players=16, budgets=(256, 512, 1024, 2048), seeds=15))
    return found


def _free(players: int) -> Row:
    return Row(
        name=f"exact, free game, {players} players",
        contenders={
            OURS: Contender(partial(ours, players=players)),
            "shap": Contender(partial(shap_exact, players=players), settings="compiled in its first call"),
            "shapiq": Contender(partial(shapiq_exact, players=players), tried="its API is young"),
        },
        tolerance=1e-9,
        goals=(Goal("time", "shap", OURS, at_least=5), Goal("time", "shapiq", OURS, at_least=100)),
        configuration={"players": players},
    )


def _real(players: int, size: int) -> Row:
    work = {"players": players, "size": size}
    return Row(
        name=f"exact, resnet18, {players} players",
        contenders={
            OURS: Contender(partial(ours_on_a_network, **work), settings="strips removed by blur"),
            "model alone": Contender(
                partial(network_alone, **work), agrees=False, settings="as many images, made before"
            ),
        },
        tolerance=1e-9,
        goals=(Goal("time", OURS, "model alone", at_most=1.25),),
        configuration={**work, "batch": 32, "dtype": "float32"},
    )
