"""The LRP engine: explains any PyTorch model, unmodified, by giving each torch function that it calls its rule.

Lectures 11 and 12. While the model runs, a ``TorchFunctionMode`` sees every torch function it calls, whoever calls it: a
module, a ``+``, a ``torch.cat`` in somebody's ``forward``. Layers with weights run as their rule says (``rules.py``),
other functions as ``operations.py`` says: by their gradient, as a product of gates and signals, by their secant, or written
out in known functions (``composed.py``). A function that nobody knows raises ``UnhandledOperation``. Autograd then carries
c = R / x from the output to the input along the model's own graph.

Four things deserve a word.

*Deferred layers.* A batch norm can only be merged into the layer before it once we have seen it. So a call of a layer
returns a placeholder, a tensor with the right shape and no memory, and is run when somebody wants its values: then we know
whether a batch norm and a ReLU followed. Where values escape us they are NaN.

*Traced tensors.* Every tensor that depends on the input is known to us by identity. A tensor that hangs on the graph and
is not known came from an operation that we did not see, and is refused.

*Two channels.* zB, w2 and flat give R and not R / x at the first layer. They answer to a twin of the input, which goes
through the same reshapes, and in the end R = x c + R_twin. Words have a twin only: an embedding hands it all it has.

*Gates.* The result of a sigmoid, of a softmax or of a square root is marked as a gate, and so is what is made of gates
alone. Where a gate meets a signal in a product, the gate is a constant.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as module_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from ..scores import uncompiled
from . import affine, operations
from .composites import Composite
from .ledger import Recorder, Row
from .operations import Operation
from .rules import Call, Propagation


class UnhandledOperation(NotImplementedError):
    """A model calls a function that LRP has no rule for."""


@dataclass(eq=False)
class Traced:
    """What we know of a tensor that depends on the input.

    raw          it is the input, perhaps reshaped or shifted: no layer and no activation lies between
    twin         the input's twin after the same reshapes, for rules that return relevance itself
    nonnegative  it has no entry below zero
    gate         1 if it is made of gates alone: a signal that it multiplies takes all; 2 if they are gates through which
                 relevance has no way back (attention weights)
    index        it is made of the model's integer input (words); an embedding reads it
    base         another tensor whose memory it may share
    shifted      it is a tensor plus a number
    bounded      it lies between two numbers of both signs (tanh): with a number added it is a gate
    stale        somebody has changed that memory in place: its values are not known any more
    pending      the layer whose output it stands for, if it is a placeholder
    value        the tensor that took its place: the layer's output, or the result of a function that works in place
    ran          that value is the layer's output: somebody looked at it
    """

    raw: bool = False
    twin: Tensor | None = None
    nonnegative: bool = False
    gate: int = 0
    index: bool = False
    base: weakref.ref[Tensor] | None = None
    shifted: bool = False
    bounded: bool = False
    stale: bool = False
    pending: Pending | None = None
    value: Tensor | None = None
    ran: bool = False


@dataclass(eq=False)
class Pending:
    """A layer that has been called and not yet run, with the batch norm that followed already merged."""

    layer: affine.Affine
    sources: list[Tensor]  # the model's own tensors that it shares memory with
    x: Tensor
    path: str  # of the module that called it
    depth: int  # its place among the layers, in the order in which they are first called
    functions: tuple[str, ...]
    outputs: list[str]  # paths of the modules whose output it is
    watch: Watch = field(init=False)

    def __post_init__(self) -> None:
        self.watch = Watch(self.sources, [_version(t) for t in self.sources], self.path, self.functions[0])


@dataclass(frozen=True)
class Watch:
    """The weights of a call, as they were then. It outlives the call, and so holds no activation."""

    sources: list[Tensor]
    versions: list[int]
    path: str
    function: str

    def check(self) -> None:
        """Nobody may have changed the weights since."""
        if [_version(t) for t in self.sources] != self.versions:
            raise UnhandledOperation(
                f"LRP cannot follow module {self.path!r}: a weight of its {self.function} was changed in place afterwards"
            )


class _Propagate(torch.autograd.Function):
    """One call of a layer under its rule: on the way back, c_y to c_x; or R_x to the twin, for the rules that give R."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, twin: Tensor | None, propagation: Propagation, watch: Watch) -> Tensor:
        ctx.pull, ctx.to_twin, ctx.watch = propagation.pull, twin is not None, watch
        return propagation.output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        ctx.watch.check()
        pulled = ctx.pull(gradients[0])
        ctx.pull = None  # frees what the rule remembered as soon as it is used
        return (None, pulled, None, None) if ctx.to_twin else (pulled, None, None, None)


class _Secant(torch.autograd.Function):
    """An activation y = g(x) with its secant (y - g(0)) / x in place of its tangent."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: Callable[[Tensor], Tensor], zero: bool) -> Tensor:
        y = activation(x)
        rise = y if zero else y - activation(torch.zeros_like(x))
        ctx.save_for_backward(operations.secant(activation, x, rise))
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0] * ctx.saved_tensors[0], None, None


class _Share(torch.autograd.Function):
    """The identity; relevance comes back as this share of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float) -> Tensor:
        ctx.share = share
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.share, None


class _Gate(torch.autograd.Function):
    """Weights that steer a signal. Relevance has no business here; if some arrives, there is no rule for it."""

    @staticmethod
    def forward(ctx: Any, why: str, compute: Callable[[], Any], *sources: Tensor) -> Any:
        ctx.why, ctx.sources = why, len(sources)
        ctx.set_materialize_grads(False)
        return compute()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, ...]:
        if any(g is not None and bool((g != 0).any()) for g in gradients):
            raise UnhandledOperation(ctx.why)
        return (None,) * (2 + ctx.sources)


class _Embed(torch.autograd.Function):
    """Rows of a table by index: on the way back, R_i = sum_k y_ik c_ik to the twin of the indices."""

    @staticmethod
    def forward(ctx: Any, twin: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.dtype = twin.dtype
        return rows.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return (gradients[0] * ctx.saved_tensors[0]).sum(-1).to(ctx.dtype), None


class Engine(TorchFunctionMode):
    """Sees every torch function while it is ``running``. One engine explains one forward pass."""

    def __init__(
        self,
        model: Callable[..., Any],
        composite: Composite,
        recorder: Recorder | None = None,
        *,
        layers: int | None = None,
        watched: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__()
        self.composite = composite
        self.recorder = recorder
        self.layers = layers
        self.watched = watched
        self.outputs: dict[str, Tensor] = {}
        self.paths = {m: path for path, m in model.named_modules()} if isinstance(model, nn.Module) else {}
        self.stack: list[nn.Module] = []
        self.within: list[str] = []
        self.traced: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self.viewed: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self.detached: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self.depths: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self.token: Tensor | None = None
        self.saw_autocast = False
        self.error: TypeError | None = None

    # ---------------------------------------------------------------------------------------------- for who runs a model

    def enter(self, x: Tensor, twin: Tensor) -> Tensor:
        """Make x known as the input; returns the tensor to give to the model."""
        is_index = not x.is_floating_point()
        entrance = x.clone() if is_index else x.view_as(x)  # a model may work in place on it, which a leaf forbids
        self.traced[entrance] = Traced(raw=True, twin=twin, index=is_index)
        self.token = torch.full((), torch.nan, dtype=twin.dtype, device=x.device, requires_grad=True)  # never zeros
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
        """Intercept functions, and follow which module runs. What is changed for it is global and changed back: the model
        itself gets no hooks."""
        thread = threading.get_ident()

        def enter(module: nn.Module, args: Any) -> None:
            if threading.get_ident() == thread:
                self.stack.append(module)

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            if threading.get_ident() == thread and self.stack and self.stack[-1] is module:
                output = output[0] if isinstance(output, (tuple, list)) and output else output
                if isinstance(output, Tensor):
                    with torch._C.DisableTorchFunction():
                        self._note_output(self._path(module), output)
                self.stack.pop()

        hooks = [
            module_hooks.register_module_forward_pre_hook(enter),
            module_hooks.register_module_forward_hook(leave, always_call=True),  # a model may catch an exception
        ]
        try:
            with torch.inference_mode(False), torch.enable_grad(), _seeing_custom_functions(), uncompiled(), self:
                yield
        except TypeError:
            if self.error is not None:  # Python's ``*`` makes another one of it
                raise self.error from None
            raise
        finally:
            for hook in hooks:
                hook.remove()

    # --------------------------------------------------------------------------------------------------- the interception

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        operation = operations.find(function, args, kwargs)
        if not tensors or (operation is not None and operation.rule == "form"):
            return function(*args, **kwargs)
        traced = [self._is_traced(t) for t in tensors]  # each one is looked at: one may come from an unseen operation
        if not any(traced):
            return self._constant(function, args, kwargs)
        device = tensors[0].device.type
        if not torch.is_autocast_enabled(device):
            return self._handle(function, operation, args, kwargs)
        self.saw_autocast = True
        with torch.autocast(device, enabled=False):  # LRP computes in the dtypes of inputs and weights
            return self._handle(function, operation, args, kwargs)

    def _handle(self, function: Any, operation: Operation | None, args: Any, kwargs: Any) -> Any:
        if operation is not None and operation.rule == "values":
            with torch.inference_mode(False), torch.enable_grad():
                args, kwargs = self.value((args, kwargs))
            if operation.name in ("one_hot", "bincount") and any(
                self.traced[t].index for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t in self.traced
            ):
                raise self._not_words(function)
            with torch.no_grad():
                answer = function(*args, **kwargs)
            if any(isinstance(t, Tensor) and t.is_floating_point() for t in tree_leaves(answer)):
                raise self._refusal(function, "is taken for a question, and answers by numbers made of the input")
            return answer
        if kwargs.get("out") is not None:
            raise self._refusal(function, "writes into a tensor that is given as out")
        if not torch.is_grad_enabled():
            raise self._refusal(
                function, "is called while gradients are switched off, which would cut the relevance off"
            )
        in_place, function, args, kwargs = operations.out_of_place(function, args, kwargs)
        if in_place and operation is not None and operation.rule == "dropout":
            in_place = False  # in evaluation mode nothing is changed
        if in_place:
            self._refuse_shared_constant(function, args[0] if args else kwargs["input"])
            operation = operations.find(function, args, kwargs)
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t in self.traced]
        if any(self.traced[t].index for t in tensors):
            return self._indices(function, operation, args, kwargs)
        if operation is None:
            return self._open(function, args, kwargs)
        # what autograd saves is kept as it is: torch.utils.checkpoint would compute it again, without us
        with torch.autograd.graph.saved_tensors_hooks(_pack, _unpack):
            result = self._by_rule(function, operation, args, kwargs)
        if in_place:
            changed = args[0] if args else kwargs["input"]
            if changed not in self.traced:
                self.traced[changed] = Traced(value=result)
                return changed
            if result is not changed:
                self._mark_stale(changed)
                self._replace(changed, result)
        return result

    def _by_rule(self, function: Any, operation: Operation, args: Any, kwargs: Any) -> Any:
        match operation.rule:
            case "layer":
                return self._layer(function, operation, args, kwargs)
            case "batch_norm":
                return self._batch_norm(function, args, kwargs)
            case "dropout":
                named = operations.arguments("dropout", args, kwargs)
                if named.get("training", named.get("train", True)) and named.get("p", 0.5) != 0:
                    raise self._refusal(function, "drops entries at random (training mode)")
                return self._materialised(named["input"])
            case "assignment":
                return self._assign(function, operation, args, kwargs)
            case "product":
                if kwargs.get("rounding_mode") is not None:
                    raise self._refusal(function, "rounds its result")
                if operation.name == "scaled_dot_product_attention" and (kwargs.get("dropout_p") or any(args[4:5])):
                    raise self._refusal(function, "drops entries at random")
                return self._product(function, operation, args, kwargs)
            case "secant":
                return self._activation(function, operation, args, kwargs)
            case "gate":
                return self._gate(function, operation, args, kwargs)
            case "constant":
                args, kwargs = self.value((args, kwargs))
                with torch.no_grad():
                    result = tree_map_only(Tensor, lambda t: t.detach().clone(), function(*args, **kwargs))
                for t in tree_leaves(result):
                    self.detached[t] = True
                return result
            case "composed":
                return self._compose(operation.name, operation.made_of, args, kwargs)
            case "gradient":
                if operation.name == "relu":
                    return self._activation(function, operation, args, kwargs)
                return self._gradient(function, operation, args, kwargs)
        raise self._refusal(function, "looks up a table that depends on the input")

    def _constant(self, function: Any, args: Any, kwargs: Any) -> Any:
        """Nothing flows through what does not depend on the input."""
        if self.detached and operations.writes(function) and args and args[0] in self.detached:
            raise self._refusal(function, "changes a tensor of the model in place, through a detached one")
        with torch.no_grad():
            result = function(*args, **kwargs)
        for t in tree_leaves(result):
            if isinstance(t, Tensor) and t._is_view() and t._base is not None:
                self.viewed[t._base] = True
        return result

    def _open(self, function: Any, args: Any, kwargs: Any) -> Any:
        body = operations.opened(function)
        if body is None:
            raise self._refusal(
                function,
                "is not among the functions that LRP knows (xaicourse.lrp.operations); lrp.register(function, rule) tells it "
                "what to do",
            )
        return self._compose(function.__name__, body, args, kwargs)

    def _compose(self, name: str, body: Any, args: Any, kwargs: Any) -> Any:
        """What a function calls, seen as the model's own calls are."""
        self.within.append(name)
        try:
            with self:
                return body(*args, **kwargs)
        except NotImplementedError as error:
            if isinstance(error, UnhandledOperation):
                raise
            raise UnhandledOperation(f"LRP has no rule for {name} in {self._where()}: {error}") from error
        finally:
            self.within.pop()

    def _custom(self, cls: Any, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A custom autograd function, which may have been registered."""
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if not any(self._is_traced(t) for t in tensors):
            return self._constant(run, args, kwargs)
        operation = operations.find(cls)
        if operation is None:
            raise UnhandledOperation(
                f"LRP has no rule for the custom autograd function {cls.__qualname__} in {self._where()}; "
                f"lrp.register({cls.__qualname__}, rule) tells it what to do"
            )
        return self._by_rule(run, operation, args, kwargs)

    def _is_traced(self, t: Tensor) -> bool:
        if t in self.traced:
            if self.traced[t].stale:
                raise UnhandledOperation(
                    f"LRP cannot follow {self._where()}: it uses a tensor whose memory was changed in place through another"
                )
            return True
        if t.grad_fn is not None:
            raise UnhandledOperation(
                f"{self._where()} uses a tensor made by {t.grad_fn.name()}, which did not come by as a torch function: LRP "
                "cannot see into compiled code, nor into tensors computed beforehand"
            )
        if torch._C._functorch.is_functorch_wrapped_tensor(t):
            raise UnhandledOperation(
                f"{self._where()} works within torch.func (vmap, grad, jvp), where LRP cannot see which tensor is which"
            )
        return False

    def _refusal(self, function: Any, why: str) -> UnhandledOperation:
        called_by = f" (called by {self.within[-1]})" if self.within else ""
        return UnhandledOperation(
            f"LRP has no rule for {operations.name(function)}{called_by} in {self._where()}: it {why}"
        )

    def _not_words(self, function: Any) -> TypeError:
        self.error = TypeError(
            f"inputs must have a float dtype, or be indices of an embedding; here {operations.name(function)} in "
            f"{self._where()} reads integers as numbers"
        )
        return self.error

    def _where(self) -> str:
        if not self.stack:
            return "the function that was given"
        return f"module {self._path(self.stack[-1])!r} ({type(self.stack[-1]).__name__})"

    def _path(self, module: nn.Module) -> str:
        return self.paths.get(module, type(module).__name__)

    def _here(self) -> str:
        return self._path(self.stack[-1]) if self.stack else ""

    def _row(self, operation: str | Operation, rule: str, constants: bool = False) -> Row | None:
        if self.recorder is None:
            return None
        name = operation if isinstance(operation, str) else operation.name
        return self.recorder.row(self._here(), (": ".join([*self.within, name]),), rule, constants=constants)

    # ------------------------------------------------------------------------------------------------ layers with weights

    def _layer(self, function: Any, operation: Operation, args: Any, kwargs: Any) -> Tensor:
        kind = operation.name
        arguments = operations.arguments(kind, args, kwargs)
        weight, bias = arguments["weight"], arguments.get("bias")
        if weight in self.traced or (bias is not None and bias in self.traced):
            return self._product(function, replace(operation, constants=True), args, kwargs)
        x = self._materialised(arguments["input"])
        if kind != "linear" and x.dim() == weight.dim() - 1:
            raise self._refusal(function, "is called on a single item without the batch dimension")
        if x.dtype != weight.dtype and self.saw_autocast:  # it would see to it
            x = self._gradient(Tensor.to, operations.find(Tensor.to), (x, weight.dtype), {})
        meta = {k: v.to("meta") if isinstance(v, Tensor) else v for k, v in arguments.items()}
        meta["input"] = torch.empty(x.shape, dtype=x.dtype, device="meta")
        shape = function(**meta).shape
        sources = [weight] if bias is None else [weight, bias]
        depth = self.depths.setdefault(weight, len(self.depths))
        layer = affine.from_call(kind, arguments)
        functions = (": ".join([*self.within, kind]),)
        return self._placeholder(Pending(layer, sources, x, self._here(), depth, functions, []), shape)

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
            pending = Pending(layer, [], before.x, before.path, before.depth, functions, [])
            return self._placeholder(pending, a["input"].shape)
        x = self._materialised(a["input"])
        layer = affine.from_batch_norm(*norm, x.dim())
        return self._run(Pending(layer, [], x, self._here(), len(self.depths), ("batch_norm",), []))

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
        pending.watch.check()
        layer, x = pending.layer, pending.x
        info = self.traced[x]
        rule = self.composite.rule(layer.kind, pending.path, info.raw, pending.depth, self.layers)
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
            y = _Propagate.apply(x, twin, propagation, pending.watch)
        # a layer that mixes attention weights makes attention weights; one that reads other gates has features for signals
        self.traced[y] = Traced(nonnegative=activation is torch.relu_, gate=2 if info.gate == 2 else 0)
        if self.recorder and row:
            self.recorder.output(y, row, propagation.parts)
        for path in pending.outputs:
            self._keep_output(path, y)
        return y

    def _note_output(self, path: str, output: Tensor) -> None:
        info = self.traced.get(output)
        if info is None or (self.recorder is None and path not in self.watched):
            return
        if info.value is None and info.pending is not None:
            info.pending.outputs.append(path)
        else:
            self._keep_output(path, self._materialised(output))

    def _keep_output(self, path: str, y: Tensor) -> None:
        if not y.requires_grad:
            return
        if path in self.watched:
            self.outputs.setdefault(path, y)
        if self.recorder is not None:
            self.recorder.layer(path, y)

    # ------------------------------------------------------------------------------------------- what lies between layers

    def _activation(self, function: Any, operation: Operation, args: Any, kwargs: Any) -> Tensor:
        x, rest = operations.first_argument(args, kwargs)
        others = [
            t for t in tree_leaves((args[1:], kwargs)) if isinstance(t, Tensor) and t is not x and t in self.traced
        ]
        if others or not isinstance(x, Tensor) or x not in self.traced:
            raise self._refusal(function, "has settings that depend on the input")
        info, is_relu = self.traced[x], operation.name == "relu"
        activation = torch.relu_ if is_relu else rest(function)
        wanted = info.pending is not None and info.pending.outputs  # before the activation
        if info.pending is not None and info.value is None and operation.zero and not (self.recorder or wanted):
            y = self._run(info.pending, activation)
            self._mark_activation(y, operation, info)
            return y
        if is_relu:
            return self._gradient(torch.relu, operation, (x,), {})
        x = self._materialised(x)
        info = self.traced[x]
        row = self._row(operation, "secant", constants=not operation.zero)
        y = _Secant.apply(self.recorder.input(x, row) if self.recorder and row else x, activation, operation.zero)
        self.traced[y] = Traced(gate=info.gate)
        self._mark_activation(y, operation, info)
        if self.recorder and row:
            self.recorder.output(y, row)
        return y

    def _mark_activation(self, y: Tensor, operation: Operation, x: Traced) -> None:
        """What is known of the result of an activation. relu6(x + 3) / 6 is a gate that somebody spelled out."""
        info = self.traced[y]
        spelled_out = operation.bounded and operation.keeps_sign and x.shifted and x.twin is None
        info.nonnegative = info.nonnegative or operation.keeps_sign or operation.name == "relu"
        info.gate = max(info.gate, operation.gate, int(spelled_out))
        info.bounded = operation.bounded and not operation.keeps_sign

    def _gate(self, function: Any, operation: Operation, args: Any, kwargs: Any) -> Any:
        """Weights, made of whatever: nothing flows back."""
        args, kwargs = self.value((args, kwargs))
        sources = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t in self.traced]
        held = tree_map_only(Tensor, Tensor.detach, (args, kwargs))
        refusal = self._refusal(
            function,
            "is a gate: it steers signals that it multiplies, but here relevance reaches it. Explain the logits if the model "
            "ends with it; lrp.register(function, rule) gives it a rule",
        )
        result = _Gate.apply(str(refusal), lambda: function(*held[0], **held[1]), *sources)
        for t in tree_leaves(result):
            if isinstance(t, Tensor) and t.is_floating_point():
                self.traced[t] = Traced(nonnegative=operation.keeps_sign, gate=2)
        return result

    def _product(self, function: Any, operation: Operation, args: Any, kwargs: Any) -> Any:
        """Linear in each factor: signals share, gates and divisors are constants."""
        if len(args) == 2 and isinstance(args[1], (list, tuple)):  # einsum takes its operands in a list, too
            args = (args[0], *args[1])
        args, kwargs = self.value((args, kwargs))
        placed = [*enumerate(args), *kwargs.items()]
        traced = {key: self.traced[t] for key, t in placed if isinstance(t, Tensor) and t in self.traced}
        factors = [key for key in traced if operation.role(key) == "*"]
        added = [key for key in traced if operation.role(key) == "+"]
        signals = [key for key in factors if not traced[key].gate]
        takers = signals or factors
        if not takers and not added:
            return self._gate(function, operation, args, kwargs)
        shares = {**dict.fromkeys(takers, 1 / max(len(takers), 1)), **dict.fromkeys(added, 1.0)}
        flows = [traced[key] for key in shares]
        what = "signal takes all" if len(traced) > len(shares) else "gradient" if len(takers) < 2 else "equal shares"
        return self._gradient(function, operation, args, kwargs, shares, flows, what)

    def _gradient(
        self,
        function: Any,
        operation: Operation | None,
        args: Any,
        kwargs: Any,
        shares: dict[int | str, float] | None = None,
        infos: list[Traced] | None = None,
        what: str = "gradient",
    ) -> Any:
        """A function whose plain gradient is its rule; of a product each argument by its share."""
        assert operation is not None
        args, kwargs = self.value((args, kwargs))
        if (
            operation.name in operations.TAKE_A_FORM and args and args[0] not in self.traced
        ):  # a constant takes the form of x: ``mask.expand_as(x)``
            return self._constant(function, *tree_map_only(Tensor, Tensor.detach, (args, kwargs)))
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if infos is None:
            infos = [self.traced[t] for t in tensors if t in self.traced]
        run = operations.VIEW_AS_RESHAPE.get(function, function)
        row = self._row(operation, what, operation.constants)

        def edge(t: Any, share: float = 1.0) -> Any:
            if t not in self.traced:
                return t
            if share == 0:
                return t.detach()
            t = self.recorder.input(t, row) if self.recorder and row else t
            return t if share == 1 else _Share.apply(t, share)

        if shares is None:
            given = tree_map_only(Tensor, edge, (args, kwargs))
        else:
            given = (
                tuple(edge(t, shares.get(i, 0.0)) if isinstance(t, Tensor) else t for i, t in enumerate(args)),
                {k: edge(t, shares.get(k, 0.0)) if isinstance(t, Tensor) else t for k, t in kwargs.items()},
            )
        result = run(*given[0], **given[1])
        outputs = [t for t in tree_leaves(result) if isinstance(t, Tensor) and t.is_floating_point()]
        if not outputs:
            raise self._refusal(function, "turns it into integers, which carry no relevance")
        raw = operation.name != "relu" and all(info.raw for info in infos)
        alone = shares is None or len(shares) == sum(t in self.traced for t in tensors) == 1
        twins = [None] * len(outputs)
        if raw and alone:
            twins = self._twins(operation, run, args, kwargs, infos, outputs, row)  # type: ignore[assignment]
        nonnegative = operation.name == "relu" or self._keeps_sign(operation, args, kwargs, tensors, infos)
        copies = operation.name == "__getitem__" and any(isinstance(i, (Tensor, list)) for i in tree_leaves(args[1:]))
        base = next(t for t in tensors if t in self.traced) if operation.view and not copies else None
        if base is not None and (older := self.traced[base].base) is not None:
            base = older()
        gate = max(operation.gate, min((info.gate for info in infos), default=0))
        others = [v for v in (*args, *kwargs.values()) if not (isinstance(v, Tensor) and v in self.traced)]
        by_number = len(infos) == 1 and all(not isinstance(v, Tensor) or v.dim() == 0 for v in others)
        shifted = (
            operation.adds and by_number and any(isinstance(v, (int, float, Tensor)) and bool(v != 0) for v in others)
        )
        if shifted and infos[0].bounded:
            gate = max(gate, 1)
        bounded = operation.rule == "product" and by_number and infos[0].bounded
        for t, twin in zip(outputs, twins, strict=True):
            # not the very tensor that came in (``x.contiguous()``), nor a constant that took its form (``k.expand_as(x)``)
            if t in self.traced or not t.requires_grad:
                continue
            shown = None if base is None else weakref.ref(base)
            self.traced[t] = Traced(raw, twin, nonnegative, gate, base=shown, shifted=shifted, bounded=bounded)
            if self.recorder and row:
                self.recorder.output(t, row)
        return result

    @staticmethod
    def _keeps_sign(operation: Operation, args: Any, kwargs: Any, tensors: list[Tensor], infos: list[Traced]) -> bool:
        if not operation.keeps_sign or len(infos) < len(tensors) or not all(info.nonnegative for info in infos):
            return False
        return not operation.adds or (len(tensors) == 2 and not kwargs.get("alpha"))  # a number may be negative

    def _twins(
        self,
        operation: Operation,
        run: Any,
        args: Any,
        kwargs: Any,
        infos: list[Traced],
        outputs: list[Tensor],
        row: Row | None,
    ) -> list[Tensor | None]:
        """The same reshapes of the input's twin. A constant that is added or multiplied moves no relevance to elsewhere."""
        if any(info.twin is None for info in infos) or not operation.moves or (operation.adds and len(infos) > 1):
            return [None] * len(outputs)
        if operation.entrywise and len(infos) == 1:
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

    # ------------------------------------------------------------------------------------------------------------ in place

    def _replace(self, changed: Tensor, result: Tensor) -> None:
        """Whoever still holds the old tensor means the new one."""
        while (value := self.traced[changed].value) is not None:
            changed = value
        self.traced[changed].value = result

    def _refuse_shared_constant(self, function: Any, t: Tensor) -> None:
        """A constant that is changed in place becomes another tensor; then no other tensor may show its memory."""
        if t not in self.traced and (t._is_view() or t in self.viewed):
            raise self._refusal(function, "changes a constant in place whose memory another tensor shares")

    def _mark_stale(self, t: Tensor) -> None:
        """The memory of t changes: all other tensors that share it have unknown values from now on."""
        while (value := self.traced[t].value) is not None:  # views are views of the tensor that t stands for
            t = value
        base = self.traced[t].base
        owner = t if base is None else base()
        for other, info in self.traced.items():
            shares = other is owner or (info.base is not None and owner is not None and info.base() is owner)
            if shares and other is not t:
                info.stale = True

    def _assign(self, function: Any, operation: Operation, args: Any, kwargs: Any) -> Any:
        """``y[index] = x``: a new tensor takes the place of y, which may have been a constant until now."""
        target = args[0]
        self._refuse_shared_constant(function, target)
        (old, *rest), kwargs = self.value((args, kwargs))
        row = self._row(operation, "gradient", constants=True)
        traced = [t for t in (old, *tree_leaves(rest)) if isinstance(t, Tensor) and t in self.traced]
        old_info, infos = self.traced.get(old), [self.traced[t] for t in traced]

        def edge(t: Tensor) -> Tensor:
            return self.recorder.input(t, row) if self.recorder and row and t in self.traced else t

        given = tree_map_only(Tensor, edge, rest)
        new = edge(old).clone()
        function(new, *given, **kwargs)
        if not new.requires_grad:  # nothing but constants was assigned, to a constant
            return function(target, *rest, **kwargs)
        nonnegative = len(infos) == 2 and all(info.nonnegative for info in infos)
        self.traced[new] = Traced(nonnegative=nonnegative, gate=min(info.gate for info in infos))
        if self.recorder and row:
            self.recorder.output(new, row)
        if old_info is None:
            self.traced[target] = Traced(value=new)
        else:
            self._mark_stale(target)
            self._replace(target, new)
        return target

    # --------------------------------------------------------------------------------------------------------------- words

    def _indices(self, function: Any, operation: Operation | None, args: Any, kwargs: Any) -> Any:
        """Functions of a model's integer inputs: they are moved about, compared, and read by an embedding."""
        row: Row | None = None
        named = operations.arguments("embedding", args, kwargs) if operation and operation.rule == "embedding" else {}
        indices = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t in self.traced]
        if named and indices == [named["input"]]:
            if named.get("max_norm") is not None:
                raise self._refusal(function, "changes its table as it is read (max_norm)")
            twin = self.traced[named["input"]].twin
            if twin is None:
                raise self._refusal(function, "reads indices that are made of several of the input's")
            row = self._row("embedding", "its rows take all")
            with torch.no_grad():
                rows = function(*args, **kwargs)
            y = _Embed.apply(self.recorder.input(twin, row, is_relevance=True) if self.recorder and row else twin, rows)
            self.traced[y] = Traced()
            if self.recorder and row:
                self.recorder.output(y, row)
            return y
        if operation is not None and operation.rule == "composed":
            return self._compose(operation.name, operation.made_of, args, kwargs)
        if operation is not None and operation.name in operations.TAKE_A_FORM and args[0] not in self.traced:
            if operation.name == "__getitem__" and args[0].is_floating_point():
                if isinstance(args[1], Tensor) and args[0].dim() == 2:  # rows of a table
                    return self._indices(F.embedding, operations.find(F.embedding), (args[1], args[0]), {})
                raise self._refusal(function, "looks up a table by the integer inputs in a way that LRP does not know")
            return self._constant(function, args, kwargs)  # a constant takes the form of the words
        entrywise = operation is not None and (
            operation.entrywise or operation.name in ("clamp", "clamp_min", "clamp_max")
        )
        if operation is None or not (operation.moves or entrywise):
            raise self._not_words(function)
        with torch.no_grad():
            result = function(*args, **kwargs)
        outputs = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        if any(t.is_floating_point() for t in outputs):
            raise self._not_words(function)
        infos = [self.traced[t] for t in indices]
        if entrywise and not operation.view:
            twin = infos[0].twin
            twins = [twin if len(infos) == 1 and twin is not None and twin.shape == t.shape else None for t in outputs]
        else:
            picks = operation.name in ("__getitem__", "gather", "index_select", "take_along_dim")  # by constant indices

            def twin_of(t: Tensor) -> Any:
                if t in self.traced:
                    twin = self.traced[t].twin
                    return (
                        self.recorder.input(twin, row, is_relevance=True)
                        if self.recorder and row and twin is not None
                        else twin
                    )
                return t if picks or t.dtype == torch.bool else torch.zeros_like(t, dtype=torch.float)

            if operation.entrywise:  # only its dtype or device changes
                twins = [infos[0].twin]
            elif any(info.twin is None for info in infos):
                twins = [None] * len(outputs)
            else:
                row = self._row(operation, "gradient", constants=True)
                as_twins = tree_map_only(Tensor, twin_of, (args, kwargs))
                twins = tree_leaves(function(*as_twins[0], **as_twins[1]))
                if self.recorder and row:
                    for twin in twins:
                        self.recorder.output(twin, row, is_relevance=True)
        for t, twin in zip(outputs, twins, strict=True):
            if t not in self.traced:
                self.traced[t] = Traced(raw=True, twin=twin, index=True)
        return result


def _version(t: Tensor) -> int:
    return 0 if t.is_inference() else t._version


def _pack(t: Tensor) -> tuple[Tensor, int]:
    """Autograd keeps a tensor for the way back; ours is the tensor itself, so that nobody computes it again."""
    return t, _version(t)


def _unpack(packed: tuple[Tensor, int]) -> Tensor:
    t, version = packed
    if _version(t) != version:
        raise UnhandledOperation("LRP cannot follow the model: it changes a tensor in place after it has used it")
    return t


_LOCK = threading.Lock()
_watchers = 0


@contextmanager
def _seeing_custom_functions() -> Iterator[None]:
    """A custom autograd function is no torch function: while an engine runs in any thread, its ``apply`` comes by here."""
    global _watchers
    with _LOCK:
        _watchers += 1
        if _watchers == 1:
            torch.autograd.Function.apply = classmethod(_apply)
    try:
        yield
    finally:
        with _LOCK:
            _watchers -= 1
            if _watchers == 0:
                _restore_apply()


_OWN_APPLY: Any = vars(torch.autograd.Function).get("apply")


def _apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
    parent: Any = super(torch.autograd.Function, cls)
    run = parent.apply if _OWN_APPLY is None else _OWN_APPLY.__get__(None, cls)
    engine = torch.overrides._get_current_function_mode()
    if not isinstance(engine, Engine):  # from within a rule, or in another thread
        return run(*args, **kwargs)
    with _popped(engine):
        return engine._custom(cls, run, args, kwargs)


def _restore_apply() -> None:
    if _OWN_APPLY is None:
        del torch.autograd.Function.apply
    else:
        torch.autograd.Function.apply = _OWN_APPLY


@contextmanager
def _popped(mode: TorchFunctionMode) -> Iterator[None]:
    """Take the mode away for a while, as it is taken away while it handles a function."""
    from torch.overrides import _pop_mode, _push_mode

    _pop_mode()
    try:
        yield
    finally:
        _push_mode(mode)
