"""Hopper's products: which plans there are, what the card is told, and the kernels as emulated_hopper.h runs them."""

import ml_dtypes  # noqa: F401 - bfloat16 by its name
import numpy as np
import pytest
from budgets import CARDS
from matmul_cases import CASES, Case, drawn

from tinyplm.kernels import cuda, matmul_cuda, matmul_hopper, matmul_plan
from tinyplm.kernels.gelu import gelu_forward, gelu_pullback
from tinyplm.kernels.matmul_plan import Problem

H200 = CARDS["sm_90a"]
PROBLEM = Problem(1, 12_288, 768, 768, "bfloat16", "bfloat16", False, False, True, True)


def plans(problem, card=H200, split=None):
    return list(matmul_hopper.plans(problem, card, split))


@pytest.mark.parametrize(
    ("problem", "card"),
    [
        (PROBLEM._replace(dtype="float32"), H200),
        (PROBLEM._replace(copies=False), H200),
        (PROBLEM._replace(terms=0), H200),
        (PROBLEM, H200._replace(capability=80)),
        (PROBLEM, H200._replace(capability=100)),
        (PROBLEM, H200._replace(shared=48 * 1024)),
    ],
)
def test_there_is_no_plan_where_the_kernel_cannot_be(problem, card):
    assert not plans(problem, card)


def test_every_tile_is_offered_and_fits_on_a_card():
    found = {plan.name: plan for plan in plans(PROBLEM, split=1)}
    assert set(found) == {tile.name for tile in matmul_hopper.TILES} > set(matmul_hopper.RATES)
    for plan in found.values():
        assert plan.shared <= H200.shared
        assert plan.blocks <= H200.processors
        assert plan.blocks % 2 == 0 or "paired" not in plan.name
        assert plan.file.split(" ")[0] in cuda.TEMPLATES
    assert set(matmul_hopper.ENDINGS) >= {"plain", "gelu", "gelu_tanh", "slope", "slope_tanh"}


@pytest.mark.parametrize("last", ["gelu", "slope", "slope_tanh"])
def test_a_tile_without_registers_for_an_ending_is_not_offered(last):
    large = {tile.name for tile in matmul_hopper.TILES if tile.sums > 128}
    found = {plan.name for plan in plans(PROBLEM._replace(last=last), split=1)}
    assert large
    assert found == {tile.name for tile in matmul_hopper.TILES} - large
    assert large <= {plan.name for plan in plans(PROBLEM._replace(last="gelu_tanh"), split=1)}


def test_whole_waves_and_long_sums_are_preferred():
    """288 tiles of 128x256 are 2.2 waves of 132 blocks, 384 of 128x192 are 2.9."""
    by_name = {plan.name: plan.seconds for plan in plans(PROBLEM, split=1)}
    assert by_name["hopper 128x192 turns"] < by_name["hopper 128x256 together"]
    gradient = PROBLEM._replace(rows=768, columns=3072, terms=65_536, out="float32", a_turned=True)
    assert matmul_plan.plan(gradient, H200).split > 1
    square = PROBLEM._replace(rows=8192, columns=8192, terms=8192)
    assert matmul_plan.plan(square, H200).tier == "hopper"
    assert matmul_plan.plan(square, H200).split == 1


def test_operands_take_their_time_out_of_the_cache():
    """A narrow tile brings more for each product: its rate is what L2 allows."""
    long = PROBLEM._replace(rows=12_672, columns=64 * 32, terms=1 << 16)
    tiles = {tile.name: tile for tile in matmul_hopper.TILES}
    speed = matmul_plan.speed(H200)
    for name in ("hopper 128x64 turns", "hopper 128x128 turns", "hopper 128x256 together"):
        tile, terms = tiles[name], long.terms
        clocks = matmul_hopper.seconds(long, H200, tile, 24, 1, terms) * speed.clock / 24
        brought = 2 * terms * (tile.rows + tile.columns) / speed.cache
        multiplied = tile.rows * tile.columns * terms / matmul_hopper.RATES[name]
        assert clocks == pytest.approx(max(brought, multiplied), rel=0.02)
        assert (brought > multiplied) == (tile.columns < 256)


def test_a_sum_in_parts_is_finished_by_those_who_add_them_up():
    for plan in plans(PROBLEM._replace(last="gelu"), split=3):
        assert plan.kernel.endswith("_plain")
        assert plan.chunk * plan.split >= PROBLEM.terms > plan.chunk * (plan.split - 1)
        assert plan.chunk % matmul_hopper.STEP == 0


@pytest.mark.parametrize(
    ("letters", "cluster", "a_map", "b_map"),
    [
        # sizes, strides and box, innermost first
        ("nn", 1, ((40, 130, 1), (96, 130 * 96), (64, 128, 1)), ((70, 40, 1), (160, 40 * 160), (64, 64, 1))),
        ("nt", 1, ((40, 130, 1), (96, 130 * 96), (64, 128, 1)), ((40, 70, 1), (96, 70 * 96), (64, 256, 1))),
        ("tn", 1, ((130, 40, 1), (288, 40 * 288), (64, 64, 1)), ((70, 40, 1), (160, 40 * 160), (64, 64, 1))),
        ("tt", 1, ((130, 40, 1), (288, 40 * 288), (64, 64, 1)), ((40, 70, 1), (96, 70 * 96), (64, 256, 1))),
        ("nt", 2, ((40, 130, 1), (96, 130 * 96), (64, 128, 1)), ((40, 70, 1), (96, 70 * 96), (64, 128, 1))),
    ],
)  # fmt: skip
def test_a_card_is_told_how_operands_lie(monkeypatch, letters, cluster, a_map, b_map):
    monkeypatch.setattr(cuda, "address", lambda a: a.ctypes.data)
    case = Case("", tuple(letters), (130, 70, 40))
    a, b = drawn(np.random.default_rng(0), case, np.dtype("bfloat16"))
    lie = [matmul_cuda.layout(x) for x in (a, b)]
    problem = Problem(
        1, 130, 70, 40, "bfloat16", "bfloat16", lie[0].turned, lie[1].turned, True, True
    )
    operands = matmul_cuda.Operands(a, b, None, *lie, None)
    found = matmul_hopper.maps(problem, (128, 256, 64), cluster, operands)
    for given, x, expected in zip(found, (a, b), (a_map, b_map), strict=True):
        assert given == (x.ctypes.data, "bfloat16", *expected)


# ---- emulated


@pytest.fixture
def device(built, monkeypatch):
    built.install(monkeypatch)
    yield built
    built.check()


def computed(case, a, b, monkeypatch, out=None, **more):
    """By the plan that a case names; into NaN, if nothing else is given."""
    monkeypatch.setattr(cuda, "card", lambda: cuda.Card(90, case.processors, 227 * 1024))
    rows, columns, _ = case.sizes
    batch = [n for n in case.batch if n is not None][:1]
    if out is None:
        out = cuda.empty(a, (*batch, rows, columns), np.float32)
    with matmul_plan.forced(f"hopper {case.tile}", case.split):
        return matmul_cuda.compute(a, b, out, **more)


def exact(a, b):
    return a.astype(np.float64) @ b.astype(np.float64)


@pytest.mark.device
@pytest.mark.parametrize("case", CASES, ids=str)
def test_products_of_whole_numbers_are_exact(device, monkeypatch, case):
    a, b = drawn(np.random.default_rng(0), case, np.dtype(case.dtype))
    found = computed(case, a, b, monkeypatch)
    np.testing.assert_array_equal(found, exact(a, b))


PLAIN = Case("128x256 together", ("n", "n"), (130, 72, 40))
EPILOGUES = [
    PLAIN,
    PLAIN._replace(tile="128x192 turns"),
    PLAIN._replace(sizes=(70, 35, 40), split=1),
]
"""Columns that are runs of 16 bytes, with and without registers to read ahead, and such as are not."""


@pytest.mark.device
@pytest.mark.parametrize("case", EPILOGUES, ids=str)
def test_bias_and_residual_are_added_before_the_one_rounding(device, monkeypatch, case):
    rng = np.random.default_rng(1)
    (rows, columns, _), kind = case.sizes, np.dtype("bfloat16")
    a, b = drawn(rng, case, kind)
    bias = rng.integers(-8, 9, columns).astype(kind)
    other = (rng.integers(-64, 65, (rows, columns)) / 8).astype(kind)
    out = cuda.empty(a, (rows, columns))
    found = computed(case, a, b, monkeypatch, out, bias=bias, other=other)
    whole = exact(a, b) + bias.astype(np.float64) + other.astype(np.float64)
    np.testing.assert_array_equal(found, whole.astype(np.float32).astype(kind))


@pytest.mark.device
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", [PLAIN, PLAIN._replace(sizes=(70, 35, 200), split=2)], ids=str)
def test_what_is_there_is_kept_as_often_as_it_is_said(device, monkeypatch, case, kind):
    rng = np.random.default_rng(2)
    a, b = drawn(rng, case, np.dtype("bfloat16"))
    out = cuda.empty(a, case.sizes[:2], kind)
    out[...] = rng.integers(-64, 65, out.shape)
    whole = exact(a, b) + 0.5 * out.astype(np.float64)
    computed(case, a, b, monkeypatch, out, keep=0.5)
    np.testing.assert_array_equal(out, whole.astype(np.float32).astype(kind))


@pytest.mark.device
@pytest.mark.parametrize("last", ["gelu", "slope"])
@pytest.mark.parametrize(
    "case", [PLAIN, PLAIN._replace(tile="128x128 turns", sizes=(70, 35, 40))], ids=str
)
def test_gelu_and_its_slope_are_of_unrounded_sums(device, monkeypatch, case, last):
    rng = np.random.default_rng(3)
    (rows, columns, _), kind = case.sizes, np.dtype("bfloat16")
    a, b = drawn(rng, case, kind)
    a /= np.asarray(64, kind)
    out, before = (cuda.empty(a, (rows, columns)) for _ in range(2))
    u = exact(a, b)
    if last == "gelu":
        computed(case, a, b, monkeypatch, out, before=before, last=last)
        np.testing.assert_array_equal(before, u.astype(np.float32).astype(kind))
        right = gelu_forward.definition(u)
    else:
        other = rng.standard_normal((rows, columns)).astype(kind)
        computed(case, a, b, monkeypatch, out, other=other, last=last)
        right = gelu_pullback.definition(u, other.astype(np.float64))
    error = np.abs(out.astype(np.float64) - right)
    assert (error <= 2.0**-8 * np.abs(right) + 1e-6).all()  # one rounding to bfloat16


FAULTS = [
    ("barrier_wait(empty + stage, parity ^ 1);", "", "arrivals at a barrier"),
    ("barrier_wait(full + stage, parity);", "", "nobody can go on"),
    ("products_wait<AHEAD>();", "", "products of thread 0 under way"),
    ("products_wait<AHEAD>();", "products_wait<AHEAD + 1>();", "an operand changed"),
    ("products_begin();\n#pragma", "\n#pragma", "without products_begin"),
    ("barrier_expect(full + stage, BYTES)", "barrier_expect(full + stage, BYTES / 2)", "to come"),
    ("(BY_TURNS ? 4 : CONSUMERS * 4)", "CONSUMERS", "nobody can go on"),
    ("OWN_REGISTERS = 240", "OWN_REGISTERS = 248", "its warp or registers"),
    ("barriers_made();", "", "before its fence"),
    ("room + (-shared_address(room) & 1023u)", "room", "a box of rank 3"),
    ("32), BOX)", "32), EIGHT_ROWS)", "Arrays are not equal"),  # from one box to the next
    ("stride = EIGHT_ROWS", "stride = 2 * EIGHT_ROWS", "Arrays are not equal"),
    ("__syncwarp();\n#pragma unroll 1", "\n#pragma unroll 1", "Arrays are not equal"),
]
"""What is taken out of the text, what stands there then, and what the emulation says of it."""


FAULTS_OF_PAIRS = [
    ("(BY_TURNS ? 4 : CONSUMERS * 4) * BLOCKS", "CONSUMERS * 4", "an operand changed|arrivals"),
    ("const u16 BOTH = 3;", "const u16 BOTH = 1;", "nobody can go on"),
    ("threadIdx.x % 32 < 2", "threadIdx.x % 32 < 1", "nobody can go on"),
    ("own = SHARED ? rank : 0", "own = 0", "nobody can go on|not equal"),
    ("at.row + rank * ROWS, step", "at.row, step", "Arrays are not equal"),
    ("meet_cluster(); // nobody", "// nobody", "has ended"),
]


@pytest.mark.device
@pytest.mark.parametrize(("text", "instead", "said"), FAULTS_OF_PAIRS, ids=range(6))
def test_the_emulation_notices_what_pairs_do_wrong(
    monkeypatch, tmp_path, built, text, instead, said
):
    tile = matmul_hopper.Tile(128, 128, 2, "together", "paired")
    case = Case("128x128 together paired", ("n", "t"), (300, 130, 200), processors=4)
    _noticed(monkeypatch, type(built)(tmp_path), tile, case, text, instead, said)


@pytest.mark.device
@pytest.mark.parametrize(("text", "instead", "said"), FAULTS, ids=range(len(FAULTS)))
def test_the_emulation_notices_what_it_is_for(monkeypatch, tmp_path, built, text, instead, said):
    tile = matmul_hopper.Tile(128, 128, 2, "together")
    case = Case("128x128 together", ("n", "n"), processors=2)
    _noticed(monkeypatch, type(built)(tmp_path), tile, case, text, instead, said)


def _noticed(monkeypatch, broken, tile, case, text, instead, said):
    whole = cuda.source
    monkeypatch.setattr(cuda, "source", lambda file: whole(file).replace(text, instead))
    broken.install(monkeypatch)
    monkeypatch.setattr(matmul_hopper, "TILES", (tile,))
    a, b = drawn(np.random.default_rng(0), case, np.dtype("bfloat16"))
    assert text in whole("matmul_hopper")
    with pytest.raises(AssertionError, match=said):
        np.testing.assert_array_equal(computed(case, a, b, monkeypatch), exact(a, b))
