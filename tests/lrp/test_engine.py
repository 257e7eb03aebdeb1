"""The traps that the engine was built to avoid, in their smallest form; and real networks, unmodified."""

import pytest
import torch
import torchvision
from torch import nn

from xaicourse import lrp, models

from .networks import Functional, agree, everywhere, network, photographs, with_batch_norms_merged


class Block(nn.Module):
    """What a residual network is made of. Who hooks modules sees the convolution, and not the +."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)

    def forward(self, x):
        return x + self.conv(x).relu()


@pytest.mark.parametrize("blocks", [1, 3, 8])
def test_additions_share_relevance_where_a_hook_on_modules_copies_it(blocks):
    torch.manual_seed(0)
    model = nn.Sequential(*[Block() for _ in range(blocks)], nn.AdaptiveAvgPool2d(1), nn.Flatten()).double().eval()
    x = torch.rand(2, 4, 6, 6, dtype=torch.float64)
    composite = everywhere(lrp.ZPlus(epsilon=0))
    trace = lrp.trace(model, x, 1, composite=composite)
    additions = [row for row in trace.ledger if row.function in ("add", "__add__")]
    assert len(additions) == blocks
    for row in additions:
        assert row.passed == pytest.approx(row.incoming, rel=1e-9)
    agree(trace.relevance.flatten(1).sum(1), trace.output[:, 1], 1e-9)  # once the output

    # the same with every + as hooks on modules leave it: R goes to both terms whole
    r = trace.layers[str(blocks - 1)]
    for i in reversed(range(blocks)):
        with torch.no_grad():
            h = model[:i](x)
        r = r + lrp.relevance(
            lambda t, i=i: model[i].conv(t).relu().flatten(1),
            h,
            0,
            composite=composite,
            start=torch.where(model[i].conv(h).relu() == 0, 0, r).detach().flatten(1),
        )
    # each addition doubles what reaches it, but for the neurons whose layer gave exactly 0
    assert 1.5**blocks < r.sum() / trace.ledger.output <= 2**blocks * (1 + 1e-9)


def test_a_resnet18_gets_its_output_back_once_and_not_two_to_the_eighth_times():
    model, x = network("resnet18"), photographs(2)
    for module in model.modules():
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.zero_()
    trace = lrp.trace(model, x, 3)
    assert len([row for row in trace.ledger if "add" in row.function]) == 8
    assert trace.ledger.input / trace.ledger.output == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("composite", lrp.COMPOSITES)
@pytest.mark.parametrize("name", ["small", "resnet18", "vgg11_bn"])
def test_batch_norms_make_no_difference_to_a_network_that_has_them_merged(name, composite):
    # "epsilon" too: a layer and its batch norm are one layer, not two
    model, x = network(name), photographs(2, 64 if name == "resnet18" else 32)
    wanted = lrp.relevance(with_batch_norms_merged(model), x, 3, composite=composite)
    agree(lrp.relevance(model, x, 3, composite=composite), wanted, 1e-9)


@pytest.mark.parametrize(
    "name",
    ["alexnet", "squeezenet1_1", "densenet121", "mobilenet_v2", "shufflenet_v2_x0_5", "regnet_x_400mf"],
)
def test_networks_without_gates_and_attention_are_explained_as_they_are(name):
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, num_classes=10).eval()
    x = photographs(1, 64).float()
    trace = lrp.trace(model, x, 3)
    with torch.no_grad():
        agree(trace.output, model(x), 1e-4)
    widest = max(row.incoming_abs for row in trace.ledger)
    assert abs(trace.ledger.unaccounted) <= 1e-3 * widest
    assert all(abs(row.unexplained) <= 1e-3 * widest for row in trace.ledger)
    agree(trace.relevance, lrp.relevance(model, x, 3), 1e-3)


@pytest.mark.parametrize("composite", lrp.COMPOSITES)
def test_the_default_network_is_explained_and_accounted_for(composite):
    model = models.load().double()
    x = photographs(1, 64)
    trace = lrp.trace(model, x, 282, composite=composite)
    with torch.no_grad():
        agree(trace.output, model(x), 1e-9)
    widest = max(row.incoming_abs for row in trace.ledger)
    assert abs(trace.ledger.unaccounted) <= 1e-6 * widest
    assert all(abs(row.unexplained) <= 1e-6 * max(row.incoming_abs, row.passed_abs) for row in trace.ledger)
    agree(trace.relevance, lrp.relevance(model, x, 282, composite=composite), 1e-9)


def test_one_model_with_inputs_of_other_sizes_and_dtypes_does_not_mix_them_up():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    model.eval()
    sizes = [photographs(n, s, seed=n).float() for n, s in ((1, 8), (3, 8), (2, 12), (1, 8))]
    first = [lrp.relevance(model, x, 1) for x in sizes]
    doubled = [lrp.relevance(model.double(), x.double(), 1) for x in sizes]
    again = [lrp.relevance(model.float(), x, 1) for x in sizes]
    for a, b, c in zip(first, doubled, again, strict=True):
        agree(a, b, 1e-4)
        agree(a, c, 1e-6)


def test_one_weight_in_two_geometries_is_two_layers():
    def forward(m, x):
        wide = nn.functional.conv2d(x, m.c.weight, m.c.bias, padding=2, dilation=2)
        return (wide + m.c(x) + nn.functional.conv2d(x, m.c.weight, m.c.bias, padding="same")).relu().mean((2, 3))

    model = Functional(forward, c=nn.Conv2d(3, 4, 3, padding=1))
    x = photographs(2, 8)
    trace = lrp.trace(model, x, 1, composite="epsilon_plus")
    with torch.no_grad():
        agree(trace.output, model(x), 1e-12)
    got = [lrp.relevance(model, x, 1, composite="epsilon_plus") for _ in range(2)]
    agree(got[0], trace.relevance, 1e-9)
    assert torch.equal(*got)
