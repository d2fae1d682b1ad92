"""Products on a card, by the kernels for every card and by what is chosen: whole numbers first, which are exact."""

import warnings

import ml_dtypes  # noqa: F401 - bfloat16 by its name
import numpy as np
import pytest
from matmul_cases import LETTERS, Case, drawn
from portable_products import FEW, PLAIN, SINGLE, WHOLE, moved

from tinyplm.kernels import matmul_cuda, matmul_plan, matmul_tiles
from tinyplm.kernels.gelu import gelu_forward, gelu_pullback
from tinyplm.kernels.matmul import sum_rows

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what CuPy says of its surroundings
    cupy = pytest.importorskip("cupy")

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("real_card")]
UNITS = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24}
ALLOWED = {"float16": 1e-3, "bfloat16": 3e-3, "float32": 1e-5}
"""The most that random products may be off, of the norm."""
TILES = [tile.name for tile in matmul_tiles.TILES]
PLAIN_TILES = [tile.name for tile in matmul_tiles.PLAIN_TILES]
LARGE = [
    *(Case(tile, letters, (1000, 1160, 4096)) for tile in TILES for letters in LETTERS),
    *(Case(tile, ("t", "n"), (300, 520, 4096), split=5) for tile in TILES),
    *(Case(t, ab, (520, 392, 4096), dtype="float32") for t in PLAIN_TILES for ab in LETTERS),
    *(Case("few", ("n", b), (16, 50_304, 768)) for b in "nt"),
    *(Case("few", ("n", b), (8, 3072, 4096), split=8, dtype="float32") for b in "nt"),
]
"""Sums of 4,096 products of whole numbers up to 8 are exact in float32."""


def on_host(a):
    return cupy.asnumpy(a).astype(np.float64)


def computed(case, a, b, **more):
    """By the plan that a case names; into NaN, which lies around it too."""
    shape = (*[n for n in case.batch if n is not None][:1], *case.sizes[:2])
    room = cupy.full(int(np.prod(shape)) + 128, np.nan, np.float32)
    with matmul_plan.forced(case.tile, case.split):
        found = matmul_cuda.compute(a, b, room[64:-64].reshape(shape), **more)
    cupy.cuda.runtime.deviceSynchronize()  # so that a fault is told of the case that made it
    assert bool(cupy.isnan(room[:64]).all())
    assert bool(cupy.isnan(room[-64:]).all())
    return cupy.asnumpy(found)


@pytest.mark.parametrize("case", [*WHOLE, *PLAIN, *FEW, *LARGE], ids=lambda c: f"{c}-{c.dtype}")
def test_products_of_whole_numbers_are_exact(case):
    a, b = drawn(np.random.default_rng(0), case, np.dtype(case.dtype), cupy)
    np.testing.assert_array_equal(computed(case, a, b), on_host(a) @ on_host(b))


@pytest.mark.parametrize("case", [*SINGLE, *PLAIN], ids=lambda c: f"{c}-{c.dtype}")
def test_operands_may_begin_anywhere(case):
    a, b = drawn(np.random.default_rng(0), case, np.dtype(case.dtype), cupy)
    a, b = moved(a, cupy), moved(b, cupy)
    np.testing.assert_array_equal(computed(case, a, b), on_host(a) @ on_host(b))


NEAR = [
    *(("bfloat16", name, 1) for name in TILES),
    *(("float16", "128x128", split) for split in (1, 4)),
    *(("float32", name, split) for name in PLAIN_TILES for split in (1, 4)),
]


@pytest.mark.parametrize(("kind", "name", "split"), NEAR)
def test_random_products_are_near_and_the_same_bits_come_twice(kind, name, split):
    rng = np.random.default_rng()
    a, b = (
        cupy.asarray(rng.standard_normal(shape).astype(kind))
        for shape in ((1031, 2056), (2056, 1160))
    )
    bits = np.uint16 if a.itemsize == 2 else np.uint32
    with matmul_plan.forced(name, split):
        first, again = (matmul_cuda.compute(a, b) for _ in range(2))
    assert bool((first.view(bits) == again.view(bits)).all())
    right = on_host(a) @ on_host(b)
    assert np.linalg.norm(on_host(first) - right) <= ALLOWED[kind] * np.linalg.norm(right)


@pytest.mark.parametrize("columns", [1160, 1161])
@pytest.mark.parametrize(
    ("kind", "name", "rows", "split"),
    [
        ("bfloat16", "128x256", 1000, 1),
        ("bfloat16", "128x128", 1000, 3),
        ("float16", "64x64", 70, 1),
        ("float32", "128x128", 300, 1),
        ("float32", "64x64", 70, 2),
    ],
)
def test_endings_are_of_unrounded_sums(kind, name, rows, split, columns):
    """Sums are exact; one rounding, and what float32 allows about values up to 8."""
    rng, kind = np.random.default_rng(1), np.dtype(kind)
    a, b = drawn(rng, Case(name, ("n", "t"), (rows, columns, 392)), kind, cupy)
    a /= cupy.asarray(64, kind)
    bias = cupy.asarray(rng.integers(-8, 9, columns).astype(kind))
    other = cupy.asarray(rng.standard_normal((rows, columns)).astype(kind))
    u = on_host(a) @ on_host(b)
    with matmul_plan.forced(name, split):
        plain = matmul_cuda.compute(a, b, bias=bias, other=other)
        before = cupy.full((rows, columns), np.nan, kind)
        bent = matmul_cuda.compute(a, b, bias=bias, before=before, last="gelu")
        sloped = matmul_cuda.compute(a, b, other=other, last="slope")
        kept = matmul_cuda.compute(a, b, cupy.asarray(u.astype(np.float32)), 1.0)
    shifted = u + on_host(bias)
    for found, right in (
        (plain, shifted + on_host(other)),
        (before, shifted),
        (bent, gelu_forward.definition(shifted)),
        (sloped, gelu_pullback.definition(u, on_host(other))),
        (kept, 2 * u.astype(np.float32).astype(np.float64)),
    ):
        unit = UNITS["float32" if found is kept else kind.name]
        allowed = unit * abs(right) + 1e-6 * (8 + abs(right).max())
        assert (abs(on_host(found) - right) <= allowed).all()


TOKENS, WIDTH = 12_288, 768
SIZES = [
    *((n, n, n, "nn", "bfloat16") for n in (2048, 4096, 8192)),
    (2048, 2048, 2048, "nn", "float32"),
    *((TOKENS, columns, WIDTH, "nn", "bfloat16") for columns in (2304, 768, 3072)),
    *((TOKENS, WIDTH, columns, "nt", "bfloat16") for columns in (2304, 768, 3072)),
    *((WIDTH, columns, TOKENS, "tn", "bfloat16") for columns in (2304, 768, 3072)),
    (TOKENS, 50_257, WIDTH, "nt", "bfloat16"),
    (TOKENS, WIDTH, 50_257, "nn", "bfloat16"),
    (1, 50_257, WIDTH, "nt", "bfloat16"),
    (1, 3072, WIDTH, "nn", "float32"),
]


@pytest.mark.parametrize(("rows", "columns", "terms", "letters", "kind"), SIZES)
def test_products_of_training_are_near_by_what_is_chosen(rows, columns, terms, letters, kind):
    """One row of 64 or so is compared, at random places."""
    a, b = (
        cupy.random.standard_normal(shape, np.float32).astype(kind)
        for shape in ((rows, terms), (terms, columns))
    )
    a, b = (
        cupy.ascontiguousarray(x.T).T if letter == "t" else x
        for x, letter in zip((a, b), letters, strict=True)
    )
    found = matmul_cuda.compute(a, b)
    some = np.sort(np.random.default_rng().choice(rows, -(-rows // 64), replace=False))
    right = on_host(a[some]) @ on_host(b)
    error = np.linalg.norm(on_host(found[some]) - right)
    assert error <= ALLOWED[kind] * np.linalg.norm(right)


@pytest.mark.parametrize("shape", [(65_536, 3072), (1000, 769), (3, 50_257), (70_001, 1)])
@pytest.mark.parametrize("kind", UNITS)
def test_sums_of_rows_are_exact_on_whole_numbers(kind, shape):
    g = cupy.random.randint(-8, 9, shape).astype(kind)
    found = sum_rows(g)
    assert found.dtype == np.float32
    assert bool((found == g.astype(np.float32).sum(axis=0, dtype=np.float64)).all())
