"""Encoders and decoders: every score's value and gradient, alignments, padding, and text written."""

import itertools

import numpy as np
import pytest

from tinyplm import Tensor, check_grad
from tinyplm.errors import ConfigError, ShapeError
from tinyplm.generate import beam_search, generate
from tinyplm.models.seq2seq import (
    ATTENTIONS,
    SIZES,
    Additive,
    Dot,
    General,
    Seq2Seq,
    Seq2SeqConfig,
)
from tinyplm.nn import Inspection
from tinyplm.objectives import SequenceToSequence

KINDS = [
    {"attention": None},
    {"attention": None, "cell": "gru"},
    {"attention": "additive", "bidirectional": True, "cell": "gru"},
    {"attention": "additive", "layers": 2},
    {"attention": "dot"},
    {"attention": "general", "bidirectional": True},
    {"attention": "concat", "cell": "rnn", "layers": 1},
    {"attention": "general", "input_feeding": True, "bidirectional": True},
    {"attention": "concat", "input_feeding": True, "cell": "gru"},
]
kinds = pytest.mark.parametrize(
    "kind", KINDS, ids=lambda kind: " ".join(f"{k}={v}" for k, v in kind.items())
)
MASK = (np.arange(7) < np.array([[7], [3], [5]])).astype(int)


def model(kind, *, dtype="float64", **settings):
    config = Seq2SeqConfig(
        **(
            {"vocab_size": 13, "embedding_size": 5, "hidden_size": 6, "layers": 2}
            | {"decoder_start": 1, "init_std": 0.5}
            | kind
            | settings
        )
    )
    made = Seq2Seq(config, rng=np.random.default_rng(0))
    rng = np.random.default_rng(1)
    made.load(
        {
            k: (a + 0.3 * rng.standard_normal(a.shape)).astype(dtype)
            for k, a in made.arrays().items()
        }
    )
    return made


def texts(rows=3, source=7, target=5, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(13, size=(rows, source)), rng.integers(13, size=(rows, target))


@kinds
@pytest.mark.parametrize("turned", [False, True], ids=["", "reversed"])
def test_the_gradient_is_the_derivative_with_padding_and_dropout(kind, turned):
    s2s = model(kind, reversed=turned, dropout=0.2)
    ids, target = texts()
    objective = SequenceToSequence(end_id=1, padding_id=0, smoothing=0.1)
    batch = objective.prepare(
        {
            "input_ids": ids,
            "attention_mask": MASK,
            "target_ids": target,
            "target_mask": (np.arange(5) < np.array([[2], [5], [0]])).astype(int),
        },
        rng=np.random.default_rng(0),
    )
    found = check_grad(
        lambda: objective.loss(s2s, batch, rng=np.random.default_rng(3)), wrt=s2s.parameters()
    )
    assert found.derivatives >= 4
    objective.loss(s2s, batch).backward()
    assert all(p.grad is not None and p.grad.any() for p in s2s.parameters())


@kinds
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_and_batch_mates_change_nothing(kind, side):
    s2s, (ids, target) = model(kind, reversed=True), texts()
    mask = MASK if side == "right" else MASK[:, ::-1]
    hidden = s2s(ids, attention_mask=mask, decoder_input_ids=target).array
    for row in range(3):
        alone = s2s(ids[row, mask[row] == 1][None], decoder_input_ids=target[row : row + 1])
        np.testing.assert_allclose(hidden[row], alone.array[0], rtol=0, atol=1e-13)
    other = np.where(mask == 1, ids, (ids + 5) % 13)
    again = s2s(other, attention_mask=mask, decoder_input_ids=target).array
    np.testing.assert_array_equal(again, hidden)


@kinds
def test_padding_of_the_target_changes_no_state(kind):
    s2s, (ids, target) = model(kind), texts()
    mask = np.array([[0, 1, 1, 0, 1]] * 3)
    found = s2s(ids, decoder_input_ids=target, decoder_attention_mask=mask).array
    plain = s2s(ids, decoder_input_ids=target[:, [1, 2, 4]]).array
    np.testing.assert_allclose(found[:, [1, 2, 4]], plain, rtol=0, atol=1e-13)


@kinds
def test_later_tokens_of_a_target_change_nothing_before_them(kind):
    s2s, (ids, target) = model(kind), texts()
    before = s2s(ids, decoder_input_ids=target).array
    for cut in range(1, 5):
        changed = target.copy()
        changed[:, cut:] = (changed[:, cut:] + 3) % 13
        after = s2s(ids, decoder_input_ids=changed).array
        np.testing.assert_array_equal(after[:, :cut], before[:, :cut])
        assert (after[:, cut:] != before[:, cut:]).any(axis=-1).all()


@kinds
def test_every_token_of_the_source_matters_everywhere(kind):
    s2s, (ids, target) = model(kind), texts()
    before = s2s(ids, decoder_input_ids=target).array
    for place in range(7):
        changed = ids.copy()
        changed[:, place] = (changed[:, place] + 3) % 13
        after = s2s(changed, decoder_input_ids=target).array
        assert (after != before).any(axis=-1).all()


@pytest.mark.parametrize("kind", [k for k in KINDS if k["attention"]], ids=str)
@pytest.mark.parametrize("turned", [False, True], ids=["", "reversed"])
def test_weights_add_up_to_one_and_are_zero_on_padding(kind, turned):
    s2s, (ids, target), look = model(kind, reversed=turned), texts(), Inspection()
    hidden = s2s(ids, attention_mask=MASK, decoder_input_ids=target, inspection=look)
    (weights,) = (w.array for w in look.cross_attentions)
    assert weights.shape == (3, 1, 5, 7)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=0, atol=1e-14)
    assert not weights.transpose(0, 3, 1, 2)[MASK == 0].any()
    assert (weights.transpose(0, 3, 1, 2)[MASK == 1] > 0).all()
    np.testing.assert_array_equal(look.hidden_states[-1].array, hidden.array)
    assert len(look.encoder_hidden_states) == s2s.config.layers + 1
    plain = s2s(ids, attention_mask=MASK, decoder_input_ids=target)
    np.testing.assert_array_equal(plain.array, hidden.array)


def test_without_attention_there_is_no_alignment():
    look, (ids, target) = Inspection(), texts()
    model({"attention": None})(ids, decoder_input_ids=target, inspection=look)
    assert look.cross_attentions == []


@pytest.mark.parametrize("name", ["dot", "general", "additive"])
def test_scores_are_those_of_a_slow_loop_and_their_gradient_is_the_derivative(name, rng):
    width = 4 if name == "dot" else 6
    score = {"dot": lambda: Dot(), "general": lambda: General(4, 6, rng=rng)}.get(
        name, lambda: Additive(4, 6, rng=rng)
    )()
    score.load({k: a.astype("float64") for k, a in score.arrays().items()})
    q, e = (
        Tensor(rng.standard_normal(shape), requires_grad=True)
        for shape in ((2, 3, 4), (2, 5, width))
    )
    found = score(q, score.keys(e)).array
    w = score.arrays()
    for b, t, s in itertools.product(range(2), range(3), range(5)):
        h, x = q.array[b, t], e.array[b, s]
        if name == "dot":
            expected = sum(h * x)
        elif name == "general":
            expected = sum(h[i] * w["project"][j, i] * x[j] for i in range(4) for j in range(6))
        else:
            inner = h @ w["project_query"] + x @ w["project_key"]
            expected = sum(v * np.tanh(i) for v, i in zip(w["weight"], inner, strict=True))
        assert abs(found[b, t, s] - expected) < 1e-13
    check_grad(
        lambda: (score(q, score.keys(e)) * Tensor(np.sin(np.arange(30.0)).reshape(2, 3, 5))).sum(),
        wrt=[q, e, *score.parameters()],
    )


def test_the_source_is_read_from_its_end_when_reversed():
    """Without its padding; and annotations stand where the tokens stand."""
    ids, target = texts()
    forward, backward = (
        model({"attention": "general"}),
        model({"attention": "general"}, reversed=True),
    )
    turned = ids.copy()
    for row, n in enumerate(MASK.sum(axis=1)):
        turned[row, :n] = ids[row, :n][::-1]
    a = forward(turned, attention_mask=MASK, decoder_input_ids=target)
    b = backward(ids, attention_mask=MASK, decoder_input_ids=target)
    np.testing.assert_allclose(a.array, b.array, rtol=0, atol=1e-13)
    plain, found = (
        m.encode(x, attention_mask=MASK).annotations.array
        for m, x in ((forward, turned), (backward, ids))
    )
    for row, n in enumerate(MASK.sum(axis=1)):
        np.testing.assert_allclose(found[row, :n], plain[row, :n][::-1], rtol=0, atol=1e-13)


def test_sutskevers_decoder_begins_with_the_state_of_the_encoder():
    s2s, (ids, target) = model({"attention": None}), texts()
    _, states = s2s.encoder(s2s.source_embedding(ids))
    y, _ = s2s.decoder(s2s.target_embedding(target), states)
    np.testing.assert_array_equal(s2s(ids, decoder_input_ids=target).array, y.array)


def test_bahdanaus_looks_with_the_state_before_and_luongs_with_the_state_behind_a_token():
    """The last token of a target changes where Luong's decoder looks at that place, and not where Bahdanau's does."""
    ids, target = texts()
    other = target.copy()
    other[:, -1] = (other[:, -1] + 1) % 13
    for name, behind in (("additive", False), ("concat", True)):
        s2s, looks = model({"attention": name}), []
        for given in (target, other):
            look = Inspection()
            s2s(ids, decoder_input_ids=given, inspection=look)
            looks.append(look.cross_attentions[0].array[:, 0, -1])
        assert np.array_equal(*looks) != behind


def test_input_feeding_is_the_output_of_the_step_before():
    kind = {"attention": "general", "input_feeding": True, "layers": 1, "cell": "gru"}
    s2s, (ids, target) = model(kind), texts()
    memory = s2s.encode(ids)
    fed, states, found = Tensor(np.zeros((3, 6))), memory.states, []
    for t in range(5):
        x = np.concatenate([s2s.target_embedding(target[:, t]).array, fed.array], axis=1)
        states = s2s.decoder.step(Tensor(x), states)
        h = states[0][0].array
        scores = np.einsum("bk,bsk->bs", h, memory.keys.array)
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        context = np.einsum(
            "bs,bsk->bk", p / p.sum(axis=1, keepdims=True), memory.annotations.array
        )
        fed = Tensor(np.tanh(np.concatenate([context, h], axis=1) @ s2s.output.weight.array))
        found.append(fed.array)
    y = s2s(ids, decoder_input_ids=target).array
    np.testing.assert_allclose(np.stack(found, axis=1), y, rtol=0, atol=1e-13)


@kinds
def test_greedy_text_is_that_of_a_loop_and_needs_no_cache(kind):
    s2s, (ids, _) = model(kind, reversed=True), texts()
    written = np.ones((3, 1), int)
    for _ in range(6):
        y = s2s(ids, attention_mask=MASK, decoder_input_ids=written)
        best = s2s.head(y).array[:, -1].argmax(axis=-1)
        written = np.concatenate([written, best[:, None]], axis=1)
    for use_cache in (True, False):
        found = generate(s2s, ids, attention_mask=MASK, max_new_tokens=6, use_cache=use_cache)
        np.testing.assert_array_equal(found, written)


@kinds
def test_beams_equal_those_without_a_cache_and_those_of_a_text_alone(kind):
    s2s, (ids, _) = model(kind), texts()
    settings = {"num_beams": 4, "max_new_tokens": 6, "eos_token_id": 3, "num_return_sequences": 2}
    found = beam_search(s2s, ids, attention_mask=MASK, **settings)
    plain = beam_search(s2s, ids, attention_mask=MASK, use_cache=False, **settings)
    np.testing.assert_array_equal(found.ids, plain.ids)
    np.testing.assert_allclose(found.scores, plain.scores, rtol=0, atol=1e-5)
    for row in range(3):
        alone = beam_search(s2s, ids[row, MASK[row] == 1][None], **settings)
        here = found.ids[2 * row : 2 * row + 2, : alone.ids.shape[1]]
        np.testing.assert_array_equal(here, alone.ids)


def test_a_wide_beam_finds_the_likeliest_target_and_penalties_of_length_divide_its_score():
    s2s, (ids, _) = model({"attention": "general"}, vocab_size=4, source_vocab_size=13), texts(1)

    def score(target):
        written = np.array([[1, *target[:-1]]])
        logits = s2s.head(s2s(ids, decoder_input_ids=written)).array[0]
        p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        return sum(p[t, token] for t, token in enumerate(target))

    best = max(itertools.product(range(4), repeat=3), key=score)
    for normalization, divisor in (("power", 3.0), ("gnmt", 8 / 6)):
        for penalty in (0.0, 0.6):
            found = beam_search(
                s2s, ids, num_beams=16, max_new_tokens=3, early_stopping="never",
                length_penalty=penalty, length_normalization=normalization,
            )  # fmt: skip
            assert tuple(found.ids[0, 1:]) == best
            assert abs(found.scores[0] - score(best) / divisor**penalty) < 1e-5


def test_published_sizes_are_built_without_taking_memory():
    assert Seq2Seq(SIZES["sutskever"], rng=None).parameter_count == 384_112_000
    assert {c.attention for c in SIZES.values()} == {None, "additive", "general"}
    assert set(ATTENTIONS) >= {c.attention for c in SIZES.values()}


def test_what_cannot_be_is_refused_in_words():
    s2s, (ids, target) = model({"attention": "dot"}), texts()
    with pytest.raises(ShapeError, match=r"decoder_input_ids is missing.*generate"):
        s2s(ids)
    with pytest.raises(ShapeError, match="2 rows, but 3 sources were read"):
        s2s(ids, decoder_input_ids=target[:2])
    with pytest.raises(ShapeError, match=r"decoder_input_ids contains \d+ at \[0, 0\]"):
        s2s(ids, decoder_input_ids=target + 13)
    with pytest.raises(ShapeError, match=r"attention_mask has shape \(3, 5\)"):
        s2s(ids, attention_mask=np.ones((3, 5)), decoder_input_ids=target)
    for settings, message in (
        ({"attention": "dot", "bidirectional": True}, r"twice as wide.*'general'"),
        ({"attention": None, "bidirectional": True}, r"would not be used.*reversed=True"),
        ({"attention": None, "input_feeding": True}, "input_feeding=True with attention=None"),
        ({"attention": "additive", "input_feeding": True}, "attention='additive'"),
        ({"attention": "mult"}, r"attention is 'mult'; known: None, additive"),
        ({"decoder_start": 50_000}, "decoder_start is 50000.*vocab_size=50000"),
        ({"reversed": 1}, "reversed is 1, but it must be true or false"),
        ({"dropout": 1.0}, r"dropout is 1\.0"),
        ({"source_vocab_size": 0}, "source_vocab_size is 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            Seq2SeqConfig(**settings)
