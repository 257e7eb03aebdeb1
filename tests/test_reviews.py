"""Film reviews whose sentiment follows from negation and clauses, the network that reads them, and words taken away."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xaicourse import removal, reviews, shapley

BAD_WORDS = {word for words in reviews._BAD.values() for word in words} | set(reviews._DISLIKE + reviews._DISLIKED)
GOOD_WORDS = {word for words in reviews._GOOD.values() for word in words} | set(reviews._LIKE + reviews._LIKED)


def test_the_writer_says_what_the_main_clause_says_with_every_negation_counted():
    for review in reviews.sample(300, generator=torch.Generator().manual_seed(5)):
        text = str(review).replace("even though", "although").replace("anything but", "not").replace("far from", "not")
        if " although " in text:
            main = text.split(" although ")[0]
        elif text.startswith("although "):  # the main clause is the last one: it has the last word that judges
            main = " ".join(text.split()[-7:])
        else:
            main = text.replace(" but ", " and ").split(" and ")[-1]
        words = main.split()
        place = max(i for i, word in enumerate(words) if word in GOOD_WORDS | BAD_WORDS)
        judged, turned = words[place], bool({"not", "never", "hardly"} & set(words[max(0, place - 1) : place]))
        assert review.positive == ((judged in GOOD_WORDS) != turned), text


def test_reviews_are_different_half_of_them_positive_and_the_same_each_time():
    written = reviews.sample(200)
    assert len({str(review) for review in written}) == 200
    assert sum(review.positive for review in written) == 100
    assert written == reviews.sample(200)
    assert written != reviews.sample(200, generator=torch.Generator().manual_seed(3))
    assert all(len(review.words) == len(review.phrases) <= reviews.LONGEST for review in written)


def test_no_pair_of_a_negation_and_a_word_in_the_test_was_trained_on():
    trained = {pair for review in reviews.reviews("train") for pair in review.pairs if pair[0]}
    for split in ("development", "test"):
        negated = [review for review in reviews.reviews(split) if review.negated]
        assert len(negated) == len(reviews.reviews(split)) // 2
        assert all(set(review.pairs) - trained - {pair for pair in review.pairs if not pair[0]} for review in negated)
    seen = {str(review) for review in reviews.reviews("train")}
    assert not seen & {str(review) for split in ("development", "test") for review in reviews.reviews(split)}


def test_the_reader_understands_negations_that_it_has_not_seen_and_counting_words_does_not():
    test = reviews.reviews("test")
    negated = tuple(review for review in test if review.negated)
    assert reviews.accuracy(reviews.load(), test) > 0.97 and reviews.accuracy(reviews.load(), negated) > 0.97
    assert reviews.accuracy(reviews.bag_of_words(), negated) < 0.65
    assert abs(reviews.accuracy(reviews.load(pretrained=False), test) - 0.5) < 0.15


def test_padding_behind_a_review_changes_nothing():
    reader = reviews.load()
    short, long = "i enjoyed the film", "although the plot is dull the whole thing was anything but boring"
    together = reader(reviews.encode([short, long]))
    assert torch.allclose(together[:1], reader(reviews.encode([short])), atol=1e-6)


def test_words_are_read_back_as_they_were_and_strange_ones_are_unknown():
    texts = ["the plot is clever", "i enjoyed this movie"]
    assert reviews.decode(reviews.encode(texts)) == texts
    assert reviews.encode(["the zeppelin"])[0, 1] == reviews.UNKNOWN


@settings(max_examples=50, deadline=None)
@given(st.lists(st.booleans(), min_size=7, max_size=7))
def test_deletion_leaves_the_other_words_in_their_order(gone):
    words = ["the", "whole", "thing", "was", "anything", "but", "shallow"]
    tokens = reviews.encode([" ".join(words)])
    left = reviews.deletion()(tokens, torch.tensor([gone]))
    assert left.shape == tokens.shape
    expected = " ".join(word for word, absent in zip(words, gone, strict=True) if not absent)
    assert reviews.decode(left) == [expected]


def test_the_chain_draws_gaps_with_their_exact_probabilities():
    step = torch.tensor([[0.1, 0.6, 0.2], [0.3, 0.1, 0.5], [0.4, 0.4, 0.1]], dtype=torch.float64)
    start = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    chain = reviews.Chain(start, step, torch.tensor([0.1, 0.1, 0.9], dtype=torch.float64))
    tokens, removed = torch.tensor([[0, 2, 1, 0]]), torch.tensor([[True, False, True, True]])
    drawn = chain.fill(tokens, removed, 40_000, generator=torch.Generator().manual_seed(0))[0]
    assert (drawn[:, 1] == 2).all()
    odds = {}
    for a, c, d in itertools.product(range(3), repeat=3):
        odds[a, c, d] = float(start[a] * step[a, 2] * step[2, c] * step[c, d] * chain.end[d])
    for (a, c, d), value in odds.items():
        share = (drawn == torch.tensor([a, 2, c, d])).all(1).double().mean().item()
        assert abs(share - value / sum(odds.values())) < 0.012, (a, c, d)


def test_filled_with_all_words_left_a_review_is_itself():
    tokens = reviews.encode(["the film is not funny"])
    assert torch.equal(
        reviews.chain().fill(tokens, torch.zeros_like(tokens).bool(), 2), tokens[:, None].expand(1, 2, -1)
    )


def test_removals_of_words_disagree_about_a_word_and_share_out_the_same_rule():
    """S9 on a sentence: the sign of a word's value depends on what takes its place."""
    reader, tokens = reviews.load(), reviews.encode(["the whole thing was anything but shallow"])
    unknown = shapley.exact(shapley.masking_game(reader, tokens, 0, removal=removal.token(reviews.UNKNOWN)))
    deleted = shapley.exact(shapley.masking_game(reader, tokens, 0, removal=reviews.deletion()))
    assert unknown.values[-1] > 1 and deleted.values[-1] < 0
    assert abs(unknown.gap) < 1e-4 and abs(deleted.gap) < 1e-4


def test_words_do_not_add_up_to_their_phrase_but_owen_values_do():
    """S11: players are a choice."""
    reader, groups = reviews.load(), torch.tensor([0, 0, 0, 1, 2, 2])
    tokens = reviews.encode(["the lead actor is not forced"])
    game = shapley.masking_game(reader, tokens, 0, removal=reviews.deletion())
    phrases = shapley.exact(shapley.masking_game(reader, tokens, 0, players=groups, removal=reviews.deletion())).values

    def summed(values):
        return torch.zeros(3, dtype=torch.float64).index_add_(0, groups, values)

    assert (summed(shapley.exact(game).values) - phrases).abs().max() > 0.5
    assert torch.allclose(summed(shapley.owen(game, groups).values), phrases, atol=1e-4)


def test_training_changes_the_reader():
    before, after = reviews.load(pretrained=False), reviews.train(steps=2)
    assert any(not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    assert not after.training


@pytest.mark.parametrize(("call", "match"), [
    (lambda: reviews.sample(0), "count must be at least 1"),
    (lambda: reviews.reviews("dev"), "split must be one of 'train', 'development', 'test', got 'dev'"),
])  # fmt: skip
def test_bad_arguments_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
