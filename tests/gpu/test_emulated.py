"""The device's code on the CPU, against the definitions: every "cuda" variant, from its launch to its last line."""

import ml_dtypes
import numpy as np
import pytest
from accuracy import assert_same_bits, wide
from device_cases import DTYPES, SHAPES, VARIANTS, arguments, assert_right
from kernel_cases import KERNEL_CASES

from tinyplm.kernels import cuda, dropout, layer_norm, many
from tinyplm.kernels.registry import KERNELS

pytestmark = pytest.mark.device

TYPES = pytest.mark.parametrize("dtype", list(DTYPES), ids=lambda d: d.name)
NAMES = pytest.mark.parametrize("name", VARIANTS)


@pytest.fixture
def device(built, monkeypatch):
    built.install(monkeypatch)
    yield built
    built.check()


def run(name, given):
    """The results of a variant, whose `when` takes these arguments."""
    variant, case = VARIANTS[name], KERNEL_CASES[name]
    assert variant.when(*given)
    return case.call(variant.build(), *given)


@TYPES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@NAMES
def test_a_kernel_computes_what_its_definition_says(device, name, shape, dtype):
    given = arguments(name, shape, dtype)
    if not VARIANTS[name].when(*given):
        assert 0 in shape  # the definition does what is empty
        return
    assert_right(name, given, run(name, given), dtype)


@NAMES
def test_arrays_may_begin_anywhere(device, name):
    for dtype in DTYPES:
        given = arguments(name, (3, 96), dtype)
        apart = [_moved(a) if isinstance(a, np.ndarray) else a for a in given]
        variant = VARIANTS[name]
        assert variant.when(*apart)
        function, case = variant.build(), KERNEL_CASES[name]
        result = function(*apart)
        for i, (a, b) in enumerate(zip(apart, given, strict=True)):
            if i not in case.in_place and isinstance(a, np.ndarray):
                assert a.tobytes() == b.tobytes()
        found = [apart[i] for i in case.in_place] if case.in_place else result
        found = tuple(found) if isinstance(found, tuple | list) else (found,)
        assert_right(name, given, found, dtype)


def _moved(a):
    """A copy that begins one value behind an address that vectors want."""
    room = np.empty(a.size + 1, a.dtype)
    room[1:] = a.reshape(-1)
    return room[1:].reshape(a.shape)


@NAMES
def test_what_has_gaps_is_copied_or_left_to_the_definition(device, name):
    given = arguments(name, (6, 8), np.float32)
    large = [i for i, a in enumerate(given) if isinstance(a, np.ndarray) and a.dtype == np.float32]
    gaps = list(given)
    gaps[large[0]] = np.repeat(given[large[0]], 2, axis=-1)[..., ::2]
    if VARIANTS[name].when(*gaps):
        assert large[0] not in KERNEL_CASES[name].in_place
        assert_right(name, given, run(name, gaps), np.float32)
    assert not VARIANTS[name].when(
        *(a.astype(np.float64) if i in large else a for i, a in enumerate(given))
    )


@TYPES
@pytest.mark.parametrize("width", [64, 33, 1032, 1037, 8200])
@pytest.mark.parametrize("name", ["layer_norm_pullback", "rms_norm_pullback"])
def test_a_team_adds_up_many_rows(device, monkeypatch, name, width, dtype):
    monkeypatch.setattr(layer_norm, "TEAMS", dict.fromkeys(layer_norm.TEAMS, 3))
    given = arguments(name, (7, width), dtype)
    assert_right(name, given, run(name, given), dtype)


@pytest.mark.parametrize("name", ["layer_norm_forward", "rms_norm_forward"])
def test_without_a_branch_the_sum_is_the_input(device, name):
    x, _, *rest = arguments(name, (3, 40), np.float32)
    found = VARIANTS[name].build()(x, None, *rest)
    assert found[0] is x
    assert_right(name, (x, None, *rest), found, np.float32)


@pytest.mark.parametrize("name", ["layer_norm_pullback", "rms_norm_pullback"])
def test_nothing_may_be_due_besides(device, name):
    g, _, *rest = arguments(name, (3, 40), np.float32)
    assert_right(name, (g, None, *rest), run(name, (g, None, *rest)), np.float32)


INF, NAN = np.inf, np.nan
HARD = np.array(
    [
        [INF, 1, 2, 3],
        [-INF, 1, 2, 3],
        [NAN, 1, 2, 3],
        [-INF, -INF, -INF, -INF],
        [INF, -INF, 0, 1],
        [NAN, -INF, -INF, -INF],
        [88, -88, 1e30, -1e30],
        [0, -0.0, 1e-40, -1e-40],
    ],
    np.float32,
)


@pytest.mark.parametrize("copies", [1, 300])
@pytest.mark.parametrize(
    "name", ["softmax_forward", "gelu_forward", "gelu_tanh_forward", "dropout_forward"]
)
def test_what_is_not_finite_is_as_in_the_definition(device, name, copies):
    x = np.tile(HARD, copies)
    rest = {"softmax_forward": (1,), "dropout_forward": (0.5, 3)}.get(name, ())
    with np.errstate(all="ignore"):
        expected = KERNELS[name].definition(x, *rest)
    (found,) = run(name, (x, *rest))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_gelu_by_tanh_of_halves_is_rounded_once(device, dtype):
    """Of all values of the type; its short division gives 0, as the definition does, far below 0, and keeps NaN."""
    x = np.arange(1 << 16).astype(np.uint16).view(dtype).reshape(256, 256)
    unit = {"float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    for name, given in (("gelu_tanh_forward", (x,)), ("gelu_tanh_pullback", (np.ones_like(x), x))):
        with np.errstate(all="ignore"):
            exact = KERNELS[name].definition(*map(wide, given))
            (found,) = run(name, given)
            fine, found = np.isfinite(exact), wide(found)
            assert (np.isnan(found) == np.isnan(exact)).all()
            assert (found[~fine & ~np.isnan(exact)] == exact[~fine & ~np.isnan(exact)]).all()
            error = abs(found - exact)[fine]
        assert (error <= unit * abs(exact[fine]) + 1e-6).all()


@pytest.mark.parametrize("width", [4, 33, 768, 1028])
def test_what_lies_beyond_a_row_is_no_maximum(device, width):
    x = np.linspace(-400, -300, 3 * width, dtype=np.float32).reshape(3, width)
    (found,) = run("softmax_forward", (x, 1))
    assert_right("softmax_forward", (x, 1), (found,), np.float32)


@pytest.mark.parametrize("name", ["gelu_pullback", "gelu_tanh_pullback"])
def test_slopes_of_what_is_not_finite_are_as_in_the_definition(device, name):
    g = np.full_like(HARD, 2)
    with np.errstate(all="ignore"):
        expected = KERNELS[name].definition(g, HARD)
    np.testing.assert_allclose(run(name, (g, HARD))[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_of_what_is_not_finite_are_as_in_the_definition(device, smoothing):
    labels, share = np.array([1, 1, 1, 1, 2, 1, 0, 3]), np.array([1, 1, 1, 1, 1, 1, 0, 0.5])
    share = share.astype(np.float32)
    results = []
    with np.errstate(all="ignore"):
        for name in ("definition", "cuda"):
            kernel = KERNELS["cross_entropy_in_place"]
            function = kernel.definition
            if name == "cuda":
                function = VARIANTS["cross_entropy_in_place"].build()
            logits, losses = HARD.copy(), np.full(8, NAN, np.float32)
            function(logits, losses, labels, share, smoothing, True)
            results.append((logits, losses))
    for expected, found in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@TYPES
def test_a_row_without_a_share_has_no_loss_and_no_gradient_whatever_it_is(device, dtype):
    logits = np.full((2, 37), NAN, dtype)
    losses = np.full(2, NAN, np.float32)
    labels, share = np.array([-100, 5]), np.zeros(2, np.float32)
    VARIANTS["cross_entropy_in_place"].build()(logits, losses, labels, share, 0.0, True)
    assert (wide(logits) == 0).all()
    assert (wide(losses) == 0).all()


def test_a_label_or_an_id_outside_gives_nan_and_reads_nothing(device):
    logits, losses = np.zeros((3, 5), np.float32), np.zeros(3, np.float32)
    share = np.ones(3, np.float32)
    in_place = VARIANTS["cross_entropy_in_place"].build()
    in_place(logits, losses, np.array([-1, 2, 5]), share, 0.0, True)
    assert np.isnan(losses).tolist() == [True, False, True]
    table = np.ones((3, 4), np.float32)
    rows = VARIANTS["copy_rows"].build()(table, np.array([-1, 2, 3]))
    assert np.isnan(rows).all(axis=1).tolist() == [True, False, True]


@TYPES
@pytest.mark.parametrize(("n", "rows"), [(1, 1), (31, 2), (1100, 3), (1100, 70_000), (600, 1)])
def test_rows_are_added_up_in_order_whether_ids_are_many_or_few(device, n, rows, dtype):
    rng = np.random.default_rng(1)
    ids = rng.integers(0, rows, n)
    ids[n // 2 :] = np.sort(ids[n // 2 :])
    g = rng.integers(-3, 4, (n, 8)).astype(dtype)  # whole numbers: sums of them are exact
    (found,) = run("add_rows", (g, ids, rows))
    expected = np.zeros((rows, 8))
    np.add.at(expected, ids, wide(g))
    assert_same_bits(found, expected.astype(np.float32))


@pytest.mark.parametrize("count", [32, 33, 63, 64, 65, 96, 97, 530, 560, 576, 1089, 1100])
@pytest.mark.parametrize("before", [0, 1, 31, 32])
def test_runs_of_any_number_of_pieces_are_joined(device, count, before):
    """From any place in a piece to any other, with others behind them or none."""
    for behind in (0, 40):
        ids = np.repeat([0, 1, 2], [before, count, behind])
        g = np.random.default_rng(count).integers(-99, 100, (ids.size, 3)).astype(np.float32)
        expected = np.zeros((3, 3), np.float32)
        np.add.at(expected, ids, g)
        assert_same_bits(VARIANTS["add_rows"].build()(g, ids, 3), expected)


@pytest.mark.parametrize("rows", [255, 256, 300])
@pytest.mark.parametrize("outside", [-1, 256 * 256, (1 << 32) + 3])
def test_ids_outside_of_the_table_part_no_run(device, rows, outside):
    """Whatever their last digits are: one that is sorted by those alone comes between equal ones."""
    outside = outside if outside < 0 else outside + 7
    ids = np.full(300, 7)
    ids[[0, 40, 41, 150, 299]] = outside
    ids[[60, 200]] = rows - 1
    g = np.arange(2400.0).reshape(300, 8).astype(np.float32)
    found = VARIANTS["add_rows"].build()(g, ids, rows)
    expected = np.zeros((rows, 8))
    inside = ids != outside
    np.add.at(expected, ids[inside], g[inside])
    assert_same_bits(found, expected.astype(np.float32))


@TYPES
def test_sums_of_rows_in_half_precision_are_not_rounded_to_it(device, dtype):
    """More equal rows than a half can count one by one."""
    (found,) = run("add_rows", (np.ones((5000, 8), dtype), np.zeros(5000, int), 2))
    assert (found[0] == 5000).all()


@TYPES
def test_logits_may_be_the_least_that_there_are(device, dtype):
    """As whoever hides classes writes them: all that a thread meets, or a whole row; and once the largest of all."""
    logits = np.zeros((3, 5000), dtype)
    logits[0, 100:] = logits[1] = ml_dtypes.finfo(dtype).min
    logits[2, 7] = ml_dtypes.finfo(dtype).max
    labels = np.array([3, 4, 7])
    losses, _ = VARIANTS["cross_entropy_forward"].build()(logits, labels, 0.0)
    assert abs(losses.ravel() - np.log([100, 5000, 1])).max() <= 2.0**-20


@TYPES
def test_losses_of_large_logits_are_right(device, dtype):
    """What they are scaled by is rounded by 2^-24 of the largest, and so is what is added to a loss, or less."""
    rng = np.random.default_rng(3)
    logits, labels = (128 + rng.integers(0, 8, (4, 90))).astype(dtype), rng.integers(0, 90, 4)
    losses, log_sums = VARIANTS["cross_entropy_forward"].build()(logits, labels, 0.0)
    x = wide(logits).astype(np.float64)
    exact = np.log(np.exp(x - 128).sum(axis=1)) + 128
    assert abs(losses.ravel() - (exact - x[np.arange(4), labels])).max() <= 4 * 135 * 2.0**-24
    assert abs(log_sums.ravel() - exact).max() <= 4 * 135 * 2.0**-24


@TYPES
def test_rows_of_logits_may_lie_apart(device, dtype):
    logits, losses, *rest = arguments("cross_entropy_in_place", (5, 37), dtype)
    room = np.full((5, 48), 7, dtype)
    room[:, :37] = logits
    given = room[:, :37], losses
    assert VARIANTS["cross_entropy_in_place"].when(*given, *rest)
    VARIANTS["cross_entropy_in_place"].build()(*given, *rest)
    assert_right("cross_entropy_in_place", (logits, losses, *rest), given, dtype)
    assert (room[:, 37:] == 7).all()


@TYPES
def test_a_factor_of_one_changes_no_bit(device, dtype):
    x = np.random.default_rng(0).standard_normal((9, 33)).astype(dtype)
    (found,) = run("scale_in_place", (x, np.ones((), np.float32)))
    assert_same_bits(found, x)


@TYPES
def test_dropout_has_the_same_bits(device, dtype):
    """As the definition in float32, rounded once; the seed is a number, or lies on the device."""
    x = np.random.default_rng(0).standard_normal((37, 29)).astype(dtype)
    for rate, seed in ((0.1, 0), (0.5, 7), (0.9, (1 << 62) + 12345)):
        expected = dropout.dropout_forward.definition(x.astype(np.float32), rate, seed)
        for given in (seed, np.array([seed])):
            (found,) = run("dropout_forward", (x, rate, given))
            assert_same_bits(found, expected.astype(dtype))


TRIED = """
extern "C" __global__ void try_random(const u32 *given, u32 *found, i64 n) {
    const i64 i = threadIdx.x;
    if (i < n) {
        const u32 *a = given + 6 * i;
        uint4 all[1] = {{a[0], a[1], a[2], a[3]}};
        philox(all, {a[4], a[5]});
        const uint4 bits = all[0];
        u32 *to = found + 5 * i;
        to[0] = bits.x;
        to[1] = bits.y;
        to[2] = bits.z;
        to[3] = bits.w;
        to[4] = mixed(a[0], a[1], a[2], a[3]);
    }
}
"""


def test_random_bits_are_those_that_are_known(device, monkeypatch, tmp_path):
    (tmp_path / "prelude.cu").write_text(
        (cuda.FOLDER / "prelude.cu").read_text(encoding="utf-8"), encoding="utf-8"
    )
    (tmp_path / "tried.cu").write_text(TRIED, encoding="utf-8")
    monkeypatch.setattr(cuda, "FOLDER", tmp_path)
    ones = (1 << 32) - 1
    given = np.random.default_rng(0).integers(0, 1 << 31, (40, 6)).astype(np.uint32)
    given[0], given[1] = 0, ones
    found = np.zeros((40, 5), np.uint32)
    device.launch("tried", "try_random", 1, 64, given, found, 40)
    assert [f"{v:08x}" for v in found[0, :4]] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]
    assert [f"{v:08x}" for v in found[1, :4]] == ["408f276d", "41c83b0e", "a20bc7c6", "6d5451fd"]
    known = [dropout.mixed(*map(int, row[:4])) for row in given[2:]]
    assert found[2:, 4].tolist() == known


def test_every_kernel_of_every_file_is_launched_by_some_case(built, monkeypatch):
    built.install(monkeypatch)
    seen = set()
    monkeypatch.setattr(cuda, "launch", lambda _, kernel, *__, **___: seen.add(kernel))
    for name, variant in VARIANTS.items():
        for shape in SHAPES:
            for dtype in DTYPES:
                given = arguments(name, shape, dtype)
                for some in (given, [_moved(a) if isinstance(a, np.ndarray) else a for a in given]):
                    if variant.when(*some):
                        variant.build()(*some)
    # Not in the registry:
    many.Clipping(np.zeros(1))([np.ones(3, np.float32)], np.zeros(1), 1.0)
    # Of products and attention a plan chooses kernels; their tests go through the plans.
    files = [f for f in cuda.FILES if not f.startswith(("matmul", "attention"))]
    there = {name for file in files for name in built.library(file)[1]}
    assert there <= seen, there - seen


def test_types_are_those_of_the_package():
    assert tuple(d.name for d in DTYPES) == cuda.TYPES
