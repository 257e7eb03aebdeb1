"""The LRP engine: explains any PyTorch model, unmodified, by giving each torch function that it calls its rule.

Lectures 11 and 12. While the model runs, a ``TorchFunctionMode`` sees every torch function it calls, whoever calls it: a
module, a ``+``, a ``torch.cat`` in somebody's ``forward``. Layers with weights run as their rule says (``rules.py``),
other known functions keep their plain gradient or pass on a secant (``operations.py``), and a function that nobody knows
raises ``UnhandledOperation``. Autograd then carries c = R / x from the output to the input along the model's own graph.

Three things deserve a word.

*Deferred layers.* A batch norm can only be merged into the layer before it once we have seen it. So a call of a layer
returns a placeholder, a tensor with the right shape and no memory, and is run when somebody wants its values: then we know
whether a batch norm and a ReLU followed. Where values escape us they are NaN.

*Traced tensors.* Every tensor that depends on the input is known to us by identity. A tensor that hangs on the graph and
is not known came from an operation that we did not see, and is refused.

*Two channels.* zB, w2 and flat give R and not R / x at the first layer. They answer to a twin of the input, which goes
through the same reshapes, and in the end R = x c + R_twin.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from . import affine, operations
from .composites import Composite
from .ledger import Recorder, Row
from .rules import Call, Propagation


class UnhandledOperation(NotImplementedError):
    """A model calls a function that LRP has no rule for."""


@dataclass(eq=False)
class Traced:
    """What we know of a tensor that depends on the input.

    raw          it is the input, perhaps reshaped or shifted: no layer and no activation lies between
    twin         the input's twin after the same reshapes, for rules that return relevance itself
    nonnegative  it has no entry below zero
    base         another tensor whose memory it may share
    pending      the layer whose output it stands for, if it is a placeholder
    value        the tensor that took its place: the layer's output, or the result of a function that works in place
    ran          that value is the layer's output: somebody looked at it
    """

    raw: bool = False
    twin: Tensor | None = None
    nonnegative: bool = False
    base: weakref.ref[Tensor] | None = None
    pending: Pending | None = None
    value: Tensor | None = None
    ran: bool = False


@dataclass(eq=False)
class Pending:
    """A layer that has been called and not yet run, with the batch norm that followed already merged."""

    layer: affine.Affine
    sources: list[Tensor]  # the model's own tensors that it was made from
    x: Tensor
    path: str  # of the module that called it
    functions: tuple[str, ...]
    outputs: list[str]  # paths of the modules whose output it is


class _Propagate(torch.autograd.Function):
    """One call of a layer under its rule: on the way back, c_y to c_x; or R_x to the twin, for the rules that give R."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, twin: Tensor | None, propagation: Propagation) -> Tensor:
        ctx.pull, ctx.to_twin = propagation.pull, twin is not None
        return propagation.output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        pulled = ctx.pull(gradients[0])
        ctx.pull = None  # frees what the rule remembered as soon as it is used
        return (None, pulled, None) if ctx.to_twin else (pulled, None, None)


class _Secant(torch.autograd.Function):
    """An activation y = g(x) with its secant y / x in place of its tangent."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        y = activation(x)
        ctx.save_for_backward(operations.secant(activation, x, y))
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.saved_tensors[0], None


class Engine(TorchFunctionMode):
    """Sees every torch function while it is ``running``. One engine explains one forward pass."""

    def __init__(self, model: Callable[..., Any], composite: Composite, recorder: Recorder | None = None) -> None:
        super().__init__()
        self.composite = composite
        self.recorder = recorder
        self.paths = {m: path for path, m in model.named_modules()} if isinstance(model, nn.Module) else {}
        self.stack: list[nn.Module] = []
        self.traced: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self.token: Tensor | None = None

    # ---------------------------------------------------------------------------------------------- for who runs a model

    def enter(self, x: Tensor, twin: Tensor) -> Tensor:
        """Make x known as the input; returns the tensor to give to the model."""
        entrance = x.view_as(x)  # a model may work in place on it, which a leaf forbids
        self.traced[entrance] = Traced(raw=True, twin=twin)
        self.token = torch.full((), torch.nan, dtype=x.dtype, device=x.device, requires_grad=True)  # never zeros
        return entrance

    def value(self, result: Any) -> Any:
        """Whatever the model returned, with every layer in it run."""
        return tree_map_only(Tensor, self._materialised, result)

    def fill_placeholders(self) -> None:
        """Somebody (a hook of the user's, say) may have kept a placeholder: give it its values."""
        for stand_in, info in list(self.traced.items()):
            if info.pending is not None:
                p = info.pending
                with torch.no_grad():
                    y = p.layer.forward(p.x, p.layer.weight, p.layer.bias) if info.value is None else info.value
                    stand_in.data = y.detach()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Intercept functions, and follow which module runs. The hooks are global: the model itself gets none."""
        thread = threading.get_ident()

        def enter(module: nn.Module, args: Any) -> None:
            if threading.get_ident() == thread:
                self.stack.append(module)

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            if threading.get_ident() == thread and self.stack and self.stack[-1] is module:
                if self.recorder is not None and isinstance(output, Tensor):
                    with torch._C.DisableTorchFunction():
                        self._note_output(self._path(module), output)
                self.stack.pop()

        hooks = [
            module_hooks.register_module_forward_pre_hook(enter),
            module_hooks.register_module_forward_hook(
                leave, always_call=True
            ),  # also when a model catches an exception
        ]
        try:
            with torch.inference_mode(False), torch.enable_grad(), self:
                yield
        finally:
            for hook in hooks:
                hook.remove()

    # --------------------------------------------------------------------------------------------------- the interception

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if not tensors or function in operations.SHAPE_QUERIES:
            return function(*args, **kwargs)
        traced = [self._is_traced(t) for t in tensors]  # each one is looked at: one may come from an unseen operation
        if not any(traced):
            with torch.no_grad():  # constants of the model: nothing flows through them
                return function(*args, **kwargs)
        if function in operations.VALUE_QUERIES:
            with torch.inference_mode(False), torch.enable_grad():
                args, kwargs = self.value((args, kwargs))
            with torch.no_grad():
                return function(*args, **kwargs)
        if not torch.is_grad_enabled():
            raise self._refusal(
                function, "is called while gradients are switched off, which would cut the relevance off"
            )
        if function in operations.AFFINE:
            return self._layer(function, args, kwargs)
        if function in operations.BATCH_NORM:
            return self._batch_norm(function, args, kwargs)
        # what autograd saves is kept as it is: torch.utils.checkpoint would compute it again, without us
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
            return self._between_layers(function, args, kwargs)

    def _is_traced(self, t: Tensor) -> bool:
        if t in self.traced:
            return True
        if t.grad_fn is not None:
            raise UnhandledOperation(
                f"{self._where()} uses a tensor made by {t.grad_fn.name()}, which did not come by as a torch function: LRP "
                "cannot see into custom autograd functions and compiled code, nor into tensors computed beforehand"
            )
        return False

    def _refusal(self, function: Any, why: str) -> UnhandledOperation:
        return UnhandledOperation(f"LRP has no rule for {operations.name(function)} in {self._where()}: it {why}")

    def _where(self) -> str:
        if not self.stack:
            return "the function that was given"
        return f"module {self._path(self.stack[-1])!r} ({type(self.stack[-1]).__name__})"

    def _path(self, module: nn.Module) -> str:
        return self.paths.get(module, type(module).__name__)

    def _here(self) -> str:
        return self._path(self.stack[-1]) if self.stack else ""

    # ------------------------------------------------------------------------------------------------ layers with weights

    def _layer(self, function: Any, args: Any, kwargs: Any) -> Tensor:
        kind = operations.AFFINE[function]
        arguments = operations.arguments(kind, args, kwargs)
        weight, bias = arguments["weight"], arguments.get("bias")
        if weight in self.traced or (bias is not None and bias in self.traced):
            raise self._refusal(function, "has weights that depend on the input")
        x = self._materialised(arguments["input"])
        if kind != "linear" and x.dim() == weight.dim() - 1:
            raise self._refusal(function, "is called on a single item without the batch dimension")
        meta = {k: v.to("meta") if isinstance(v, Tensor) else v for k, v in arguments.items()}
        meta["input"] = torch.empty(x.shape, dtype=x.dtype, device="meta")
        shape = function(**meta).shape
        sources = [weight] if bias is None else [weight, bias]
        return self._placeholder(
            Pending(affine.from_call(kind, arguments), sources, x, self._here(), (kind,), []), shape
        )

    def _batch_norm(self, function: Any, args: Any, kwargs: Any) -> Tensor:
        a = operations.arguments("batch_norm", args, kwargs)
        mean, var = a["running_mean"], a["running_var"]
        if a.get("training") or mean is None or var is None:
            raise self._refusal(function, "takes its statistics from the batch, so that items depend on each other")
        if any(isinstance(t, Tensor) and t in self.traced for t in (mean, var, a.get("weight"), a.get("bias"))):
            raise self._refusal(function, "has statistics or weights that depend on the input")
        norm = (mean, var, a.get("weight"), a.get("bias"), a.get("eps", 1e-5))
        info = self.traced[a["input"]]
        before = info.pending
        # channels are the second axis; those of a linear layer are its last
        same_axis = a["input"].dim() == 2 or before is None or before.layer.kind != "linear"
        untouched = info.value is None or (info.ran and self.traced[info.value].value is None)
        if before is not None and untouched and "batch_norm" not in before.functions and same_axis:
            layer = affine.merge_batch_norm(before.layer, before.sources, *norm)
            functions = (*before.functions, "batch_norm")
            return self._placeholder(Pending(layer, [], before.x, before.path, functions, []), a["input"].shape)
        x = self._materialised(a["input"])
        return self._run(Pending(affine.from_batch_norm(*norm, x.dim()), [], x, self._here(), ("batch_norm",), []))

    def _placeholder(self, pending: Pending, shape: torch.Size) -> Tensor:
        assert self.token is not None
        stand_in = self.token.to(pending.x.dtype).expand(shape)
        self.traced[stand_in] = Traced(pending=pending)
        return stand_in

    def _materialised(self, t: Tensor) -> Tensor:
        """The tensor that t stands for."""
        info = self.traced[t] if self._is_traced(t) else None
        if info is None:
            return t
        if info.value is None and info.pending is not None:
            info.value = self._run(info.pending)
            info.ran = True
        return t if info.value is None else self._materialised(info.value)

    def _run(self, pending: Pending, activation: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Run a layer under its rule, the activation that follows folded in."""
        layer, x = pending.layer, pending.x
        info = self.traced[x]
        rule = self.composite.rule(layer.kind, pending.path, info.raw)
        twin = info.twin if rule.returns_relevance else None
        if rule.returns_relevance and twin is None:
            raise ValueError(
                f"composite: {type(rule).__name__} is for a layer that reads the network's input, since its relevance is "
                f"not proportional to what the layer reads; module {pending.path!r} reads something else"
            )
        row = self.recorder.row(pending.path, pending.functions, repr(rule)) if self.recorder else None
        with torch.no_grad():
            nonnegative = info.nonnegative or not bool((x < 0).any())
            inside = None if twin is None else (twin != 0).to(x)  # the twin is 1 all over, and padding is 0
            call = Call(layer, x.detach(), nonnegative, activation, account=row is not None, inside=inside)
            propagation = rule.propagate(call)
        if self.recorder and row:
            x = self.recorder.input(x, row)
            twin = twin if twin is None else self.recorder.input(twin, row, is_relevance=True)
        with torch.inference_mode(False), torch.enable_grad():
            y = _Propagate.apply(x, twin, propagation)
        self.traced[y] = Traced(nonnegative=activation is torch.relu_)
        if self.recorder and row:
            self.recorder.output(y, row, propagation.parts)
            for path in pending.outputs:
                self.recorder.layer(path, y)
        return y

    def _note_output(self, path: str, output: Tensor) -> None:
        info = self.traced.get(output)
        if self.recorder is None or info is None:
            return
        if info.value is None and info.pending is not None:
            info.pending.outputs.append(path)
        else:
            self.recorder.layer(path, self._materialised(output))

    # ------------------------------------------------------------------------------------------- what lies between layers

    def _between_layers(self, function: Any, args: Any, kwargs: Any) -> Any:
        in_place, function, args, kwargs = operations.out_of_place(function, args, kwargs)
        if in_place:
            self._refuse_shared_memory(function, args[0] if args else kwargs["input"])
        if function in operations.SECANT or function in operations.RELU:
            result = self._activation(function, args, kwargs)
        elif function in operations.DROPOUT:
            if operations.arguments("dropout", args, kwargs).get("training", True):
                raise self._refusal(function, "drops entries at random (training mode)")
            result = self._materialised(operations.arguments("dropout", args, kwargs)["input"])
            in_place = False
        elif function in operations.SCALING:
            named = operations.arguments("scaling", args, kwargs)
            a, b = named["input"], named["other"]
            if named.get("rounding_mode") is not None:
                raise self._refusal(function, "rounds its result")
            divides = function in operations.DIVISION
            if isinstance(b, Tensor) and b in self.traced and (divides or (isinstance(a, Tensor) and a in self.traced)):
                what = "divides by a tensor" if divides else "multiplies two tensors"
                raise self._refusal(function, f"{what} that depend on the input")
            result = self._plain(function, args, kwargs)
        elif function in operations.PLAIN:
            result = self._plain(function, args, kwargs)
        else:
            raise self._refusal(function, "is not among the functions that LRP knows (xaicourse.lrp.operations)")
        if in_place:
            changed = args[0] if args else kwargs["input"]
            while (value := self.traced[changed].value) is not None:
                changed = value
            self.traced[changed].value = result  # whoever still holds the old tensor means the new one
        return result

    def _refuse_shared_memory(self, function: Any, t: Tensor) -> None:
        if t not in self.traced:
            raise self._refusal(function, "works in place on a tensor that does not depend on the input")
        while (value := self.traced[t].value) is not None:  # views are views of the tensor that t stands for
            t = value
        base = self.traced[t].base
        shared = base is not None and base() is not None
        if shared or any(info.base is not None and info.base() is t for info in self.traced.values()):
            raise self._refusal(function, "works in place on memory that another tensor shares")

    def _activation(self, function: Any, args: Any, kwargs: Any) -> Tensor:
        x, rest = operations.first_argument(args, kwargs)
        info, is_relu = self.traced[x], function in operations.RELU
        activation = torch.relu_ if is_relu else rest(function)
        if info.pending is not None and info.value is None and self.recorder is None:
            return self._run(info.pending, activation)
        if is_relu:
            return self._plain(torch.relu, (x,), {})
        x = self._materialised(x)
        row = self.recorder.row(self._here(), (operations.name(function),), "secant") if self.recorder else None
        y = _Secant.apply(self.recorder.input(x, row) if self.recorder and row else x, activation)
        self.traced[y] = Traced(nonnegative=function in operations.NONNEGATIVE)
        if self.recorder and row:
            self.recorder.output(y, row)
        return y

    def _plain(self, function: Any, args: Any, kwargs: Any) -> Any:
        """A function whose plain gradient is its rule."""
        args, kwargs = self.value((args, kwargs))
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        infos = [self.traced[t] for t in tensors if t in self.traced]
        run = operations.VIEW_AS_RESHAPE.get(function, function)
        recorder = self.recorder
        row = recorder.row(self._here(), (operations.name(function),), "gradient") if recorder else None
        if recorder and row:
            probed = tree_map_only(Tensor, lambda t: recorder.input(t, row) if t in self.traced else t, (args, kwargs))
            result = run(*probed[0], **probed[1])
        else:
            result = run(*args, **kwargs)
        outputs = [t for t in tree_leaves(result) if isinstance(t, Tensor) and t.is_floating_point()]
        if not outputs:
            raise self._refusal(function, "turns it into integers, which carry no relevance")
        raw = function not in operations.RELU and all(info.raw for info in infos)
        twins = self._twins(function, run, args, kwargs, infos, outputs, row) if raw else [None] * len(outputs)
        nonnegative = operations.stays_nonnegative(
            function, kwargs, len(tensors), len(infos) == len(tensors) and all(info.nonnegative for info in infos)
        )
        base = next(t for t in tensors if t in self.traced) if function in operations.VIEWS else None
        if base is not None and (older := self.traced[base].base) is not None:
            base = older()
        for t, twin in zip(outputs, twins, strict=True):
            # not the very tensor that came in (``x.contiguous()``), nor a constant that took its form (``k.expand_as(x)``)
            if t in self.traced or not t.requires_grad:
                continue
            self.traced[t] = Traced(raw, twin, nonnegative, None if base is None else weakref.ref(base))
            if recorder and row:
                recorder.output(t, row)
        return result

    def _twins(
        self,
        function: Any,
        run: Any,
        args: Any,
        kwargs: Any,
        infos: list[Traced],
        outputs: list[Tensor],
        row: Row | None,
    ) -> list[Tensor | None]:
        """The same reshapes of the input's twin. A constant that is added or multiplied moves no relevance to elsewhere."""
        if any(info.twin is None for info in infos) or not operations.moves_pixels(function, len(infos)):
            return [None] * len(outputs)
        if function in operations.PIXELWISE and len(infos) == 1:
            twin = infos[0].twin
            return [twin if twin is not None and twin.shape == t.shape else None for t in outputs]
        recorder = self.recorder

        def twin_of(t: Tensor) -> Any:
            twin = self.traced[t].twin if t in self.traced else t
            return recorder.input(twin, row, is_relevance=True) if recorder and row and twin is not t else twin

        swapped = tree_map_only(Tensor, twin_of, (args, kwargs))
        found = tree_leaves(run(*swapped[0], **swapped[1]))
        twins = [t for t in found if isinstance(t, Tensor) and t.is_floating_point()]
        if recorder and row:
            for t in twins:
                if t.requires_grad:
                    recorder.output(t, row, is_relevance=True)
        return [*twins]
