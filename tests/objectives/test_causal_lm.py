"""Causal language modelling by hand, by loops, and with padding."""

import math

import numpy as np
import pytest

from tinyplm import Tensor
from tinyplm.errors import DataError
from tinyplm.nn import Head, Module
from tinyplm.objectives import CausalLM


class Bigram(Module):
    """Predicts from the last token alone: hidden states are one-hot, so the head holds the logits."""

    def __init__(self, logits, bias=None):
        self.size = len(logits)
        self.head = Head(
            Tensor(np.asarray(logits).T, requires_grad=True),
            None if bias is None else Tensor(bias, requires_grad=True),
        )

    def __call__(self, ids, **_):
        return Tensor(np.eye(self.size)[ids])


def prepare(ids, mask=None, **settings):
    batch = {"input_ids": np.array(ids)} | (
        {} if mask is None else {"attention_mask": np.array(mask)}
    )
    return CausalLM(**settings).prepare(batch, rng=np.random.default_rng(0))


def test_a_window_becomes_inputs_and_labels_one_apart():
    made = prepare([[5, 6, 7, 8]])
    assert made["input_ids"].tolist() == [[5, 6, 7]]
    assert made["labels"].tolist() == [[6, 7, 8]]
    assert "attention_mask" not in made
    assert CausalLM().counts(made) == {"tokens": 3.0}


def test_padding_is_no_label_and_neither_is_what_follows_it():
    made = prepare(
        [[5, 6, 7, 8], [5, 6, 0, 0], [0, 0, 7, 8]], [[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]]
    )
    assert made["labels"].tolist() == [[6, 7, 8], [6, -100, -100], [-100, -100, 8]]
    assert made["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0], [0, 0, 1]]
    assert CausalLM().counts(made) == {"tokens": 5.0}


def test_masks_may_be_booleans_and_other_fields_pass():
    batch = {
        "input_ids": np.array([[1, 2, 3]]),
        "attention_mask": np.array([[True, True, False]]),
        "source": np.array([9]),
    }
    made = CausalLM().prepare(batch, rng=np.random.default_rng(0))
    assert made["labels"].tolist() == [[2, -100]]
    assert made["source"].tolist() == [9]


def test_a_loss_small_enough_to_do_by_hand():
    # After 0 come 0 and 1 with odds 1 : 3, after 1 with odds 1 : 1.
    model = Bigram([[0.0, math.log(3)], [0.0, 0.0]])
    made = prepare([[0, 1, 1, 0, 0]])  # 0 to 1: 3/4, 1 to 1: 1/2, 1 to 0: 1/2, 0 to 0: 1/4
    expected = -(math.log(3 / 4) + 2 * math.log(1 / 2) + math.log(1 / 4)) / 4
    loss = CausalLM().loss(model, made)
    assert math.isclose(loss.item(), expected, rel_tol=1e-15)
    loss.backward()
    # The logit of 1 after 0 was expected with 3/4 twice, and 1 came once: (2 * 3/4 - 1) / 4.
    np.testing.assert_allclose(
        model.head.weight.grad, [[-1 / 8, 0.0], [1 / 8, 0.0]], rtol=0, atol=1e-15
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_the_loss_equals_a_slow_loop(rng, smoothing):
    logits, bias = rng.standard_normal((7, 7)) * 3, rng.standard_normal(7)
    ids = rng.integers(7, size=(5, 9))
    mask = (np.arange(9) < rng.integers(2, 10, size=(5, 1))).astype(int)
    loss = CausalLM(smoothing=smoothing).loss(Bigram(logits, bias), prepare(ids, mask))
    losses = []
    for row in range(5):
        for t in range(8):
            if not (mask[row, t] and mask[row, t + 1]):
                continue
            scores = [logits[ids[row, t], v] + bias[v] for v in range(7)]
            total = sum(math.exp(s) for s in scores)
            for v in range(7):
                share = smoothing / 7 + (1 - smoothing) * (v == ids[row, t + 1])
                losses.append(-share * math.log(math.exp(scores[v]) / total))
    count = int((mask[:, 1:] & mask[:, :-1]).sum())
    assert math.isclose(loss.item(), sum(losses) / count, rel_tol=1e-13)


def test_what_padding_holds_never_matters(rng):
    from tinyplm.models.gpt2 import Gpt2, Gpt2Config

    model = Gpt2(
        Gpt2Config(vocab_size=7, hidden_size=8, layers=1, heads=2, positions=8),
        rng=np.random.default_rng(0),
    )
    ids = rng.integers(7, size=(3, 8))
    mask = (np.arange(8) < np.array([[8], [3], [5]])).astype(int)
    other = np.where(mask == 1, ids, (ids + 1) % 7)
    losses = [CausalLM().loss(model, prepare(x, mask)).item() for x in (ids, other)]
    assert losses[0] == losses[1]
    alone = [
        CausalLM().loss(model, prepare(ids[i : i + 1, :n])).item() * (n - 1)
        for i, n in enumerate([8, 3, 5])
    ]
    assert math.isclose(losses[0], sum(alone) / 13, rel_tol=1e-6)


def test_windows_with_nothing_to_predict_are_refused_in_words():
    with pytest.raises(DataError, match=r"window of 1 token has nothing to predict.*at least 2"):
        prepare([[3]])
    with pytest.raises(DataError, match="No token of this batch is a label"):
        CausalLM().loss(Bigram(np.zeros((4, 4))), prepare([[1, 2]], [[0, 0]]))


def test_given_counts_take_the_place_of_the_batchs_own():
    model, made = Bigram(np.zeros((4, 4))), prepare([[1, 2, 3]])
    assert math.isclose(
        CausalLM().loss(model, made, counts={"tokens": 8.0}).item(), 2 * math.log(4) / 8
    )
