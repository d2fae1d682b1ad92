"""Prefix language modelling: where texts are divided, and what becomes of the parts."""

import math

import numpy as np

from tinyplm.objectives import PrefixLM


def prepare(ids, seed=0, mask=None, **settings):
    batch = {"input_ids": np.asarray(ids)}
    batch |= {} if mask is None else {"attention_mask": np.asarray(mask)}
    return PrefixLM(end=1, **settings).prepare(batch, rng=np.random.default_rng(seed))


def parts(made, row):
    inputs = made["input_ids"][row][made["attention_mask"][row] == 1]
    labels = made["labels"][row]
    return inputs.tolist(), labels[labels != -100].tolist()


def test_a_text_is_divided_and_both_parts_end():
    ids = np.arange(100, 124).reshape(3, 8)
    made = prepare(ids)
    for row in range(3):
        inputs, labels = parts(made, row)
        assert inputs[-1] == labels[-1] == 1
        assert inputs[:-1] + labels[:-1] == ids[row].tolist()
        assert len(inputs) >= 2
        assert len(labels) >= 2


def test_widths_do_not_depend_on_the_draw():
    for seed in range(20):
        made = prepare(np.arange(100, 108)[None], seed=seed)
        assert {made[key].shape for key in ("input_ids", "labels", "decoder_input_ids")} == {(1, 8)}


def test_every_place_is_equally_likely():
    made = prepare(np.tile(np.arange(100, 106), (30_000, 1)))
    counts = np.bincount(made["attention_mask"].sum(axis=1) - 1)
    assert counts[0] == 0
    deviation = math.sqrt(30_000 * 0.2 * 0.8)
    assert len(counts) == 6
    assert np.abs(counts[1:] - 6_000).max() < 6 * deviation


def test_two_tokens_become_one_and_one():
    assert parts(prepare([[7, 8]]), 0) == ([7, 1], [8, 1])


def test_the_decoder_reads_the_labels_one_later():
    made = prepare(np.arange(100, 108)[None], start=5, padding=3)
    labels, read = made["labels"][0], made["decoder_input_ids"][0]
    assert read[0] == 5
    np.testing.assert_array_equal(read[1:], np.where(labels[:-1] == -100, 3, labels[:-1]))


def test_padding_on_either_side_is_no_text():
    mask = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]])
    made = prepare(np.arange(100, 115).reshape(3, 5), mask=mask)
    for row, text in ((0, [102, 103, 104]), (1, [105, 106, 107])):
        inputs, labels = parts(made, row)
        assert inputs[:-1] + labels[:-1] == text
    assert parts(made, 2)[1] == []


def test_windows_are_of_the_length_that_a_model_reads():
    batch = next(PrefixLM(end=1).batches(np.arange(1_000), length=64, batch=3, seed=0))
    assert batch["input_ids"].shape == (3, 64)
    assert prepare(batch["input_ids"])["input_ids"].shape == (3, 64)
