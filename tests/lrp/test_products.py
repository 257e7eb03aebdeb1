"""Products: a signal takes all, signals share, divisors are constants. And functions that somebody wrote out by hand."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xaicourse import lrp

from .networks import Functional, agree, balanced, everywhere, explained_as, gradient_x_input, secant

LRP0 = everywhere(lrp.Epsilon(0))


def x(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*(shape or (3, 6)), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parts() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {name: nn.Linear(6, 6) for name in "abc"} | {"head": nn.Linear(6, 4)}


def model(middle) -> Functional:
    """The middle reads two features, u and v, each 6 wide."""
    return Functional(lambda m, t: m.head(middle(m, m.a(t), m.b(t).relu())), **parts())


def half(t: Tensor) -> Tensor:
    """t, whose relevance is half of what comes back."""
    return (t + t.detach()) / 2


def constant(t: Tensor) -> Tensor:
    return t.detach()


def square(t: Tensor) -> Tensor:  # (N, 6) as a stack of matrices
    return t.view(-1, 2, 3)


# two signals --------------------------------------------------------------------------------------------------

# what the model calls, and the product of two as LRP sees it: a function of two factors that is linear in both
PAIRS = {
    "u * v": (lambda u, v: u * v,) * 2,
    "torch.mul": (lambda u, v: torch.mul(u, other=v), lambda u, v: u * v),
    ".multiply": (lambda u, v: u.multiply(v), lambda u, v: u * v),
    "*=": (lambda u, v: u.clone().mul_(v), lambda u, v: u * v),
    "matmul": (lambda u, v: (square(u).mT @ square(v)).flatten(1)[:, :6],) * 2,
    ".matmul": (lambda u, v: square(u).mT.matmul(square(v)).flatten(1)[:, :6],) * 2,
    "bmm": (lambda u, v: torch.bmm(square(u), square(v).mT).flatten(1).repeat(1, 2)[:, :6],) * 2,
    "einsum": (lambda u, v: torch.einsum("nij,nkj->nik", square(u), square(v)).flatten(1).repeat(1, 2)[:, :6],) * 2,
    "einsum, a list": (
        lambda u, v: torch.einsum("ni,ni->ni", [u, v]),
        lambda u, v: u * v,
    ),
    "einsum with a constant": (
        lambda u, v: torch.einsum("i,ni,ni->ni", torch.arange(6.0).double(), u, v),
        lambda u, v: torch.arange(6.0).double() * u * v,
    ),
    "tensordot": (
        lambda u, v: torch.stack([torch.tensordot(a, b, dims=0)[:, 0] for a, b in zip(u, v, strict=True)]),
        lambda u, v: u * v[:, :1],
    ),
    "outer": (lambda u, v: torch.stack([torch.outer(a, b)[1] for a, b in zip(u, v, strict=True)]),) * 2,
    "baddbmm onto zeros": (
        lambda u, v: torch.baddbmm(torch.zeros(1, 3, 3).double(), square(u).mT, square(v)).flatten(1)[:, :6],
        lambda u, v: (square(u).mT @ square(v)).flatten(1)[:, :6],
    ),
    "baddbmm with alpha": (
        lambda u, v: torch.baddbmm(torch.ones(1).double(), square(u).mT, square(v), beta=0, alpha=2).flatten(1)[:, :6],
        lambda u, v: 2 * (square(u).mT @ square(v)).flatten(1)[:, :6],
    ),
    "addcmul": (
        lambda u, v: torch.addcmul(torch.zeros(6).double(), u, v, value=2),
        lambda u, v: 2 * u * v,
    ),
    "bilinear": (lambda u, v: F.bilinear(u, v, WEIGHT),) * 2,
    "nn.Bilinear without a bias": (
        lambda u, v: BILINEAR(u, v),
        lambda u, v: torch.einsum("oij,ni,nj->no", WEIGHT, u, v),
    ),
    "linear with weights of the input": (
        lambda u, v: torch.cat([F.linear(a[None], b.view(2, 3).repeat(3, 2)) for a, b in zip(u, v, strict=True)]),
        lambda u, v: torch.cat([a[None] @ b.view(2, 3).repeat(3, 2).mT for a, b in zip(u, v, strict=True)]),
    ),
    "convolution with weights of the input": (
        lambda u, v: F.conv1d(u[None], v[:, None, :3], padding=1, groups=len(u))[0],
        lambda u, v: torch.stack(
            [sum(F.pad(a, (1, 1))[k : k + 6] * b[k] for k in range(3)) for a, b in zip(u, v, strict=True)]
        ),
    ),
    "sdpa is a product of values only": (
        lambda u, v: F.scaled_dot_product_attention(PROBE, PROBE, square(u)).flatten(1) * v,
        lambda u, v: F.scaled_dot_product_attention(PROBE, PROBE, square(u)).flatten(1) * v,
    ),
}
WEIGHT = x(6, 6, 6, seed=1)
PROBE = x(3, 2, 3, seed=2)
BILINEAR = nn.Bilinear(6, 6, 6, bias=False).double()
BILINEAR.weight = nn.Parameter(WEIGHT.clone())


@pytest.mark.parametrize("name", PAIRS)
def test_two_signals_share_equally(name):
    called, product = PAIRS[name]
    m = model(lambda m, u, v: called(u, v))
    explained_as(m, lambda t: m.head(product(half(m.a(t)), half(m.b(t).relu()))), x())
    m.head.bias.data.zero_(), m.a.bias.data.zero_(), m.b.bias.data.zero_()
    trace = lrp.trace(m, x(), 1, composite=LRP0)
    agree(trace.relevance.sum(1), trace.output[:, 1])  # where nobody holds a constant, all arrives


GATES = {
    "sigmoid": torch.sigmoid,
    ".sigmoid_": lambda v: v.clone().sigmoid_(),
    "hardsigmoid": F.hardsigmoid,
    "softmax": lambda v: F.softmax(v, 1),
    "nn.Softmax": nn.Softmax(1),
    ".softmax": lambda v: v.softmax(-1),
    "softmin": lambda v: F.softmin(v, dim=1),
    "softplus": F.softplus,
    "exp": torch.exp,
    "sqrt": lambda v: (v.abs() + 1).sqrt(),
    "rsqrt": lambda v: torch.rsqrt(v.abs() + 1),
    "reciprocal": lambda v: 1 / (1 + v.abs()),
    "log": lambda v: (1.5 + v.abs()).log(),
    "erf": torch.erf,
    "std": lambda v: v.std(1, keepdim=True),
    "norm": lambda v: v.norm(dim=1, keepdim=True),
    "1 - z": lambda v: 1 - torch.sigmoid(v),
    "a sum of gates": lambda v: torch.sigmoid(v) + F.softmax(v, 1),
    "a gate times a gate": lambda v: torch.sigmoid(v) * v.softmax(1),
    "a gate times a number": lambda v: 0.3 * torch.sigmoid(v) / 2 - 1,
    "a gate through a shape": lambda v: torch.sigmoid(v).view(-1, 2, 3).mT.reshape(-1, 6).roll(1, 1),
    "a gate's slice": lambda v: torch.sigmoid(v)[:, 2:3].expand(-1, 6),
    "chunks of a gate": lambda v: torch.cat(torch.sigmoid(v).chunk(2, 1)[::-1], 1),
    "the mean of a gate": lambda v: torch.sigmoid(v).mean(1, keepdim=True),
    "a gate masked": lambda v: torch.sigmoid(v).masked_fill(torch.arange(6) < 2, 0.0),
    "a gate where": lambda v: torch.where(torch.arange(6) < 2, torch.sigmoid(v), 0.5),
    "a gate in part a number": lambda v: assign(torch.sigmoid(v), 2, 0.5),
    "a gate with a constant beside it": lambda v: torch.cat([torch.sigmoid(v)[:, :5], torch.ones(len(v), 1)], 1),
    "tanh of a gate": lambda v: torch.tanh(torch.exp(v / 4)),
    "the largest of a gate": lambda v: torch.sigmoid(v).amax(1, keepdim=True),
    "a gate to another dtype and back": lambda v: torch.sigmoid(v).float().double(),
    "a divided gate": lambda v: v.exp() / v.exp().sum(1, keepdim=True),
    "a gate divided by a signal": lambda v: torch.sigmoid(v) / (2 + v),
    "dropout of a gate": lambda v: F.dropout(torch.sigmoid(v), 0.3, training=False),
    "a matrix product of gates": lambda v: (square(v.softmax(1)) @ square(torch.sigmoid(v)).mT)[:, :1, 0],
    "padded": lambda v: F.pad(torch.sigmoid(v)[:, 1:-1], (1, 1), value=1.0),
}


def assign(t: Tensor, column: int, value: float | Tensor) -> Tensor:
    t[:, column] = value
    return t


USES = {
    "gate * signal": lambda gate, u: gate * u,
    "signal * gate": lambda gate, u: u * gate,
    "signal *= gate": lambda gate, u: u.clone().mul_(gate),
    "einsum": lambda gate, u: torch.einsum("ni,ni->ni", u, gate.expand(-1, 6)),
    "bmm": lambda gate, u: torch.bmm(square(gate.expand(-1, 6)).mT, square(u)).flatten(1)[:, :6],
    "residual": lambda gate, u: u + gate * u,
}


@pytest.mark.parametrize(
    ("name", "use"),
    [(g, u) for g in GATES for u in USES if u == "gate * signal" or g in ("sigmoid", "softmax", "1 - z", "reciprocal")],
)
def test_a_signal_takes_all_from_its_gate(name, use):
    gate, apply = GATES[name], USES[use]
    m = model(lambda m, u, v: apply(gate(v), u))
    trace = explained_as(m, lambda t: m.head(apply(gate(m.b(t).relu()).detach(), m.a(t))), x())
    into_b = [row for row in trace.ledger if row.module == "b"]
    assert all(row.incoming_abs == 0 for row in into_b)


MIXED = {
    "a gate added to a signal": lambda u, v: u + torch.sigmoid(v),
    "a signal added to a gate": lambda u, v: torch.sigmoid(v) + u,
    "a signal less a gate": lambda u, v: u - torch.sigmoid(v),
    "a gate beside a signal": lambda u, v: torch.cat([u[:, :3], torch.sigmoid(v)[:, 3:]], 1),
    "a gate here, a signal there": lambda u, v: torch.where(torch.arange(6) < 3, torch.sigmoid(v), u),
    "the larger of a gate and a signal": lambda u, v: torch.maximum(torch.sigmoid(v), u),
    "a gate assigned to a signal": lambda u, v: assign(u.clone(), 2, torch.sigmoid(v)[:, 2]),
    "a signal assigned to a gate": lambda u, v: assign(torch.sigmoid(v), 2, u[:, 2]),
    "onto a gate a product is added": lambda u, v: torch.addcmul(torch.sigmoid(v), u, 1 + MASK),
}
MASK = torch.arange(6) % 2


@pytest.mark.parametrize("name", MIXED)
def test_what_is_in_part_a_signal_is_a_signal(name):
    mix = MIXED[name]
    m = model(lambda m, u, v: mix(u, v) * m.c(u))

    def by_hand(t):
        u, v = m.a(t), m.b(t).relu()
        # linear in u and in the sigmoid, and so its own gradient, but for the secant of the sigmoid
        gate = secant(torch.sigmoid, v)
        written_out = {
            "a gate added to a signal": lambda: u + gate,
            "a signal added to a gate": lambda: gate + u,
            "a signal less a gate": lambda: u - gate,
            "the larger of a gate and a signal": lambda: torch.maximum(gate, u),
            "onto a gate a product is added": lambda: gate + u * (1 + MASK),
            "a gate beside a signal": lambda: torch.where(torch.arange(6) < 3, u, gate),
            "a gate here, a signal there": lambda: torch.where(torch.arange(6) < 3, gate, u),
            "a gate assigned to a signal": lambda: torch.where(torch.arange(6) == 2, gate, u),
            "a signal assigned to a gate": lambda: torch.where(torch.arange(6) == 2, u, gate),
        }
        return m.head(half(written_out[name]()) * half(m.c(u)))

    explained_as(m, by_hand, x())


@pytest.mark.parametrize("layer", ["linear", "conv1d", "batch norm"])
@pytest.mark.parametrize("gate", [torch.sigmoid, F.hardsigmoid, torch.exp])
def test_a_layer_makes_features_of_gates_which_share_as_signals_do(layer, gate):
    torch.manual_seed(0)
    layers = {
        "linear": nn.Linear(6, 6),
        "conv1d": nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 1, 3, padding=1), nn.Flatten()),
        "batch norm": nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)),
    }
    m = Functional(lambda m, t: m.head(m.on(gate(m.b(t))) * m.a(t)), on=layers[layer], **parts())

    explained_as(m, lambda t: m.head(half(m.on(secant(gate, m.b(t)))) * half(m.a(t))), x())


def test_a_signal_among_three_factors_takes_all_and_two_signals_share_it():
    m = model(lambda m, u, v: u * v * torch.sigmoid(v))
    explained_as(m, lambda t: m.head(half(m.a(t)) * half(m.b(t).relu()) * torch.sigmoid(m.b(t).relu()).detach()), x())
    m = model(lambda m, u, v: torch.einsum("ni,ni,ni->ni", u, v, torch.sigmoid(u)))
    explained_as(m, lambda t: m.head(half(m.a(t)) * half(m.b(t).relu()) * torch.sigmoid(m.a(t)).detach()), x())


def test_what_a_product_is_added_to_gets_its_part_whole():
    for called in (
        lambda m, u, v: torch.addcmul(u, u, v.sigmoid(), value=0.5),
        lambda m, u, v: torch.baddbmm(u[:, None], u[:, None] * v.sigmoid()[:, None], EYE, alpha=0.5)[:, 0],
        lambda m, u, v: torch.addmm(u, u * v.sigmoid(), EYE[0], alpha=0.5),
        lambda m, u, v: torch.addcdiv(u, u, 1 + torch.exp(-v), value=0.5),
    ):
        m = model(called)
        explained_as(m, lambda t, m=m: m.head(m.a(t) + 0.5 * m.a(t) * m.b(t).relu().sigmoid().detach()), x())


EYE = torch.eye(6, dtype=torch.float64).expand(3, 6, 6)


DIVISIONS = {
    "u / v": lambda u, v: u / (1 + v),
    "torch.div": lambda u, v: torch.div(u, 1 + v),
    "u / u": lambda u, v: u / (1 + u.abs()),
    "u / |u|": lambda u, v: u / u.norm(dim=1, keepdim=True),
    "u / sum |u|": lambda u, v: u / u.abs().sum(1, keepdim=True).clamp(min=1e-3),
    "u /= v": lambda u, v: u.clone().div_(1 + v),
    "u * 1 / v": lambda u, v: u * (1 / (1 + v)),
    "u * v ** -0.5": lambda u, v: u * (1 + v) ** -0.5,
    "true_divide": lambda u, v: torch.true_divide(u, other=1 + v),
}


@pytest.mark.parametrize("name", DIVISIONS)
def test_a_divisor_is_a_constant(name):
    divide = DIVISIONS[name]
    m = model(lambda m, u, v: divide(u, v))

    def by_hand(t):
        u, v = m.a(t), m.b(t).relu()
        return m.head(u * (divide(u, v) / u).detach())

    explained_as(m, by_hand, x())


def test_a_layer_whose_weights_are_of_the_input_keeps_what_its_bias_holds():
    """Its bias is a constant, and the ledger says so."""

    def own_weights(m, u, v):
        return torch.cat([F.linear(a[None], b.view(2, 3).repeat(3, 2), m.c.bias) for a, b in zip(u, v, strict=True)])

    m = model(own_weights)

    def by_hand(t):
        u, v = half(m.a(t)), half(m.b(t).relu())
        return m.head(torch.einsum("ni,noi->no", u, v.view(-1, 2, 3).repeat(1, 3, 2)) + m.c.bias)

    explained_as(m, by_hand, x())


def test_a_product_with_itself_is_one_signal():
    m = model(lambda m, u, v: u * u + v @ m.c.weight)
    explained_as(m, lambda t: m.head(m.a(t) * m.a(t).detach() + m.b(t).relu() @ m.c.weight), x())


@pytest.mark.parametrize("factors", [2, 3])
def test_the_share_of_each_signal_is_its_shapley_value(factors):
    """x1 x2 … with a baseline of zero is a game: a coalition has the product if all are in, and nothing otherwise."""
    inputs = x(4, factors) + 2
    spelled = "".join("abc"[:factors])
    indices = ",".join("n" for _ in spelled)

    def product(t):
        return torch.einsum(f"{indices}->n", *t.unbind(1))[:, None]

    def value(item, coalition):
        return math.prod(item[i].item() if i in coalition else 0.0 for i in range(factors))

    shapley = torch.zeros_like(inputs)
    orders = list(itertools.permutations(range(factors)))
    for n, item in enumerate(inputs):
        for order in orders:
            for k, i in enumerate(order):
                gain = value(item, order[: k + 1]) - value(item, order[:k])
                shapley[n, i] += gain / len(orders)
    agree(lrp.relevance(product, inputs, 0, composite=LRP0), shapley, 1e-12)
    if factors == 2:
        agree(lrp.relevance(lambda t: t[:, :1] * t[:, 1:], inputs, 0, composite=LRP0), shapley, 1e-12)


# written by hand --------------------------------------------------------------------------------------------------

ACTIVATIONS = {
    "silu": (F.silu, lambda t: t * torch.sigmoid(t)),
    "silu, divided": (F.silu, lambda t: t / (1 + torch.exp(-t))),
    "swish with a slope": (lambda t: t * F.sigmoid(1.7 * t), lambda t: t / (1 + torch.exp(-1.7 * t))),
    "gelu": (F.gelu, lambda t: 0.5 * t * (1 + torch.erf(t / math.sqrt(2)))),
    "gelu, the other way": (F.gelu, lambda t: t * 0.5 * (1.0 + torch.erf(t * 0.5**0.5))),
    "mish": (F.mish, lambda t: t * torch.tanh(F.softplus(t))),
    "hardswish": (F.hardswish, lambda t: t * F.hardsigmoid(t)),
    "relu": (F.relu, lambda t: t * (t > 0)),
    "relu by clamp": (F.relu, lambda t: t.clamp(min=0)),
    "relu by maximum": (F.relu, lambda t: torch.maximum(t, torch.zeros_like(t))),
    "leaky relu": (lambda t: F.leaky_relu(t, 0.2), lambda t: torch.where(t > 0, t, 0.2 * t)),
    "glu": (lambda t: F.glu(t.repeat(1, 2)), lambda t: t * torch.sigmoid(t)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_written_by_hand_is_the_activation(name):
    known, written = ACTIVATIONS[name]
    models = [model(lambda m, u, v, g=g: g(u) + v) for g in (known, written)]
    traces = [lrp.trace(m, x(), 1, composite=LRP0) for m in models]
    agree(traces[1].output, traces[0].output, 1e-12)
    agree(traces[1].relevance, traces[0].relevance, 1e-9)
    for trace in traces:
        balanced(trace)


SOFTMAXES = {
    "softmax": lambda s: F.softmax(s, -1),
    "torch.softmax": lambda s: torch.softmax(s, dim=-1),
    "exp of log_softmax": lambda s: F.log_softmax(s, -1).exp(),
    "exp / sum": lambda s: s.exp() / s.exp().sum(-1, keepdim=True),
    "less the largest": lambda s: (
        (s - s.amax(-1, keepdim=True)).exp() / (s - s.amax(-1, keepdim=True)).exp().sum(-1, keepdim=True)
    ),
    "less the largest, detached": lambda s: (e := (s - s.detach().max(-1, keepdim=True)[0]).exp()) / e.sum(-1, True),
    "less logsumexp": lambda s: torch.exp(s - torch.logsumexp(s, -1, keepdim=True)),
    "times a reciprocal": lambda s: (e := torch.exp(s)) * e.sum(-1, keepdim=True).reciprocal(),
    "in place": lambda s: (e := s.clone().exp_()).div_(e.sum(-1, keepdim=True)),
    "F.normalize": lambda s: F.normalize(s.exp(), p=1, dim=-1),
}


@pytest.mark.parametrize("name", SOFTMAXES)
def test_attention_with_a_softmax_written_by_hand_is_attention(name):
    def attend(softmax):
        def middle(m, t):
            q, k, v = m.a(t), m.b(t), m.c(t)
            return m.head((softmax(q @ k.mT / 6**0.5) @ v).mean(1))

        return Functional(middle, **parts())

    m, inputs = attend(SOFTMAXES[name]), x(2, 5, 6)

    def by_hand(t):
        weights = F.softmax(m.a(t) @ m.b(t).mT / 6**0.5, -1).detach()
        return m.head((weights @ m.c(t)).mean(1))

    explained_as(m, by_hand, inputs)


NORMS = {
    "layer norm": (
        lambda t: F.layer_norm(t, (6,), eps=1e-5),
        lambda t: (t - t.mean(-1, keepdim=True)) / (t.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt(),
    ),
    "layer norm by var_mean": (
        lambda t: F.layer_norm(t, (6,), eps=1e-5),
        lambda t: (
            (t - t.mean(-1, keepdim=True)) * torch.rsqrt(torch.var_mean(t, -1, correction=0, keepdim=True)[0] + 1e-5)
        ),
    ),
    "layer norm by squares": (
        lambda t: F.layer_norm(t, (6,), eps=1e-5),
        lambda t: (c := t - t.mean(-1, keepdim=True)) / torch.sqrt((c**2).mean(-1, keepdim=True) + 1e-5),
    ),
    "layer norm by power": (
        lambda t: F.layer_norm(t, (6,), eps=1e-5),
        lambda t: (c := t - t.mean(-1, True)) * torch.pow(c.square().mean(-1, True) + 1e-5, -0.5),
    ),
    "RMS norm": (
        lambda t: F.rms_norm(t, (6,), eps=1e-6),
        lambda t: t * torch.rsqrt(t.pow(2).mean(-1, keepdim=True) + 1e-6),
    ),
    "RMS norm by norm": (
        lambda t: F.rms_norm(t, (6,), eps=0.0),
        lambda t: t / t.norm(dim=-1, keepdim=True) * 6**0.5,
    ),
    "normalize": (
        lambda t: F.normalize(t, dim=-1),
        lambda t: t / torch.linalg.vector_norm(t, dim=-1, keepdim=True).clamp(min=1e-12),
    ),
}


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_written_by_hand_is_the_norm(name):
    known, written = NORMS[name]
    models = [model(lambda m, u, v, g=g: g(u) + v) for g in (known, written)]
    traces = [lrp.trace(m, x(), 1, composite=LRP0) for m in models]
    agree(traces[1].output, traces[0].output, 1e-9)
    agree(traces[1].relevance, traces[0].relevance, 1e-9)


# where relevance has no business ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gate", "name"),
    [
        (lambda v: v.softmax(1), "softmax"),
        (lambda v: (1 + v).log(), "log"),
        (lambda v: (1 + v).sqrt(), "sqrt"),
        (lambda v: (1 + v).reciprocal(), "reciprocal"),
        (lambda v: v.var(1, keepdim=True).expand(-1, 6), "var"),
    ],
)
@pytest.mark.parametrize("explain", [lrp.relevance, lrp.trace])
def test_relevance_that_reaches_a_gate_is_refused_and_the_gate_named(gate, name, explain):
    m = nn.Sequential(nn.Linear(6, 6), model(lambda m, u, v: u + gate(v))).double().eval()
    with pytest.raises(lrp.UnhandledOperation, match=f"no rule for {name} in module '1' .Functional.: it is a gate"):
        explain(m, x(), 1)
    # two such gates multiply each other: no signal is there to take it
    m = model(lambda m, u, v: gate(u.abs()) * gate(v))
    with pytest.raises(lrp.UnhandledOperation, match=f"{name}.*gate"):
        explain(m, x(), 1)


def test_an_attention_layer_that_mixes_heads_makes_attention_of_attention():
    """Talking heads: a linear layer over the weights of several heads does not make signals of them."""
    m = Functional(lambda m, t: m.head(m.mix(F.softmax(m.b(t), 1)) * m.a(t)), mix=nn.Linear(6, 6), **parts())
    explained_as(m, lambda t: m.head(m.mix(F.softmax(m.b(t), 1)).detach() * m.a(t)), x())


def test_signal_takes_all_conserves_where_gradient_x_input_counts_twice():
    m = model(lambda m, u, v: u * torch.sigmoid(v) + F.softmax(u, 1) * v)
    for part in m.children():
        part.bias.data.zero_()
    trace = lrp.trace(m, x(), 1, composite=LRP0)
    agree(trace.relevance.sum(1), trace.output[:, 1])
    plain = gradient_x_input(m, x(), 1).sum(1)
    assert ((plain - trace.output[:, 1]).abs() > 1e-3 * trace.output[:, 1].abs()).all()
