"""What lecture 12 claims about networks that have learned something, on networks small enough for a test."""

import pytest
import torch
from torch import Tensor, nn

from xaicourse import evaluation, lrp, mosaics, removal

ZERO = lrp.Epsilon(0)


def right(name: str, count: int) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A trained network and mosaics that it gets right."""
    network = mosaics.load(name)
    x, y, quarter = mosaics.sample(2 * count, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        ok = network(x).argmax(1) == y
    return network, x[ok][:count], y[ok][:count], quarter[ok][:count]


def gradient_x_input(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(model(x).gather(1, y[:, None]).sum(), x)[0] * x.detach()


@pytest.mark.parametrize("name", list(mosaics.NETWORKS))
@pytest.mark.parametrize("composite", ["epsilon", "epsilon_plus", "attention"])
def test_the_ledger_of_a_trained_network_accounts_for_its_score(name, composite):
    network, x, y, _ = right(name, 8)
    trace = lrp.trace(network.double(), x.double(), y, composite=composite)
    widest = max(row.incoming_abs for row in trace.ledger)
    assert abs(trace.ledger.unaccounted) <= 1e-6 * widest
    assert all(abs(row.unexplained) <= 1e-6 * widest for row in trace.ledger)
    with torch.no_grad():
        torch.testing.assert_close(trace.output, network(x.double()), rtol=1e-9, atol=1e-9)


def test_merging_batch_norms_makes_no_difference_to_lrp_0_and_another_map_for_z_plus():
    network, x, y, _ = right("resnet", 4)
    apart = mosaics.load("resnet")
    for module in apart.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, args, output: output * 1.0)
    for composite, same in (
        (lrp.Composite(convolution=ZERO, linear=ZERO, normalisation=ZERO), True),
        (lrp.Composite(convolution=lrp.ZPlus()), False),
    ):
        a, b = (lrp.relevance(m.double(), x.double(), y, composite=composite) for m in (network, apart))
        correlation = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]
        assert (correlation > 1 - 1e-9) == same
        assert same or correlation < 0.95


def test_z_plus_is_calmer_and_steadier_than_the_gradient_and_lrp_epsilon_is_not():
    network, x, y, _ = right("densenet", 16)
    explainers = {
        "gradient": gradient_x_input,
        "epsilon": lambda m, x, t: lrp.relevance(m, x, t, composite="epsilon"),
        "z+": lambda m, x, t: lrp.relevance(m, x, t, composite="epsilon_plus"),
    }
    noise = {name: evaluation.noisiness(explain(network, x, y)) for name, explain in explainers.items()}
    assert (noise["z+"] < noise["gradient"]).all()
    assert (noise["epsilon"] / noise["gradient"]).median() > 0.9
    moved = {
        name: evaluation.sensitivity(
            network, x, y, explain, radius=0.02, samples=1, generator=torch.Generator().manual_seed(0)
        ).average.median()
        for name, explain in explainers.items()
    }
    assert moved["z+"] < moved["gradient"] and moved["epsilon"] > 0.9 * moved["gradient"]


def test_no_method_wins_before_every_judge():
    network, x, y, quarter = right("densenet", 24)
    maps = {
        "gradient": gradient_x_input(network, x, y),
        "z+": lrp.relevance(network, x, y, composite="epsilon_plus"),
        "gamma": lrp.relevance(network, x, y, composite=lrp.Composite(convolution=lrp.Gamma(0.25))),
    }
    local = {name: evaluation.localisation(R, quarter).mean() for name, R in maps.items()}
    noise = {name: evaluation.noisiness(R).mean() for name, R in maps.items()}
    assert max(local, key=lambda e: local[e]) == "gamma" and local["gamma"] > local["gradient"] + 0.1
    assert min(noise, key=lambda e: noise[e]) == "z+"
    flip = {"removal": removal.baseline(0.0), "patch": 14, "steps": 8}
    random = evaluation.random_bounds(network, x, y, generator=torch.Generator().manual_seed(0), **flip).area.mean()
    areas = {name: evaluation.pixel_flipping(network, x, y, R, **flip).area.mean() for name, R in maps.items()}
    assert all(area < random for area in areas.values())


@pytest.mark.parametrize("name", ["resnet", "densenet", "efficientnet", "convnext", "vit"])
def test_relevance_lies_where_the_evidence_is_and_only_after_training(name):
    network, x, y, quarter = right(name, 24)
    trained = lrp.relevance(network, x, y, composite="attention")
    untrained = lrp.relevance(mosaics.load(name, pretrained=False), x, y, composite="attention")
    share = evaluation.localisation(trained, quarter).mean()
    assert share > 0.5 and share > evaluation.localisation(untrained, quarter).nanmean() + 0.2


def test_signal_takes_all_conserves_through_an_lstm_without_biases_and_the_product_rule_does_not():
    torch.manual_seed(0)
    recurrent = nn.LSTM(5, 8, num_layers=2, batch_first=True, bias=False).double().eval()
    x = torch.randn(6, 9, 5, dtype=torch.float64)

    def read(t: Tensor) -> Tensor:
        return recurrent(t)[0][:, -1]

    output = read(x)[:, 0].detach()
    arrived = lrp.relevance(read, x, 0, composite=lrp.Composite(linear=ZERO)).flatten(1).sum(1)
    torch.testing.assert_close(arrived, output, rtol=1e-8, atol=1e-12)
    paid = gradient_x_input(read, x, torch.zeros(6, dtype=torch.long)).flatten(1).sum(1)  # type: ignore[arg-type]
    assert ((paid / output - 1).abs() > 0.05).double().mean() > 0.5
