"""What is known about LRP without computing it: gradient x input, conservation, bounds, linearity."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from xaicourse import lrp

from .networks import (
    BATCH_NORMS,
    agree,
    everywhere,
    gradient_x_input,
    network,
    photographs,
    randomised,
    small_convolutional,
)

NETWORKS = ("small", "resnet18", "resnet50", "vgg16_bn")


def images(name: str, items: int = 0) -> Tensor:
    large = name in ("resnet50", "vgg16_bn")
    return photographs(items or (1 if large else 2), 64 if name == "resnet18" else 32)


@pytest.mark.parametrize("name", NETWORKS)
def test_lrp_0_is_gradient_x_input_on_a_network_of_relus(name):
    model, x = network(name), images(name)
    wanted = gradient_x_input(model, x, 3)
    agree(lrp.relevance(model, x, 3, composite=everywhere(lrp.Epsilon(0))), wanted, 1e-9)
    agree(lrp.trace(model, x, 3, composite=everywhere(lrp.Epsilon(0))).relevance, wanted, 1e-9)


def test_lrp_0_is_gradient_x_input_with_transposed_convolutions_sums_and_all_poolings():
    torch.manual_seed(0)

    class UNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.down = nn.Conv2d(3, 6, 3, stride=2, padding=1)
            self.deep = nn.Conv2d(6, 6, 3, padding=1)
            self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
            self.norm = nn.BatchNorm2d(4)
            self.last = nn.Conv2d(7, 5, 1)

        def forward(self, x):
            h = self.down(x).relu()
            h = h + torch.relu(self.deep(h)) - nn.functional.avg_pool2d(h, 3, 1, 1)
            h = torch.relu_(self.norm(self.up(h)))
            h = self.last(torch.cat([h, x], 1))
            return nn.functional.max_pool2d(h, 3, 2, ceil_mode=True).mean((2, 3))

    model, x = randomised(UNet()), photographs(2, 12)
    agree(lrp.relevance(model, x, 3, composite=everywhere(lrp.Epsilon(0))), gradient_x_input(model, x, 3))


# conservation ---------------------------------------------------------------------------------------------


def check_accounts(trace: lrp.Trace, tolerance: float) -> None:
    """Nothing is lost without a reason: row by row, and over the whole network."""
    for row in trace.ledger:
        scale = max(row.incoming_abs, row.passed_abs)
        assert abs(row.unexplained) <= tolerance * scale, row
        # a reshape, a pooling, a sum has no constant that could keep anything
        if row.rule == "gradient":
            assert abs(row.incoming - row.passed) <= tolerance * scale, row
    widest = max(row.incoming_abs for row in trace.ledger)
    assert abs(trace.ledger.unaccounted) <= tolerance * max(abs(trace.ledger.output), widest)
    kept = sum(trace.ledger.total(name) for name in ("bias", "stabiliser", "dead_end"))
    assert trace.ledger.input == pytest.approx(trace.relevance.sum().item(), rel=1e-4, abs=tolerance * widest)
    assert abs(trace.ledger.output - trace.ledger.input - kept) <= tolerance * max(abs(trace.ledger.output), widest)


@pytest.mark.parametrize("composite", lrp.COMPOSITES)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_ledger_accounts_for_the_whole_output(name, composite):
    model, x = network(name), images(name)
    trace = lrp.trace(model, x, 3, composite=composite)
    assert trace.ledger.output == pytest.approx(trace.output[:, 3].sum().item(), rel=1e-12)
    check_accounts(trace, 1e-6)
    agree(trace.relevance, lrp.relevance(model, x, 3, composite=composite), 1e-9)
    with torch.no_grad():
        agree(trace.output, model(x), 1e-9)


@pytest.mark.parametrize("composite", lrp.COMPOSITES)
@pytest.mark.parametrize("name", ["small", "resnet18"])
def test_the_ledger_accounts_in_float32_too(name, composite):
    check_accounts(lrp.trace(network(name).float(), images(name).float(), 3, composite=composite), 1e-3)


@pytest.mark.parametrize("composite", ["epsilon", "epsilon_plus"])
def test_without_biases_all_relevance_arrives_at_the_input(composite):
    torch.manual_seed(0)
    model = small_convolutional().double().eval()
    for module in model.modules():
        if isinstance(module, BATCH_NORMS):
            module.running_var.uniform_(0.5, 2)
        elif getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)
    x = photographs(2, 32)
    trace = lrp.trace(model, x, 3, composite=composite)
    agree(trace.relevance.flatten(1).sum(1), trace.output[:, 3], 2e-3)  # the stabilisers keep what is missing
    assert trace.ledger.total("bias") == pytest.approx(0, abs=1e-9)


def test_lrp_0_conserves_the_sum_while_single_relevances_explode():
    # the sum alone says nothing about a heatmap: a ledger shows both
    model, x = network("vgg11_bn"), photographs(1)
    for module in model.modules():
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.zero_()
    # without biases and stabilisers each layer conserves exactly; LRP-0 divides by sums near zero
    composites = {"0": everywhere(lrp.Epsilon(0)), "z+": everywhere(lrp.ZPlus(epsilon=0))}
    ledgers = {k: lrp.trace(model, x, 3, composite=c).ledger for k, c in composites.items()}
    for ledger in ledgers.values():
        assert ledger.input == pytest.approx(ledger.output, rel=1e-6)
    grown = {k: ledger[0].passed_abs / abs(ledger.output) for k, ledger in ledgers.items()}
    assert grown["z+"] == pytest.approx(1, rel=1e-6)
    assert grown["0"] > 10 * grown["z+"]


# bounds ---------------------------------------------------------------------------------------------------


@settings(max_examples=80, derandomize=True)
@given(
    beta=st.floats(0, 3),
    bias=st.booleans(),
    seed=st.integers(0, 10**6),
    sparse=st.booleans(),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_no_input_gets_more_than_one_plus_beta_times_what_a_neuron_has(beta, bias, seed, sparse, scale):
    torch.manual_seed(seed)
    layer = nn.Linear(6, 4).double().eval()
    x = torch.randn(3, 6, dtype=torch.float64) * scale
    if sparse:
        x = x.relu()
    start = torch.randn(3, dtype=torch.float64)
    composite = everywhere(lrp.AlphaBeta(beta, bias=bias, epsilon=0))
    for neuron in range(4):
        r = lrp.relevance(layer, x, neuron, composite=composite, start=start)
        assert (r.abs() <= (1 + beta) * start.abs()[:, None] * (1 + 1e-9)).all()
        assert (r.abs().sum(1) <= (1 + 2 * beta) * start.abs() * (1 + 1e-9)).all()


@pytest.mark.parametrize("beta", [0, 0.25, 1, 2])
def test_where_both_signs_occur_the_negative_part_of_all_relevance_is_beta_by_one_plus_two_beta(beta):
    torch.manual_seed(0)
    layer = nn.Linear(50, 1).double().eval()
    x = torch.rand(4, 50, dtype=torch.float64)
    r = lrp.relevance(layer, x, 0, composite=everywhere(lrp.AlphaBeta(beta, epsilon=0)), start=torch.ones(4).double())
    ratio = -r.clamp(max=0).sum(1) / r.abs().sum(1)
    agree(ratio, torch.full((4,), beta / (1 + 2 * beta), dtype=torch.float64), 1e-12)
    agree(r.sum(1), torch.ones(4, dtype=torch.float64), 1e-12)


@pytest.mark.parametrize("rule", [lrp.ZPlus(), lrp.AlphaBeta(0), lrp.Flat(), lrp.WSquare(), lrp.ZBox(-5, 5)])
def test_rules_without_negative_shares_keep_the_sign_of_the_score(rule):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3).double().eval()
    x = photographs(2, 8).clamp(-5, 5)
    r = lrp.relevance(layer, x, lambda y: y.relu().flatten(1).sum(1), composite=everywhere(rule))
    assert (r >= 0).all() and r.sum() > 0


# linearity ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("composite", lrp.COMPOSITES)
@pytest.mark.parametrize("name", ["small", "resnet18"])
def test_a_batch_is_explained_as_its_items_are_one_at_a_time(name, composite):
    model, x = network(name), images(name, 3)
    x[1] = x[1].relu()  # one item without negative values among others
    target = torch.tensor([1, 0, 7])
    together = lrp.relevance(model, x, target, composite=composite)
    alone = [lrp.relevance(model, x[i : i + 1], int(target[i]), composite=composite) for i in range(3)]
    agree(together, torch.cat(alone), 1e-9)


@pytest.mark.parametrize("composite", lrp.COMPOSITES)
def test_relevance_is_linear_in_what_it_starts_with(composite):
    model, x = network("small"), images("small")
    a, b = torch.randn(2, 2, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def explained(start):
        return lrp.relevance(model, x, 0, composite=composite, start=start)

    agree(explained(2 * a - 3 * b), 2 * explained(a) - 3 * explained(b), 1e-9)
    agree(explained(1e6 * a), 1e6 * explained(a), 1e-9)


def test_the_default_start_is_the_score_itself():
    model, x = network("small"), images("small")
    with torch.no_grad():
        y = model(x)
    one_hot = torch.zeros_like(y)
    one_hot[:, 4] = y[:, 4]
    wanted = lrp.relevance(model, x, 4)
    agree(lrp.relevance(model, x, 4, start=y[:, 4]), wanted)
    agree(lrp.relevance(model, x, 4, start=one_hot), wanted)
    agree(lrp.relevance(model, x, lambda y: y[:, 4]), wanted)
    agree(lrp.relevance(model, x, lambda y: y[:, 4], start=y[:, 4]), wanted)
    agree(lrp.relevance(model, x, 4, start=torch.ones(2).double()), wanted / y[:, 4].reshape(2, 1, 1, 1))


def test_all_ways_to_name_the_same_target_agree():
    model, x = network("small"), images("small")
    wanted = lrp.relevance(model, x, 4)
    for target in (torch.tensor(4), torch.tensor([4, 4]), lambda y: y[:, 4], lambda y: y.select(1, 4)):
        assert torch.equal(lrp.relevance(model, x, target), wanted)


def test_relevance_of_a_difference_of_scores_is_the_difference_of_relevances():
    model, x = network("small"), images("small")
    for composite in lrp.COMPOSITES:
        difference = lrp.relevance(model, x, 3, composite=composite) - lrp.relevance(model, x, 5, composite=composite)
        agree(lrp.relevance(model, x, lambda y: y[:, 3] - y[:, 5], composite=composite), difference, 1e-9)


@settings(max_examples=10, derandomize=True)
@given(factor=st.floats(1e-3, 1e3), seed=st.integers(0, 10**6))
def test_scaling_the_input_of_a_network_without_biases_scales_its_relevance(factor, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3, bias=False)
    )
    model.double().eval()
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    for rule in (lrp.Epsilon(0), lrp.ZPlus(epsilon=0), lrp.AlphaBeta(1, epsilon=0), lrp.Gamma(epsilon=0)):
        composite = everywhere(rule)
        agree(
            lrp.relevance(model, factor * x, 0, composite=composite),
            factor * lrp.relevance(model, x, 0, composite=composite),
            1e-7,
        )


@pytest.mark.parametrize("composite", lrp.COMPOSITES)
def test_shifting_a_photograph_shifts_its_relevance(composite):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, padding_mode="circular"),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1, padding_mode="circular"),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    )
    randomised(model)
    x = photographs(1, 8)
    shifted = lrp.relevance(model, x.roll((2, 3), (2, 3)), 1, composite=composite)
    agree(shifted, lrp.relevance(model, x, 1, composite=composite).roll((2, 3), (2, 3)))
