"""Streams that go on, states that are carried, and gradients that stop."""

import itertools

import numpy as np
import pytest

from tinyplm import no_grad
from tinyplm.errors import ConfigError, DataError
from tinyplm.models.gpt2 import Gpt2, Gpt2Config
from tinyplm.models.recurrent_lm import RecurrentConfig, RecurrentLM
from tinyplm.objectives import TruncatedBptt
from tinyplm.optim import AdamW
from tinyplm.text.streams import Streams
from tinyplm.train.evaluate import validation_loss
from tinyplm.train.loop import train

TEXT = np.random.default_rng(0).integers(13, size=400)


def model(cell="lstm", dtype="float64", dropout=0.0):
    config = RecurrentConfig(
        cell=cell,
        vocab_size=13,
        hidden_size=6,
        layers=2,
        dropout=dropout,
        embedding_dropout=dropout,
    )
    made = RecurrentLM(config, rng=np.random.default_rng(0))
    made.load({k: (2 * a).astype(dtype) for k, a in made.arrays().items()})
    return made


def prepared(objective, batch):
    return objective.prepare(batch, rng=np.random.default_rng(0))


# Streams


def test_rows_go_on_where_they_ended_and_predict_every_token_of_their_stream_once():
    streams = Streams(TEXT, length=7, batch=3, seed=1)
    rows = [[] for _ in range(3)]
    for number in range(streams.per_epoch):
        batch = next(streams)
        assert batch["input_ids"].shape == (3, 8)
        assert batch["input_ids"].dtype == np.int64
        assert batch["fresh"].tolist() == [number == 0] * 3
        for row, ids in zip(rows, batch["input_ids"].tolist(), strict=True):
            assert not row or row[-1] == ids[0]
            row += ids if not row else ids[1:]
    text = TEXT.tolist()
    starts = [next(i for i in range(400) if text[i : i + len(row)] == row) for row in rows]
    length = len(rows[0])
    assert all(b - a >= length - 1 for a, b in itertools.pairwise(starts))
    assert length > 0.9 * 400 / 3
    assert next(streams)["fresh"].all()  # the next epoch


def test_epochs_begin_elsewhere_and_seeds_matter():
    def first(seed, epoch):
        streams = Streams(TEXT, length=20, batch=3, seed=seed)
        for _ in range(epoch * streams.per_epoch):
            next(streams)
        return next(streams)["input_ids"].tolist()

    found = [first(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert len({str(ids) for ids in found}) > 5
    assert first(1, 0) == first(1, 0)


@pytest.mark.parametrize("steps", [0, 1, 17, 18, 19, 40])
def test_a_restored_source_gives_the_batches_that_would_have_come(steps):
    source = Streams(TEXT, length=7, batch=3, seed=2)
    for _ in range(steps):
        next(source)
    again = Streams(TEXT, length=7, batch=3, seed=2)
    again.restore(source.state())
    for _ in range(25):
        a, b = next(source), next(again)
        np.testing.assert_array_equal(a["input_ids"], b["input_ids"])
        np.testing.assert_array_equal(a["fresh"], b["fresh"])


@pytest.mark.parametrize("key", ["length", "batch", "seed", "tokens"])
def test_a_state_of_other_settings_is_refused(key):
    settings = {"length": 7, "batch": 3, "seed": 2}
    state = Streams(TEXT, **settings).state() | {key: 5}
    with pytest.raises(ConfigError, match=f"{key} was 5 and is"):
        Streams(TEXT, **settings).restore(state)


@pytest.mark.parametrize("count", [8, 9, 30, 100, 101, 399])
def test_in_order_reads_all_but_fewer_tokens_than_there_are_streams(count):
    streams = Streams(TEXT[:count], length=7, batch=4, seed=0)
    batches = list(streams.in_order())
    rows = min(4, (count - 1) // 7)
    read = sum(batch["input_ids"][:, 1:].size for batch in batches)
    assert count - 1 - read < rows
    assert [bool(batch["fresh"].all()) for batch in batches] == [True] + [False] * (
        len(batches) - 1
    )
    for a, b in itertools.pairwise(batches):
        np.testing.assert_array_equal(a["input_ids"][:, -1], b["input_ids"][:, 0])
    np.testing.assert_array_equal(batches[0]["input_ids"][0], TEXT[:8])


def test_a_text_that_is_too_short_is_refused_in_words():
    with pytest.raises(DataError, match="7 tokens, but one window needs 8"):
        Streams(TEXT[:7], length=7, batch=1)
    with pytest.raises(
        DataError, match=r"20 tokens, too few for 4 streams of 7.*batch to at most 2"
    ):
        next(Streams(TEXT[:20], length=7, batch=4))
    with pytest.raises(ConfigError, match="length=0"):
        Streams(TEXT, length=0, batch=1)


# The state


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_windows_with_a_carried_state_lose_what_one_long_window_loses(cell):
    lm, pieces, whole = model(cell), TruncatedBptt(), TruncatedBptt()
    losses = [
        pieces.loss(lm, prepared(pieces, batch)).item()
        for batch in Streams(TEXT[:85], length=7, batch=4).in_order()
    ]
    (long,) = Streams(TEXT[:85], length=21, batch=4).in_order()
    assert abs(np.mean(losses) - whole.loss(lm, prepared(whole, long)).item()) < 1e-12


def test_the_gradient_stops_at_the_boundary():
    """That of the second window is the gradient with the state of the first given as numbers."""
    lm, objective = model(), TruncatedBptt()
    first, second, *_ = Streams(TEXT, length=7, batch=4).in_order()
    objective.loss(lm, prepared(objective, first))
    lm.clear_gradients()
    objective.loss(lm, prepared(objective, second)).backward()
    found = [p.grad for p in lm.parameters()]
    with no_grad():
        _, state = lm.read(first["input_ids"][:, :-1])
    lm.clear_gradients()
    batch = prepared(objective, second)
    hidden, _ = lm.read(batch["input_ids"], state)
    lm.head.cross_entropy(hidden, batch["labels"], scale=1 / 28).backward()
    for p, gradient in zip(lm.parameters(), found, strict=True):
        np.testing.assert_allclose(gradient, p.grad, rtol=0, atol=1e-14)
    both = [first["input_ids"], second["input_ids"][:, 1:]]
    whole = prepared(objective, {"input_ids": np.concatenate(both, axis=1)})
    lm.clear_gradients()
    hidden, _ = lm.read(whole["input_ids"])
    lm.head.cross_entropy(hidden[:, 7:], whole["labels"][:, 7:], scale=1 / 28).backward()
    assert any(
        abs(p.grad - g).max() > 1e-6 for p, g in zip(lm.parameters(), found, strict=True)
    )  # a gradient that goes further is another


def test_rows_that_begin_forget_and_the_others_do_not():
    lm, objective = model(), TruncatedBptt()
    first, second, *_ = Streams(TEXT, length=7, batch=4).in_order()
    objective.read(lm, prepared(objective, first))
    mixed = prepared(objective, second | {"fresh": np.array([True, False, False, True])})
    found = objective.read(lm, mixed).array
    anew = lm(mixed["input_ids"]).array
    np.testing.assert_allclose(found[[0, 3]], anew[[0, 3]], rtol=0, atol=1e-14)
    assert (np.abs(found - anew).max(axis=(1, 2)) > 1e-4).tolist() == [False, True, True, False]


def test_evaluation_leaves_the_state_of_training_alone_and_gives_the_same_each_time():
    lm, objective = model(), TruncatedBptt()
    streams = Streams(TEXT, length=7, batch=4)
    for _ in range(3):
        objective.loss(lm, prepared(objective, next(streams)))
    before = {k: a.copy() for k, a in objective.arrays().items()}
    held_out = Streams(TEXT[100:], length=5, batch=2)
    rng = np.random.default_rng(0)
    scores = {validation_loss(lm, objective, held_out.in_order(), rng=rng) for _ in range(2)}
    assert len(scores) == 1
    assert before.keys() == objective.arrays().keys() == {"0.0", "0.1", "1.0", "1.1"}
    for name, array in objective.arrays().items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_going_on_from_what_was_saved_equals_never_stopping(cell):
    def begin():
        lm = model(cell, "float32", dropout=0.2)
        return lm, TruncatedBptt(), Streams(TEXT, length=7, batch=4), AdamW(lm.named_parameters())

    def run(lm, objective, streams, optimizer, start, steps):
        rng = np.random.default_rng(start)
        schedule = lambda step: 1e-2  # noqa: E731
        return [
            s.loss
            for s in train(
                lm, objective, streams, optimizer, schedule, rng=rng, start=start, steps=steps
            )
        ]

    lm, objective, streams, optimizer = begin()
    run(lm, objective, streams, optimizer, 0, 5)
    saved = (
        {k: a.copy() for k, a in lm.arrays().items()},
        {k: a.copy() for k, a in objective.arrays().items()},
        streams.state(),
        {k: a.copy() for k, a in optimizer.arrays().items()},
        optimizer.state(),
    )
    losses = run(lm, objective, streams, optimizer, 5, 30)
    again, other, source, update = begin()
    again.load(saved[0])
    other.restore(saved[1])
    source.restore(saved[2])
    update.restore(saved[3], saved[4])
    assert run(again, other, source, update, 5, 30) == losses
    for name, array in lm.arrays().items():
        np.testing.assert_array_equal(array, again.arrays()[name])


def test_nothing_to_go_on_from_is_said():
    lm, objective = model(), TruncatedBptt()
    first, second, *_ = Streams(TEXT, length=7, batch=4).in_order()
    with pytest.raises(DataError, match="4 of 4 streams go on from an earlier batch, but nothing"):
        objective.read(lm, prepared(objective, second))
    objective.read(lm, prepared(objective, first))
    fewer = {k: v[:3] for k, v in prepared(objective, second).items()}
    with pytest.raises(DataError, match=r"3 of 3 streams go on .* the state of 4 streams"):
        objective.read(lm, fewer)
    objective.restore({})
    with pytest.raises(DataError, match="but nothing was carried over"):
        objective.read(lm, prepared(objective, second))


def test_a_model_without_a_state_is_refused():
    gpt = Gpt2(Gpt2Config(vocab_size=13, hidden_size=8, layers=1, heads=2, positions=8), rng=None)
    objective = TruncatedBptt()
    with pytest.raises(ConfigError, match=r"'tbptt' carries a state .* Gpt2 does not have"):
        objective.read(gpt, prepared(objective, next(Streams(TEXT, length=7, batch=2))))
