"""Teacher forcing by hand and by a slow loop; ends, starts and padding."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from tinyplm import Tensor
from tinyplm.errors import ConfigError
from tinyplm.models.seq2seq import Seq2Seq, Seq2SeqConfig
from tinyplm.nn import Head, Module
from tinyplm.objectives import SequenceToSequence
from tinyplm.text import Tokenizer

END, PAD = 1, 0


def prepare(batch, **settings):
    objective = SequenceToSequence(end_id=END, padding_id=PAD, **settings)
    given = {k: np.array(v) for k, v in batch.items()}
    return objective.prepare(given, rng=np.random.default_rng(0))


BATCH = {
    "input_ids": [[5, 6, 7], [8, 9, 9]],
    "attention_mask": [[1, 1, 1], [1, 0, 0]],
    "target_ids": [[3, 4], [9, 9]],
    "target_mask": [[1, 1], [0, 0]],
}


def test_ends_follow_sources_and_targets_and_the_decoder_reads_one_behind():
    made = {k: v.tolist() for k, v in prepare(BATCH).items()}
    assert made == {
        "input_ids": [[5, 6, 7, 1], [8, 1, 0, 0]],
        "attention_mask": [[1, 1, 1, 1], [1, 1, 0, 0]],
        "decoder_input_ids": [[1, 3, 4], [1, 1, 0]],
        "decoder_attention_mask": [[1, 1, 1], [1, 0, 0]],
        "labels": [[3, 4, 1], [1, -100, -100]],
    }


def test_other_fields_pass():
    assert prepare(BATCH | {"weight": [1, 2]})["weight"].tolist() == [1, 2]


def test_counts_are_target_tokens_with_their_ends():
    objective = SequenceToSequence(end_id=END, padding_id=PAD)
    assert objective.counts(prepare(BATCH)) == {"tokens": 4.0}


class Bigram(Module):
    """Predicts from the last token of the target alone: hidden states are one-hot, the head holds the logits."""

    def __init__(self, logits, start=None):
        self.size = len(logits)
        self.head = Head(Tensor(np.asarray(logits).T, requires_grad=True))
        self.config = SimpleNamespace(decoder_start=start)
        self.seen = None

    def __call__(self, ids, *, decoder_input_ids, **_):
        self.seen = decoder_input_ids
        return Tensor(np.eye(self.size)[decoder_input_ids])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_equals_a_slow_loop(rng, smoothing):
    logits = rng.standard_normal((10, 10)) * 2
    lengths = rng.integers(0, 5, size=6)
    targets = [rng.integers(2, 10, size=n) for n in lengths]
    target_ids = np.zeros((6, 5), int)
    for row, target in enumerate(targets):
        target_ids[row, : len(target)] = target
    batch = {
        "input_ids": rng.integers(2, 10, size=(6, 3)),
        "attention_mask": np.ones((6, 3), int),
        "target_ids": target_ids,
        "target_mask": np.arange(5) < lengths[:, None],
    }
    objective = SequenceToSequence(end_id=END, padding_id=PAD, smoothing=smoothing)
    found = objective.loss(Bigram(logits), prepare(batch)).item()
    losses = []
    for target in targets:
        before = END
        for token in [*target, END]:
            scores = logits[before]
            total = math.log(sum(math.exp(s) for s in scores))
            for v in range(10):
                share = smoothing / 10 + (1 - smoothing) * (v == token)
                losses.append(share * (total - scores[v]))
            before = token
    assert math.isclose(found, sum(losses) / (lengths.sum() + 6), rel_tol=1e-12)


def test_a_model_with_a_start_token_of_its_own_begins_with_it():
    objective, batch = SequenceToSequence(end_id=END, padding_id=PAD), prepare(BATCH)
    before = batch["decoder_input_ids"].copy()
    for start, expected in ((None, 1), (1, 1), (7, 7)):
        model = Bigram(np.zeros((10, 10)), start)
        objective.loss(model, batch)
        assert model.seen[:, 0].tolist() == [expected] * 2
        np.testing.assert_array_equal(model.seen[:, 1:], before[:, 1:])
    np.testing.assert_array_equal(batch["decoder_input_ids"], before)


def test_a_tokenizer_tells_its_end_and_padding():
    made = Tokenizer.train("chars", ["abc"], special_tokens=("<pad>", "</s>"))
    objective = SequenceToSequence.of(made, smoothing=0.1)
    assert (objective.end_id, objective.padding_id) == (made.id("</s>"), made.id("<pad>"))
    assert objective.smoothing == 0.1
    for special, lacking in (
        (("</s>",), "no padding token"),
        (("<pad>",), "no end token"),
        ((), "no end and no padding token"),
    ):
        bare = Tokenizer.train("chars", ["abc"], special_tokens=special)
        with pytest.raises(ConfigError, match=f"needs an end and a padding token.*{lacking}"):
            SequenceToSequence.of(bare)


def test_it_learns_to_turn_a_text_around(rng):
    """A model with attention, on a few pairs: their targets are written without an error."""
    from tinyplm.generate import generate
    from tinyplm.optim import AdamW
    from tinyplm.train.loop import train

    config = Seq2SeqConfig(
        vocab_size=12, embedding_size=16, hidden_size=24, layers=1, cell="gru", bidirectional=True,
        attention="general", decoder_start=END,
    )  # fmt: skip
    model = Seq2Seq(config, rng=np.random.default_rng(0))
    source = rng.integers(2, 12, size=(8, 5))
    mask = (np.arange(5) < np.array([5, 4, 3, 2, 1, 5, 4, 3])[:, None]).astype(int)
    target = np.zeros_like(source)
    for row, n in enumerate(mask.sum(axis=1)):
        target[row, :n] = source[row, :n][::-1]
    batch = {"input_ids": source, "attention_mask": mask, "target_ids": target, "target_mask": mask}
    objective = SequenceToSequence(end_id=END, padding_id=PAD)

    def forever():
        while True:
            yield batch

    steps = train(
        model, objective, forever(), AdamW(model.named_parameters(), weight_decay=0.0),
        lambda step: 2e-2, rng=np.random.default_rng(0), steps=150,
    )  # fmt: skip
    losses = [step.loss for step in steps]
    assert losses[-1] < 0.05 < 2 < losses[0]
    made = objective.prepare(batch, rng=rng)
    written = generate(
        model, made["input_ids"], attention_mask=made["attention_mask"], max_new_tokens=6,
        eos_token_id=END, pad_token_id=PAD,
    )[:, 1:]  # fmt: skip
    np.testing.assert_array_equal(written, np.where(made["labels"] == -100, PAD, made["labels"]))
