"""``lrp.relevance`` and ``lrp.trace``: the two functions that everybody calls. Lectures 11 and 12."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import check_finite, kind
from ..scores import Target, check_model, check_outputs, check_target, first_axis_kept, laid_out, pick, unchanged
from .composites import COMPOSITES, Composite, named
from .engine import Engine, UnhandledOperation
from .ledger import Ledger, Recorder

Start = Tensor | Mapping[str, Tensor | Callable[[Tensor], Tensor]]


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
    target: Target | None,
    *,
    composite: str | Composite = "epsilon_plus",
    start: Start | None = None,
) -> Tensor:
    """Relevance of each input for the model's score, by layer-wise relevance propagation.

    model      an nn.Module in evaluation mode, or a function made of torch functions, that takes ``inputs`` and returns one
               tensor; it is not changed. For further arguments or results wrap it: ``lambda x: model(x, mask=mask)[0]``
    inputs     (N, …), any float dtype and device; or integers (N, T) that the model looks up in an embedding
    target     which score to explain: a class index, one index for each item (LongTensor (N,)), or a function from the
               outputs to scores (N,), such as ``lambda y: y[:, 3] - y[:, 5]``, which is explained along with the model
    composite  the name of one of ``lrp.COMPOSITES``, or an ``lrp.Composite``
    start      the relevance to begin with, in place of the score itself: (N,) at the score; for a target that is an index,
               also shaped like the model's outputs; or, with target None, ``{path: relevance}`` at the outputs of modules,
               as a tensor or a function of the activation. ``lrp.channel(path, 17)`` begins at one channel

    Returns a tensor with the shape, dtype and device of ``inputs``: signed, not normalised, item by item. It sums to the
    score, less what biases, stabilisers and dead ends keep; ``trace`` says how much that is. For words (integers) it is a
    float tensor, summed over the features of the embedding; ``trace(...).layers`` has them one by one.

    Raises ``UnhandledOperation``, with the function and the module, if the model calls something that LRP has no rule for;
    ValueError or TypeError if an argument is not as above, or if a NaN or an infinity appears.

    Bach et al. 2015, PLoS ONE 10(7); Montavon et al. 2019, LNCS 11700.
    """
    return _explain(model, inputs, target, composite, start, None)[1]


def trace(
    model: Callable[[Tensor], Tensor],
    inputs: Tensor,
    target: Target | None,
    *,
    composite: str | Composite = "epsilon_plus",
    start: Start | None = None,
) -> Trace:
    """As ``relevance``, and keeps the relevance of every layer and the ledger. Slower, and needs more memory.

    Takes what ``relevance`` takes and returns a ``Trace``: ``.output``, ``.relevance``, ``.layers`` by module path (in a
    function, by the class of a module: "Linear", "Linear:2" …) and ``.ledger``. Its rows have ``module``, ``function``,
    ``rule``, ``incoming``, ``passed``, ``bias``, ``stabiliser`` and ``dead_end``; ``print(trace.ledger)`` shows them all.

    Runs the model once more, as it is, and raises ``UnhandledOperation`` if its outputs are not the same then.
    """
    recorder = Recorder()
    outputs, result, begun, arrived, coarse = _explain(model, inputs, target, composite, start, recorder)
    _check_same_outputs(model, inputs, outputs, coarse)
    return Trace(outputs, result, recorder.layers, recorder.ledger(begun, arrived))


def channel(path: str, index: int, axis: int = 1) -> Mapping[str, Callable[[Tensor], Tensor]]:
    """A ``start`` at one channel of a module's output, with its activation as relevance: what made this channel fire?

    path   of the module, as in ``model.named_modules()``
    index  of the channel
    axis   that holds the channels: 1 for (N, C, H, W), -1 for tokens (N, T, C)

    Used as ``lrp.relevance(model, inputs, None, start=lrp.channel("layer3", 17))``. Achtibat et al. 2023, From attribution maps
    to human-understandable explanations through concept relevance propagation, Nature Machine Intelligence 5.
    """

    def begin(y: Tensor) -> Tensor:
        if not -y.shape[axis] <= index < y.shape[axis]:
            raise ValueError(f"index must be from 0 to {y.shape[axis] - 1} for module {path!r}, got {index}")
        relevance = torch.zeros_like(y)
        relevance.select(axis, index).copy_(y.select(axis, index))
        return relevance

    return {path: begin}


def _explain(
    model: Callable[[Tensor], Tensor],
    inputs: Tensor,
    target: Target | None,
    composite: str | Composite,
    start: Start | None,
    recorder: Recorder | None,
) -> tuple[Tensor, Tensor, float, float, bool]:
    if isinstance(torch.overrides._get_current_function_mode(), Engine):
        raise UnhandledOperation(
            "model: it explains something itself, within the explanation; LRP does not explain LRP"
        )
    rules = named(composite)
    _check_model(model)
    _check_inputs(inputs)
    _check_start(start, target, model)
    target = None if target is None else check_target(target, len(inputs))
    if isinstance(model, nn.Module):
        rules.check_names([path for path, _ in model.named_modules()])

    device = inputs.device.type
    coarse = torch.is_autocast_enabled(device)
    with (
        unchanged(model),
        torch.autocast(device, enabled=False),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        layers = _count_layers(model, inputs) if rules.counts_layers else None
        watched = frozenset(start) if isinstance(start, Mapping) else frozenset()
        engine = Engine(model, rules, recorder, layers=layers, watched=watched)
        engine.saw_autocast = coarse
        x, twin = _leaves(model, inputs)
        entrance = engine.enter(x, twin)
        with first_axis_kept(model, inputs), engine.running():
            outputs = model(entrance)
        outputs = engine.value(outputs)
        check_outputs(outputs, len(inputs), target)
        if isinstance(start, Mapping):
            begins = _begin_at_modules(engine, start)
        else:
            assert target is not None
            if callable(target):
                with engine.running():
                    score = target(outputs)
                score = engine.value(score)
            else:
                score = pick(outputs, target)
            if not (isinstance(score, Tensor) and score.shape == inputs.shape[:1]):
                got = tuple(score.shape) if isinstance(score, Tensor) else type(score).__name__
                raise ValueError(f"target must give one score for each item, shape {(len(inputs),)}, got {got}")
            if score.grad_fn is None:
                raise ValueError("target: the score does not depend on the inputs")
            check_finite("the score", score)
            begins = [_begin(outputs, score, start, callable(target))]
        engine.fill_placeholders()
        ends = (x, twin) if x.is_floating_point() else (twin,)
        *c_x, r_twin = torch.autograd.grad([at for at, _ in begins], ends, [c for _, c in begins], allow_unused=True)
        if r_twin is None and not x.is_floating_point():
            raise TypeError(f"inputs must have a float dtype, or be read by an embedding, got {inputs.dtype}")
        if r_twin is None and c_x[0] is None:
            raise ValueError("target: the score does not depend on the inputs")

    with torch.no_grad():
        result = torch.zeros_like(twin.detach(), memory_format=torch.preserve_format)
        if x.is_floating_point():
            result = torch.zeros_like(inputs)
        if c_x and c_x[0] is not None:
            result += x * c_x[0]
        if r_twin is not None:
            result += r_twin
        check_finite("the relevance", result)
        begun = sum((at * c).sum(dtype=torch.float64).item() for at, c in begins) if recorder else 0.0
        arrived = result.sum(dtype=torch.float64).item() if recorder else 0.0
        return outputs.detach(), result, begun, arrived, engine.saw_autocast


def _leaves(model: Callable[[Tensor], Tensor], inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The input and its twin; words have a twin in the dtype of the model's weights."""
    if inputs.is_floating_point():
        x = laid_out(inputs.detach().clone()).requires_grad_()
        return x, torch.ones_like(x).requires_grad_()
    weights = model.parameters() if isinstance(model, nn.Module) else iter(())
    dtype = next((w.dtype for w in weights if w.is_floating_point()), torch.get_default_dtype())
    return inputs.detach(), torch.ones(inputs.shape, dtype=dtype, device=inputs.device, requires_grad=True)


def _count_layers(model: Callable[[Tensor], Tensor], inputs: Tensor) -> int:
    engine = Engine(model, COMPOSITES["epsilon"])
    entrance = engine.enter(*_leaves(model, inputs))
    with first_axis_kept(model, inputs), engine.running():
        model(entrance)
    return len(engine.depths)


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
    check_finite("start", start)
    start = start.detach().to(at)
    if bool(((at == 0) & (start != 0)).any()):
        raise ValueError("start must be 0 where the output is exactly 0: no input is responsible for it")
    return at, torch.where(start == 0, 0, start / at.detach().masked_fill(at == 0, 1))


def _begin_at_modules(engine: Engine, start: Mapping[str, Any]) -> list[tuple[Tensor, Tensor]]:
    begins = []
    for path, given in start.items():
        if path not in engine.outputs:
            raise ValueError(
                f"start: module {path!r} has no output of its own that depends on the inputs; if a batch norm follows it, name "
                "that one"
            )
        at = engine.outputs[path]
        relevance = given(at.detach()) if callable(given) else given
        if not isinstance(relevance, Tensor) or relevance.shape != at.shape:
            raise ValueError(f"start[{path!r}] must have shape {tuple(at.shape)}, got {kind(relevance)}")
        begins.append(_begin(at, at, relevance, False))
    return begins


def _check_start(start: object, target: object, model: object) -> None:
    if isinstance(start, Mapping):
        if target is not None:
            raise TypeError("target must be None where start names modules: the relevance begins there")
        if not start:
            raise ValueError("start must name at least one module, got an empty mapping")
        known = dict(model.named_modules()) if isinstance(model, nn.Module) else {}
        for path, given in start.items():
            if path not in known:
                close = difflib.get_close_matches(str(path), known, n=3, cutoff=0.4)
                raise ValueError(
                    f"start must name modules of the model, got {path!r}; there are {close or sorted(known)[:5]}"
                )
            if not (callable(given) or (isinstance(given, Tensor) and given.is_floating_point())):
                raise TypeError(
                    f"start[{path!r}] must be a float tensor or a function of the activation, got {kind(given)}"
                )
    elif start is not None and not (isinstance(start, Tensor) and start.is_floating_point()):
        raise TypeError(f"start must be None, a float tensor, or map modules to such, got {kind(start)}")
    if target is None and not isinstance(start, Mapping):
        raise TypeError(
            "target must be an int, a LongTensor or a function of the outputs, got None; it may be None where start maps "
            "modules to relevance"
        )


def _check_model(model: Callable[[Tensor], Tensor]) -> None:
    for path, module in model.named_modules() if isinstance(model, nn.Module) else ():
        if isinstance(module, torch.jit.ScriptModule) or type(module).__name__ == "OptimizedModule":
            raise UnhandledOperation(
                f"model: module {path!r} is compiled ({type(module).__name__}), so that LRP cannot see what it calls; "
                "give the module that it was compiled from"
            )
    check_model(model)


def _check_inputs(inputs: Tensor) -> None:
    if not isinstance(inputs, Tensor):
        raise TypeError(
            f"inputs must be a tensor, got {type(inputs).__name__}; for more arguments give lambda x: model(x, mask)"
        )
    if not inputs.is_floating_point() and inputs.dtype not in (torch.int64, torch.int32):
        raise TypeError(
            f"inputs must have a float dtype, or be indices of an embedding (int64, int32), got {inputs.dtype}"
        )
    if inputs.dim() < 2 or len(inputs) == 0:
        raise ValueError(f"inputs must have shape (N, …) with at least one item, got {tuple(inputs.shape)}")
    check_finite("inputs", inputs)


def _check_same_outputs(model: Callable[[Tensor], Tensor], inputs: Tensor, outputs: Tensor, coarse: bool) -> None:
    """A model that works with tensors in a way that escaped us gives other outputs under LRP: the last net to catch it.

    ``coarse``: the model computes with autocast, LRP in full precision.
    """
    plain = _plain_outputs(model, inputs)
    bits = torch.finfo(plain.dtype).bits
    tolerance = 0.05 if coarse or bits == 16 else 1e-3 if bits == 32 else 1e-8
    scale = max(plain.abs().max().item(), torch.finfo(outputs.dtype).tiny)
    difference = (plain - outputs).abs().max().item()
    if difference > tolerance * scale and isinstance(model, nn.Module) and bits == 32:  # how much of it is rounding?
        exact = _plain_outputs(copy.deepcopy(model).double(), inputs.double() if inputs.is_floating_point() else inputs)
        tolerance = max(tolerance, 3 * (plain - exact).abs().max().item() / scale)
    if not difference <= tolerance * scale:
        raise UnhandledOperation(
            f"model: under LRP its outputs differ by {difference:.3g} from what they are without (largest {scale:.3g}); it "
            "changes from call to call, or does something with its tensors that LRP does not see"
        )


def _plain_outputs(model: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """What the model returns by itself; with gradients, since without them PyTorch may take a path that skips padded words."""
    with unchanged(model):
        try:
            with torch.enable_grad():
                x = inputs.detach().clone()
                return model(x.requires_grad_().clone() if x.is_floating_point() else x).detach()
        except RuntimeError:  # the model works in place, or its weights are frozen, in a way that autograd forbids
            with torch.no_grad():
                return model(inputs.detach().clone())
