"""What happens between layers: what must work, however a model calls it, and what must be refused."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xaicourse import lrp

from .networks import Functional, agree, everywhere, gradient_x_input, randomised, same, snapshot


def parts() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        "a": randomised(nn.Conv2d(3, 4, 3, padding=1), 1),
        "b": randomised(nn.Conv2d(4, 4, 3, padding=1), 2),
        "norm": randomised(nn.BatchNorm2d(4), 3),
        "down": randomised(nn.Conv2d(4, 4, 3, stride=2, padding=1), 4),
        "up": randomised(nn.ConvTranspose2d(4, 4, 2, stride=2), 5),
        "head": randomised(nn.Linear(4, 5), 6),
    }


def x() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def in_place(h: Tensor, change) -> Tensor:
    change(h)
    return h


def add_to(h, other):
    h += other
    return h


def scale(h, factor):
    h *= factor
    h /= 2
    h -= 0.1
    return h


def assigned(m, h):
    y = m.b(h)
    y[:, 0] = 0.3
    return y


def assign(h, where, value):
    h[where] = value
    return h


def assigned_in_a_loop(m, h):
    y = torch.zeros_like(h)
    for c, piece in enumerate(m.b(h).unbind(1)):
        y[:, c] = piece.relu()
    return y


SQUARE = torch.randn(8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
GRID = torch.rand(2, 8, 8, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 2 - 1
MASK = (torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(1)) > 0.5).double()
INDEX = torch.tensor([3, 1, 1, 0])

# each is the middle of a network of ReLUs: its LRP-0 must be gradient x input, its ledger must add up
WORKING = {
    "x + f(x)": lambda m, h: h + m.b(h),
    "f(x) + x": lambda m, h: m.b(h) + h,
    "torch.add": lambda m, h: torch.add(h, m.b(h)),
    "torch.add with alpha": lambda m, h: torch.add(h, m.b(h), alpha=-2),
    "torch.add with alpha, of ReLUs": lambda m, h: torch.add(h, m.b(h).relu(), alpha=-2),
    ".add": lambda m, h: h.add(m.b(h), alpha=0.5),
    "+= of a layer": lambda m, h: add_to(m.b(h), h),
    "+= of an activation": lambda m, h: add_to(h.clone(), m.b(h)),
    ".add_": lambda m, h: m.b(h).add_(h),
    "sum of branches": lambda m, h: sum([m.b(h), h, m.b(h.relu())]),
    "sum of a stack": lambda m, h: torch.stack([m.b(h), h, -h], dim=0).sum(0),
    "a number added": lambda m, h: h + 0.3,
    "a negative number added": lambda m, h: h.relu() + (-0.3),
    "a negative number added to an average": lambda m, h: torch.add(F.avg_pool2d(h.relu(), 3, 1, 1), -0.2),
    "a constant subtracted": lambda m, h: h - MASK,
    "subtracted from a constant": lambda m, h: 1 - h,
    "torch.rsub": lambda m, h: torch.rsub(h, MASK),
    "difference": lambda m, h: m.b(h) - h,
    "+= on a constant": lambda m, h: into_a_constant(m, h),
    "-= of a layer": lambda m, h: m.b(h).sub_(h),
    "negative": lambda m, h: -m.b(h),
    "torch.neg": lambda m, h: torch.neg(h),
    "times a number": lambda m, h: 0.5 * h * 3,
    "times a constant": lambda m, h: h * MASK,
    "a constant times": lambda m, h: torch.mul(MASK, h),
    "times a mask of its own": lambda m, h: h * (h > 0.1),
    "divided by a number": lambda m, h: h / 3,
    "divided by a constant": lambda m, h: torch.div(h, 1 + MASK),
    "divided, rounding_mode=None": lambda m, h: torch.div(h, 2, rounding_mode=None),
    "*=, /=, -=": lambda m, h: scale(m.b(h), 3),
    "*=, /=, -= on an activation": lambda m, h: scale(h.clone(), 3),
    "torch.cat": lambda m, h: torch.cat([h[:, :2], m.b(h)[:, 2:]], dim=1),
    "torch.cat with a constant": lambda m, h: torch.cat([h[:, :3], MASK[:1].expand(2, 1, -1, -1)], 1),
    "torch.concat of pieces": lambda m, h: torch.concat(list(h.split(2, dim=1))[::-1], dim=1),
    "chunk": lambda m, h: torch.cat([c.relu() for c in h.chunk(2, 1)][::-1], 1),
    "chunk, one half through a layer": lambda m, h: torch.cat([h.chunk(2, 1)[0], m.b(h).chunk(2, 1)[1]], 1),
    "unbind and stack": lambda m, h: torch.stack(h.unbind(1)[::-1], 1),
    "tensor_split": lambda m, h: torch.cat(torch.tensor_split(h, (1, 3), 1)[::-1], 1),
    "slices": lambda m, h: torch.cat([h[..., :4], h[:, :, :, 4:]], 3),
    "index with None, Ellipsis and step": lambda m, h: h[:, None, ..., ::2][:, 0].repeat(1, 1, 1, 2),
    "index with a tensor": lambda m, h: h[:, INDEX],
    "index_select": lambda m, h: torch.index_select(h, 1, INDEX),
    "gather": lambda m, h: h.gather(1, h.argsort(1)),
    "masked_fill": lambda m, h: h.masked_fill(MASK.bool(), 0.0),
    "masked_fill with a number": lambda m, h: h.masked_fill(MASK.bool(), 0.7),
    "narrow, select, unsqueeze": lambda m, h: torch.cat([h.narrow(1, 0, 3), h.select(1, 3).unsqueeze(1)], 1),
    "roll and flip": lambda m, h: torch.roll(h, 1, 2).flip(3),
    "permute and back": lambda m, h: h.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "transpose, movedim, mT": lambda m, h: h.transpose(1, 2).movedim(1, 2).mT.swapaxes(2, 3),
    "view": lambda m, h: m.b(h).view(2, 2, 2, 8, 8).transpose(1, 2).reshape(2, 4, 8, 8),
    "view over the pixels": lambda m, h: m.b(h).view(2, 4, 64).view(2, 4, 8, 8),
    "view_as": lambda m, h: m.b(h).view_as(torch.empty(2, 4, 64)).view_as(h),
    "flatten and unflatten": lambda m, h: h.flatten(2).unflatten(2, (8, 8)),
    "reshape by size": lambda m, h: h.reshape(h.size(0), h.shape[1], -1).reshape(*h.shape),
    "expand": lambda m, h: h.mean((2, 3), keepdim=True).expand(-1, -1, 8, 8),
    "repeat and tile": lambda m, h: h[:, :2].repeat(1, 2, 1, 1)[:, :, :4].tile(1, 1, 2, 1),
    "clone and contiguous": lambda m, h: h.clone().contiguous(memory_format=torch.channels_last),
    "dtype back and forth": lambda m, h: h.to(torch.float64).double().type_as(h),
    "ReLU in place": lambda m, h: F.relu(m.b(h), inplace=True),
    "ReLU in place on a batch norm": lambda m, h: F.relu(m.norm(m.b(h)), inplace=True),
    "torch.relu_": lambda m, h: torch.relu_(m.b(h)),
    ".relu_() whose result is not taken": lambda m, h: in_place(m.b(h), lambda t: t.relu_()),
    "F.relu_ on a sum": lambda m, h: F.relu(h + m.b(h), inplace=True),
    "nn.ReLU": lambda m, h: nn.ReLU()(m.b(h)),
    "before and after a ReLU": lambda m, h: (lambda y: y + y.relu())(m.b(h)),
    "after and before a ReLU": lambda m, h: (lambda y: y.relu() + y)(m.b(h)),
    "before and after a batch norm": lambda m, h: (lambda y: m.norm(y) + y)(m.b(h)),
    "a layer called twice": lambda m, h: m.b(m.b(h).relu()),
    "a layer and its copy by name": lambda m, h: F.conv2d(h, m.b.weight, padding=1) + m.b(h),
    "functional layers": lambda m, h: F.conv2d(
        input=h, weight=m.b.weight * 2, bias=m.b.bias, stride=1, padding=(1, 1), dilation=1, groups=1
    ),
    "functional, transposed": lambda m, h: F.conv_transpose2d(h, m.up.weight, stride=2)[:, :, ::2, ::2],
    "functional batch norm": lambda m, h: F.batch_norm(
        m.b(h), m.norm.running_mean, m.norm.running_var, m.norm.weight, m.norm.bias, eps=1e-3
    ),
    "batch norm alone": lambda m, h: m.norm(h),
    "two batch norms": lambda m, h: m.norm(m.norm(m.b(h))),
    "down and up": lambda m, h: m.up(m.down(h).relu()),
    "convolution of a convolution": lambda m, h: m.b(m.b(h)),
    "dropout in evaluation mode": lambda m, h: nn.Dropout(0.5).eval()(h),
    "functional dropout": lambda m, h: F.dropout(h, 0.3, False) + F.dropout(h, training=False, inplace=True),
    "dropout2d": lambda m, h: nn.Dropout2d().eval()(h),
    "max pooling": lambda m, h: F.max_pool2d(h, 3, 1, 1),
    "max pooling, ceil_mode": lambda m, h: nn.MaxPool2d(3, 2, ceil_mode=True)(h).repeat(1, 1, 2, 2),
    "max pooling, dilated": lambda m, h: F.pad(F.max_pool2d(h, 2, stride=1, dilation=2), (1, 1, 1, 1)),
    "adaptive max pooling": lambda m, h: F.adaptive_max_pool2d(h, (8, 4)).repeat(1, 1, 1, 2),
    "average pooling": lambda m, h: F.avg_pool2d(h, 3, 1, padding=1),
    "average pooling, padding not counted": lambda m, h: F.avg_pool2d(
        h, 3, 1, 1, ceil_mode=True, count_include_pad=False
    ),
    "adaptive average pooling": lambda m, h: (
        nn.AdaptiveAvgPool2d((3, None))(h).mean(2, keepdim=True).expand(2, 4, 8, 8)
    ),
    "mean over dims": lambda m, h: h - h.mean(dim=(2, 3), keepdim=True),
    ".mean and .sum": lambda m, h: h.mean(1, True).expand_as(h) + h.sum(1, keepdim=True),
    "padding": lambda m, h: F.pad(h, (1, 1, 1, 1))[:, :, 1:-1, 1:-1],
    "padding with a number": lambda m, h: F.pad(h, (2, 0, 0, 2), value=0.7)[:, :, 2:, :-2],
    "padding by reflection": lambda m, h: F.pad(h, (1, 1, 1, 1), mode="reflect")[:, :, :8, :8],
    "nn.ConstantPad2d": lambda m, h: nn.ConstantPad2d((1, 0, 0, 1), -0.3)(h)[:, :, 1:, :-1],
    "nearest interpolation": lambda m, h: F.interpolate(h, scale_factor=2)[:, :, ::2, 1::2],
    "bilinear interpolation": lambda m, h: F.interpolate(h, (4, 12), mode="bilinear", antialias=True)[..., :8].repeat(
        1, 1, 2, 1
    ),
    "bicubic interpolation": lambda m, h: F.interpolate(h, (8, 8), mode="bicubic", align_corners=True),
    "nn.Upsample": lambda m, h: nn.Upsample(scale_factor=2)(h)[..., 4:12, 4:12],
    "pixel shuffle": lambda m, h: F.pixel_unshuffle(F.pixel_shuffle(h, 2), 2),
    "channel shuffle": lambda m, h: F.channel_shuffle(h, 2),
    "where": lambda m, h: torch.where(h > 0.2, h, 0),
    "where, of two": lambda m, h: h.where(MASK.bool(), m.b(h)),
    "where, of a number": lambda m, h: torch.where(MASK.bool(), -0.3, m.b(h)),
    "maximum of two": lambda m, h: torch.maximum(h, m.b(h)),
    "minimum with a constant": lambda m, h: torch.minimum(m.b(h), 0.5 * MASK),
    "max of two": lambda m, h: torch.max(m.b(h), h) + m.b(h).min(h),
    "max over an axis": lambda m, h: h.max(1, keepdim=True)[0].expand(2, 4, 8, 8),
    "amax and amin": lambda m, h: h.amax(1, keepdim=True) + m.b(h).amin((2, 3), keepdim=True) + h,
    "median": lambda m, h: h + m.b(h).median(1, keepdim=True).values,
    "topk": lambda m, h: h.topk(2, 1)[0].repeat(1, 2, 1, 1),
    "sort": lambda m, h: m.b(h).sort(1)[0],
    "cumsum": lambda m, h: m.b(h).cumsum(1),
    "norm": lambda m, h: h + m.b(h).norm(dim=1, keepdim=True),
    "linalg.vector_norm": lambda m, h: h - torch.linalg.vector_norm(m.b(h), dim=1, keepdim=True),
    "triangle": lambda m, h: m.b(h).tril() + h.triu(1),
    "difference along an axis": lambda m, h: F.pad(m.b(h).diff(dim=3), (1, 0)),
    "scatter": lambda m, h: m.b(h).scatter(1, h.argsort(1), h),
    "index_add": lambda m, h: m.b(h).index_add(1, INDEX, h),
    "masked_scatter": lambda m, h: m.b(h).masked_scatter(MASK.bool().expand_as(h), h),
    "a number assigned": assigned,
    "a layer assigned": lambda m, h: assign(m.b(h), (slice(None), slice(0, 2)), h[:, 2:]),
    "a layer assigned to a constant": lambda m, h: assign(torch.full_like(h, 0.4), (slice(None), 1), m.b(h)[:, 0]),
    "an activation assigned to a negative constant": lambda m, h: assign(
        torch.full_like(h, -0.4), (slice(None), slice(1, 4)), m.b(h)[:, 1:].relu()
    ),
    "assigned by a mask": lambda m, h: assign(m.b(h), MASK.bool().expand(2, 4, 8, 8), 0.2),
    "assigned in a loop": assigned_in_a_loop,
    "copy_": lambda m, h: torch.empty_like(h).copy_(m.b(h)),
    "a constant matrix times": lambda m, h: torch.matmul(SQUARE, h) + h @ SQUARE,
    "einsum with a constant": lambda m, h: torch.einsum("ij,nchj->nchi", SQUARE, m.b(h)),
    "einsum with a constant, in a list": lambda m, h: torch.einsum("nchj,ij->nchi", [m.b(h), SQUARE]),
    "bmm with a constant": lambda m, h: torch.bmm(h.flatten(0, 1), SQUARE.expand(8, 8, 8)).view(2, 4, 8, 8),
    "addmm onto a constant": lambda m, h: torch.addmm(SQUARE[0], h.reshape(64, 8), SQUARE, alpha=0.5).view_as(h),
    "baddbmm onto a layer": lambda m, h: torch.baddbmm(
        m.b(h).flatten(0, 1), h.flatten(0, 1), SQUARE.expand(8, 8, 8), beta=0.5
    ).view_as(h),
    "addcmul and addcdiv of constants": lambda m, h: h.addcmul(m.b(h), MASK, value=0.3).addcdiv(h, 1 + MASK),
    "lerp by a number": lambda m, h: torch.lerp(h, m.b(h), 0.3),
    "to a grid": lambda m, h: F.grid_sample(m.b(h), GRID, align_corners=False),
    "unfold and fold": lambda m, h: F.fold(F.unfold(m.b(h), 3, padding=1), (8, 8), 3, padding=1),
    "an unused gate": lambda m, h: (h.softmax(1), m.b(h))[1],
    "questions about values": lambda m, h: h * 2 if bool((h > 1e9).any()) or torch.isnan(h).any() else m.b(h),
    "questions about shape": lambda m, h: h + torch.zeros_like(h) + h.new_ones(h.size(1), 1, 1) * len(h) * h.dim(),
    "hidden in a list": lambda m, h: [h, m.b(h)][1],
    "in a comprehension over items": lambda m, h: torch.cat([m.b(h[i : i + 1]) for i in range(len(h))]),
    "checkpointed": lambda m, h: torch.utils.checkpoint.checkpoint(m.b, h, use_reentrant=False),
    "a block checkpointed": lambda m, h: torch.utils.checkpoint.checkpoint(
        lambda t: F.max_pool2d(m.b(t).relu() * MASK, 3, 1, 1) + m.b(t), h, use_reentrant=False
    ),
    "a print": lambda m, h: (f"{h} {m.b(h)!r}", m.b(h))[1],
}


def between(name: str) -> nn.Module:
    middle = WORKING[name]
    return Functional(lambda m, t: m.head(middle(m, m.a(t).relu()).mean((2, 3))), **parts())


@pytest.mark.parametrize("name", WORKING)
def test_what_models_call_between_layers_works(name):
    model, inputs = between(name), x()
    before = snapshot(model)
    with torch.no_grad():
        wanted_output = model(inputs)

    # LRP-0 is gradient x input, so that the flow along the graph is right ...
    got = lrp.relevance(model, inputs, 2, composite=everywhere(lrp.Epsilon(0)))
    agree(got, gradient_x_input(model, inputs, 2), 1e-9)
    for composite in ("epsilon_plus", "epsilon_alpha2_beta1", everywhere(lrp.Gamma())):
        # ... and what rules see is right: the ledger, computed without shortcuts, gives the same and adds up
        trace = lrp.trace(model, inputs, 2, composite=composite)
        agree(trace.output, wanted_output, 1e-12)
        agree(trace.relevance, lrp.relevance(model, inputs, 2, composite=composite), 1e-9)
        widest = max(row.incoming_abs for row in trace.ledger)
        assert abs(trace.ledger.unaccounted) <= 1e-9 * widest
        assert all(abs(row.unexplained) <= 1e-9 * widest for row in trace.ledger)
    assert same(snapshot(model), before)


@pytest.mark.parametrize("name", WORKING)
def test_a_shortcut_for_activations_that_are_not_negative_is_taken_only_where_they_are_not(name):
    """A layer behind the operation must see the signs of what it really reads."""
    middle = WORKING[name]
    torch.manual_seed(0)  # the weights of the last layer
    model = Functional(lambda m, t: m.last(middle(m, m.a(t).relu())).mean((2, 3)), last=nn.Conv2d(4, 5, 1), **parts())
    seen = []
    model.last.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    zero = lrp.Epsilon(0)
    composite = lrp.Composite(convolution=zero, normalisation=zero, names={"last": lrp.ZPlus()})
    got = lrp.relevance(model, x(), 2, composite=composite)

    # the same by autograd: a layer whose output is (W+ h+ + W- h-) y / z, where y / z is a constant
    def by_hand(t):
        h = middle(model, model.a(t).relu())
        w = model.last.weight
        y = model.last(h)
        z = F.conv2d(h.clamp(min=0), w.clamp(min=0)) + F.conv2d(h.clamp(max=0), w.clamp(max=0))
        return (z * (y / (z + 1e-6)).detach()).mean((2, 3))

    model.last._forward_pre_hooks.clear()
    agree(got, gradient_x_input(by_hand, x(), 2), 1e-9)


def test_all_reading_of_an_in_place_change_sees_it():
    def forward(m, t):
        y = m.a(t)
        alias = y
        y += 1
        return m.head((alias.relu() + y).mean((2, 3)))

    model = Functional(forward, **parts())
    agree(lrp.relevance(model, x(), 2, composite=everywhere(lrp.Epsilon(0))), gradient_x_input(model, x(), 2))


def test_in_place_arithmetic_on_the_input_is_part_of_the_model():
    def forward(m, t):
        t -= 0.5
        t /= 0.25
        t *= MASK[:3]
        return m.head(m.a(t).relu_().mean((2, 3)))

    model, inputs = Functional(forward, **parts()), x()
    before = inputs.clone()
    t = inputs.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(model(t.clone())[:, 2].sum(), t)
    agree(lrp.relevance(model, inputs, 2, composite=everywhere(lrp.Epsilon(0))), wanted * inputs)
    assert torch.equal(inputs, before)
    trace = lrp.trace(model, inputs, 2, composite="epsilon_gamma_box")
    assert abs(trace.ledger.unaccounted) < 1e-9 * max(row.incoming_abs for row in trace.ledger)


SECANTS = {
    "relu6": F.relu6,
    "nn.ReLU6 in place": nn.ReLU6(inplace=True),
    "hardtanh": lambda t: F.hardtanh(t, -0.5, 0.5),
    "leaky_relu": lambda t: F.leaky_relu(t, 0.2),
    "nn.LeakyReLU in place": nn.LeakyReLU(0.1, inplace=True),
    "elu": F.elu,
    "selu": torch.selu,
    "celu": lambda t: F.celu(t, 0.5),
    "silu": F.silu,
    "nn.SiLU in place": nn.SiLU(inplace=True),
    "mish": F.mish,
    "gelu": F.gelu,
    "gelu, tanh": lambda t: F.gelu(t, approximate="tanh"),
    "torch.tanh": torch.tanh,
    ".tanh()": lambda t: t.tanh(),
    "hardswish": F.hardswish,
    "softsign": F.softsign,
    "softshrink": lambda t: F.softshrink(t, 0.1),
    "hardshrink": lambda t: F.hardshrink(t, 0.1),
    "tanhshrink": F.tanhshrink,
    "clamp from zero": lambda t: t.clamp(0, 1),
    "clamp below": lambda t: t.clamp(max=0.2),
    "abs": abs,
    "x ** 2": lambda t: t**2,
    "x ** 3": lambda t: torch.pow(t, 3),
    "square": torch.square,
    "sin": torch.sin,
    "atan": torch.atan,
    "expm1": torch.expm1,
    "erf": torch.erf,
    "prelu": lambda t: F.prelu(t, torch.full((4,), 0.2, dtype=t.dtype)),
    "nn.RReLU": nn.RReLU().eval(),
}

NOT_ZERO_AT_ZERO = {
    "sigmoid": torch.sigmoid,
    ".sigmoid_()": lambda t: t.sigmoid_(),
    "hardsigmoid": F.hardsigmoid,
    "softplus": F.softplus,
    "exp": lambda t: t.exp(),
    "exp2": torch.exp2,
    "2 ** x": lambda t: 2**t,
    "torch.pow(2, x)": lambda t: torch.pow(2, t),
    "cos": torch.cos,
    "cosh": torch.cosh,
    "logsigmoid": F.logsigmoid,
    "clamp above zero": lambda t: t.clamp(min=0.1),
    "threshold": lambda t: F.threshold(t, 0.1, 0.3),
}


@pytest.mark.parametrize("name", SECANTS)
@pytest.mark.parametrize("where", ["behind a layer", "behind a sum"])
def test_an_activation_hands_relevance_on_as_it_is(name, where):
    # one entry in, one entry out: the secant y / x hands all of R on
    g = SECANTS[name]
    model = Functional(
        lambda m, t: m.head(g(m.a(t) if where == "behind a layer" else m.a(t) + m.a(t.flip(3))).mean((2, 3))),
        **parts(),
    )
    nn.init.zeros_(model.head.bias), nn.init.zeros_(model.a.bias)
    inputs = x()
    inputs[:, :, :5, :5] = 0  # patches of exact zeros, where the secant is the slope at zero
    composite = everywhere(lrp.Epsilon(0))
    trace = lrp.trace(model, inputs, 2, composite=composite)
    with torch.no_grad():
        agree(trace.output, model(inputs), 1e-12)
    agree(trace.relevance.flatten(1).sum(1), trace.output[:, 2], 1e-9)
    agree(trace.relevance, lrp.relevance(model, inputs, 2, composite=composite), 1e-9)

    # the same by autograd, with the secant as a constant factor
    def by_hand(t):
        h = model.a(t) if where == "behind a layer" else model.a(t) + model.a(t.flip(3))
        y = g(h.clone())
        return model.head((h * torch.where(h == 0, 0, y / h).detach()).mean((2, 3)))

    agree(trace.relevance, gradient_x_input(by_hand, inputs, 2), 1e-9)


@pytest.mark.parametrize("name", NOT_ZERO_AT_ZERO)
@pytest.mark.parametrize("where", ["behind a layer", "behind a sum"])
def test_what_an_activation_gives_at_zero_is_a_bias(name, where):
    g = NOT_ZERO_AT_ZERO[name]

    def before(t):
        return model.a(t) if where == "behind a layer" else model.a(t) + model.a(t.flip(3))

    model = Functional(lambda m, t: m.head(g(before(t)).mean((2, 3))), **parts())
    nn.init.zeros_(model.head.bias), nn.init.zeros_(model.a.bias)
    inputs = x()
    inputs[:, :, :5, :5] = 0
    composite = everywhere(lrp.Epsilon(0))
    trace = lrp.trace(model, inputs, 2, composite=composite)
    agree(trace.relevance, lrp.relevance(model, inputs, 2, composite=composite), 1e-9)
    with torch.no_grad():
        agree(trace.output, model(inputs), 1e-12)
        at_zero = g(torch.zeros(2, 4, dtype=torch.float64))
        kept = model.head(at_zero)[:, 2]
    agree(trace.relevance.flatten(1).sum(1) + kept, trace.output[:, 2], 1e-9)
    rows = [row for row in trace.ledger if row.rule == "secant"]
    assert len(rows) == 1 and rows[0].bias == pytest.approx(kept.sum().item(), rel=1e-9, abs=1e-9)

    def by_hand(t):
        h = before(t)
        y, y0 = g(h.clone()), at_zero[0, 0]
        return model.head((y0 + h * torch.where(h == 0, 0, (y - y0) / h).detach()).mean((2, 3)))

    agree(trace.relevance, gradient_x_input(by_hand, inputs, 2), 1e-9)


@pytest.mark.parametrize("name", SECANTS)
@pytest.mark.parametrize("middle", [lambda h: h, lambda h: F.avg_pool2d(h, 3, 1, 1), lambda h: h + 0.3 * h.flip(3)])
def test_a_layer_behind_an_activation_sees_its_signs(name, middle):
    g = SECANTS[name]
    torch.manual_seed(0)  # the weights of the last layer
    model = Functional(lambda m, t: m.last(middle(g(m.a(t)))).mean((2, 3)), last=nn.Conv2d(4, 5, 1), **parts())
    composite = lrp.Composite(convolution=lrp.Epsilon(0), names={"last": lrp.ZPlus()})

    def by_hand(t):
        y = model.a(t)
        h = middle(y * torch.where(y == 0, 0, g(y.clone()) / y).detach())
        w = model.last.weight
        z = F.conv2d(h.clamp(min=0), w.clamp(min=0)) + F.conv2d(h.clamp(max=0), w.clamp(max=0))
        return (z * (model.last(h) / (z + 1e-6)).detach()).mean((2, 3))

    agree(lrp.relevance(model, x(), 2, composite=composite), gradient_x_input(by_hand, x(), 2), 1e-9)


@pytest.mark.parametrize("g", [torch.tanh, F.gelu, F.silu, F.hardswish, F.elu, F.leaky_relu, F.relu6, torch.relu])
def test_at_zero_a_secant_is_the_slope_there(g):
    from xaicourse.lrp import operations

    zero = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.grad(g(zero).sum(), zero)[0]
    got = operations.secant(g, torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
    agree(got, slope, 1e-12)
    near = torch.tensor([1e-6, -1e-6, 0.5], dtype=torch.float64)
    agree(operations.secant(g, near, g(near)), g(near) / near, 1e-12)


# models in all forms --------------------------------------------------------------------------------------


def equals(model, inputs, other) -> None:
    for composite in ("epsilon", "epsilon_plus", "epsilon_alpha2_beta1", "epsilon_gamma_box"):
        agree(
            lrp.relevance(model, inputs, 2, composite=composite),
            lrp.relevance(other, inputs, 2, composite=composite),
        )


@pytest.fixture
def plain() -> nn.Module:
    torch.manual_seed(0)
    return randomised(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)))


def test_a_model_may_be_a_plain_function(plain):
    equals(lambda t: plain(t), x(), plain)
    equals(plain.forward, x(), plain)

    def functional(t):
        conv, norm, _, _, linear = plain
        h = torch.conv2d(t, conv.weight, conv.bias)
        h = F.batch_norm(h, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.1, norm.eps)
        return F.linear(torch.flatten(h.relu(), start_dim=1), linear.weight, linear.bias)

    equals(functional, x(), plain)


def test_nesting_makes_no_difference(plain):
    a, b, c, d, e = plain
    equals(
        nn.Sequential(nn.Sequential(a), nn.Sequential(nn.Sequential(b, c)), nn.Sequential(d, nn.Identity(), e)).eval(),
        x(),
        plain,
    )


def test_a_reused_module_is_a_layer_at_each_call():
    p = parts()
    reused = nn.Sequential(
        p["a"], nn.ReLU(), p["b"], nn.ReLU(), p["b"], nn.AdaptiveAvgPool2d(1), nn.Flatten(), p["head"]
    )
    import copy

    unrolled = nn.Sequential(*[copy.deepcopy(module) for module in reused])
    equals(reused.eval(), x(), unrolled.eval())
    trace = lrp.trace(reused, x(), 2)
    assert [row.module for row in trace.ledger if row.function == "conv2d"] == ["0", "2", "2"]
    assert {"1", "2", "2:2"} <= set(trace.layers)


def test_modules_may_share_parameters():
    p = parts()
    tied = nn.Conv2d(4, 4, 3, padding=1).double().eval()
    tied.weight, tied.bias = p["b"].weight, nn.Parameter(torch.ones(4).double())
    strided = nn.Conv2d(4, 4, 3, padding=1, stride=2).double().eval()
    strided.weight, strided.bias = p["b"].weight, p["b"].bias
    model = nn.Sequential(p["a"], nn.ReLU(), p["b"], nn.ReLU(), tied, nn.BatchNorm2d(4), nn.ReLU(), strided, p["norm"])
    model = nn.Sequential(model, nn.AdaptiveAvgPool2d(1), nn.Flatten(), p["head"]).eval()
    import copy

    untied = copy.deepcopy(model)
    for module in untied.modules():
        if isinstance(module, nn.Conv2d):
            module.weight = nn.Parameter(module.weight.detach().clone())
    equals(model, x(), untied)
    equals(model, x(), untied)


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_parametrised_weights_are_weights(plain, norm):
    norm(plain[0]), norm(plain[4])
    plain.eval()
    with torch.no_grad():
        weights = plain[0].weight.clone(), plain[4].weight.clone()
    written_out = randomised(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    )
    state = {k: v for k, v in plain.state_dict().items() if "parametrizations" not in k}
    written_out.load_state_dict({**state, "0.weight": weights[0], "4.weight": weights[1]})
    before = snapshot(plain)
    equals(plain, x(), written_out)
    assert same(snapshot(plain), before)


def test_padding_with_a_constant_is_kept_by_the_constant():
    model = Functional(
        lambda m, t: m.head(m.b(F.pad(m.a(t).relu(), (1, 1, 1, 1), value=2.0)).relu().mean((2, 3))), **parts()
    )
    trace = lrp.trace(model, x(), 2)
    (row,) = [row for row in trace.ledger if row.function == "pad"]
    assert abs(row.bias) > 1e-6 and row.incoming - row.passed == row.bias
    assert abs(trace.ledger.unaccounted) < 1e-12


# what must be refused -------------------------------------------------------------------------------------


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, t):
        return t.numpy() if False else t * 2

    @staticmethod
    def backward(ctx, g):
        return 7 * g


class Opaque(torch.autograd.Function):
    """Nothing in its forward pass that an interception could see."""

    @staticmethod
    def forward(ctx, t):
        with torch._C.DisableTorchFunction():
            return t * 2

    @staticmethod
    def backward(ctx, g):
        return 7 * g


@torch.jit.script
def scripted(t: Tensor) -> Tensor:
    return torch.tanh(t) * 2


def without_grad(m, h):
    with torch.no_grad():
        return m.b(h)


def in_inference_mode(m, h):
    with torch.inference_mode():
        return m.b(h)


def into_a_view(m, h):
    y = m.b(h)
    y[:, :2].relu_()
    return y


def into_a_flat_view(m, h):
    y = m.b(h)
    flat = y.view(2, -1)
    flat += 1
    return y


def into_the_base_of_a_view(m, h):
    y = m.b(h)
    flat = y.view(2, 4, 64)
    y += 1
    return flat.view(2, 4, 8, 8)


def into_one_of_two_views(m, h):
    y = m.b(h)
    a, b = y[:, :3], y[:, 1:]
    del y
    a *= 2
    return torch.cat([a, b[:, 2:]], 1)


def assigned_to_a_view_of_a_constant(m, h):
    y = torch.zeros_like(h)
    y[:, :2][:, 0] = h[:, 0]
    return y + h


def assigned_to_a_view(m, h):
    y = m.b(h)
    y[:, :2][:, 0] = 0
    return y


def into_a_constant(m, h):
    y = torch.zeros_like(h)
    y += m.b(h)
    return y


def into_a_view_of_a_constant(m, h):
    y = torch.zeros_like(h)
    y[:, :2].add_(h[:, :2])
    return y


REFUSED = {
    "torch.fft.fft": (lambda m, h: torch.fft.fft(h).real, "fft"),
    "prod": (lambda m, h: h.prod(1, keepdim=True), "prod"),
    "cumprod": (lambda m, h: h.cumprod(1), "cumprod"),
    "inverse": (lambda m, h: torch.linalg.inv(h), "inv"),
    "1 / x": (lambda m, h: 1 / (1 + h), "(rdiv|reciprocal|rtruediv).* is a gate"),
    "reciprocal": (lambda m, h: (1 + h).reciprocal(), "reciprocal.* is a gate"),
    "x ** -1": (lambda m, h: (1 + h) ** -1, "pow.* is a gate"),
    "x ** 0.5": (lambda m, h: (1 + h) ** 0.5, "pow.* is a gate"),
    "x ** x": (lambda m, h: (1 + h) ** h, "pow"),
    "sqrt": (lambda m, h: h.sqrt(), "sqrt.* is a gate"),
    "rsqrt": (lambda m, h: (1 + h).rsqrt(), "rsqrt.* is a gate"),
    "log": (lambda m, h: (1 + h).log(), "log.* is a gate"),
    "var": (lambda m, h: h + h.var(1, keepdim=True), "var.* is a gate"),
    "std": (lambda m, h: h + h.std(1, keepdim=True), "std.* is a gate"),
    "sign": (lambda m, h: h.sign(), "sign.* is a gate"),
    "softmax": (lambda m, h: F.softmax(h, 1), "softmax.* is a gate: .* relevance reaches it"),
    "softmax in parts": (lambda m, h: torch.cat(F.softmax(h, 1).chunk(2, 1)[::-1], 1), "softmax.* is a gate"),
    "a constant times a softmax": (lambda m, h: 2 * F.softmax(h, 1), "softmax.* is a gate"),
    "batch norm on the batch": (
        lambda m, h: F.batch_norm(h, m.norm.running_mean, m.norm.running_var, training=True),
        "batch_norm.* takes its statistics from the batch",
    ),
    "batch norm without statistics": (
        lambda m, h: nn.BatchNorm2d(4, track_running_stats=False).double().eval()(h),
        "batch_norm.* takes its statistics from the batch",
    ),
    "batch norm with its own weights": (
        lambda m, h: F.batch_norm(h, m.norm.running_mean, m.norm.running_var, h.mean((0, 2, 3))),
        "batch_norm.* depend on the input",
    ),
    "dropout at random": (lambda m, h: F.dropout(h, 0.5), "dropout.* drops entries at random"),
    "attention with dropout": (
        lambda m, h: F.scaled_dot_product_attention(h, h, h, dropout_p=0.5),
        "scaled_dot_product_attention.* at random",
    ),
    "random activation": (lambda m, h: F.rrelu(h, training=True), "rrelu"),
    "a slope of its own": (lambda m, h: F.prelu(h, h.mean().reshape(1)), "prelu.* settings that depend"),
    ".data": (lambda m, h: h.data, "data"),
    ".item()": (lambda m, h: h * h.sum().item(), "item"),
    "float()": (lambda m, h: h * float(h.sum()), "__float__"),
    "int()": (lambda m, h: h * int(h.sum()), "__int__"),
    ".tolist()": (lambda m, h: h + torch.tensor(h.tolist()), "tolist"),
    ".numpy()": (lambda m, h: h + torch.from_numpy(h.numpy()), "numpy"),
    "torch.no_grad": (without_grad, "conv2d.* gradients are switched off"),
    "torch.inference_mode": (in_inference_mode, "conv2d.* gradients are switched off"),
    "to integers": (lambda m, h: h + h.to(torch.long), "to.* integers"),
    "long": (lambda m, h: h + h.long(), "long"),
    "rounding": (lambda m, h: h.round(), "round"),
    "floor": (lambda m, h: h.floor(), "floor"),
    "floor division": (lambda m, h: torch.div(h, 0.1, rounding_mode="floor"), "div.* rounds"),
    "//": (lambda m, h: h // 0.1, "floor"),
    "%": (lambda m, h: h % 0.1, "remainder|mod"),
    "a custom function": (lambda m, h: Doubled.apply(h), "custom autograd function Doubled.*register"),
    "a custom function that hides": (lambda m, h: Opaque.apply(h), "custom autograd function Opaque.*register"),
    "a scripted function": (lambda m, h: scripted(h), "did not come by as a torch function"),
    "an operator by its inner name": (lambda m, h: torch.ops.aten.tanh(h), "aten.tanh"),
    "in place into a slice": (into_a_view, "memory was changed in place"),
    "in place into a view": (into_a_flat_view, "memory was changed in place"),
    "in place into what a view shows": (into_the_base_of_a_view, "memory was changed in place"),
    "in place into one of two views": (into_one_of_two_views, "memory was changed in place"),
    "assignment to a view": (assigned_to_a_view, "memory was changed in place"),
    "assignment to a view of a constant": (assigned_to_a_view_of_a_constant, "__setitem__.* shares"),
    "in place into a view of a constant": (into_a_view_of_a_constant, "add.* changes a constant in place whose memory"),
    "a table that depends on the input": (
        lambda m, h: h + F.embedding(INDEX, h.flatten(2).mean((0, 1))[:, None]).mean(),
        "embedding.* looks up a table",
    ),
}


@pytest.mark.parametrize("explain", [lrp.relevance, lrp.trace])
@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Converting a tensor")
def test_what_nobody_knows_is_refused_by_name_and_place(name, explain):
    middle, message = REFUSED[name]
    block = Functional(lambda m, t: middle(m, m.a(t).relu()), **parts())
    model = nn.Sequential(
        nn.Identity(), nn.Sequential(block), nn.AdaptiveAvgPool2d(1), nn.Flatten(), parts()["head"]
    ).eval()
    before = snapshot(model)
    with pytest.raises(lrp.UnhandledOperation, match=message) as caught:
        explain(model, x(), 2)
    assert same(snapshot(model), before)
    # the module's path; what nobody sees is noticed where it is used, a layer made on the fly has no path
    elsewhere = (
        "batch norm without statistics",
        "a scripted function",
        *(n for n in REFUSED if " view" in n or "slice" in n),
    )
    assert "module '1.0" in str(caught.value) or name in elsewhere


@pytest.mark.parametrize("last", [Opaque.apply, scripted, Doubled.apply])
@pytest.mark.parametrize("explain", [lrp.relevance, lrp.trace])
def test_a_function_that_nobody_sees_is_refused_as_the_last_one_too(last, explain):
    # nothing follows that could notice it
    model = Functional(lambda m, t: last(m.head(m.a(t).relu().mean((2, 3)))), **parts())
    with pytest.raises(lrp.UnhandledOperation):
        explain(model, x(), 2)
    with pytest.raises(lrp.UnhandledOperation):
        explain(
            Functional(lambda m, t: m.head(m.a(t).relu().mean((2, 3))), **parts()),
            x(),
            lambda y: last(y)[:, 2],
        )


def test_a_tensor_computed_beforehand_is_refused():
    p = parts()
    outside = p["b"](torch.randn(2, 4, 8, 8).double())
    model = Functional(lambda m, t: m.head((m.a(t) + outside).mean((2, 3))), **parts())
    with pytest.raises(lrp.UnhandledOperation, match="nor into tensors computed beforehand"):
        lrp.relevance(model, x(), 2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_modules_are_refused_before_they_run(plain):
    for compiled in (torch.compile(plain), nn.Sequential(nn.Identity(), torch.compile(plain))):
        with pytest.raises(lrp.UnhandledOperation, match="is compiled .*OptimizedModule.* compiled from"):
            lrp.relevance(compiled.eval(), x(), 2)
    for compiled in (
        torch.jit.script(plain),
        torch.jit.trace(plain, x()),
        nn.Sequential(torch.jit.script(plain[0]), *plain[1:]),
    ):
        with pytest.raises(lrp.UnhandledOperation, match="is compiled .*compiled from"):
            lrp.relevance(compiled.eval(), x(), 2)
