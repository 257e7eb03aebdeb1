"""Ways in which a model can work with its tensors behind the engine's back; each gave a wrong map in silence once."""

import contextlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from xaicourse import lrp

LRP_0 = lrp.Composite(convolution=lrp.Epsilon(0), linear=lrp.Epsilon(0), normalisation=lrp.Epsilon(0))


def _layers() -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    return tuple(nn.Linear(4, 4).double().eval() for _ in range(3))  # type: ignore[return-value]


A, B, C = _layers()
DROPOUT = nn.Dropout().eval()


def _looks_under_no_grad(x: Tensor) -> Tensor:
    h = A(x)
    with torch.no_grad():
        keep = (h > 0).double()
    return C(x + h * keep)


def _looks_in_inference_mode(x: Tensor) -> Tensor:
    h = A(x)
    with torch.inference_mode():
        assert not torch.isnan(h).any()
    return C(h)


def _changes_what_dropout_returned(x: Tensor) -> Tensor:
    h = A(x)
    out = DROPOUT(h)
    out += x
    return C(out + h)  # h is the same tensor as out


def _casts_to_the_same_type_and_changes(x: Tensor) -> Tensor:
    y = A(x)
    z = y.double()
    y.mul_(2)
    return C(z)


def _checkpoints_an_activation(x: Tensor) -> Tensor:
    return C(checkpoint(lambda y: F.relu(y), A(x) + 0.0, use_reentrant=False))


def _lends_its_form_to_a_constant(x: Tensor) -> Tensor:
    scale, shift = torch.arange(1.0, 5.0), torch.ones(1, 1).double()
    return C(A(x) * scale.to(x).expand_as(x) + shift.expand_as(x))


WORKING = [
    _looks_under_no_grad,
    _looks_in_inference_mode,
    _changes_what_dropout_returned,
    _checkpoints_an_activation,
    _lends_its_form_to_a_constant,
]


@pytest.mark.parametrize("model", WORKING, ids=lambda f: f.__name__.strip("_"))
def test_lrp_0_is_still_gradient_x_input(model: Callable[[Tensor], Tensor]):
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    wanted = torch.autograd.grad(model(x)[:, 1].sum(), x)[0] * x.detach()
    torch.testing.assert_close(lrp.relevance(model, x, 1, composite=LRP_0), wanted)
    trace = lrp.trace(model, x, 1, composite=LRP_0)
    torch.testing.assert_close(trace.relevance, wanted)
    torch.testing.assert_close(trace.output, model(x.detach()))
    assert abs(trace.ledger.unaccounted) < 1e-12
    assert all(abs(row.unexplained) < 1e-12 for row in trace.ledger)


def test_an_alias_by_a_cast_that_does_nothing_is_followed_or_refused():
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    model = _casts_to_the_same_type_and_changes
    wanted = torch.autograd.grad(model(x)[:, 1].sum(), x)[0] * x.detach()
    for explain in (lrp.relevance, lambda *args, **settings: lrp.trace(*args, **settings).relevance):
        try:
            torch.testing.assert_close(explain(model, x, 1, composite=LRP_0), wanted)
        except lrp.UnhandledOperation as error:
            assert "memory" in str(error) or "differ" in str(error)


@pytest.mark.parametrize("look", [lambda y: bool(torch.isnan(y).any()), lambda y: y * 2], ids=["query", "use"])
@pytest.mark.parametrize("before", [True, False])
def test_whether_somebody_looked_does_not_decide_whether_a_batch_norm_is_merged(
    look: Callable[[Tensor], object], before: bool
):
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 5, 3).double().eval(), nn.BatchNorm2d(5).double().eval()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.rand(2, 3, 6, 6, dtype=torch.float64)

    def model(x: Tensor) -> Tensor:
        y = conv(x)
        if before:
            look(y)
        z = norm(y)
        if not before:
            look(y)
        return z.relu().flatten(1).sum(1, keepdim=True)

    plain = nn.Sequential(conv, norm)
    wanted = lrp.relevance(lambda x: plain(x).relu().flatten(1).sum(1, keepdim=True), x, 0)
    torch.testing.assert_close(lrp.relevance(model, x, 0), wanted)


def test_a_placeholder_that_escapes_is_never_taken_for_numbers():
    def model(x: Tensor) -> Tensor:
        y = A(x)
        return C(x) + nn.Parameter(y, requires_grad=False)

    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for explain in (lrp.relevance, lrp.trace):
        with pytest.raises((ValueError, lrp.UnhandledOperation)):
            explain(model, x, 1)


def test_a_batch_norm_whose_weights_depend_on_the_input_is_refused():
    mean, var = torch.zeros(3), torch.ones(3)
    conv = nn.Conv2d(3, 3, 1).eval()

    def model(x: Tensor) -> Tensor:
        return F.batch_norm(conv(x), mean, var, weight=x[0, :, 0, 0]).flatten(1)

    with pytest.raises(lrp.UnhandledOperation, match="depend on the input"):
        lrp.relevance(model, torch.rand(2, 3, 4, 4), 0)


def test_a_batch_norms_weight_is_not_taken_for_its_bias():
    torch.manual_seed(0)
    mean, var, t = torch.zeros(3), torch.ones(3), torch.tensor([0.5, 2.0, -1.0])
    conv = nn.Conv2d(3, 3, 1).eval()
    x = torch.rand(2, 3, 4, 4)
    for settings in ({"weight": t}, {"bias": t}):

        def model(x: Tensor, settings: dict[str, Tensor] = settings) -> Tensor:
            return F.batch_norm(conv(x), mean, var, **settings).flatten(1)

        torch.testing.assert_close(lrp.trace(model, x, 0).output, model(x).detach(), rtol=1e-5, atol=1e-6)


def test_an_exception_that_the_model_catches_does_not_move_what_comes_after_to_another_module():
    class Boom(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("boom")

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.boom, self.weight = Boom(), nn.Parameter(torch.ones(2, 4))

        def forward(self, x: Tensor) -> Tensor:
            with contextlib.suppress(ValueError):
                self.boom(x)
            return F.linear(x, self.weight)

    (row,) = lrp.trace(Model().eval(), torch.rand(1, 4), 0).ledger
    assert row.module == ""


def test_a_trace_refuses_a_model_that_changes_from_call_to_call():
    calls = [0]

    def model(x: Tensor) -> Tensor:
        calls[0] += 1
        return A(x) * calls[0]

    with pytest.raises(lrp.UnhandledOperation, match="differ"):
        lrp.trace(model, torch.rand(1, 4).double(), 0)


# what a reviewer found --------------------------------------------------------------------------------------

W = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
X = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def _refills_a_mask(x: Tensor) -> Tensor:
    mask, out = torch.zeros(4, dtype=x.dtype), 0
    for k in range(4):
        mask.zero_()
        mask[k] = 1.0
        out = out + (x * mask) * (k + 1.0)
    return out @ W.T


def _decays_a_weight(x: Tensor) -> Tensor:
    w = W.clone()
    y = F.linear(x, w) + 0
    w.mul_(0.5)
    return y


def _decays_a_weight_between_calls(x: Tensor) -> Tensor:
    w, ys = W.clone(), []
    for _ in range(3):
        ys.append(F.linear(x, w))
        w.mul_(0.5)
    return sum(ys)


def _maps(x: Tensor) -> Tensor:
    return F.linear(x, W) + torch.vmap(lambda row: (W @ row).tanh())(x)


def _changes_through_a_detached_tensor(x: Tensor) -> Tensor:
    h = x @ W.T
    h.detach().clamp_(min=0)
    return h + 0


def _pools_by_logsumexp(x: Tensor) -> Tensor:
    return (torch.logsumexp(x, 1, keepdim=True) + x) @ W.T


def _writes_into_out(x: Tensor) -> Tensor:
    return torch.add(x @ W.T, 1, out=torch.zeros(2, 3, dtype=x.dtype))


def _differentiates(x: Tensor) -> Tensor:
    return (x * 2 + torch.autograd.grad((x.tanh() ** 2).sum(), x, create_graph=True)[0]) @ W.T


def _changes_its_own_shape(x: Tensor) -> Tensor:
    h = x @ W.T
    h.unsqueeze_(1)
    return h[:, 0]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (_refills_a_mask, "changes a tensor in place after it has used it"),
        (_decays_a_weight, "weight of its linear was changed in place"),
        (_decays_a_weight_between_calls, "weight of its linear was changed in place"),
        (_maps, "works within torch.func"),
        (_changes_through_a_detached_tensor, "through a detached one"),
        (_pools_by_logsumexp, "logsumexp.* is a gate"),
        (_writes_into_out, "given as out"),
        (_differentiates, "no rule for grad"),
        (_changes_its_own_shape, "unsqueeze_"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
@pytest.mark.parametrize("explain", [lrp.relevance, lrp.trace])
def test_what_would_be_wrong_in_silence_is_refused(explain, model, message):
    with pytest.raises(lrp.UnhandledOperation, match=message):
        explain(model, X, 1)


def _gelu_spelled_out(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


@pytest.mark.parametrize(
    ("spelled_out", "built_in"),
    [
        (_gelu_spelled_out, lambda h: F.gelu(h, approximate="tanh")),
        (lambda h: h * F.relu6(h + 3) / 6, F.hardswish),
        (lambda h: h * torch.clamp(h + 3, 0, 6) / 6, F.hardswish),
        (lambda h: h * (1 + torch.erf(h / 2**0.5)) / 2, F.gelu),
    ],
    ids=["gelu_new", "h_swish", "h_swish by clamp", "gelu"],
)
def test_a_gate_that_is_spelled_out_is_a_gate(spelled_out, built_in):
    got = lrp.relevance(lambda x: spelled_out(x @ W.T), X, 1, composite=LRP_0)
    torch.testing.assert_close(got, lrp.relevance(lambda x: built_in(x @ W.T), X, 1, composite=LRP_0))


def test_words_read_from_a_table_by_an_index_are_embedded():
    torch.manual_seed(0)
    a, b = nn.Embedding(10, 4).double(), nn.Embedding(10, 4).double()
    words = torch.randint(0, 10, (2, 5))
    got = lrp.trace(lambda t: (a(t) + b.weight[t]).sum(1) @ W.T, words, 1, composite=LRP_0)
    wanted = lrp.relevance(lambda t: (a(t) + b(t)).sum(1) @ W.T, words, 1, composite=LRP_0)
    torch.testing.assert_close(got.relevance, wanted)
    assert abs(got.ledger.unaccounted) < 1e-5
    with pytest.raises(TypeError, match="one_hot .*reads integers as numbers"):
        lrp.relevance(lambda t: (a(t) + F.one_hot(t, 10).double() @ b.weight).sum(1) @ W.T, words, 1)


def test_arguments_of_a_quotient_by_name_have_their_roles():
    by_name = lrp.relevance(lambda x: torch.addcdiv(x, tensor1=x, tensor2=x.detach() + 9) @ W.T, X, 1, composite=LRP_0)
    by_place = lrp.relevance(lambda x: torch.addcdiv(x, x, x.detach() + 9) @ W.T, X, 1, composite=LRP_0)
    torch.testing.assert_close(by_name, by_place)


def test_buffers_that_a_forward_pass_assigns_anew_are_put_back():
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3).double()
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("seen", torch.zeros(2, 4).double())

        def forward(self, x: Tensor) -> Tensor:
            self.calls = self.calls + 1
            self.seen.data.copy_(x)
            return self.linear(x)

    model = Counter().eval()
    calls, seen = model.calls, model.seen
    lrp.trace(model, X, 1)
    assert model.calls is calls and model.seen is seen
    assert calls == 0 and (seen == 0).all()


@pytest.mark.parametrize(
    "model",
    [
        lambda x: torch.zeros(2, 3, dtype=x.dtype).add_(x @ W.T),
        lambda x: torch.zeros(2, 3, dtype=x.dtype).index_add_(0, torch.tensor([1, 0]), x @ W.T),
        lambda x: (lambda h: h + h[:, torch.tensor([2, 0, 1])].add_(1.0))(x @ W.T),
        lambda x: F.dropout(x @ W.T, p=0.0, training=True),
        lambda x: (lambda v, m: ((x - m) / torch.sqrt(v + 1e-5)) @ W.T)(*torch.var_mean(x, 1, keepdim=True)),
    ],
    ids=["add_", "index_add_", "advanced indexing copies", "dropout of nothing", "var_mean"],
)
def test_common_ways_to_work_in_place_are_explained(model):
    trace = lrp.trace(model, X, 1, composite=LRP_0)
    torch.testing.assert_close(trace.output, model(X.clone()))
    torch.testing.assert_close(trace.relevance, lrp.relevance(model, X, 1, composite=LRP_0))
    assert abs(trace.ledger.unaccounted) < 1e-9


@pytest.mark.parametrize(
    "gate",
    [
        lambda z: 0.5 * torch.tanh(0.5 * z) + 0.5,
        lambda z: torch.tanh(z) + torch.ones(()),
        lambda z: F.hardtanh(z) + 1,
        lambda z: (z.clamp(-3, 3) + 3) / 6,
        lambda z: 1 + F.softsign(z),
        lambda z: 1 + torch.erf(z),
    ],
    ids=["sigmoid by tanh", "plus a tensor", "hardtanh + 1", "hard sigmoid by clamp", "softsign", "erf"],
)
@pytest.mark.parametrize(
    "layer", [lambda x: F.linear(x, W), lambda x: x @ W.T], ids=["behind a layer", "behind a product"]
)
def test_a_gate_steers_in_a_relevance_and_in_a_trace_alike(gate, layer):
    def model(x: Tensor) -> Tensor:
        return F.linear(x, W) * gate(layer(x))

    def held(x: Tensor) -> Tensor:
        return F.linear(x, W) * gate(layer(x)).detach()

    wanted = lrp.relevance(held, X, 1, composite=LRP_0)
    torch.testing.assert_close(lrp.relevance(model, X, 1, composite=LRP_0), wanted)
    torch.testing.assert_close(lrp.trace(model, X, 1, composite=LRP_0).relevance, wanted)


def test_what_is_clipped_below_only_or_is_the_input_is_no_gate():
    for signal in (lambda x: (x @ W.T + 0.1).clamp(min=0), lambda x: (x * 0.5 + 0.5).clamp(0, 1) @ W.T):
        by_halves = lrp.relevance(lambda x, s=signal: (x @ W.T) * s(x), X, 1, composite=LRP_0)
        held = lrp.relevance(lambda x, s=signal: (x @ W.T) * s(x).detach(), X, 1, composite=LRP_0)
        assert not torch.allclose(by_halves, held)


def test_broadcasting_with_a_constant_loses_nothing():
    constant = torch.ones(1, 3, dtype=torch.float64)

    def model(x: Tensor) -> Tensor:
        a, b = torch.broadcast_tensors(constant, x @ W.T)
        return a + b

    torch.testing.assert_close(
        lrp.relevance(model, X, 1, composite=LRP_0), lrp.relevance(lambda x: x @ W.T + constant, X, 1, composite=LRP_0)
    )
