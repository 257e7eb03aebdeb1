"""Every rule against the textbook version on the layer's matrix, on every kind of layer with weights."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from xaicourse import lrp
from xaicourse.lrp import reference

from .networks import Functional, agree, everywhere, randomised

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

LAYERS = {
    "linear": (lambda: nn.Linear(7, 5), (7,)),
    "linear without bias": (lambda: nn.Linear(7, 5, bias=False), (7,)),
    "linear on a sequence": (lambda: nn.Linear(4, 3), (5, 4)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3), (3, 8)),
    "conv1d, padded, strided, dilated": (lambda: nn.Conv1d(3, 4, 3, 2, 2, 2), (3, 9)),
    "conv2d": (lambda: nn.Conv2d(2, 3, 3), (2, 5, 6)),
    "conv2d without bias": (lambda: nn.Conv2d(2, 3, 3, bias=False), (2, 5, 6)),
    "conv2d, 1x1": (lambda: nn.Conv2d(4, 3, 1), (4, 3, 3)),
    "conv2d, padded": (lambda: nn.Conv2d(2, 3, (3, 5), padding=(1, 2)), (2, 5, 6)),
    "conv2d, strided": (lambda: nn.Conv2d(2, 3, 3, stride=(2, 3), padding=1), (2, 6, 7)),
    "conv2d, dilated": (lambda: nn.Conv2d(2, 3, 3, padding=2, dilation=2), (2, 6, 5)),
    "conv2d, grouped": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 4, 5)),
    "conv2d, depthwise": (lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4), (4, 4, 4)),
    "conv2d, stride that leaves a rest": (lambda: nn.Conv2d(2, 3, 2, stride=3), (2, 7, 6)),
    "conv2d, padding valid": (lambda: nn.Conv2d(2, 3, 3, padding="valid"), (2, 5, 5)),
    "conv2d, padding same": (lambda: nn.Conv2d(2, 3, (3, 5), padding="same"), (2, 5, 6)),
    "conv2d, padding same, dilated": (lambda: nn.Conv2d(2, 3, 3, padding="same", dilation=(2, 1)), (2, 5, 6)),
    "conv2d, padding same, even kernel": (lambda: nn.Conv2d(2, 3, (4, 3), padding="same"), (2, 5, 6)),
    "conv1d, padding same, even kernel": (lambda: nn.Conv1d(2, 3, 2, padding="same", dilation=3), (2, 7)),
    "conv3d, padding same, even kernel": (lambda: nn.Conv3d(1, 2, (2, 3, 4), padding="same"), (1, 3, 3, 4)),
    "conv3d": (lambda: nn.Conv3d(2, 2, 2, padding=1, stride=2), (2, 3, 4, 3)),
    "conv3d, grouped": (lambda: nn.Conv3d(2, 4, 2, groups=2, dilation=2), (2, 3, 4, 3)),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(3, 2, 3, 2, 1, output_padding=1), (3, 5)),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(2, 3, 3), (2, 3, 4)),
    "conv_transpose2d, everything": (
        lambda: nn.ConvTranspose2d(4, 6, 3, (2, 3), 1, (1, 2), groups=2, dilation=(1, 2)),
        (4, 3, 3),
    ),
    "conv_transpose2d, depthwise": (lambda: nn.ConvTranspose2d(3, 3, 2, stride=2, groups=3), (3, 3, 3)),
    "conv_transpose3d": (
        lambda: nn.ConvTranspose3d(2, 2, 2, stride=2, padding=1, output_padding=1),
        (2, 2, 3, 2),
    ),
    # a batch norm behind the layer belongs to it: the rule sees the weights that act
    "linear with batch norm": (lambda: nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5)), (7,)),
    "conv1d with batch norm": (lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)), (3, 8)),
    "conv2d with batch norm": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.BatchNorm2d(6)),
        (4, 4, 5),
    ),
    "conv2d without bias, with batch norm": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding="same", bias=False), nn.BatchNorm2d(3)),
        (2, 4, 5),
    ),
    "conv2d, even kernel, with batch norm": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 2, padding="same"), nn.BatchNorm2d(3)),
        (2, 4, 5),
    ),
    "conv2d with plain batch norm": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, affine=False, eps=1e-3)),
        (2, 4, 5),
    ),
    "conv3d with batch norm": (lambda: nn.Sequential(nn.Conv3d(2, 2, 2), nn.BatchNorm3d(2)), (2, 3, 3, 3)),
    "conv_transpose1d with batch norm": (
        lambda: nn.Sequential(nn.ConvTranspose1d(4, 6, 3, groups=2), nn.BatchNorm1d(6)),
        (4, 4),
    ),
    "conv_transpose2d with batch norm": (
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), nn.BatchNorm2d(6)),
        (4, 3, 3),
    ),
    "batch norm alone": (lambda: nn.BatchNorm2d(4), (4, 3, 3)),
    "batch norm alone, 1d": (lambda: nn.BatchNorm1d(6), (6,)),
}

LOW, HIGH = -4.0, 5.0
RULES = {
    "epsilon": (lrp.Epsilon(), reference.epsilon),
    "epsilon 0.1": (lrp.Epsilon(0.1), functools.partial(reference.epsilon, epsilon=0.1)),
    "epsilon without bias": (
        lrp.Epsilon(0.01, bias=False),
        functools.partial(reference.epsilon, epsilon=0.01, bias=False),
    ),
    "z+": (lrp.ZPlus(), reference.z_plus),
    "z+ with bias": (lrp.ZPlus(bias=True), functools.partial(reference.z_plus, bias=True)),
    "alpha1-beta0": (lrp.AlphaBeta(0), functools.partial(reference.alpha_beta, beta=0)),
    "alpha2-beta1": (lrp.AlphaBeta(1), functools.partial(reference.alpha_beta, beta=1)),
    "alpha2-beta1 with bias": (
        lrp.AlphaBeta(1, bias=True),
        functools.partial(reference.alpha_beta, beta=1, bias=True),
    ),
    "alpha1.5-beta0.5, epsilon 0.1": (
        lrp.AlphaBeta(0.5, epsilon=0.1),
        functools.partial(reference.alpha_beta, beta=0.5, epsilon=0.1),
    ),
    "gamma with bias": (lrp.Gamma(bias=True), functools.partial(reference.gamma, gamma=0.25, bias=True)),
    "gamma without bias": (
        lrp.Gamma(0.5, bias=False),
        functools.partial(reference.gamma, gamma=0.5, bias=False),
    ),
    "gamma 3": (
        lrp.Gamma(3, bias=True, epsilon=0.1),
        functools.partial(reference.gamma, gamma=3, bias=True, epsilon=0.1),
    ),
    "zB": (
        lrp.ZBox(LOW, HIGH),
        functools.partial(reference.z_box, low=torch.tensor(LOW).double(), high=torch.tensor(HIGH).double()),
    ),
    "w2": (lrp.WSquare(), reference.w_square),
    "w2 with bias": (lrp.WSquare(bias=True), functools.partial(reference.w_square, bias=True)),
    "flat": (lrp.Flat(), reference.flat),
}
CORE = (
    "epsilon",
    "z+",
    "alpha2-beta1 with bias",
    "gamma with bias",
    "gamma without bias",
    "zB",
    "w2 with bias",
    "flat",
)
FOUR = ("linear", "conv2d, padded", "conv2d with batch norm", "conv_transpose2d, everything")
RELEVANCE_RULES = ("zB", "w2", "w2 with bias", "flat")


@functools.cache
def layer(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return randomised(LAYERS[name][0](), seed=3)


@functools.cache
def matrix(name: str) -> tuple[Tensor, Tensor]:
    """W and b do not depend on the input."""
    return reference.matrix(layer(name), torch.zeros(LAYERS[name][1]))


def some_input(shape: tuple[int, ...], kind: str, items: int = 2, seed: int = 5) -> Tensor:
    x = torch.randn(items, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).clamp(LOW, HIGH)
    match kind:
        case "nonnegative":
            return x.relu()  # half of it exact zeros
        case "signed":
            return torch.where(x.abs() < 0.3, 0, x)  # some exact zeros
        case "nonpositive":
            return -x.relu()
        case "zero":
            return x * 0
    raise ValueError(kind)


def weighted_sum(y: Tensor) -> Tensor:
    """A score of all outputs, each with a factor of its own: relevance of output k is a_k y_k."""
    factors = torch.linspace(-1, 2, y[0].numel(), dtype=y.dtype, device=y.device).reshape(y.shape[1:])
    return (y * factors).flatten(1).sum(1)


def by_the_textbook(model: nn.Module, w: Tensor, b: Tensor, rule: reference.MatrixRule, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = model(x).flatten(1)
    start = y * torch.linspace(-1, 2, y.shape[1], dtype=y.dtype)
    rows = [rule(w, b, item.flatten(), r) for item, r in zip(x, start, strict=True)]
    return torch.stack(rows).reshape(x.shape)


# every rule on four layers, one setting of each on all
PAIRS = [(name, rule) for name in LAYERS for rule in RULES if rule in CORE or name in FOUR]


@pytest.mark.parametrize(("name", "rule"), PAIRS)
def test_a_rule_on_a_layer_is_the_textbook_rule_on_its_matrix(name, rule):
    ours, textbook = RULES[rule]
    for kind in ("nonnegative", "signed"):
        x = some_input(LAYERS[name][1], kind)
        got = lrp.relevance(layer(name), x, weighted_sum, composite=everywhere(ours))
        agree(got, by_the_textbook(layer(name), *matrix(name), textbook, x), 1e-9)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", FOUR)
def test_a_rule_is_the_textbook_rule_for_inputs_that_are_nowhere_positive(name, rule):
    ours, textbook = RULES[rule]
    for kind in ("nonpositive", "zero"):
        x = some_input(LAYERS[name][1], kind)
        got = lrp.relevance(layer(name), x, weighted_sum, composite=everywhere(ours))
        agree(got, by_the_textbook(layer(name), *matrix(name), textbook, x), 1e-9)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["linear", "conv2d, padded", "conv_transpose2d with batch norm"])
def test_with_a_relu_behind_it_a_layer_passes_on_relevance_of_neurons_that_fire(name, rule):
    ours, textbook = RULES[rule]
    model = nn.Sequential(layer(name), nn.ReLU()).eval()
    for kind in ("nonnegative", "signed"):
        x = some_input(LAYERS[name][1], kind)
        got = lrp.relevance(model, x, weighted_sum, composite=everywhere(ours))
        agree(got, by_the_textbook(model, *matrix(name), textbook, x), 1e-9)
        agree(lrp.trace(model, x, weighted_sum, composite=everywhere(ours)).relevance, got, 1e-11)


@pytest.mark.parametrize("rule", [r for r in RULES if r not in RELEVANCE_RULES])
def test_an_activation_passes_on_its_secant(rule):
    ours, textbook = RULES[rule]
    x, w, b = some_input((2, 5, 6), "signed"), *matrix("conv2d, padded")
    model = nn.Sequential(layer("conv2d, padded"), nn.SiLU()).eval()
    got = lrp.relevance(model, x, weighted_sum, composite=everywhere(ours))
    agree(got, by_the_textbook(model, w, b, textbook, x), 1e-9)  # R of g(z) is R of z
    agree(lrp.trace(model, x, weighted_sum, composite=everywhere(ours)).relevance, got, 1e-11)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", FOUR)
def test_in_float32_a_rule_keeps_three_digits(name, rule):
    ours, textbook = RULES[rule]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = randomised(LAYERS[name][0](), seed=3).float()
    x = some_input(LAYERS[name][1], "signed").float()
    got = lrp.relevance(model, x, weighted_sum, composite=everywhere(ours))
    assert got.dtype == torch.float32
    agree(got, by_the_textbook(layer(name), *matrix(name), textbook, x.double()), 1e-3)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("rule", CORE)
def test_a_pixel_that_padding_repeats_gets_the_relevance_of_all_its_copies(rule, mode):
    ours, textbook = RULES[rule]
    with torch.random.fork_rng():
        torch.manual_seed(4)
        convolution = nn.Conv2d(2, 3, 3, padding=(2, 1), padding_mode=mode).double().eval()
    x = some_input((2, 5, 6), "signed")
    sides = (1, 1, 2, 2)
    padded = F.pad(x, sides, mode=mode)
    inner = Functional(lambda m, t: F.conv2d(t, m.c.weight, m.c.bias), c=convolution)
    wanted = by_the_textbook(inner, *reference.matrix(inner, padded[0]), textbook, padded)
    # add up what the copies of each pixel got
    index = torch.arange(30, dtype=torch.float64).reshape(1, 1, 5, 6)
    source = F.pad(index, sides, mode=mode).long().flatten().expand(2, 2, -1)
    gathered = torch.zeros(2, 2, 30, dtype=torch.float64).scatter_add(2, source, wanted.flatten(2))
    got = lrp.relevance(convolution, x, weighted_sum, composite=everywhere(ours))
    agree(got, gathered.reshape(x.shape), 1e-9)


@settings(max_examples=60, derandomize=True)
@given(st.data())
def test_a_rule_is_the_textbook_rule_for_any_geometry_of_a_convolution(data):
    transposed = data.draw(st.booleans(), "transposed")
    groups = data.draw(st.sampled_from([1, 2]), "groups")
    channels = [groups * data.draw(st.integers(1, 2), "channels") for _ in range(2)]
    geometry = {
        name: (data.draw(st.integers(low, 2), name), data.draw(st.integers(low, 2), name))
        for name, low in (("stride", 1), ("padding", 0), ("dilation", 1))
    }
    kernel = (data.draw(st.integers(1, 3), "kernel"), data.draw(st.integers(1, 3), "kernel"))
    geometry["padding"] = tuple(
        min(p, d * (k - 1)) for p, k, d in zip(geometry["padding"], kernel, geometry["dilation"], strict=True)
    )
    rule = data.draw(st.sampled_from(sorted(RULES)), "rule")
    torch.manual_seed(data.draw(st.integers(0, 10**6), "seed"))
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    extra = {"output_padding": tuple(s - 1 for s in geometry["stride"])} if transposed else {}
    model = nn.Sequential(kind(*channels, kernel, groups=groups, **geometry, **extra), nn.BatchNorm2d(channels[1]))
    randomised(model)
    x = some_input((channels[0], 5, 6), data.draw(st.sampled_from(["signed", "nonnegative"])))
    ours, textbook = RULES[rule]
    wanted = by_the_textbook(model, *reference.matrix(model, x[0]), textbook, x)
    agree(lrp.relevance(model, x, weighted_sum, composite=everywhere(ours)), wanted, 1e-9)


# batch norms that stand alone -----------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [r for r in RULES if r not in RELEVANCE_RULES])
def test_a_batch_norm_before_a_layer_is_a_diagonal_layer_of_its_own(rule):
    ours, textbook = RULES[rule]
    torch.manual_seed(0)
    norm, convolution = randomised(nn.BatchNorm2d(2)), randomised(nn.Conv2d(2, 3, 3, padding=1))
    x = some_input((2, 4, 4), "signed")
    h = norm(x).detach()
    r_h = by_the_textbook(convolution, *reference.matrix(convolution, h[0]), textbook, h)
    w, b = reference.matrix(norm, x[0])
    wanted = torch.stack([textbook(w, b, t.flatten(), r.flatten()) for t, r in zip(x, r_h, strict=True)])
    model = nn.Sequential(norm, convolution).eval()
    agree(lrp.relevance(model, x, weighted_sum, composite=everywhere(ours)), wanted.reshape(x.shape), 1e-9)


@pytest.mark.parametrize("rule", [r for r in RULES if r not in RELEVANCE_RULES])
@pytest.mark.parametrize("features", [5, 6])
def test_a_batch_norm_over_the_steps_of_a_sequence_is_not_merged_into_a_linear_layer(rule, features):
    # nn.Linear works on the last axis, nn.BatchNorm1d on the second; 5 steps of 5 features seem to fit
    ours, textbook = RULES[rule]
    torch.manual_seed(0)
    linear, norm = randomised(nn.Linear(4, features)), randomised(nn.BatchNorm1d(5))
    x = some_input((5, 4), "signed")
    h = linear(x).detach()
    r_h = by_the_textbook(norm, *reference.matrix(norm, h[0]), textbook, h)
    w, b = reference.matrix(linear, x[0])
    wanted = torch.stack([textbook(w, b, t.flatten(), r.flatten()) for t, r in zip(x, r_h, strict=True)])
    model = nn.Sequential(linear, norm).eval()
    agree(lrp.relevance(model, x, weighted_sum, composite=everywhere(ours)), wanted.reshape(x.shape), 1e-9)


def test_two_batch_norms_in_a_row_are_merged_once():
    torch.manual_seed(0)
    first, second = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)), nn.BatchNorm2d(3)
    randomised(first), randomised(second)
    x = some_input((2, 4, 4), "signed")
    h = first(x).detach()
    w, b = reference.matrix(second, h[0])
    r_h = by_the_textbook(second, w, b, reference.epsilon, h)
    w, b = reference.matrix(first, x[0])
    wanted = torch.stack([reference.z_plus(w, b, t.flatten(), r.flatten()) for t, r in zip(x, r_h, strict=True)])
    got = lrp.relevance(nn.Sequential(first, second).eval(), x, weighted_sum)
    agree(got, wanted.reshape(x.shape), 1e-9)


# by hand --------------------------------------------------------------------------------------------------


def neuron(weights: list[float], bias: float = 0.0) -> nn.Module:
    layer = nn.Linear(len(weights), 1).double().eval()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([weights]))
        layer.bias.fill_(bias)
    return layer


@pytest.mark.parametrize(
    ("rule", "weights", "bias", "x", "start", "wanted"),
    [
        # z+ = 1 and b+ = 0, so that x1 takes it all
        (lrp.AlphaBeta(0, bias=True, epsilon=0), (1, -1), -1, (1, 1), -1, (-1, 0)),
        # less one share of z- + b- = -2, of which x2 holds half
        (lrp.AlphaBeta(1, bias=True, epsilon=0), (1, -1), -1, (1, 1), -1, (-2, 0.5)),
        # the lecture's formula leaves the bias out: x2 holds all of z-
        (lrp.AlphaBeta(1, epsilon=0), (1, -1), -1, (1, 1), -1, (-2, 1)),
        # negative inputs at negative weights are positive contributions: z+ = 2 + 3, z- = -4
        (lrp.ZPlus(epsilon=0), (1, -3, 4), 0, (2, -1, -1), 1, (0.4, 0.6, 0)),
        (lrp.AlphaBeta(1, epsilon=0), (1, -3, 4), 0, (2, -1, -1), 1, (0.8, 1.2, -1)),
        # y = 3 - 1 + 1
        (lrp.Epsilon(0), (3, -1), 1, (1, 1), 3, (3, -1)),
        (lrp.Epsilon(0, bias=False), (3, -1), 1, (1, 1), 3, (4.5, -1.5)),
        (lrp.Epsilon(1), (3, -1), 1, (1, 1), 4, (3, -1)),
        # a negative sum is stabilised downwards: -2 - 2
        (lrp.Epsilon(2), (1, -3), 0, (1, 1), -4, (1, -3)),
        # fires, so that positive contributions count twice: 4 - 1
        (lrp.Gamma(1, epsilon=0), (2, -1), 0, (1, 1), 3, (4, -1)),
        # below zero, so that negative ones do: 1 - 4
        (lrp.Gamma(1, epsilon=0), (1, -2), 0, (1, 1), -3, (1, -4)),
        # and the bias, where it takes its share: 4 - 1 + 2
        (lrp.Gamma(1, epsilon=0, bias=True), (2, -1), 1, (1, 1), 5, (4, -1)),
        (lrp.Gamma(1, epsilon=0, bias=False), (2, -1), 1, (1, 1), 3, (4, -1)),
        # 1 (0.5 - 0) and -2 (0.5 - 1)
        (lrp.ZBox(0, 1, epsilon=0), (1, -2), 2, (0.5, 0.5), 1.5, (0.5, 1)),
        (lrp.WSquare(epsilon=0), (3, -4), 5, (0, 1), 25, (9, 16)),
        (lrp.WSquare(epsilon=0, bias=True), (3, -4), 5, (0, 1), 50, (9, 16)),
        (lrp.Flat(epsilon=0), (3, -4), 5, (0, 1), 50, (25, 25)),
    ],
)
def test_a_neuron_worked_out_by_hand(rule, weights, bias, x, start, wanted):
    inputs, start = torch.tensor([x]).double(), torch.tensor([start]).double()
    got = lrp.relevance(neuron(weights, bias), inputs, 0, composite=everywhere(rule), start=start)
    agree(got, torch.tensor([wanted], dtype=torch.float64), 1e-12)


# corner cases ---------------------------------------------------------------------------------------------


def test_relevance_of_a_neuron_without_positive_contributions_ends_there():
    model = neuron([-1.0, -2.0], bias=4.0)
    x = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    for epsilon in (0.0, 1e-6):
        for rule in (lrp.ZPlus(epsilon=epsilon), lrp.AlphaBeta(0, epsilon=epsilon)):
            trace = lrp.trace(model, x, 0, composite=everywhere(rule))
            assert torch.equal(trace.relevance, torch.zeros_like(x))
            assert trace.ledger[0].dead_end == trace.ledger.output == 1.0
    # the negative share alone: 1 - beta times nothing, beta times all
    agree(
        lrp.relevance(model, x, 0, composite=everywhere(lrp.AlphaBeta(1, epsilon=0))),
        torch.tensor([[-1 / 3, -2 / 3]], dtype=torch.float64),
    )


@pytest.mark.parametrize(
    "rule", [lrp.Epsilon(0), lrp.ZPlus(epsilon=0), lrp.AlphaBeta(1, epsilon=0), lrp.Gamma(epsilon=0)]
)
def test_an_input_of_zeros_gets_nothing_and_no_nan(rule):
    for name in ("linear", "conv2d, padded", "conv2d with batch norm"):
        x = some_input(LAYERS[name][1], "zero")
        assert torch.equal(lrp.relevance(layer(name), x, weighted_sum, composite=everywhere(rule)), x)


def test_a_neuron_at_exactly_zero_has_no_relevance_to_pass_on():
    x = torch.ones(1, 2, dtype=torch.float64)
    for rule in (lrp.Epsilon(), lrp.Epsilon(0), lrp.Gamma(), lrp.ZPlus(), lrp.AlphaBeta(1)):
        assert torch.equal(lrp.relevance(neuron([1, -1]), x, 0, composite=everywhere(rule)), x * 0)


@pytest.mark.parametrize("tiny", [1e-5, 3e-5, 1e-4])
def test_alpha_beta_in_float32_is_right_for_a_small_negative_sum_beside_a_large_positive_one(tiny):
    # 1000 - 3e-5 rounds to 1000 in float32: a z- got as z - z+ would be 0, and its share 30 times too large
    x = torch.tensor([[1000.0, tiny]])
    model = neuron([1.0, -1.0])
    wanted = lrp.relevance(model, x.double(), 0, composite=everywhere(lrp.AlphaBeta(1)))
    got = lrp.relevance(model.float(), x, 0, composite=everywhere(lrp.AlphaBeta(1)))
    agree(got, wanted, 1e-5)
    agree(got[:, 1], wanted[:, 1], 1e-4)


@pytest.mark.parametrize("name", ["linear", "conv2d, padded", "conv_transpose2d", "conv2d with batch norm"])
def test_limits_of_gamma_are_epsilon_and_z_plus(name):
    x = some_input(LAYERS[name][1], "signed")

    def explained(rule, model):
        return lrp.relevance(model, x, weighted_sum, composite=everywhere(rule))

    whole = layer(name)
    agree(explained(lrp.Gamma(0.0, bias=True), whole), explained(lrp.Epsilon(), whole))
    firing = nn.Sequential(whole, nn.ReLU()).eval()
    agree(explained(lrp.Gamma(1e9, bias=True), firing), explained(lrp.ZPlus(bias=True, epsilon=0), firing), 1e-6)


def test_a_box_left_out_spans_each_items_own_values():
    x = some_input((2, 5, 6), "signed")
    model, (w, b) = layer("conv2d, padded"), matrix("conv2d, padded")

    def textbook(w, b, item, r):
        return reference.z_box(w, b, item, r, low=item.min(), high=item.max())

    got = lrp.relevance(model, x, weighted_sum, composite=everywhere(lrp.ZBox()))
    agree(got, by_the_textbook(model, w, b, textbook, x))


def test_a_box_may_have_a_corner_for_each_channel():
    x = some_input((2, 5, 6), "signed")
    model, (w, b) = layer("conv2d, padded"), matrix("conv2d, padded")
    low, high = torch.tensor([-4.0, -7.0]).reshape(2, 1, 1), torch.tensor([5.0, 6.0]).reshape(2, 1, 1)
    corners = {"low": low.double().expand(2, 5, 6).flatten(), "high": high.double().expand(2, 5, 6).flatten()}
    got = lrp.relevance(model, x, weighted_sum, composite=everywhere(lrp.ZBox(low, high)))
    agree(got, by_the_textbook(model, w, b, functools.partial(reference.z_box, **corners), x))


@pytest.mark.parametrize("rule", RULES)
def test_reshapes_of_the_input_do_not_change_what_a_first_layer_hands_down(rule):
    ours, textbook = RULES[rule]
    x = some_input((2, 3, 4), "signed")
    torch.manual_seed(0)
    linear = randomised(nn.Linear(24, 5))
    model = nn.Sequential(nn.Flatten(), linear).eval()
    wanted = by_the_textbook(linear, *reference.matrix(linear, x[0].flatten()), textbook, x.flatten(1))
    agree(lrp.relevance(model, x, weighted_sum, composite=everywhere(ours)), wanted.reshape(x.shape))


@pytest.mark.parametrize("rule", RELEVANCE_RULES)
def test_normalisation_inside_the_model_leaves_relevance_with_its_pixel(rule):
    x = some_input((2, 5, 6), "nonnegative") / 6
    convolution = layer("conv2d, padded")
    mean, std = (
        torch.tensor([0.4, 0.5]).double().reshape(2, 1, 1),
        torch.tensor([0.5, 0.6]).double().reshape(2, 1, 1),
    )
    model = Functional(lambda m, t: m.c((t - mean) / std), c=convolution)
    composite = lrp.Composite(first=RULES[rule][0])
    wanted = lrp.relevance(convolution, (x - mean) / std, weighted_sum, composite=composite)
    agree(lrp.relevance(model, x, weighted_sum, composite=composite), wanted)


@pytest.mark.parametrize("rule", RELEVANCE_RULES)
def test_zero_padding_by_the_model_is_the_padding_of_its_layer(rule):
    x = some_input((2, 5, 6), "signed")
    composite = lrp.Composite(first=RULES[rule][0])
    padded = layer("conv2d, padded")
    sides = (2, 2, 1, 1)
    model = Functional(lambda m, t: F.conv2d(F.pad(t, sides), m.c.weight, m.c.bias), c=padded)
    wanted = lrp.relevance(padded, x, weighted_sum, composite=composite)
    agree(lrp.relevance(model, x, weighted_sum, composite=composite), wanted)


@pytest.mark.parametrize("rule", RELEVANCE_RULES)
def test_padding_that_is_normalised_with_the_photograph_is_no_part_of_it(rule):
    # then it is no longer zero; it takes no share all the same, and its values need not lie in the box
    x = some_input((2, 5, 6), "nonnegative")
    composite = lrp.Composite(first=RULES[rule][0])
    model = Functional(
        lambda m, t: F.conv2d(F.pad(t, (2, 2, 1, 1)) * 0.5 - 5, m.c.weight, m.c.bias),
        c=layer("conv2d, padded"),
    )
    if rule == "zB":
        composite = lrp.Composite(first=lrp.ZBox(-5, 5))
        model.function = lambda m, t: F.conv2d(F.pad(t, (2, 2, 1, 1)) + 6 - 6.5, m.c.weight, m.c.bias)
    trace = lrp.trace(model, x, weighted_sum, composite=composite)
    agree(trace.relevance.sum(), torch.tensor(trace.ledger.output - trace.ledger.total("bias")), 1e-4)
    assert abs(trace.ledger[0].bias) < 1e-9 and trace.ledger[0].function == "pad"


@pytest.mark.parametrize("rule", RELEVANCE_RULES)
@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
def test_a_resized_photograph_gets_all_relevance_of_its_resized_pixels(rule, mode):
    x = some_input((2, 5, 6), "nonnegative") / 3
    model = Functional(lambda m, t: m.c(F.interpolate(t, (8, 7), mode=mode)), c=layer("conv2d, padded"))
    large = F.interpolate(x, (8, 7), mode=mode).detach()
    composite = lrp.Composite(first=RULES[rule][0])
    r = lrp.relevance(layer("conv2d, padded"), large, weighted_sum, composite=composite)
    small = torch.zeros_like(x).requires_grad_()
    (wanted,) = torch.autograd.grad(F.interpolate(small, (8, 7), mode=mode), small, r)
    got = lrp.relevance(model, x, weighted_sum, composite=composite)
    agree(got, wanted)
    agree(got.flatten(1).sum(1), r.flatten(1).sum(1))


# which layer gets which -----------------------------------------------------------------------------------


def test_each_named_composite_gives_its_layers_the_rules_in_its_name():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    model.eval()
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    rules = {
        name: [
            row.rule for row in lrp.trace(model, x, 0, composite=name).ledger if row.rule not in ("gradient", "secant")
        ]
        for name in lrp.COMPOSITES
    }
    epsilon, plus, two_one = repr(lrp.Epsilon()), repr(lrp.ZPlus()), repr(lrp.AlphaBeta(beta=1))
    flat, box, gamma = repr(lrp.Flat()), repr(lrp.ZBox()), repr(lrp.Gamma(gamma=0.25))
    assert rules == {
        "epsilon": [epsilon] * 3,
        "epsilon_plus": [plus, plus, epsilon],
        "epsilon_plus_flat": [flat, plus, epsilon],
        "epsilon_alpha2_beta1": [two_one, two_one, epsilon],
        "epsilon_alpha2_beta1_flat": [flat, two_one, epsilon],
        "epsilon_gamma_box": [box, gamma, epsilon],
        "deep_taylor": [box, plus, plus],
        "by_depth": [gamma, repr(lrp.Epsilon(epsilon=0.25)), epsilon],
        "attention": [gamma, gamma, repr(lrp.Gamma(gamma=0.05))],
    }


def test_a_composite_picks_rules_by_kind_by_place_and_by_name():
    composite = lrp.Composite(
        convolution=lrp.ZPlus(),
        linear=lrp.Epsilon(0.5),
        normalisation=lrp.Epsilon(0.25),
        first=lrp.Flat(),
        names={"features.3": lrp.Gamma(2), "head*": lrp.AlphaBeta(1)},
    )
    features = nn.Sequential(
        nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.ConvTranspose2d(4, 4, 1), nn.Flatten()
    )
    model = Functional(
        lambda m, x: m.head(m.middle(m.features(x))),
        features=features,
        middle=nn.Linear(4, 4),
        head=nn.Linear(4, 2),
    )
    rules = {
        row.module: row.rule for row in lrp.trace(model, torch.rand(2, 3, 1, 1).double(), 0, composite=composite).ledger
    }
    assert rules["features.0"] == repr(lrp.Epsilon(0.25))
    assert (
        rules["features.1"] == rules["features.2"] == repr(lrp.ZPlus())
    )  # the first layer does not read the input itself
    assert rules["features.3"] == repr(lrp.Gamma(2))
    assert rules["middle"] == repr(lrp.Epsilon(0.5))
    assert rules["head"] == repr(lrp.AlphaBeta(1))


def test_every_layer_that_reads_the_input_is_a_first_layer():
    model = Functional(
        lambda m, x: m.c((m.a(x) + m.b(x.flip(3))).relu()).flatten(1),
        a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(3, 4, 1), c=nn.Conv2d(4, 2, 3),
    )  # fmt: skip
    x = torch.randn(2, 3, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    trace = lrp.trace(model, x, 0, composite=lrp.Composite(first=lrp.Flat()))
    assert [row.rule for row in trace.ledger if row.module in "abc" and row.module] == [repr(lrp.Flat())] * 2 + [
        repr(lrp.Epsilon())
    ]
    assert abs(trace.ledger.unaccounted) < 1e-12
