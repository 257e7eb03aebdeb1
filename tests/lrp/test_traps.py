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
