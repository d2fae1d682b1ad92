"""How products are cut for a card: tiles, parts of sums, what is chosen, and the banks of shared memory they meet."""

from collections import Counter

import numpy as np
import pytest
from budgets import CARDS

from tinyplm.kernels import cuda, matmul_cuda, matmul_plan, matmul_tiles
from tinyplm.kernels.matmul_cuda import Layout, layout
from tinyplm.kernels.matmul_plan import GROUP, Problem, place
from tinyplm.kernels.matmul_tiles import FEW_THREADS, PLAIN_TILES, TILES

A100, H100 = CARDS["sm_80"], CARDS["sm_90a"]
GAMING = cuda.Card(86, 82, 99 * 1024)
PROBLEM = Problem(1, 12_288, 768, 768, "bfloat16", "bfloat16", False, False, True, True)


def plans(problem, card, split=None):
    """Those of the tiers that are for every card."""
    tiers = (matmul_tiles.few_plans, matmul_tiles.tensor_plans, matmul_tiles.plain_plans)
    return [plan for tier in tiers for plan in tier(problem, card, split)]


def best(problem, card=H100):
    return min(plans(problem, card), key=lambda plan: plan.seconds)


# ---- the grid


@pytest.mark.parametrize("down", [1, 7, 8, 9, 25])
@pytest.mark.parametrize("across", [1, 3, 10])
@pytest.mark.parametrize(("batch", "parts"), [(1, 1), (3, 1), (1, 4), (2, 3)])
def test_every_tile_of_every_part_and_product_is_one_blocks(down, across, batch, parts):
    found = [place(block, down, across, batch) for block in range(down * across * batch * parts)]
    assert len(set(found)) == len(found)
    for part, one, row, column in found:
        assert 0 <= part < parts
        assert 0 <= one < batch
        assert 0 <= row < down
        assert 0 <= column < across


def test_neighbours_in_time_share_operands():
    """Of 64 blocks in a row of a large product, 16 rows and columns of tiles are read instead of 65."""
    found = [place(block, 32, 32, 1)[2:] for block in range(8 * GROUP)]
    assert len({row for row, _ in found}) + len({column for _, column in found}) == 16


@pytest.mark.parametrize("terms", [0, 1, 31, 32, 33, 1000, 65_536])
@pytest.mark.parametrize("parts", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("depth", [8, 32, 128])
def test_parts_have_all_terms_and_none_is_empty(terms, parts, depth):
    found, chunk = matmul_plan.cut(terms, parts, depth)
    assert 1 <= found <= parts
    assert chunk % depth == 0
    assert chunk * found >= terms
    assert chunk * (found - 1) < max(terms, 1)


# ---- what kernels take


@pytest.mark.parametrize("card", [A100, H100, GAMING], ids=["A100", "H100", "8.6"])
def test_a_plan_fits_on_its_card(card):
    for dtype in cuda.TYPES:
        for rows in (1, 5, 12_288):
            problem = PROBLEM._replace(dtype=dtype, out=dtype, rows=rows)
            offered = plans(problem, card)
            assert offered
            for plan in offered:
                assert plan.shared <= card.shared
                assert plan.threads <= 1024
                assert plan.threads % 32 == 0
                assert plan.file.split(" ")[0] in cuda.TEMPLATES
                tiles = np.prod(matmul_plan.tiles_of(problem, *plan.tile[:2]))
                assert plan.blocks == tiles * plan.split


def test_as_many_blocks_fit_as_are_counted_on():
    """On a multiprocessor of compute capability 8.0: 65,536 registers, 164 KB of which a block costs one more."""
    for tile in (*TILES, *PLAIN_TILES):
        threads = tile.threads
        assert threads * tile.resident <= 2048
        assert (tile.shared + 1024) * tile.resident <= 164 * 1024
        assert 65_536 // (threads * tile.resident) >= 96


def test_names_of_plans_are_their_own():
    for problem in (PROBLEM, PROBLEM._replace(dtype="float32", out="float32", rows=3)):
        names = Counter(plan.name for plan in plans(problem, H100, 1))
        assert set(names.values()) == {1}


def test_what_cannot_be_read_by_sixteen_bytes_has_a_plan_too():
    odd = PROBLEM._replace(columns=50_257, copies=False, stores=False, rows=4)
    assert {plan.tier for plan in plans(odd, H100)} == {"tensor"}
    assert all(plan.kernel.endswith("single_plain") for plan in plans(odd, H100))
    assert {plan.tier for plan in plans(odd._replace(dtype="float32"), H100)} == {"plain"}


# ---- what is chosen


def waves(plan, card, resident=1):
    """The share of blocks' places that are used until the last is done."""
    rounds = -(-plan.blocks // (card.processors * resident))
    return plan.blocks / (rounds * card.processors * resident)


def test_whole_waves_are_preferred():
    """288 tiles of 128x256 leave a quarter of 132 multiprocessors' time unused; 576 of 128x128 an eighth."""
    (large,) = (p for p in plans(PROBLEM, H100, 1) if p.name == "128x256")
    chosen = best(PROBLEM)
    assert waves(large, H100) < 0.75
    assert waves(chosen, H100) > 0.85
    assert chosen.split == 1


def test_large_products_get_large_tiles_and_small_ones_small():
    assert best(PROBLEM._replace(rows=8192, columns=8192, terms=8192)).name == "128x256"
    assert best(PROBLEM._replace(rows=200, columns=192, terms=192)).name == "64x64"
    assert best(PROBLEM._replace(rows=17, columns=64, terms=64)).name == "64x64"


def test_gradients_of_weights_are_cut_so_that_all_multiprocessors_work():
    for rows, columns in ((768, 768), (768, 3072), (384, 384)):
        gradient = PROBLEM._replace(
            rows=rows, columns=columns, terms=65_536, a_turned=True, out="float32"
        )
        whole = min(plans(gradient, H100, 1), key=lambda plan: plan.seconds)
        chosen = best(gradient)
        assert chosen.split > 1
        assert waves(chosen, H100) > 0.8
        assert chosen.seconds < whole.seconds


def test_few_rows_are_computed_by_the_kernel_that_reads_b_once():
    for columns in (768, 3072, 50_304):
        for dtype, rows in (("bfloat16", 1), ("bfloat16", 16), ("float32", 1), ("float32", 8)):
            for turned in (False, True):
                given = PROBLEM._replace(
                    rows=rows, columns=columns, dtype=dtype, out=dtype, b_turned=turned
                )
                assert best(given).tier == "few"
    assert best(PROBLEM._replace(rows=17)).tier == "tensor"
    assert best(PROBLEM._replace(rows=9, dtype="float32")).tier == "plain"


def test_sums_that_are_short_or_fill_the_card_are_not_cut():
    for problem in (PROBLEM, PROBLEM._replace(rows=8192, columns=8192, terms=8192)):
        assert best(problem).split == 1
    assert best(PROBLEM._replace(rows=64, columns=64, terms=120)).split == 1
    assert best(PROBLEM._replace(terms=0)).split == 1


def test_a_choice_is_made_once():
    problem = PROBLEM._replace(rows=1234)
    matmul_plan._best.cache_clear()
    first = matmul_plan.plan(problem, H100)
    assert matmul_plan.plan(problem, H100) is first
    assert matmul_plan._best.cache_info().hits == 1
    with matmul_plan.forced("64x64", 3):
        assert matmul_plan.plan(problem, H100).split == 3
        with matmul_plan.forced("128x64"):
            assert matmul_plan.plan(problem, H100).name == "128x64"
        assert matmul_plan.plan(problem, H100).name == "64x64"
    assert matmul_plan.plan(problem, H100) is first


# ---- how arrays lie


@pytest.mark.parametrize(
    ("seen", "lies"),
    [
        (lambda x: x[0], (False, 20, 0)),
        (lambda x: x[0].T, (True, 20, 0)),
        (lambda x: x[0, :, 3:9], (False, 20, 0)),
        (lambda x: x[0, ::2], (False, 40, 0)),
        (lambda x: x, (False, 20, 200)),
        (lambda x: x.swapaxes(1, 2), (True, 20, 200)),
        (lambda x: x[::2], (False, 20, 400)),
        (lambda x: x.swapaxes(0, 1), (False, 200, 20)),
        (lambda x: x[:1], (False, 20, 0)),
        (lambda x: np.broadcast_to(x[0], (5, 10, 20)), (False, 20, 0)),
        (lambda x: np.broadcast_to(x[0, 0], (10, 20)), (False, 0, 0)),
        (lambda x: x[0, :1], (False, 0, 0)),
        (lambda x: x[0, :, :1], (False, 20, 0)),
        (lambda x: x[0, :, :1].T, (True, 20, 0)),
        (lambda x: x[0, :1].T, (True, 0, 0)),
        (lambda x: x[0, :1, :1], (False, 0, 0)),
        (lambda x: x[:, :, 0], None),
        (lambda x: x[0, :, ::2], None),
        (lambda x: x[0, ::-1], None),
        (lambda x: x[0].reshape(-1, 2, 10)[:, 0], (False, 20, 0)),
    ],
)
def test_a_layout_finds_every_value(seen, lies):
    whole = np.arange(600, dtype=np.float32).reshape(3, 10, 20)
    a = seen(whole)
    found = layout(a)
    assert found == (lies and Layout(*lies))
    if found:
        first = a.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
        rows, columns = np.indices(a.shape[-2:])
        stored = (columns, rows) if found.turned else (rows, columns)
        places = first // 4 + stored[0] * found.pitch + stored[1]
        steps = np.arange(len(a))[:, None, None] * found.step if a.ndim == 3 else 0
        np.testing.assert_array_equal(whole.reshape(-1)[places + steps], a)


# ---- shared memory: 32 banks of 4 bytes; what meets in one, in the same moment, waits


def wait(addresses, size):
    """How often a warp's access of so many bytes for each lane is made, at its least once for each 128 bytes.

    Lanes that read one word share it. Of 8 bytes half of the lanes are served together, of 16 a quarter.
    """
    together = 32 * 4 // size
    times = 0
    for start in range(0, len(addresses), together):
        words = {a // 4 + i for a in addresses[start : start + together] for i in range(size // 4)}
        times += max(Counter(word % 32 for word in words).values())
    return times / (len(addresses) / together)


def stored(chunks, row, chunk):
    """`Copies::place` of matmul.cu."""
    exchange = row // 2 % 4 if chunks == 4 else row % 8
    return (row * chunks + (chunk ^ exchange)) * 16


CHUNKS = pytest.mark.parametrize("chunks", [4, 8, 16, 32])


@CHUNKS
def test_chunks_are_exchanged_within_their_row(chunks):
    for row in range(64):
        found = {stored(chunks, row, c) for c in range(chunks)}
        assert found == {(row * chunks + c) * 16 for c in range(chunks)}


@CHUNKS
def test_tensor_cores_and_copies_meet_every_bank_once(chunks):
    for chunk in range(chunks):
        for first in range(0, 64, 8):
            assert wait([stored(chunks, first + r, chunk) for r in range(8)], 16) == 1
    for warp in range(4):
        lanes = range(32 * warp, 32 * warp + 32)
        assert wait([stored(chunks, i // chunks, i % chunks) for i in lanes], 16) == 1


def test_without_exchange_they_would_wait():
    assert wait([row * 64 for row in range(8)], 16) == 4
    assert wait([row * 256 for row in range(8)], 16) == 8


def staged(width, row, column):
    """`Staging::place` of matmul.cu, in bytes."""
    group = column // 4
    return 4 * (row * (width + 8) + (group ^ ((group // 8 + row) & 1)) * 4 + column % 4)


@pytest.mark.parametrize("width", [32, 64])
def test_sums_are_put_in_rows_without_waiting(width):
    places = {staged(width, r, c) for r in range(16) for c in range(width)}
    assert len(places) == 16 * width
    for tile in range(0, width, 8):
        for half in (0, 8):
            lanes = [staged(width, i // 4 + half, tile + i % 4 * 2) for i in range(32)]
            assert wait(lanes, 8) == 1
    for first in range(0, 2 * width, 32):
        runs = [divmod(first + i, width // 8) for i in range(32)]
        for half in (0, 4):
            assert wait([staged(width, r, c * 8 + half) for r, c in runs], 16) == 1


@pytest.mark.parametrize("extent", [64, 128])
def test_float32_is_copied_and_read_without_waiting(extent):
    pitch = extent + 4
    by_terms = [4 * (i % 8 * pitch + i // 8) for i in range(32)]
    assert wait(by_terms, 4) == 1
    assert wait([4 * i for i in range(32)], 4) == 1
    down = [16 * (i // 8) for i in range(32)]
    across = [16 * (i % 8) for i in range(32)]
    assert wait(down, 16) == wait(across, 16) == 1


def test_few_rows_are_read_without_waiting():
    pitch = 2 * (512 + 8)
    for term in range(0, 512, 8):
        assert wait([row * pitch + 2 * term for row in range(8)], 16) == 1
    for tile in range(8):  # sums of a warp, in rows of 64 + 8
        assert wait([4 * (i // 4 * 72 + 8 * tile + i % 4 * 2) for i in range(32)], 8) == 1


PROBE = """
template <class C> __device__ void probe(u32 *&out) {
    for (u32 r = 0; r < C::STORED; r++) {
        for (u32 c = 0; c < C::CHUNKS; c++) {
            *out++ = C::place(r, c);
        }
    }
}
template <int WIDTH> __device__ void probe_staging(u32 *&out) {
    for (int r = 0; r < 16; r++) {
        for (int c = 0; c < WIDTH; c++) {
            *out++ = 4 * Staging<WIDTH>::place(r, c);
        }
    }
}
extern "C" __global__ void probes(u32 *out) {
    probe<Copies<bfloat16, 128, true, true, 128>>(out);
    probe<Copies<bfloat16, 64, false, true, 128>>(out);
    probe<Copies<bfloat16, 128, false, true, 256>>(out);
    probe<Copies<bfloat16, 256, false, true, 256>>(out);
    probe_staging<32>(out);
    probe_staging<64>(out);
}
"""


@pytest.mark.device
def test_places_are_those_of_the_device_code(built, monkeypatch):
    text = cuda.source("matmul")
    monkeypatch.setattr(cuda, "source", lambda file: text + PROBE)
    expected = [
        stored(chunks, r, c)
        for chunks, rows in ((4, 128), (8, 32), (16, 32), (32, 32))
        for r in range(rows)
        for c in range(chunks)
    ]
    expected += [staged(width, r, c) for width in (32, 64) for r in range(16) for c in range(width)]
    found = np.zeros(len(expected), np.uint32)
    built.install(monkeypatch)
    cuda.launch("matmul", "probes", 1, 32, found)
    assert found.tolist() == expected


def test_numbers_of_the_device_code_are_those_of_the_plans():
    assert f"GROUP = {GROUP};" in cuda.source("matmul")
    assert f"DEPTH = {matmul_tiles.DEPTH};" in cuda.source("matmul")
    assert f"DEPTH = {matmul_tiles.PLAIN_DEPTH};" in cuda.source("matmul_float32")
    assert f"RUN = {matmul_cuda.RUN};" in cuda.source("matmul_parts")
    for file in ("matmul_few", "matmul_few_float32"):
        assert "WARPS = 8" in cuda.source(file)
    assert FEW_THREADS == 8 * 32
