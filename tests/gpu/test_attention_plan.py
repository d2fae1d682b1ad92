"""How attention on a card is planned, and its algorithm in NumPy: tiles, their order, the rules of who sees whom."""

import itertools
import math

import numpy as np
import pytest
import twins_attention as twins
from budgets import launches

from tinyplm.kernels import attention_plan as plan
from tinyplm.kernels.attention import Rules, attention_forward, attention_pullback, by_difference

KINDS = [
    *(plan.Kind("bfloat16", size, extras) for size in plan.SIZES for extras in range(32)),
    *(
        plan.Kind("float", size, extras)
        for size in plan.SIZES
        if size <= 128
        for extras in range(32)
    ),
]
LAUNCHES = [(kind, launch) for kind in KINDS for launch in launches(kind)]
REACHES = [
    Rules(causal, None, 1.0, window=window)
    for causal in (False, True)
    for window in (None, 1, 5, 70)
]


def test_a_tile_is_left_out_only_if_nobody_sees_any_of_it():
    for (T, S), rules, rows, columns in itertools.product(
        [(1, 1), (50, 50), (20, 90), (90, 20)], REACHES, (4, 32), (8, 16)
    ):
        for hidden in (slice(0, 0), slice(S // 2, S), slice(0, S // 3), slice(0, S)):
            of_keys = np.ones(S, bool)
            of_keys[hidden] = False
            sight = twins.Sight(T, S, rules, of_keys)
            seen = sight.seen(0, T, 0, S) & of_keys
            assert (seen == _dense(T, S, rules, of_keys)).all()
            for t in range(0, T, rows):
                t_end = min(t + rows, T)
                kept = list(twins.tiles(sight.keys_of(t, t_end), columns))
                _assert_left_out(seen[t:t_end], kept, columns)
                for s in range(0, S, columns):
                    s_end = min(s + columns, S)
                    by_position = sight.seen(t, t_end, s, s_end)
                    assert sight.all_seen(t, t_end, s, s_end) == by_position.all()
                    assert sight.none_seen(t, t_end, s, s + columns) <= (not by_position.any())
            for s in range(0, S, rows):
                s_end = min(s + rows, S)
                kept = list(twins.tiles(sight.queries_of(s, s_end), columns))
                _assert_left_out(seen[:, s:s_end].T, kept, columns)


def _dense(T, S, rules, of_keys):
    """The rules once more, as their docstrings say them."""
    position, key = np.arange(T)[:, None] + S - T, np.arange(S)
    seen = np.broadcast_to(of_keys, (T, S))
    if rules.causal:
        seen = seen & (key <= position)
    if rules.window is not None:
        seen = seen & (abs(key - position) < rules.window)
    return seen


def _assert_left_out(seen, kept, columns):
    there = np.flatnonzero(seen.any(axis=0))
    needed = set(there // columns)
    assert needed <= set(kept)
    if len(there):  # and the first and the last one that are kept are needed
        assert len(kept) <= max(needed) - min(needed) + 1


@pytest.mark.parametrize("of", ["heads", "pairs", "each", "difference"])
@pytest.mark.parametrize("rules", REACHES, ids=str)
def test_tile_by_tile_it_is_the_definition(rules, of):
    rng, (B, H, T, S, K) = np.random.default_rng(0), (3, 2, 21, 30, 4)
    q, g = rng.standard_normal((2, B, H, T, K))
    k, v = rng.standard_normal((2, B, H, S, K))
    mask = np.ones((B, 1, 1, S), bool)
    mask[0, ..., 20:], mask[1] = False, False
    bias = {
        "heads": None,
        "pairs": rng.standard_normal((1, H, T, S)),
        "each": rng.standard_normal((B, H, T, S)),
        "difference": rng.standard_normal((H, S + T - 1)),
    }[of]
    rules = rules._replace(scale=0.4, mask=mask, rate=0.25, seed=12)
    exact = attention_forward.definition(q, k, v, bias, rules, True)
    found = twins.forward(q, k, v, bias, rules, 8, 8)
    np.testing.assert_allclose(found.y, exact.y, rtol=1e-12, atol=1e-13)
    into = tuple(map(np.zeros_like, (q, k, v)))
    g_bias = attention_pullback.definition(g, None, q, k, v, bias, rules, exact, into)
    *gradients, gs = twins.pullback(g, q, k, v, bias, rules, found, 8, 8)
    for a, b in zip(gradients, into, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)
    if of == "difference":
        found = [sum(twins.differences(gs[b, h], 16) for b in range(B)) for h in range(H)]
        np.testing.assert_allclose(found, g_bias, rtol=1e-11, atol=1e-12)
    elif of != "heads":
        np.testing.assert_allclose(
            gs.sum(axis=0, keepdims=of == "pairs") if of == "pairs" else gs,
            g_bias,
            rtol=1e-11,
            atol=1e-12,
        )


@pytest.mark.parametrize("rows", [16, 32])
def test_diagonals_are_added_up_whatever_the_tiles(rows):
    for T, S in ((1, 1), (5, 40), (40, 5), (70, 33)):
        gs = np.random.default_rng(0).integers(-9, 10, (T, S)).astype(float)
        np.testing.assert_array_equal(twins.differences(gs, rows), by_difference(gs[None])[0])


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("width", plan.SIZES)
def test_rows_in_shared_memory_overlap_nowhere_and_meet_in_no_bank(width, itemsize):
    count = width * itemsize // 16
    every = {twins.place(width, itemsize, r, c) for r in range(64) for c in range(count)}
    assert every == set(range(0, 64 * count * 16, 16))
    for c in range(count):
        column = [twins.place(width, itemsize, r, c) for r in range(8)]
        assert twins.bank_conflicts(column, 16) == 0  # eight rows of a tile of tensor cores
    if itemsize == 2:
        for n in range(count):  # pairs of a result, as a warp puts them there
            pairs = [twins.place(width, 2, lane // 4, n) + lane % 4 * 4 for lane in range(32)]
            assert twins.bank_conflicts(pairs, 4) == 0


def test_scores_in_shared_memory_meet_in_no_bank():
    pairs = [4 * (lane // 4 * plan.PITCH + lane % 4 * 2) for lane in range(32)]
    assert twins.bank_conflicts(pairs, 8) == 0
    for row in range(32):
        diagonals = [4 * (row * plan.PITCH + ((lane + row - 31) & 31)) for lane in range(32)]
        assert twins.bank_conflicts(diagonals, 4) == 0


def test_heads_of_64_have_the_shared_memory_that_all_cards_have():
    """The others are left to the definition where there is less (plan.has_room)."""
    for kind, launch in LAUNCHES:
        assert launch.shared <= 99 * 1024 or kind.size > 64, (kind, launch)


def test_every_kernel_has_the_shared_memory_of_an_a100():
    for kind, launch in LAUNCHES:
        assert launch.shared <= 163 * 1024, (kind, launch)
        assert launch.shared % 16 == 0
        if kind.size <= 128 and kind.itemsize == 2:
            assert 2 * (launch.shared + 1024) <= 228 * 1024, (
                "two blocks of a multiprocessor of Hopper"
            )


def test_heads_are_rounded_to_sizes_that_tiles_can_have():
    for width in range(1, 257):
        size = plan.size_of(width)
        assert width <= size < 2 * width + 16
        assert size % 16 == 0
        for kind, launch in LAUNCHES:
            if launch.parts > 1:  # a share of the columns is whole groups of 64, or of 16 bytes
                assert kind.size // launch.parts % (64 if kind.itemsize == 2 else 4) == 0


def _turn(block, cluster, heads, tiles, last_first):
    """As turn_of in attention_rules.cu."""
    number, place = divmod(block, cluster * tiles)
    size = min(cluster, heads - number * cluster)
    tile = place // size
    return (tiles - 1 - tile if last_first else tile), number * cluster + place % size


@pytest.mark.parametrize("last_first", [False, True])
def test_every_tile_of_every_head_is_visited_once(last_first):
    for cluster, heads, tiles in itertools.product((1, 3, 8), (1, 8, 9), (1, 4)):
        if cluster <= heads:
            blocks = range(heads * tiles)
            found = [_turn(i, cluster, heads, tiles, last_first) for i in blocks]
            assert sorted(found) == [(t, h) for t in range(tiles) for h in range(heads)]


def test_pieces_of_keys_are_all_keys_that_are_seen():
    kind = plan.Kind("bfloat16", 64, 0)
    for heads, queries, keys, back in itertools.product(
        (1, 12, 2000), (1, 4), (1, 64, 65, 3000), (50, 9999)
    ):
        way = plan.decoding(kind, 64, heads, queries, keys, back)
        first = max(0, keys - queries - back + 1)
        assert way.first == min(first, keys)
        ends = [min(way.first + (i + 1) * way.length, keys) for i in range(way.pieces)]
        assert ends[-1] == keys
        assert all(a < b for a, b in itertools.pairwise([way.first, *ends]))
        assert heads * way.pieces <= max(heads, 4 * plan.ENOUGH)


def test_the_structure_is_laid_out_as_a_compiler_does():
    assert plan.PLACE.itemsize == 24
    fields = plan.PROBLEM.fields
    assert fields["scale"][1] == 10 * 24 + 12 * 4
    assert plan.PROBLEM.itemsize == math.ceil((10 * 24 + 12 * 4 + 12) / 8) * 8
