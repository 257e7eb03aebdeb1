"""Gradients and their averages, held against captum, NumPy, closed forms and the equations by hand."""

import copy
import inspect
import math
import sys
import warnings

import numpy as np
import pytest
import torch
from captum.attr import Deconvolution, GradientShap, GuidedBackprop, IntegratedGradients, NoiseTunnel, Saliency
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torchvision.models.densenet import DenseNet
from torchvision.models.resnet import BasicBlock, ResNet

from xaicourse import gradients, images, lrp, models, taylor

RULES = ["gausslegendre", "midpoint", "right", "left", "trapezoid"]
PLAIN = [gradients.gradient, gradients.gradient_x_input, gradients.guided_backprop, gradients.deconvolution]
NOISY = [gradients.smoothgrad, gradients.vargrad]


def over(model, inputs, target, **settings):
    """Expected gradients from two baselines."""
    baselines = torch.stack([torch.zeros_like(inputs[0]), torch.ones_like(inputs[0])])
    return gradients.expected_gradients(model, inputs, target, baselines=baselines, **settings)


CHUNKED = [gradients.integrated_gradients, *NOISY, over]
METHODS = [*PLAIN, *CHUNKED]
methods = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
chunked = pytest.mark.parametrize("method", CHUNKED, ids=lambda method: method.__name__)
noisy = pytest.mark.parametrize("method", NOISY, ids=lambda method: method.__name__)
edited = pytest.mark.parametrize("method", PLAIN[2:], ids=lambda method: method.__name__)
rules = pytest.mark.parametrize("rule", RULES)


def normal(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def seeded(method, seed=0):
    """The method with a fresh generator, if it takes one: what comes out is the same each time."""
    if method not in (*NOISY, over):
        return method
    return lambda *args, **settings: method(*args, **settings, generator=torch.Generator().manual_seed(seed))


def filled(model, dtype=torch.float64):
    """In evaluation mode and with weights that do not depend on torch's initialisation."""
    with torch.no_grad():
        for seed, (name, p) in enumerate(model.named_parameters()):
            p.copy_(0.4 * normal(*p.shape, seed=100 + seed) + ("norm" in name or ".bn" in name))
    return model.to(dtype).eval()


def network(dtype=torch.float64, relu=nn.ReLU):
    """Convolutions, batch norm, pooling, and ReLUs that are modules, of which one works in place."""
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), relu(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), relu(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip
    model = filled(model, dtype)
    with torch.no_grad():
        model[1].running_mean.copy_(normal(6, seed=50))
        model[1].running_var.copy_(1 + normal(6, seed=51) ** 2)
    return model


def smooth(dtype=torch.float64, d=5, seed=0):
    """A small network without kinks, (N, d) -> (N, 3)."""
    model = nn.Sequential(nn.Linear(d, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype).eval()
    with torch.no_grad():
        for k, p in enumerate(model.parameters()):
            p.copy_(0.5 * normal(*p.shape, seed=10 * seed + k))
    return model


def close(found, expected, tolerance=1e-10):
    """Equal up to a share of the largest value."""
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=tolerance * float(expected.detach().abs().max()))


def by_autograd(model, x, target):
    x = x.detach().clone().requires_grad_()
    outputs = model(x)
    score = target(outputs) if callable(target) else outputs.gather(1, torch.as_tensor(target).expand(len(x))[:, None])
    return torch.autograd.grad(score.sum(), x)[0]


# One gradient


def test_the_gradient_is_autograds_and_gradient_x_input_its_product():
    model, x, y = network(), normal(3, 3, 8, 8), torch.tensor([3, 0, 1])
    slope = by_autograd(model, x, y)
    close(gradients.gradient(model, x, y), slope, 1e-14)
    close(gradients.gradient_x_input(model, x, y), slope * x, 1e-14)
    close(
        gradients.gradient(model, x, y).abs(), Saliency(copy.deepcopy(model)).attribute(x.clone().requires_grad_(), y)
    )


def test_the_gradient_by_finite_differences():
    model, x, h = smooth(), normal(1, 5), 1e-6
    steps = h * torch.eye(5, dtype=x.dtype)
    with torch.no_grad():
        expected = (model(x + steps)[:, 2] - model(x - steps)[:, 2]) / (2 * h)
    close(gradients.gradient(model, x, 2)[0], expected, 1e-8)


def test_gradient_x_input_sums_to_the_score_of_a_relu_network_without_biases():
    model = nn.Sequential(
        nn.Linear(6, 9, bias=False), nn.ReLU(), nn.Linear(9, 9, bias=False), nn.ReLU(), nn.Linear(9, 2, bias=False)
    )
    model, x = filled(model), normal(4, 6)
    close(gradients.gradient_x_input(model, x, 1).sum(1), model(x)[:, 1])


def test_gradient_x_input_is_taylor_around_zero_and_lrp_0():
    model, x = network(), normal(2, 3, 8, 8)
    found = gradients.gradient_x_input(model, x, 1)
    close(found, taylor.relevance(model, x, 1))
    close(
        found,
        lrp.relevance(
            model,
            x,
            1,
            composite=lrp.Composite(convolution=lrp.Epsilon(0), linear=lrp.Epsilon(0), normalisation=lrp.Epsilon(0)),
        ),
        1e-9,
    )


# Guided backpropagation and deconvolution


def by_hand(method, z, g, ceiling=math.inf):
    """What the equations make of a gradient g that comes back to min(max(z, 0), ceiling)."""
    mask = (z > 0) & (z < ceiling) if method is gradients.guided_backprop else torch.ones_like(z, dtype=torch.bool)
    return torch.where((g > 0) & mask, g, 0.0)


class Spelled(nn.Module):
    """g . rectified(x): what the rectifier passes back of g can be read off the map."""

    def __init__(self, g, rectify):
        super().__init__()
        self.g, self.rectify = nn.Parameter(g), rectify

    def forward(self, x):
        return (self.g * self.rectify(x * 1)).sum(1, keepdim=True)


def replaced(module):
    return lambda x: module(x)


INFINITE = {
    "nn.ReLU": replaced(nn.ReLU()),
    "nn.ReLU in place": replaced(nn.ReLU(inplace=True)),
    "nn.Threshold": replaced(nn.Threshold(0, 0)),
    "nn.Threshold in place": replaced(nn.Threshold(0.0, 0.0, inplace=True)),
    "F.relu": F.relu,
    "F.relu in place": lambda x: F.relu(x, inplace=True),
    "F.relu_": F.relu_,
    "F.relu of input=": lambda x: F.relu(input=x),
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "x.relu": lambda x: x.relu(),
    "x.relu_": lambda x: x.relu_(),
    "x.relu_, its result unused": lambda x: (x.relu_(), x)[1],
    "F.threshold": lambda x: F.threshold(x, 0, 0),
    "F.threshold in place": lambda x: F.threshold(x, 0.0, 0.0, inplace=True),
    "F.threshold_": lambda x: F.threshold_(x, 0, 0),
    "torch.threshold": lambda x: torch.threshold(x, threshold=0, value=0),
    "torch.threshold_": lambda x: torch.threshold_(x, 0, 0),
    "x.clamp(0)": lambda x: x.clamp(0),
    "x.clamp(min=0)": lambda x: x.clamp(min=0),
    "x.clamp(min=0.0, max=None)": lambda x: x.clamp(min=0.0, max=None),
    "x.clamp of a tensor": lambda x: x.clamp(min=torch.zeros(())),
    "x.clamp_": lambda x: x.clamp_(0),
    "torch.clamp": lambda x: torch.clamp(x, 0),
    "torch.clamp_": lambda x: torch.clamp_(x, min=0),
    "x.clip": lambda x: x.clip(0),
    "x.clip_": lambda x: x.clip_(min=0),
    "torch.clip": lambda x: torch.clip(x, 0),
    "torch.clip_": lambda x: torch.clip_(x, 0),
    "x.clamp_min": lambda x: x.clamp_min(0),
    "x.clamp_min_": lambda x: x.clamp_min_(min=0),
    "torch.clamp_min": lambda x: torch.clamp_min(x, 0.0),
    "torch.clamp_min_": lambda x: torch.clamp_min_(x, 0),
    "torch.maximum": lambda x: torch.maximum(x, torch.zeros_like(x)),
    "torch.maximum, turned round": lambda x: torch.maximum(torch.zeros(()), x),
    "x.maximum": lambda x: x.maximum(torch.tensor(0.0)),
    "torch.max": lambda x: torch.max(x, torch.zeros(5, dtype=x.dtype)),
    "x.max": lambda x: x.max(torch.zeros_like(x)),
    "torch.fmax": lambda x: torch.fmax(x, torch.zeros_like(x)),
}
AT_SIX = {
    "nn.ReLU6": replaced(nn.ReLU6()),
    "nn.ReLU6 in place": replaced(nn.ReLU6(inplace=True)),
    "nn.Hardtanh": replaced(nn.Hardtanh(0, 6)),
    "F.relu6": F.relu6,
    "F.relu6 in place": lambda x: F.relu6(x, inplace=True),
    "F.hardtanh": lambda x: F.hardtanh(x, 0, 6),
    "F.hardtanh by name": lambda x: F.hardtanh(x, max_val=6.0, min_val=0.0),
    "F.hardtanh in place": lambda x: F.hardtanh(x, 0, 6, True),
    "F.hardtanh_": lambda x: F.hardtanh_(x, 0, 6),
    "x.clamp": lambda x: x.clamp(0, 6),
    "torch.clip": lambda x: torch.clip(x, min=0.0, max=6.0),
    "x.clamp_": lambda x: x.clamp_(0, 6),
}
SPELLINGS = [(name, f, math.inf) for name, f in INFINITE.items()] + [(name, f, 6.0) for name, f in AT_SIX.items()]


@edited
@pytest.mark.parametrize(("rectify", "ceiling"), [s[1:] for s in SPELLINGS], ids=[f"{s[0]}, {s[2]}" for s in SPELLINGS])
def test_every_spelling_of_a_relu_is_seen_and_has_the_rule(method, rectify, ceiling):
    """Inputs below, at and above 0 and 6, and gradients of both signs."""
    z = torch.tensor([-1.0, 0.0, 3.0, 6.0, 7.0], dtype=torch.float64)
    for sign in (1, -1):
        g = sign * torch.arange(1.0, 6, dtype=torch.float64)
        x = z[None].clone()
        model = Spelled(g, rectify).eval()
        kept = x.clone()
        close(method(model, x, 0)[0], by_hand(method, x[0], g, ceiling), 1e-15)
        assert torch.equal(x, kept)


@edited
@pytest.mark.parametrize(
    "rectify",
    [
        lambda x: x.clamp(-1, 1), lambda x: x.clamp(min=1e-3), lambda x: x.clamp(max=0),
        lambda x: x.clamp(0, 0) + x, lambda x: x.clamp(0, -1) + x, F.hardtanh, F.gelu, F.silu,
        F.leaky_relu, F.hardswish, lambda x: F.threshold(x, 0.5, 0), lambda x: F.threshold(x, 0, -1), torch.sigmoid,
        lambda x: x * (x > 0), lambda x: torch.maximum(x, 2 * x), lambda x: x.max(1, keepdim=True).values + x,
        lambda x: x.amax(1, keepdim=True) + x, lambda x: torch.max(x) + x, lambda x: x + x.detach().relu(),
        lambda x: torch.maximum(x, torch.ones_like(x)), lambda x: x * torch.ones(5).relu(),
        lambda x: x * torch.arange(5).clamp(min=0), lambda x: x.clamp(min=-torch.ones(5), max=torch.ones(5)),
    ],
)  # fmt: skip
def test_what_is_no_relu_is_none_and_a_model_without_is_refused(method, rectify):
    model, x = Spelled(normal(5), rectify).eval(), normal(2, 5)
    with pytest.raises(
        ValueError, match="model must call a ReLU .* none that can be seen, and the map would be the plain"
    ):
        method(model, x, 0)


@edited
def test_other_activations_keep_their_derivative_beside_a_relu(method):
    g, x = normal(5, seed=1), normal(2, 5)
    model = Spelled(g, lambda x: F.relu(x) + F.leaky_relu(x, 0.1) + torch.sigmoid(x)).eval()
    rest = by_autograd(Spelled(g, lambda x: F.leaky_relu(x, 0.1) + torch.sigmoid(x)), x, 0)
    close(method(model, x, 0), rest + torch.stack([by_hand(method, z, g) for z in x]), 1e-14)


@edited
def test_through_a_network_by_hand(method):
    A, B, C = normal(6, 5, seed=1), normal(4, 6, seed=2), normal(4, seed=3)
    x = normal(3, 5)
    z1 = x @ A.T
    z2 = z1.clamp(min=0) @ B.T
    g = torch.stack([by_hand(method, z, C) for z in z2])
    g = by_hand(method, z1, g @ B)

    def model(x):
        return (torch.relu(torch.relu(x @ A.T) @ B.T) @ C)[:, None]

    close(method(model, x, 0), g @ A, 1e-14)


def test_captum_gives_the_same_where_all_relus_are_modules():
    model, x, y = network(), normal(3, 3, 8, 8), torch.tensor([3, 0, 1])
    plain = copy.deepcopy(model)
    plain[2].inplace = False  # captum's hooks do not stand it
    for method, peer in ((gradients.guided_backprop, GuidedBackprop), (gradients.deconvolution, Deconvolution)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = peer(plain).attribute(x, target=y)
        close(method(model, x, y), expected, 1e-13)


def test_captum_gives_the_same_for_a_residual_network():
    model, x = filled(ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5)), normal(2, 3, 40, 40)
    plain = copy.deepcopy(model)
    for block in (plain, *(b for b in plain.modules() if isinstance(b, BasicBlock))):
        block.relu.inplace = False
    for method, peer in ((gradients.guided_backprop, GuidedBackprop), (gradients.deconvolution, Deconvolution)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = peer(plain).attribute(x, target=2)
        close(method(model, x, 2), expected, 1e-12)


class Functional(nn.Module):
    """The network of modules, with its ReLUs as functions."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        m = self.model
        x = m[3](F.relu(m[1](m[0](x))))
        return m[9](m[8](m[7](m[5](m[4](x)).clamp(min=0))))


@edited
def test_relus_that_are_functions_count_like_those_that_are_modules(method):
    model, x = network(), normal(2, 3, 8, 8)
    found = method(Functional(model).eval(), x, 1)
    close(found, method(model, x, 1), 1e-14)
    assert not torch.allclose(found, gradients.gradient(model, x, 1))


@edited
def test_a_plain_function_and_the_ends_of_a_model_work_too(method):
    """A ReLU in place as the very first and as the very last function; the inputs stay as they are."""
    x = normal(2, 4)
    kept, scale = x.clone(), torch.tensor([1.0, -2.0, 3.0, 0.5], dtype=x.dtype)
    found = method(lambda x: (x.relu_() * scale).relu_(), x, torch.tensor([0, 2]))
    expected = torch.zeros_like(x)
    expected[0, 0], expected[1, 2] = 1.0, 3.0
    if method is gradients.guided_backprop:
        expected = expected * (x > 0)
    close(found, expected)
    assert torch.equal(x, kept)


@edited
def test_the_rule_ends_with_the_model(method):
    """A target that is a function may use a ReLU, which is no part of the network, and nothing stays behind."""
    model, x = network(), normal(2, 3, 8, 8)
    close(method(model, x, lambda y: -F.relu(3 - y[:, 1])), method(model, x, lambda y: y[:, 1] - 3), 1e-13)
    z = torch.tensor([-1.0, 2.0], requires_grad=True)
    (F.relu(z) * torch.tensor([1.0, -1.0])).sum().backward()
    assert z.grad.tolist() == [0, -1]
    with pytest.raises(RuntimeError, match="broken"):
        method(failing, x, 0)
    assert torch.overrides._get_current_function_mode() is None


@edited
def test_a_compiled_model_gives_what_the_model_gives(method):
    model, x, compilations = network(), normal(2, 3, 8, 8), []

    def backend(graph, examples):
        compilations.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend)
    for times in (0, 1):  # before and after it was compiled; it is not compiled for us
        close(method(compiled, x, 1), method(model, x, 1), 1e-14)
        assert len(compilations) == times
        close(compiled(x), model(x))
    assert len(compilations) == 1


@edited
def test_a_recurrent_network_of_relus_that_nobody_sees_is_refused(method):
    class Series(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.RNN(3, 4, nonlinearity="relu", batch_first=True), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.rnn(x)[0][:, -1].relu())

    with pytest.raises(ValueError, match=r"model must not hide its ReLUs in an nn\.RNN"):
        method(filled(Series()), normal(2, 5, 3), 0)


def test_relu6_of_the_real_network_has_its_rule():
    model, x = models.load().double(), photograph(64)
    guided, deconvolved = (method(model, x, 282) for method in PLAIN[2:])
    hooked = by_hooks(model, x, 282, guided=True), by_hooks(model, x, 282, guided=False)
    close(guided, hooked[0], 1e-12)
    close(deconvolved, hooked[1], 1e-12)


def photograph(size):
    return models.transform()(images.load("chelsea"))[None, :, 60 : 60 + size, 80 : 80 + size].double()


def by_hooks(model, x, target, guided):
    """The rules as module hooks on a network whose ReLU6 are all modules."""
    handles = []
    for module in model.modules():
        if isinstance(module, nn.ReLU6):

            def hook(module, back, came):
                return ((back[0] if guided else came[0]).clamp(min=0),)

            handles.append(module.register_full_backward_hook(hook))
    try:
        return by_autograd(model, x, target)
    finally:
        for handle in handles:
            handle.remove()


# Integrated gradients


@rules
@pytest.mark.parametrize("steps", [2, 5, 16])
def test_captum_gives_the_same_integral(rule, steps):
    model, x, y = network(), normal(3, 3, 8, 8), torch.tensor([3, 0, 1])
    start = 0.3 * normal(3, 3, 8, 8, seed=1)
    name = {"gausslegendre": rule, "midpoint": "riemann_middle"}.get(rule, f"riemann_{rule}")
    expected = IntegratedGradients(copy.deepcopy(model)).attribute(x, start, y, n_steps=steps, method=name)
    if rule == "trapezoid":  # captum's weights sum to (n - 1) / n there: n points have n - 1 gaps, and it divides by n
        expected = expected * steps / (steps - 1)
    found = gradients.integrated_gradients(model, x, y, baseline=start, steps=steps, quadrature=rule)
    close(found, expected, 1e-6)  # captum keeps the weights in float32
    if steps == 16 and rule not in ("gausslegendre", "trapezoid"):
        close(found, expected, 1e-13)  # where they are exact in it


@rules
def test_every_rule_by_hand(rule):
    """f(x) = x^4 from 0 to 2, by three points."""
    a = {
        "gausslegendre": [0.5 - math.sqrt(0.15), 0.5, 0.5 + math.sqrt(0.15)],
        "midpoint": [1 / 6, 1 / 2, 5 / 6], "right": [1 / 3, 2 / 3, 1], "left": [0, 1 / 3, 2 / 3], "trapezoid": [0, 1 / 2, 1],
    }[rule]  # fmt: skip
    w = {"gausslegendre": [5 / 18, 8 / 18, 5 / 18], "trapezoid": [1 / 4, 1 / 2, 1 / 4]}.get(rule, [1 / 3] * 3)
    expected = 2 * sum(wr * 4 * (2 * ar) ** 3 for ar, wr in zip(a, w, strict=True))
    x = torch.tensor([[2.0]], dtype=torch.float64)
    found = gradients.integrated_gradients(lambda x: x**4, x, 0, steps=3, quadrature=rule)
    assert found.item() == pytest.approx(expected, rel=1e-14)


def test_the_equation_of_the_slide():
    model, x, R = smooth(), normal(1, 5), 7
    x0 = normal(1, 5, seed=1)
    terms = [by_autograd(model, x0 + r / R * (x - x0), 1) for r in range(1, R + 1)]
    expected = (x - x0) * sum(terms) / R
    close(gradients.integrated_gradients(model, x, 1, baseline=x0, steps=R, quadrature="right"), expected, 1e-14)


@given(degree=st.integers(1, 12), seed=st.integers(0, 1000))
@settings(max_examples=40)
def test_gauss_legendre_is_exact_for_gradients_of_degree_up_to_2n_minus_1(degree, seed):
    """f has that degree and one more: n points for a score of degree 2n, and no fewer."""
    coefficients = normal(degree + 1, 3, seed=seed)
    coefficients[degree] = coefficients[degree].abs() + 0.5
    x, x0 = 1 + normal(2, 3, seed=seed + 1).abs(), 0.2 * normal(2, 3, seed=seed + 2)

    def f(x):
        return sum(c * x**k for k, c in enumerate(coefficients)).sum(1, keepdim=True)

    expected = sum(c * (x**k - x0**k) for k, c in enumerate(coefficients))  # additive: each input has its own part
    least = (degree + 1) // 2
    found = gradients.integrated_gradients(f, x, 0, baseline=x0, steps=max(1, least))
    close(found, expected, 1e-10)
    if least > 1:
        one_less = gradients.integrated_gradients(f, x, 0, baseline=x0, steps=least - 1)
        assert not torch.allclose(one_less, expected, rtol=1e-9, atol=0)


@rules
def test_a_linear_model_is_exact_with_any_rule_at_its_fewest_points(rule):
    model, x, x0 = filled(nn.Linear(6, 3)), normal(4, 6), normal(4, 6, seed=1)
    steps = 2 if rule == "trapezoid" else 1
    found = gradients.integrated_gradients(model, x, 2, baseline=x0, steps=steps, quadrature=rule)
    close(found, model.weight[2] * (x - x0), 1e-14)


def test_sums_of_squares_take_the_symmetric_rules_one_step():
    """The gradient is linear along the path: midpoint, Gauss-Legendre and trapezoid are exact, the sums at one end are not."""
    x, exact = normal(2, 4), normal(2, 4) ** 2
    for rule in RULES:
        found = gradients.integrated_gradients(lambda x: (x**2).sum(1, keepdim=True), x, 0, steps=2, quadrature=rule)
        assert torch.allclose(found, exact) == (rule in ("gausslegendre", "midpoint", "trapezoid"))


@given(seed=st.integers(0, 1000), shift=st.floats(-1, 1), scale=st.floats(0.2, 2))
@settings(max_examples=30)
def test_a_smooth_network_is_complete(seed, shift, scale):
    model, x = smooth(seed=seed), scale * normal(3, 5, seed=seed)
    found = gradients.integrated_gradients(model, x, 1, baseline=shift, steps=48)
    with torch.no_grad():
        difference = (model(x) - model(torch.full_like(x, shift)))[:, 1]
    torch.testing.assert_close(found.sum(1), difference, rtol=1e-7, atol=1e-9)


@given(seed=st.integers(0, 1000))
@settings(max_examples=20)
def test_the_axioms_of_the_paper(seed):
    """Linearity in the model, no relevance for what is the same or does not count, the same for what is symmetric."""
    a, b = smooth(seed=seed), smooth(seed=seed + 1)
    x, x0 = normal(2, 5, seed=seed), normal(2, 5, seed=seed + 5)
    x0[:, 3] = x[:, 3]

    def R(model, x, x0):
        return gradients.integrated_gradients(model, x, 0, baseline=x0, steps=12)

    close(R(lambda x: 2 * a(x) - 3 * b(x), x, x0), 2 * R(a, x, x0) - 3 * R(b, x, x0), 1e-12)
    assert R(a, x, x0)[:, 3].abs().max() == 0  # where input and baseline are the same
    assert R(lambda x: a(x * torch.tensor([1.0, 0, 1, 1, 1])), x, x0)[:, 1].abs().max() == 0  # a dummy
    same = x.clone()
    same[:, 4], x0[:, 4] = same[:, 0], x0[:, 0]
    symmetric = R(lambda x: a(x) + a(x[:, [4, 1, 2, 3, 0]]), same, x0)
    close(symmetric[:, 0], symmetric[:, 4], 1e-12)


@rules
def test_the_error_falls_as_the_rule_promises(rule):
    """For a smooth function: by 1 / n with the sums at one end, 1 / n^2 with midpoint and trapezoid, at once with Gauss."""
    model, x = smooth(), 2 * normal(1, 5)
    exact = gradients.integrated_gradients(model, x, 1, baseline=0.5, steps=100)
    errors = [
        (gradients.integrated_gradients(model, x, 1, baseline=0.5, steps=n + (rule == "trapezoid"), quadrature=rule) - exact)
        .abs().max().item()
        for n in (32, 64)
    ]  # fmt: skip
    if rule == "gausslegendre":
        assert errors[0] < 1e-12
    else:
        assert errors[0] / errors[1] == pytest.approx(2 if rule in ("left", "right") else 4, rel=0.1)


def test_baselines_broadcast_and_none_is_zero():
    model, x = network(), normal(2, 3, 8, 8)

    def R(baseline):
        return gradients.integrated_gradients(model, x, 1, baseline=baseline, steps=4)

    assert torch.equal(R(None), R(torch.zeros_like(x)))
    assert torch.equal(R(0), R(None))
    assert torch.equal(R(0.5), R(torch.full_like(x, 0.5)))
    mean = x.mean((2, 3), keepdim=True)
    assert torch.equal(R(mean), R(mean.expand_as(x)))
    assert torch.equal(R(torch.full((8,), 0.5).double()), R(0.5))
    assert R(x).abs().max() == 0


def test_captum_gives_the_same_integral_of_a_photograph_whose_completeness_error_is_as_defined():
    model, x = models.load().double(), photograph(64)
    found = gradients.integrate(model, x, 282, steps=8)
    expected = IntegratedGradients(model).attribute(x, target=282, n_steps=8, internal_batch_size=8)
    close(found.relevance, expected, 1e-6)
    with torch.no_grad():
        difference = (model(x) - model(torch.zeros_like(x)))[:, 282]
    close(found.difference, difference, 1e-12)
    assert found.completeness_error.item() == pytest.approx(
        float((found.relevance.sum() / difference - 1).abs()), rel=1e-6
    )
    assert found.steps.tolist() == found.evaluations.tolist() == [8]


# How many steps it takes


@rules
def test_auto_stops_within_the_tolerance_with_the_relevance_of_the_rule_it_reports(rule):
    model, x, y = network(), normal(4, 3, 8, 8), torch.tensor([3, 0, 1, 2])
    found = gradients.integrate(model, x, y, baseline=0.1, steps="auto", quadrature=rule, tolerance=0.005)
    assert (found.completeness_error <= 0.005).all()
    assert len(set(found.steps.tolist())) > 1  # or it is no test of items that are done before others
    total = found.relevance.flatten(1).sum(1)
    close((total - found.difference).abs() / found.difference.abs(), found.completeness_error, 1e-9)
    for i, n in enumerate(found.steps.tolist()):
        one = gradients.integrated_gradients(model, x[i : i + 1], y[i : i + 1], baseline=0.1, steps=n, quadrature=rule)
        close(found.relevance[i : i + 1], one, 1e-11)
        before = (n - 1) // 2 + 1 if rule == "trapezoid" else n // 2
        coarser = gradients.integrate(model, x[i : i + 1], y[i : i + 1], baseline=0.1, steps=before, quadrature=rule)
        assert coarser.completeness_error <= 4 * 0.005  # not right by luck


def counting(model):
    """A model that counts the images it sees, and how many of them at once; those without a graph apart."""
    seen = {"gradients": 0, "scores": 0, "most": 0}

    def count(x):
        seen["gradients" if x.requires_grad else "scores"] += len(x)
        seen["most"] = max(seen["most"], len(x))
        return model(x)

    return count, seen


@rules
def test_auto_computes_no_more_than_it_reports(rule):
    """Left, right and trapezoid use all points of the rule before; items that are done see the model no more."""
    model, seen = counting(network())
    x, y = normal(4, 3, 8, 8), torch.tensor([3, 0, 1, 2])
    found = gradients.integrate(model, x, y, baseline=0.1, steps="auto", quadrature=rule, tolerance=0.005)
    assert seen == {"gradients": found.evaluations.sum().item(), "scores": 8, "most": 8}
    nested = rule in ("left", "right", "trapezoid")
    # the reported rule alone, or 16 + 32 + … + n
    expected = found.steps if nested else 2 * found.steps - 16
    assert found.evaluations.tolist() == expected.tolist()


def test_auto_is_not_deceived_by_a_sum_that_is_right_by_chance():
    """A cosine that sixteen points of the right rule cannot tell from a constant, beside a linear part."""

    def f(x):
        return x.sum(1, keepdim=True) + (torch.sin(32 * math.pi * x[:, :1] + 0.5) - math.sin(0.5)) / (2 * math.pi)

    x = torch.ones(1, 2, dtype=torch.float64)
    x[0, 0] = 1.0 + 1 / 64
    found = gradients.integrate(f, x, 0, steps="auto", quadrature="right", tolerance=0.01)
    assert found.completeness_error <= 0.01
    assert found.steps.item() > 16
    exact = f(x) - f(torch.zeros_like(x)) - 1
    assert found.relevance[0, 0].item() == pytest.approx(exact.item(), abs=0.02)


def test_the_scores_at_both_ends_are_chunked_too_and_leave_the_inputs_alone():
    model, x = network(), normal(5, 3, 8, 8)
    start, kept = normal(5, 3, 8, 8, seed=1), x.clone()
    count, seen = counting(lambda x: model(x.relu_()))
    found = gradients.integrate(count, x, 1, baseline=start, steps=2, chunk=2)
    assert seen == {"gradients": 10, "scores": 10, "most": 2}
    assert torch.equal(x, kept) and torch.equal(start, normal(5, 3, 8, 8, seed=1))
    close(found.difference, (model(x.relu()) - model(start.relu()))[:, 1])


def test_an_item_that_is_exact_takes_two_rules_and_no_more():
    found = gradients.integrate(filled(nn.Linear(3, 2)), normal(2, 3), 0, steps="auto")
    assert found.steps.tolist() == [32, 32] and found.evaluations.tolist() == [48, 48]


def test_what_does_not_reach_the_tolerance_is_said():
    model, x = network(), normal(3, 3, 8, 8)
    options = {"baseline": 0.1, "steps": "auto", "tolerance": 1e-9, "max_steps": 100}
    with pytest.warns(
        RuntimeWarning, match=r"of 3 of 3 items have a completeness error of up to .* after 64 steps"
    ) as caught:
        warned = gradients.integrated_gradients(model, x, 1, **options)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = gradients.integrate(model, x, 1, **options)
        gradients.integrated_gradients(model, x, 1, baseline=0.1, steps="auto", tolerance=0.5)
        gradients.integrated_gradients(model, x, 1, baseline=0.1, steps=1, tolerance=1e-9)
    assert torch.equal(found.relevance, warned)
    assert found.steps.tolist() == [64, 64, 64] and (found.completeness_error > 1e-9).all()


def test_where_the_scores_are_the_same_the_error_is_relative_to_them():
    model, x = network(), normal(2, 3, 8, 8)
    found = gradients.integrate(model, x, 1, baseline=x, steps="auto")
    assert found.difference.tolist() == [0, 0] and found.completeness_error.tolist() == [0, 0]

    def back_and_forth(x):  # f(0) = f(1) = 1, and not in between
        return 1 + torch.sin(math.pi * x).abs() ** 1.5

    x = torch.tensor([[1.0]], dtype=torch.float64)
    found = gradients.integrate(back_and_forth, x, 0, steps=3, quadrature="right")
    assert found.completeness_error.item() == pytest.approx(found.relevance.abs().item() / 2e-3, rel=1e-6)


def test_a_function_as_target_sees_all_items_until_the_last_is_done():
    model, x, y = network(), normal(4, 3, 8, 8), torch.tensor([3, 0, 1, 2])
    sizes = set()

    def target(outputs):
        sizes.add(len(outputs))
        return outputs.gather(1, y[:, None])[:, 0]

    options = {"baseline": 0.1, "steps": "auto", "tolerance": 0.005}
    for rule in ("gausslegendre", "right"):
        found, expected = (gradients.integrate(model, x, t, quadrature=rule, **options) for t in (target, y))
        close(found.relevance, expected.relevance, 1e-12)
        assert found.steps.tolist() == expected.steps.tolist()
        assert len(set(found.steps.tolist())) > 1  # one is done before another
        assert (found.evaluations == found.evaluations.max()).all()
    assert sizes == {4}


# Noise


def noise_of(x, samples, seed=0):
    """The noise that a generator gives to each sample, the same for all items: (samples, …)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randn(x.shape[1:], generator=generator) for _ in range(samples)]).to(x)


def by_sample(model, x, target, noise, samples, method=by_autograd):
    """The gradients of all noisy copies, (samples, N, …)."""
    rows = x.flatten(1)
    sigma = noise * (rows.amax(1) - rows.amin(1)).view(-1, *[1] * (x.dim() - 1))
    return torch.stack([method(model, x + sigma * e, target) for e in noise_of(x, samples)])


def test_smoothgrad_is_the_mean_and_vargrad_the_variance_of_noisy_gradients():
    model, x, y = network(), normal(3, 3, 8, 8), torch.tensor([3, 0, 1])
    x[1] *= 5  # each item has its own noise level
    found = by_sample(model, x, y, 0.2, 11).numpy()
    for method, expected in ((gradients.smoothgrad, found.mean(0)), (gradients.vargrad, found.var(0, ddof=1))):
        got = seeded(method)(model, x, y, noise=0.2, samples=11)
        close(got, torch.from_numpy(expected), 1e-12)


def test_captum_gives_the_same_from_the_same_noise(monkeypatch):
    model, x = network(), normal(1, 3, 8, 8)
    noise = noise_of(x, 10)
    sigma = 0.2 * float(x.max() - x.min())
    drawn = []

    def ours(mean, std):  # captum draws all noise of a batch of copies at once
        assert mean == 0 and std.shape == (10, 3, 8, 8)
        drawn.append(std)
        return std * noise

    monkeypatch.setattr(torch, "normal", ours)
    tunnel = NoiseTunnel(Saliency(model))
    options = {"target": 1, "abs": False, "nt_samples": 10, "stdevs": sigma}
    mean, variance = (tunnel.attribute(x, nt_type=kind, **options) for kind in ("smoothgrad", "vargrad"))
    assert len(drawn) == 2
    close(seeded(gradients.smoothgrad)(model, x, 1, noise=0.2, samples=10), mean, 1e-12)
    close(
        seeded(gradients.vargrad)(model, x, 1, noise=0.2, samples=10), variance * 10 / 9, 1e-12
    )  # captum divides by n


def test_smoothgrad_of_any_attribution():
    model, x, y = network(), normal(3, 3, 8, 8), torch.tensor([3, 0, 1])
    for method in (gradients.gradient_x_input, gradients.guided_backprop, lambda *args: gradients.gradient(*args)):
        expected = by_sample(model, x, y, 0.15, 5, method)
        for target in (y, lambda outputs: outputs.gather(1, y[:, None])[:, 0]):
            got = seeded(gradients.smoothgrad)(model, x, target, samples=5, method=method)
            close(got, expected.mean(0), 1e-12)
        got = seeded(gradients.vargrad)(model, x, y, samples=5, method=method)
        close(got, expected.var(0), 1e-11)


def test_smoothgrad_is_the_gradient_of_a_blurred_score():
    """For f = x^3 and noise of standard deviation s the blurred score is x^3 + 3 s^2 x, with the slope 3 x^2 + 3 s^2."""
    x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)  # max - min = 1: s is the noise
    got = seeded(gradients.smoothgrad)(
        lambda x: (x**3).sum(1, keepdim=True), x, 0, noise=0.5, samples=20000, chunk=20000
    )
    torch.testing.assert_close(got, 3 * x**2 + 0.75, rtol=0.02, atol=0)


def test_the_variance_falls_with_the_samples_as_vargrad_says():
    model, x = network(), normal(1, 3, 8, 8)
    maps = torch.stack([seeded(gradients.smoothgrad, seed)(model, x, 1, samples=4, chunk=64) for seed in range(200)])
    predicted = seeded(gradients.vargrad)(model, x, 1, samples=800, chunk=64) / 4
    assert (maps.var(0).sum() / predicted.sum()).item() == pytest.approx(1, rel=0.1)


def test_a_linear_model_has_no_variance():
    model, x = filled(nn.Linear(4, 2)), normal(2, 4)
    close(seeded(gradients.smoothgrad)(model, x, 1, samples=3), model.weight[1].expand(2, 4), 1e-14)
    assert seeded(gradients.vargrad)(model, x, 1, samples=9).max() < 1e-30
    far = copy.deepcopy(model.float())
    far.weight.data += 1e6  # squares of the mean would be 1e12, and their difference a million
    assert seeded(gradients.vargrad)(far, x.float(), 1, samples=9).max() < 1e-2


@noisy
def test_a_generator_decides_and_without_one_torch_does(method):
    model, x = network(), normal(2, 3, 8, 8)
    one, same, other = (seeded(method, seed)(model, x, 1, samples=3) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.allclose(one, other)
    torch.manual_seed(5)
    free = method(model, x, 1, samples=3)
    torch.manual_seed(5)
    assert torch.equal(free, method(model, x, 1, samples=3))
    state = torch.random.get_rng_state()
    seeded(method)(model, x, 1, samples=3)
    assert torch.equal(torch.random.get_rng_state(), state)


# Many baselines


def test_expected_gradients_by_hand():
    model, x, y = network(), normal(3, 3, 8, 8), torch.tensor([3, 0, 1])
    baselines = normal(5, 3, 8, 8, seed=1)
    generator = torch.Generator().manual_seed(3)
    which = torch.randint(5, (9,), generator=generator)
    a = torch.rand(9, generator=generator).double()
    terms = [
        (x - baselines[j]) * by_autograd(model, baselines[j] + t * (x - baselines[j]), y)
        for j, t in zip(which, a, strict=True)
    ]
    generator.manual_seed(3)
    found = gradients.expected_gradients(model, x, y, baselines=baselines, samples=9, generator=generator)
    close(found, torch.stack(terms).mean(0), 1e-12)


def test_captums_gradient_shap_gives_the_same_from_the_same_samples(monkeypatch):
    """It draws a baseline and a point for each sample by NumPy, and adds noise of standard deviation 0."""
    model, x = network(), normal(1, 3, 8, 8)
    baselines = normal(4, 3, 8, 8, seed=1)
    generator = torch.Generator().manual_seed(3)
    which, a = torch.randint(4, (12,), generator=generator), torch.rand(12, generator=generator)
    monkeypatch.setattr(np.random, "choice", lambda size, n: which.numpy())
    monkeypatch.setattr(np.random, "uniform", lambda low, high, n: a.double().numpy())
    expected = GradientShap(model).attribute(x, baselines, n_samples=12, stdevs=0.0, target=1)
    generator.manual_seed(3)
    found = gradients.expected_gradients(model, x, 1, baselines=baselines, samples=12, generator=generator)
    close(found, expected, 1e-6)


def test_expected_gradients_from_one_baseline_are_integrated_gradients():
    model, x, x0 = smooth(), normal(2, 5), normal(1, 5, seed=1)
    expected = gradients.integrated_gradients(model, x, 1, baseline=x0)
    generator = torch.Generator().manual_seed(0)
    found = gradients.expected_gradients(model, x, 1, baselines=x0, samples=5000, generator=generator, chunk=10000)
    close(found, expected, 0.02)


def test_expected_gradients_sum_to_the_score_less_that_of_the_baselines_on_average():
    model, x, baselines = smooth(), normal(2, 5), normal(6, 5, seed=1)
    generator = torch.Generator().manual_seed(0)
    found = gradients.expected_gradients(
        model, x, 1, baselines=baselines, samples=20000, generator=generator, chunk=40000
    )
    with torch.no_grad():
        expected = model(x)[:, 1] - model(baselines)[:, 1].mean()
    close(found.sum(1), expected, 0.02)


# What every attribution keeps


@methods
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_float_dtype(method, dtype):
    model, x, y = network(), 0.5 * normal(2, 3, 8, 8), torch.tensor([3, 1])
    found = seeded(method)(copy.deepcopy(model).to(dtype), x.to(dtype), y)
    assert found.shape == x.shape and found.dtype == dtype and not found.requires_grad
    expected = seeded(method)(model, x.to(dtype).double(), y)
    similarity = F.cosine_similarity(found.double().flatten(), expected.flatten(), 0)
    assert similarity > {torch.float16: 0.98, torch.bfloat16: 0.85}.get(dtype, 0.99999)


@rules
def test_in_16_bit_the_average_is_as_good_as_its_gradients(rule):
    """1000 steps, summed in float16, would lose a tenth."""
    model, x = filled(nn.Linear(4, 2)), 1 + normal(2, 4).abs()
    half, x = model.half(), x.half()
    found = gradients.integrated_gradients(half, x, 1, steps=1000, quadrature=rule, chunk=500)
    torch.testing.assert_close(found, (half.weight[1].float() * x.float()).half(), rtol=1e-3, atol=0)


@methods
def test_a_batch_gives_what_its_items_give(method):
    model, x, y = network(), normal(3, 3, 8, 8), torch.tensor([3, 0, 1])
    together = seeded(method)(model, x, y)
    for i in range(3):
        close(seeded(method)(model, x[i : i + 1], y[i : i + 1]), together[i : i + 1], 1e-12)
        close(seeded(method)(model, x[i : i + 1], int(y[i])), together[i : i + 1], 1e-12)


@chunked
def test_chunks_change_nothing_and_bound_what_the_model_sees_at_once(method):
    x, y = normal(3, 3, 8, 8), torch.tensor([3, 0, 1])
    expected = seeded(method)(network(), x, y)
    for chunk in (1, 2, 5, 1000):
        model, seen = counting(network())
        close(seeded(method)(model, x, y, chunk=chunk), expected, 1e-12)
        variants = 32 if method in NOISY else 64
        assert seen == {"gradients": 3 * variants, "scores": 0, "most": min(chunk, 3 * variants)}


@methods
def test_targets_of_every_kind(method):
    model, x, y = network(), normal(3, 3, 8, 8), torch.tensor([2, 2, 2])
    expected = seeded(method)(model, x, y)
    for target in (2, np.int64(2), torch.tensor(2), lambda outputs: outputs[:, 2]):
        close(seeded(method)(model, x, target), expected, 1e-12)


@methods
def test_a_function_as_target_sees_each_item_where_it_is(method):
    model, x = network(), normal(3, 3, 8, 8)
    sign = torch.tensor([1.0, -2.0, 0.5], dtype=x.dtype)

    def target(outputs):
        assert len(outputs) == 3
        return outputs[:, 1] * sign

    settings = {"chunk": 4} if method in CHUNKED else {}
    if method in PLAIN[2:] or method is gradients.vargrad:  # not linear in the score
        expected = torch.cat([
            seeded(method)(model, x[i : i + 1], lambda y, i=i: y[:, 1] * sign[i]) for i in range(3)
        ])  # fmt: skip
    else:
        expected = seeded(method)(model, x, 1) * sign.view(-1, 1, 1, 1)
    close(seeded(method)(model, x, target, **settings), expected, 1e-12)


@methods
def test_the_model_and_the_inputs_are_as_they_were(method):
    model, x = network(), normal(2, 3, 8, 8).requires_grad_()
    model.register_buffer("calls", torch.zeros(()))
    model.register_forward_hook(lambda module, args, output: module.calls.add_(1) and None)
    model[0].weight.requires_grad_(False)
    state, kept = copy.deepcopy(model.state_dict()), x.detach().clone()
    hooks = [len(m._forward_hooks) + len(m._backward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    for fail in (False, True):
        if fail:
            with pytest.raises(ValueError, match="target must be from 0 to 3, got 9"):
                seeded(method)(model, x, 9)
        else:
            assert not seeded(method)(model, x, 1).requires_grad
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert [p.requires_grad for p in model.parameters()] == [False] + [True] * (len(list(model.parameters())) - 1)
        assert all(p.grad is None for p in model.parameters()) and x.grad is None
        assert torch.equal(x, kept) and x.requires_grad and not model.training
        assert hooks == [
            len(m._forward_hooks) + len(m._backward_hooks) + len(m._forward_pre_hooks) for m in model.modules()
        ]


@methods
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_off(method, context):
    model, x = network(), normal(2, 3, 8, 8)
    expected = seeded(method)(model, x, 1)
    with context():
        close(seeded(method)(model, x, 1), expected, 1e-14)
        made_here = x * 1
        close(seeded(method)(model, made_here, 1), expected, 1e-14)
        assert torch.is_grad_enabled() is False


@methods
def test_any_memory_format(method):
    model, x = network(), normal(2, 3, 8, 8)
    expected = seeded(method)(model, x, 1)
    for given_inputs in (x.contiguous(memory_format=torch.channels_last), x.mT.contiguous().mT):
        close(seeded(method)(model, given_inputs, 1), expected, 1e-12)


@methods
def test_tables_and_series_too(method):
    for x in (normal(2, 5), normal(2, 2, 6)):
        weight = normal(*x.shape[1:], 3, seed=1)

        def model(x, weight=weight):
            return F.relu(torch.tensordot(x, weight, x.dim() - 1))

        found = seeded(method)(model, x, lambda y: y.sum(1))
        assert found.shape == x.shape and found.abs().sum() > 0


@methods
def test_a_model_that_works_on_its_input_in_place(method):
    model, x = (
        nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), filled(nn.Linear(192, 4))).eval(),
        3 + normal(2, 3, 8, 8),
    )
    kept = x.clone()
    plain = nn.Sequential(nn.ReLU(), *model[1:]).eval()
    close(seeded(method)(model, x, 1), seeded(method)(plain, x, 1), 1e-14)
    assert torch.equal(x, kept)


@edited
def test_checkpointed_layers_give_the_map_or_an_error_and_never_another_map(method):
    plain, saving = (
        filled(DenseNet(4, (2, 2), 8, bn_size=2, num_classes=3, memory_efficient=efficient))
        for efficient in (False, True)
    )
    x = normal(1, 3, 32, 32)
    expected = method(plain, x, 1)
    try:
        found = method(saving, x, 1)
    except (ValueError, RuntimeError):
        return
    close(found, expected, 1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@methods
def test_a_gpu_gives_what_the_cpu_gives(method):
    model, x, y = network(), normal(3, 3, 8, 8), torch.tensor([3, 0, 1])
    expected = seeded(method)(model, x, y)
    model, x = model.cuda(), x.cuda()
    for target in (y, y.cuda()):
        found = seeded(method)(model, x, target)  # the generator may stay on the CPU
        assert found.device == x.device
        close(found.cpu(), expected, 1e-8)
    if method in CHUNKED:
        close(seeded(method)(model, x, y, chunk=2).cpu(), expected, 1e-8)
    if method in NOISY:
        generators = [torch.Generator(device="cuda").manual_seed(0) for _ in range(2)]
        one, two = (method(model, x, y, generator=generator) for generator in generators)
        close(one, two, 1e-8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@rules
def test_a_gpu_takes_as_many_steps_as_the_cpu(rule):
    model, x, y = network(), normal(4, 3, 8, 8), torch.tensor([3, 0, 1, 2])
    options = {"steps": "auto", "quadrature": rule, "tolerance": 0.02}
    expected = gradients.integrate(model, x, y, baseline=0.1, **options)
    for baseline in (0.1, torch.full((1,), 0.1, dtype=x.dtype, device="cuda")):
        found = gradients.integrate(model.cuda(), x.cuda(), y, baseline=baseline, **options)
        close(found.relevance.cpu(), expected.relevance, 1e-8)
        assert found.steps.tolist() == expected.steps.tolist()


# Bad input


def failing(x):
    """A model that breaks."""
    raise RuntimeError("broken")


@methods
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": "a network"}, TypeError, "model must be an nn.Module or a function of tensors, got str"),
        ({"model": network().train()}, ValueError, "model must be in evaluation mode"),
        ({"inputs": [[1.0]]}, TypeError, "inputs must be a tensor of a float dtype, got list"),
        ({"inputs": torch.ones(2, 3, 8, 8, dtype=torch.long)}, TypeError, "inputs must be a tensor of a float dtype"),
        ({"inputs": torch.ones(0, 3, 8, 8)}, ValueError, "inputs must have shape .* at least one item"),
        ({"inputs": torch.ones(3)}, ValueError, "inputs must have shape"),
        ({"inputs": torch.full((2, 3, 8, 8), torch.nan)}, ValueError, "inputs must be finite: 384 of 384"),
        ({"inputs": torch.full((2, 3, 8, 8), -torch.inf)}, ValueError, "inputs must be finite"),
        ({"target": 4}, ValueError, "target must be from 0 to 3, got 4"),
        ({"target": -1}, ValueError, "target must be from 0 to 3, got -1"),
        ({"target": torch.tensor([0, 7])}, ValueError, "target must be from 0 to 3, got 7"),
        ({"target": torch.tensor([0, 1, 2])}, ValueError, r"target must be a LongTensor of shape \(2,\)"),
        ({"target": torch.tensor([0.0, 1.0])}, ValueError, "target must be a LongTensor"),
        ({"target": "cat"}, TypeError, "target must be an int, a LongTensor or a function of the outputs, got str"),
        ({"target": lambda y: y}, ValueError, r"target must give one float score for each item, shape \(2,\)"),
        ({"target": lambda y: y[:, 0] * torch.nan}, ValueError, "the score must be finite"),
        ({"model": lambda x: x}, ValueError, r"outputs of shape \(N, classes\), got \(\d, 3, 8, 8\)"),
        ({"model": lambda x: x.sum()}, ValueError, r"model must return one row for each of \d items"),
        ({"model": lambda x: (x, x)}, TypeError, "model must return a tensor, got tuple"),
        ({"model": lambda x: x.flatten(1) / 0}, ValueError, "the model's outputs must be finite"),
        ({"model": lambda x: x.detach().flatten(1)}, ValueError, "the score does not depend on the inputs"),
        ({"model": lambda x: torch.from_numpy(x.detach().numpy()).flatten(1)}, ValueError, "does not depend on the inputs"),
        ({"model": lambda x: (x.relu() - x.relu()).flatten(1).abs().sqrt()}, ValueError, "the gradient must be finite"),
    ],
)  # fmt: skip
def test_bad_model_inputs_and_targets(method, change, error, message):
    given_arguments = {"model": network(), "inputs": normal(2, 3, 8, 8), "target": 1} | change
    if isinstance(given_arguments["inputs"], list) and method is over:
        pytest.skip("its baselines are made of the inputs")
    if len(given_arguments["inputs"]) == 0 and method is over:
        pytest.skip("its baselines are made of the inputs")
    with pytest.raises(error, match=message):
        method(**given_arguments)


INTEGRALS = [gradients.integrated_gradients, gradients.integrate]


@pytest.mark.parametrize("method", INTEGRALS, ids=lambda method: method.__name__)
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"baseline": torch.zeros(3, 3, 8, 8).double()}, ValueError, r"must broadcast .* \(2, 3, 8, 8\), got \(3, 3, 8, 8\)"),
        ({"baseline": torch.zeros(1, 1, 2, 3, 8, 8).double()}, ValueError, "baseline must broadcast"),
        ({"baseline": torch.zeros(7).double()}, ValueError, r"got \(7,\)"),
        ({"baseline": torch.zeros(8, dtype=torch.long)}, TypeError, "baseline must be of a float dtype, got torch.int64"),
        ({"baseline": torch.full((8,), torch.nan)}, ValueError, "baseline must be finite"),
        ({"baseline": math.inf}, ValueError, "baseline must be finite"),
        ({"baseline": "black"}, TypeError, "baseline must be a number, a tensor or None, got str"),
        ({"baseline": True}, TypeError, "baseline must be a number, a tensor or None, got bool"),
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"steps": -3}, ValueError, "steps must be at least 1, got -3"),
        ({"steps": 2.0}, TypeError, "steps must be an int, got float"),
        ({"steps": True}, TypeError, "steps must be an int, got bool"),
        ({"steps": "many"}, ValueError, 'steps must be a number or "auto", got \'many\''),
        ({"steps": 1, "quadrature": "trapezoid"}, ValueError, "steps must be at least 2, got 1"),
        ({"quadrature": "simpson"}, ValueError, "quadrature must be one of gausslegendre, midpoint, .*, got 'simpson'"),
        ({"quadrature": None}, ValueError, "quadrature must be one of .*, got None"),
        ({"steps": "auto", "tolerance": 0}, ValueError, "tolerance must be above 0"),
        ({"steps": "auto", "tolerance": "1%"}, TypeError, "tolerance must be a number, got str"),
        ({"steps": "auto", "max_steps": 31}, ValueError, "max_steps must be at least 32, got 31"),
        ({"chunk": 0}, ValueError, "chunk must be at least 1, got 0"),
        ({"chunk": 2.5}, TypeError, "chunk must be an int, got float"),
    ],
)  # fmt: skip
def test_bad_settings_of_an_integral_are_refused_before_any_work(method, change, error, message):
    with pytest.raises(error, match=message):
        method(failing, normal(2, 3, 8, 8), 1, **change)


@noisy
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"noise": -0.1}, ValueError, "noise must be above 0"),
        ({"noise": math.nan}, ValueError, "noise must be above 0 and finite, got nan"),
        ({"noise": "some"}, TypeError, "noise must be a number, got str"),
        ({"samples": 0}, ValueError, "samples must be at least"),
        ({"samples": 3.0}, TypeError, "samples must be an int, got float"),
        ({"generator": 3}, TypeError, "generator must be a torch.Generator or None, got int"),
        ({"method": "gradient"}, TypeError, r"method must be an attribution, method\(model, inputs, target\), got str"),
        ({"chunk": -1}, ValueError, "chunk must be at least 1, got -1"),
        ({"inputs": torch.ones(2, 4)}, ValueError, r"inputs must not be constant, .* items \[0, 1\] are"),
    ],
)
def test_bad_settings_of_noise_are_refused_before_any_work(method, change, error, message):
    with pytest.raises(error, match=message):
        method(failing, **({"inputs": normal(2, 3, 8, 8), "target": 1} | change))


def test_vargrad_needs_two_samples_and_smoothgrad_one():
    model, x = network(), normal(2, 3, 8, 8)
    assert gradients.smoothgrad(model, x, 1, samples=1).shape == x.shape
    with pytest.raises(ValueError, match="samples must be at least 2, got 1"):
        gradients.vargrad(model, x, 1, samples=1)


def test_a_method_that_gives_no_relevance_is_refused():
    model, x = network(), normal(2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"method must return relevance of shape \(8, 3, 8, 8\), got .*\(8, 8, 8\)"):
        gradients.smoothgrad(model, x, 1, method=lambda *args: gradients.gradient(*args).sum(1))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"baselines": torch.zeros(3, 8, 8).double()},
            ValueError,
            r"shape \(M, 3, 8, 8\), as the inputs, got \(3, 8, 8\)",
        ),
        ({"baselines": torch.zeros(0, 3, 8, 8).double()}, ValueError, "baselines must have shape"),
        ({"baselines": torch.zeros(2, 3, 8, 7).double()}, ValueError, r"got \(2, 3, 8, 7\)"),
        ({"baselines": None}, TypeError, "baselines must be a tensor of a float dtype, got NoneType"),
        (
            {"baselines": torch.zeros(1, 3, 8, 8, dtype=torch.long)},
            TypeError,
            "baselines must be a tensor of a float dtype",
        ),
        ({"baselines": torch.full((1, 3, 8, 8), torch.nan)}, ValueError, "baselines must be finite"),
        ({"samples": 0}, ValueError, "samples must be at least 1, got 0"),
        ({"generator": "seed"}, TypeError, "generator must be a torch.Generator or None, got str"),
        ({"chunk": 0}, ValueError, "chunk must be at least 1, got 0"),
    ],
)
def test_bad_settings_of_expected_gradients_are_refused_before_any_work(change, error, message):
    settings = {"baselines": torch.zeros(1, 3, 8, 8).double()} | change
    with pytest.raises(error, match=message):
        gradients.expected_gradients(failing, normal(2, 3, 8, 8), 1, **settings)


def test_relevance_that_does_not_fit_its_dtype_is_an_error():
    x = torch.full((1, 2), 300.0, dtype=torch.float16)
    with pytest.raises(ValueError, match="the relevance must be finite"):
        gradients.gradient_x_input(lambda x: 300 * (x - 300), x, 0)


def test_importing_it_loads_no_plotting():
    assert "xaicourse.gradients" in sys.modules
    source = inspect.getsource(gradients)
    assert not any(f"import {heavy}" in source for heavy in ("matplotlib", "sklearn", "skimage", "ipywidgets"))
