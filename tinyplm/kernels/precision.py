"""How exactly matrices are multiplied: float32, or faster from operands in bfloat16, with sums in float32.

A bfloat16 is the upper half of a float32: 8 bits of significand, the same range. Where a processor multiplies them in
tiles (AMX), that is several times faster. Weights, their moments, statistics, softmax, norms and losses stay float32;
only the two operands of a product are rounded. The settings:

- "float32": operands as they are. An entry of a product of K terms is off by at most 1.02 K 2^-24 (|a| |b|).
- "bfloat16": operands rounded to bfloat16, each off by 2^-8 at most: (2^-7 + 2^-16 + 1.02 K 2^-24) (|a| |b|).
- "bfloat16x3": a = a1 + a2 + e with a1 = bfloat16(a), a2 = bfloat16(a - a1) and |e| <= 2^-16 |a|, b likewise; the
  product is a1 b2 + a2 b1 + a1 b1. Left out are a2 b2 and what e does to a and to b, each about 2^-16 at most:
  (3.1 2^-16 + 1.02 (3 K + 2) 2^-24) (|a| |b|).

Here (|a| |b|) is the entry of the product of absolute values. What is not finite stays not finite; beyond 3.3895e38 a
float32 rounds to an infinite bfloat16.

Who multiplies: MKL where it is installed and the processor has instructions for bfloat16, if it is faster at a shape,
measured once and kept on disk (`Choices`); else whatever multiplies float32. With "bfloat16" operands are rounded
whoever multiplies, so it makes no difference but the order of summation. "bfloat16x3" multiplies a1 + a2 and b1 + b2
in float32 where that is faster, within the bound too; where MKL is of no use it is float32 itself. The same bits come
again as long as the file of choices is kept; where MKL is of no use there is nothing to choose.

An operand is rounded once for all products that share it (`prepare`): a forward pass and its pullback, or, while
weights do not change (`fixed_weights`), all forward passes.
"""

import contextlib
import contextvars
import functools
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..types import Array
from . import mkl
from .compiled import parallel
from .threads import LEAST, available, products_by

Bits = Callable[[Array, Array, Array, float], Any]
"""bits(a, b, y, keep) writes a b + keep y to the float32 y, for a and b of bfloat16 as uint16."""

PRECISIONS = ("float32", "bfloat16", "bfloat16x3")
"""The settings by name."""

_now: contextvars.ContextVar[str] = contextvars.ContextVar("precision", default="float32")


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    """Multiply matrices in this precision within a block: "float32", "bfloat16" or "bfloat16x3".

    It holds for the thread that enters the block, as `no_grad` does, and for float32 arrays of NumPy; float64 stays
    float64. A backward pass uses the precision of its forward pass. If the float32 library is faster at a shape, or MKL
    is missing, "bfloat16" rounds the operands and multiplies them there.

    Raises:
        ConfigError: no such setting.
    """
    check(name)
    before = _now.get()
    _now.set(name)
    try:
        yield
    finally:
        _now.set(before)


def check(name: str) -> None:
    """Refuse a setting that there is not.

    Raises:
        ConfigError: no such setting.
    """
    if name not in PRECISIONS:
        raise ConfigError(
            f"No precision '{name}'. Known: {', '.join(PRECISIONS)}. float32 is the most exact; "
            "bfloat16 is the fastest on processors with AMX."
        )


def current() -> str:
    """The setting that holds here and now."""
    return _now.get()


def in_use(name: str) -> str:
    """How products in a precision are computed on this machine, in words."""
    check(name)
    if name == "float32":
        return f"by {products_by() or 'the library of NumPy'}"
    if mkl.is_worthwhile():
        how = "MKL" if name == "bfloat16" else "three products of MKL"
        return f"by {how}, where that is faster: measured for each shape, once"
    return "operands rounded, then as float32" if name == "bfloat16" else "as float32"


# Rounding. These are no kernels of the registry: what they define is a rounding, which float64 has no better answer to.


def to_bfloat16(x: Array) -> Array:
    """Float32 rounded to the nearest bfloat16, ties to even, as uint16; NaN stays NaN, of the same sign."""
    bits = x.view(np.uint32)
    half_less_one, quiet_nan = np.uint32(0x7FFF), np.uint32(0x7FC0)
    nearest = (bits + half_less_one + (bits >> 16 & 1)) >> 16
    nan = quiet_nan | (bits >> 16 & 0x8000)
    return np.where(np.isnan(x), nan, nearest).astype(np.uint16)


def to_float32(bits: Array) -> Array:
    """The float32 whose upper half these uint16 are; exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _nearest(bits: Any) -> Any:
    """The rounded number's upper half, of one float32's bits."""
    upper = np.uint32(bits >> np.uint32(16))
    odd = np.uint32(upper & np.uint32(1))
    nearest = np.uint32(np.uint32(bits + np.uint32(np.uint32(0x7FFF) + odd)) >> np.uint32(16))
    nan = np.uint32(np.uint32(0x7FC0) | np.uint32(upper & np.uint32(0x8000)))
    size = np.uint32(bits & np.uint32(0x7FFFFFFF))
    return nan if size > np.uint32(0x7F800000) else nearest


# Each loop counts from 0 in slices of its own: from an unknown start it is not vectorised, and ten times slower.


def _round_part(team: Any, part: int, start: int, stop: int, x: Array, y: Array) -> None:
    source, target = x[start:stop], y[start:stop]
    for i in range(source.size):
        target[i] = np.uint16(_nearest(source[i]))


def _round_single_part(team: Any, part: int, start: int, stop: int, x: Array, y: Array) -> None:
    source, target = x[start:stop], y[start:stop]
    for i in range(source.size):
        target[i] = np.uint32(_nearest(source[i]) << np.uint32(16))


def _widen_part(team: Any, part: int, start: int, stop: int, x: Array, y: Array) -> None:
    source, target = x[start:stop], y[start:stop]
    for i in range(source.size):
        target[i] = np.uint32(np.uint32(source[i]) << np.uint32(16))


def _split_part(team: Any, part: int, start: int, stop: int, x: Array, y: Array, z: Array) -> None:
    source, high, low = x[start:stop], y[start:stop], z[start:stop]
    for i in range(source.size):
        bits = np.uint32(source[i])
        upper = np.uint32(_nearest(bits))
        shown = np.uint32(upper << np.uint32(16))
        rest = np.float32(bits.view(np.float32) - shown.view(np.float32))
        high[i] = np.uint16(upper)
        low[i] = np.uint16(_nearest(rest.view(np.uint32)))


@functools.cache
def _loop(part: Callable[..., Any]) -> Callable[..., None] | None:
    return parallel(part, _nearest)


def _run(part: Callable[..., Any], x: Array, *kinds: Any) -> list[Array] | None:
    """Fill arrays of these dtypes, laid out as x; None without Numba."""
    loop = _loop(part)
    if loop is None:
        return None
    made = [np.empty_like(x, dtype=kind) for kind in kinds]
    flat = [a.reshape(-1, order="A") for a in (x, *made)]
    source = flat[0].view(np.uint32) if x.dtype == np.float32 else flat[0]
    loop(
        x.size,
        source,
        *(a.view(np.uint32) if a.dtype == np.float32 else a for a in flat[1:]),
        least=8 * LEAST,
    )
    return made


def round_bits(x: Array) -> Array:
    """As `to_bfloat16`, at the speed of a copy; rows or columns stay neighbours as they are in x."""
    x = _dense(x)
    made = _run(_round_part, x, np.uint16)
    return made[0] if made else to_bfloat16(x)


def rounded(x: Array) -> Array:
    """Float32 rounded to what a bfloat16 can hold, as float32."""
    x = _dense(x)
    made = _run(_round_single_part, x, np.float32)
    return made[0] if made else to_float32(to_bfloat16(x))


def widen(bits: Array) -> Array:
    """As `to_float32`, at the speed of a copy."""
    bits = _dense(bits)
    made = _run(_widen_part, bits, np.float32)
    return made[0] if made else to_float32(bits)


def split(x: Array) -> tuple[Array, Array]:
    """Two bfloat16 parts as uint16: x rounded, and what that leaves, rounded."""
    x = _dense(x)
    if made := _run(_split_part, x, np.uint16, np.uint16):
        return made[0], made[1]
    upper = to_bfloat16(x)
    with np.errstate(invalid="ignore"):  # infinity less itself
        return upper, to_bfloat16(x - to_float32(upper))


def _dense(x: Array) -> Array:
    """The array, without gaps: rows first or columns first."""
    return x if x.flags.c_contiguous or x.flags.f_contiguous else np.ascontiguousarray(x)


class Prepared:
    """A matrix rounded for products, in whichever form was asked for so far; it does not change with its source."""

    __slots__ = ("_forms", "_turned", "precision")

    def __init__(self, source: Array, precision: str) -> None:
        self.precision = precision
        self._turned = False
        self._forms: dict[str, Any] = {}  # shared with the turned one
        if not mkl.is_worthwhile():
            self._forms["single"] = rounded(source)
        else:
            self._forms["parts"] = _parts(source, precision)

    @property
    def T(self) -> "Prepared":  # noqa: N802  NumPy's name
        """The matrix turned; nothing is copied."""
        other = Prepared.__new__(Prepared)
        other.precision, other._turned, other._forms = self.precision, not self._turned, self._forms
        return other

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns."""
        form = self._forms["parts"][0] if "parts" in self._forms else self._forms["single"]
        return form.shape[::-1] if self._turned else form.shape

    def single(self) -> Array:
        """For a float32 product: the rounded values, those of both parts together with "bfloat16x3"."""
        if "single" not in self._forms:
            total = widen(self._forms["parts"][0])
            for part in self._forms["parts"][1:]:
                total += widen(part)
            self._forms["single"] = total
        return self._turn(self._forms["single"])

    def parts(self) -> tuple[Array, ...]:
        """For bfloat16 products: one array of uint16, or two with "bfloat16x3"."""
        if "parts" not in self._forms:
            self._forms["parts"] = _parts(self._forms["single"], self.precision)
        return tuple(map(self._turn, self._forms["parts"]))

    def rows(self, rows: slice) -> "Prepared":
        """Some rows of it, in both forms."""
        some = Prepared.__new__(Prepared)
        some.precision, some._turned = self.precision, False
        some._forms = {
            "single": self.single()[rows],
            "parts": tuple(part[rows] for part in self.parts()),
        }
        return some

    def _turn(self, x: Array) -> Array:
        return x.T if self._turned else x


def _parts(x: Array, precision: str) -> tuple[Array, ...]:
    return (round_bits(x),) if precision == "bfloat16" else split(x)


_fixed: contextvars.ContextVar[dict[Any, Any] | None] = contextvars.ContextVar(
    "fixed", default=None
)


@contextlib.contextmanager
def fixed_weights() -> Iterator[None]:
    """Promise that weights are not written to within a block, so that each is rounded once for all of it."""
    before = _fixed.get()
    _fixed.set({})
    try:
        yield
    finally:
        _fixed.set(before)


def prepare(x: Any, *, weight: bool = False) -> Any:
    """The operand of products to come, rounded once; x itself where there is nothing to round.

    Whatever is done to x afterwards, what was prepared stays as it is. With "bfloat16" and MKL it takes half the
    memory.

    Args:
        x: an array, or a prepared one.
        weight: x is a weight, which a block of `fixed_weights` makes promises about.
    """
    name = _in_force()
    if name == "float32" or not _is_matrix(x):
        return x
    kept = _fixed.get() if weight else None
    if kept is None:
        return Prepared(x, name)
    key = (name, x.ctypes.data, x.shape, x.strides)
    if key not in kept:
        kept[key] = Prepared(x, name), x  # with x, so that its memory is not used for another
    return kept[key][0]


def _in_force() -> str:
    """The setting that holds; "bfloat16x3" without bfloat16 products is float32."""
    name = _now.get()
    return "float32" if name == "bfloat16x3" and not mkl.is_worthwhile() else name


def _is_matrix(x: Any) -> bool:
    return type(x) is np.ndarray and x.dtype == np.float32 and x.ndim == 2


def multiply(
    a: Any,
    b: Any,
    plain: Callable[..., Array],
    out: Array | None = None,
    keep: float = 0.0,
    *,
    bits: Bits | None = None,
    last: Bits | None = None,
) -> Array:
    """A b in the precision that holds, or that an operand was prepared in; or out = a b + keep out.

    Args:
        a: (N, K), an array or what `prepare` made of it.
        b: (K, M), likewise.
        plain: plain(a, b) multiplies arrays of one float type; plain(a, b, out, keep) where out is given.
        out: float32 in row-major order, overwritten and returned.
        keep: how much of what out holds is kept.
        bits: multiplies bfloat16; one thread of MKL when None.
        last: in place of the last of these, to do more with a finished y, as `plain` does too.
    """
    rest = () if out is None else (out, keep)
    given = type(a) is Prepared, type(b) is Prepared
    if not any(given) and _in_force() == "float32":
        return plain(a, b, *rest)
    if not all(known or _is_matrix(x) for known, x in zip(given, (a, b), strict=True)):
        return plain(*(x.single() if type(x) is Prepared else x for x in (a, b)), *rest)
    a, b = _alike(a, b)
    if not mkl.is_worthwhile() or a.shape[1] != b.shape[0] or 0 in (*a.shape, *b.shape):
        return plain(a.single(), b.single(), *rest)
    bits = bits or _one_thread
    last = last or bits
    if choices.of(a, b, plain, bits, last) == "blas":
        return plain(a.single(), b.single(), *rest)
    y = np.empty((a.shape[0], b.shape[1]), np.float32) if out is None else out
    return _by_parts(a, b, bits, last, y, keep)


def _alike(a: Any, b: Any) -> tuple[Prepared, Prepared]:
    """Both operands prepared, in the precision of the one that is."""
    name = next((x.precision for x in (a, b) if type(x) is Prepared), _in_force())
    return tuple(x if type(x) is Prepared else Prepared(x, name) for x in (a, b))  # type: ignore[return-value]


def _one_thread(a: Array, b: Array, y: Array, keep: float) -> None:
    mkl.gemm(a, b, y, beta=keep)


def _by_parts(
    a: Prepared, b: Prepared, bits: Bits, last: Bits, y: Array, keep: float = 0.0
) -> Array:
    """Y = a b + keep y out of one bfloat16 product, the last, or out of three, smallest first."""
    left, right = a.parts(), b.parts()
    if len(left) > 1 and len(right) > 1:
        bits(left[0], right[1], y, keep)
        bits(left[1], right[0], y, 1.0)
        keep = 1.0
    last(left[0], right[0], y, keep)
    return y


class Choices:
    """Which library multiplies which shape, measured once, and kept in a file of the user's cache.

    The file is JSON: for each machine (processor, versions of the libraries, threads) a table from shape to "mkl" or
    "blas". One that cannot be read or written, or that holds something else, is as good as none.
    """

    def __init__(self) -> None:
        self._known: dict[str, str] | None = None

    def of(self, a: Prepared, b: Prepared, plain: Any, bits: Bits, last: Bits) -> str:
        """Who multiplies these: "mkl" or "blas"."""
        (n, k), m = a.shape, b.shape[1]
        turns = f"{'t' if _is_turned(a) else 'n'}{'t' if _is_turned(b) else 'n'}"
        key = f"{a.precision} {bucket(n)}x{bucket(k)}x{bucket(m)} {turns}"
        if self._known is None:
            self._known = _read().get(machine(), {})
        if key not in self._known:
            self._known[key] = measure(a, b, plain, bits, last)
            _keep(key, self._known[key])
        return self._known[key]


choices = Choices()
"""Those of this process."""


def _is_turned(x: Prepared) -> bool:
    form = x.parts()[0]
    return not form.flags.c_contiguous


def bucket(size: int) -> int:
    """The size rounded up to two leading bits, 1 2 3 4 6 8 12 16 ...: shapes in a bucket share a choice."""
    rest = max(0, size.bit_length() - 2)
    return -(-size >> rest) << rest


def measure(
    a: Prepared, b: Prepared, plain: Any, bits: Bits, last: Bits, *, work: int = 1 << 28
) -> str:
    """Who is faster, in turns, on at most so many operations of the product: "mkl" or "blas".

    What rounding costs is not counted, as it serves several products.
    """
    (n, k), m = a.shape, b.shape[1]
    some = a.rows(slice(0, max(min(n, 16), min(n, work // (2 * k * m)))))
    y = np.empty((some.shape[0], m), np.float32)
    contestants: dict[str, Callable[[], Any]] = {
        "blas": lambda: plain(some.single(), b.single()),
        "mkl": lambda: _by_parts(some, b, bits, last, y),
    }
    best = dict.fromkeys(contestants, float("inf"))
    for turn in range(4):
        for name, multiply_once in contestants.items():
            began = time.perf_counter()
            multiply_once()
            if turn:  # the first is to warm up
                best[name] = min(best[name], time.perf_counter() - began)
    return min(best, key=lambda name: best[name])


@functools.cache
def machine() -> str:
    """What a measurement holds for: processor, libraries, threads."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    version = found.version if (found := mkl.load()) else "none"
    return (
        f"{processor()}; numpy {np.__version__}, {blas.get('name')} {blas.get('version')}; mkl {version}; "
        f"{available()} threads"
    )


def processor() -> str:
    """The processor's model, with AMX or without."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        text = mkl.CPUINFO.read_text(encoding="utf-8", errors="replace")
        fields = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", text, re.MULTILINE))
        names = ("vendor_id", "cpu family", "model", "stepping", "model name")
        model = " ".join(fields[name] for name in names if name in fields) or model
    return f"{model}{' AMX' if mkl.has_amx() else ''}"


def cache_file() -> Path | None:
    """Where choices are kept: the user's cache folder as the system has it; None where there is none."""
    try:
        home = Path.home()
    except RuntimeError:
        return None
    given = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME", "")
    folder = Path(given) if given and Path(given).is_absolute() else None
    if folder is None:
        folder = home / {"win32": "AppData/Local", "darwin": "Library/Caches"}.get(
            sys.platform, ".cache"
        )
    return folder / "tinyplm" / "products.json"


def _read() -> dict[str, dict[str, str]]:
    """What the file holds, as far as it is of the right kind."""
    file = cache_file()
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return {
        machine: {key: choice for key, choice in table.items() if choice in ("mkl", "blas")}
        for machine, table in (found.items() if isinstance(found, dict) else ())
        if isinstance(table, dict)
    }


def _keep(key: str, choice: str) -> None:
    """Add a choice to the file, if it can be written; readers see the old file or the new one."""
    file = cache_file()
    if file is None:
        return
    found = _read()
    found.setdefault(machine(), {})[key] = choice
    own = file.with_name(f"{file.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        own.write_text(json.dumps(found, indent=1), encoding="utf-8")
        os.replace(own, file)
    except OSError:
        with contextlib.suppress(OSError):
            own.unlink()
