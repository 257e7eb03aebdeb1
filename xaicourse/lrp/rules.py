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
from dataclasses import dataclass
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
    """What a rule makes of one call of a layer: its output y, the way back from c_y to c_x, and its ledger parts."""

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

    def bias(self, share: bool) -> Tensor | None:
        """The bias, broadcast along the channels, where it takes a share."""
        b = self.layer.bias
        return self.layer.along_channels(b, self.x.dim()) if share and b is not None else None

    def output(self) -> Tensor:
        return self.layer.forward(self.x, self.layer.weight, self.layer.bias)

    def activated(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """g(y), and y itself wherever g(y) is not zero (all of y, unless g is a ReLU, which works in place)."""
        if self.activation is None:
            return y, y
        out = self.activation(y)
        return (out, out) if self.activation is torch.relu_ else (out, y)

    def map(self, for_positive: Tensor, for_negative: Tensor) -> Tensor:
        """A x+ + B x-, with the weights A that positive inputs meet and B that negative ones do."""
        if self.nonnegative:
            return self.layer.forward(self.x, for_positive)
        z = self.layer.forward(self.x.clamp(min=0), for_positive)
        return z.add_(self.layer.forward(self.x.clamp(max=0), for_negative))

    def transposer(self) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """The transpose of ``map``, (s, A, B) -> c_x; it keeps the signs of x, not x itself."""
        layer, shape = self.layer, self.x.shape
        if self.nonnegative:
            return lambda s, a, b: layer.transpose(s, a, shape)
        above = self.x > 0
        return lambda s, a, b: torch.where(above, layer.transpose(s, a, shape), layer.transpose(s, b, shape))


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
        own = None if self.bias else call.bias(True)
        z = y if own is None else y - own
        y, before = call.activated(y)
        q = _quotient(y, before if own is None else z, self.epsilon)
        b = call.bias(self.bias)
        parts = [Part(1.0, z if b is None else z - b, b, q)] if call.account else []
        return Propagation(y, lambda c: layer.transpose(c * q, layer.weight, shape), parts)


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
        z = call.map(plus, minus)
        b = _clamped(call.bias(self.bias), min=0)
        q = _positive_quotient(y, z, b, self.epsilon, keep=call.account)
        transpose = call.transposer()
        return Propagation(y, lambda c: transpose(c * q, plus, minus), [Part(1.0, z, b, q)] if call.account else [])


@dataclass(frozen=True)
class AlphaBeta:
    """The lecture's alpha-beta rule, R = (1 + beta) R+ - beta R-:

        M = (1 + beta) (w_ik x_i)+ / sum_i' (w_i'k x_i')+  -  beta (w_ik x_i)- / sum_i' (w_i'k x_i')-.

    Bach et al. write alpha = 1 + beta and let beta be negative (alpha + beta = 1); others write alpha - beta = 1.
    """

    beta: float
    bias: bool = False
    epsilon: float = STABILISER
    returns_relevance = False

    def __post_init__(self) -> None:
        _nonnegative_number("beta", self.beta)
        _nonnegative_number("epsilon", self.epsilon)

    def propagate(self, call: Call) -> Propagation:
        layer, beta = call.layer, self.beta
        plus, minus = layer.positive, layer.negative
        # z- is not got as z - z+, where rounding would leave a neuron with a small z- a wrong share; z is z+ + z-
        z_plus, z_minus = call.map(plus, minus), call.map(minus, plus)
        y = z_plus + z_minus
        y = y if layer.bias is None else y.add_(layer.along_channels(layer.bias, y.dim()))
        y, _ = call.activated(y)
        b_plus, b_minus = _clamped(call.bias(self.bias), min=0), _clamped(call.bias(self.bias), max=0)
        q_plus = _positive_quotient(y, z_plus, b_plus, self.epsilon, keep=call.account).mul_(1 + beta)
        # -(z-) is not negative: the same quotient, with the sign taken into the factor
        q_minus = _positive_quotient(
            y, z_minus.neg_(), None if b_minus is None else -b_minus, self.epsilon, keep=call.account
        ).mul_(beta)
        transpose = call.transposer()

        def pull(c: Tensor) -> Tensor:
            return transpose(c * q_plus, plus, minus).add_(transpose(c * q_minus, minus, plus))

        parts = []
        if call.account:
            parts = [Part(1 + beta, z_plus, b_plus, q_plus), Part(-beta, -z_minus, b_minus, q_minus)]
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
        linear = layer.forward(call.x, layer.weight)
        own = call.bias(True)
        y, before = call.activated(linear if own is None else linear + own)
        fires, below = before > 0, before < 0
        rectified = call.activation is torch.relu_  # then no output below zero carries relevance
        z = call.map(up, down)
        if not rectified:  # z + gamma z-, from z + gamma z+ and z = z+ + z-
            z = torch.where(fires, z, linear.mul(2 + gamma).sub_(z))
        b = call.bias(self.bias)
        if b is not None:
            b = b + gamma * torch.where(fires, b.clamp(min=0), b.clamp(max=0))
        q = _quotient(y, z if b is None else z + b, self.epsilon).mul_(before != 0)
        transpose = call.transposer()

        def pull(c: Tensor) -> Tensor:
            s = c * q
            if rectified:
                return transpose(s, up, down)
            return transpose(s * fires, up, down).add_(transpose(s * below, down, up))

        return Propagation(y, pull, [Part(1.0, z, b, q)] if call.account else [])


@dataclass(frozen=True)
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
        if self.low is not None and self.high is not None:
            if bool((torch.as_tensor(self.low) > torch.as_tensor(self.high)).any()):
                raise ValueError("low must not exceed high anywhere")

    def propagate(self, call: Call) -> Propagation:
        layer, x = call.layer, call.x
        plus, minus = layer.positive, layer.negative
        low, high = self._corner(self.low, x, torch.amin), self._corner(self.high, x, torch.amax)
        if call.inside is not None:
            low, high = low * call.inside, high * call.inside
        if bool((x < low).any()) or bool((x > high).any()):
            raise ValueError(
                f"ZBox: the input spans [{x.min().item():.4g}, {x.max().item():.4g}] and leaves the box; low and high "
                "are bounds on the layer's input, after preprocessing"
            )
        z = layer.forward(x, layer.weight)
        y = z if layer.bias is None else z + layer.along_channels(layer.bias, z.dim())
        z = z - layer.forward(low, plus) - layer.forward(high, minus)  # each term w (x - corner) is at least zero
        y, _ = call.activated(y)
        q = _quotient(y, z, self.epsilon)

        def pull(c: Tensor) -> Tensor:
            s = c * q
            r = x * layer.transpose(s, layer.weight, x.shape)
            return r - low * layer.transpose(s, plus, x.shape) - high * layer.transpose(s, minus, x.shape)

        return Propagation(y, pull, [Part(1.0, z, None, q)] if call.account else [])

    @staticmethod
    def _corner(given: float | Tensor | None, x: Tensor, extreme: Callable[..., Tensor]) -> Tensor:
        if given is None:
            given = extreme(x, dim=tuple(range(1, x.dim())), keepdim=True)
        corner = torch.as_tensor(given, dtype=x.dtype, device=x.device)
        try:
            return corner.expand_as(x).contiguous()
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
        b = call.bias(self.bias)
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
    z = layer.forward(torch.ones_like(call.x) if call.inside is None else call.inside, weight)
    q = _positive_quotient(y, z, bias, epsilon, keep=call.account)

    def pull(c: Tensor) -> Tensor:
        r = layer.transpose(c * q, weight, shape)
        return r if call.inside is None else r * call.inside

    return Propagation(y, pull, [Part(1.0, z, bias, q)] if call.account else [])


def _quotient(y: Tensor, z: Tensor, epsilon: float) -> Tensor:
    """y / (z + epsilon sign z), with sign 0 = 1; and 0 where both are zero and epsilon is too."""
    denominator = torch.copysign(torch.tensor(epsilon, dtype=z.dtype, device=z.device), z).add_(z)
    if epsilon == 0:
        denominator.masked_fill_(z == 0, math.inf)
    return torch.div(y, denominator, out=denominator)


def _positive_quotient(y: Tensor, z: Tensor, b: Tensor | None, epsilon: float, *, keep: bool) -> Tensor:
    """y / (z + b + epsilon) for z, b >= 0, in the memory of z unless that is to be kept."""
    denominator = z.clone() if keep else z
    if b is not None:
        denominator.add_(b)
    if epsilon == 0:
        denominator.masked_fill_(denominator == 0, math.inf)
    denominator.add_(epsilon)
    return torch.div(y, denominator, out=denominator)


def _clamped(b: Tensor | None, *, min: float | None = None, max: float | None = None) -> Tensor | None:
    return None if b is None else b.clamp(min=min, max=max)


def _nonnegative_number(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be finite and at least 0, got {value}")
