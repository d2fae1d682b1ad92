"""generate and its parts against slow loops, exhaustive search and hand-made models."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyplm.errors import ConfigError, DtypeError, NonFiniteError, ShapeError, TinyplmWarning
from tinyplm.generate import (
    apply_temperature,
    ban_repeated_ngrams,
    beam_search,
    forbid_eos,
    generate,
    keep_top_k,
    keep_top_p,
    log_softmax,
    penalize_repetition,
    softmax,
)

# --- models ---------------------------------------------------------------------------------------


class TokenCache:
    """Remembers the tokens themselves, with their masks and positions."""

    def __init__(self, batch, capacity):
        self.capacity = capacity
        self.ids = np.empty((batch, 0), dtype=np.int64)
        self.positions = np.empty((batch, 0), dtype=np.int64)

    @property
    def length(self):
        return self.ids.shape[1]

    def reorder(self, rows):
        assert rows.dtype.kind == "i"
        assert rows.ndim == 1
        self.ids, self.positions = self.ids[rows], self.positions[rows]


class PrefixModel:
    """Logits that depend on every real token so far; holds callers to the rules."""

    def __init__(self, vocab_size=7, positions=16, spread=2.0):
        self.config = SimpleNamespace(vocab_size=vocab_size, positions=positions)
        self.spread = spread
        self.reads = []

    def new_cache(self, batch, capacity):
        return TokenCache(batch, capacity)

    def row_logits(self, tokens):
        rng = np.random.default_rng([int(one) for one in tokens])
        return rng.normal(scale=self.spread, size=self.config.vocab_size).astype(np.float32)

    def next_logits(self, input_ids, *, attention_mask, position_ids, cache):
        assert input_ids.dtype == position_ids.dtype == np.int64
        assert input_ids.shape == position_ids.shape
        self.reads.append(input_ids.shape)
        if cache is not None:
            input_ids = np.concatenate((cache.ids, input_ids), axis=1)
            position_ids = np.concatenate((cache.positions, position_ids), axis=1)
            cache.ids, cache.positions = input_ids, position_ids
            assert cache.length <= cache.capacity
        mask = np.ones_like(input_ids) if attention_mask is None else attention_mask
        assert mask.shape == input_ids.shape
        real = [row[keep == 1] for row, keep in zip(input_ids, mask, strict=True)]
        for places, keep in zip(position_ids, mask, strict=True):
            np.testing.assert_array_equal(places[keep == 1], np.arange(keep.sum()))
        return np.stack([self.row_logits(row) for row in real])


class BigramModel(PrefixModel):
    """The next token depends on the last one, by a table of logits."""

    def __init__(self, table):
        super().__init__(vocab_size=len(table), positions=64)
        self.table = np.asarray(table, dtype=np.float32)

    def row_logits(self, tokens):
        return self.table[tokens[-1]]


def log_probability(model, prompt, continuation):
    total = 0.0
    for end in range(len(continuation)):
        logits = model.row_logits([*prompt, *continuation[:end]]).astype(np.float64)
        total += logits[continuation[end]] - np.log(np.exp(logits).sum())
    return total


def padded(rows, *, pad=0):
    """Rows of ids, padded on the left, and their mask."""
    longest = max(map(len, rows))
    ids = [[pad] * (longest - len(row)) + list(row) for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return np.array(ids), np.array(mask)


# --- scores in, scores out ------------------------------------------------------------------------


@st.composite
def score_rows(draw, *, gaps=True):
    """(B, V) float32 with ties and, perhaps, minus infinities; every row has a finite score."""
    rows, width = draw(st.integers(1, 3)), draw(st.integers(1, 12))
    one = st.integers(-40, 40).map(lambda n: n / 8)
    values = draw(
        st.lists(st.lists(one, min_size=width, max_size=width), min_size=rows, max_size=rows)
    )
    scores = np.array(values, dtype=np.float32)
    if gaps:
        holes = draw(st.lists(st.integers(0, rows * width - 1), max_size=6))
        np.put(scores, holes, -np.inf)
        scores[:, draw(st.integers(0, width - 1))] = 0.5
    return scores


@st.composite
def scores_and_ids(draw):
    scores = draw(score_rows())
    length = draw(st.integers(1, 8))
    one = st.integers(0, scores.shape[1] - 1)
    row = st.lists(one, min_size=length, max_size=length)
    ids = draw(st.lists(row, min_size=len(scores), max_size=len(scores)))
    return scores, np.array(ids)


@given(scores_and_ids(), st.floats(0.25, 4), st.data())
def test_repetition_penalty_is_the_loop_over_distinct_ids(case, penalty, data):
    scores, ids = case
    ignored = np.array([data.draw(st.integers(0, ids.shape[1] - 1)) for _ in ids])
    expected = scores.copy()
    for row, skip in enumerate(ignored):
        for one in set(ids[row, skip:].tolist()):
            s = scores[row, one]
            expected[row, one] = s * np.float32(penalty) if s < 0 else s / np.float32(penalty)
    before = scores.copy()
    np.testing.assert_array_equal(
        penalize_repetition(scores, ids, penalty, ignored=ignored), expected
    )
    np.testing.assert_array_equal(scores, before)
    if not ignored.any():
        np.testing.assert_array_equal(penalize_repetition(scores, ids, penalty), expected)


@given(scores_and_ids(), st.integers(1, 5))
def test_ngrams_are_banned_as_by_the_loop_over_all_of_them(case, size):
    scores, ids = case
    expected = scores.copy()
    for row, tokens in enumerate(ids.tolist()):
        present = {tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)}
        for one in range(scores.shape[1]):
            if len(tokens) >= size and (*tokens[len(tokens) + 1 - size :], one) in present:
                expected[row, one] = -np.inf
    before = scores.copy()
    np.testing.assert_array_equal(ban_repeated_ngrams(scores, ids, size), expected)
    np.testing.assert_array_equal(scores, before)


@given(score_rows(), st.integers(1, 14))
def test_top_k_keeps_the_k_best_and_their_equals(scores, k):
    expected = scores.copy()
    for row in expected:
        limit = sorted(row, reverse=True)[min(k, len(row)) - 1]
        row[row < limit] = -np.inf
    before = scores.copy()
    np.testing.assert_array_equal(keep_top_k(scores, k), expected)
    np.testing.assert_array_equal(scores, before)


@given(score_rows(), st.floats(0.01, 0.999), st.integers(1, 4))
def test_top_p_keeps_the_smallest_head_that_holds_the_mass(scores, p, at_least):
    got = keep_top_p(scores, p, at_least=at_least)
    for row, kept in zip(scores, got, strict=True):
        weights = np.exp(row.astype(np.float64) - row.max())
        weights /= weights.sum()
        # Best first; of equals the larger id first.
        order = sorted(range(len(row)), key=lambda i: (-row[i], -i))
        mass = np.cumsum(weights[order])
        needed = int(np.searchsorted(mass, p)) + 1
        if np.abs(mass - p).min() < 1e-5:
            continue  # float32 rounding decides there, as documented
        needed = min(max(needed, at_least), len(row))
        expected = np.full_like(row, -np.inf)
        expected[order[:needed]] = row[order[:needed]]
        np.testing.assert_array_equal(kept, expected)


def test_top_p_of_the_textbook_example():
    scores = np.log(np.array([[0.1, 0.5, 0.15, 0.25]], dtype=np.float32))
    kept = {p: np.isfinite(keep_top_p(scores, p))[0].tolist() for p in (0.01, 0.74, 0.76, 0.95)}
    assert kept == {
        0.01: [False, True, False, False],
        0.74: [False, True, False, True],
        0.76: [False, True, True, True],
        0.95: [True, True, True, True],
    }


def test_top_p_of_equal_scores_keeps_the_larger_ids():
    scores = np.array([[1, 1, -np.inf, 1, 1], [0, 1, 1, 1, 9]], dtype=np.float32)
    got = np.isfinite(keep_top_p(scores, 0.4))
    np.testing.assert_array_equal(got, [[0, 0, 0, 1, 1], [0, 0, 0, 0, 1]])
    assert np.flatnonzero(np.isfinite(keep_top_p(scores, 0.4, at_least=3))[1]).tolist() == [2, 3, 4]


def test_top_p_finds_the_edge_among_fifty_thousand():
    # A float32 running sum is off by one token in one of the first two.
    for seed in range(4):
        scores = np.random.default_rng(seed).normal(scale=0.1, size=(1, 50_000)).astype(np.float32)
        head = np.sort(scores[0].astype(np.float64))
        mass = np.cumsum(np.exp(head) / np.exp(head).sum())
        kept = np.isfinite(keep_top_p(scores, 0.3)).sum()
        assert kept == 50_000 - (mass <= 0.7).sum()


@given(score_rows(gaps=False), st.floats(0.1, 5))
def test_temperature_divides(scores, temperature):
    np.testing.assert_array_equal(
        apply_temperature(scores, temperature), scores / np.float32(temperature)
    )


def test_ends_are_forbidden_in_every_row():
    scores = np.arange(8, dtype=np.float32).reshape(2, 4)
    got = forbid_eos(scores, np.array([1, 3]))
    np.testing.assert_array_equal(got, [[0, -np.inf, 2, -np.inf], [4, -np.inf, 6, -np.inf]])
    np.testing.assert_array_equal(forbid_eos(scores, np.array([], dtype=np.int64)), scores)


@given(score_rows())
def test_softmax_and_its_logarithm_agree_with_float64(scores):
    exact = np.exp(scores.astype(np.float64))
    exact /= exact.sum(axis=1, keepdims=True)
    # Widths to 12: a dozen float32 roundings each.
    np.testing.assert_allclose(softmax(scores), exact, rtol=12 * 2**-23)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(log_softmax(scores), np.log(exact), rtol=1e-5, atol=2**-20)
    assert softmax(scores).dtype == log_softmax(scores).dtype == np.float32


def test_softmax_of_nothing_left_is_zero():
    assert not softmax(np.full((1, 3), -np.inf, dtype=np.float32)).any()


# --- greedy and sampling --------------------------------------------------------------------------


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_takes_the_most_probable_token_each_time(use_cache):
    model = PrefixModel()
    got = generate(model, [[1, 2], [3, 3]], max_new_tokens=9, use_cache=use_cache)
    for row in got:
        for end in range(2, 11):
            assert row[end] == model.row_logits(row[:end]).argmax()
    new = [(2, 2)] + ([(2, 1)] * 8 if use_cache else [(2, n) for n in range(3, 11)])
    assert model.reads == new


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("use_cache", [True, False])
def test_padding_on_the_left_changes_nothing(beams, use_cache):
    model, rows = PrefixModel(), [[4, 2, 6, 1], [5], [3, 3]]
    settings = {
        "max_new_tokens": 6,
        "num_beams": beams,
        "use_cache": use_cache,
        "repetition_penalty": 1.5,
    }
    ids, mask = padded(rows)
    got = generate(model, ids, attention_mask=mask, **settings)
    for row, prompt in zip(got, rows, strict=True):
        alone = generate(model, [prompt], **settings)[0]
        np.testing.assert_array_equal(row[-len(alone) :], alone)
        np.testing.assert_array_equal(row[: -len(alone)], 0)


def test_padding_is_recognised_by_its_id_unless_that_ends_sequences():
    model = PrefixModel()
    ids, mask = padded([[4, 2, 6], [5]], pad=1)
    expected = generate(model, ids, attention_mask=mask, eos_token_id=3, pad_token_id=1)
    np.testing.assert_array_equal(generate(model, ids, eos_token_id=3, pad_token_id=1), expected)
    tokens = generate(model, ids, eos_token_id=[3, 1], pad_token_id=1, max_new_tokens=1)
    assert tokens[1, 3] == model.row_logits([1, 1, 5]).argmax()


def test_a_row_stops_at_an_end_and_is_padded_until_all_have_stopped():
    # 1 -> 2 -> 3 -> 4 -> 0 -> 1: one step to the right each time
    table = np.roll(np.eye(5), 1, axis=1) * 9
    got = generate(BigramModel(table), [[3], [1]], max_new_tokens=9, eos_token_id=[0, 4])
    np.testing.assert_array_equal(got, [[3, 4, 0, 0], [1, 2, 3, 4]])
    got = generate(BigramModel(table), [[3], [1]], max_new_tokens=9, eos_token_id=4, pad_token_id=2)
    np.testing.assert_array_equal(got, [[3, 4, 2, 2], [1, 2, 3, 4]])


def test_nothing_ends_before_the_minimum():
    table = np.roll(np.eye(4), 1, axis=1) * 9 + np.array([0, 0, 1, 0])
    model = BigramModel(table)
    short = generate(model, [[2]], max_new_tokens=6, eos_token_id=3)
    np.testing.assert_array_equal(short, [[2, 3]])
    for minimum in (
        {"min_new_tokens": 3},
        {"min_length": 4},
        {"min_length": 1, "min_new_tokens": 3},
    ):
        got = generate(model, [[2]], max_new_tokens=6, eos_token_id=3, **minimum)
        np.testing.assert_array_equal(got, [[2, 2, 2, 2, 3]])


def test_lengths_default_to_twenty_new_tokens_or_what_fits():
    assert generate(PrefixModel(positions=50), [[1, 2]]).shape == (1, 22)
    assert generate(PrefixModel(positions=16), [[1, 2]]).shape == (1, 16)
    assert generate(PrefixModel(positions=None), [[1, 2]]).shape == (1, 22)
    assert generate(PrefixModel(), [[1, 2]], max_length=5).shape == (1, 5)
    with pytest.warns(TinyplmWarning, match="max_new_tokens is used"):
        assert generate(PrefixModel(), [[1, 2]], max_length=5, max_new_tokens=1).shape == (1, 3)


def test_the_last_new_token_needs_no_position():
    model = PrefixModel(positions=4)
    assert generate(model, [[1, 2, 3, 4]], max_new_tokens=1).shape == (1, 5)
    with pytest.raises(ShapeError, match="4 tokens \\+ 2 new, but this model has 4 positions"):
        generate(model, [[1, 2, 3, 4]], max_new_tokens=2)
    with pytest.raises(ShapeError, match="eep the last 4 tokens of the prompt;"):
        generate(model, [[1, 2, 3, 4, 5]])


class GivenDraws:
    """Hands out prepared exponential draws."""

    def __init__(self, *draws):
        self.draws = list(draws)

    def standard_exponential(self, size):
        return self.draws.pop(0).reshape(size)


def test_sampling_is_the_argmax_of_probabilities_over_given_draws():
    model, rng = PrefixModel(), np.random.default_rng(0)
    draws = [rng.exponential(size=(4, 7)) for _ in range(5)]
    settings = {"max_new_tokens": 5, "do_sample": True, "num_return_sequences": 2}
    settings |= {"temperature": 1.7, "top_k": 4, "top_p": 0.9}
    got = generate(model, [[1, 2], [3, 3]], rng=GivenDraws(*draws), **settings)
    np.testing.assert_array_equal(got[:, :2], [[1, 2], [1, 2], [3, 3], [3, 3]])
    for row in range(4):
        for step, q in enumerate(draws):
            logits = model.row_logits(got[row, : 2 + step])[None]
            kept = keep_top_p(keep_top_k(logits / np.float32(1.7), 4), 0.9)
            assert got[row, 2 + step] == (softmax(kept)[0] / q[row]).argmax()
    assert model.reads[:2] == [(2, 2), (4, 1)]  # prompts are read once


def test_when_a_row_ends_has_no_effect_on_the_others():
    model = PrefixModel(spread=0.5)
    settings = {"max_new_tokens": 12, "do_sample": True, "pad_token_id": 0}
    free = generate(model, [[1], [2]], rng=np.random.default_rng(3), **settings)
    first = int(free[0, 3])  # let the first row end there at the latest
    got = generate(model, [[1], [2]], rng=np.random.default_rng(3), eos_token_id=first, **settings)
    other = free[1].tolist()
    stop = other.index(first, 1) + 1 if first in other[1:] else len(other)
    np.testing.assert_array_equal(got[1, :stop], other[:stop])


def test_sampling_follows_the_distribution():
    model = BigramModel(np.log([[0.5, 0.3, 0.15, 0.05]] * 4))
    n = 4_000
    got = generate(
        model,
        [[0]],
        max_new_tokens=1,
        do_sample=True,
        num_return_sequences=n,
        rng=np.random.default_rng(0),
    )
    shares = np.bincount(got[:, 1], minlength=4) / n
    wanted = np.array([0.5, 0.3, 0.15, 0.05])
    assert (np.abs(shares - wanted) < 6 * np.sqrt(wanted * (1 - wanted) / n)).all()


def test_the_same_seed_gives_the_same_text_and_another_seed_another():
    def text(seed):
        rng = np.random.default_rng(seed)
        return generate(PrefixModel(), [[1]], do_sample=True, max_new_tokens=12, rng=rng).tolist()

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_a_draw_of_zero_does_not_choose_a_token_that_was_filtered():
    q = np.ones((1, 7))
    q[0, :] = [0, 1, 1, 1, 1, 1, 1]
    model = BigramModel(np.tile(np.arange(7.0), (7, 1)))
    got = generate(model, [[1]], max_new_tokens=1, do_sample=True, top_k=3, rng=GivenDraws(q))
    assert got[0, 1] == 6


def test_each_step_is_told_as_it_happens():
    heard = []
    got = generate(PrefixModel(), [[1], [2]], max_new_tokens=4, on_token=heard.append)
    np.testing.assert_array_equal(np.stack(heard, axis=1), got[:, 1:])


def test_rules_leave_model_and_prompt_as_they_were():
    ids = np.array([[1, 2, 1]])
    mask = np.array([[0, 1, 1]])
    model = BigramModel(np.random.default_rng(0).normal(size=(9, 9)))
    table = model.table.copy()
    for beams in (1, 2):
        generate(
            model,
            ids,
            attention_mask=mask,
            max_new_tokens=4,
            num_beams=beams,
            repetition_penalty=2.0,
            no_repeat_ngram_size=2,
            min_new_tokens=2,
            eos_token_id=3,
            do_sample=True,
            top_k=4,
            top_p=0.9,
            temperature=0.5,
            rng=np.random.default_rng(0),
        )
    np.testing.assert_array_equal(model.table, table)
    np.testing.assert_array_equal(ids, [[1, 2, 1]])
    np.testing.assert_array_equal(mask, [[0, 1, 1]])


# --- beams ----------------------------------------------------------------------------------------


def every_sequence(model, prompt, length, eos):
    """All continuations that end in eos or at length, with their log-probabilities."""
    found = {}
    for size in range(1, length + 1):
        for tokens in itertools.product(range(model.config.vocab_size), repeat=size):
            ends = tokens[-1] in eos
            if any(one in eos for one in tokens[:-1]) or not (ends or size == length):
                continue
            found[tokens] = log_probability(model, prompt, tokens)
    return found


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 0.7, 2.0])
def test_beams_wide_enough_find_the_best_of_all_sequences(early_stopping, length_penalty):
    model, eos = PrefixModel(vocab_size=3), (2,)
    found = every_sequence(model, [1], 4, eos)
    assert len(found) < 81
    ranked = sorted(found.items(), key=lambda one: -one[1] / len(one[0]) ** length_penalty)
    got = beam_search(
        model,
        [[1]],
        num_beams=81,
        max_new_tokens=4,
        eos_token_id=2,
        pad_token_id=0,
        early_stopping=early_stopping,
        length_penalty=length_penalty,
        num_return_sequences=len(found),
    )
    for row, score, (tokens, total) in zip(got.ids, got.scores, ranked, strict=True):
        assert row.tolist() == [1, *tokens, *[0] * (4 - len(tokens))]
        assert math.isclose(score, total / len(tokens) ** length_penalty, abs_tol=1e-5)


def textbook_beam_search(model, prompt, *, beams, length, eos):
    """Lists of (score, tokens): extend all, keep the best, until nothing running can win."""
    running, ended = [(0.0, ())], []
    for size in range(1, length + 1):
        extended = []
        for score, tokens in running:
            logp = log_softmax(model.row_logits([*prompt, *tokens])[None])[0].astype(np.float64)
            extended += [(score + logp[one], (*tokens, one)) for one in range(len(logp))]
        extended.sort(reverse=True)
        for rank, one in enumerate(extended[: 2 * beams]):
            if (one[1][-1] == eos or size == length) and rank < beams:
                ended.append(one)
        ended = sorted(ended, reverse=True)[:beams]
        running = [one for one in extended if one[1][-1] != eos][:beams]
        if len(ended) == beams and running[0][0] <= ended[-1][0]:
            break
    return ended


@pytest.mark.parametrize("beams", [2, 3, 5])
@pytest.mark.parametrize("use_cache", [True, False])
def test_beam_search_is_the_textbooks(beams, use_cache):
    model = PrefixModel(vocab_size=6, spread=1.0)
    for first in range(6):
        prompts = [[first, 1], [first, 4]]
        got = beam_search(
            model,
            prompts,
            attention_mask=np.ones((2, 2)),  # the padding id occurs as a token
            num_beams=beams,
            max_new_tokens=8,
            eos_token_id=5,
            pad_token_id=0,
            early_stopping="never",
            length_penalty=0.0,
            num_return_sequences=beams,
            use_cache=use_cache,
        )
        for which, prompt in enumerate(prompts):
            expected = textbook_beam_search(model, prompt, beams=beams, length=8, eos=5)
            for place, (score, tokens) in enumerate(expected):
                row = got.ids[which * beams + place].tolist()
                assert row[: 2 + len(tokens)] == [*prompt, *tokens]
                assert not any(row[2 + len(tokens) :])
                assert math.isclose(got.scores[which * beams + place], score, abs_tol=1e-5)


def test_beam_search_stops_reading_when_nothing_can_change():
    # Ending at once is the most probable by far; beams fill and the rest cannot catch up.
    model = BigramModel(np.log([[0.9, 0.06, 0.04]] * 3))
    for early_stopping, steps in ((True, 2), (False, 2), ("never", 2)):
        model.reads = []
        settings = {"max_new_tokens": 30, "eos_token_id": 0, "length_penalty": 0.0}
        beam_search(model, [[1]], num_beams=2, early_stopping=early_stopping, **settings)
        assert len(model.reads) == steps
    # Longer sequences win under this length penalty: only True stops at the second end.
    model = BigramModel(np.log([[0.3, 0.6, 0.1]] * 3))
    for early_stopping, steps in ((True, 2), (False, 30), ("never", 30)):
        model.reads = []
        settings = {"max_new_tokens": 30, "eos_token_id": 0, "length_penalty": 4.0}
        beam_search(model, [[1]], num_beams=2, early_stopping=early_stopping, **settings)
        assert len(model.reads) == steps


def test_one_beam_without_an_end_is_greedy():
    model = PrefixModel()
    np.testing.assert_array_equal(
        beam_search(model, [[1], [4]], num_beams=1, max_new_tokens=8).ids,
        generate(model, [[1], [4]], max_new_tokens=8),
    )


def test_beams_of_different_prompts_do_not_mix():
    model = PrefixModel()
    settings = {"num_beams": 3, "max_new_tokens": 7, "eos_token_id": 6, "pad_token_id": 0}
    together = beam_search(model, [[1], [2], [3]], **settings)
    for which, first in enumerate((1, 2, 3)):
        alone = beam_search(model, [[first]], **settings)
        width = alone.ids.shape[1]
        np.testing.assert_array_equal(together.ids[which, :width], alone.ids[0])
        assert together.scores[which] == alone.scores[0]
        assert not together.ids[which, width:].any()


def test_beam_sampling_draws_without_replacement_in_proportion():
    # One step, all candidates done at once: the first beam is the best of the drawn ones.
    p = np.array([0.6, 0.3, 0.1])
    model = BigramModel(np.log([p] * 3))
    n = 3_000
    got = beam_search(
        model,
        np.zeros((n, 1), dtype=int),
        num_beams=2,
        max_new_tokens=1,
        do_sample=True,
        rng=np.random.default_rng(0),
        num_return_sequences=2,
    )
    pairs = got.ids[:, 1].reshape(n, 2)
    assert (pairs[:, 0] < pairs[:, 1]).all()  # two different tokens, the more probable first
    for a, b in itertools.combinations(range(3), 2):
        wanted = p[a] * p[b] / (1 - p[a]) + p[b] * p[a] / (1 - p[b])
        share = ((pairs == (a, b)).all(axis=1)).mean()
        assert abs(share - wanted) < 6 * math.sqrt(wanted * (1 - wanted) / n)


# --- what cannot be -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([[1, 2], [3, 9]], ShapeError, r"contains 9 at \[1, 1\], but this model has vocab_size=7"),
        ([[1, -100]], ShapeError, r"contains -100 at \[0, 1\], but ids start at 0"),
        ([[1.0, 2.0]], DtypeError, "float64"),
        ([[True]], DtypeError, "bool"),
        ([1, 2], ShapeError, r"shape \(2,\)"),
        ([[[1]]], ShapeError, r"shape \(1, 1, 1\)"),
        ([[]], ShapeError, "nothing to continue"),
        ([[1, 2], [3]], ShapeError, "different lengths"),
    ],
)
def test_prompts_that_cannot_be_are_refused(ids, error, message):
    with pytest.raises(error, match=message):
        generate(PrefixModel(), ids)


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        ([[1, 1]], ShapeError, r"shape \(1, 2\), input_ids \(2, 2\)"),
        ([[1, 1], [1, 0]], ShapeError, "padded on the right"),
        ([[1, 1], [0, 0]], ShapeError, "only zeros in row 1"),
        ([[0, 2], [1, 1]], ConfigError, "contains 2"),
        ([[0.0, -1e9], [0.0, 0.0]], ConfigError, "Additive masks"),
    ],
)
def test_masks_that_cannot_be_are_refused(mask, error, message):
    with pytest.raises(error, match=message):
        generate(PrefixModel(), [[1, 2], [3, 4]], attention_mask=mask)


def test_prompts_padded_on_the_right_are_refused_without_a_mask_too():
    with pytest.raises(ShapeError, match="guessed from pad_token_id=0, ends in 0 in row 1"):
        generate(PrefixModel(), [[1, 2], [3, 0]], pad_token_id=0)


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": 0},
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_k": -1},
        {"top_k": 2.5},
        {"repetition_penalty": 0.0},
        {"no_repeat_ngram_size": -1},
        {"num_beams": 0},
        {"num_beams": True},
        {"num_beams": 2, "num_return_sequences": 3},
        {"num_return_sequences": 2},
        {"num_return_sequences": 0},
        {"length_penalty": math.inf},
        {"length_penalty": 200.0},
        {"early_stopping": "sometimes"},
        {"early_stopping": 1},
        {"max_new_tokens": 0},
        {"max_length": 2},
        {"max_length": 4, "min_length": 5},
        {"max_new_tokens": 4, "min_new_tokens": 5},
        {"eos_token_id": 7},
        {"eos_token_id": -1},
        {"pad_token_id": 7},
        {"do_sample": True},
        {"do_sample": True, "rng": 0},
        {"num_beams": 2, "on_token": print},
        {"num_beams": 2, "eos_token_id": list(range(7))},
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused_with_their_value(setting):
    with pytest.raises(ConfigError) as caught:
        generate(PrefixModel(), [[1, 2]], **setting)
    name, value = list(setting.items())[-1]
    if name == "on_token":
        assert "on_token with num_beams=2" in str(caught.value)
    elif isinstance(value, list):
        assert "7 end ids looks at 8 candidates" in str(caught.value)
    else:
        assert f"{name}={value!r}" in str(caught.value)
    if setting.get("do_sample"):
        assert "np.random.default_rng(seed)" in str(caught.value)


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_refused(beams, bad):
    table = np.zeros((4, 4))
    table[2, 1] = bad
    table[1, 2] = 5
    with pytest.raises(NonFiniteError, match="token 2 of row"):
        generate(BigramModel(table), [[1]], num_beams=beams)


def test_logits_of_minus_infinity_forbid_a_token():
    table = np.zeros((4, 4))
    table[:, 1:3] = -np.inf
    got = generate(
        BigramModel(table), [[1]], do_sample=True, max_new_tokens=50, rng=np.random.default_rng(0)
    )
    assert set(got[0, 1:].tolist()) == {0, 3}


@pytest.mark.parametrize("beams", [1, 2])
def test_rules_that_ban_every_token_say_so(beams):
    with pytest.raises(ConfigError, match="no_repeat_ngram_size=1"):
        generate(PrefixModel(), [[0]], no_repeat_ngram_size=1, max_new_tokens=9, num_beams=beams)
    got = generate(PrefixModel(), [[0]], no_repeat_ngram_size=1, max_new_tokens=6, num_beams=beams)
    assert sorted(got[0].tolist()) == list(range(7))


def test_a_temperature_too_small_for_float32_says_so():
    model = PrefixModel()
    for top_p in (1.0, 0.5):
        with pytest.raises(NonFiniteError, match="temperature=1e-40"):
            generate(
                model,
                [[1]],
                do_sample=True,
                temperature=1e-40,
                top_p=top_p,
                rng=np.random.default_rng(0),
            )


def test_a_model_that_returns_another_shape_is_named():
    model = PrefixModel()
    model.row_logits = lambda tokens: np.zeros(3, dtype=np.float32)
    with pytest.raises(ShapeError, match=r"PrefixModel returned shape \(1, 3\); expected \(1, 7\)"):
        generate(model, [[1]])
