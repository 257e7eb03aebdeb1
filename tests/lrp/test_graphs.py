"""Random graphs of layers, sums, products, gates and norms: explained as autograd does with constants where LRP has them."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from xaicourse import lrp

from .networks import Functional, agree, balanced, everywhere, gradient_x_input, secant

LRP0 = everywhere(lrp.Epsilon(0))
ITEMS, WIDTH = 2, 4

# A program is a list of (name, i, j): the result of the function of that name, of the values i and j before it, is the
# next value. All values have shape (ITEMS, WIDTH).


def square(t: Tensor) -> Tensor:
    return t.view(-1, 2, 2)


PLAIN = {
    "add": lambda m, a, b: a + b,
    "subtract": lambda m, a, b: a - 0.7 * b,
    "shift": lambda m, a, b: a + 0.3,
    "multiply": lambda m, a, b: a * b,
    "in place": lambda m, a, b: a.clone().mul_(b).add_(a),
    "matmul": lambda m, a, b: (square(a) @ square(b)).flatten(1),
    "einsum": lambda m, a, b: torch.einsum("nij,nkj->nik", square(a), square(b)).flatten(1),
    "divide": lambda m, a, b: a / (1 + b.abs()),
    "sigmoid": lambda m, a, b: torch.sigmoid(a),
    "softmax": lambda m, a, b: F.softmax(a, 1),
    "relu": lambda m, a, b: F.relu(a),
    "tanh": lambda m, a, b: torch.tanh(a),
    "gelu": lambda m, a, b: F.gelu(a),
    "linear": lambda m, a, b: m.layer(a),
    "norm and linear": lambda m, a, b: m.norm(m.layer(a)),
    "layer norm": lambda m, a, b: F.layer_norm(a, (WIDTH,), m.norm.weight, m.norm.bias, 0.1),
    "rms norm": lambda m, a, b: F.rms_norm(a, (WIDTH,), m.norm.weight, 0.1),
    "maximum": lambda m, a, b: torch.maximum(a, b),
    "join": lambda m, a, b: torch.cat([a[:, :2], b[:, 2:]], 1),
    "turn": lambda m, a, b: square(a).mT.flatten(1),
    "assign": lambda m, a, b: assign(a.clone(), b),
    "attend": lambda m, a, b: (F.softmax(square(a) @ square(b).mT, -1) @ square(m.layer(a + b))).flatten(1),
}


def assign(t: Tensor, other: Tensor) -> Tensor:
    t[:, 1:3] = other[:, 1:3]
    return t


def half(t: Tensor) -> Tensor:
    return (t + t.detach()) / 2


def by_hand(name: str, m: nn.Module, a: Tensor, b: Tensor, gate_a: int, gate_b: int) -> tuple[Tensor, int]:
    """The same with constants where LRP has them; and whether the result is a gate: 1, or 2 if made of attention alone."""
    plain = PLAIN[name]
    if name in ("multiply", "matmul", "einsum", "in place"):
        product = plain if name != "in place" else PLAIN["multiply"]
        if bool(gate_a) == bool(gate_b):
            y = product(m, half(a), half(b))
        else:
            y = product(m, a.detach() if gate_a else a, b.detach() if gate_b else b)
        gate = min(gate_a, gate_b)
        return (y, gate) if name != "in place" else (y + a, min(gate, gate_a))
    if name == "divide":
        return a / (1 + b.abs()).detach(), gate_a
    if name == "sigmoid":
        return secant(torch.sigmoid, a), max(1, gate_a)
    if name == "softmax":
        return plain(m, a, b).detach(), 2
    if name in ("tanh", "gelu"):
        return secant(torch.tanh if name == "tanh" else F.gelu, a), gate_a
    if name in ("linear", "norm and linear"):
        return plain(m, a, b), 2 if gate_a == 2 else 0
    if name in ("layer norm", "rms norm"):
        centred = a - a.mean(1, keepdim=True) if name == "layer norm" else a
        y = centred / (centred.square().mean(1, keepdim=True) + 0.1).sqrt().detach() * m.norm.weight
        return (y + m.norm.bias if name == "layer norm" else y), gate_a
    if name == "attend":
        weights = F.softmax(square(a) @ square(b).mT, -1).detach()
        v = m.layer(a + b)
        return (weights @ square(v)).flatten(1), 2 if min(gate_a, gate_b) == 2 else 0
    if name in ("add", "subtract", "maximum", "join", "assign"):
        return plain(m, a, b), min(gate_a, gate_b)
    return plain(m, a, b), gate_a  # shift, relu, turn


OFTEN = sorted(PLAIN) + ["multiply", "multiply", "sigmoid", "sigmoid", "add"]
PROGRAMS = st.lists(st.tuples(st.sampled_from(OFTEN), st.integers(0, 50), st.integers(0, 50)), min_size=3, max_size=10)


def network(program: list[tuple[str, int, int]], seed: int) -> tuple[nn.Module, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def forward(m, t):
        values = [t, m.first(t)]
        for name, i, j in program:
            values.append(PLAIN[name](m, values[i % len(values)], values[j % len(values)]))
        return m.head(values[-1] + m.layer(values[len(values) // 2]))

    model = Functional(
        forward, first=nn.Linear(WIDTH, WIDTH), layer=nn.Linear(WIDTH, WIDTH), norm=nn.BatchNorm1d(WIDTH),
        head=nn.Linear(WIDTH, 2),
    )  # fmt: skip
    with torch.no_grad():
        for p in [*model.parameters(), model.norm.running_mean]:
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) / 2)
        model.norm.running_var.uniform_(0.5, 2, generator=generator)
    return model, torch.randn(ITEMS, WIDTH, generator=generator, dtype=torch.float64)


def run_by_hand(model: nn.Module, program: list[tuple[str, int, int]]):
    def forward(t):
        values, gates = [t, model.first(t)], [0, 0]
        for name, i, j in program:
            i, j = i % len(values), j % len(values)
            y, gate = by_hand(name, model, values[i], values[j], gates[i], gates[j])
            values.append(y)
            gates.append(gate)
        return model.head(values[-1] + model.layer(values[len(values) // 2]))

    return forward


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(program=PROGRAMS, seed=st.integers(0, 10_000))
def test_a_graph_is_explained_as_autograd_with_constants_and_accounted_for(program, seed):
    model, x = network(program, seed)
    with torch.no_grad():
        wanted = model(x)
    try:
        trace = lrp.trace(model, x, 1, composite=LRP0)
    except lrp.UnhandledOperation as refusal:
        # relevance that reaches a softmax has no rule; nothing else in these graphs may be refused
        assert "no rule for softmax" in str(refusal) and "is a gate" in str(refusal)
        with pytest.raises(lrp.UnhandledOperation, match="no rule for softmax"):
            lrp.relevance(model, x, 1, composite=LRP0)
        return
    agree(trace.output, wanted, 1e-12)
    # sums of LRP-0 may be a small difference of large numbers
    widest = max(row.incoming_abs for row in trace.ledger)
    tolerance = 1e-9 * max(1.0, widest / trace.relevance.abs().max().clamp(min=1e-12).item())
    agree(lrp.relevance(model, x, 1, composite=LRP0), trace.relevance, tolerance)
    agree(trace.relevance, gradient_x_input(run_by_hand(model, program), x, 1), tolerance)
    balanced(trace)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(program=PROGRAMS, seed=st.integers(0, 10_000), composite=st.sampled_from(["rules", "gamma", "alpha-beta"]))
def test_rules_that_look_at_signs_see_the_right_ones_in_any_graph(program, seed, composite):
    """The ledger runs without shortcuts: layers keep their activations apart, and look at what they really read."""
    composite = {
        "rules": lrp.Composite(linear=lrp.ZPlus()),
        "gamma": everywhere(lrp.Gamma(0.25)),
        "alpha-beta": everywhere(lrp.AlphaBeta(1)),
    }[composite]
    model, x = network(program, seed)
    try:
        trace = lrp.trace(model, x, 1, composite=composite)
    except lrp.UnhandledOperation as refusal:
        assert "is a gate" in str(refusal)
        return
    widest = max(row.incoming_abs for row in trace.ledger)
    tolerance = 1e-9 * max(1.0, widest / trace.relevance.abs().max().clamp(min=1e-12).item())
    agree(lrp.relevance(model, x, 1, composite=composite), trace.relevance, tolerance)
    balanced(trace)
