"""Games of models: what is removed, who the players are, and what stands for absence."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from xaicourse import removal, shapley

from .test_exact import seeded


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


def network(inputs=3, dtype=torch.float64):
    torch.manual_seed(0)
    layers = [nn.Conv2d(inputs, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4, 5)).to(dtype).eval()


def linear(width, classes=3):
    model = nn.Linear(width, classes).double()
    with torch.no_grad():
        model.weight.copy_(normal(classes, width, seed=5))
    return model.eval()


# Removal


def test_a_linear_models_values_are_weight_times_what_was_removed():
    model, x = linear(6), normal(1, 6)
    game = shapley.masking_game(model, x, 1, removal=removal.baseline(0.5))
    result = shapley.exact(game)
    torch.testing.assert_close(result.values, (model.weight[1] * (x[0] - 0.5)).detach())
    assert abs(result.gap) < 1e-12


@pytest.mark.parametrize("remove", [removal.baseline(0.3), removal.mean(), removal.blur(2.0)])
@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_patches_of_a_photograph_are_removed_as_the_removal_does(remove, chunk):
    model, x = network(), normal(1, 3, 6, 9)
    seen = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    players = shapley.patches(6, 9, 3)
    assert players[0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2] and players[3, 0] == 3
    game = shapley.masking_game(model, x, 2, players=players, removal=remove, chunk=chunk)
    assert game.players == 6
    coalitions = shapley.coalitions(6)[[0, 11, 37, 63]]
    values = game(coalitions)
    assert max(seen) <= chunk
    for coalition, value in zip(coalitions, values, strict=True):
        removed = ~coalition[players][None, None]
        torch.testing.assert_close(value, model(remove(x, removed))[0, 2].detach(), rtol=1e-9, atol=1e-12)


def test_pixels_moments_and_tokens_are_players_by_themselves():
    def mean(x):
        return x.double().flatten(1).sum(1, keepdim=True)

    assert shapley.masking_game(mean, normal(1, 3, 4, 5), 0, removal=removal.baseline(0)).players == 20
    assert shapley.masking_game(mean, normal(1, 2, 7), 0, removal=removal.baseline(0)).players == 7
    series = shapley.masking_game(
        mean, torch.ones(1, 2, 7), 0, players=shapley.intervals(7, 3), removal=removal.baseline(0)
    )
    assert shapley.exact(series).values.tolist() == pytest.approx([6, 4, 4])
    tokens = torch.tensor([[5, 3, 9, 7]])
    words = shapley.masking_game(mean, tokens, 0, players=torch.tensor([-1, 0, 1, -1]), removal=removal.token(0))
    assert shapley.exact(words).values.tolist() == pytest.approx([3, 9])
    assert shapley.exact(words).nobody.item() == 12, "what belongs to nobody stays"


def test_a_removal_of_ones_own_sees_what_is_removed():
    def remove(inputs, removed):
        return torch.where(removed, inputs.flip(1), inputs)

    model, x = linear(4), normal(1, 4)
    result = shapley.exact(shapley.masking_game(model, x, 0, removal=remove))
    torch.testing.assert_close(result.values, (model.weight[0] * (x[0] - x[0].flip(0))).detach())


def test_all_outputs_are_explained_at_once_and_targets_can_be_functions():
    model, x = network(), normal(1, 3, 4, 4)
    options = {"players": shapley.patches(4, 4, 2), "removal": removal.baseline(0.0)}
    all_ = shapley.exact(shapley.masking_game(model, x, None, **options))
    assert all_.values.shape == (4, 5) and all_.gap.shape == (5,)
    one = shapley.exact(shapley.masking_game(model, x, 3, **options))
    torch.testing.assert_close(all_.values[:, 3], one.values)
    difference = shapley.exact(shapley.masking_game(model, x, lambda y: y[:, 3] - y[:, 0], **options))
    torch.testing.assert_close(difference.values, all_.values[:, 3] - all_.values[:, 0])
    index = shapley.exact(shapley.masking_game(model, x, torch.tensor([3]), **options))
    torch.testing.assert_close(index.values, one.values)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_models_of_any_dtype_come_back_as_they_were(dtype):
    model, x = network(dtype=dtype), normal(1, 3, 4, 4, dtype=dtype)
    before, copy_of_x = copy.deepcopy(model.state_dict()), x.clone()
    game = shapley.masking_game(model, x, 0, players=shapley.patches(4, 4, 2), removal=removal.baseline(0.0))
    with torch.no_grad():
        result = shapley.exact(game)
    assert result.values.dtype == torch.float64 and torch.equal(x, copy_of_x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training and all(p.requires_grad and p.grad is None for p in model.parameters())


def test_a_model_that_keeps_its_last_batch_is_as_it_was():
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("last", torch.zeros(1))

        def forward(self, x):
            self.last = x.sum()[None]
            return x

    model = Keeps().eval()
    shapley.exact(shapley.masking_game(model, torch.ones(1, 3), 0, removal=removal.baseline(0)))
    assert torch.equal(model.last, torch.zeros(1))


# Other data


def test_the_marginal_game_shares_out_the_score_less_its_mean_over_the_data():
    model, x, background = linear(5), normal(1, 5), normal(40, 5, seed=1)
    result = shapley.exact(shapley.marginal_game(model, x, 0, background=background, chunk=64))
    torch.testing.assert_close(result.values, (model.weight[0] * (x[0] - background.mean(0))).detach())
    torch.testing.assert_close(result.nobody, model(background)[:, 0].mean().detach())
    torch.testing.assert_close(result.total, (model(x)[0, 0] - model(background)[:, 0].mean()).detach())


def test_the_marginal_game_takes_each_sample_whole():
    def model(x):
        return (x[:, 0] * x[:, 1] * x[:, 2])[:, None]

    x, background = normal(1, 3), normal(7, 3, seed=1)
    for chunk in (1, 4, 1000):
        game = shapley.marginal_game(model, x, 0, background=background, chunk=chunk)
        value = game(torch.tensor([[True, False, False]]))[0]
        torch.testing.assert_close(value, (x[0, 0] * background[:, 1] * background[:, 2]).mean())


def correlated(samples, seed=1):
    root = torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.3, 0.0], [-0.5, 0.2, 0.8]], dtype=torch.float64)
    return normal(samples, 3, seed=seed) @ root.T + torch.tensor([1.0, 2.0, 3.0])


def test_the_gaussian_game_is_exact_for_a_linear_model():
    model, x, background = linear(3), normal(1, 3, seed=2), correlated(500)
    game = shapley.conditional_game(model, x, 0, background=background, samples=10, generator=seeded())
    mean, covariance = background.mean(0), background.T.cov()
    for coalition in shapley.coalitions(3):
        expected = mean.clone()
        here = torch.where(coalition)[0]
        if len(here):
            expected = mean + covariance[:, here] @ torch.linalg.solve(covariance[here][:, here], (x[0] - mean)[here])
        expected = torch.where(coalition, x[0], expected)
        torch.testing.assert_close(game(coalition[None])[0], model(expected[None])[0, 0].detach(), rtol=1e-6, atol=1e-6)
    assert abs(shapley.exact(game).gap) < 1e-12


def test_gaussian_draws_have_the_conditional_spread():
    x, background = normal(1, 3, seed=2), correlated(2000)
    game = shapley.conditional_game(
        lambda rows: rows[:, 1:2] ** 2, x, 0, background=background, samples=20_000, generator=seeded()
    )
    covariance, mean = background.T.cov(), background.mean(0)
    middle = mean[1] + covariance[1, 0] / covariance[0, 0] * (x[0, 0] - mean[0])
    spread = covariance[1, 1] - covariance[1, 0] ** 2 / covariance[0, 0]
    value = game(torch.tensor([[True, False, False]]))[0]
    torch.testing.assert_close(value, middle**2 + spread, rtol=0.03, atol=0.0)


def test_conditional_removal_gives_credit_to_a_feature_that_the_model_ignores():
    def model(rows):
        return rows[:, :1]

    x, background = torch.tensor([[3.0, 4.0, 1.0]]).double(), correlated(800)
    marginal = shapley.exact(shapley.marginal_game(model, x, 0, background=background)).values
    assert marginal[1:].abs().max() < 1e-12
    for how in ("gaussian", "nearest"):
        game = shapley.conditional_game(model, x, 0, background=background, given=how, samples=20, generator=seeded())
        result = shapley.exact(game)
        assert result.values[1] > 0.3 and abs(result.gap) < 1e-9


def test_the_nearest_samples_by_hand():
    background = torch.tensor([[0.0, 10.0], [1.0, 20.0], [2.0, 60.0], [9.0, 90.0]]).double()
    x = torch.tensor([[1.2, 0.0]]).double()
    game = shapley.conditional_game(
        lambda rows: rows[:, 1:], x, 0, background=background, given="nearest", samples=2, generator=seeded()
    )
    values = game(torch.tensor([[True, False], [False, False], [True, True]]))
    torch.testing.assert_close(values, torch.tensor([40.0, 45.0, 0.0]).double())


@given(seed=st.integers(0, 2**16), samples=st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_rows_that_are_equally_near_count_equally_whatever_their_order(seed, samples):
    background = torch.randint(0, 3, (12, 3), generator=seeded(seed)).double()
    background[:, 2] = 1.0  # tells nothing
    x = torch.tensor([[1.0, 2.0, 1.0]]).double()
    options = {"given": "nearest", "samples": samples}

    def model(rows):
        return (rows[:, :1] + 10 * rows[:, 1:2] ** 2).repeat(1, 2)

    order = torch.randperm(12, generator=seeded(seed + 1))
    result = shapley.exact(shapley.conditional_game(model, x, 0, background=background, **options))
    again = shapley.exact(shapley.conditional_game(model, x, 0, background=background[order], **options))
    torch.testing.assert_close(result.values, again.values, rtol=0, atol=1e-10)
    assert abs(result.values[2]) < 1e-10
    torch.testing.assert_close(result.nobody, model(background)[:, 0].mean())
    every = shapley.exact(shapley.conditional_game(model, x, None, background=background, **options))
    torch.testing.assert_close(every.values[:, 1], result.values)


def test_a_tie_at_the_last_place_is_shared_by_hand():
    background = torch.tensor([[1.0, 8.0], [2.0, 30.0], [0.0, 50.0], [5.0, 99.0]]).double()
    x = torch.tensor([[1.0, 0.0]]).double()
    game = shapley.conditional_game(lambda rows: rows[:, 1:], x, 0, background=background, given="nearest", samples=2)
    assert game(torch.tensor([[True, False]]))[0].item() == pytest.approx((8 + (30 + 50) / 2) / 2)


# Bad input

PLAYERS = torch.arange(3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": 3}, TypeError, "model must be an nn.Module or a function"),
        ({"model": linear(3).train()}, ValueError, "evaluation mode"),
        ({"x": torch.ones(2, 3)}, ValueError, r"x must be one input of shape \(1, …\), not empty, got \(2, 3\)"),
        ({"x": torch.ones(1, 3) * float("nan")}, ValueError, "x must be finite"),
        ({"x": [1.0]}, TypeError, "x must be a tensor"),
        ({"target": "cat"}, TypeError, "target must be an int"),
        ({"players": PLAYERS.double()}, TypeError, "players must be a LongTensor"),
        ({"players": torch.arange(4)}, ValueError, r"players must broadcast to an input of shape \(3,\), got \(4,\)"),
        ({"players": torch.tensor([0, 2, 2])}, ValueError, "numbered from 0 without holes"),
        ({"players": torch.tensor([-1, -1, -1])}, ValueError, "numbered from 0"),
        ({"removal": 3}, TypeError, "removal must be a function"),
        ({"chunk": 0}, ValueError, "chunk must be at least 1"),
    ],
)
def test_bad_arguments_of_a_masking_game_are_named(change, error, message):
    arguments = {"model": linear(3), "x": normal(1, 3), "target": 0, "removal": removal.baseline(0)} | change
    with pytest.raises(error, match=message):
        shapley.masking_game(**arguments)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"background": normal(9, 4)}, ValueError, r"background must have shape \(M, 3\).*got \(9, 4\)"),
        ({"background": normal(9, 3).float()}, TypeError, "dtype of x"),
        ({"background": normal(9, 3) * float("inf")}, ValueError, "background must be finite"),
        ({"background": normal(1, 3)}, ValueError, "at least two samples"),
        ({"given": "copula"}, ValueError, "given must be one of 'gaussian', 'nearest'"),
        ({"given": "nearest", "samples": 10}, ValueError, "samples must be from 1 to 9, the size of the background"),
        ({"samples": 1}, ValueError, "samples must be at least 2"),
        ({"generator": 1}, TypeError, "generator"),
        ({"x": normal(1, 3, 2), "background": normal(9, 3, 2)}, ValueError, "x must be a row of a table"),
    ],
)
def test_bad_arguments_of_a_conditional_game_are_named(change, error, message):
    arguments = {"model": linear(3), "x": normal(1, 3), "target": 0, "background": normal(9, 3, seed=1)} | change
    with pytest.raises(error, match=message):
        shapley.conditional_game(**arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: shapley.patches(4, 4, 5), "size must be from 1 to 4, the longer side"),
        (lambda: shapley.intervals(4, 5), "count must be from 1 to 4, the length"),
    ],
)
def test_players_that_do_not_fit_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_target_that_does_not_fit_the_outputs_is_refused_when_asked():
    game = shapley.masking_game(linear(3), normal(1, 3), 7, removal=removal.baseline(0))
    with pytest.raises(ValueError, match="target must be from 0 to 2, got 7"):
        shapley.exact(game)
