"""Words: indices that an embedding reads. What its rows get is summed over their features."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xaicourse import lrp

from .networks import Functional, agree, balanced, everywhere, gradient_x_input

LRP0 = everywhere(lrp.Epsilon(0))
VOCABULARY, STEPS, WIDTH = 11, 6, 4


def tokens(items: int = 3, steps: int = STEPS, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCABULARY, (items, steps), generator=torch.Generator().manual_seed(seed))


def parts(**more: nn.Module) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        "embedding": nn.Embedding(VOCABULARY, WIDTH),
        "second": nn.Embedding(VOCABULARY, WIDTH),
        "layer": nn.Linear(WIDTH, WIDTH),
        "head": nn.Linear(WIDTH, 3),
        **more,
    }


def rest(m: nn.Module, rows: Tensor) -> Tensor:
    """Rows (N, T, WIDTH) to scores, with every step in a part of its own."""
    return m.head((m.layer(rows).relu() * torch.arange(1, rows.shape[1] + 1)[:, None]).sum(1))


def given_rows(m: Functional, rows: Tensor, after=rest) -> Tensor:
    """What the rows get, by gradient x input of all that follows the embedding."""
    return gradient_x_input(lambda t: after(m, t), rows.detach(), 1).sum(-1)


def explained(model: nn.Module, words: Tensor, wanted: Tensor) -> lrp.Trace:
    trace = lrp.trace(model, words, 1, composite=LRP0)
    with torch.no_grad():
        agree(trace.output, model(words), 1e-12)
    assert trace.relevance.dtype == torch.float64 and trace.relevance.shape == words.shape
    agree(trace.relevance, wanted)
    agree(lrp.relevance(model, words, 1, composite=LRP0), trace.relevance, 1e-12)
    balanced(trace)
    assert trace.ledger.input == pytest.approx(trace.relevance.sum().item(), rel=1e-12)
    return trace


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_a_word_has_the_relevance_of_its_row(dtype):
    model, words = Functional(lambda m, t: rest(m, m.embedding(t)), **parts()), tokens().to(dtype)
    before = words.clone()
    trace = explained(model, words, given_rows(model, model.embedding(words)))
    agree(trace.layers["embedding"].sum(-1), trace.relevance, 1e-12)
    assert torch.equal(words, before)
    missing = trace.output[:, 1].sum().item() - trace.relevance.sum().item()
    assert trace.ledger.total("bias") == pytest.approx(missing, rel=1e-9)


MOVED = {
    "reversed": lambda t: t.flip(1),
    "a slice": lambda t: t[:, 1:4],
    "every other": lambda t: t[:, ::2],
    "an index": lambda t: t[:, torch.tensor([3, 0, 0, 5])],
    "joined": lambda t: torch.cat([t, t[:, :2]], 1),
    "with a token of its own first": lambda t: torch.cat([torch.full((len(t), 1), 7), t], 1),
    "padded": lambda t: F.pad(t, (0, 2), value=1),
    "reshaped": lambda t: t.reshape(len(t), 2, 3).transpose(1, 2).flatten(1),
    "viewed": lambda t: t.view(-1).view(t.shape),
    "stacked": lambda t: torch.stack(t.unbind(1)[::-1], 1),
    "chunks": lambda t: torch.cat(t.chunk(2, 1)[::-1], 1),
    "rolled": lambda t: torch.roll(t, 1, 1),
    "repeated": lambda t: t.repeat(1, 2),
    "as int": lambda t: t.int(),
    "as long": lambda t: t.to(torch.long),
    ".long()": lambda t: t.long(),
    "contiguous clone": lambda t: t.clone().contiguous(),
    "clamped": lambda t: t.clamp(1, 5),
    "shifted": lambda t: t.clamp(max=VOCABULARY - 2) + 1,
    "masked": lambda t: t.masked_fill(t == 3, 0),
    "where": lambda t: torch.where(t > 5, t, 2),
    "gathered": lambda t: t.gather(1, torch.tensor([[5, 1, 2]]).expand(len(t), -1)),
}


@pytest.mark.parametrize("name", MOVED)
def test_words_may_be_moved_about_before_they_are_read(name):
    move, words = MOVED[name], tokens()
    model = Functional(lambda m, t: rest(m, m.embedding(move(t))), **parts())
    read = move(words)
    of_rows = given_rows(model, model.embedding(read))
    # the same move of the places that words come from; what a constant has written is nobody's
    if name in ("as int", "as long", ".long()", "contiguous clone", "clamped", "shifted"):
        wanted = of_rows
    elif name == "masked":
        wanted = of_rows.masked_fill(words == 3, 0)
    elif name == "where":
        wanted = of_rows * (words > 5)
    else:
        places = torch.arange(1, words.numel() + 1).view(words.shape)
        came_from = move(places)
        written = (move(torch.zeros_like(places)) != 0) | (came_from == 0)
        flat = torch.zeros(words.numel() + 1, dtype=torch.float64)
        came_from = came_from.masked_fill(written, 0)
        wanted = flat.index_add(0, came_from.flatten().long(), of_rows.flatten())[1:].view(words.shape)
    trace = lrp.trace(model, words, 1, composite=LRP0)
    agree(trace.relevance, wanted)
    agree(lrp.relevance(model, words, 1, composite=LRP0), trace.relevance, 1e-12)
    with torch.no_grad():
        agree(trace.output, model(words), 1e-12)


def test_an_embedding_by_function_and_by_name():
    model = Functional(lambda m, t: rest(m, F.embedding(input=t, weight=m.embedding.weight * 2)), **parts())
    explained(model, tokens(), given_rows(model, 2 * model.embedding(tokens())))
    model = Functional(lambda m, t: rest(m, torch.embedding(m.embedding.weight, t)), **parts())  # the other way round
    explained(model, tokens(), given_rows(model, model.embedding(tokens())))


def test_several_embeddings_of_the_same_words_add_up():
    def forward(m, t):
        positions = m.second(torch.arange(t.shape[1]))
        return rest(m, m.embedding(t) + 0.5 * m.second(t.flip(1)) + positions)

    model, words = Functional(forward, **parts()), tokens()
    first, second = model.embedding(words).detach(), model.second(words.flip(1)).detach()
    positions = model.second(torch.arange(STEPS)).detach()
    of_first = given_rows(model, first, lambda m, t: rest(m, t + 0.5 * second + positions))
    of_second = given_rows(model, second, lambda m, t: rest(m, first + 0.5 * t + positions)).flip(1)
    trace = explained(model, words, of_first + of_second)
    agree(trace.layers["embedding"].sum(-1), of_first)


def test_words_and_their_neighbours_in_a_convolution():
    def forward(m, t):
        return m.head(m.conv(m.embedding(t).mT).relu().amax(2))

    model, words = Functional(forward, **parts(conv=nn.Conv1d(WIDTH, WIDTH, 3, padding=1))), tokens()
    wanted = given_rows(model, model.embedding(words), lambda m, t: m.head(m.conv(t.mT).relu().amax(2)))
    explained(model, words, wanted)
    for composite in ("epsilon_plus", everywhere(lrp.Gamma()), "epsilon_alpha2_beta1"):
        trace = lrp.trace(model, words, 1, composite=composite)
        agree(trace.relevance, trace.layers["embedding"].sum(-1), 1e-12)
        balanced(trace)


@pytest.mark.parametrize(("mode", "weighted"), [("sum", False), ("sum", True), ("mean", False), ("max", False)])
def test_a_bag_of_words(mode, weighted):
    weights = (
        torch.rand(3, STEPS, generator=torch.Generator().manual_seed(4), dtype=torch.float64) if weighted else None
    )
    model = Functional(
        lambda m, t: m.head(m.layer(m.bag(t, per_sample_weights=weights)).relu()),
        **parts(bag=nn.EmbeddingBag(VOCABULARY, WIDTH, mode=mode)),
    )
    words = torch.stack(
        [torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(i))[:STEPS] for i in range(3)]
    )
    rows = F.embedding(words, model.bag.weight).detach()

    def after(m, t):
        t = t if weights is None else t * weights[..., None]
        return m.head(m.layer({"sum": t.sum, "mean": t.mean, "max": t.amax}[mode](1)).relu())

    explained(model, words, given_rows(model, rows, after))


def test_padding_is_masked_and_gets_nothing():
    def forward(m, t):
        mask = t != 0
        rows = m.embedding(t).masked_fill(~mask[..., None], 0)
        return m.head(m.layer(rows).relu().sum(1) / mask.sum(1, keepdim=True))

    model = Functional(forward, **parts(embedding=nn.Embedding(VOCABULARY, WIDTH, padding_idx=0)))
    words = tokens()
    words[0, 4:] = 0
    words[2, 1:] = 0
    trace = lrp.trace(model, words, 1, composite=LRP0)
    assert torch.equal(trace.relevance == 0, words == 0)
    balanced(trace)


def test_places_that_are_counted_from_words_are_constants():
    """As RoBERTa counts: padding has place 0, and words begin with 1."""

    def forward(m, t):
        is_word = t.ne(0)
        places = torch.cumsum(is_word, 1).type_as(is_word.long()) * is_word
        return rest(m, m.embedding(t) + m.second(places))

    model, words = Functional(forward, **parts()), tokens()
    with torch.no_grad():
        places = model.second(words.ne(0).cumsum(1) * words.ne(0))
    explained(model, words, given_rows(model, model.embedding(words), lambda m, t: rest(m, t + places)))


class Language(nn.Module):
    """Tokens, positions, an attention with a padding mask, a head on the first token."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.words, self.places = nn.Embedding(VOCABULARY, 8, padding_idx=0), nn.Embedding(STEPS, 8)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.double().eval()

    def forward(self, t: Tensor) -> Tensor:
        padding = t.eq(0)
        places = torch.arange(t.size(1), device=t.device).unsqueeze(0).expand_as(t)
        h = self.norm(self.words(t) + self.places(places))
        return self.head(self.encoder(h, src_key_padding_mask=padding)[:, 0])


@pytest.mark.parametrize("composite", ["epsilon", "attention", LRP0])
def test_a_language_model_with_padding(composite):
    model, words = Language(), tokens().clamp(min=1)
    words[1, 3:] = 0
    trace = lrp.trace(model, words, 2, composite=composite)
    with torch.no_grad():
        agree(trace.output, model(words), 1e-12)
    agree(trace.relevance, trace.layers["words"].sum(-1), 1e-12)
    agree(lrp.relevance(model, words, 2, composite=composite), trace.relevance)
    agree(trace.relevance[1, 3:], torch.zeros(3).double(), 1e-12)
    balanced(trace)


def test_words_in_a_recurrent_network_up_to_their_ends():
    model = Functional(
        lambda m, t: m.head(m.layer(m.rnn(m.embedding(t))[0][:, -1]).relu()),
        **parts(rnn=nn.GRU(WIDTH, WIDTH, batch_first=True)),
    )
    trace = lrp.trace(model, tokens(), 1, composite=LRP0)
    agree(trace.relevance, trace.layers["embedding"].sum(-1), 1e-12)
    balanced(trace)


def test_a_target_for_each_item_and_scores_of_ones_own():
    model, words = Functional(lambda m, t: rest(m, m.embedding(t)), **parts()), tokens()
    both = lrp.relevance(model, words, torch.tensor([0, 1, 2]), composite=LRP0)
    for n in range(3):
        agree(both[n : n + 1], lrp.relevance(model, words[n : n + 1], n, composite=LRP0))
    difference = lrp.relevance(model, words, lambda y: y[:, 0] - y[:, 2], composite=LRP0)
    agree(difference, lrp.relevance(model, words, 0, composite=LRP0) - lrp.relevance(model, words, 2, composite=LRP0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_relevance_of_words_has_the_dtype_of_the_weights(dtype):
    model = Functional(lambda m, t: rest(m, m.embedding(t)), **parts()).to(dtype)
    got = lrp.relevance(model, tokens(), 1, composite=LRP0)
    assert got.dtype == dtype
    agree(got, lrp.relevance(model.double(), tokens(), 1, composite=LRP0), {8: 1e-9, 4: 1e-4}.get(dtype.itemsize, 0.1))


# what must be refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("explain", [lrp.relevance, lrp.trace])
@pytest.mark.parametrize(
    ("forward", "name"),
    [
        (lambda m, t: m.conv(t[:, None]).flatten(1), "conv1d"),
        (lambda m, t: m.layer(t[:, :4]), "linear"),
        (lambda m, t: rest(m, m.embedding(t) * t[..., None]), "mul"),
        (lambda m, t: rest(m, m.embedding(t) + t.double()[..., None]), "double"),
        (lambda m, t: m.head(t.float()[:, :4]), "float"),
        (lambda m, t: m.layer(t[:, :4] / 3), "div"),
        (lambda m, t: rest(m, F.one_hot(t, VOCABULARY).double() @ m.embedding.weight), None),
        (lambda m, t: rest(m, m.embedding(t.sort(1)[0])), None),
    ],
)
def test_whole_numbers_that_are_no_words_are_refused(forward, name, explain):
    model = Functional(forward, **parts(conv=nn.Conv1d(1, 3, 3)))
    errors = TypeError if name else (TypeError, lrp.UnhandledOperation, ValueError)
    with pytest.raises(errors, match=f"inputs must have a float dtype, or be indices.*{name}" if name else None):
        explain(model, tokens(), 1)


def test_a_model_that_never_looks_its_words_up_is_refused():
    model = Functional(lambda m, t: m.head(m.second.weight[: len(t)]) + (t > 3).sum() * m.head.bias, **parts())
    with pytest.raises((TypeError, ValueError), match="embedding|does not depend on the inputs"):
        lrp.relevance(model, tokens(), 1)


def test_an_embedding_that_changes_as_it_is_read_is_refused():
    model = Functional(lambda m, t: rest(m, F.embedding(t, m.embedding.weight, max_norm=0.5)), **parts())
    before = model.embedding.weight.clone()
    with pytest.raises(lrp.UnhandledOperation, match="max_norm"):
        lrp.relevance(model, tokens(), 1)
    assert torch.equal(model.embedding.weight, before)
