"""The algorithms of the device code, in NumPy: right beside the definitions, and the same bits as the code emulated."""

import ml_dtypes
import numpy as np
import pytest
import twins
from accuracy import assert_same_bits
from device_cases import VARIANTS, arguments, assert_right

from tinyplm.kernels import cuda, dropout, layer_norm
from tinyplm.kernels.registry import KERNELS

WIDTHS = {
    "warp": (4, 96, 1024),
    "block": (1028, 3000),
    "wide": (8196,),
    "narrow": (1, 33, 1001),
    "any": (1037,),
}
ROWS = pytest.mark.parametrize(
    ("shape", "width"), [(shape, width) for shape, some in WIDTHS.items() for width in some]
)


def drawn(name, width):
    return arguments(name, (5, width), np.float32)


@ROWS
def test_rows_are_shared_so_that_nothing_is_left_out(shape, width):
    x = np.arange(2 * width, dtype=np.float32).reshape(2, width)
    parts = twins.shares(x, shape, fill=-1)
    assert sorted(parts[parts >= 0].tolist()) == x.reshape(-1).tolist()


@ROWS
def test_softmax_in_the_order_of_the_device(shape, width):
    x, axis = drawn("softmax_forward", width)
    assert_right("softmax_forward", (x, axis), [twins.softmax_forward(x, shape)], np.float32)
    g, p, axis = drawn("softmax_pullback", width)
    found = twins.softmax_pullback(g, p, shape)
    assert_right("softmax_pullback", (g, p, axis), [found], np.float32)


@ROWS
def test_scores_in_the_order_of_the_device(shape, width):
    s, scale, first = drawn("score_softmax", width)
    found = twins.softmax_forward(s.reshape(-1, width), shape, scale, first, s.shape[1])
    assert_right("score_softmax", (s, scale, first), [found.reshape(s.shape)], np.float32)


@ROWS
def test_norms_in_the_order_of_the_device(shape, width):
    given = drawn("layer_norm_forward", width)
    assert_right("layer_norm_forward", given, twins.norm_forward(*given, shape), np.float32)
    x, branch, gain, eps = drawn("rms_norm_forward", width)
    whole, y, _, scale = twins.norm_forward(x, branch, gain, None, eps, shape)
    assert_right("rms_norm_forward", (x, branch, gain, eps), (whole, y, scale), np.float32)
    given = drawn("layer_norm_pullback", width)
    found = twins.norm_pullback(*given, shape, teams=3)
    assert_right("layer_norm_pullback", given, found, np.float32)


@pytest.mark.parametrize("width", [1, 2, 3, 5, 511, 2049, 7000])
@pytest.mark.parametrize("lead", [0, 1, 3])
def test_losses_in_the_order_of_the_device(width, lead):
    logits, labels, _ = drawn("cross_entropy_forward", width)
    log_sums, losses = [], []
    for row, label in zip(logits, labels, strict=True):
        top, total = twins.cross_entropy_row(row, lead)
        log_sums.append([np.log(total) + top])
        losses.append(np.log(total) + (top - row[label]))
    found = np.array(losses, np.float32), np.array(log_sums, np.float32)
    assert_right("cross_entropy_forward", (logits, labels, 0.0), found, np.float32)


@pytest.mark.parametrize(("n", "rows"), [(1, 1), (33, 2), (1300, 5), (1300, 300), (700, 70_000)])
def test_sorting_keeps_the_order_of_equal_ids_and_sums_are_right(n, rows):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, rows, n)
    keys, places = twins.sorted_by_digits(ids, rows)
    expected = np.argsort(ids, kind="stable")
    assert places.tolist() == expected.tolist()
    assert keys.tolist() == ids[expected].tolist()
    g = rng.standard_normal((n, 3)).astype(np.float32)
    assert_right("add_rows", (g, ids, rows), [twins.add_rows(g, ids, rows)], np.float32)


@pytest.mark.parametrize("n", [1, 1023, 1024, 5000, 70_001])
def test_updates_and_norms_of_buffers_in_the_order_of_the_device(n):
    given = arguments("adamw_update", (1, n), np.float32)
    assert_right("adamw_update", given, twins.adamw_update(*given), np.float32)
    x = given[0].reshape(-1)
    exact = np.sum(x.astype(np.float64) ** 2)
    assert abs(twins.squares(x) - exact) <= 1e-13 * exact


def test_philox_gives_the_published_answers():
    ones = (1 << 32) - 1
    for counter, key, expected in (
        ((0,) * 4, (0,) * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((ones,) * 4, (ones,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ):
        assert " ".join(f"{v:08x}" for v in twins.philox(counter, key)) == expected


def test_bits_of_dropout_stay_what_they_were():
    """They are part of what a seed promises, and the device code has the constants once more."""
    places = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 0, 1, 0), (7, 3, 123_456_789, 5)]
    found = [dropout.mixed(*place) for place in places]
    assert found == [int(v) for v in dropout.mixed(*np.array(places, np.int64).T)]
    assert [f"{v:08x}" for v in found] == ["23e1973c", "222c134b", "8a98e68a", "03a96d19"]


@pytest.mark.parametrize("width", [64, 33, 1028, 1037, 8196])
def test_norms_have_the_bits_of_the_device_code(built, monkeypatch, width):
    built.install(monkeypatch)
    monkeypatch.setattr(layer_norm, "TEAMS", dict.fromkeys(layer_norm.TEAMS, 2))
    forward, back = drawn("layer_norm_forward", width), drawn("layer_norm_pullback", width)
    shape = cuda.rows(width, *forward[:4]).name
    for name, given, expected in (
        ("layer_norm_forward", forward, twins.norm_forward(*forward, shape)),
        ("layer_norm_pullback", back, twins.norm_pullback(*back, shape, teams=2)),
    ):
        for found, same in zip(VARIANTS[name].build()(*given), expected, strict=True):
            assert_same_bits(found, same)


@pytest.mark.parametrize("n", [5, 1024, 9000])
def test_sums_and_updates_have_the_bits_of_the_device_code(built, monkeypatch, n):
    built.install(monkeypatch)
    x = np.random.default_rng(n).standard_normal(n).astype(np.float32)
    total = VARIANTS["sum_of_squares"].build()(x)
    assert float(total) == twins.squares(x)
    given = arguments("adamw_update", (1, n), np.float32)
    own = [a.copy() for a in given[:4]]
    VARIANTS["adamw_update"].build()(*own, *given[4:])
    for found, same in zip((own[0], own[2], own[3]), twins.adamw_update(*given), strict=True):
        assert_same_bits(found, same)


@pytest.mark.parametrize(("n", "rows"), [(40, 2), (1300, 5), (700, 70_000)])
def test_rows_added_up_have_the_bits_of_the_device_code(built, monkeypatch, n, rows):
    built.install(monkeypatch)
    rng = np.random.default_rng(0)
    ids, g = rng.integers(0, rows, n), rng.standard_normal((n, 4)).astype(np.float32)
    assert_same_bits(VARIANTS["add_rows"].build()(g, ids, rows), twins.add_rows(g, ids, rows))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_what_is_stored_is_rounded_as_ml_dtypes_rounds(built, monkeypatch, dtype):
    built.install(monkeypatch)
    x = np.random.default_rng(0).standard_normal(4000).astype(dtype)
    found = VARIANTS["dropout_forward"].build()(x, 0.5, 3)
    assert_same_bits(found, KERNELS["dropout_forward"].definition(x, 0.5, 3))
