"""Products for every card, emulated: each tile, layout and ending, whole numbers first, which are exact."""

import multiprocessing
import signal
import sys

import emulator as emulation
import ml_dtypes  # noqa: F401 - bfloat16 by its name
import numpy as np
import pytest
import twins
from accuracy import assert_same_bits, wide
from matmul_cases import Case, drawn
from portable_products import FEW, LARGE, NN, NT, PLAIN, SINGLE, SMALL, TN, WHOLE, moved

from tinyplm.errors import ConfigError
from tinyplm.kernels import cuda, matmul, matmul_cuda, matmul_plan, matmul_tiles
from tinyplm.kernels.gelu import gelu_forward, gelu_pullback, gelu_tanh_forward, gelu_tanh_pullback
from tinyplm.kernels.registry import KERNELS

pytestmark = pytest.mark.device

UNITS = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24}


@pytest.fixture
def device(built, monkeypatch):
    built.install(monkeypatch)
    yield built
    built.check()


def computed(case, a, b, out=None, **more):
    """By the plan that a case names; in float32, if nothing else is given."""
    batch = [n for n in case.batch if n is not None][:1]
    if out is None:
        out = cuda.empty(a, (*batch, *case.sizes[:2]), np.float32)
    with matmul_plan.forced(case.tile, case.split):
        return matmul_cuda.compute(a, b, out, **more)


def exact(a, b):
    return wide(a) @ wide(b)


@pytest.mark.parametrize("case", [*WHOLE, *PLAIN, *FEW], ids=lambda c: f"{c}-{c.dtype}")
def test_products_of_whole_numbers_are_exact(device, case):
    a, b = drawn(np.random.default_rng(0), case, np.dtype(case.dtype))
    np.testing.assert_array_equal(computed(case, a, b), exact(a, b))


@pytest.mark.parametrize("case", [*SINGLE, *PLAIN], ids=lambda c: f"{c}-{c.dtype}")
def test_operands_may_begin_anywhere(device, case):
    a, b = map(moved, drawn(np.random.default_rng(0), case, np.dtype(case.dtype)))
    out = cuda.empty(a, (np.prod(case.sizes[:2]) * 3 + 1,), np.float32)
    batch = [n for n in case.batch if n is not None][:1]
    place = out[1 : 1 + np.prod([*batch, *case.sizes[:2]], dtype=int)]
    computed(case, a, b, place.reshape(*batch, *case.sizes[:2]))
    np.testing.assert_array_equal(place.reshape(*batch, *case.sizes[:2]), exact(a, b))
    assert np.isnan(out[0])
    assert np.isnan(out[1 + place.size :]).all()


def test_without_terms_there_is_only_what_is_added(device):
    for kind in UNITS:
        a, b = np.zeros((5, 0), kind), np.zeros((0, 9), kind)
        bias = np.arange(9).astype(kind)
        found = matmul_cuda.compute(a, b, bias=bias)
        np.testing.assert_array_equal(wide(found), np.tile(np.arange(9.0), (5, 1)))
    for shape in ((0, 4), (0, 5, 4)):
        found = matmul_cuda.compute(np.zeros(shape, kind), np.zeros((4, 3), kind))
        assert found.shape == (*shape[:-1], 3)


def test_a_result_may_have_gaps(device):
    case = Case(SMALL, NN, (20, 24, 16))
    a, b = drawn(np.random.default_rng(0), case, np.dtype("bfloat16"))
    for first, last in ((0, 24), (8, 32), (3, 27)):
        room = cuda.empty(a, (20, 40))
        computed(case, a, b, room[:, first:last])
        assert_same_bits(room[:, first:last], exact(a, b).astype(a.dtype))
        assert np.isnan(wide(room[:, :first])).all()
        assert np.isnan(wide(room[:, last:])).all()


@pytest.mark.parametrize("split", [1, 2])
@pytest.mark.parametrize("columns", [33, 35, 1])
@pytest.mark.parametrize("kind", UNITS)
@pytest.mark.parametrize("tile", [SMALL, "few"])
def test_rows_of_even_pitch_are_stored_by_vectors_and_nothing_behind_them(
    device, monkeypatch, tile, kind, columns, split
):
    """Rows that begin at 16 bytes, of a number of values that does not end there; with a bias or what is kept."""
    seen, plan = [], matmul_plan.plan
    monkeypatch.setattr(
        matmul_plan, "plan", lambda problem, card: (seen.append(problem), plan(problem, card))[1]
    )
    rng = np.random.default_rng(6)
    case = Case(tile, NN, (5, columns, 300), split=split, dtype=kind)
    a, b = drawn(rng, case, np.dtype(kind))
    a /= np.asarray(64, kind)
    bias = rng.integers(-8, 9, columns).astype(kind)
    for wide_kind in {kind, "float32"}:
        room = cuda.empty(a, (5, 40), wide_kind)
        out = room[:, :columns]
        computed(case, a, b, out, bias=bias)
        assert_same_bits(out, (exact(a, b) + wide(bias)).astype(np.float32).astype(wide_kind))
        out[...] = 3
        computed(case, a, b, out, keep=1.0)
        assert_same_bits(out, (exact(a, b) + 3).astype(np.float32).astype(wide_kind))
        assert np.isnan(wide(room[:, columns:])).all()
    computed(case, a, b, cuda.empty(a, (5, 40))[:, :columns], other=cuda.empty(a, (5, columns)))
    assert [problem.stores for problem in seen] == [True] * (len(seen) - 1) + [False]


ENDED = [
    *(Case(SMALL, NN, sizes, dtype=kind) for kind in UNITS for sizes in ((70, 72, 40), (37, 35, 40))),
    Case(SMALL, NN, (37, 40, 130), split=3),
    Case(SMALL, NN, (37, 35, 130), split=2, dtype="float32"),
    *(Case("few", NN, (5, columns, 40), dtype=kind) for columns in (72, 35) for kind in UNITS),
]  # fmt: skip
"""Columns that are runs of 16 bytes, and such as are not; parts that are added up; few rows."""
EACH_END = pytest.mark.parametrize("case", ENDED, ids=lambda c: f"{c}-{c.dtype}")


@EACH_END
def test_bias_and_residual_are_added_before_the_one_rounding(device, case):
    rng = np.random.default_rng(1)
    (rows, columns, _), kind = case.sizes, np.dtype(case.dtype)
    a, b = drawn(rng, case, kind)
    bias = rng.integers(-8, 9, columns).astype(kind)
    other = (rng.integers(-64, 65, (rows, columns)) / 8).astype(kind)
    for some, more in ((bias, other), (None, other), (bias, None)):
        out = cuda.empty(a, (rows, columns))
        computed(case, a, b, out, bias=some, other=more)
        whole = exact(a, b) + sum(wide(x) for x in (some, more) if x is not None)
        assert_same_bits(out, whole.astype(np.float32).astype(kind))


@EACH_END
def test_what_is_there_is_kept_as_often_as_it_is_said(device, case):
    rng = np.random.default_rng(2)
    a, b = drawn(rng, case, np.dtype(case.dtype))
    for kind in {case.dtype, "float32"}:
        for keep in (1.0, 0.5):
            out = cuda.empty(a, case.sizes[:2], kind)
            out[...] = rng.integers(-64, 65, out.shape)
            whole = exact(a, b) + keep * wide(out)
            computed(case, a, b, out, keep=keep)
            assert_same_bits(out, whole.astype(np.float32).astype(kind))


GELUS = {
    "gelu": (gelu_forward, gelu_pullback),
    "gelu_tanh": (gelu_tanh_forward, gelu_tanh_pullback),
}


@pytest.mark.parametrize("name", GELUS)
@EACH_END
def test_gelu_and_its_slope_are_of_unrounded_sums(device, case, name):
    """One rounding, and what float32 allows about values up to 8."""
    rng = np.random.default_rng(3)
    (rows, columns, _), kind = case.sizes, np.dtype(case.dtype)
    a, b = drawn(rng, case, kind)
    a /= np.asarray(64, kind)
    u, (forward, pullback) = exact(a, b), GELUS[name]
    out, before = (cuda.empty(a, (rows, columns)) for _ in range(2))
    computed(case, a, b, out, before=before, last=name)
    assert_same_bits(before, u.astype(np.float32).astype(kind))
    right = forward.definition(u)
    assert (abs(wide(out) - right) <= UNITS[case.dtype] * abs(right) + 8e-6).all()
    other = rng.standard_normal((rows, columns)).astype(kind)
    computed(case, a, b, out, other=other, last=name.replace("gelu", "slope"))
    right = pullback.definition(u, wide(other))
    assert (abs(wide(out) - right) <= UNITS[case.dtype] * abs(right) + 8e-6).all()


# ---- orders of sums


@pytest.mark.parametrize("split", [1, 2, 5])
@pytest.mark.parametrize("letters", [NN, TN])
@pytest.mark.parametrize("kind", ["bfloat16", "float32"])
def test_sums_have_the_order_of_their_twin(device, kind, letters, split):
    """Terms by sixteens, or one by one in float32, and then parts in their order; by size and split alone."""
    case = Case(SMALL, letters, (40, 24, 333), split=split, dtype=kind)
    shapes = (case.sizes[0], 333), (333, case.sizes[1])
    rng = np.random.default_rng(4)
    a, b = (rng.standard_normal(s).astype(kind) for s in shapes)
    depth = matmul_tiles.PLAIN_DEPTH if kind == "float32" else matmul_tiles.DEPTH
    parts, chunk = matmul_plan.cut(333, split, depth)
    expected = twins.product(wide(a), wide(b), parts, chunk, 1 if kind == "float32" else 16)
    given = [np.asfortranarray(x) if t == "t" else x for x, t in zip((a, b), letters, strict=True)]
    assert_same_bits(computed(case, *given), expected)
    other = case._replace(tile=LARGE)
    assert_same_bits(computed(other, *given), expected)


@pytest.mark.parametrize("shape", [(1, 8), (63, 300), (700, 40), (3000, 24), (130, 7)])
@pytest.mark.parametrize("kind", UNITS)
def test_sums_of_rows_have_the_order_of_their_twin(device, monkeypatch, kind, shape):
    monkeypatch.setattr(matmul, "BLOCKS", 9)
    g = np.random.default_rng(5).standard_normal(shape).astype(kind)
    (variant,) = (v for v in KERNELS["sum_rows"].variants if v.name == "cuda")
    parts = max(1, min(shape[0] // matmul.LEAST_ROWS, 9 // -(-shape[1] // (32 * _group(g)))))
    expected = twins.sum_rows(g.astype(np.float32), parts)
    assert_same_bits(variant.build()(g), expected)


def _group(g):
    return 16 // g.itemsize if g.shape[1] % (16 // g.itemsize) == 0 else 1


# ---- what is chosen and refused


def test_matrices_of_one_dtype_are_taken(device):
    a, b = np.zeros((6, 8), np.float32), np.zeros((8, 4), np.float32)
    takes = matmul_cuda.takes
    assert takes(a, b)
    assert takes(np.zeros((3, 6, 8), np.float32), b)
    assert takes(np.zeros((3, 6, 8), np.float32), np.zeros((1, 8, 4), np.float32))
    assert not takes(np.zeros((3, 6, 8), np.float32), np.zeros((2, 8, 4), np.float32))
    assert not takes(a, b[:7])
    assert not takes(a[0], b)
    assert not takes(a, b.astype(np.float16))
    assert not takes(a.astype(np.float64), b.astype(np.float64))
    assert not takes(a, b, np.zeros(4, np.float64))
    when = next(v.when for v in KERNELS["product"].variants if v.name == "cuda")
    half = a.astype(np.float16), b.astype(np.float16)
    assert when(*half, np.zeros((6, 4), np.float32), 1.0)
    assert not when(a, b, np.zeros((6, 4), np.float16))
    assert not when(a, b, np.zeros((6, 5), np.float32))


def test_what_has_gaps_is_copied(device):
    rng = np.random.default_rng(0)
    a, b, other = (rng.integers(-8, 9, s).astype(np.float16) for s in ((6, 20), (10, 12), (6, 12)))
    right = wide(a[:, ::2]) @ wide(b[::-1]) + wide(other[:, ::-1]) + np.arange(6.0).repeat(2)
    bias = np.arange(12, dtype=np.float16)[::2].repeat(2)[::-1] / 2
    found = matmul_cuda.compute(a[:, ::2], b[::-1], bias=bias[::-1], other=other[:, ::-1])
    np.testing.assert_array_equal(wide(found), right)
    for out in (np.ones((12, 6), np.float32).T, np.ones((6, 24), np.float16)[:, ::2]):
        given = {"bias": bias[::-1], "other": other[:, ::-1]}
        assert matmul_cuda.compute(a[:, ::2], b[::-1], out, 2.0, **given) is out
        np.testing.assert_array_equal(wide(out), right + 2)


def test_a_product_is_launched_once_and_its_parts_are_added_once(device, monkeypatch):
    seen, launch = [], cuda.launch
    monkeypatch.setattr(
        cuda, "launch", lambda *given, **k: (seen.append(given[1]), launch(*given, **k))
    )
    a, b = np.ones((64, 4096), np.float16), np.ones((4096, 64), np.float16)
    assert (matmul_cuda.compute(a, b) == 4096).all()
    assert len(seen) == 2
    assert seen[1] == "add_parts_float16_plain"
    seen.clear()
    with matmul_plan.forced("128x64", 1):
        matmul_cuda.compute(a, b)
    assert seen == ["product_float16_128x64_2x2_nn_whole_plain"]


def test_a_plan_that_there_is_not_is_told_with_those_that_there_are(device):
    a, b = np.ones((64, 64), np.float16), np.ones((64, 64), np.float16)
    with matmul_plan.forced("1x1"), pytest.raises(ConfigError, match="64x64"):
        matmul_cuda.compute(a, b)


# ---- what the emulation notices

FAULTS = [
    (
        "matmul",
        "        __syncthreads();\n    };",
        "    };",
    ),  # stages are read before they are there
    ("matmul", "wait_for_copies<STAGES - 2>();", "wait_for_copies<STAGES - 1>();"),
    ("matmul", "copies_a.trim", "if (false) copies_a.trim"),
    ("matmul", "first ^ 32 * k", "first + 32 * k"),
    ("matmul", "group * GROUP + within % high", "group * GROUP + within % GROUP"),
    ("matmul_parts", "i * values", "i * (values - 1)"),
]
"""What is taken out of the text, and what stands there then."""


def compute_wrong(file, text, instead, folder):
    """Ends with 0 where the product is not the one of the text as it is; by a signal where memory was damaged."""
    source = cuda.source

    def faulty(name):
        return source(name).replace(text, instead) if name.split(" ")[0] == file else source(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "source", faulty)
        emulation.Emulator(folder).install(patch)
        case = Case(SMALL, NT, (600, 70, 181), split=2)
        a, b = drawn(np.random.default_rng(0), case, np.dtype("bfloat16"))
        sys.exit(np.array_equal(computed(case, a, b), exact(a, b)))


def exit_code(*given):
    """Of a process of its own, as what a fault damages may be anything."""
    other = multiprocessing.get_context("spawn").Process(target=compute_wrong, args=given)
    other.start()
    other.join(120)
    return other.exitcode


@pytest.mark.parametrize(("file", "text", "instead"), FAULTS, ids=range(len(FAULTS)))
def test_faults_are_noticed(built, tmp_path, file, text, instead):
    assert text in cuda.source(f"{file} bfloat16 plain")
    assert exit_code(file, text, instead, tmp_path) in (0, -signal.SIGABRT, -signal.SIGSEGV)


def test_no_fault_is_noticed_where_there_is_none(built, tmp_path):
    assert exit_code(*FAULTS[0][:2], FAULTS[0][1], tmp_path) == 1
