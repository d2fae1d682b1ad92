"""Products in bfloat16: rounding, MKL's products, error bounds, and who multiplies which shape."""

import ctypes
import importlib.metadata
import json
import subprocess
import sys
import threading

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyplm.errors import ConfigError, DtypeError, MissingExtraError, ShapeError
from tinyplm.kernels import matmul, mkl, precision
from tinyplm.kernels.gelu import gelu_forward
from tinyplm.kernels.linear_cross_entropy import linear_cross_entropy
from tinyplm.kernels.precision import Choices, multiply, prepare

needs_mkl = pytest.mark.skipif(mkl.load() is None, reason=f"no MKL: {mkl.reason()}")
SETTINGS = ["float32", "bfloat16", "bfloat16x3"]
LOWER_HALVES = [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF]
U = 2.0**-24


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test reads or writes the user's choices."""
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr(precision, "choices", Choices())


@pytest.fixture
def by_mkl(monkeypatch):
    """MKL multiplies whatever is not float32, on any processor."""
    if mkl.load() is None:
        pytest.skip(f"no MKL: {mkl.reason()}")
    monkeypatch.setattr(mkl, "is_worthwhile", lambda: True)
    monkeypatch.setattr(precision.choices, "of", lambda *_: "mkl")


@pytest.fixture
def without_mkl(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    monkeypatch.setattr(mkl, "_load", mkl._load.__wrapped__)  # forgets what it found


def every_kind():
    """Each upper half of a float32 with lower halves next to where rounding turns."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    return np.concatenate([upper | np.uint32(lower) for lower in LOWER_HALVES]).view(np.float32)


def by_ml_dtypes(x):
    with np.errstate(all="ignore"):
        return x.astype(ml_dtypes.bfloat16).view(np.uint16)


def as_numbers(bits):
    return bits.view(ml_dtypes.bfloat16).astype(np.float64)


def laid_out(x, how):
    """The same values with rows first, columns first, within a larger array, or every other column."""
    if how == "columns":
        return np.asfortranarray(x)
    if how == "within":
        large = np.zeros((x.shape[0] + 2, x.shape[1] + 3), x.dtype)
        large[1:-1, 2:-1] = x
        return large[1:-1, 2:-1]
    if how == "within, turned":
        return laid_out(np.ascontiguousarray(x.T), "within").T
    if how == "gaps":
        large = np.zeros((x.shape[0], 2 * x.shape[1]), x.dtype)
        large[:, ::2] = x
        return large[:, ::2]
    if how == "backwards":
        return np.ascontiguousarray(x[::-1])[::-1]
    return x.copy()


layouts = st.sampled_from(["rows", "columns", "within", "within, turned", "gaps", "backwards"])


def drawn(seed, *shape):
    """Normal numbers of sizes from a thousandth to a thousand."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 4, shape)).astype(np.float32)


# Rounding


def test_rounding_agrees_with_ml_dtypes_in_every_bit():
    x = every_kind()
    assert np.array_equal(precision.to_bfloat16(x), by_ml_dtypes(x))
    assert np.array_equal(precision.round_bits(x), by_ml_dtypes(x))


def test_a_bfloat16_is_the_upper_half_of_its_float32():
    bits = np.arange(1 << 16, dtype=np.uint16)
    right = bits.view(ml_dtypes.bfloat16).astype(np.float32).view(np.uint32)
    for made in (precision.to_float32(bits), precision.widen(bits)):
        nan = np.isnan(made)
        assert np.array_equal(made.view(np.uint32)[~nan], right[~nan])
        assert np.array_equal(nan, np.isnan(right.view(np.float32)))


def test_compiled_and_defined_rounding_agree_in_every_bit(monkeypatch):
    x = every_kind().reshape(-1, 32)
    compiled = precision.round_bits(x), precision.rounded(x), *precision.split(x)
    monkeypatch.setattr(precision, "_loop", lambda part: None)  # as without Numba
    defined = precision.round_bits(x), precision.rounded(x), *precision.split(x)
    for a, b in zip(defined[:3], compiled[:3], strict=True):
        assert a.tobytes() == b.tobytes()
    assert np.array_equal(as_numbers(defined[3]), as_numbers(compiled[3]), equal_nan=True)


@given(st.integers(0, 40), st.integers(0, 40), layouts, st.integers(0, 99))
def test_rounding_takes_any_layout_and_leaves_rows_or_columns_together(R, C, how, seed):
    plain = drawn(seed, R, C)
    x = laid_out(plain, how)
    right = by_ml_dtypes(plain)
    bits, single = precision.round_bits(x), precision.rounded(x)
    assert np.array_equal(bits, right)
    assert np.array_equal(single, right.view(ml_dtypes.bfloat16).astype(np.float32))
    assert np.array_equal(precision.widen(laid_out(bits, how)), single)
    assert np.array_equal(precision.split(x)[0], right)
    if how == "columns":
        assert bits.flags.f_contiguous
        assert single.flags.f_contiguous
    assert np.array_equal(x, plain)


@given(st.integers(1, 300), st.integers(0, 99))
def test_two_parts_hold_sixteen_bits(C, seed):
    x = drawn(seed, 1, C)
    high, low = map(as_numbers, precision.split(x))
    assert (np.abs(x - high - low) <= 2.0**-16 * np.abs(x)).all()


# MKL


@needs_mkl
@given(
    st.integers(0, 33), st.integers(0, 33), st.integers(0, 33), layouts, layouts,
    st.sampled_from(["rows", "within"]), st.sampled_from([1.0, -0.5]), st.sampled_from([0.0, 1.0, 2.5]),
    st.integers(0, 99),
)  # fmt: skip
def test_mkl_multiplies_any_layout(N, K, M, how_a, how_b, how_y, alpha, beta, seed):
    a, b = by_ml_dtypes(drawn(seed, N, K)), by_ml_dtypes(drawn(seed + 1, K, M))
    before = drawn(seed + 2, N, M) if beta else np.full((N, M), np.nan, np.float32)
    y = laid_out(before, how_y)
    mkl.gemm(laid_out(a, how_a), laid_out(b, how_b), y, alpha=alpha, beta=beta)
    a, b, kept = as_numbers(a), as_numbers(b), beta * before if beta else 0 * a @ b
    exact = alpha * a @ b + kept
    bound = 1.02 * (K + 3) * U * (abs(alpha) * np.abs(a) @ np.abs(b) + np.abs(kept))
    assert (np.abs(y - exact) <= bound).all()
    if how_y == "within":
        assert not y.base[0].any()
        assert not y.base[:, :2].any()
        assert not y.base[:, -1].any()


@needs_mkl
def test_mkl_knows_infinity_and_nan():
    a = by_ml_dtypes(np.array([[np.inf, 1], [np.nan, 1], [1, 2], [np.inf, -np.inf]], np.float32))
    y = np.empty((4, 1), np.float32)
    mkl.gemm(a, by_ml_dtypes(np.ones((2, 1), np.float32)), y)
    assert y[0] == np.inf
    assert y[2] == 3
    assert np.isnan(y[[1, 3]]).all()


@needs_mkl
def test_threads_multiply_at_the_same_time():
    a, b = by_ml_dtypes(drawn(0, 64, 40)), by_ml_dtypes(drawn(1, 40, 56))
    whole, parts = np.empty((64, 56), np.float32), np.empty((64, 56), np.float32)
    mkl.gemm(a, b, whole)

    def rows(start):
        for _ in range(50):
            mkl.gemm(a[start : start + 16], b, parts[start : start + 16])

    threads = [threading.Thread(target=rows, args=(start,)) for start in range(0, 64, 16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_allclose(parts, whole, rtol=0, atol=40 * U * np.abs(whole).max() * 40)


@needs_mkl
def test_compiled_code_can_have_the_address():
    found = mkl.load()
    assert found.address == ctypes.cast(found.function, ctypes.c_void_p).value != 0


@needs_mkl
def test_what_does_not_fit_mkl_is_said():
    a, y = np.zeros((2, 3), np.uint16), np.zeros((2, 2), np.float32)
    with pytest.raises(ShapeError, match=r"\(2, 3\) times \(2, 3\)"):
        mkl.gemm(a, a, y)
    with pytest.raises(DtypeError, match="float32, uint16 and float32"):
        mkl.gemm(a.astype(np.float32), a.T, y)
    with pytest.raises(ShapeError, match="side by side"):
        mkl.gemm(a, a.T, np.zeros((2, 4), np.float32)[:, ::2])


@needs_mkl
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere symbols belong to libraries")
def test_nobody_else_in_the_process_sees_mkl():
    code = (
        "import ctypes, numpy as np; from tinyplm.kernels import mkl; "
        "a = np.zeros((64, 64), np.uint16); mkl.gemm(a, a, np.empty((64, 64), np.float32)); "
        "whole = ctypes.CDLL(None); names = 'mkl_serv_malloc', 'mkl_blas_sgemm', 'cblas_gemm_bf16bf16f32', 'sgemm_'; "
        "print([name for name in names if hasattr(whole, name)])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, encoding="utf-8"
    )
    assert done.stdout == "[]\n"


def test_without_mkl_the_extra_is_named(without_mkl):
    assert mkl.load() is None
    assert mkl.reason() == "the package mkl is not installed"
    assert not mkl.is_worthwhile()
    a = np.zeros((1, 1), np.uint16)
    with pytest.raises(MissingExtraError, match=r"tinyplm\[mkl\]"):
        mkl.gemm(a, a, np.zeros((1, 1), np.float32))


def test_an_mkl_that_somebody_else_has_loaded_is_left_alone(without_mkl, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: None)
    monkeypatch.setattr(mkl, "_is_in_process", lambda: True)
    assert "already" in mkl.reason()


def test_an_mkl_without_its_files_says_so(without_mkl, monkeypatch):
    class Empty:
        version, files = "1.0", None

    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Empty)
    monkeypatch.setattr(mkl, "_is_in_process", lambda: False)
    assert "mkl 1.0 cannot be used here" in mkl.reason()


@pytest.mark.parametrize(
    ("text", "amx", "worthwhile"),
    [
        ("model name : x\nflags\t\t: fpu amx_bf16 amx_tile avx512_bf16\n", True, True),
        ("flags\t\t: fpu avx512_bf16\n", False, True),
        ("flags\t\t: fpu avx512f\n", False, False),
        ("Features : asimd\n", False, True),  # the system does not say, so it is measured
        (None, False, True),
    ],
)
def test_the_processor_is_asked_for_tiles(tmp_path, monkeypatch, text, amx, worthwhile):
    file = tmp_path / "cpuinfo"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    monkeypatch.setattr(mkl, "CPUINFO", file)
    monkeypatch.setattr(mkl, "load", lambda: mkl.Mkl("1", None, 0, 0, 0))
    monkeypatch.setattr(mkl, "_flags", mkl._flags.__wrapped__)
    assert mkl.has_amx() == amx
    assert mkl.is_worthwhile() == worthwhile


# The setting


def test_float32_holds_until_something_else_is_wanted():
    assert precision.current() == "float32"
    with precision.precision("bfloat16"):
        assert precision.current() == "bfloat16"
        with pytest.raises(KeyError), precision.precision("bfloat16x3"):
            raise KeyError
        assert precision.current() == "bfloat16"
    assert precision.current() == "float32"


def test_a_setting_holds_for_its_thread():
    seen = []
    with precision.precision("bfloat16"):
        thread = threading.Thread(target=lambda: seen.append(precision.current()))
        thread.start()
        thread.join()
    assert seen == ["float32"]


def test_an_unknown_setting_is_refused_with_those_there_are():
    with (
        pytest.raises(ConfigError, match=r"'fp8'.*float32, bfloat16, bfloat16x3"),
        precision.precision("fp8"),
    ):
        pass
    assert precision.current() == "float32"


def test_float32_is_what_it_was():
    a, b = drawn(0, 3, 4), drawn(1, 4, 5)
    calls = []

    def plain(*operands):
        calls.append(operands)
        return operands

    assert multiply(a, b, plain) == (a, b)
    assert prepare(a) is a
    with precision.precision("bfloat16"):
        wide = a.astype(np.float64)
        assert multiply(wide, b, plain)[0] is wide
        assert prepare(wide) is wide
        assert multiply(prepare(a), wide, plain)[1] is wide
    assert len(calls) == 3


def bound(setting, a, b):
    """Of the error, as the module derives it."""
    K = a.shape[1]
    relative = {
        "float32": 1.02 * K * U,
        "bfloat16": 2.0**-7 + 2.0**-16 + 1.02 * K * U,
        "bfloat16x3": 3.1 * 2.0**-16 + 1.02 * (3 * K + 2) * U,
    }[setting]
    return relative * (np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64))


def assert_within_bounds(N, K, M, how_a, how_b, seed):
    a, b = laid_out(drawn(seed, N, K), how_a), laid_out(drawn(seed + 1, K, M), how_b)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    for setting in SETTINGS:
        with precision.precision(setting):
            y = multiply(a, b, np.matmul)
            again = multiply(prepare(a), prepare(b.T).T, np.matmul)
        assert y.dtype == np.float32
        assert y.shape == (N, M)
        for found in (y, again):
            assert (np.abs(found - exact) <= bound(setting, a, b)).all(), setting


sizes = st.integers(0, 70)


@given(sizes, sizes, sizes, layouts, layouts, st.integers(0, 99))
def test_float32_libraries_keep_the_bounds(N, K, M, how_a, how_b, seed):
    assert_within_bounds(N, K, M, how_a, how_b, seed)


@needs_mkl
@given(sizes, sizes, sizes, layouts, layouts, st.integers(0, 99))
def test_mkl_keeps_the_bounds(N, K, M, how_a, how_b, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mkl, "is_worthwhile", lambda: True)
        patch.setattr(precision.choices, "of", lambda *_: "mkl")
        assert_within_bounds(N, K, M, how_a, how_b, seed)


def test_three_products_are_more_exact_than_one(by_mkl):
    a, b = drawn(0, 50, 200), drawn(1, 200, 60)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    error = {}
    for setting in SETTINGS:
        with precision.precision(setting):
            error[setting] = np.abs(multiply(a, b, np.matmul) - exact).max()
    assert 50 * error["bfloat16x3"] < error["bfloat16"]


def test_both_libraries_multiply_the_same_rounded_numbers(by_mkl, monkeypatch):
    a, b = drawn(0, 40, 30), drawn(1, 30, 20)
    with precision.precision("bfloat16"):
        one = multiply(a, b, np.matmul)
        monkeypatch.setattr(mkl, "is_worthwhile", lambda: False)
        other = multiply(a, b, np.matmul)
    a, b = (as_numbers(by_ml_dtypes(x)) for x in (a, b))
    assert (np.abs(one - other) <= 2 * 1.02 * 30 * U * (np.abs(a) @ np.abs(b))).all()


@pytest.mark.parametrize("setting", SETTINGS)
def test_what_is_not_finite_stays_not_finite(by_mkl, setting):
    a, b = np.ones((3, 4), np.float32), np.ones((4, 2), np.float32)
    a[0, 1], a[1, 2] = np.inf, np.nan
    with precision.precision(setting), np.errstate(invalid="ignore"):
        finite = np.isfinite(multiply(a, b, np.matmul))
    assert finite.tolist() == [[False] * 2, [False] * 2, [True] * 2]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("library", ["blas", "mkl"])
@pytest.mark.parametrize("threads", [False, True])
def test_a_bias_is_added_once_and_bent_with_the_rest(library, threads, setting, request):
    request.getfixturevalue("by_mkl" if library == "mkl" else "without_mkl")
    if not threads:
        monkeypatch = request.getfixturevalue("monkeypatch")
        monkeypatch.setattr(matmul, "_runner", lambda *_: None)
    x, weight, bias = drawn(0, 40, 30), drawn(1, 30, 70), drawn(2, 70)
    with precision.precision(setting):
        given = prepare(x), prepare(weight)
        product = matmul.product_in_precision(*given)
        y = matmul.linear_in_precision(*given, bias)
        u, bent = matmul.linear_gelu_in_precision(*given, bias, True)
        assert matmul.linear_in_precision(*given, None).tobytes() == product.tobytes()
    assert y.tobytes() == u.tobytes() == (product + bias).tobytes()
    assert bent.tobytes() == gelu_forward(u).tobytes()


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("library", ["blas", "mkl"])
def test_a_loss_over_the_vocabulary_keeps_the_bounds(library, setting, request):
    """Logits are off by the bound of their product; so are gradients, and by what off logits do to probabilities."""
    request.getfixturevalue("by_mkl" if library == "mkl" else "without_mkl")
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(shape).astype(np.float32) for shape in ((9, 16), (23, 16)))
    labels, share = np.arange(9) % 5, np.full(9, 0.5, np.float32)
    p = np.exp(x.astype(np.float64) @ weight.T)
    p /= p.sum(axis=-1, keepdims=True)
    g = 0.5 * (p - np.eye(23)[labels])
    given = x, weight, None, labels, share, 0.0
    with precision.precision(setting):
        loss, gradients = linear_cross_entropy(*given, True)
        assert linear_cross_entropy(*given, False)[0] == loss
    off = bound(setting, x, weight.T).max()
    small = 1e-5  # of exponentials and sums in float32
    assert abs(loss + 0.5 * np.log(p[range(9), labels]).sum()) <= 9 * 0.5 * (2 * off + small)
    g_off = 0.5 * (p * np.expm1(2 * off) + small)
    for a, b, lost, found in ((g, weight, g_off, gradients[0]), (g.T, x, g_off.T, gradients[1])):
        most = bound(setting, np.abs(a) + lost, b) + lost @ np.abs(b)
        assert (np.abs(found - a @ b) <= most).all()
    assert (setting == "bfloat16") == (abs(loss - linear_cross_entropy(*given, True)[0]) > 1e-5)


def test_three_products_without_mkl_are_float32(without_mkl):
    a, b = drawn(0, 9, 8), drawn(1, 8, 7)
    with precision.precision("bfloat16x3"):
        assert prepare(a) is a
        assert multiply(a, b, np.matmul).tobytes() == (a @ b).tobytes()


@pytest.mark.parametrize("library", ["blas", "mkl"])
def test_a_prepared_operand_does_not_follow_its_source(library, request):
    if library == "mkl":
        request.getfixturevalue("by_mkl")
    a, b = drawn(0, 6, 5), drawn(1, 5, 4)
    with precision.precision("bfloat16"):
        before = multiply(a, b, np.matmul)
        kept_a, kept_b = prepare(a), prepare(b)
    a[:], b[:] = 0, 0
    assert kept_a.shape == (6, 5)
    assert kept_a.T.shape == (5, 6)
    assert multiply(kept_a, kept_b, np.matmul).tobytes() == before.tobytes()
    turned = multiply(kept_b.T, kept_a.T, np.matmul)
    np.testing.assert_allclose(turned.T, before, rtol=0, atol=1e-6 * np.abs(before).max())


def test_a_backward_pass_keeps_the_precision_of_its_forward_pass():
    x, g = drawn(0, 6, 5), drawn(1, 6, 4)
    with precision.precision("bfloat16"):
        kept = prepare(x)
        inside = multiply(kept.T, g, np.matmul)
    assert multiply(kept.T, g, np.matmul).tobytes() == inside.tobytes()
    assert inside.tobytes() != (x.T @ g).tobytes()


def test_fixed_weights_are_rounded_once():
    weight = drawn(0, 6, 5)
    with precision.precision("bfloat16"):
        assert prepare(weight, weight=True) is not prepare(weight, weight=True)
        with precision.fixed_weights():
            first = prepare(weight, weight=True)
            assert prepare(weight, weight=True) is first
            assert prepare(weight.T, weight=True) is not first
            assert prepare(weight.T, weight=True) is prepare(weight.T, weight=True)
            assert prepare(weight) is not first
        weight[:] = 1
        with precision.fixed_weights():
            assert (prepare(weight, weight=True).single() == 1).all()


# Who multiplies


@pytest.fixture
def measured(monkeypatch):
    """Shapes that were measured; MKL wins where N is even."""
    if mkl.load() is None:
        monkeypatch.setattr(mkl, "load", lambda: mkl.Mkl("1", None, 0, 0, 0))
    monkeypatch.setattr(mkl, "is_worthwhile", lambda: True)
    shapes = []

    def measure(a, b, plain, bits, last):
        shapes.append((*a.shape, b.shape[1]))
        return "blas" if a.shape[0] % 2 else "mkl"

    monkeypatch.setattr(precision, "measure", measure)
    return shapes


def ask(choices, N, K=8, M=8, setting="bfloat16"):
    with precision.precision(setting):
        return choices.of(prepare(drawn(0, N, K)), prepare(drawn(0, K, M)), np.matmul, None, None)


def test_a_shape_is_measured_once_and_kept_on_disk(measured):
    choices = Choices()
    assert [ask(choices, 6), ask(choices, 6), ask(choices, 5), ask(Choices(), 6)] == ["mkl"] * 4
    assert measured == [(6, 8, 8)]  # 5 shares the bucket of 6
    assert ask(choices, 3) == "blas"
    kept = json.loads(precision.cache_file().read_text(encoding="utf-8"))
    assert kept == {precision.machine(): {"bfloat16 6x8x8 nn": "mkl", "bfloat16 3x8x8 nn": "blas"}}
    ask(choices, 6, setting="bfloat16x3")
    assert len(measured) == 3
    assert [path.name for path in precision.cache_file().parent.iterdir()] == ["products.json"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"x": 3}', b'{"x": {"y": 3}}', b"\xff\xfe", b"[" * 100_000],
)
def test_a_damaged_file_is_as_good_as_none(measured, content):
    file = precision.cache_file()
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    assert ask(Choices(), 6) == "mkl"
    assert json.loads(file.read_text(encoding="utf-8"))[precision.machine()]
    assert ask(Choices(), 6) == "mkl"
    assert len(measured) == 1


def test_a_choice_that_is_none_is_made_anew(measured):
    file = precision.cache_file()
    file.parent.mkdir(parents=True)
    file.write_text(
        json.dumps({precision.machine(): {"bfloat16 6x8x8 nn": "abacus"}, "other": {"a": "mkl"}}),
        encoding="utf-8",
    )
    assert ask(Choices(), 6) == "mkl"
    assert json.loads(file.read_text(encoding="utf-8"))["other"] == {"a": "mkl"}


def test_a_folder_that_cannot_be_written_changes_nothing(measured):
    precision.cache_file().parent.write_bytes(b"a file where the folder should be")
    choices = Choices()
    assert [ask(choices, 6), ask(choices, 6)] == ["mkl", "mkl"]
    assert len(measured) == 1


def test_a_user_without_a_home_keeps_nothing(measured, monkeypatch):
    def homeless():
        raise RuntimeError("no home")

    monkeypatch.setattr(precision.Path, "home", homeless)
    assert precision.cache_file() is None
    assert ask(Choices(), 6) == "mkl"


def test_the_cache_folder_is_where_the_system_has_it(monkeypatch, tmp_path):
    monkeypatch.setattr(precision.Path, "home", lambda: tmp_path)
    monkeypatch.setattr(precision.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert precision.cache_file() == tmp_path / ".cache/tinyplm/products.json"
    monkeypatch.setattr(precision.sys, "platform", "darwin")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert precision.cache_file() == tmp_path / "Library/Caches/tinyplm/products.json"


def test_sizes_share_a_bucket_with_those_of_two_leading_bits():
    assert [precision.bucket(n) for n in (1, 2, 3, 4, 5, 7, 9, 12, 13, 50_257)] == [
        *(1, 2, 3, 4, 6, 8, 12, 12, 16, 65_536)
    ]


def test_a_measurement_prefers_who_is_faster(by_mkl):
    with precision.precision("bfloat16"):
        a, b = prepare(drawn(0, 64, 8)), prepare(drawn(1, 8, 8))
    rows = set()

    def slow(x, y):
        rows.add(len(x))
        threading.Event().wait(0.003)
        return x @ y

    assert (
        precision.measure(
            a, b, slow, precision._one_thread, precision._one_thread, work=2 * 32 * 64
        )
        == "mkl"
    )
    assert rows == {32}

    def slow_bits(x, y, out, keep):
        threading.Event().wait(0.003)
        mkl.gemm(x, y, out, beta=keep)

    assert precision.measure(a, b, np.matmul, slow_bits, slow_bits) == "blas"


def test_what_mkl_lost_is_multiplied_by_the_float32_library(measured):
    a, b = drawn(0, 3, 8), drawn(1, 8, 8)
    with precision.precision("bfloat16"):
        y = multiply(a, b, np.matmul)
    assert y.tobytes() == (precision.rounded(a) @ precision.rounded(b)).tobytes()
