r"""The LRP rules: how one affine layer hands the relevance of its outputs to its inputs.

Lecture 11 (slides "alpha-beta LRP rule" to "bounded relevance scale") and lecture 12. A neuron computes
y_k = g(z_k) with z_k = sum_i w_ik x_i + b_k. A rule says which fraction M of its relevance goes to each input,

    R_i = sum_k M_{i<-k} R_k.

Most rules are proportional to the input. They are written here for c = R / x, the relevance per unit of activation:
then a rule is a *modified gradient*, c_x = W_rho^T (c_y q) with q = y / z_rho, and what stands between the layers
(sums, reshapes, poolings) needs no rule of its own, since c flows through it as the gradient does. q is all that a
layer remembers. Where x has both signs, the positive part of w x is W+ x+ + W- x-, two maps instead of one.

Three tiers stand side by side and the tests hold them equal: the formula on a toy (lecture 11), the formula on a
layer's Jacobian (``reference.py``), and these.

Bach et al. 2015, On pixel-wise explanations for non-linear classifier decisions by layer-wise relevance propagation,
PLoS ONE 10(7). Montavon et al. 2017, Explaining nonlinear classification decisions with deep Taylor decomposition,
Pattern Recognition 65. Montavon et al. 2019, Layer-wise relevance propagation: an overview, LNCS 11700.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .affine import Affine

STABILISER = 1e-6
"""The epsilon of the named composites, for activations of order one in float32."""


class Part(NamedTuple):
    """One sum that a rule divides by, as the ledger sees it: c q z is passed on, c q bias stays with the bias."""

    share: float  # what this part is to carry of the neuron's relevance c y: 1, or 1 + beta and -beta
    z: Tensor
    bias: Tensor | None
    q: Tensor


class Propagation(NamedTuple):
    """What a rule makes of one call of a layer: its output y, the way back from c_y to c_x, and its ledger parts.

    ``pull`` may be called once: it uses the memory of what the rule remembered.
    """

    output: Tensor
    pull: Callable[[Tensor], Tensor]
    parts: list[Part]


@dataclass(frozen=True, eq=False)
class Call:
    """One call of an affine layer.

    nonnegative  no entry of x is below zero, so that one map is enough where signs matter
    activation   g with g(0) = 0 that follows, folded in: the secant g(z) / z becomes part of q; ``torch.relu_`` or None
                 or a function that leaves its argument alone
    account      return the parts for the ledger, computed without shortcuts
    inside       1 where x is an entry of the network's input and 0 where it is padding; asked for by the rules that
                 return relevance, for they would give padding a share too
    """

    layer: Affine
    x: Tensor
    nonnegative: bool = False
    activation: Callable[[Tensor], Tensor] | None = None
    account: bool = False
    inside: Tensor | None = None

    def broadcast(self, bias: Tensor) -> Tensor:
        """A bias of the layer, shaped so that it can be added to its output."""
        return self.layer.along_channels(bias, self.x.dim())

    def part(self, share: float, z: Tensor, bias: Tensor | None, q: Tensor) -> Part:
        return Part(share, z, None if bias is None else self.broadcast(bias), q)

    def stabilised(self, bias: Tensor | None, epsilon: float) -> Tensor:
        """bias + epsilon, as a bias: where the sign of a sum is known, the layer itself adds its stabiliser."""
        constant = self.layer.constant(epsilon)
        return constant if bias is None else constant + bias

    def output(self) -> Tensor:
        return self.layer.forward(self.x, self.layer.weight, self.layer.bias)

    def activated(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """g(y), and y itself wherever g(y) is not zero (all of y, unless g is a ReLU, which works in place)."""
        if self.activation is None:
            return y, y
        out = self.activation(y)
        return (out, out) if self.activation is torch.relu_ else (out, y)

    def map(self, for_positive: Tensor, for_negative: Tensor, bias: Tensor | None = None) -> Tensor:
        """A x+ + B x- + bias, with the weights A that positive inputs meet and B that negative ones do."""
        if self.nonnegative:
            return self.layer.forward(self.x, for_positive, bias)
        signed = self.x.clamp(min=0), self.x.clamp(max=0)
        return self.layer.forward_sum(signed, (for_positive, for_negative), bias)

    def transposer(self) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """The transpose of ``map``, (s, A, B) -> c_x; it keeps the signs of x, not x itself."""
        layer, shape = self.layer, self.x.shape
        if self.nonnegative:
            return lambda s, a, b: layer.transpose(s, a, shape)
        above = self.x > 0

        def transpose(s: Tensor, a: Tensor, b: Tensor) -> Tensor:
            for_positive, for_negative = layer.transpose_each(s, (a, b), shape)
            return torch.where(above, for_positive, for_negative)

        return transpose


class Rule(Protocol):
    """A frozen dataclass that says how one call of an affine layer is run and how relevance goes back through it."""

    @property
    def returns_relevance(self) -> bool:
        """True where R_x is not proportional to x (zB, w2, flat): then ``pull`` gives R_x itself instead of R_x / x."""
        ...

    def propagate(self, call: Call) -> Propagation: ...


@dataclass(frozen=True)
class Epsilon:
    """LRP-epsilon: M = w_ik x_i / (z_k + epsilon sign z_k), with sign 0 = 1.

    With ``bias`` (the default), z_k is the whole pre-activation and the bias keeps its share of the relevance. With
    epsilon = 0 this is LRP-0, which is gradient x input on a network of ReLUs.
    """

    epsilon: float = STABILISER
    bias: bool = True
    returns_relevance = False

    def __post_init__(self) -> None:
        _nonnegative_number("epsilon", self.epsilon)

    def propagate(self, call: Call) -> Propagation:
        layer, shape = call.layer, call.x.shape
        y = call.output()
        own = None if self.bias or layer.bias is None else call.broadcast(layer.bias)
        z = y if own is None else y - own
        y, before = call.activated(y)
        if own is None and call.activation is torch.relu_:  # then z is y wherever y is not zero
            q = _ratio(y, y + self.epsilon, self.epsilon)
        else:
            q = _quotient(y, before if own is None else z, self.epsilon)
        b = call.broadcast(layer.bias) if self.bias and layer.bias is not None else None
        parts = [Part(1.0, z if b is None else z - b, b, q)] if call.account else []
        return Propagation(y, lambda c: layer.transpose(q.mul_(c), layer.weight, shape), parts)


@dataclass(frozen=True)
class ZPlus:
    """LRP-z+ (beta = 0): M = (w_ik x_i)+ / sum_i' (w_i'k x_i')+. With ``bias``, b+ takes its share of the sum."""

    bias: bool = False
    epsilon: float = STABILISER
    returns_relevance = False

    def __post_init__(self) -> None:
        _nonnegative_number("epsilon", self.epsilon)

    def propagate(self, call: Call) -> Propagation:
        plus, minus = call.layer.positive, call.layer.negative
        y, _ = call.activated(call.output())
        b = call.layer.bias.clamp(min=0) if self.bias and call.layer.bias is not None else None
        q = _ratio(y, call.map(plus, minus, call.stabilised(b, self.epsilon)), self.epsilon)
        transpose = call.transposer()
        parts = [call.part(1.0, call.map(plus, minus), b, q)] if call.account else []
        return Propagation(y, lambda c: transpose(q.mul_(c), plus, minus), parts)


@dataclass(frozen=True)
class AlphaBeta:
    """The lecture's alpha-beta rule, R = (1 + beta) R+ - beta R-:

        M = (1 + beta) (w_ik x_i)+ / sum_i' (w_i'k x_i')+  -  beta (w_ik x_i)- / sum_i' (w_i'k x_i')-.

    There is no alpha to give: it is 1 + beta. Bach et al. let beta be negative (alpha + beta = 1); others write
    alpha - beta = 1, and their (2, 1) is ``AlphaBeta(1)``.
    """

    beta: float
    _: KW_ONLY
    bias: bool = False
    epsilon: float = STABILISER
    returns_relevance = False

    def __post_init__(self) -> None:
        _nonnegative_number("beta", self.beta)
        _nonnegative_number("epsilon", self.epsilon)

    def propagate(self, call: Call) -> Propagation:
        layer, beta = call.layer, self.beta
        plus, minus = layer.positive, layer.negative
        b = layer.bias if self.bias else None
        b_plus, b_minus = (None, None) if b is None else (b.clamp(min=0), b.clamp(max=0))
        sum_plus = call.map(plus, minus, call.stabilised(b_plus, self.epsilon))
        sum_minus = call.map(minus, plus, call.stabilised(b_minus, -self.epsilon))
        # z = z+ + z-; the stabilisers cancel. z- is not got as z - z+, where rounding would spoil the small ones
        y = sum_plus + sum_minus
        if b is None and layer.bias is not None:
            y += call.broadcast(layer.bias)
        y, _ = call.activated(y)
        q_plus = _ratio(y, sum_plus, self.epsilon, 1 + beta)
        q_minus = _ratio(y, sum_minus, self.epsilon, -beta)
        transpose = call.transposer()

        def pull(c: Tensor) -> Tensor:
            return transpose(q_plus.mul_(c), plus, minus).add_(transpose(q_minus.mul_(c), minus, plus))

        parts = []
        if call.account:
            parts.append(call.part(1 + beta, call.map(plus, minus), b_plus, q_plus))
            parts.append(call.part(-beta, call.map(minus, plus), b_minus, q_minus))
        return Propagation(y, pull, parts)


@dataclass(frozen=True)
class Gamma:
    """LRP-gamma: M = (w_ik x_i + gamma (w_ik x_i)^s) / sum_i' of the same, where s is the sign of the neuron's output.

    Positive contributions count 1 + gamma times for a neuron that fires, negative ones for a neuron below zero; a
    neuron at zero passes nothing on. With ``bias`` (the default), b + gamma b^s takes its share: then the sum is never
    smaller than the output in absolute value, and relevance stays bounded. Without it the sum can come near zero while
    the output does not, and relevance can explode. gamma = 0 is LRP-epsilon, gamma to infinity is z+.
    Montavon et al. 2019; in this generalised form, Andeol et al. 2021.
    """

    gamma: float = 0.25
    _: KW_ONLY
    bias: bool = True
    epsilon: float = STABILISER
    returns_relevance = False

    def __post_init__(self) -> None:
        _nonnegative_number("gamma", self.gamma)
        _nonnegative_number("epsilon", self.epsilon)

    def propagate(self, call: Call) -> Propagation:
        layer, gamma = call.layer, self.gamma
        up = layer.modified(("up", gamma), lambda w: w + gamma * w.clamp(min=0))
        down = layer.modified(("down", gamma), lambda w: w + gamma * w.clamp(max=0))
        b = layer.bias if self.bias else None
        b_up = None if b is None else b + gamma * b.clamp(min=0)
        y, before = call.activated(call.output())
        size = call.map(up, down, b_up)  # |the sum| for a neuron that fires: z + gamma z+
        rectified = call.activation is torch.relu_  # then no other neuron carries relevance
        fires = None if rectified else before > 0
        if fires is not None:  # and for one below zero, -(z + gamma z-), where z = z+ + z-; the bias likewise
            if self.bias or layer.bias is None:
                low = before.clamp(max=0)
            else:
                low = (before - call.broadcast(layer.bias)).mul_(~fires)
            size.sub_(low, alpha=2 + gamma)
        q = _quotient(y, size, self.epsilon)  # with the sign of the output, and zero where that is zero
        transpose = call.transposer()

        def pull(c: Tensor) -> Tensor:
            s = q.mul_(c)
            if fires is None:
                return transpose(s, up, down)
            firing = torch.mul(s, fires, out=torch.empty_like(s))
            return transpose(firing, up, down).sub_(transpose(s.sub_(firing), down, up))

        parts = []
        if call.account:
            parts = [Part(1.0, size, None, q)]
            if b is not None and b_up is not None:
                b_down = b + gamma * b.clamp(max=0)
                shared = torch.where(before > 0, call.broadcast(b_up), -call.broadcast(b_down))
                parts = [Part(1.0, size - shared, shared, q)]
        return Propagation(y, pull, parts)


@dataclass(frozen=True, eq=False)
class ZBox:
    """LRP-zB, for the first layer, whose inputs lie in a box low <= x <= high:

        R_i = sum_k (w_ik x_i - w+_ik low_i - w-_ik high_i) / sum_i' (of the same) R_k.

    ``low`` and ``high`` are numbers or tensors that broadcast against the layer's input. Left out,
    each item spans its own box, from its smallest to its largest value. The bias cancels. Montavon et al. 2017.
    """

    low: float | Tensor | None = None
    high: float | Tensor | None = None
    epsilon: float = STABILISER
    returns_relevance = True

    def __post_init__(self) -> None:
        _nonnegative_number("epsilon", self.epsilon)
        for name, value in (("low", self.low), ("high", self.high)):
            if value is not None and not isinstance(value, (int, float, Tensor)):
                raise TypeError(f"{name} must be a number, a tensor or None, not {type(value).__name__}")
        if self.low is None or self.high is None:
            return
        if bool((torch.as_tensor(self.low) > torch.as_tensor(self.high)).any()):
            raise ValueError("low must not exceed high anywhere")

    def propagate(self, call: Call) -> Propagation:
        layer, x = call.layer, call.x
        plus, minus = layer.positive, layer.negative
        low, high = self._corner(self.low, x, torch.amin), self._corner(self.high, x, torch.amax)
        if call.inside is not None:
            inside = call.inside != 0
            low, high = torch.where(inside, low, x), torch.where(inside, high, x)  # a constant fills its own box
        if bool((x < low).any()) or bool((x > high).any()):
            raise ValueError(
                f"ZBox: the input spans [{x.min().item():.4g}, {x.max().item():.4g}] and leaves the box; low and high "
                "are bounds on the layer's input, after preprocessing"
            )
        z = layer.forward(x, layer.weight)
        y = z.clone() if layer.bias is None else z + call.broadcast(layer.bias)
        y, _ = call.activated(y)
        z -= layer.forward_sum((low, high), (plus, minus))  # each term w (x - corner) is at least zero
        q = _quotient(y, z, self.epsilon)

        def pull(c: Tensor) -> Tensor:
            s = q.mul_(c)
            at_low, at_high = layer.transpose_each(s, (plus, minus), x.shape)
            return x * layer.transpose(s, layer.weight, x.shape) - low * at_low - high * at_high

        return Propagation(y, pull, [Part(1.0, z, None, q)] if call.account else [])

    @staticmethod
    def _corner(given: float | Tensor | None, x: Tensor, extreme: Callable[..., Tensor]) -> Tensor:
        if given is None:
            given = extreme(x, dim=tuple(range(1, x.dim())), keepdim=True)
        corner = torch.as_tensor(given, dtype=x.dtype, device=x.device)
        try:
            return torch.empty_like(x).copy_(corner.expand_as(x))
        except RuntimeError:
            raise ValueError(
                f"ZBox: low and high must broadcast against the layer's input {tuple(x.shape)}, got {tuple(corner.shape)}"
            ) from None


@dataclass(frozen=True)
class WSquare:
    """LRP-w2, for a first layer whose inputs may be anything: R_i = sum_k w_ik^2 / sum_i' w_i'k^2 R_k.

    With ``bias``, b^2 takes its share. Montavon et al. 2017.
    """

    bias: bool = False
    epsilon: float = STABILISER
    returns_relevance = True

    def __post_init__(self) -> None:
        _nonnegative_number("epsilon", self.epsilon)

    def propagate(self, call: Call) -> Propagation:
        squared = call.layer.modified("square", torch.square)
        b = call.layer.bias if self.bias else None
        return _by_weights(call, squared, None if b is None else b.square(), self.epsilon)


@dataclass(frozen=True)
class Flat:
    """LRP-flat, for a first layer: every input of a neuron gets the same share, R_i = sum_k 1 / |inputs of k| R_k.

    Lapuschkin et al. 2019, Unmasking Clever Hans predictors, Nature Communications 10.
    """

    epsilon: float = STABILISER
    returns_relevance = True

    def __post_init__(self) -> None:
        _nonnegative_number("epsilon", self.epsilon)

    def propagate(self, call: Call) -> Propagation:
        return _by_weights(call, call.layer.modified("ones", torch.ones_like), None, self.epsilon)


def _by_weights(call: Call, weight: Tensor, bias: Tensor | None, epsilon: float) -> Propagation:
    """R_i = sum_k v_ik / sum_i' v_i'k R_k with v >= 0, whatever the input is."""
    layer, shape = call.layer, call.x.shape
    y, _ = call.activated(call.output())
    ones = torch.ones_like(call.x) if call.inside is None else call.inside
    q = _ratio(y, layer.forward(ones, weight, call.stabilised(bias, epsilon)), epsilon)

    def pull(c: Tensor) -> Tensor:
        r = layer.transpose(q.mul_(c), weight, shape)
        return r if call.inside is None else r * call.inside

    parts = [call.part(1.0, layer.forward(ones, weight), bias, q)] if call.account else []
    return Propagation(y, pull, parts)


def _quotient(y: Tensor, z: Tensor, epsilon: float) -> Tensor:
    """y / (z + epsilon sign z), with sign 0 = 1; and 0 where both are zero and epsilon is too."""
    denominator = torch.copysign(torch.tensor(epsilon, dtype=z.dtype, device=z.device), z).add_(z)
    if epsilon == 0:
        denominator.masked_fill_(z == 0, math.inf)
    return torch.div(y, denominator, out=denominator)


def _ratio(y: Tensor, total: Tensor, epsilon: float, share: float = 1.0) -> Tensor:
    """share y / total, in the memory of ``total``, which has its stabiliser already and whose sign is known."""
    if epsilon == 0:
        total.masked_fill_(total == 0, math.inf)
    if share == 1:
        return torch.div(y, total, out=total)
    return torch.addcdiv(total.new_zeros(()), y, total, value=share, out=total)


def _nonnegative_number(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be finite and at least 0, got {value}")
