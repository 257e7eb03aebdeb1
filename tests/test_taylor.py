"""Taylor expansions, held against polynomials, sums by hand, torch.func's own derivatives and captum."""

import contextlib
import copy
import math
import subprocess
import sys

import captum.attr
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from xaicourse import images, models, mosaics, taylor

SMOOTH = {
    "gelu": F.gelu, "gelu, tanh": lambda x: F.gelu(x, approximate="tanh"), "silu": F.silu, "mish": F.mish,
    "softplus": F.softplus, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "glu": lambda x: F.glu(x, -1),
    "log sigmoid": F.logsigmoid, "softmax": lambda x: F.softmax(x, -1), "layer norm": nn.LayerNorm(6).double().eval(),
    "layer norm of two": lambda x: F.layer_norm(x, (4, 6), torch.arange(24.0).double().view(4, 6), eps=0.1),
    "group norm": lambda x: F.group_norm(x, 2),
    "instance norm": lambda x: F.instance_norm(x, weight=x.new_tensor([1, 2, 3, 4])),
    "torch's instance norm": lambda x: torch.instance_norm(x, None, None, None, None, True, 0.1, 1e-5, False),
    "native layer norm": lambda x: torch.native_layer_norm(x, (6,), None, None, 1e-5)[0],
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x), "lstm": lambda x: LSTM(x)[0],
    "norm": lambda x: x.norm(dim=-1),
    "rms norm": lambda x: F.rms_norm(x, (6,)), "einsum": lambda x: torch.einsum("nij,nkj->nik", x, x), "erf": torch.erf,
}  # fmt: skip


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


def filled(model, dtype=torch.float64, scale=0.5, bias=True):
    model = model.to(dtype).eval()
    with torch.no_grad():
        for seed, (name, parameter) in enumerate(model.named_parameters()):
            parameter.copy_(scale * normal(*parameter.shape, seed=seed) * (bias or "bias" not in name))
    return model


LSTM = filled(nn.LSTM(6, 3, batch_first=True))


def mlp(activation=nn.Tanh, inputs=3, classes=2, dtype=torch.float64, bias=True):
    """A small network of layers and one activation."""
    layers = [nn.Linear(inputs, 6), activation(), nn.Linear(6, 6), activation(), nn.Linear(6, classes)]
    return filled(nn.Sequential(*layers), dtype, bias=bias)


def convolutional(activation=nn.ReLU, dtype=torch.float64):
    """Convolutions, a batch norm that has seen data, pooling: smooth if the activation is."""
    pooling = nn.MaxPool2d if activation is nn.ReLU else nn.AvgPool2d
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), activation(), pooling(2), nn.Conv2d(4, 4, 3), activation(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    model[1].running_mean, model[1].running_var = normal(4), normal(4).exp()
    return filled(model, dtype)


def polynomial(x):
    """x y² + 3 x - 2, of degree three."""
    return x[:, 0] * x[:, 1] ** 2 + 3 * x[:, 0] - 2


# Expansion


def test_the_terms_of_a_polynomial_by_hand():
    x0, x = torch.tensor([[1.0, 2.0]]).double(), torch.tensor([[2.0, 4.0]]).double()
    # f = -2 + 3x + xy²; f(1, 2) = 5; along (1, 2): f(1 + t, 2 + 2t) = -2 + (1 + t)(3 + 4(1 + t)²) = 5 + 15t + 12t² + 4t³
    found = taylor.expansion(polynomial, x0, x, 5)
    assert found.terms[:, 0].tolist() == [5, 15, 12, 4, 0, 0]
    assert found.partial[:, 0].tolist() == [5, 20, 32, 36, 36, 36] and found.value.tolist() == [36] == [
        polynomial(x)[0]
    ]
    assert found.order == 5 and taylor.expansion(polynomial, x0, x, 0).terms.tolist() == [[5]]
    along = found.along(torch.tensor([-1.0, 0.5, 3.0]))
    assert along.shape == (6, 3, 1)
    assert along[3, :, 0].tolist() == [5 - 15 + 12 - 4, 5 + 7.5 + 3 + 0.5, 5 + 45 + 108 + 108]
    assert along[1, :, 0].tolist() == [-10, 12.5, 50]


@given(degree=st.integers(0, 4), items=st.integers(1, 3), seed=st.integers(0, 2**16))
@settings(max_examples=20, deadline=None)
def test_a_polynomial_is_exact_from_its_degree_on(degree, items, seed):
    a, b = normal(4, degree + 1, seed=seed).chunk(2)

    def f(x):
        return (
            sum((x @ p) ** k * q for k, (p, q) in enumerate(zip(normal(degree + 1, 2), a[0], strict=True)))
            + 0 * x[:, 0]
        )

    x0, x = normal(items, 2, seed=seed), normal(items, 2, seed=seed + 1)
    found = taylor.expansion(f, x0, x, degree + 1)
    torch.testing.assert_close(found.partial[degree], f(x), rtol=1e-8, atol=1e-8)
    assert (found.terms[degree + 1 :].abs() < 1e-8).all()


def test_the_exponential_has_its_series():
    x = torch.linspace(-1, 1, 5).double()
    found = taylor.expansion(torch.exp, torch.zeros_like(x), x, 8)
    expected = torch.stack([x**k / math.factorial(k) for k in range(9)])
    torch.testing.assert_close(found.terms, expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_error_of_order_k_falls_with_the_power_k_plus_1(name, order):
    x0, step = normal(2, 4, 6), 0.1 * normal(2, 4, 6, seed=1)
    f = SMOOTH[name]
    errors = []
    for t in (0.5, 0.25):
        x = x0 + t * step
        with torch.no_grad():
            errors.append((f(x) - taylor.expansion(f, x0, x, order).value).square().sum().sqrt())
    if name == "einsum" and order > 1:
        assert max(errors) < 1e-13  # of second degree
    else:
        assert math.log2(errors[0] / errors[1]) == pytest.approx(order + 1, abs=0.25)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.GELU, nn.SiLU, nn.Softplus, nn.Mish])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_slopes_of_a_smooth_convolutional_network(activation, order):
    model, x0, step = convolutional(activation), normal(2, 2, 8, 8), 0.01 * normal(2, 2, 8, 8, seed=1)
    errors = []
    for t in (1, 0.5):
        found = taylor.expansion(model, x0, x0 + t * step, order, target=1).value
        errors.append((model(x0 + t * step)[:, 1] - found).norm().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order + 1, abs=0.25)


def test_orders_above_the_first_add_nothing_to_a_relu_network():
    for model, x0 in ((convolutional(), normal(2, 2, 8, 8)), (mlp(nn.ReLU6), normal(2, 3))):
        found = taylor.expansion(model, x0, x0 + normal(*x0.shape, seed=1), 4)
        assert (found.terms[1] != 0).any() and (found.terms[2:] == 0).all()


def test_order_eight_of_a_network():
    model, x0 = mlp(), normal(2, 3)
    x = x0 + 0.3 * normal(2, 3, seed=1)
    found = taylor.expansion(model, x0, x, 8)
    assert found.terms.shape == (9, 2, 2)
    with torch.no_grad():
        errors = (model(x) - found.partial).abs().amax((1, 2))
    assert errors[8] < 1e-5 < 1e-3 < errors[1]
    for k in range(8):
        torch.testing.assert_close(taylor.expansion(model, x0, x, k).terms, found.terms[: k + 1])


@given(order=st.integers(0, 4), kind=st.sampled_from(["index", "indices", "function", "function of the items", "none"]))
@settings(max_examples=15, deadline=None)
def test_items_are_independent_and_a_target_picks_an_output(order, kind):
    model, x0, x = mlp(nn.GELU), normal(3, 3), normal(3, 3, seed=1)
    labels = torch.tensor([1, 1, 1] if kind in ("index", "function") else [1, 0, 1])
    target = {
        "index": 1, "indices": labels, "function": lambda y: y[:, 1], "none": None,
        "function of the items": lambda y: y[torch.arange(3), labels],
    }[kind]  # fmt: skip
    together = taylor.expansion(model, x0, x, order, target=target).terms
    for i in range(3):
        alone = taylor.expansion(model, x0[i : i + 1], x[i : i + 1], order).terms[:, 0]
        torch.testing.assert_close(
            together[:, i], alone if kind == "none" else alone[:, labels[i]], rtol=1e-10, atol=1e-12
        )
    tensors = taylor.derivative(model, x0, min(order, 2), target=target, chunk=7)
    for i in range(3):
        alone = taylor.derivative(model, x0[i : i + 1], min(order, 2))[0]
        torch.testing.assert_close(tensors[i], alone if kind == "none" else alone[labels[i]], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_other_dtypes_keep_their_dtype_and_come_close(dtype):
    exact, model = convolutional(nn.GELU), convolutional(nn.GELU, dtype)
    x0, x = normal(2, 2, 8, 8), normal(2, 2, 8, 8, seed=1)
    expected = taylor.expansion(exact, x0, x, 2, target=0).terms
    found = taylor.expansion(model, x0.to(dtype), x.to(dtype), 2, target=0).terms
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=200 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_of_float32_can_be_expanded_too(kind):
    """Their fast kernels have no forward-mode derivative."""
    layer, x0, x = filled(kind(6, 3, batch_first=True)), normal(2, 4, 6), normal(2, 4, 6, seed=1)
    expected = taylor.expansion(lambda x: layer(x)[0], x0, x, 2).terms
    layer = layer.float()
    found = taylor.expansion(lambda x: layer(x)[0], x0.float(), x.float(), 2).terms
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_a_function_may_change_its_input_in_place_and_turn_gradients_off():
    x0, x = normal(2, 6), normal(2, 6, seed=1)

    @torch.no_grad()
    def f(x):
        y = x.clone()
        y[:, 0] = 2
        F.silu(y, inplace=True)
        return y.mul_(3)

    expected = taylor.expansion(lambda x: 3 * F.silu(torch.cat([0 * x[:, :1] + 2, x[:, 1:]], 1)), x0, x, 3).terms
    torch.testing.assert_close(taylor.expansion(f, x0, x, 3).terms, expected)


# The tensor of derivatives


def test_the_derivatives_of_a_polynomial_by_hand():
    x0 = torch.tensor([[1.0, 2.0]]).double()
    assert taylor.derivative(polynomial, x0, 0).tolist() == [5]
    assert taylor.derivative(polynomial, x0, 1).tolist() == [[7, 4]]
    assert taylor.derivative(polynomial, x0, 2).tolist() == [[[0, 4], [4, 2]]]
    assert taylor.derivative(polynomial, x0, 3).tolist() == [[[[0, 0], [0, 2]], [[0, 2], [2, 0]]]]
    assert (taylor.derivative(polynomial, x0, 4) == 0).all()


@pytest.mark.parametrize("activation", [nn.Tanh, nn.GELU, nn.SiLU])
def test_first_second_and_third_derivatives_are_those_of_torch_func(activation):
    model, x0 = mlp(activation), normal(2, 3)

    def one(x):
        return model(x[None])[0]

    for order in (1, 2, 3):
        nested = one
        for _ in range(order):
            nested = torch.func.jacrev(nested)
        expected = torch.stack([nested(x) for x in x0])
        torch.testing.assert_close(taylor.derivative(model, x0, order), expected.detach(), rtol=1e-9, atol=1e-12)
    expected = torch.stack([torch.func.hessian(lambda x: one(x)[1])(x) for x in x0])
    torch.testing.assert_close(taylor.derivative(model, x0, 2, target=1), expected.detach(), rtol=1e-9, atol=1e-12)


def test_a_batch_norm_of_the_batch_mixes_the_items_and_is_refused():
    with pytest.raises(ValueError, match="f must treat each item by itself.*batch_norm"):
        taylor.expansion(
            lambda x: F.batch_norm(x, None, None, training=True).sum(1), normal(3, 4), normal(3, 4, seed=1), 2
        )


def test_the_hessian_of_a_layer_norm_is_that_of_reverse_mode():
    """Nested forward mode of PyTorch 2.15 alone gives other numbers, without an error."""
    model, x0 = filled(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2))), normal(1, 4)
    expected = torch.func.jacrev(torch.func.jacrev(lambda x: model(x)[0]))(x0[0]).detach()
    torch.testing.assert_close(taylor.derivative(model, x0, 2, target=0)[0], expected, rtol=1e-9, atol=1e-12)


@given(order=st.integers(0, 3), seed=st.integers(0, 2**16))
@settings(max_examples=15, deadline=None)
def test_contracting_the_tensor_with_the_step_gives_the_term_of_the_expansion(order, seed):
    model, x0, x = mlp(), normal(2, 3, seed=seed), normal(2, 3, seed=seed + 1)
    full = taylor.derivative(model, x0, order)
    assert full.shape == (2, 2, *[3] * order)
    assert order < 2 or torch.equal(full, full.transpose(-1, -2))
    for _ in range(order):
        full = torch.einsum("n...d,nd->n...", full, x - x0)
    terms = taylor.expansion(model, x0, x, order).terms
    torch.testing.assert_close(full / math.factorial(order), terms[order], rtol=1e-9, atol=1e-12)


def test_the_tensor_of_images_has_their_shape_twice_and_chunks_do_not_matter():
    model, x0 = convolutional(nn.Tanh), normal(2, 2, 6, 6)
    found = taylor.derivative(model, x0, 2, target=torch.tensor([2, 0]), chunk=37)
    assert found.shape == (2, 2, 6, 6, 2, 6, 6)
    expected = torch.func.hessian(lambda x: model(x[None])[0, 2])(x0[0])
    torch.testing.assert_close(found[0], expected.detach(), rtol=1e-9, atol=1e-12)
    assert torch.equal(found, found.permute(0, 4, 5, 6, 1, 2, 3))
    torch.testing.assert_close(found, taylor.derivative(model, x0, 2, target=torch.tensor([2, 0])), rtol=0, atol=1e-14)


def test_a_tensor_that_is_too_large_is_refused_with_its_size():
    model, x0 = convolutional(nn.Tanh), normal(1, 2, 224, 224)
    with pytest.raises(ValueError, match=r"D\^2 of 100352 inputs has 30,211,571,712 entries here, 2\.4e\+11 bytes"):
        taylor.derivative(model, x0, 2)
    with pytest.raises(ValueError, match="limit is 17; `expansion` gives"):
        taylor.derivative(mlp(), normal(1, 3), 2, limit=17)
    assert taylor.derivative(mlp(), normal(1, 3), 2, limit=18).numel() == 18


# The first order as an explanation


def gradient(model, inputs, target):
    x = inputs.clone().requires_grad_()
    score = model(x).gather(1, torch.as_tensor(target).expand(len(x))[:, None]).sum()
    return torch.autograd.grad(score, x)[0]


def test_equation_13_by_hand():
    def f(x):
        return torch.stack([polynomial(x), x[:, 0]], 1)

    x, x0 = torch.tensor([[2.0, 4.0]]), torch.tensor([[1.0, 2.0]])
    found = taylor.first_order(f, x, 0, root=x0, at="root")
    assert found.relevance.tolist() == [[7, 8]]  # the gradient at x0 is (7, 4), the step (1, 2)
    assert (found.score.item(), found.bias.item(), found.remainder.item()) == (36, 5, 16)
    found = taylor.first_order(f, x, 0, root=x0)
    assert found.relevance.tolist() == [[19, 32]]  # the gradient at x is (19, 16)
    assert found.remainder.item() == 36 - 5 - 51
    found = taylor.first_order(f, x, 0)
    assert found.relevance.tolist() == [[38, 64]] and found.bias.item() == -2 and found.root.tolist() == [[0, 0]]
    assert taylor.relevance(f, x, 0, root=x0).tolist() == [[19, 32]]


@given(root=st.sampled_from(["tensor", "one for all", "zero", "orthogonal"]), at=st.sampled_from(["inputs", "root"]))
@settings(max_examples=20, deadline=None)
def test_relevance_is_the_gradient_times_the_step_and_accounts_for_the_score(root, at):
    model, x, target = convolutional(nn.Tanh), normal(3, 2, 8, 8), torch.tensor([2, 0, 1])
    root = {"tensor": normal(3, 2, 8, 8, seed=5), "one for all": normal(2, 1, 1, seed=5)}.get(root, root)
    found = taylor.first_order(model, x, target, root=root, at=at)
    slope = gradient(model, x if at == "inputs" else found.root, target)
    torch.testing.assert_close(found.relevance, slope * (x - found.root))
    with torch.no_grad():
        torch.testing.assert_close(found.score, model(x).gather(1, target[:, None])[:, 0])
        torch.testing.assert_close(found.bias, model(found.root).gather(1, target[:, None])[:, 0])
    torch.testing.assert_close(found.score, found.bias + found.relevance.sum((1, 2, 3)) + found.remainder)
    assert torch.equal(found.relevance, taylor.relevance(model, x, target, root=root, at=at))


def test_at_the_root_the_sum_is_the_first_term_of_the_expansion():
    model, x, x0 = convolutional(nn.GELU), normal(2, 2, 8, 8), normal(2, 2, 8, 8, seed=1)
    terms = taylor.expansion(model, x0, x, 1, target=2).terms
    found = taylor.first_order(model, x, 2, root=x0, at="root")
    torch.testing.assert_close(found.relevance.sum((1, 2, 3)), terms[1])
    torch.testing.assert_close(found.bias, terms[0])


def test_the_default_is_captums_input_x_gradient():
    model, x, target = convolutional(), normal(3, 2, 8, 8), torch.tensor([2, 0, 1])
    theirs = captum.attr.InputXGradient(model).attribute(x.clone().requires_grad_(), target=target).detach()
    torch.testing.assert_close(taylor.relevance(model, x, target), theirs, rtol=1e-12, atol=1e-14)


def test_the_orthogonal_root_is_the_nearest_one_and_has_the_sum_of_gradient_x_input():
    model, x, target = convolutional(nn.Tanh), normal(3, 2, 8, 8), torch.tensor([2, 0, 1])
    g, x0 = gradient(model, x, target), taylor.orthogonal_root(model, x, target)
    assert ((g * x0).sum((1, 2, 3)).abs() < 1e-12).all()
    for seed in range(50, 55):  # any other point of that plane is farther away
        other = normal(3, 2, 8, 8, seed=seed)
        other -= g * ((g * other).sum((1, 2, 3)) / (g * g).sum((1, 2, 3))).view(-1, 1, 1, 1)
        assert ((x - x0).flatten(1).norm(dim=1) < (x - other).flatten(1).norm(dim=1)).all()
        from_other = taylor.relevance(model, x, target, root=other)
        torch.testing.assert_close(from_other.sum((1, 2, 3)), (g * x).sum((1, 2, 3)))
    nearest = taylor.relevance(model, x, target, root="orthogonal")
    torch.testing.assert_close(nearest.sum((1, 2, 3)), (g * x).sum((1, 2, 3)))
    signs = (g * x).sum((1, 2, 3), keepdim=True).sign()
    assert (nearest * signs >= 0).all()  # one sign only: not gradient x input, which has both
    assert ((g * x) * signs < 0).flatten(1).any(1).all()
    torch.testing.assert_close(nearest, g * g * ((g * x).sum((1, 2, 3)) / (g * g).sum((1, 2, 3))).view(-1, 1, 1, 1))


def test_the_orthogonal_root_survives_small_gradients():
    model = filled(nn.Sequential(nn.Flatten(), nn.Linear(8, 1)), torch.float32, scale=1e-30)
    x = normal(2, 8, dtype=torch.float32)
    x0 = taylor.orthogonal_root(model, x, 0)
    cosine = F.cosine_similarity(x0.double(), model[1].weight.double(), dim=1)
    assert (cosine.abs() < 1e-6).all() and (x0 - x).abs().max() > 0.1


def test_gradient_x_input_sums_to_the_score_of_a_relu_network_without_biases():
    model, x = mlp(nn.ReLU, bias=False), normal(5, 3)
    found = taylor.first_order(model, x, 1)
    torch.testing.assert_close(found.relevance.sum(1), found.score, rtol=1e-12, atol=1e-14)
    assert (found.bias == 0).all() and (found.remainder.abs() < 1e-12).all()
    biased = taylor.first_order(mlp(nn.ReLU), x, 1)
    assert (biased.remainder.abs() > 1e-3).any()


@given(kind=st.sampled_from(["index", "indices", "function", "function of the items"]))
@settings(max_examples=8, deadline=None)
def test_relevance_of_items_is_independent_and_a_target_may_be_a_function(kind):
    model, x = convolutional(), normal(3, 2, 8, 8)
    labels = torch.tensor([2, 2, 2] if kind in ("index", "function") else [2, 0, 1])
    target = {
        "index": 2, "indices": labels, "function": lambda y: y[:, 2],
        "function of the items": lambda y: y[torch.arange(3), labels],
    }[kind]  # fmt: skip
    for root in ("zero", "orthogonal"):
        together = taylor.relevance(model, x, target, root=root)
        for i in range(3):
            alone = taylor.relevance(model, x[i : i + 1], int(labels[i]), root=root)
            torch.testing.assert_close(together[i], alone[0], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("root", ["zero", "orthogonal"])
def test_relevance_keeps_the_dtype_of_the_inputs(dtype, root):
    x = normal(2, 2, 8, 8)
    expected = taylor.relevance(convolutional(), x, 1, root=root)
    found = taylor.relevance(convolutional(dtype=dtype), x.to(dtype), 1, root=root)
    assert found.dtype == dtype and found.shape == x.shape
    tolerance = 100 * torch.finfo(dtype).eps * expected.abs().max().item()
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)


# What every method promises


class Counting(nn.Module):
    """A model that keeps a count and its last batch."""

    def __init__(self):
        super().__init__()
        self.inner = mlp()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(1, 3))

    def forward(self, x):
        self.calls += 1
        self.last = x
        if self.calls > 2:
            raise RuntimeError("too often")
        return self.inner(x)


@pytest.mark.parametrize(
    "work",
    [
        lambda model, x: taylor.expansion(model, x, x + 1, 2),
        lambda model, x: taylor.derivative(model, x, 1),
        lambda model, x: taylor.derivative(model, x, 2, chunk=1),
        lambda model, x: taylor.relevance(model, x, 0),
        lambda model, x: taylor.relevance(model, x, 0, at="root"),
        lambda model, x: taylor.relevance(model, x, 7),
        lambda model, x: taylor.relevance(model, x, 0, root="nowhere"),
    ],
)
def test_the_model_comes_back_as_it_was_also_after_an_error(work):
    model, x = Counting().eval(), normal(2, 3)
    model.inner[0].weight.requires_grad_(False)
    before, wanted = copy.deepcopy(model.state_dict()), [p.requires_grad for p in model.parameters()]
    with contextlib.suppress(RuntimeError, ValueError):
        work(model, x)
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[k], before[k]) for k in before)
    assert [p.requires_grad for p in model.parameters()] == wanted and not model.training
    assert all(p.grad is None for p in model.parameters()) and type(model.calls) is torch.Tensor
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_it_works_whatever_the_callers_mode_of_gradients(mode):
    model, x = convolutional(nn.GELU), normal(2, 2, 6, 6)
    expected = taylor.relevance(model, x, 1), taylor.expansion(model, x, x + 1, 2).terms
    derivative = taylor.derivative(model, x, 1, target=1)
    with mode():
        inputs = x.clone()
        found = taylor.relevance(model, inputs, 1), taylor.expansion(model, inputs, inputs + 1, 2).terms
        again = taylor.derivative(model, inputs, 1, target=1)
    for a, b in zip((*found, again), (*expected, derivative), strict=True):
        torch.testing.assert_close(a.clone(), b, rtol=0, atol=0)
        assert not a.requires_grad
    torch.testing.assert_close(derivative * x, expected[0])


def test_inputs_keep_their_values_and_their_gradients():
    x = normal(2, 3).requires_grad_()
    before = x.detach().clone()
    taylor.expansion(mlp(), x, x + 1, 2)
    taylor.relevance(mlp(), x, 1)
    assert torch.equal(x, before) and x.grad is None


X = normal(2, 3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"f": 3}, TypeError, "f must be an nn.Module or a function of tensors, got int"),
        ({"f": mlp().train()}, ValueError, r"f must be in evaluation mode.*f\.eval\(\)"),
        ({"order": 2.0}, TypeError, "order must be an int, got float"),
        ({"order": True}, TypeError, "order must be an int, got bool"),
        ({"order": -1}, ValueError, "order must be at least 0, got -1"),
        ({"x0": [1.0]}, TypeError, "x0 must be a tensor of a float dtype, got list"),
        ({"x": X.long()}, TypeError, r"x must be a tensor of a float dtype, got torch.int64 of shape \(2, 3\)"),
        ({"x0": torch.tensor(1.0)}, ValueError, r"x0 must have shape \(N, …\) with at least one item, not empty, got \(\)"),
        ({"x0": X[:0], "x": X[:0]}, ValueError, r"x0 must have shape .* got \(0, 3\)"),
        ({"x": X[:1]}, ValueError, r"x and x0 must agree in shape.* got .*\(1, 3\).* and .*\(2, 3\)"),
        ({"x": X.float()}, ValueError, "x and x0 must agree in shape, dtype and device, got torch.float32"),
        ({"x": X.new_full((2, 3), math.nan)}, ValueError, "x must be finite: 6 of 6 values"),
        ({"x0": X.new_full((2, 3), math.inf)}, ValueError, "x0 must be finite"),
        ({"target": 2}, ValueError, "target must be from 0 to 1, got 2"),
        ({"target": -1}, ValueError, "target must be from 0 to 1, got -1"),
        ({"target": "cat"}, TypeError, "target must be an int, a LongTensor or a function"),
        ({"target": torch.tensor([0, 1, 0])}, ValueError, r"target must be a LongTensor of shape \(2,\)"),
        ({"target": lambda y: y}, ValueError, r"target must give one float score for each item, shape \(2,\)"),
        ({"f": lambda x: x.sum()}, ValueError, r"must return one row for each of 2 items, got shape \(\)"),
        ({"f": lambda x: (x,)}, TypeError, "must return a tensor, got tuple"),
        ({"f": lambda x: x.long()}, TypeError, "f must return a tensor of a float dtype, got torch.int64"),
        ({"f": lambda x: x / 0}, ValueError, "outputs must be finite"),
        ({"f": lambda x: x.abs().sqrt() * 0 + (x - X).abs().sqrt()}, ValueError, "the terms of the expansion must be finite"),
    ],
)  # fmt: skip
def test_a_bad_argument_of_an_expansion_is_named(change, error, message):
    arguments = {"f": mlp(), "x0": X, "x": X + 1, "order": 2, "target": None} | change
    with pytest.raises(error, match=message):
        taylor.expansion(*[arguments[name] for name in ("f", "x0", "x", "order")], target=arguments["target"])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"f": "model"}, TypeError, "f must be an nn.Module"),
        ({"order": "2"}, TypeError, "order must be an int"),
        ({"order": -2}, ValueError, "order must be at least 0"),
        ({"x0": X.int()}, TypeError, "x0 must be a tensor of a float dtype"),
        ({"limit": 0}, ValueError, "limit must be at least 1"),
        ({"limit": 1e6}, TypeError, "limit must be an int"),
        ({"chunk": 0}, ValueError, "chunk must be at least 1"),
        ({"target": 9}, ValueError, "target must be from 0 to 1"),
        ({"f": lambda x: x.detach()}, ValueError, "do not depend on the inputs"),
    ],
)
def test_a_bad_argument_of_a_derivative_is_named(change, error, message):
    arguments = {"f": mlp(), "x0": X, "order": 2} | change
    with pytest.raises(error, match=message):
        taylor.derivative(**arguments)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": None}, TypeError, "model must be an nn.Module"),
        ({"model": mlp().train()}, ValueError, "model must be in evaluation mode"),
        ({"inputs": X.long()}, TypeError, "inputs must be a tensor of a float dtype"),
        ({"inputs": X[0]}, ValueError, r"inputs must have shape \(N, …\)"),
        ({"inputs": X.log()}, ValueError, "inputs must be finite"),
        ({"target": 2}, ValueError, "target must be from 0 to 1, got 2"),
        ({"target": 0.5}, TypeError, "target must be an int"),
        ({"root": "black"}, ValueError, "root must be a tensor, 'zero' or 'orthogonal', got 'black'"),
        ({"root": 0.0}, TypeError, "root must be a tensor, 'zero' or 'orthogonal', got float"),
        ({"root": X[:, :2]}, ValueError, r"root must broadcast to the inputs, \(2, 3\), got \(2, 2\)"),
        ({"root": X[None]}, ValueError, "root must broadcast to the inputs"),
        ({"root": X.float()}, ValueError, "root must have the dtype and device of the inputs"),
        ({"root": X / 0}, ValueError, "root must be finite"),
        ({"at": "x0"}, ValueError, "at must be 'inputs' or 'root', got 'x0'"),
        ({"model": lambda x: x.detach()}, ValueError, "the score does not depend on the inputs"),
        ({"model": lambda x: 0 * x, "root": "orthogonal"}, ValueError, "the gradient of item 0 is zero"),
        ({"model": lambda x: F.relu(x + torch.tensor([[9.0], [-9.0]])), "root": "orthogonal"},
         ValueError, "the gradient of item 1 is zero, and every point is orthogonal to it"),
        ({"model": lambda x: x.sqrt(), "inputs": X * 0}, ValueError, "the gradient must be finite"),
    ],
)  # fmt: skip
def test_a_bad_argument_of_relevance_is_named(change, error, message):
    arguments = {"model": mlp(), "inputs": X, "target": 1} | change
    with pytest.raises(error, match=message):
        taylor.relevance(**arguments)


class Backwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda x: torch.cdist(x[:, None], x[:, None] + 1)[:, 0], "1 times in forward mode: _cdist_forward has no"),
        (lambda x: torch.nn.functional.rrelu(x).detach(), "the outputs do not depend on the inputs"),
        (lambda x: x.argmax(1).double(), "the outputs do not depend on the inputs"),
        (lambda x: torch.from_numpy(2 * x.numpy()), r"it is at .*numpy"),
        (lambda x: Backwards.apply(x), r"autograd.Function.*it is at .*Backwards.apply"),
    ],
)  # fmt: skip
def test_what_has_no_forward_mode_derivative_is_named(f, message):
    with pytest.raises(ValueError, match=message):
        taylor.expansion(f, X, X + 1, 2)
    assert taylor.expansion(f, X, X + 1, 0).terms.shape[0] == 1  # no derivative is asked for


def test_t_must_be_a_line_of_numbers():
    found = taylor.expansion(polynomial, X, X + 1, 1)
    for bad in (0.5, torch.ones(2, 2), torch.arange(3)):
        with pytest.raises(TypeError, match=r"t must be a float tensor of shape \(T,\)"):
            found.along(bad)
    with pytest.raises(ValueError, match="t must be finite"):
        found.along(torch.tensor([math.nan]))


def test_importing_it_is_light():
    heavy = ("matplotlib", "ipywidgets", "sklearn", "skimage")
    code = f"import sys, xaicourse.taylor; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


# Real networks: what lecture 07 claims


def photograph(name="chelsea", size=128):
    x = models.transform()(images.load(name))[None]
    edge = (x.shape[-1] - size) // 2
    return x[..., edge : edge + size, edge : edge + size]


def slope(model, x0, step, order, target, scales):
    """Of the error against the distance, both logarithms, by least squares; in float64."""
    logs = []
    for t in scales:
        x = x0 + t * step
        with torch.no_grad():
            truth = model(x)[:, target]
        logs.append(
            [math.log(t), math.log((truth - taylor.expansion(model, x0, x, order, target=target).value).abs().item())]
        )
    a = torch.tensor(logs, dtype=torch.float64)
    a = a - a.mean(0)
    return ((a[:, 0] * a[:, 1]).sum() / a[:, 0].square().sum()).item()


@pytest.mark.parametrize("name", ["convnext", "vit"])
def test_t1_on_trained_smooth_networks_the_error_falls_with_the_power_k_plus_1(name):
    model, (pictures, classes, _) = mosaics.load(name).double(), mosaics.sample(1)
    x0 = pictures.double()
    for order in (1, 2, 3):
        found = slope(model, x0 / 2, x0, order, int(classes[0]), [2.0**-k for k in range(6, 10)])
        assert found == pytest.approx(order + 1, abs=0.2)


def test_t1_a_real_relu_network_has_no_second_order_and_still_bends():
    model, x = models.load(), photograph()
    found = taylor.expansion(model, x / 2, x, 3, target=282)
    assert found.terms[1].abs() > 0.5 and (found.terms[2:] == 0).all()
    with torch.no_grad():
        assert (model(x)[:, 282] - found.value).abs() > 0.2


@pytest.mark.parametrize("at", ["inputs", "root"])
def test_t2_relevance_sums_to_the_difference_up_to_a_remainder_of_second_order(at):
    model, (pictures, classes, _) = mosaics.load("convnext").double(), mosaics.sample(2)
    x = pictures.double()
    left = []
    for t in (2.0**-6, 2.0**-7):
        found = taylor.first_order(model, x, classes, root=(1 - t) * x, at=at)
        torch.testing.assert_close(found.relevance.sum((1, 2, 3)) + found.remainder, found.score - found.bias)
        left.append(found.remainder.abs())
    torch.testing.assert_close((left[0] / left[1]).log2(), torch.full((2,), 2.0).double(), rtol=0, atol=0.2)


def test_t4_without_biases_gradient_x_input_sums_to_the_logit_of_a_real_network():
    model, x = models.load().double(), photograph().double()
    with_biases = taylor.first_order(model, x, 282)
    assert (with_biases.relevance.sum() / with_biases.score - 1).abs() > 0.1
    # what is missing is in the constants: the shift of each batch norm, the classifier's bias, units at their ceiling of 6
    seen, norms = [], [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    hooks = [
        m.register_forward_hook(lambda m, args, y: seen.append(y)) for m in model.modules() if isinstance(m, nn.ReLU6)
    ]
    score = model(x)[0, 282]
    for hook in hooks:
        hook.remove()
    shifts = [m.bias - m.weight * m.running_mean / (m.running_var + m.eps).sqrt() for m in norms]
    constants = [model.classifier.bias, *shifts, *[6.0 * (y >= 6) for y in seen]]
    grads = torch.autograd.grad(score, [model.classifier.bias, *[m.bias for m in norms], *seen])
    held = sum((g * b).sum() for g, b in zip(grads, constants, strict=True)).detach()
    torch.testing.assert_close(with_biases.relevance.sum() + held, with_biases.score[0], rtol=1e-9, atol=1e-9)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.zero_()
        if getattr(module, "bias", None) is not None:
            module.bias.data.zero_()
        if isinstance(module, nn.ReLU6):
            module.max_val = math.inf  # the ceiling of 6 is a bias too
    without = taylor.first_order(model, x, 282)
    torch.testing.assert_close(without.relevance.sum().view(1), without.score, rtol=1e-9, atol=1e-12)


# Another device


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU])
def test_a_gpu_gives_what_the_cpu_gives(activation):
    model, x, target = convolutional(activation), normal(2, 2, 8, 8), torch.tensor([2, 0])
    expected = taylor.expansion(model, x, x + 1, 3, target=target).terms, taylor.relevance(model, x, target)
    roots, hessian = (
        taylor.orthogonal_root(model, x, target),
        taylor.derivative(model, x[..., :6, :6], 2, target=target),
    )
    model, x = model.cuda(), x.cuda()
    found = taylor.expansion(model, x, x + 1, 3, target=target).terms, taylor.relevance(model, x, target)
    for a, b in zip(found, expected, strict=True):
        assert a.device == x.device
        torch.testing.assert_close(a.cpu(), b, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(taylor.orthogonal_root(model, x, target).cpu(), roots)
    torch.testing.assert_close(taylor.derivative(model, x[..., :6, :6], 2, target=target).cpu(), hessian)
    lstm = nn.LSTM(6, 3, batch_first=True).double().eval()
    y = normal(2, 4, 6)
    expected = taylor.expansion(lambda y: lstm(y)[0], y, y + 1, 3).terms
    lstm = lstm.cuda()
    found = taylor.expansion(lambda y: lstm(y)[0], y.cuda(), y.cuda() + 1, 3).terms
    torch.testing.assert_close(found.cpu(), expected)
