"""The score that an explanation is about: what a model says of its inputs, and a target that picks one number per item (all
lectures).

Every attribution ``method(model, inputs, target)`` asks for it here, so that all of them take the same targets, refuse the same
mistakes in the same words, and leave the model as it was.
"""

from __future__ import annotations

import copy
import operator
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from .arguments import check_finite, kind

__all__ = [
    "Model",
    "Target",
    "ask",
    "check_inputs",
    "check_model",
    "check_outputs",
    "check_score",
    "check_target",
    "first_axis_kept",
    "gradient",
    "laid_out",
    "of_items",
    "pairs",
    "pick",
    "run",
    "score_of",
    "scores",
    "uncompiled",
    "unchanged",
    "vary",
    "wide",
]

Model = Callable[[Tensor], Tensor]
Target = int | Tensor | Callable[[Tensor], Tensor]


# ------------------------------------------------------------------------------------------------------------
# Checks, before any work
# ------------------------------------------------------------------------------------------------------------


def check_model(model: Model, name: str = "model") -> None:
    """TypeError if it cannot be called, ValueError if a part of it is in training mode or normalises by the batch.

    name  what messages call it
    """
    if not callable(model):
        raise TypeError(f"{name} must be an nn.Module or a function of tensors, got {type(model).__name__}")
    for path, module in model.named_modules() if isinstance(model, nn.Module) else ():
        if module.training:
            part = f"module {path!r} ({type(module).__name__})" if path else f"as a whole it ({type(module).__name__})"
            raise ValueError(
                f"{name} must be in evaluation mode, but {part} is in training mode; call {name}.eval() first, also where "
                "nothing in it seems to mind: dropout and batch norm compute something else in training, and so does any "
                "forward that asks self.training, which cannot be seen from outside"
            )
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise ValueError(
                f"{name} must treat each item by itself, but module {path!r} ({type(module).__name__}) has no running "
                "statistics and takes those of the batch"
            )


def check_inputs(inputs: Tensor, *, images: bool = False) -> None:
    """TypeError or ValueError unless it is a float tensor (N, …) with at least one item and no NaN.

    images  whether it must have the shape (N, C, H, W)
    """
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        raise TypeError(f"inputs must be a tensor of a float dtype, got {kind(inputs)}")
    if images and (inputs.dim() != 4 or 0 in inputs.shape):
        raise ValueError(f"inputs must be images of shape (N, C, H, W), not empty, got {tuple(inputs.shape)}")
    if inputs.dim() < 2 or 0 in inputs.shape:
        raise ValueError(f"inputs must have shape (N, …) with at least one item, not empty, got {tuple(inputs.shape)}")
    check_finite("inputs", inputs)


def check_target(target: Target, items: int) -> Target:
    """Give the target back, an int as a plain int; TypeError or ValueError if it is none for so many items."""
    if isinstance(target, Tensor):
        if target.dtype != torch.long or target.shape not in ((items,), ()):
            raise ValueError(
                f"target must be a LongTensor of shape {(items,)}, one index for each item, got {kind(target)}"
            )
        return target
    if callable(target):
        return target
    if isinstance(target, bool) or not hasattr(target, "__index__"):
        raise TypeError(
            f"target must be an int, a LongTensor or a function of the outputs, got {type(target).__name__}"
        )
    try:
        return operator.index(target)
    except TypeError:  # an array
        raise TypeError(
            f"target must be an int, a LongTensor or a function of the outputs, got {type(target).__name__}"
        ) from None


def check_outputs(outputs: Tensor, items: int, target: Target | None) -> None:
    """TypeError or ValueError unless the model gave one finite row for each item, in which the target can be found."""
    if not isinstance(outputs, Tensor):
        raise TypeError(
            f"model must return a tensor, got {type(outputs).__name__}; wrap it in a function that picks one"
        )
    if outputs.dim() == 0 or len(outputs) != items:
        raise ValueError(f"model must return one row for each of {items} items, got shape {tuple(outputs.shape)}")
    check_finite("the model's outputs", outputs)
    if target is None or not isinstance(target, (int, Tensor)):
        return
    if outputs.dim() != 2:
        raise ValueError(
            f"target: an index needs outputs of shape (N, classes), got {tuple(outputs.shape)}; give a function of the outputs"
        )
    if not outputs.is_floating_point():
        raise TypeError(f"model must return outputs of a float dtype, got {kind(outputs)}")
    low, high = (int(target.min()), int(target.max())) if isinstance(target, Tensor) else (target, target)
    if low < 0 or high >= outputs.shape[1]:
        raise ValueError(f"target must be from 0 to {outputs.shape[1] - 1}, got {low if low < 0 else high}")


def check_score(model: Model, inputs: Tensor, target: Target) -> None:
    """Run the model once, to see whether the target fits its outputs."""
    with torch.no_grad():
        scores(model, inputs, target)


# ------------------------------------------------------------------------------------------------------------
# The score and its gradient
# ------------------------------------------------------------------------------------------------------------


def pick(outputs: Tensor, target: int | Tensor) -> Tensor:
    """The score of each item, (N,), out of outputs (N, classes)."""
    index = torch.as_tensor(target, device=outputs.device).expand(len(outputs))
    index = index.clone() if index.is_inference() else index  # or autograd could not keep it
    return outputs.gather(1, index[:, None])[:, 0]


def ask(target: Callable[[Tensor], Tensor], outputs: Tensor, items: int | None = None) -> Tensor:
    """The score of each item, (N,), by a function of the outputs; ValueError if it gives anything else.

    items  where the outputs are those of several batches of so many items, one after the other: it is asked once for each
    """
    found = []
    for batch in outputs.split(items or len(outputs)):
        score = target(batch)
        if not (isinstance(score, Tensor) and score.shape == batch.shape[:1] and score.is_floating_point()):
            raise ValueError(
                f"target must give one float score for each item, shape {(len(batch),)}, got {kind(score)}"
            )
        check_finite("the score", score)
        found.append(score)
    return found[0] if len(found) == 1 else torch.cat(found)


def score_of(outputs: Tensor, target: Target, items: int | None = None) -> Tensor:
    """The score of each item, (N,), out of checked outputs, whatever the target is; ``items`` as in `ask`."""
    return pick(outputs, target) if isinstance(target, (int, Tensor)) else ask(target, outputs, items)


def scores(model: Model, inputs: Tensor, target: Target, *, items: int | None = None) -> Tensor:
    """The score of each item, (N,): the model is run once on ``inputs`` (N, …); ``items`` as in `ask`.

    TypeError or ValueError, naming the argument, if the outputs are not one finite row per item that the target fits.
    """
    outputs = run(model, inputs)
    check_outputs(outputs, len(inputs), target)
    return score_of(outputs, target, items)


def gradient(model: Model, inputs: Tensor, target: Target, *, items: int | None = None) -> tuple[Tensor, Tensor]:
    """The score of each item, (N,), and its gradient, shaped like ``inputs``; neither carries a graph.

    items  as in `ask`

    ValueError if no score depends on the inputs, or if a NaN or an infinity appears.
    """
    with torch.inference_mode(False), torch.enable_grad():
        x = (inputs.detach().clone() if inputs.is_inference() else inputs.detach()).requires_grad_()
        score = scores(model, x, target, items=items)
        found = torch.autograd.grad(score.sum(), x, allow_unused=True)[0] if score.requires_grad else None
    if found is None:
        raise ValueError(
            "target: the score does not depend on the inputs; somewhere between them the graph is cut (detach, no_grad, "
            "numpy, a rounding or an argmax)"
        )
    check_finite("the gradient", found)
    return score.detach(), found


def run(model: Model, inputs: Tensor) -> Tensor:
    """What the model says of a copy of the inputs, on which it may work in place.

    Images on a CPU are laid out with their channels last in memory: convolutions are faster, the values are the same. A model
    that asks its activations for ``view`` may need them in the usual order, and is run again.

    ValueError if the model fails because the first axis of the inputs, that of the items, was forgotten.
    """
    with first_axis_kept(model, inputs):
        return _run(model, inputs)


@contextmanager
def first_axis_kept(model: Model, inputs: Tensor) -> Iterator[None]:
    """Where something fails, say so in plain words if it is because the inputs are one item (…) and not a batch (1, …)."""
    try:
        yield
    except Exception as error:
        if _takes(model, inputs) or not _takes(model, inputs[None]):
            raise
        raise ValueError(
            f"inputs must have shape (N, …), one item after the other; the model cannot take {tuple(inputs.shape)}, read as "
            f"{len(inputs)} items of shape {tuple(inputs.shape[1:])}, but could take {(1, *inputs.shape)}: give inputs[None]"
        ) from error


def _takes(model: Model, inputs: Tensor) -> bool:
    try:
        with torch.no_grad():
            copy.deepcopy(model)(inputs.detach().clone())  # a copy, since a pass may change a model
    except Exception:
        return False
    return True


def _run(model: Model, inputs: Tensor) -> Tensor:
    if inputs.dim() != 4 or inputs.device.type != "cpu":
        return model(inputs.clone())
    if model not in _AS_THEY_ARE:
        try:
            return model(inputs.clone(memory_format=torch.channels_last))
        except RuntimeError as error:
            if "view size is not compatible" not in str(error):
                raise
            _AS_THEY_ARE.add(model)
    return model(inputs.clone(memory_format=torch.contiguous_format))


_AS_THEY_ARE: WeakSet[Any] = WeakSet()


def laid_out(inputs: Tensor) -> Tensor:
    """Images on a CPU with their channels last in memory, as in `run`."""
    if inputs.dim() == 4 and inputs.device.type == "cpu":
        return inputs.contiguous(memory_format=torch.channels_last)
    return inputs


# ------------------------------------------------------------------------------------------------------------
# Many variants of each item, in chunks
# ------------------------------------------------------------------------------------------------------------


def pairs(
    items: int, variants: int, target: Target, chunk: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """All pairs of a variant and an item, ``chunk`` at a time, as two LongTensors (n,): all items of variant 0 first.

    A function as target may know which item is which and has to see all of them: then a chunk is made of whole variants, at
    least one.
    """
    at_once = chunk if isinstance(target, (int, Tensor)) else max(1, chunk // items) * items
    for pair in torch.arange(variants * items, device=device).split(at_once):
        yield pair // items, pair % items


def of_items(target: Target, item: Tensor) -> Target:
    """The target of some of the items, by their indices (n,)."""
    if not isinstance(target, Tensor) or target.dim() == 0:
        return target
    return target.to(item.device)[item]


def vary(
    model: Model,
    make: Callable[[Tensor, Tensor], Tensor],
    target: Target,
    *,
    items: int,
    variants: int,
    chunk: int,
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The scores of every item in every variant, without gradients, chunk by chunk.

    make  ``make(variant, item)`` gives the inputs (n, …) of n pairs

    Yields (variant, item, score), each (n,). A chunk holds pairs of several variants.
    """
    for variant, item in pairs(items, variants, target, chunk, device):
        with torch.no_grad():
            found = scores(model, make(variant, item), of_items(target, item), items=items)
        yield variant, item, wide(found)


def wide(values: Tensor) -> Tensor:
    """At least float32, for sums of many values."""
    return values.float() if torch.finfo(values.dtype).bits == 16 else values


@contextmanager
def unchanged(model: Model) -> Iterator[None]:
    """A model whose buffers count its calls, or keep the last batch, is as it was afterwards, also after an error.

    Parameters and buffers are put back, if the model assigned other tensors to them or wrote into a buffer. What a model
    keeps as plain attributes is not.
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    owned: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for m in modules:
        owned += [(m._buffers, dict(m._buffers)), (m._parameters, dict(m._parameters))]
    buffers = [b for m in modules for b in m._buffers.values() if b is not None]
    before = [(b, b.detach().clone()) for b in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for held, tensors in owned:  # also what a forward pass assigned anew
                if held.keys() != tensors.keys() or any(held[name] is not t for name, t in tensors.items()):
                    held.clear()
                    held.update(tensors)
            for b, values in before:
                if not torch.equal(b, values):
                    with torch.inference_mode(b.is_inference()):
                        b.copy_(values)


@contextmanager
def uncompiled() -> Iterator[None]:
    """What was compiled runs as it was written, so that its calls are seen. Who has compiled has loaded the compiler.

    PyTorch keeps one such setting for all threads: the first to come in sets it, the last to leave puts it back.
    """
    if "torch._dynamo" not in sys.modules:
        yield
        return
    global _inside
    with _LOCK:
        if not _inside:
            _STANCE.enter_context(torch.compiler.set_stance("force_eager"))
        _inside += 1
    try:
        yield
    finally:
        with _LOCK:
            _inside -= 1
            if not _inside:
                _STANCE.close()


_LOCK, _STANCE = threading.Lock(), ExitStack()
_inside = 0
