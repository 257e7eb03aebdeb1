"""``lrp.relevance`` and ``lrp.trace``: the two functions that everybody calls. Lectures 11 and 12."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .composites import Composite, named
from .engine import Engine, UnhandledOperation
from .ledger import Ledger, Recorder

Target = int | Tensor | Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Trace:
    """One explanation with all that happened on the way.

    output     what the model returned, (N, …)
    relevance  of the input, shaped like it
    layers     relevance at the output of each module, by its path; a second call of the same module is "path:2". A layer
               whose batch norm was merged into it has no output of its own; the batch norm's stands for both
    ledger     one row for each operation
    """

    output: Tensor
    relevance: Tensor
    layers: Mapping[str, Tensor]
    ledger: Ledger


def relevance(
    model: Callable[[Tensor], Tensor],
    inputs: Tensor,
    target: Target,
    *,
    composite: str | Composite = "epsilon_plus",
    start: Tensor | None = None,
) -> Tensor:
    """Relevance of each input for the model's score, by layer-wise relevance propagation.

    model      an nn.Module in evaluation mode (or a function made of torch functions); it is not changed
    inputs     (N, …), any float dtype and device
    target     which score to explain: a class index, one index for each item (LongTensor (N,)), or a function from the
               outputs to scores (N,), such as ``lambda y: y[:, 3] - y[:, 5]``, which is explained along with the model
    composite  the name of one of ``lrp.COMPOSITES``, or an ``lrp.Composite``
    start      the relevance to begin with, in place of the score itself: (N,) at the score or, for a target that is an
               index, shaped like the model's outputs

    Returns a tensor with the shape, dtype and device of ``inputs``: signed, not normalised, item by item. It sums to the
    score, less what biases, stabilisers and dead ends keep; ``trace`` says how much that is.

    Raises ``UnhandledOperation``, with the function and the module, if the model calls something that LRP has no rule for;
    ValueError or TypeError if an argument is not as above, or if a NaN or an infinity appears.

    Bach et al. 2015, PLoS ONE 10(7); Montavon et al. 2019, LNCS 11700.
    """
    return _explain(model, inputs, target, composite, start, None)[1]


def trace(
    model: Callable[[Tensor], Tensor],
    inputs: Tensor,
    target: Target,
    *,
    composite: str | Composite = "epsilon_plus",
    start: Tensor | None = None,
) -> Trace:
    """As ``relevance``, and keeps the relevance of every layer and the ledger. Slower, and needs more memory.

    Runs the model once more, as it is, and raises ``UnhandledOperation`` if its outputs are not the same then.
    """
    recorder = Recorder()
    outputs, result, begun, arrived = _explain(model, inputs, target, composite, start, recorder)
    _check_same_outputs(model, inputs, outputs)
    return Trace(outputs, result, recorder.layers, recorder.ledger(begun, arrived))


def _explain(
    model: Callable[[Tensor], Tensor],
    inputs: Tensor,
    target: Target,
    composite: str | Composite,
    start: Tensor | None,
    recorder: Recorder | None,
) -> tuple[Tensor, Tensor, float, float]:
    rules = named(composite)
    _check_model(model)
    _check_inputs(inputs)
    if not callable(target):
        _check_index(target, len(inputs))
    if start is not None and not (isinstance(start, Tensor) and start.is_floating_point()):
        raise TypeError(f"start must be None or a float tensor, got {_kind(start)}")

    engine = Engine(model, rules, recorder)
    with torch.inference_mode(False), torch.enable_grad():
        x = _copy(inputs).requires_grad_()
        twin = torch.ones_like(x).requires_grad_()
        entrance = engine.enter(x, twin)
        with engine.running():
            outputs = model(entrance)
        outputs = engine.value(outputs)
        _check_outputs(outputs, inputs, target)
        if callable(target):
            with engine.running():
                score = target(outputs)
            score = engine.value(score)
        else:
            score = _pick(outputs, target)
        engine.fill_placeholders()
        if not (isinstance(score, Tensor) and score.shape == inputs.shape[:1]):
            got = tuple(score.shape) if isinstance(score, Tensor) else type(score).__name__
            raise ValueError(f"target must give one score for each item, shape {(len(inputs),)}, got {got}")
        if score.grad_fn is None:
            raise ValueError("target: the score does not depend on the inputs")
        _check_finite("the score", score)
        at, c = _begin(outputs, score, start, callable(target))
        c_x, r_twin = torch.autograd.grad(at, (x, twin), c, allow_unused=True)
        if c_x is None and r_twin is None:
            raise ValueError("target: the score does not depend on the inputs")

    with torch.no_grad():
        result = torch.zeros_like(inputs)
        if c_x is not None:
            result += x * c_x
        if r_twin is not None:
            result += r_twin
        _check_finite("the relevance", result)
        begun = (at * c).sum(dtype=torch.float64).item() if recorder else 0.0
        arrived = result.sum(dtype=torch.float64).item() if recorder else 0.0
        return outputs.detach(), result, begun, arrived


def _copy(inputs: Tensor) -> Tensor:
    """Images on a CPU with their channels last in memory: convolutions are twice as fast, the values are the same."""
    if inputs.dim() == 4 and inputs.device.type == "cpu":
        return inputs.detach().clone(memory_format=torch.channels_last)
    return inputs.detach().clone()


def _pick(outputs: Tensor, target: int | Tensor) -> Tensor:
    index = torch.as_tensor(target, device=outputs.device).expand(len(outputs))
    return outputs.gather(1, index[:, None])[:, 0]


def _begin(outputs: Tensor, score: Tensor, start: Tensor | None, is_function: bool) -> tuple[Tensor, Tensor]:
    """Where c = R / y starts, and with which values: one at the score, or ``start`` divided by what it is for."""
    if start is None:
        return score, torch.ones_like(score)
    at = score
    if start.shape == outputs.shape and not is_function:
        at = outputs
    if start.shape != at.shape:
        shapes = f"{tuple(score.shape)}" + ("" if is_function else f" or {tuple(outputs.shape)}")
        raise ValueError(f"start must have shape {shapes}, got {tuple(start.shape)}")
    _check_finite("start", start)
    start = start.detach().to(at)
    if bool(((at == 0) & (start != 0)).any()):
        raise ValueError("start must be 0 where the output is exactly 0: no input is responsible for it")
    return at, torch.where(start == 0, 0, start / at.detach().masked_fill(at == 0, 1))


def _check_model(model: Callable[[Tensor], Tensor]) -> None:
    if not callable(model):
        raise TypeError(f"model must be an nn.Module or a function of tensors, got {type(model).__name__}")
    if not isinstance(model, nn.Module):
        return
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) or type(module).__name__ == "OptimizedModule":
            raise UnhandledOperation(
                f"model: module {path!r} is compiled ({type(module).__name__}), so that LRP cannot see what it calls; "
                "give the module that it was compiled from"
            )
        if module.training:
            raise ValueError(
                f"model must be in evaluation mode, but module {path!r} ({type(module).__name__}) is in training mode; "
                "call model.eval() first"
            )


def _check_inputs(inputs: Tensor) -> None:
    if not isinstance(inputs, Tensor):
        raise TypeError(f"inputs must be a tensor, got {type(inputs).__name__}")
    if not inputs.is_floating_point():
        raise TypeError(f"inputs must have a float dtype, got {inputs.dtype}")
    if inputs.dim() < 2 or len(inputs) == 0:
        raise ValueError(f"inputs must have shape (N, …) with at least one item, got {tuple(inputs.shape)}")
    _check_finite("inputs", inputs)


def _check_index(target: int | Tensor, items: int) -> None:
    if isinstance(target, Tensor):
        if target.dtype != torch.long or target.shape not in ((items,), ()):
            raise ValueError(
                f"target must be a LongTensor of shape {(items,)}, one index for each item, got {_kind(target)}"
            )
    elif isinstance(target, bool) or not isinstance(target, int):
        raise TypeError(
            f"target must be an int, a LongTensor or a function of the outputs, got {type(target).__name__}"
        )


def _check_outputs(outputs: Tensor, inputs: Tensor, target: Target) -> None:
    if not isinstance(outputs, Tensor):
        raise TypeError(
            f"model must return a tensor, got {type(outputs).__name__}; wrap it in a function that picks one"
        )
    if outputs.dim() == 0 or len(outputs) != len(inputs):
        raise ValueError(f"model must return one row for each of {len(inputs)} items, got shape {tuple(outputs.shape)}")
    _check_finite("the model's outputs", outputs)
    if callable(target):
        return
    if outputs.dim() != 2:
        raise ValueError(
            f"target: an index needs outputs of shape (N, classes), got {tuple(outputs.shape)}; give a function of the outputs"
        )
    low, high = (int(target.min()), int(target.max())) if isinstance(target, Tensor) else (target, target)
    if low < 0 or high >= outputs.shape[1]:
        raise ValueError(f"target must be from 0 to {outputs.shape[1] - 1}, got {low if low < 0 else high}")


def _check_same_outputs(model: Callable[[Tensor], Tensor], inputs: Tensor, outputs: Tensor) -> None:
    """A model that works with tensors in a way that escaped us gives other outputs under LRP: the last net to catch it."""
    with torch.no_grad():
        plain = model(inputs.detach().clone())
    tolerance = (
        0.05 if torch.finfo(outputs.dtype).bits == 16 else 1e-3 if torch.finfo(outputs.dtype).bits == 32 else 1e-8
    )
    scale = plain.abs().max().item()
    difference = (plain - outputs).abs().max().item()
    if not difference <= tolerance * max(scale, torch.finfo(outputs.dtype).tiny):
        raise UnhandledOperation(
            f"model: under LRP its outputs differ by {difference:.3g} from what they are without (largest {scale:.3g}); it "
            "changes from call to call, or does something with its tensors that LRP does not see"
        )


def _check_finite(name: str, values: Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        bad = int((~torch.isfinite(values)).sum())
        raise ValueError(f"{name} must be finite: {bad} of {values.numel()} values are NaN or infinite")


def _kind(value: object) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
