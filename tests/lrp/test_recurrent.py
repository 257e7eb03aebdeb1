"""Recurrent layers: the same as a loop of linear layers, gates and sums that is written out here once more."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import rnn

from xaicourse import lrp

from .networks import Functional, agree, balanced, everywhere, gradient_x_input, secant

LRP0 = everywhere(lrp.Epsilon(0))
KINDS = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "rnn_tanh": nn.RNN,
    "rnn_relu": lambda *a, **k: nn.RNN(*a, **k, nonlinearity="relu"),
}
CELLS = {
    "lstm": nn.LSTMCell,
    "gru": nn.GRUCell,
    "rnn_tanh": nn.RNNCell,
    "rnn_relu": lambda *a, **k: nn.RNNCell(*a, **k, nonlinearity="relu"),
}
ITEMS, STEPS, INPUTS, HIDDEN = 3, 5, 4, 3


def words(dtype=torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(ITEMS, STEPS, INPUTS, generator=torch.Generator().manual_seed(seed)).to(dtype)


# the loop, by definition ----------------------------------------------------------------------------------------


def sigma(t: Tensor) -> Tensor:
    """A gate is a constant."""
    return torch.sigmoid(t).detach()


def tanh(t: Tensor) -> Tensor:
    return secant(torch.tanh, t)


def step(
    kind: str, x: Tensor, state: tuple, w_x: Tensor, w_h: Tensor, b_x: Tensor | None, b_h: Tensor | None, w_r=None
):
    """PyTorch's equations, from its documentation, with a detach around each gate."""
    h = state[0]
    of_x, of_h = x @ w_x.T, h @ w_h.T
    if b_x is not None:
        of_x, of_h = of_x + b_x, of_h + b_h
    if kind == "lstm":
        i, f, g, o = (of_x + of_h).chunk(4, -1)
        c = sigma(f) * state[1] + sigma(i) * tanh(g)
        h = sigma(o) * tanh(c)
        return (h if w_r is None else h @ w_r.T), c
    if kind == "gru":
        (r_x, z_x, n_x), (r_h, z_h, n_h) = of_x.chunk(3, -1), of_h.chunk(3, -1)
        r, z = sigma(r_x + r_h), sigma(z_x + z_h)
        return ((1 - z) * tanh(n_x + r * n_h) + z * h,)
    return ((tanh if kind == "rnn_tanh" else torch.relu)(of_x + of_h),)


def by_hand(kind: str, layer: nn.RNNBase, item: Tensor, state: tuple | None = None) -> tuple[Tensor, tuple]:
    """One sequence (T, F), one step after the other, layer by layer and direction by direction."""
    outputs, finals = item, []
    for k in range(layer.num_layers):
        directions = []
        for d in range(2 if layer.bidirectional else 1):
            names = [f"weight_ih_l{k}", f"weight_hh_l{k}", f"bias_ih_l{k}", f"bias_hh_l{k}", f"weight_hr_l{k}"]
            weights = [getattr(layer, name + ("_reverse" if d else ""), None) for name in names]
            if not layer.bias:
                weights[2:4] = [None, None]
            n = k * (2 if layer.bidirectional else 1) + d
            width = layer.proj_size or layer.hidden_size
            now = (
                tuple(s[n] for s in state)
                if state
                else (item.new_zeros(width), item.new_zeros(layer.hidden_size))[: 2 if kind == "lstm" else 1]
            )
            seen = []
            for x in reversed(outputs) if d else outputs:
                now = step(kind, x, now, *weights)
                seen.append(now[0])
            directions.append(torch.stack(seen[::-1] if d else seen))
            finals.append(now)
        outputs = torch.cat(directions, -1)
    return outputs, tuple(torch.stack(parts) for parts in zip(*finals, strict=True))


class Tagger(nn.Module):
    """A recurrent layer and a head that reads its outputs and its final states."""

    def __init__(self, kind: str, dtype=torch.float64, **settings):
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.layer = KINDS[kind](INPUTS, HIDDEN, **settings)
        directions = 2 if self.layer.bidirectional else 1
        wide = self.layer.proj_size or HIDDEN
        states = directions * self.layer.num_layers
        self.head = nn.Linear(directions * wide + states * (wide + (HIDDEN if kind == "lstm" else 0)), 3)
        self.to(dtype).eval()

    def read(self, outputs: Tensor, finals: tuple) -> Tensor:
        """outputs (N, T, C), finals (L, N, C)"""
        weights = torch.arange(1, outputs.shape[1] + 1).to(outputs)
        return self.head(
            torch.cat([torch.einsum("t,ntc->nc", weights, outputs), *(f.transpose(0, 1).flatten(1) for f in finals)], 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        outputs, final = self.layer(x if self.layer.batch_first else x.transpose(0, 1))
        finals = final if isinstance(final, tuple) else (final,)
        return self.read(outputs if self.layer.batch_first else outputs.transpose(0, 1), finals)

    def by_hand(self, x: Tensor) -> Tensor:
        results = [by_hand(self.kind, self.layer, item) for item in x]
        finals = tuple(torch.stack(parts, 1) for parts in zip(*(f for _, f in results), strict=True))
        return self.read(torch.stack([y for y, _ in results]), finals)


SETTINGS = {
    "plain": {},
    "batch_first": {"batch_first": True},
    "no bias": {"bias": False, "batch_first": True},
    "two layers": {"num_layers": 2},
    "both ways": {"bidirectional": True, "batch_first": True},
    "two layers both ways": {"num_layers": 2, "bidirectional": True, "dropout": 0.3},
    "projected": {"proj_size": 2, "batch_first": True},
    "projected, two layers both ways": {"proj_size": 2, "num_layers": 2, "bidirectional": True, "bias": False},
}
CASES = [(k, s) for k in KINDS for s in SETTINGS if k == "lstm" or "projected" not in s]


@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_a_recurrent_layer_is_explained_as_its_loop_with_constant_gates(kind, settings):
    model, x = Tagger(kind, **SETTINGS[settings]), words()
    trace = lrp.trace(model, x, 1, composite=LRP0)
    with torch.no_grad():
        agree(trace.output, model(x), 1e-12)
        agree(model.by_hand(x), trace.output, 1e-12)
    agree(trace.relevance, gradient_x_input(model.by_hand, x, 1), 1e-9)
    agree(lrp.relevance(model, x, 1, composite=LRP0), trace.relevance, 1e-12)
    balanced(trace)


@pytest.mark.parametrize(("kind", "settings"), CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_all_that_a_recurrent_layer_returns_is_what_pytorch_returns(kind, settings, dtype, tolerance):
    model, x = Tagger(kind, dtype, **SETTINGS[settings]), words(dtype)

    def everything(t):
        y, final = model.layer(t if model.layer.batch_first else t.transpose(0, 1))
        y = y if model.layer.batch_first else y.transpose(0, 1)
        finals = final if isinstance(final, tuple) else (final,)
        return torch.cat([y.flatten(1), *(f.transpose(0, 1).flatten(1) for f in finals)], 1)

    with torch.no_grad():
        agree(lrp.trace(everything, x, 0).output, everything(x), tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_to_begin_with_takes_its_part(kind):
    model = Tagger(kind, num_layers=2, bidirectional=True)
    begin = torch.randn(2, 4, ITEMS, HIDDEN, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    states = tuple(begin) if kind == "lstm" else (begin[0],)

    def constant_state(x):
        outputs, final = model.layer(x.transpose(0, 1), states if kind == "lstm" else states[0])
        return model.read(outputs.transpose(0, 1), final if kind == "lstm" else (final,))

    def as_loop(x, states=states):
        results = [by_hand(kind, model.layer, item, tuple(s[:, n] for s in states)) for n, item in enumerate(x)]
        finals = tuple(torch.stack(parts, 1) for parts in zip(*(f for _, f in results), strict=True))
        return model.read(torch.stack([y for y, _ in results]), finals)

    trace = lrp.trace(constant_state, words(), 1, composite=LRP0)
    agree(trace.relevance, gradient_x_input(as_loop, words(), 1))
    balanced(trace)

    def encode(x):  # a decoder that begins where an encoder ended
        return x.mean(1)[:, :HIDDEN].expand(4, -1, -1)

    def own_state(x):
        h = encode(x)
        outputs, final = model.layer(x.transpose(0, 1), (h, 2 * h) if kind == "lstm" else h)
        return model.read(outputs.transpose(0, 1), final if kind == "lstm" else (final,))

    trace = lrp.trace(own_state, words(), 1, composite=LRP0)
    wanted = gradient_x_input(lambda x: as_loop(x, (encode(x), 2 * encode(x))[: len(states)]), words(), 1)
    agree(trace.relevance, wanted)
    balanced(trace)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", ["plain", "two layers both ways", "projected, two layers both ways"])
@pytest.mark.parametrize("lengths", [[5, 2, 3], [1, 5, 5], [4, 4, 4]])
def test_packed_sequences_are_explained_item_by_item_up_to_their_ends(kind, settings, lengths):
    if "projected" in settings and kind != "lstm":
        settings = "both ways"
    model, x = Tagger(kind, **{**SETTINGS[settings], "batch_first": True}), words()
    long = max(lengths)

    def packed(t):
        steps = rnn.pack_padded_sequence(t, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
        outputs, final = model.layer(steps)
        outputs, ends = rnn.pad_packed_sequence(outputs, batch_first=True)
        assert ends.tolist() == lengths
        return model.read(outputs, final if kind == "lstm" else (final,))

    def as_loops(t):
        results = [by_hand(kind, model.layer, item[:n]) for item, n in zip(t, lengths, strict=True)]
        finals = tuple(torch.stack(parts, 1) for parts in zip(*(f for _, f in results), strict=True))
        padded = [nn.functional.pad(y, (0, 0, 0, long - len(y))) for y, _ in results]
        return model.read(torch.stack(padded), finals)

    trace = lrp.trace(packed, x, 1, composite=LRP0)
    with torch.no_grad():
        agree(trace.output, packed(x), 1e-12)
        agree(as_loops(x), trace.output, 1e-12)
    agree(trace.relevance, gradient_x_input(as_loops, x, 1))
    balanced(trace)
    for item, n in zip(trace.relevance, lengths, strict=True):
        assert torch.equal(item[n:], torch.zeros_like(item[n:]))  # padding is no word


@pytest.mark.parametrize("kind", KINDS)
def test_packed_sequences_that_are_sorted_already_are_the_same(kind):
    model, x = Tagger(kind, batch_first=True), words()

    def packed(enforce_sorted):
        def forward(t):
            steps = rnn.pack_padded_sequence(t, [5, 4, 2], batch_first=True, enforce_sorted=enforce_sorted)
            return model.head(
                torch.cat([model.layer(steps)[1][0].reshape(len(t), -1)] * 3, 1)[:, : model.head.in_features]
            )

        return forward

    settings = {"composite": LRP0, "start": torch.ones(ITEMS).double()}
    agree(
        lrp.relevance(lambda t: packed(True)(t).mean(1, keepdim=True), x, 0, **settings),
        lrp.relevance(lambda t: packed(False)(t).mean(1, keepdim=True), x, 0, **settings),
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", CELLS)
def test_a_layer_is_a_loop_of_its_cell(kind, bias):
    torch.manual_seed(0)
    layer = KINDS[kind](INPUTS, HIDDEN, bias=bias, batch_first=True).double().eval()
    cell = CELLS[kind](INPUTS, HIDDEN, bias=bias).double().eval()
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in layer.state_dict().items()})
    own = Functional(lambda m, t: torch.stack([by_hand(kind, layer, item)[0][-1] for item in t]))

    def loop(m, t):
        state = None
        for x in t.unbind(1):
            state = m.cell(x, state)
        return state[0] if kind == "lstm" else state

    as_cells = Functional(loop, cell=cell)
    as_layer = Functional(lambda m, t: m.layer(t)[0][:, -1], layer=layer)
    with torch.no_grad():
        agree(lrp.trace(as_cells, words(), 1).output, as_layer(words()), 1e-12)
    wanted = gradient_x_input(own, words(), 1)
    for model in (as_cells, as_layer):
        trace = lrp.trace(model, words(), 1, composite=LRP0)
        agree(trace.relevance, wanted)
        balanced(trace)
    for composite in (
        "epsilon",
        everywhere(lrp.Gamma()),
        everywhere(lrp.ZPlus()),
    ):  # all rules reach the weights inside
        agree(*(lrp.relevance(m, words(), 1, composite=composite) for m in (as_cells, as_layer)))


class OwnCell(nn.Module):
    """An LSTM as somebody writes it: a concatenation, one layer for each gate."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        wide = INPUTS + HIDDEN
        self.forget, self.add, self.out, self.new = (nn.Linear(wide, HIDDEN) for _ in range(4))
        self.head = nn.Linear(HIDDEN, 3)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        h = c = torch.zeros(len(x), HIDDEN).to(x)
        for t in range(x.shape[1]):
            both = torch.cat([x[:, t], h], 1)
            c = torch.sigmoid(self.forget(both)) * c + torch.sigmoid(self.add(both)) * torch.tanh(self.new(both))
            h = torch.sigmoid(self.out(both)) * torch.tanh(c)
        return self.head(h)


def test_an_lstm_of_ones_own_is_an_lstm():
    own = OwnCell()
    layer = nn.LSTM(INPUTS, HIDDEN, batch_first=True).double().eval()
    gates = [own.add, own.forget, own.new, own.out]  # in PyTorch's order: i, f, g, o
    with torch.no_grad():
        layer.weight_ih_l0.copy_(torch.cat([g.weight[:, :INPUTS] for g in gates]))
        layer.weight_hh_l0.copy_(torch.cat([g.weight[:, INPUTS:] for g in gates]))
        layer.bias_ih_l0.copy_(torch.cat([g.bias for g in gates]))
        layer.bias_hh_l0.zero_()
    model = Functional(lambda m, t: m.head(m.layer(t)[0][:, -1]), layer=layer, head=own.head)
    traces = [lrp.trace(m, words(), 1, composite=LRP0) for m in (own, model)]
    agree(traces[1].output, traces[0].output, 1e-12)
    agree(traces[1].relevance, traces[0].relevance)
    for trace in traces:
        balanced(trace)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_without_biases_signal_takes_all_conserves_where_gradient_x_input_does_not(kind):
    model, x = Tagger(kind, bias=False, num_layers=2, bidirectional=True), 2 * words()
    model.head.bias.data.zero_()
    trace = lrp.trace(model, x, 1, composite=LRP0)
    agree(trace.relevance.flatten(1).sum(1), trace.output[:, 1])
    plain = gradient_x_input(model, x, 1).flatten(1).sum(1)
    assert ((plain - trace.output[:, 1]).abs() > 1e-3 * trace.output[:, 1].abs()).all()


def test_biases_keep_what_is_missing_and_the_ledger_names_the_layer():
    model, x = Tagger("lstm", num_layers=2), words()
    trace = lrp.trace(model, x, 1, composite=LRP0)
    missing = trace.output[:, 1].sum().item() - trace.relevance.sum().item()
    assert abs(missing) > 1e-3
    assert trace.ledger.total("bias") == pytest.approx(missing, rel=1e-9)
    inside = [row for row in trace.ledger if row.module == "layer" and row.function.startswith("lstm: ")]
    assert (
        len([row for row in inside if row.function == "lstm: linear"]) == 2 * STEPS
    )  # one at the state for each step but the first, one at the inputs


def test_one_item_alone_is_explained_as_in_its_batch():
    model, x = Tagger("gru", num_layers=2, bidirectional=True), words()
    together = lrp.relevance(model, x, 1)
    for n in range(ITEMS):
        agree(lrp.relevance(model, x[n : n + 1], 1)[0], together[n], 1e-9)
