"""Functions of one's own: how LRP is told what to do with them, and that it is gone afterwards."""

import threading

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xaicourse import lrp

from .networks import Functional, agree, balanced, everywhere, explained_as, gradient_x_input, secant

LRP0 = everywhere(lrp.Epsilon(0))


class Own(torch.autograd.Function):
    """Something that no interception sees into; its gradient is made up, so that LRP cannot have used it by chance."""

    @staticmethod
    def forward(ctx, t):
        with torch._C.DisableTorchFunction():
            return torch.tanh(t) * 2

    @staticmethod
    def backward(ctx, g):
        return 7 * g


class Doubled(Own):
    """Twice its input, and says so."""

    @staticmethod
    def forward(ctx, t):
        return t * 2

    @staticmethod
    def backward(ctx, g):
        return 2 * g


class Times(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved_tensors
        return g * b, g * a


class Shares(torch.autograd.Function):
    """Weights over an axis."""

    @staticmethod
    def forward(ctx, t):
        return torch.softmax(t, 1)

    @staticmethod
    def backward(ctx, g):
        raise AssertionError("nobody asks a gate for its gradient")


@pytest.fixture
def model():
    torch.manual_seed(0)

    def build(middle):
        layers = {n: nn.Linear(4, 4) for n in "ab"}
        torch.manual_seed(0)
        return Functional(lambda m, t: m.head(middle(m.a(t), m.b(t))), **layers, head=nn.Linear(4, 3))

    return build


@pytest.fixture
def registered():
    """lrp.register, undone after the test."""
    known = []

    def register(function, rule):
        lrp.register(function, rule)
        known.append(function)

    yield register
    for function in set(known):
        lrp.unregister(function)


def x(seed: int = 0) -> Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# each rule by name -----------------------------------------------------------------------------------------------


def test_by_its_gradient(model, registered):
    registered(Doubled, "gradient")
    m = model(lambda u, v: Doubled.apply(u) + v)
    explained_as(m, lambda t: m.head(2 * m.a(t) + m.b(t)), x())


def test_by_its_secant(model, registered):
    registered(Own, "secant")
    m = model(lambda u, v: Own.apply(u) + v)
    explained_as(m, lambda t: m.head(secant(lambda u: 2 * torch.tanh(u), m.a(t)) + m.b(t)), x())


def test_as_a_product(model, registered):
    registered(Times, "product")

    def half(t):
        return (t + t.detach()) / 2

    m = model(lambda u, v: Times.apply(u, v))
    explained_as(m, lambda t: m.head(half(m.a(t)) * half(m.b(t))), x())
    m = model(lambda u, v: Times.apply(u, v.sigmoid()))
    explained_as(m, lambda t: m.head(m.a(t) * m.b(t).sigmoid().detach()), x())


def test_as_a_gate(model, registered):
    registered(Shares, "gate")
    m = model(lambda u, v: u * Shares.apply(v))
    explained_as(m, lambda t: m.head(m.a(t) * m.b(t).softmax(1).detach()), x())
    with pytest.raises(lrp.UnhandledOperation, match="Shares.*is a gate"):
        lrp.relevance(model(lambda u, v: u + Shares.apply(v)), x(), 1)


def test_as_a_constant(model, registered):
    registered(Own, "constant")
    m = model(lambda u, v: Own.apply(u) + v)
    trace = lrp.trace(m, x(), 1, composite=LRP0)
    agree(trace.relevance, gradient_x_input(lambda t: m.head(2 * torch.tanh(m.a(t)).detach() + m.b(t)), x(), 1))
    assert abs(trace.ledger.unaccounted) < 1e-9


def test_in_known_terms(model, registered):
    registered(Own, lambda t: torch.tanh(t) * 2)
    m = model(lambda u, v: Own.apply(u) + v)
    explained_as(m, lambda t: m.head(2 * secant(torch.tanh, m.a(t)) + m.b(t)), x())
    rows = lrp.trace(m, x(), 1).ledger
    assert any(row.function.endswith("Own: tanh") for row in rows)


def test_a_later_registration_replaces_an_earlier_one(model, registered):
    m = model(lambda u, v: Doubled.apply(u) + v)
    registered(Doubled, "gate")
    with pytest.raises(lrp.UnhandledOperation, match="Doubled"):
        lrp.relevance(m, x(), 1)
    registered(Doubled, "gradient")
    agree(lrp.relevance(m, x(), 1, composite=LRP0), gradient_x_input(m, x(), 1))


def test_forgotten_it_is_refused_again(model):
    m = model(lambda u, v: Doubled.apply(u) + v)
    lrp.register(Doubled, "gradient")
    lrp.relevance(m, x(), 1)
    lrp.unregister(Doubled)
    with pytest.raises(
        lrp.UnhandledOperation, match=r"custom autograd function Doubled.*lrp.register\(Doubled, rule\)"
    ):
        lrp.relevance(m, x(), 1)
    with pytest.raises(ValueError, match="function must have been registered, got .*Doubled"):
        lrp.unregister(Doubled)


def test_a_torch_function_can_be_given_another_rule_and_has_its_own_again_afterwards(model):
    m = model(lambda u, v: torch.tanh(u) + v)
    before = lrp.relevance(m, x(), 1, composite=LRP0)
    lrp.register(torch.tanh, "gradient")
    try:
        agree(lrp.relevance(m, x(), 1, composite=LRP0), gradient_x_input(m, x(), 1))
    finally:
        lrp.unregister(torch.tanh)
    assert torch.equal(lrp.relevance(m, x(), 1, composite=LRP0), before)
    lrp.register(torch.fft.fft, lambda t: torch.stack([t, t], -1))
    lrp.unregister(torch.fft.fft)


@pytest.mark.parametrize(
    ("function", "rule", "error", "message"),
    [
        (3, "gradient", TypeError, "function must be callable, got int"),
        (
            Own,
            "tangent",
            ValueError,
            "rule must be one of gradient, product, secant, gate, constant or a function, got 'tangent'",
        ),
        (Own, None, TypeError, "rule must be a name or a function, got NoneType"),
        (Own, 1.0, TypeError, "rule must be a name or a function, got float"),
    ],
)
def test_what_cannot_be_registered(function, rule, error, message):
    with pytest.raises(error, match=message):
        lrp.register(function, rule)
    with pytest.raises(lrp.UnhandledOperation):
        lrp.relevance(lambda t: Own.apply(t), x(), 1)


# operators ---------------------------------------------------------------------------------------------------------


@torch.library.custom_op("xaicourse_tests::smooth", mutates_args=())
def smooth(t: Tensor) -> Tensor:
    return t.sinh().clone()


smooth.register_autograd(lambda ctx, g: 7 * g)


@torch.library.custom_op("xaicourse_tests::mix", mutates_args=())
def mix(a: Tensor, b: Tensor) -> Tensor:
    return a * b


mix.register_autograd(
    lambda ctx, g: (g * ctx.saved_tensors[1], g * ctx.saved_tensors[0]),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)

OPERATORS = {"the definition": smooth, "the packet": torch.ops.xaicourse_tests.smooth}


@pytest.mark.parametrize("how", OPERATORS)
def test_an_operator_is_refused_until_it_is_registered(how, model):
    called = OPERATORS[how]
    m = model(lambda u, v: called(u) + v)
    with pytest.raises(lrp.UnhandledOperation, match="smooth"):
        lrp.relevance(m, x(), 1)
    key = torch.ops.xaicourse_tests.smooth.default if how == "the definition" else torch.ops.xaicourse_tests.smooth
    keys = [torch.ops.xaicourse_tests.smooth.default, torch.ops.xaicourse_tests.smooth]
    assert key in keys
    for rule in ("secant", torch.sinh):
        for k in keys:
            lrp.register(k, rule)
        try:
            explained_as(m, lambda t: m.head(secant(torch.sinh, m.a(t)) + m.b(t)), x())
        finally:
            for k in keys:
                lrp.unregister(k)


def test_an_operator_of_two_is_a_product(model, registered):
    registered(torch.ops.xaicourse_tests.mix, "product")
    m = model(lambda u, v: torch.ops.xaicourse_tests.mix(u, v.sigmoid()))
    explained_as(m, lambda t: m.head(m.a(t) * m.b(t).sigmoid().detach()), x())


def test_a_builtin_operator_by_its_inner_name(model, registered):
    registered(torch.ops.aten.tanh, "secant")
    m = model(lambda u, v: torch.ops.aten.tanh(u) + v)
    explained_as(m, lambda t: m.head(secant(torch.tanh, m.a(t)) + m.b(t)), x())


# the world afterwards ----------------------------------------------------------------------------------------------


def applies() -> tuple:
    return tuple(vars(owner).get("apply") for owner in (torch.autograd.Function, Own, Doubled))


def test_functions_apply_as_before_after_an_explanation(model):
    before = applies()
    lrp.relevance(model(lambda u, v: u + v), x(), 1)
    assert applies() == before
    with pytest.raises(lrp.UnhandledOperation):
        lrp.relevance(model(lambda u, v: Own.apply(u)), x(), 1)
    assert applies() == before

    def breaks(u, v):
        raise RuntimeError("a model that breaks")

    with pytest.raises(RuntimeError, match="a model that breaks"):
        lrp.trace(model(breaks), x(), 1)
    assert applies() == before
    t = x().requires_grad_()
    assert torch.equal(torch.autograd.grad(Own.apply(t).sum(), t)[0], 7 * torch.ones_like(t))


def test_functions_of_constants_run_as_they_are(model):
    m = model(lambda u, v: u * Own.apply(torch.ones(4).double()) + v)
    explained_as(m, lambda t: m.head(m.a(t) * 2 * torch.tanh(torch.ones(4).double()) + m.b(t)), x())


def test_an_explanation_within_an_explanation_is_refused_and_leaves_no_trace(model, registered):
    registered(Doubled, "gradient")
    inner = model(lambda u, v: Doubled.apply(u) - v)
    wanted, before = lrp.relevance(inner, x(1), 1), applies()

    def middle(u, v):
        with pytest.raises(lrp.UnhandledOperation, match="explains something itself"):
            lrp.relevance(inner, x(1), 1)
        return Doubled.apply(u) + v  # seen by the one outside all the same

    outer = model(middle)
    got = lrp.relevance(outer, x(), 1, composite=LRP0)
    agree(got, gradient_x_input(lambda t: outer.head(2 * outer.a(t) + outer.b(t)), x(), 1))
    assert torch.equal(lrp.relevance(inner, x(1), 1), wanted)
    assert applies() == before


def test_another_thread_applies_functions_meanwhile(model):
    before, wrong, entered, done = applies(), [], threading.Event(), threading.Event()

    def work():
        entered.wait(30)
        try:
            for _ in range(20):
                t = x().requires_grad_()
                (g,) = torch.autograd.grad(Own.apply(t).sum(), t)
                wrong.append(not torch.equal(g, 7 * torch.ones_like(t)))
        except Exception as error:  # told to the test below, which runs in another thread
            wrong.append(error)
        finally:
            done.set()

    def middle(u, v):
        entered.set()
        assert done.wait(30)
        return u + v

    thread = threading.Thread(target=work)
    thread.start()
    lrp.relevance(model(middle), x(), 1)
    thread.join()
    assert len(wrong) == 20 and not any(wrong)
    assert applies() == before


def test_explanations_in_many_threads_leave_functions_as_they_were(model, registered):
    registered(Doubled, "gradient")
    m = model(lambda u, v: Doubled.apply(u) + v)
    wanted, before = lrp.relevance(m, x(), 1), applies()
    barrier, results = threading.Barrier(4), []

    def work():
        barrier.wait()
        for _ in range(10):
            try:
                results.append(lrp.relevance(m, x(), 1))
            except Exception as error:
                results.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [r for r in results if not isinstance(r, Tensor)] == []
    assert len(results) == 40 and all(torch.allclose(r, wanted, rtol=1e-12) for r in results)
    assert applies() == before


# functions of others -----------------------------------------------------------------------------------------------


def test_a_function_inside_of_a_known_one_names_its_caller(model):
    def middle(u, v):
        return F.multi_head_attention_forward(
            u[:, None], u[:, None], u[:, None], 4, 2, torch.ones(12, 4).double(), None, None, None, False, 0.5,
            torch.ones(4, 4).double(), None, training=True,
        )[0][:, 0]  # fmt: skip

    with pytest.raises(lrp.UnhandledOperation, match="dropout|scaled_dot.*called by .*multi_head_attention_forward"):
        lrp.relevance(model(middle), x(), 1)


def test_a_function_inside_of_a_registered_one_names_its_caller(model, registered):
    registered(Own, lambda t: torch.fft.fft(t).real)
    with pytest.raises(lrp.UnhandledOperation, match=r"fft.*\(called by .*Own\)"):
        lrp.relevance(model(lambda u, v: Own.apply(u)), x(), 1)


def test_compiled_functions_are_seen_through(model):
    @torch.compile(backend="eager")
    def compiled(u, v):
        return u * torch.sigmoid(v)

    m = model(compiled)
    explained_as(m, lambda t: m.head(m.a(t) * m.b(t).sigmoid().detach()), x())
    with torch.no_grad():  # and is compiled afterwards as before
        agree(compiled(x(), x(1)), x() * torch.sigmoid(x(1)), 1e-12)


def test_what_a_compiled_function_calls_and_nobody_knows_is_refused(model):
    @torch.compile(backend="eager")
    def compiled(u):
        return torch.fft.fft(u).real

    with pytest.raises(lrp.UnhandledOperation, match="fft"):
        lrp.relevance(model(lambda u, v: compiled(u)), x(), 1)


def test_a_registered_function_balances_its_ledger(model, registered):
    registered(Own, "secant")
    registered(Times, "product")
    m = model(lambda u, v: Times.apply(Own.apply(u), torch.sigmoid(v)) + v)
    for composite in ("epsilon_plus", "epsilon_alpha2_beta1", LRP0):
        balanced(lrp.trace(m, x(), 1, composite=composite))
