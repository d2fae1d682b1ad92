"""Pairs of passages, by hand and by counting."""

import json
import math
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyplm.errors import ConfigError, DataError
from tinyplm.text import Tokenizer
from tinyplm.text.sentences import SentencePairs, _shortened, ends_of_sentences, framing

PAD, CLS, SEP = 0, 1, 2
FIRST = 10  # ids from here on say where they stand: FIRST + 1000 * document + place


def corpus(lengths, sentence=5):
    """Documents of so many tokens, of which every fifth ends a sentence; and which ids do."""
    ends = np.zeros(FIRST + 1000 * len(lengths), bool)
    parts = []
    for document, length in enumerate(lengths):
        ids = FIRST + 1000 * document + np.arange(length)
        ends[ids[sentence - 1 :: sentence]] = True
        parts += [ids, [SEP]]
    return np.concatenate(parts), ends


def pairs_of(tokens, ends, **settings):
    plain = {"length": 33, "batch": 8, "seed": 0}
    ids = {"classifier": CLS, "separator": SEP, "padding": PAD, "end_of_text": SEP}
    return SentencePairs(tokens, ends=ends, **(plain | ids | settings))


def halves(batch):
    """A, B and the label of each row."""
    names = ("input_ids", "token_type_ids", "attention_mask", "next_sentence_labels")
    assert set(batch) == set(names)
    for ids, types, mask, label in zip(*(batch[name] for name in names), strict=True):
        last = [int(n) for n in np.flatnonzero((ids == SEP) & (mask == 1))]
        assert ids[0] == CLS
        assert mask.tolist() == [1] * (last[1] + 1) + [0] * (len(ids) - last[1] - 1)
        assert (ids[last[1] + 1 :] == PAD).all()
        behind = last[1] - last[0]
        assert types.tolist() == [0] * (last[0] + 1) + [1] * behind + [0] * (mask == 0).sum()
        yield ids[1 : last[0]], ids[last[0] + 1 : last[1]], int(label)


def document_of(ids):
    found = set(((ids - FIRST) // 1000).tolist())
    assert len(found) == 1
    return found.pop()


def test_a_document_is_cut_between_sentences_by_hand():
    tokens, ends = corpus([20, 10])
    # No passage from elsewhere but where a document has one sentence left, which 20 tokens at once do not leave.
    source = pairs_of(tokens, ends, other=0.0, short=0.0, batch=2, length=23)
    for batch in islice(source, 20):
        for row, label in zip(batch["input_ids"], batch["next_sentence_labels"], strict=True):
            assert label == 0
            text = row[(row >= FIRST)]
            start = FIRST if len(text) == 20 else FIRST + 1000
            assert text.tolist() == list(range(start, start + len(text)))
            cut = row.tolist().index(SEP) - 1
            assert cut % 5 == 0
            assert 0 < cut < len(text)


def test_passages_that_were_not_used_come_back():
    tokens, ends = corpus([100, 60, 35])
    for seed in range(20):
        texts = {0: [], 1: [], 2: []}
        for batch in pairs_of(tokens, ends, seed=seed, short=0.3).in_order():
            for a, b, label in halves(batch):
                texts[document_of(a)].append(a)
                assert (document_of(a) == document_of(b)) == (label == 0)
                if label == 0:
                    texts[document_of(a)].append(b)
        for document, length in enumerate([100, 60, 35]):
            found = np.concatenate(texts[document]) - FIRST - 1000 * document
            assert found.tolist() == list(range(length))


def counted(**settings):
    """Pairs of 40 documents of 200 tokens that had a whole row's tokens before them: start of A, A, B, label."""
    tokens, ends = corpus([200] * 40)
    source = pairs_of(tokens, ends, batch=50, **settings)
    for batch in islice(source, 120):
        for a, b, label in halves(batch):
            if (a[0] - FIRST) % 1000 <= 170:
                yield a, b, label


def within_six_deviations(count, trials, probability):
    assert trials > 1000
    spread = math.sqrt(trials * probability * (1 - probability))
    assert abs(count - trials * probability) < 6 * spread, f"{count} of {trials}, p {probability}"


def test_half_of_the_second_passages_are_from_elsewhere():
    found = list(counted(short=0.0))
    within_six_deviations(sum(label for *_, label in found), len(found), 0.5)
    starts = np.zeros(40, int)
    for a, b, label in found:
        if label:
            assert document_of(b) != document_of(a)
            starts[document_of(b)] += 1
        else:
            assert b[0] == a[-1] + 1
            assert len(a) + len(b) == 30
            assert document_of(b) == document_of(a)
    for count in starts:  # every document is as likely as another
        within_six_deviations(count, starts.sum(), 1 / 40)


def test_one_pair_in_ten_is_made_for_a_shorter_length():
    # Of the lengths from 2 to 30, drawn for one in ten, 6 to 25 give true pairs of fewer tokens, 26 to 30 full ones.
    found = [len(a) + len(b) for a, b, label in counted(other=0.0) if not label]
    shorter = 0.1 * 20 / 29
    whole = 0.9 + 0.1 * 5 / 29
    short = sum(length < 30 for length in found)
    within_six_deviations(short, len(found), shorter / (shorter + whole))


@given(st.integers(1, 40), st.integers(1, 40), st.integers(2, 60), st.integers(0, 99))
def test_the_longer_passage_loses_tokens_at_both_ends(a, b, room, seed):
    first, second = np.arange(a), np.arange(100, 100 + b)
    kept = _shortened(first, second, room, np.random.default_rng(seed))
    assert len(kept[0]) + len(kept[1]) == min(a + b, room)
    for old, new in zip((first, second), kept, strict=True):
        assert len(new)
        assert new.tolist() == list(range(new[0], new[0] + len(new)))
        assert old[0] <= new[0]
        assert new[-1] <= old[-1]
        # The shorter is touched only once both are equally long.
        other = kept[1] if old is first else kept[0]
        assert len(new) == len(old) or len(new) >= len(other) - 1


def test_tokens_are_lost_at_the_front_and_the_back_alike():
    rng = np.random.default_rng(0)
    front = sum(int(_shortened(np.arange(60), np.arange(5), 15, rng)[0][0]) for _ in range(100))
    within_six_deviations(front, 100 * 50, 0.5)


def test_the_same_seed_gives_the_same_pairs_and_another_others():
    tokens, ends = corpus([100, 60, 35])

    def first(seed):
        source = pairs_of(tokens, ends, seed=seed)
        return [batch["input_ids"].tobytes() for batch in islice(source, 5)]

    assert first(3) == first(3)
    assert first(3) != first(4)


@pytest.mark.parametrize("taken", [0, 1, 7, 40])
def test_it_goes_on_where_it_stood(taken):
    tokens, ends = corpus([100, 60, 35, 200, 10])
    source = pairs_of(tokens, ends)
    for _ in range(taken):
        next(source)
    state = json.loads(json.dumps(source.state()))
    expected = [next(source) for _ in range(12)]
    other = pairs_of(tokens, ends)
    next(other)
    other.restore(state)
    for batch in expected:
        found = next(other)
        for name, values in batch.items():
            np.testing.assert_array_equal(found[name], values)
    wider = pairs_of(tokens, ends, batch=16)  # the size of a batch may change
    wider.restore(state)
    for row, (a, b, label) in enumerate(halves(next(wider))):
        (theirs, *_), at = expected[row // 8 : row // 8 + 1], row % 8
        mine = list(halves(theirs))[at]
        assert (a.tolist(), b.tolist(), label) == (mine[0].tolist(), mine[1].tolist(), mine[2])


@pytest.mark.parametrize("change", [{"seed": 1}, {"length": 20}, {"tokens": None}], ids=str)
def test_it_does_not_go_on_with_something_else(change):
    tokens, ends = corpus([100, 60, 35])
    state = pairs_of(tokens, ends).state()
    changed = {name: value for name, value in change.items() if name != "tokens"}
    other = pairs_of(tokens[:-20] if "tokens" in change else tokens, ends, **changed)
    with pytest.raises(ConfigError, match=f"cannot go on: {next(iter(change))} was"):
        other.restore(state)


def test_every_document_is_read_once_an_epoch():
    tokens, ends = corpus([50] * 100)
    source = pairs_of(tokens, ends, other=0.0, short=0.0, length=53, batch=10)
    for _ in range(3):  # a document of 50 tokens is one pair, so an epoch is ten batches
        seen = [document_of(a) for batch in islice(source, 10) for a, _, _ in halves(batch)]
        assert sorted(seen) == list(range(100))


def test_the_order_of_evaluation_does_not_move_the_rest():
    tokens, ends = corpus([100, 60, 35])
    source, other = pairs_of(tokens, ends), pairs_of(tokens, ends)
    first = [batch["input_ids"].tobytes() for batch in source.in_order()]
    next(source), next(other)
    assert [batch["input_ids"].tobytes() for batch in source.in_order()] == first
    np.testing.assert_array_equal(next(source)["input_ids"], next(other)["input_ids"])


def test_a_text_without_pairs_is_refused_with_a_way_out():
    tokens, ends = corpus([100])
    with pytest.raises(DataError, match=r"has 1 document, .*at least two.*'mlm' alone"):
        pairs_of(tokens, ends)
    tokens, ends = corpus([5, 5, 5])
    with pytest.raises(DataError, match=r"3 documents of one sentence each"):
        pairs_of(tokens, ends)
    tokens, ends = corpus([5, 10])
    next(pairs_of(tokens, ends))
    with pytest.raises(DataError, match=r"has 0 documents"):
        pairs_of(np.full(4, SEP), ends)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 4}, "length=4"),
        ({"batch": 0}, "batch=0"),
        ({"seed": -1}, "seed=-1"),
        ({"short": 1.5}, "short=1.5"),
        ({"other": -0.5}, "other=-0.5"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        pairs_of(*corpus([20, 10]), **settings)


def test_the_smallest_length_leaves_a_token_for_each_passage():
    source = pairs_of(*corpus([20, 10]), length=5)
    for batch in islice(source, 10):
        assert batch["input_ids"].shape[1] == 5
        for a, b, _ in halves(batch):
            assert len(a) == len(b) == 1


def test_several_marks_end_one_sentence():
    ends = np.zeros(60, bool)
    ends[50] = True
    tokens = np.array([11, 50, 50, 50, 12, 50, SEP, 13, 50])
    source = pairs_of(tokens, ends)

    def sentences(document):
        first, last = source._sentences(document)
        return [s.tolist() for s in np.split(tokens, source._edges[first : last + 1])[1:-1]]

    assert sentences(0) == [[11, 50, 50, 50], [12, 50]]
    assert sentences(1) == [[13, 50]]


def test_which_tokens_end_a_sentence():
    text = ['He said "no." Why? 왜. 好。 Yes! (No...) 3.14 … it.s']
    tokenizer = Tokenizer.train("wordpiece", text, vocab_size=80)
    ends = ends_of_sentences(tokenizer)
    found = {tokenizer.token(id) for id in np.flatnonzero(ends)}
    assert found == {".", "?", "!", "。", "…"}
    tokenizer = Tokenizer.train("byte-bpe", text * 9, vocab_size=330)
    ends = ends_of_sentences(tokenizer)
    assert ends[tokenizer.encode("?")].all()
    assert not ends[tokenizer.encode(" 3")].any()
    assert not ends[tokenizer.end_of_text]


def test_the_frame_of_a_text():
    wordpiece = Tokenizer.train("wordpiece", ["a b"], vocab_size=20)
    assert framing(wordpiece) == ((wordpiece.id("[CLS]"),), (wordpiece.id("[SEP]"),))
    assert framing(Tokenizer.train("bytes", [])) is None
