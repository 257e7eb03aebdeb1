"""Short film reviews that the course writes itself, a network that reads them, and ways to take words away (lecture 06).

A grammar writes reviews of one or two clauses, such as *although the plot is predictable the acting is never wooden*. What
the writer thinks of the film follows from the sentence as a whole: "not", "hardly" or "anything but" turn an adjective round,
and of two clauses that disagree the main one decides. So no word says by itself whether a review is good, and one knows why
it is.

The reader is a small bidirectional GRU; its weights are in ``data/reviews``, and this made them:

    python -m xaicourse.reviews train
"""

from __future__ import annotations

import argparse
import logging
import random
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from . import weights
from .arguments import check_count, check_generator
from .removal import Removal

__all__ = [
    "PAD", "UNKNOWN", "Chain", "Reader", "Review", "accuracy", "bag_of_words", "chain", "decode", "deletion", "encode", "load",
    "reviews", "sample",
]  # fmt: skip

_SUBJECTS = {
    "story": ["the plot", "the story", "the script", "the ending", "the first half", "the dialogue"],
    "acting": ["the acting", "the cast", "her performance", "the lead actor", "the villain"],
    "style": ["the music", "the camera work", "the opening scene", "the soundtrack"],
    "film": ["the film", "this movie", "the whole thing", "the sequel"],
}
_ALL = {subject for subjects in _SUBJECTS.values() for subject in subjects}
_GOOD = {
    "story": ["clever", "gripping", "moving", "original", "believable"],
    "acting": ["superb", "convincing", "charming", "subtle", "natural"],
    "style": ["lovely", "memorable", "striking", "beautiful", "elegant"],
    "film": ["funny", "touching", "thrilling", "wonderful", "brilliant"],
}
_BAD = {
    "story": ["dull", "predictable", "confusing", "silly", "tedious"],
    "acting": ["wooden", "lifeless", "weak", "forced", "bland"],
    "style": ["ugly", "distracting", "clumsy", "forgettable", "lazy"],
    "film": ["boring", "awful", "shallow", "pointless", "terrible"],
}
_NEGATIONS = ["not", "never", "hardly", "anything but", "far from"]
_ADVERBS = ["really", "simply", "often", "rather"]
_LIKED, _DISLIKED = ["enjoyed", "loved", "admired"], ["hated", "disliked", "resented"]
_LIKE, _DISLIKE = ["enjoy", "love", "admire"], ["hate", "dislike", "resent"]
_CONCESSIONS = ["although", "even though"]

PAD, UNKNOWN = 0, 1
LONGEST = 15
"""Words of the longest review."""

_FOLDER = weights.DATA / "reviews"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Review:
    """A review, and what its writer knows of it.

    words     of the review, in order
    phrases   which phrase each word belongs to, numbered from 0: "the plot", "is", "not dull"
    positive  whether the writer liked the film
    negated   whether a word turns another round
    pairs     negations with the word that they turn round; plain adjectives stand with ""
    """

    words: tuple[str, ...]
    phrases: tuple[int, ...]
    positive: bool
    negated: bool
    pairs: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return " ".join(self.words)


def sample(count: int, *, generator: torch.Generator | None = None) -> list[Review]:
    """Write reviews, of which all are different and half are positive, in random order.

    generator  None: the same ones each time
    """
    check_count("count", count)
    check_generator(generator)
    generator = generator or torch.Generator().manual_seed(0)
    # Python's own dice cost a tenth of what torch's do, one number at a time
    dice = random.Random(int(torch.randint(2**62, (1,), generator=generator)))
    found: dict[str, Review] = {}
    while len(found) < count:
        review = _write(len(found) % 2 == 0, dice)
        if len(review.words) <= LONGEST:
            found.setdefault(str(review), review)
    written = list(found.values())
    return [written[i] for i in torch.randperm(count, generator=generator).tolist()]


def _clause(good: bool, dice: random.Random) -> tuple[list[str], tuple[str, str]]:
    """The phrases of a clause, and its negation with the word that it turns round."""
    topic = dice.choice(list(_SUBJECTS))
    subject = dice.choice(_SUBJECTS[topic])
    negated = dice.random() < 0.4
    if dice.random() < 0.25:
        if negated:
            negation = dice.choice(["did not", "could not", "do not"])
            verb = dice.choice(_DISLIKE if good else _LIKE)
            return ["i", f"{negation} {verb}", subject], (negation, verb)
        verb = dice.choice(_LIKED if good else _DISLIKED)
        return ["i", verb, subject], ("", verb)
    adjective = dice.choice((_GOOD if good != negated else _BAD)[topic])
    tense = dice.choice(["is", "was"])
    if negated:
        negation = dice.choice(_NEGATIONS)
        return [subject, tense, f"{negation} {adjective}"], (negation, adjective)
    adverb = dice.choice(_ADVERBS) + " " if dice.random() < 0.4 else ""
    return [subject, tense, adverb + adjective], ("", adjective)


def _write(positive: bool, dice: random.Random) -> Review:
    main, pair = _clause(positive, dice)
    pairs, kind = [pair], dice.random()
    if kind < 0.25:
        phrases = main
    else:
        agree = kind < 0.45
        other, another = _clause(positive == agree, dice)
        while {phrase for phrase in main if phrase in _ALL} & set(other):  # nobody speaks of the plot twice
            other, another = _clause(positive == agree, dice)
        pairs.append(another)
        if agree:
            phrases = [*other, "and", *main]
        elif kind < 0.65:
            phrases = [*other, "but", *main]
        elif kind < 0.83:
            phrases = [dice.choice(_CONCESSIONS), *other, *main]
        else:
            phrases = [*main, dice.choice(_CONCESSIONS), *other]
    words = [phrase.split() for phrase in phrases]
    numbers = [number for number, phrase in enumerate(words) for _ in phrase]
    negated = any(negation for negation, _ in pairs)
    return Review(tuple(sum(words, [])), tuple(numbers), positive, negated, tuple(pairs))


@cache
def reviews(split: str) -> tuple[Review, ...]:
    """The course's own reviews: 6,000 to "train", 600 to choose settings on ("development"), and 1,000 to "test".

    One in six pairs of a negation and a word, such as "hardly subtle", never stands in a review to train on, and every negated
    review of the two other splits has such a pair: that it is turned round must have been learned of both words apart.

    ValueError for another split.
    """
    sizes = {"train": 6000, "development": 600, "test": 1000}
    if split not in sizes:
        raise ValueError(f"split must be one of {', '.join(map(repr, sizes))}, got {split!r}")
    written = sample(16_000, generator=torch.Generator().manual_seed(0))
    pairs = sorted({pair for review in written for pair in review.pairs if pair[0]})
    kept_out = {pairs[i] for i in torch.randperm(len(pairs), generator=torch.Generator().manual_seed(1))[::6].tolist()}
    seen = [review for review in written if not kept_out & set(review.pairs)]
    new = [review for review in written if kept_out & set(review.pairs)]
    if split == "train":
        return tuple(seen[:6000])
    plain = [review for review in seen[6000:] if not review.negated]
    half = {"development": slice(0, 300), "test": slice(300, 800)}[split]
    return tuple(review for both in zip(plain[half], new[half], strict=True) for review in both)


@cache
def _vocabulary() -> dict[str, int]:
    words = sorted({word for review in reviews("train") for word in review.words})
    return {word: number for number, word in enumerate(["[pad]", "[unknown]", *words])}


def encode(texts: list[Review] | list[str]) -> Tensor:
    """Numbers of the words, LongTensor (N, longest), `PAD` behind the shorter ones; a word that is not known is `UNKNOWN`."""
    known = _vocabulary()
    rows = [[known.get(word, UNKNOWN) for word in str(text).lower().split()] for text in texts]
    longest = max(map(len, rows))
    return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])


def decode(tokens: Tensor) -> list[str]:
    """The texts of token numbers (N, T), without padding."""
    words = list(_vocabulary())
    return [" ".join(words[token] for token in row if token != PAD) for row in tokens.tolist()]


# ------------------------------------------------------------------------------------------------------------
# The reader
# ------------------------------------------------------------------------------------------------------------


class Reader(nn.Module):
    """A bidirectional GRU that reads words and says how much the writer liked the film.

    Tokens LongTensor (N, T), padded with `PAD` behind, to the log odds that the review is positive, (N, 1).
    """

    def __init__(self, vocabulary: int, width: int = 24, hidden: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=PAD)
        self.gru = nn.GRU(width, hidden, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * hidden, 1)

    def features(self, tokens: Tensor) -> Tensor:
        """What the last layer sees: the largest value of each state over the words, (N, 2 hidden)."""
        length = (tokens != PAD).sum(1).clamp(min=1)
        packed = pack_padded_sequence(self.embedding(tokens), length.cpu(), batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, padding_value=-2.0)  # below any state
        return states.amax(1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Log odds (N, 1) that the reviews (N, T) are positive."""
        return self.head(self.features(tokens))


def load(*, pretrained: bool = True) -> Reader:
    """The reader in evaluation mode; ``pretrained=False``: with the random weights that it began with.

    FileNotFoundError if the weights are not there, RuntimeError if they are not those of the card.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Reader(len(_vocabulary())).eval()
    if pretrained:
        weights.read(model, _FOLDER / "reader.pt", made_by="python -m xaicourse.reviews train")
    return model


def accuracy(model: nn.Module, texts: tuple[Review, ...]) -> float:
    """The share of reviews that the model gets right."""
    with torch.no_grad():
        found = model(encode(list(texts)))[:, 0] > 0
    return (found == torch.tensor([review.positive for review in texts])).float().mean().item()


def bag_of_words() -> nn.Module:
    """The control: logistic regression on which words occur in a review, fitted to the reviews to train on."""
    from sklearn.linear_model import LogisticRegression

    def occur(tokens: Tensor) -> Tensor:
        return torch.zeros(len(tokens), len(_vocabulary())).scatter_(1, tokens, 1.0)

    class Bag(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            return occur(tokens) @ weight.T + bias

    texts = reviews("train")
    fitted = LogisticRegression(max_iter=1000).fit(
        occur(encode(list(texts))).numpy(), [review.positive for review in texts]
    )
    weight, bias = torch.from_numpy(fitted.coef_).float(), torch.from_numpy(fitted.intercept_).float()
    return Bag().eval()


# ------------------------------------------------------------------------------------------------------------
# Taking words away
# ------------------------------------------------------------------------------------------------------------


def deletion() -> Removal:
    """Take words out, and let what follows move up: the review gets shorter, and is padded behind."""

    def remove(tokens: Tensor, removed: Tensor) -> Tensor:
        gone = removed.expand_as(tokens) | (tokens == PAD)
        order = gone.to(torch.uint8).argsort(dim=1, stable=True)
        return tokens.masked_fill(gone, PAD).gather(1, order)

    return remove


@dataclass(frozen=True)
class Chain:
    """A language model of the reviews: each word depends on the one before it.

    start  probabilities of the first word, (V,)
    step   of the next word: row i after word i, (V, V)
    end    that the review ends after a word, (V,)
    """

    start: Tensor
    step: Tensor
    end: Tensor

    def fill(
        self, tokens: Tensor, removed: Tensor, samples: int, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw the removed words given all that are left: (N, T) -> (N, samples, T).

        tokens   reviews of one length, without padding
        removed  BoolTensor (N, T)

        Exact draws from the chain's distribution: with ``b_t(w)`` the probability of the words left after place t, given that w
        stands there, going back from the end ``b_t(w) = sum over u of step(w, u) [u may stand at t + 1] b_(t+1)(u)``; then,
        from the front, word t is drawn in proportion to ``step(word t - 1, w) [w may stand at t] b_t(w)``.
        """
        check_count("samples", samples)
        check_generator(generator)
        count, length = tokens.shape
        may = F.one_hot(tokens, len(self.start)).double()
        may[removed] = 1.0
        behind = [self.end.expand(count, -1)]
        for place in range(length - 1, 0, -1):
            rest = (may[:, place] * behind[0]) @ self.step.T
            behind.insert(0, rest / rest.amax(1, keepdim=True))
        words: list[Tensor] = []
        for place in range(length):
            before = self.start.expand(count, samples, -1) if place == 0 else self.step[words[-1]]
            odds = before * (may[:, place] * behind[place])[:, None]
            chance = torch.rand(count, samples, 1, generator=generator, dtype=torch.float64)
            total = odds.cumsum(2)
            words.append(torch.searchsorted(total, chance * total[..., -1:], right=True)[..., 0])
        return torch.stack(words, 2)


@cache
def chain() -> Chain:
    """The chain of the reviews to train on: how often each word follows each other, and 0.01 for every pair that never did."""
    tokens = encode(list(reviews("train")))
    size = len(_vocabulary())
    counts = torch.full((size, size), 0.01, dtype=torch.float64)
    first, second = tokens[:, :-1].flatten(), tokens[:, 1:].flatten()
    counts.index_put_((first, second), torch.ones(len(first), dtype=torch.float64), accumulate=True)
    last = tokens.gather(1, (tokens != PAD).sum(1, keepdim=True) - 1)[:, 0]
    ends = 0.01 + torch.bincount(last, minlength=size).double()
    start = 0.01 + torch.bincount(tokens[:, 0], minlength=size).double()
    for never in (PAD, UNKNOWN):
        counts[:, never] = counts[never] = start[never] = ends[never] = 0
    total = (counts.sum(1) + ends).clamp(min=1)
    return Chain(start / start.sum(), counts / total[:, None], ends / total)


# ------------------------------------------------------------------------------------------------------------
# Training
# ------------------------------------------------------------------------------------------------------------


def train(steps: int = 1000) -> Reader:
    """Train the reader on the reviews to train on; one word in twenty is made unknown, so that this token has a meaning."""
    model = load(pretrained=False).train()
    texts = reviews("train")
    tokens, labels = encode(list(texts)), torch.tensor([float(review.positive) for review in texts])
    generator = torch.Generator().manual_seed(1)
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, total_steps=steps)
    for step in range(steps):
        batch = torch.randint(len(texts), (64,), generator=generator)
        words = tokens[batch]
        lost = (torch.rand(words.shape, generator=generator) < 0.05) & (words != PAD)
        loss = F.binary_cross_entropy_with_logits(model(words.masked_fill(lost, UNKNOWN))[:, 0], labels[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 100 == 99:
            _log.info("step %d, loss %.3f", step + 1, loss.item())
    return model.eval()


def main() -> None:
    """Train the reader if it has no weights yet."""
    parser = argparse.ArgumentParser("python -m xaicourse.reviews", description="Train the reader of lecture 06.")
    parser.add_argument("command", choices=["train"])
    parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    file = _FOLDER / "reader.pt"
    if file.exists():
        _log.info("%s: there already", file.name)
    else:
        weights.write(train(), file)
    for name, model in {"reader": load(), "bag of words": bag_of_words()}.items():
        right = [
            accuracy(model, tuple(r for r in reviews("test") if r.negated == negated)) for negated in (False, True)
        ]
        _log.info("%s: %.1f %% of plain and %.1f %% of negated reviews right", name, *(100 * share for share in right))


if __name__ == "__main__":
    main()
