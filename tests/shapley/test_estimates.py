"""Estimates: without bias, as sure as they say, within their budget, and better the more they know."""

import math

import numpy as np
import pytest
import shap
import torch
import tqdm.auto
from hypothesis import given, settings
from hypothesis import strategies as st

from xaicourse import shapley
from xaicourse.shapley import games
from xaicourse.shapley.regression import _draw, _kernel, _shapley_of_kernel, _strata

from .test_exact import random_table, seeded, table_game

ESTIMATORS = {
    "plain": lambda game, n, seed: shapley.permutation(game, n, orders="plain", generator=seeded(seed)),
    "antithetic": lambda game, n, seed: shapley.permutation(game, n, orders="antithetic", generator=seeded(seed)),
    "stratified": lambda game, n, seed: shapley.permutation(game, n, orders="stratified", generator=seeded(seed)),
    "linear": lambda game, n, seed: shapley.kernel(game, n, surrogate="linear", generator=seeded(seed)),
    "odd": lambda game, n, seed: shapley.kernel(game, n, surrogate="odd", generator=seeded(seed)),
}
each = pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)


def game_of(players=7, terms=25, seed=1):
    return games.unanimity_at_random(players, terms, generator=seeded(seed))


@pytest.mark.timeout(120)
@each
def test_intervals_cover_at_their_rate_and_nothing_is_biased(estimator):
    """1,000 runs of a small game. The linear regression's bias is small beside its error; the others' is none."""
    known, runs = game_of(6, 25, seed=2), 1000
    budget = 300 if estimator is ESTIMATORS["stratified"] else 50 if "kernel" in estimator.__code__.co_names else 120
    results = [estimator(known.game, budget, seed) for seed in range(runs)]
    inside = [(low <= known.values) & (known.values <= high) for low, high in (r.interval(0.95) for r in results)]
    assert 0.93 <= torch.stack(inside).double().mean() <= 0.97
    values = torch.stack([r.values for r in results])
    bias, error = values.mean(0) - known.values, values.std(0)
    assert (bias.abs() < (0.35 if estimator is ESTIMATORS["linear"] else 4 / math.sqrt(runs)) * error).all()
    said = torch.stack([r.standard_errors for r in results]).square().mean(0).sqrt()
    assert ((said / error > 0.85) & (said / error < 1.25)).all()


@each
@given(
    players=st.integers(1, 9), more=st.integers(0, 60), seed=st.integers(0, 2**16), outputs=st.sampled_from([(), (2,)])
)
@settings(max_examples=15, deadline=None)
def test_budgets_are_kept_and_estimates_add_up(estimator, players, more, seed, outputs):
    game = table_game(random_table(players, *outputs, seed=seed))
    budget = 2 + 2 * players * max(1, players - 1) + more
    result = estimator(game, budget, seed)
    assert result.evaluations <= budget and game.evaluations <= budget
    assert result.values.shape == result.standard_errors.shape == (players, *outputs)
    assert (result.gap.abs() < 1e-9).all() and torch.isfinite(result.values).all()
    again = estimator(game, budget, seed)
    assert torch.equal(result.values, again.values), "the generator decides"


@pytest.mark.parametrize("estimator", ["antithetic", "linear", "odd"])
def test_pairs_are_exact_up_to_order_two(estimator):
    together = torch.randn(12, 12, generator=seeded(), dtype=torch.float64)
    known = games.pairwise(together + together.T)
    result = ESTIMATORS[estimator](known.game, 60, 0)
    torch.testing.assert_close(result.values, known.values, rtol=0, atol=1e-10)
    assert result.standard_errors.max() < 1e-10


@pytest.mark.parametrize("surrogate", ["linear", "odd"])
def test_all_coalitions_give_the_exact_values(surrogate):
    table = random_table(8)
    result = shapley.kernel(table_game(table), 1000, surrogate=surrogate)
    torch.testing.assert_close(result.values, shapley.exact(table_game(table)).values, rtol=0, atol=1e-12)
    assert result.evaluations == 256 and not result.standard_errors.any()


def test_the_linear_regression_of_all_coalitions_is_shaps():
    table = random_table(9)
    powers = 1 << np.arange(9)
    explainer = shap.KernelExplainer(lambda rows: table.numpy()[(rows > 0.5) @ powers], np.zeros((1, 9)))
    theirs = explainer.shap_values(np.ones((1, 9)), nsamples=2**9, l1_reg=False, silent=True)[0]
    ours = shapley.kernel(table_game(table), 2**9, surrogate="linear").values
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-8)


def test_what_is_known_of_a_game_lowers_the_error():
    known = game_of(12, 60, seed=3)
    errors = {}
    for name in ("antithetic", "linear", "odd"):
        results = [ESTIMATORS[name](known.game, 300, seed) for seed in range(10)]
        errors[name] = torch.stack([r.values - known.values for r in results]).square().mean().sqrt().item()
    assert errors["odd"] < 0.75 * errors["linear"] and errors["linear"] < 0.75 * errors["antithetic"]


def test_errors_fall_like_one_over_the_root_of_the_evaluations():
    known = game_of(8, 40)
    few, many = (
        torch.stack([shapley.permutation(known.game, n, generator=seeded(s)).values - known.values for s in range(60)])
        for n in (200, 3200)
    )
    assert 3.2 < few.square().mean().sqrt() / many.square().mean().sqrt() < 5


def test_more_pairs_than_a_surrogate_is_fitted_to_are_used_too(monkeypatch):
    monkeypatch.setattr("xaicourse.shapley.regression._FIT", 64)
    known = game_of(10, 60)
    results = [ESTIMATORS["odd"](known.game, 500, seed) for seed in range(60)]
    error = torch.stack([r.values - known.values for r in results])
    said = torch.stack([r.standard_errors for r in results]).square().mean().sqrt()
    assert 0.8 < said / error.square().mean().sqrt() < 1.25
    assert (error.mean(0).abs() < 4 * error.std(0) / math.sqrt(60)).all()


# The parts


@given(seed=st.integers(0, 2**16), players=st.integers(1, 8))
@settings(max_examples=20, deadline=None)
def test_the_surrogates_values_are_known_exactly(seed, players):
    rho = 0.9 * torch.rand(players, generator=seeded(seed), dtype=torch.float64) + 0.01
    y = torch.where(torch.rand(1, players, generator=seeded(seed + 1)) < 0.5, 1.0, -1.0).double()
    x = shapley.coalitions(players).double() * 2 - 1
    expected = shapley.exact(table_game(_kernel(x, y, rho)[:, 0])).values
    torch.testing.assert_close(_shapley_of_kernel(y, rho)[0], expected, rtol=0, atol=1e-12)


@given(players=st.integers(2, 40), pairs=st.integers(0, 3000))
@settings(max_examples=60, deadline=None)
def test_the_budget_is_shared_out_within_what_there_is(players, pairs):
    pairs += players
    strata = _strata(players, pairs)
    assert sum(s.count for s in strata) == min(pairs, sum(s.population for s in strata))
    assert all(min(2, s.population) <= s.count <= s.population for s in strata)
    assert sum(s.population for s in strata) == 2 ** (players - 1) - 1


@pytest.mark.parametrize(("players", "pairs"), [(9, 100), (10, 400), (10, 511), (30, 200)])
def test_no_pair_is_drawn_twice_and_all_are_as_likely(players, pairs):
    strata = _strata(players, pairs)
    coalitions, size = _draw(players, strata, seeded())
    assert torch.equal(coalitions.sum(1), size)
    both = torch.cat([coalitions, ~coalitions])
    assert len(torch.unique(both, dim=0)) == 2 * pairs
    present = sum(_draw(players, strata, seeded(s))[0][size < players / 2].double().mean(0) for s in range(100)) / 100
    assert (present - present.mean()).abs().max() < 0.03


def test_a_standard_error_that_may_be_far_too_small_says_so():
    """The trap: only all twelve together are worth something, so that in five orders at least seven players add nothing."""
    together = shapley.Game(lambda present: 100 * present.all(1), 12)
    few = shapley.permutation(together, 60, orders="plain", generator=seeded())
    nothing = (few.values == 0) & (few.standard_errors == 0)
    assert nothing.sum() >= 7 and few.doubtful.all()
    assert f"12 standard errors are doubtful: degrees of freedom from 4 on, {nothing.sum()} are 0 by the draws" in repr(
        few
    )

    many = shapley.permutation(together, 600, orders="plain", generator=seeded())
    assert not many.doubtful.any() and "doubtful" not in repr(many)
    wide = shapley.Game(lambda present: 100 * present.all(1), 100)
    never_last = shapley.permutation(wide, 40 * 99 + 2, orders="plain", generator=seeded())
    assert torch.equal(never_last.doubtful, never_last.values == 0) and never_last.doubtful.sum() >= 60
    assert "are 0 by the draws alone" in repr(never_last) and "degrees" not in repr(never_last)


def test_what_is_not_left_to_chance_is_not_in_doubt():
    together = torch.randn(8, 8, generator=seeded(), dtype=torch.float64)
    pairwise = games.pairwise(together + together.T).game
    for result in (
        shapley.exact(pairwise),
        shapley.kernel(pairwise, 40, surrogate="linear", generator=seeded()),
        shapley.kernel(game_of(8).game, 256),
    ):
        assert not result.standard_errors.any() and not result.doubtful.any() and "doubtful" not in repr(result)


def test_results_of_several_outputs_say_which_standard_errors_are_doubtful():
    both = shapley.Game(lambda present: torch.stack([present.all(1), present[:, 0]], 1), 6)
    result = shapley.permutation(both, 400, generator=seeded())
    assert result.doubtful.tolist() == [[False, True]] * 6, "one player decides alone: all draws say the same"


# While they come


@pytest.mark.parametrize("orders", ["plain", "antithetic", "stratified"])
def test_running_orders_end_where_the_estimate_ends(orders):
    known = game_of()
    results = list(shapley.running(shapley.permutation, known.game, 1000, every=100, orders=orders, generator=seeded()))
    assert len(results) >= 8
    counts = [r.evaluations for r in results]
    assert counts == sorted(set(counts))
    at_once = shapley.permutation(known.game, 1000, orders=orders, generator=seeded())
    assert results[-1].evaluations == at_once.evaluations
    torch.testing.assert_close(results[-1].values, at_once.values)
    torch.testing.assert_close(results[-1].standard_errors, at_once.standard_errors)


def test_a_running_regression_ends_where_the_estimate_ends_and_can_be_stopped():
    known = game_of(9, 60)
    results = list(shapley.running(shapley.kernel, known.game, 300, every=50, generator=seeded()))
    assert [r.evaluations for r in results][-1] == 300 and len(results) == 6
    torch.testing.assert_close(results[-1].values, shapley.kernel(known.game, 300, generator=seeded()).values)
    assert results[0].standard_errors.max() > results[-1].standard_errors.max()
    fresh = game_of(9, 60).game
    next(shapley.running(shapley.kernel, fresh, 300, every=50, generator=seeded()))
    assert fresh.evaluations <= 60


@pytest.mark.parametrize("estimator", [shapley.permutation, shapley.kernel])
def test_an_interrupted_estimate_returns_what_stands(estimator):
    known = game_of(8, 40)

    def value(present):
        if game.evaluations > 100:
            raise KeyboardInterrupt
        return known.game.value(present)

    game = shapley.Game(value, 8, chunk=30)
    result = estimator(game, 200, generator=seeded())
    assert 60 <= result.evaluations <= 160 and abs(result.gap) < 1e-9
    assert ((result.values - known.values).abs() < 6 * result.standard_errors).all()

    def at_once(present):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        estimator(shapley.Game(at_once, 8), 200)


def test_a_progress_bar_counts_evaluations_if_asked_for(monkeypatch, capsys):
    bars = []

    class Bar(tqdm.auto.tqdm):
        def __init__(self, **settings):
            self.steps = []
            bars.append(self)
            super().__init__(**settings)

        def update(self, n=1):
            self.steps.append(n)
            super().update(n)

    monkeypatch.setattr(tqdm.auto, "tqdm", Bar)
    for work, total in [
        (lambda game: shapley.exact(game, progress=True), 128),
        (lambda game: shapley.banzhaf(game, progress=True), 128),
        (lambda game: shapley.interactions(game, progress=True), 128),
        (lambda game: shapley.owen(game, torch.tensor([0, 0, 1, 1, 1, 2, 2]), progress=True), 2 + 16 + 32 + 16),
        (lambda game: shapley.permutation(game, 100, progress=True), 98),
        (lambda game: shapley.kernel(game, 100, progress=True), 100),
        (lambda game: list(shapley.running(shapley.kernel, game, 100, progress=True)), 100),
    ]:
        known = game_of().game
        game = shapley.Game(known.value, 7, chunk=8)
        work(game)
        bar = bars.pop()
        assert bar.total == total and sum(bar.steps) == game.evaluations and max(bar.steps) <= 8
        assert bar.disable or bar.n == game.evaluations
        assert not bars
    assert "0/128 [" in capsys.readouterr().err
    shapley.kernel(game_of().game, 100)
    assert not bars and not capsys.readouterr().err


def test_a_bar_goes_when_one_stops_looking(monkeypatch):
    bars = []
    monkeypatch.setattr(tqdm.auto, "tqdm", lambda **settings: bars.append(tqdm.tqdm(**settings)) or bars[-1])
    game = game_of(9, 60).game
    results = shapley.running(shapley.kernel, game, 300, every=50, progress=True)
    next(results)
    (bar,) = bars
    asked = bar.n
    assert asked > 0 and not bar.disable
    results.close()
    assert bar.disable  # closed
    game(shapley.coalitions(9))
    assert bar.n == asked


@pytest.mark.parametrize("orders", ["plain", "antithetic", "stratified"])
def test_orders_of_many_players_are_asked_a_chunk_at_a_time(orders):
    sizes = []

    class Watched(shapley.Game):
        def __call__(self, coalitions):
            sizes.append(len(coalitions))
            return super().__call__(coalitions)

    game = Watched(lambda present: present.double().sum(1), 40, chunk=64)
    result = shapley.permutation(game, 2 + 2 * 39 * 40, orders=orders, generator=seeded())
    most = 2 * 39 if orders == "stratified" else 64  # of two round tables, one seat to start from at a time
    assert max(sizes) <= most
    torch.testing.assert_close(result.values, torch.ones(40, dtype=torch.float64))


def test_regression_works_with_more_coalitions_of_a_size_than_a_float_can_count():
    worth = torch.arange(1100, dtype=torch.float64)
    result = shapley.kernel(games.additive(worth).game, 4000, surrogate="linear", generator=seeded())
    torch.testing.assert_close(result.values, worth, rtol=0, atol=1e-6)


def test_budgets_may_be_numpys_numbers():
    game = game_of().game
    for estimator in (shapley.permutation, shapley.kernel):
        expected = estimator(game, 100, generator=seeded())
        for budget in np.array([100]):
            result = estimator(game, budget, generator=seeded())
            assert torch.equal(result.values, expected.values) and type(result.evaluations) is int
            assert len(list(shapley.running(estimator, game, budget))) > 1


# Bad input


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda g: shapley.permutation(g, 25), ValueError, r"at least 26 \(nobody, everyone and two draws of 12"),
        (lambda g: shapley.permutation(g, 13, orders="plain"), ValueError, "at least 14"),
        (lambda g: shapley.permutation(g, 85, orders="stratified"), ValueError, "at least 86"),
        (lambda g: shapley.kernel(g, 15), ValueError, r"at least 16 \(nobody, everyone and 7 pairs"),
        (lambda g: shapley.kernel(g, 100.0), TypeError, "evaluations must be an int, got float"),
        (lambda g: shapley.permutation(g, True), TypeError, "evaluations must be an int, got bool"),
        (lambda g: shapley.permutation(g, 100, orders="random"), ValueError, "orders must be one of 'plain'"),
        (lambda g: shapley.kernel(g, 100, surrogate="cubic"), ValueError, "surrogate must be one of 'odd'"),
        (lambda g: shapley.kernel(g, 100, generator=3), TypeError, "generator must be a torch.Generator"),
        (lambda g: shapley.permutation(g.value, 100), TypeError, "game must be a shapley.Game"),
        (lambda g: shapley.running(shapley.exact, g, 100), ValueError, "estimator must be shapley.permutation or"),
        (lambda g: shapley.running(shapley.kernel, g, 100, every=0), ValueError, "every must be at least 1"),
    ],
)
def test_bad_arguments_are_named_before_any_work(call, error, message):
    game = game_of().game
    with pytest.raises(error, match=message):
        call(game)
    assert game.evaluations == 0
