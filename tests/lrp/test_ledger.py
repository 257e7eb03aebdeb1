"""The ledger: where relevance went, operation by operation, and how it is shown."""

import math

import pytest
import torch
from torch import nn

from xaicourse import lrp

from .networks import Functional, agree, everywhere, network, photographs, randomised


def neuron(weights: list[float], bias: float = 0.0) -> nn.Module:
    layer = nn.Linear(len(weights), 1).double().eval()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([weights]))
        layer.bias.fill_(bias)
    return layer


ONES = torch.ones(1, 2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("rule", "weights", "bias", "wanted"),
    [
        # (incoming, passed, bias, stabiliser, dead end) for x = (1, 1) and R = y
        (lrp.Epsilon(0), (3, -1), 1, (3, 2, 1, 0, 0)),
        (lrp.Epsilon(1), (3, -1), 1, (3, 1.5, 0.75, 0.75, 0)),
        (lrp.Epsilon(0, bias=False), (3, -1), 1, (3, 3, 0, 0, 0)),
        (lrp.ZPlus(epsilon=0), (3, -1), 1, (3, 3, 0, 0, 0)),
        (lrp.ZPlus(epsilon=0, bias=True), (3, -1), 1, (3, 2.25, 0.75, 0, 0)),
        (lrp.ZPlus(epsilon=0), (-3, -1), 6, (2, 0, 0, 0, 2)),
        (lrp.ZPlus(epsilon=1), (3, -1), 1, (3, 2.25, 0, 0.75, 0)),
        (lrp.AlphaBeta(1, epsilon=0), (3, -1), 1, (3, 3, 0, 0, 0)),
        (lrp.AlphaBeta(1, epsilon=0), (3, 1), 1, (5, 10, 0, 0, -5)),  # nothing negative: -R has nowhere to go
        (lrp.AlphaBeta(1, epsilon=0), (-3, -1), 6, (2, -2, 0, 0, 4)),  # nothing positive: nor has 2 R
        (lrp.AlphaBeta(1, epsilon=0, bias=True), (3, -1), 1, (3, 1.5, 1.5, 0, 0)),
        (lrp.AlphaBeta(1, epsilon=0, bias=True), (3, -1), -1, (1, 1.5, -0.5, 0, 0)),
        (lrp.Gamma(1, epsilon=0, bias=True), (2, -1), 1, (2, 1.2, 0.8, 0, 0)),
        (lrp.ZBox(0, 2, epsilon=0), (3, -1), 1, (3, 3, 0, 0, 0)),
        (lrp.WSquare(epsilon=0, bias=True), (3, -4), 5, (4, 2, 2, 0, 0)),
        (lrp.Flat(epsilon=1), (3, -1), 1, (3, 2, 0, 1, 0)),
    ],
)
def test_a_row_says_where_the_relevance_of_a_neuron_went(rule, weights, bias, wanted):
    ledger = lrp.trace(neuron(weights, bias), ONES, 0, composite=everywhere(rule)).ledger
    row = ledger[0]
    assert (row.incoming, row.passed, row.bias, row.stabiliser, row.dead_end) == pytest.approx(wanted, abs=1e-12)
    assert row.unexplained == pytest.approx(0, abs=1e-12)
    assert ledger.output == pytest.approx(wanted[0]) and ledger.input == pytest.approx(wanted[1])
    assert ledger.unaccounted == pytest.approx(0, abs=1e-12)


def test_a_row_shows_how_much_is_hidden_in_a_sum():
    ledger = lrp.trace(neuron([101.0, -100.0]), ONES, 0, composite=everywhere(lrp.Epsilon(0))).ledger
    assert (ledger[0].incoming, ledger[0].passed) == pytest.approx((1, 1))
    assert (ledger[0].incoming_abs, ledger[0].passed_abs) == pytest.approx((1, 201))


def test_rows_stand_in_the_order_of_the_calls_with_module_function_and_rule():
    model, x = network("small"), photographs(1, 32)
    rows = lrp.trace(model, x, 3).ledger
    assert [(row.module, row.function) for row in rows] == [
        ("0", "conv2d + batch_norm"), ("2", "relu"), ("3", "conv2d"), ("4", "relu"), ("5", "max_pool2d"),
        ("6", "conv2d + batch_norm"), ("8", "relu"), ("9", "adaptive_avg_pool2d"), ("10", "flatten"),
        ("11", "linear"), ("12", "relu"), ("13", "linear"),
    ]  # fmt: skip
    assert {row.rule for row in rows if row.function == "relu"} == {"gradient"}
    assert {row.rule for row in rows if row.function == "linear"} == {repr(lrp.Epsilon())}
    assert {row.rule for row in rows if "conv2d" in row.function} == {repr(lrp.ZPlus())}


def test_what_one_row_passes_comes_in_at_the_next():
    rows = lrp.trace(network("small"), photographs(2, 32), 3).ledger
    for lower, upper in zip(rows, rows[1:], strict=False):
        assert lower.incoming == pytest.approx(upper.passed, rel=1e-9)


def test_an_addition_shares_relevance_out_in_proportion_to_its_terms():
    model = Functional(lambda m, x: m.a(x) + m.b(x), a=neuron([3.0, 0.0]), b=neuron([1.0, 0.0]))
    trace = lrp.trace(model, ONES, 0, composite=everywhere(lrp.Epsilon(0)))
    rows = {row.module: row for row in trace.ledger}
    assert (rows["a"].incoming, rows["b"].incoming, rows[""].incoming, rows[""].passed) == pytest.approx((3, 1, 4, 4))
    agree(trace.layers["a"], torch.tensor([[3.0]]).double())
    agree(trace.layers["b"], torch.tensor([[1.0]]).double())


def test_layers_hold_the_relevance_of_each_modules_output():
    model, x = network("small"), photographs(2, 32)
    trace = lrp.trace(model, x, 3)
    shapes = {}
    for name, module in model.named_children():
        module.register_forward_hook(lambda m, i, o, name=name: shapes.update({name: o.shape}))
    model(x)
    for name, relevance in trace.layers.items():
        if name:
            assert relevance.shape == shapes[name] and not relevance.requires_grad
    rows = {row.module: row for row in trace.ledger}
    for name in ("5", "9", "10", "11"):
        assert trace.layers[name].sum().item() == pytest.approx(rows[name].incoming, rel=1e-9)
    one_hot = torch.zeros(2, 10).double()
    one_hot[:, 3] = trace.output[:, 3]
    agree(trace.layers["13"], one_hot)
    agree(trace.layers[""], one_hot)


def test_layers_agree_with_the_textbook_tier():
    from xaicourse.lrp import reference

    torch.manual_seed(0)
    layers = [
        nn.Conv2d(1, 3, 3),
        nn.ReLU(),
        nn.Conv2d(3, 2, 2, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8, 3),
    ]
    model = nn.Sequential(*layers).double().eval()
    x = torch.randn(1, 1, 6, 6, dtype=torch.float64)
    trace = lrp.trace(model, x, 1, composite=everywhere(lrp.AlphaBeta(1)))
    wanted = reference.sequential(layers, x[0], 1, lambda w, b, x, r: reference.alpha_beta(w, b, x, r, beta=1))
    agree(trace.relevance[0], wanted[0])
    for i, r in enumerate(wanted[1:]):
        agree(trace.layers[str(i)][0], r)


@pytest.mark.parametrize(("value", "kept"), [(0.0, False), (0.7, True), (1.0, True)])
def test_the_ledger_follows_a_padded_input_into_a_first_layer(value, kept):
    # zB leaves zero padding out, as a convolution that pads by itself does; another constant takes a share
    model = Functional(
        lambda m, x: m.c(torch.nn.functional.pad(x, (1, 1, 1, 1), value=value)).relu().mean((2, 3)),
        c=nn.Conv2d(3, 4, 3),
    )
    trace = lrp.trace(model, photographs(2, 8), 0, composite="epsilon_gamma_box")
    pad, conv = trace.ledger[0], trace.ledger[1]
    assert pad.function == "pad" and pad.incoming == pytest.approx(conv.passed)
    assert (abs(pad.bias) > 1e-6) == kept
    assert trace.ledger.unaccounted == pytest.approx(0, abs=1e-12)
    assert trace.ledger.input == pytest.approx(pad.passed)


def test_a_result_that_nobody_uses_has_no_relevance():
    model = Functional(lambda m, x: m.b(m.a(x).chunk(2, 1)[1]), a=nn.Linear(4, 6), b=nn.Linear(3, 2))
    trace = lrp.trace(model, torch.rand(2, 4).double(), 0)
    assert trace.ledger.unaccounted == pytest.approx(0, abs=1e-12)
    pieces = Functional(
        lambda m, x: (m.one(m.a(x)), m.b(x))[1], a=nn.Linear(4, 6), one=nn.Identity(), b=nn.Linear(4, 2)
    )
    trace = lrp.trace(pieces, torch.rand(2, 4).double(), 0)
    assert not trace.layers.get("one", torch.zeros(1)).any()


def test_a_ledger_is_a_sequence_with_totals():
    ledger = lrp.trace(network("small"), photographs(1, 32), 3).ledger
    assert len(ledger) == len(list(ledger)) == 12
    assert isinstance(ledger[0], lrp.Row) and ledger[-1].module == "13"
    assert ledger.total("bias") == pytest.approx(math.fsum(row.bias for row in ledger))
    with pytest.raises(AttributeError):
        ledger.total("profit")


def test_a_ledger_prints_every_row_and_its_balance():
    ledger = lrp.trace(network("small"), photographs(1, 32), 3).ledger
    text = str(ledger)
    assert len(text.splitlines()) == len(ledger) + 3
    assert "conv2d + batch_norm" in text and f"output {ledger.output:.6g} = input {ledger.input:.6g}" in text
    html = ledger._repr_html_()
    assert html.count("<tr>") == len(ledger) + 2 and "unaccounted" in html


def test_names_in_the_html_are_escaped():
    ledger = lrp.Ledger([lrp.Row("<script>", "f", "r")], 0.0, 0.0)
    assert "<script>" not in ledger._repr_html_()


def test_a_trace_does_not_keep_the_graph_alive():
    import gc
    import weakref

    model, x = network("small"), photographs(1, 32)
    kept = []
    model[8].register_forward_hook(lambda m, i, o: kept.append(weakref.ref(o)))
    trace = lrp.trace(model, x, 3)
    gc.collect()
    assert kept and all(ref() is None for ref in kept)
    assert trace.relevance.grad_fn is None and all(r.grad_fn is None for r in trace.layers.values())


def test_padding_with_minus_infinity_before_a_max_pooling_has_no_relevance():
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ConstantPad2d((0, 1, 0, 1), -torch.inf)))
    network = nn.Sequential(*model, nn.MaxPool2d(3, 2), nn.Flatten(), randomised(nn.Linear(36, 5))).double().eval()
    trace = lrp.trace(network, torch.rand(2, 3, 8, 8, dtype=torch.float64), 1)
    assert abs(trace.ledger.unaccounted) < 1e-9 * abs(trace.ledger.output)
    assert all(bool(R.isfinite().all()) for R in trace.layers.values())
