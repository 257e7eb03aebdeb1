"""Pertinent positives and negatives: what must stay for the answer to stay, and what must be added for it to change
(lecture 04; slides of section 1).

Amit Dhurandhar, Pin-Yu Chen, Ronny Luss, Chun-Chen Tu, Paishun Ting, Karthikeyan Shanmugam and Payel Das, "Explanations based
on the Missing: Towards Contrastive Explanations with Pertinent Negatives", NeurIPS 2018.

Both are found by the same search. A perturbation d lives in a box that says what is allowed, and minimises

    c * max(margin, -kappa) + beta |d|_1 + |d|_2^2 + gamma |z - AE(z)|_2^2,

where z is what the model sees, and the margin is positive as long as the goal is missed. Proximal gradient steps shrink (for
the first norm) and project (onto the box). Where c is large the gradient is that of the margin, and a step of fixed length
either overshoots or is too short for the other terms, so that a step is as long as it may be for its largest change to be
``rate``. The constant c is found by bisection, for each item by itself; the search for every second one goes on from the best
perturbation so far, the others start anew. What is returned was put to the model once more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .arguments import check_count, check_finite, check_generator, check_positive, check_switch, check_weight, kind
from .progress import bar
from .removal import Removal, baseline, prepare
from .scores import Model, check_inputs, check_model, check_outputs, check_target, gradient, pick, run, unchanged

__all__ = ["Contrast", "pertinent_negative", "pertinent_positive"]

Advance = Callable[..., object]

_MOMENTUM = 0.8
_LONGEST = 0.25  # half of what |d|_2^2 alone allows
_HALVINGS = 12


@dataclass(frozen=True)
class Contrast:
    """What was found for each of N items, and what the model said of it afterwards.

    found          BoolTensor (N,); where it is False, ``perturbation`` is 0 and the distances are NaN
    perturbation   (N, …) d: what is added (negative), what is kept (positive)
    picture        (N, …) what the model saw: inputs + d (negative), what stands for "deleted" + d (positive)
    scores_before, scores_after    (N, classes), the model's outputs for the inputs and for ``picture``
    class_before, class_after      LongTensor (N,), the class of the highest score
    pixels         LongTensor (N,), how many values of d are not 0
    l1, l2         (N,), the first and the second norm of d
    implausibility (N,), the squared distance of ``picture`` from what the autoencoder makes of it; NaN without one
    constant       (N,), the c with which it was found
    """

    found: Tensor
    perturbation: Tensor
    picture: Tensor
    scores_before: Tensor
    scores_after: Tensor
    class_before: Tensor
    class_after: Tensor
    pixels: Tensor
    l1: Tensor
    l2: Tensor
    implausibility: Tensor
    constant: Tensor


@dataclass(frozen=True)
class _Settings:
    beta: float
    gamma: float
    kappa: float
    steps: int
    searches: int
    rate: float


@dataclass(frozen=True)
class _Task:
    """The box of d, where d starts, what it is added to, how far the model is from the goal, margin(outputs) (n,), and
    a d that is worth a try though it is large.
    """

    base: Tensor
    low: Tensor
    high: Tensor
    start: Tensor
    margin: Callable[[Tensor], Tensor]
    whole: Tensor | None = None


def pertinent_negative(
    model: Model,
    inputs: Tensor,
    target: int | Tensor | None = None,
    *,
    towards: int | Tensor | None = None,
    removal: Removal | None = None,
    autoencoder: Model | None = None,
    beta: float = 0.1,
    gamma: float = 1.0,
    kappa: float = 0.0,
    steps: int = 40,
    searches: int = 7,
    rate: float = 0.2,
    generator: torch.Generator | None = None,
    chunk: int = 128,
    progress: bool = False,
) -> Contrast:
    """The smallest addition to each input that takes its class away.

    inputs       (N, …) of a float dtype, values in [0, 1]
    target       the class that must go: an int, a LongTensor (N,), or None for the one that the model says
    towards      the class that must come; None: any other
    removal      what stands for "deleted" (see ``xaicourse.removal``), by default black. To add is to move away from it: with
                 black 0 <= d <= 1 - x. A value that equals what stands for "deleted" may move either way
    autoencoder  maps inputs to inputs; with it gamma counts
    beta, gamma, kappa    weights of |d|_1 and of |z - AE(z)|_2^2, and the margin in scores by which the class must be lost
    steps, searches       proximal gradient steps for each constant c, and how many constants are tried
    rate         the largest change of a value in the first step; it falls to 0 by the last
    generator    if given, the search starts at a random addition, anywhere in the box; otherwise at none
    chunk        items at a time
    progress     show a progress bar, where tqdm is installed

    z = x + d, and margin = score of target - highest other score (with towards: highest other score - score of towards). Where
    the model does not say the target, nothing has to be added. Every item is searched by itself. Not finding one is a result:
    see ``Contrast.found``. TypeError or ValueError for bad arguments. Dhurandhar et al. 2018, NeurIPS, equation (1); the box of
    other removals as in Dhurandhar et al. 2019, arXiv:1906.00117.
    """
    settings = _check(model, inputs, autoencoder, beta, gamma, kappa, steps, searches, rate, generator, chunk, progress)
    with torch.inference_mode(False), torch.no_grad(), unchanged(model), unchanged(autoencoder or model):
        inputs = inputs.detach().clone()
        before = _before(model, inputs, chunk)
        lost = _classes("target", target, before)
        gradient(model, inputs[:1], lost[:1])  # refuses a model through which no gradient comes: nothing would be found
        wanted = None if towards is None else _classes("towards", towards, before)
        if wanted is not None and bool((wanted == lost).any()):
            raise ValueError("towards must differ from target: an input cannot leave a class and stay in it")
        deleted = _deleted(removal, inputs)
        low = torch.where(inputs > deleted, torch.zeros_like(inputs), -inputs)
        high = torch.where(inputs < deleted, torch.zeros_like(inputs), 1 - inputs)
        start = _random_start(inputs, low, high, generator)

        def task(part: slice) -> _Task:
            if wanted is None:
                return _Task(inputs[part], low[part], high[part], start[part], lambda out: _ahead(out, lost[part]))
            return _Task(inputs[part], low[part], high[part], start[part], lambda out: -_ahead(out, wanted[part]))

        return _search(model, autoencoder, before, task, settings, chunk, progress)


def pertinent_positive(
    model: Model,
    inputs: Tensor,
    target: int | Tensor | None = None,
    *,
    removal: Removal | None = None,
    autoencoder: Model | None = None,
    beta: float = 0.1,
    gamma: float = 1.0,
    kappa: float = 0.0,
    steps: int = 40,
    searches: int = 7,
    rate: float = 0.2,
    generator: torch.Generator | None = None,
    chunk: int = 128,
    progress: bool = False,
) -> Contrast:
    """The smallest part of each input that has its class when all else is deleted.

    target       the class that must stay: an int, a LongTensor (N,), or None for the one that the model says
    generator    if given, the search starts at a random part of the input; otherwise at nothing

    The other arguments, and what comes back, are as in ``pertinent_negative``. With b for what stands for "deleted": z = b + d,
    d lies between 0 and x - b (with black 0 <= d <= x), and margin = highest other score - score of target. If b alone has the
    class already, the smallest part is nothing. TypeError or ValueError for bad arguments. Dhurandhar et al. 2018, NeurIPS,
    equation (2).
    """
    settings = _check(model, inputs, autoencoder, beta, gamma, kappa, steps, searches, rate, generator, chunk, progress)
    with torch.inference_mode(False), torch.no_grad(), unchanged(model), unchanged(autoencoder or model):
        inputs = inputs.detach().clone()
        before = _before(model, inputs, chunk)
        kept = _classes("target", target, before)
        gradient(model, inputs[:1], kept[:1])
        deleted = _deleted(removal, inputs)
        there = inputs - deleted
        low, high = there.clamp(max=0), there.clamp(min=0)
        start = _random_start(inputs, low, high, generator)

        def task(part: slice) -> _Task:
            margin = lambda out: -_ahead(out, kept[part])  # noqa: E731
            return _Task(deleted[part], low[part], high[part], start[part], margin, there[part])

        return _search(model, autoencoder, before, task, settings, chunk, progress)


# ------------------------------------------------------------------------------------------------------------
# The search
# ------------------------------------------------------------------------------------------------------------


class _Best:
    """For each item the reached perturbation of the lowest cost so far."""

    def __init__(self, like: Tensor) -> None:
        self.cost = like.new_full((len(like),), math.inf)
        self.perturbation = torch.zeros_like(like)
        self.constant = torch.full_like(self.cost, math.nan)

    def offer(self, reached: Tensor, cost: Tensor, d: Tensor, c: Tensor) -> None:
        better = reached & (cost < self.cost)
        self.cost = torch.where(better, cost, self.cost)
        self.constant = torch.where(better, c, self.constant)
        self.perturbation = torch.where(_wide(better, d), d, self.perturbation)


def _search(
    model: Model,
    autoencoder: Model | None,
    before: Tensor,
    task_of: Callable[[slice], _Task],
    settings: _Settings,
    chunk: int,
    progress: bool,
) -> Contrast:
    found = []
    with bar(len(before) * settings.searches, "searches", progress) as advance:
        for first in range(0, len(before), chunk):
            part = slice(first, first + chunk)
            found.append(_verified(model, autoencoder, task_of(part), before[part], settings, advance))
    names = [field.name for field in fields(Contrast)]
    return Contrast(**{name: torch.cat([getattr(piece, name) for piece in found]) for name in names})


def _verified(
    model: Model, autoencoder: Model | None, task: _Task, before: Tensor, settings: _Settings, advance: Advance
) -> Contrast:
    """Search, then ask the model: what it does not confirm was not found."""
    best = _bisect(model, autoencoder, task, settings, advance)
    _shorten(model, autoencoder, task, best, settings)
    with torch.no_grad():
        d = best.perturbation
        after = run(model, task.base + d)
        found = _reached(task.margin(after), settings) & best.cost.isfinite()
        d = torch.where(_wide(found, d), d, torch.zeros_like(d))
        picture = task.base + d
        after = run(model, picture)
        check_outputs(after, len(d), None)
        nothing = d.new_full((len(d),), math.nan)
        off = nothing if autoencoder is None else _squares(run(autoencoder, picture) - picture)
    return Contrast(
        found=found,
        perturbation=d,
        picture=picture,
        scores_before=before,
        scores_after=after,
        class_before=before.argmax(1),
        class_after=after.argmax(1),
        pixels=(d != 0).flatten(1).sum(1),
        l1=torch.where(found, d.abs().flatten(1).sum(1), nothing),
        l2=torch.where(found, _squares(d).sqrt(), nothing),
        implausibility=torch.where(found, off, nothing),
        constant=torch.where(found, best.constant, nothing),
    )


def _bisect(model: Model, autoencoder: Model | None, task: _Task, settings: _Settings, advance: Advance) -> _Best:
    best = _Best(task.start)
    c = torch.ones_like(best.cost)
    if task.whole is not None:
        margin, cost, _ = _look(model, autoencoder, task, task.whole, c, settings)
        best.offer(_reached(margin, settings), cost, task.whole, c)
    least, most = torch.zeros_like(c), torch.full_like(c, math.inf)
    for number in range(settings.searches):
        again = _wide(best.cost.isfinite() & (number % 2 == 1), task.start)
        start = torch.where(again, best.perturbation, task.start)
        reached = _descend(model, autoencoder, task, start, c, best, settings)
        most = torch.where(reached, torch.minimum(most, c), most)
        least = torch.where(reached, least, torch.maximum(least, c))
        c = torch.where(most.isinf(), 10 * c, (least + most) / 2)
        advance(len(c))
    return best


def _descend(
    model: Model, autoencoder: Model | None, task: _Task, start: Tensor, c: Tensor, best: _Best, settings: _Settings
) -> Tensor:
    """Proximal gradient steps with momentum for one constant each; whether the goal was reached on the way."""
    d, momentum = start.clone(), torch.zeros_like(start)
    reached = torch.zeros_like(c, dtype=torch.bool)
    for step in range(settings.steps):
        margin, cost, slope = _look(model, autoencoder, task, d, c, settings)
        there = _reached(margin, settings)
        best.offer(there, cost, d, c)
        reached |= there
        momentum = _MOMENTUM * momentum + (1 - _MOMENTUM) * slope
        steepest = momentum.abs().flatten(1).amax(1).clamp(min=1e-12)
        stride = _wide((settings.rate / steepest).clamp(max=_LONGEST) * (1 - step / settings.steps) ** 0.5, d)
        d = d - stride * momentum
        d = d.sign() * (d.abs() - stride * settings.beta).clamp(min=0)  # the proximal map of the first norm
        d = torch.minimum(torch.maximum(d, task.low), task.high)
    return reached


def _look(
    model: Model, autoencoder: Model | None, task: _Task, d: Tensor, c: Tensor, settings: _Settings
) -> tuple[Tensor, Tensor, Tensor]:
    """Margin and cost of each item, (n,), and the slope of what is smooth, shaped like d."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = d.detach().clone().requires_grad_()
        picture = task.base + leaf
        margin = task.margin(run(model, picture))
        off = _implausibility(autoencoder, picture, settings)
        smooth = c * margin.clamp(min=-settings.kappa - 1e-3) + _squares(leaf) + off
        slope = torch.autograd.grad(smooth.sum(), leaf)[0]
    check_finite("the gradient", slope)
    return margin.detach(), _cost(d, off.detach(), settings), slope


def _shorten(model: Model, autoencoder: Model | None, task: _Task, best: _Best, settings: _Settings) -> None:
    """The shortest d along the line from 0 to the one found that still reaches the goal, by bisection."""
    least, most, d = torch.zeros_like(best.cost), torch.ones_like(best.cost), best.perturbation
    with torch.no_grad():
        for number in range(_HALVINGS):
            share = torch.zeros_like(least) if number == 0 else (least + most) / 2
            shorter = d * _wide(share, d)
            picture = task.base + shorter
            reached = _reached(task.margin(run(model, picture)), settings)
            off = _implausibility(autoencoder, picture, settings)
            best.offer(reached & best.cost.isfinite(), _cost(shorter, off, settings), shorter, best.constant)
            most, least = torch.where(reached, share, most), torch.where(reached, least, share)


def _implausibility(autoencoder: Model | None, picture: Tensor, settings: _Settings) -> Tensor:
    if autoencoder is None or settings.gamma == 0:
        return picture.new_zeros(len(picture))
    return settings.gamma * _squares(run(autoencoder, picture) - picture)


def _cost(d: Tensor, off: Tensor, settings: _Settings) -> Tensor:
    return settings.beta * d.abs().flatten(1).sum(1) + _squares(d) + off


def _reached(margin: Tensor, settings: _Settings) -> Tensor:
    return margin <= -settings.kappa if settings.kappa else margin < 0


def _ahead(outputs: Tensor, label: Tensor) -> Tensor:
    """How far the score of a class is ahead of the highest other one, (n,)."""
    others = outputs.scatter(1, label[:, None], -math.inf)
    return pick(outputs, label) - others.amax(1)


def _squares(values: Tensor) -> Tensor:
    return values.square().flatten(1).sum(1)


def _wide(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.dim() - 1))


def _random_start(inputs: Tensor, low: Tensor, high: Tensor, generator: torch.Generator | None) -> Tensor:
    """A random place in the box, drawn item by item, so that it does not depend on the batch; or 0."""
    if generator is None:
        return torch.zeros_like(inputs)
    device = generator.device
    drawn = [torch.rand(one.shape, generator=generator, dtype=torch.float64, device=device) for one in inputs]
    place = torch.stack(drawn).to(inputs)
    return low + place * (high - low)


# ------------------------------------------------------------------------------------------------------------
# Checks, before any work
# ------------------------------------------------------------------------------------------------------------


def _check(
    model: Model,
    inputs: Tensor,
    autoencoder: Model | None,
    beta: float,
    gamma: float,
    kappa: float,
    steps: int,
    searches: int,
    rate: float,
    generator: torch.Generator | None,
    chunk: int,
    progress: bool,
) -> _Settings:
    check_model(model)
    check_inputs(inputs)
    if bool((inputs < 0).any()) or bool((inputs > 1).any()):
        raise ValueError(f"inputs must lie in [0, 1], got values from {inputs.min():.4g} to {inputs.max():.4g}")
    for name, value in (("beta", beta), ("gamma", gamma), ("kappa", kappa)):
        check_weight(name, value)
    check_positive("rate", rate)
    for name, count in (("steps", steps), ("searches", searches), ("chunk", chunk)):
        check_count(name, count)
    check_generator(generator)
    check_switch("progress", progress)
    if autoencoder is not None:
        check_model(autoencoder, "autoencoder")
        with unchanged(autoencoder), torch.no_grad():
            made = run(autoencoder, inputs[:1])
        if not isinstance(made, Tensor) or made.shape != inputs[:1].shape or made.dtype != inputs.dtype:
            raise ValueError(f"autoencoder must give what it was given, {kind(inputs[:1])}, got {kind(made)}")
    return _Settings(beta, gamma, kappa, steps, searches, rate)


def _before(model: Model, inputs: Tensor, chunk: int) -> Tensor:
    found = []
    with torch.no_grad():
        for part in inputs.split(chunk):
            found.append(run(model, part))
            check_outputs(found[-1], len(part), 0)
    if found[0].shape[1] < 2:
        raise ValueError(f"model must give scores of at least 2 classes, got shape {tuple(found[0].shape)}")
    return torch.cat(found)


def _classes(name: str, asked: int | Tensor | None, before: Tensor) -> Tensor:
    if asked is None:
        return before.argmax(1)
    try:
        checked = check_target(asked, len(before))
        if not isinstance(checked, (int, Tensor)):
            raise TypeError(f"target must be an int, a LongTensor or None, got {type(asked).__name__}")
        check_outputs(before, len(before), checked)
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("target", name)) from None
    return torch.as_tensor(checked, device=before.device).expand(len(before)).clone()


def _deleted(removal: Removal | None, inputs: Tensor) -> Tensor:
    everywhere = torch.ones_like(inputs, dtype=torch.bool)
    all_of_them = torch.arange(len(inputs), device=inputs.device)
    with torch.no_grad():
        deleted = prepare(baseline(0.0) if removal is None else removal, inputs)(all_of_them, everywhere)
    if bool((deleted < 0).any()) or bool((deleted > 1).any()):
        raise ValueError(
            f"removal must put values in [0, 1] in place, got values from {deleted.min():.4g} to {deleted.max():.4g}"
        )
    return deleted
