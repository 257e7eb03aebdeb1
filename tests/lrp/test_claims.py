"""Claims of lecture 11 that the other files here do not hold already: where rules come from, and how they are written."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from xaicourse import lrp

LOW, HIGH = -0.75, 1.25
RULES = {"w2": lrp.WSquare(epsilon=0), "z+": lrp.ZPlus(epsilon=0), "zB": lrp.ZBox(LOW, HIGH, epsilon=0)}


def _neuron(seed: int, inputs: int, positive: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (1, d), a bias <= 0 and a point (d,) at which the neuron fires."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        w = torch.randn(1, inputs, dtype=torch.float64, generator=generator)
        b = -0.2 * torch.rand(1, dtype=torch.float64, generator=generator)
        x = torch.rand(inputs, dtype=torch.float64, generator=generator)
        x = x if positive else LOW + (HIGH - LOW) * x
        if (w @ x + b).item() > 0.05:
            return w, b, x


@given(seed=st.integers(0, 10_000), inputs=st.integers(2, 12))
@pytest.mark.parametrize("name", RULES)
def test_a_first_order_expansion_at_a_root_is_the_rule_of_its_search_direction(name: str, seed: int, inputs: int):
    """Montavon et al. 2017: which rule it is depends only on where the root is sought."""
    w, b, x = _neuron(seed, inputs, positive=name == "z+")
    direction = {
        "w2": w[0],
        "z+": torch.where(w[0] > 0, x, 0.0),
        "zB": torch.where(w[0] > 0, x - LOW, x - HIGH),
    }[name]
    root = x - (w @ x + b) / (w @ direction) * direction
    assert abs(w @ root + b) < 1e-12
    if name == "z+":
        assert (root >= 0).all()

    expansion = w[0] * (x - root)  # the slope is w on the active side of the root
    neuron = torch.nn.Linear(inputs, 1).double().eval()
    neuron.load_state_dict({"weight": w, "bias": b})
    got = lrp.relevance(neuron, x[None], 0, composite=lrp.Composite(linear=RULES[name], first=RULES[name]))[0]
    torch.testing.assert_close(got, expansion, rtol=1e-9, atol=1e-12)
    assert torch.isclose(got.sum(), (w @ x + b).squeeze())


@given(beta=st.floats(0, 4), seed=st.integers(0, 10_000))
def test_the_two_ways_to_write_alpha_beta_are_one(beta: float, seed: int):
    """alpha + beta = 1 with a plus (Bach et al. 2015) and alpha - beta = 1 with a minus give the lecture's rule."""
    w, b, x = _neuron(seed, 8, positive=False)
    z = w[0] * x
    neuron = torch.nn.Linear(8, 1).double().eval()
    neuron.load_state_dict({"weight": w, "bias": b})
    composite = lrp.Composite(linear=lrp.AlphaBeta(beta, epsilon=0))
    got = lrp.relevance(neuron, x[None], 0, composite=composite)[0]

    up, down = z.clamp(min=0), z.clamp(max=0)
    up, down = up / up.sum().clamp(min=1e-300), down / down.sum().clamp(max=-1e-300)
    y = (w @ x + b).squeeze()
    bach_alpha, bach_beta = 1 + beta, -beta
    torch.testing.assert_close(got, (bach_alpha * up + bach_beta * down) * y)
    other_alpha, other_beta = 1 + beta, beta
    torch.testing.assert_close(got, (other_alpha * up - other_beta * down) * y)


def test_a_neuron_with_several_successors_adds_up_what_each_of_them_sends():
    """The slide's graph: R_6 = R_(6<-4) + R_(6<-5), as dy/dz_6 is a sum over the edges that leave z_6."""
    torch.manual_seed(0)
    below, left, right = (torch.nn.Linear(5, 5, bias=False).double().eval() for _ in range(3))

    def model(x: Tensor) -> Tensor:
        z6 = below(x).relu()
        return (left(z6).relu() + right(z6).relu()).sum(1, keepdim=True)

    x = torch.rand(4, 5, dtype=torch.float64)
    ledger = lrp.trace(model, x, 0, composite=lrp.Composite(linear=lrp.AlphaBeta(0.5))).ledger
    assert [row.function for row in ledger][:4] == ["linear", "relu", "linear", "relu"]
    z6, to_left, to_right = ledger[1], ledger[2], ledger[4]
    assert abs(to_left.passed) > 1e-3 and abs(to_right.passed) > 1e-3
    assert z6.incoming == pytest.approx(to_left.passed + to_right.passed, rel=1e-12)
