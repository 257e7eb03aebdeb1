"""The rules against zennit and captum, on single layers and on whole networks, in float64.

Where conventions differ, ours are set to theirs, and a comment says how. zennit 0.5.1 leaves the batch norm's
eps at 1e-5 when it merges, which shifts everything by about 5e-5, so that we merge batch norms beforehand.
"""

from collections.abc import Callable

import captum.attr
import captum.attr._utils.lrp_rules
import pytest
import torch
import zennit.composites
import zennit.rules
import zennit.torchvision
import zennit.types
from torch import Tensor, nn
from zennit.layer import Sum

from xaicourse import lrp

from .networks import Functional, agree, everywhere, network, photographs, randomised, with_batch_norms_merged

LOW, HIGH = -4.0, 5.0

# ours beside zennit's of the same mathematics
PAIRS = {
    "epsilon": (lrp.Epsilon(), zennit.rules.Epsilon()),
    "epsilon 0.1": (lrp.Epsilon(0.1), zennit.rules.Epsilon(0.1)),
    "epsilon without bias": (lrp.Epsilon(0.1, bias=False), zennit.rules.Epsilon(0.1, zero_params="bias")),
    # zennit gives b+ a share unless told otherwise; the lecture's formula leaves the bias out
    "z+": (lrp.ZPlus(), zennit.rules.ZPlus(zero_params="bias")),
    "z+ with bias": (lrp.ZPlus(bias=True), zennit.rules.ZPlus()),
    # the lecture's beta is zennit's AlphaBeta(1 + beta, beta)
    "beta 0": (lrp.AlphaBeta(0), zennit.rules.AlphaBeta(1, 0, zero_params="bias")),
    "beta 1": (lrp.AlphaBeta(1), zennit.rules.AlphaBeta(2, 1, zero_params="bias")),
    "beta 1 with bias": (lrp.AlphaBeta(1, bias=True), zennit.rules.AlphaBeta(2, 1)),
    "beta 0.5 with bias": (lrp.AlphaBeta(0.5, bias=True, epsilon=0.1), zennit.rules.AlphaBeta(1.5, 0.5, 0.1)),
    # with zero_params="bias" zennit still asks y = z + b whether the neuron fires, as we do
    "gamma": (lrp.Gamma(bias=False), zennit.rules.Gamma(zero_params="bias")),
    # b counts 1 + gamma times where it helps
    "gamma with bias": (lrp.Gamma(bias=True), zennit.rules.Gamma()),
    "gamma 2 with bias": (lrp.Gamma(2, bias=True, epsilon=0.1), zennit.rules.Gamma(2, 0.1)),
    # the bias cancels in z - z_low - z_high
    "zB": (lrp.ZBox(LOW, HIGH), zennit.rules.ZBox(LOW, HIGH)),
    # zennit has b^2 in the denominator unless told otherwise
    "w2": (lrp.WSquare(), zennit.rules.WSquare(zero_params="bias")),
    "w2 with bias": (lrp.WSquare(bias=True), zennit.rules.WSquare()),
    # zennit always leaves the bias out
    "flat": (lrp.Flat(), zennit.rules.Flat()),
}

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(7, 5), (7,)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3, 2, 2, 2), (3, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 5, 6)),
    "conv2d, strided and dilated": (lambda: nn.Conv2d(2, 3, 3, (2, 1), 2, 2), (2, 6, 7)),
    "conv2d, padding same": (lambda: nn.Conv2d(2, 3, (3, 5), padding="same"), (2, 5, 6)),
    "conv2d, padding same, even kernel": (lambda: nn.Conv2d(2, 3, (4, 2), padding="same"), (2, 5, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 2, 2, padding=1), (2, 3, 4, 3)),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(3, 2, 3, 2, 1, output_padding=1), (3, 5)),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2), (4, 3, 4)),
    "conv_transpose3d": (lambda: nn.ConvTranspose3d(2, 2, 2, stride=2), (2, 2, 3, 2)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("name", LAYERS)
def test_a_rule_on_a_single_layer_is_zennits(name, pair):
    make, shape = LAYERS[name]
    torch.manual_seed(1)
    layer = randomised(make())
    ours, theirs = PAIRS[pair]
    signed = torch.randn(2, *shape, dtype=torch.float64).clamp(LOW, HIGH)
    for x in (signed.relu(), torch.where(signed.abs() < 0.3, 0, signed)):
        with torch.no_grad():
            y = layer(x)
        factors = torch.randn_like(y)
        got = lrp.relevance(
            layer, x, lambda y, factors=factors: (y * factors).flatten(1).sum(1), composite=everywhere(ours)
        )
        handles = theirs.copy().register(layer)
        try:
            leaf = x.clone().requires_grad_()
            (wanted,) = torch.autograd.grad(layer(leaf), leaf, y * factors)
        finally:
            handles.remove()
        agree(got, wanted, 1e-9)


def exactly(z: Tensor) -> Tensor:
    """A stabiliser that only avoids 0 / 0.

    zennit runs sums and average poolings under LRP-epsilon ("Norm"), we give them their plain gradient, which
    is LRP-0; with its usual 1e-6 the two differ by about that much.
    """
    return torch.where(z == 0, 1, z)


def by_zennit(model: nn.Module, x: Tensor, target: int, layers, first=None, canonizers=()) -> Tensor:
    layer_map = [
        (zennit.types.Activation, zennit.rules.Pass()),
        (Sum, zennit.rules.Norm(exactly)),
        (zennit.types.AvgPool, zennit.rules.Norm(exactly)),
        *layers,
    ]
    if first is None:
        composite = zennit.composites.LayerMapComposite(layer_map, canonizers=list(canonizers))
    else:
        composite = zennit.composites.SpecialFirstLayerMapComposite(
            layer_map, [(zennit.types.Linear, first)], canonizers=list(canonizers)
        )
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # zennit's hooks are views, on which a ReLU must not write
    with composite.context(model) as modified:
        leaf = x.clone().requires_grad_()
        y = modified(leaf)
        start = torch.zeros_like(y)
        start[:, target] = y.detach()[:, target]
        return torch.autograd.grad(y, leaf, start)[0]


EPSILON = (zennit.types.Linear, zennit.rules.Epsilon())
COMPOSITES = {
    # Linear are all layers with weights; the first entry that fits decides
    "epsilon": ([EPSILON], None),
    "epsilon_plus": ([(zennit.types.Convolution, PAIRS["z+"][1]), EPSILON], None),
    "epsilon_alpha2_beta1": ([(zennit.types.Convolution, PAIRS["beta 1"][1]), EPSILON], None),
    "epsilon_gamma_box": (
        [(zennit.types.Convolution, PAIRS["gamma with bias" if lrp.Gamma().bias else "gamma"][1]), EPSILON],
        "box",
    ),
}


@pytest.mark.parametrize("composite", COMPOSITES)
@pytest.mark.parametrize("name", ["small", "vgg11_bn", "resnet18"])
def test_a_named_composite_on_a_network_is_zennits(name, composite):
    model, x = network(name), photographs(2, 32 if name == "small" else 64)
    layers, first = COMPOSITES[composite]
    if first == "box":
        # our box left out spans each item's own values; theirs has no batch axis, so one item at a time
        wanted = torch.cat(
            [
                by_zennit(
                    with_batch_norms_merged(model),
                    item[None],
                    3,
                    layers,
                    # as tensors, since zennit takes numbers as float32
                    zennit.rules.ZBox(item.min().reshape(1, 1, 1, 1), item.max().reshape(1, 1, 1, 1)),
                    [zennit.torchvision.ResNetCanonizer()],
                )
                for item in x
            ]
        )
    else:
        merged = with_batch_norms_merged(model)
        wanted = by_zennit(merged, x, 3, layers, canonizers=[zennit.torchvision.ResNetCanonizer()])
    agree(lrp.relevance(model, x, 3, composite=composite), wanted, 1e-9)


@pytest.mark.parametrize("pair", [p for p in PAIRS if p not in ("zB", "w2", "w2 with bias", "flat")])
def test_a_rule_in_every_layer_of_a_network_is_zennits(pair):
    model, x = network("small"), photographs(2, 32)
    ours, theirs = PAIRS[pair]
    wanted = by_zennit(with_batch_norms_merged(model), x, 3, [(zennit.types.Linear, theirs)])
    agree(lrp.relevance(model, x, 3, composite=everywhere(ours)), wanted, 1e-9)


@pytest.mark.parametrize("pair", ["zB", "w2", "w2 with bias", "flat"])
@pytest.mark.parametrize("name", ["small", "resnet18"])
def test_a_rule_for_the_first_layer_of_a_network_is_zennits(name, pair):
    model, x = network(name), photographs(2, 32 if name == "small" else 64).clamp(LOW, HIGH)
    ours, theirs = PAIRS[pair]
    wanted = by_zennit(
        with_batch_norms_merged(model),
        x,
        3,
        COMPOSITES["epsilon_plus"][0],
        theirs,
        [zennit.torchvision.ResNetCanonizer()],
    )
    agree(lrp.relevance(model, x, 3, composite=lrp.Composite(convolution=lrp.ZPlus(), first=ours)), wanted, 1e-9)


def test_without_its_canonizer_zennit_differs_by_two_to_the_number_of_additions():
    # the trap, and why functions are intercepted here and not modules: see also test_engine.py
    model, x = network("resnet18"), photographs(1)
    for module in model.modules():
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)  # so that z+ conserves relevance
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.zero_()
    layers = COMPOSITES["epsilon_plus"][0]
    trace = lrp.trace(model, x, 3)
    theirs = by_zennit(with_batch_norms_merged(model), x, 3, layers)
    assert abs(trace.ledger.input / trace.ledger.output - 1) < 0.01
    assert abs(theirs.sum().item() / trace.ledger.output / 2**8 - 1) < 0.01


@pytest.mark.parametrize("epsilon", [1e-6, 0.1])
def test_captums_epsilon_rule_gives_the_same(epsilon):
    # captum's other rules are wrong for signed inputs and are no oracle; it cannot go through nn.Flatten
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), nn.ReLU())
    head = nn.Sequential(nn.Linear(8 * 36, 12), nn.ReLU(), nn.Linear(12, 4))
    model = randomised(Functional(lambda m, x: m.head(torch.flatten(m.features(x), 1)), features=features, head=head))
    x = photographs(3, 14)
    got = lrp.relevance(model, x, 2, composite=everywhere(lrp.Epsilon(epsilon)))
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.rule = captum.attr._utils.lrp_rules.EpsilonRule(epsilon)
    wanted = captum.attr.LRP(model).attribute(x.clone().requires_grad_(), target=2).detach()
    agree(got, wanted, 1e-9)
