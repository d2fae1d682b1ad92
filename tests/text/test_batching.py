import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyplm.errors import ConfigError, DataError, DtypeError, ShapeError
from tinyplm.text import Windows, pad
from tinyplm.text.batching import permuted


def starts(batches, count):
    """First token of each of the next windows; tokens are their own positions in these tests."""
    return [int(s) for _ in range(count) for s in next(batches)["input_ids"][:, 0]]


@given(st.integers(1, 3000), st.lists(st.integers(0, 2**64 - 1), min_size=6, max_size=6))
def test_the_keyed_order_is_a_permutation(count, keys):
    keys = [np.uint64(key) for key in keys]
    places = np.arange(count, dtype=np.uint64)
    found = permuted(places, count, keys)
    assert np.array_equal(np.sort(found), places)
    one_by_one = [int(permuted(places[i : i + 1], count, keys)[0]) for i in range(0, count, 97)]
    assert one_by_one == found[::97].tolist()


@given(
    st.integers(2, 400), st.integers(1, 20), st.integers(1, 5), st.sampled_from(["causal", "plain"])
)
def test_an_epoch_visits_each_of_its_windows_once(tokens, length, batch, mode):
    width = length + (mode == "causal")
    if tokens < width:
        return
    windows = Windows(np.arange(tokens), length=length, batch=1, seed=3, mode=mode)
    found = starts(windows, windows.per_epoch)
    first = min(found)
    assert sorted(found) == list(range(first, first + len(found) * length, length))
    assert first < length
    assert tokens - (max(found) + width) < length, "the end of the text is left out"
    assert windows.state()["epoch"] == 0
    next(windows)
    assert windows.state()["epoch"] == 1


def test_windows_are_runs_of_the_text_and_share_one_token_for_causal_models():
    for mode, width in (("causal", 9), ("plain", 8)):
        batch = next(Windows(np.arange(1000), length=8, batch=5, seed=1, mode=mode))["input_ids"]
        assert batch.shape == (5, width)
        assert batch.dtype == np.int64
        assert np.array_equal(batch, batch[:, :1] + np.arange(width))


def test_the_order_depends_on_seed_and_epoch_and_looks_like_chance():
    def order(seed, skip=0):
        windows = Windows(np.arange(4001), length=4, batch=1, seed=seed)
        starts(windows, skip)
        return [s // 4 for s in starts(windows, 990)]

    same, other, later = order(0), order(1), order(0, 1000)
    assert same == order(0)
    # Two unrelated orders of about 1,000 agree in one place on average, with spread one.
    for first, second in ((same, other), (same, later), (same, sorted(same))):
        assert sum(a == b for a, b in zip(first, second, strict=False)) <= 7
    # The correlation of two unrelated orders has a spread of 1 / sqrt(n): six of them.
    assert abs(np.corrcoef(same, range(990))[0, 1]) < 6 / math.sqrt(990)
    assert abs(np.corrcoef(same[:-1], same[1:])[0, 1]) < 6 / math.sqrt(989)


@given(st.integers(0, 60), st.integers(1, 7))
def test_going_on_from_a_state_gives_the_same_batches(done, batch):
    tokens = np.arange(500)
    run = Windows(tokens, length=10, batch=batch, seed=5)
    for _ in range(done):
        next(run)
    state = json.loads(json.dumps(run.state()))
    again = Windows(tokens, length=10, batch=batch, seed=5)
    again.restore(state)
    for _ in range(30):
        assert np.array_equal(next(run)["input_ids"], next(again)["input_ids"])


def test_a_state_of_another_run_is_refused():
    state = Windows(np.arange(500), length=10, batch=2, seed=5).state()
    for wrong, word in (
        (Windows(np.arange(500), length=10, batch=2, seed=6), "seed was 5 and is 6"),
        (Windows(np.arange(400), length=10, batch=2, seed=5), "tokens was 500 and is 400"),
        (Windows(np.arange(500), length=11, batch=2, seed=5), "length was 10 and is 11"),
    ):
        with pytest.raises(ConfigError, match=word):
            wrong.restore(state)


def test_a_batch_larger_than_an_epoch_goes_on_with_the_next():
    windows = Windows(np.arange(9), length=8, batch=3)
    assert next(windows)["input_ids"].tolist() == [list(range(9))] * 3


def test_in_order_covers_the_text_once_and_leaves_the_iterator_alone():
    windows = Windows(np.arange(105), length=10, batch=4)
    before = windows.state()
    batches = [b["input_ids"] for b in windows.in_order()]
    assert [len(b) for b in batches] == [4, 4, 2]
    assert np.concatenate(batches)[:, 1:].ravel().tolist() == list(range(1, 101))
    assert windows.state() == before


def test_a_text_shorter_than_a_window_says_what_to_lower():
    with pytest.raises(DataError, match=r"has 8 tokens, but one window needs 9.*at most 7"):
        Windows(np.arange(8), length=8, batch=1)
    Windows(np.arange(8), length=7, batch=1)
    Windows(np.arange(8), length=8, batch=1, mode="plain")


def test_windows_that_cannot_be_are_refused():
    for wrong in ({"length": 0}, {"batch": 0}, {"seed": -1}, {"mode": "masked"}):
        with pytest.raises(ConfigError):
            Windows(np.arange(9), **({"length": 2, "batch": 1} | wrong))


def test_padding_fills_up_on_either_side():
    right = pad([[1, 2, 3], [4], []], padding=9)
    assert right["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9], [9, 9, 9]]
    assert right["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0]]
    left = pad([np.array([1, 2]), np.array([4])], padding=0, length=3, side="left")
    assert left["input_ids"].tolist() == [[0, 1, 2], [0, 0, 4]]
    assert left["attention_mask"].tolist() == [[0, 1, 1], [0, 0, 1]]
    assert left["input_ids"].dtype == left["attention_mask"].dtype == np.int64


def test_padding_refuses_what_does_not_fit():
    with pytest.raises(ShapeError, match=r"sequence 1 has 3 tokens, more than length=2"):
        pad([[1], [1, 2, 3]], padding=0, length=2)
    with pytest.raises(ShapeError, match="no sequences"):
        pad([], padding=0)
    with pytest.raises(ConfigError, match="'middle'"):
        pad([[1]], padding=0, side="middle")
    with pytest.raises(DtypeError, match="float64"):
        pad([[1.5]], padding=0)
    with pytest.raises(ShapeError, match=r"shape \(1, 1\)"):
        pad([np.ones((1, 1), int)], padding=0)
