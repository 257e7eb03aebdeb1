"""Games in which other data stand for what is absent: the marginal and two conditional ones (lectures 05 and 06, claim S9).

Formula (9) of the slides shares out ``f(x) - E[f(X)]``: nobody is worth the mean score of the data. Between nobody and everyone
there is a choice. With S the features that are present, the others absent, and X the data:

    marginal       v(S) = E[f(x_S, X_absent)]              absent features are drawn whatever is present
    conditional    v(S) = E[f(x_S, X_absent) | X_S = x_S]  absent features fit what is present

The first asks the model about items that may not exist, the second gives credit to features that the model ignores, if they
tell something of others. The conditional distribution is not known but estimated: by a Gaussian, or by the nearest samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from ..arguments import check_count, check_finite, check_generator, kind
from ..scores import Model, Target, check_model, check_target
from .game import Game, absent_to_false, check_input, check_players, score_of

__all__ = ["Given", "conditional_game", "marginal_game"]

Given = Literal["gaussian", "nearest"]
Draw = Callable[[Tensor], tuple[Tensor, Tensor | None]]  # rows (n, K, D) and weights (n, K), from who is present (n, D)


def marginal_game(
    model: Model,
    x: Tensor,
    target: Target | None,
    *,
    background: Tensor,
    players: Tensor | None = None,
    chunk: int = 4096,
    cache: bool = True,
) -> Game:
    """The game in which absent features come from the background, whatever is present: as in shap.

    model       an nn.Module in evaluation mode, or a function of tensors; it is not changed
    x           one input, (1, …): a row of a table (1, D), an image (1, C, H, W), a time series (1, C, T), tokens (1, T)
    target      which score: a class index, a function from outputs (n, …) to scores (n,), or None for all outputs (n, outputs)
    background  samples, (M, …) in the shape and dtype of the input: ``v(S)`` is the mean score over all of them
    players     which player each feature belongs to, as in `masking_game`
    chunk       how many inputs the model sees at once; a coalition has M of them

    Returns a `Game`.

    Raises ValueError or TypeError if an argument is not as above; when asked, if the model's outputs do not fit.

    Lundberg & Lee, "A Unified Approach to Interpreting Model Predictions", NeurIPS 2017.
    """
    owner, target = _check(model, x, target, background, players, chunk)
    x, background = x.detach(), background.detach().to(x.device)

    def value(coalitions: Tensor) -> Tensor:
        present = absent_to_false(coalitions, owner)
        mixed = torch.where(present[:, None], x, background).flatten(0, 1)
        return _mean_score(model, mixed, target, chunk, len(coalitions))

    return Game(value, int(owner.max()) + 1, chunk=max(1, chunk // len(background)), cache=cache, device=x.device)


def conditional_game(
    model: Model,
    x: Tensor,
    target: Target | None,
    *,
    background: Tensor,
    given: Given = "gaussian",
    samples: int = 100,
    players: Tensor | None = None,
    generator: torch.Generator | None = None,
    chunk: int = 4096,
    cache: bool = True,
) -> Game:
    """The game in which absent features come from what is known of them, given those that are present.

    Arguments as in `marginal_game`, and

    x           a row of a table, (1, D), floats
    background  (M, D), M at least 2
    given       "gaussian": the data are taken for a Gaussian with the background's mean and covariance, and ``samples`` draws
                of the absent features given the present ones are averaged. The same draws serve all coalitions, their mean is
                exactly the conditional one: for a linear model nothing is left to chance.
                "nearest": the absent features of the ``samples`` background rows that are nearest in the present ones, in units
                of each feature's standard deviation. Rows that are equally near share what room is left: the order of the
                background does not matter, and where nothing is present, or nothing that varies, all of it counts
    samples     how many; for "nearest" at most M
    generator   where the draws come from; None is torch's global one

    Returns a `Game`. A draw y of all features becomes one of the absent given the present ones by
    ``y_a + C_ap C_pp^-1 (x_p - y_p)``, with C the covariance.

    Raises ValueError or TypeError if an argument is not as above.

    Aas, Jullum & Løland, "Explaining individual predictions when features are dependent", Artificial Intelligence 2021.
    """
    owner, target = _check(model, x, target, background, players, chunk)
    if x.dim() != 2 or not x.is_floating_point():
        raise ValueError(f"x must be a row of a table, floats of shape (1, D), got {kind(x)}")
    if len(background) < 2:
        raise ValueError("background must have at least two samples, got 1")
    if given not in get_args(Given):
        raise ValueError(f"given must be one of {', '.join(map(repr, get_args(Given)))}, got {given!r}")
    most = {"most": len(background), "most_is": "the size of the background"} if given == "nearest" else {}
    check_count("samples", samples, least=1 if given == "nearest" else 2, **most)  # type: ignore[arg-type]
    check_generator(generator)
    x, background = x.detach(), background.detach().to(x.device)
    if given == "gaussian":
        draw = _gaussian(x, background, samples, generator)
        each = samples
    else:
        draw = _nearest(x, background, samples)
        each = len(background)

    def value(coalitions: Tensor) -> Tensor:
        present = absent_to_false(coalitions, owner)
        rows, weights = draw(present)
        mixed = torch.where(present[:, None], x, rows).flatten(0, 1)
        return _mean_score(model, mixed, target, chunk, len(present), weights)

    return Game(value, int(owner.max()) + 1, chunk=max(1, chunk // each), cache=cache, device=x.device)


def _gaussian(x: Tensor, background: Tensor, samples: int, generator: torch.Generator | None) -> Draw:
    """What stands for the absent features: conditional draws, all of the same weight."""
    data = background.double().cpu()
    mean, covariance = data.mean(0), torch.atleast_2d(data.T.cov())
    device = generator.device if generator is not None else "cpu"
    noise = torch.randn(samples, data.shape[1], generator=generator, device=device, dtype=torch.float64).cpu()
    values, vectors = torch.linalg.eigh(covariance)
    joint = mean + (noise - noise.mean(0)) @ (vectors * values.clamp(min=0).sqrt()).T
    spread = covariance.diagonal().clamp(min=1e-300)
    row = x.double().cpu()

    def draw(present: Tensor) -> tuple[Tensor, None]:
        z = present.cpu().double()
        known = covariance * z[:, :, None] * z[:, None]  # absent features stand aside
        known = known + torch.diag_embed((1 - z) * spread + 1e-9 * z * spread)
        difference = (row - joint)[None] * z[:, None]
        shift = torch.linalg.solve(known, difference.mT).mT @ covariance
        return (joint + shift).to(x), None

    return draw


def _nearest(x: Tensor, background: Tensor, samples: int) -> Draw:
    """What stands for the absent features: the nearest rows, and those as near as the last of them."""
    data = _precise(background)
    scale = data.std(0)
    rounding = 1e3 * torch.finfo(data.dtype).eps
    constant = scale <= rounding * data.abs().amax(0)
    distance = torch.where(constant, 0, (data - x) / torch.where(constant, 1, scale)) ** 2  # (M, D)

    def draw(present: Tensor) -> tuple[Tensor, Tensor]:
        away = present.to(distance) @ distance.T
        last = away.kthvalue(samples, dim=1, keepdim=True).values
        nearer = away < last * (1 - rounding)
        tied = (away <= last * (1 + rounding)) & ~nearer
        weight = nearer + tied * (samples - nearer.sum(1, keepdim=True)) / tied.sum(1, keepdim=True)
        rows = away.argsort(dim=1, stable=True)[:, : int((nearer | tied).sum(1).max())]
        return background[rows], weight.gather(1, rows) / samples

    return draw


def _mean_score(
    model: Model, inputs: Tensor, target: Target | None, chunk: int, coalitions: int, weights: Tensor | None = None
) -> Tensor:
    scores = torch.cat([score_of(model, part, target) for part in inputs.split(chunk)])
    scores = _precise(scores).unflatten(0, (coalitions, -1))
    if weights is None:
        return scores.mean(1)
    return (scores * weights.to(scores).view(*weights.shape, *[1] * (scores.dim() - 2))).sum(1)


def _precise(values: Tensor) -> Tensor:
    """In float64, where the device has it."""
    return values.double() if values.device.type != "mps" else values.float()


def _check(
    model: Model, x: Tensor, target: Target | None, background: Tensor, players: Tensor | None, chunk: int
) -> tuple[Tensor, Target | None]:
    check_model(model)
    check_input(x)
    if not isinstance(background, Tensor) or background.dtype != x.dtype:
        raise TypeError(f"background must be a tensor of the dtype of x, {x.dtype}, got {kind(background)}")
    if background.dim() != x.dim() or background.shape[1:] != x.shape[1:] or len(background) == 0:
        raise ValueError(
            f"background must have shape (M, {', '.join(map(str, x.shape[1:]))}), got {tuple(background.shape)}"
        )
    check_finite("background", background)
    check_count("chunk", chunk)
    return check_players(players, x), check_target(target, 1) if target is not None else None
