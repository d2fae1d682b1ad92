"""What compiled kernels are made of: how a loop is compiled and shared, and functions that vectorise.

Numba has no vector math library, so `math.exp` in a loop costs ten copies of the data; `exponential` costs one and a
half. Numba itself is only imported when the first kernel is built.
"""

import functools
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..types import Array
from .threads import parts, team

OPTIONS: dict[str, Any] = {
    "fastmath": {"contract", "nsz"},  # NaN and infinity keep their meaning, and sums their order
    "error_model": "numpy",
}

LOG2_E = 1.4426950408889634
LN2_HIGH_32, LN2_LOW_32 = np.float32(0.693359375), np.float32(-2.12194440e-4)
LN2_HIGH_64, LN2_LOW_64 = 6.93147180369123816490e-01, 1.90821492927058770002e-10
"""log(2) in two parts, the first of few bits, so that a whole number times it is exact."""


def parallel(
    body: Callable[..., Any], *helpers: Callable[..., Any], strided: Sequence[str] = ()
) -> Callable[..., None] | None:
    """A function that shares a compiled loop between threads; None where Numba is not installed.

    The result is called as run(total, *arrays_and_numbers, least=..., most=...) and does the items 0 to total in parts
    of at least `least` items, at most `most` parts (by default a few for each thread). It returns when all are done.

    A sum in any order, which vectors need, is asked for with `plus`, in a loop that writes to no other array. Compiled
    code looks whether two arrays lie too close for vectors, and adds up one by one then: the last bit of a sum would
    depend on where small arrays happen to lie.

    Args:
        body: body(team, part, start, stop, *arrays_and_numbers) does the items from start to stop, and writes to what
            no other part touches. `part` is the part's number, below parts(total, least, most=most).
        helpers: plain functions that it calls.
        strided: names of arrays that may have any strides, which are only read, or written at their address; compiled
            once for all of them. Other arrays are compiled for the order that they have.
    """
    try:
        compiler = _compiler()
    except ImportError:
        return None
    from .team import do_job, packed

    register(body, *helpers)
    names = body.__code__.co_varnames[4 : body.__code__.co_argcount]
    # Numba keys its cache on the file and line of a function, and on the values it closes over.
    line = body.__code__.co_firstlineno
    source = "\n" * max(0, line - 2) + (
        f"def make(stamp):\n def {body.__name__}(team, total, parts, {', '.join(names)}):\n"
        f"  stamp\n  call, place = packed(body, team, ({', '.join(names)},))\n"
        f"  do_job(team, call, place, total, parts)\n return {body.__name__}"
    )
    scope: dict[str, Any] = {
        "packed": packed,
        "do_job": do_job,
        "body": body,
        "__name__": body.__module__,
    }
    exec(compile(source, body.__code__.co_filename, "exec"), scope)
    loop = compiler(scope["make"](_stamp(body, *helpers)))

    def run(total: int, *values: Any, least: int = 1, most: int = 0) -> None:
        count = parts(total, least, most=most)
        loop(team(wake=count > 1), total, count, *values)

    if not strided:
        return functools.update_wrapper(run, body)
    places = {3 + names.index(name) for name in strided}

    ready = False

    def run_strided(*values: Any, **sharing: int) -> None:
        nonlocal ready
        if ready:
            try:
                return run(*values, **sharing)
            except TypeError:  # not compiled for these types yet
                loop.disable_compile(False)
        from numba import typeof

        kinds = [typeof(value) for value in (team(), 0, 0, *values[1:])]
        for place in places:
            kinds[place] = kinds[place].copy(layout="A", readonly=True)
        loop.compile(tuple(kinds))
        loop.disable_compile()
        ready = True
        return run(*values, **sharing)

    return functools.update_wrapper(run_strided, body)


def register(*helpers: Callable[..., Any]) -> None:
    """Make plain functions known to compiled code."""
    from numba.extending import register_jitable

    for helper in helpers:
        if helper not in _registered:
            register_jitable(forceinline=True, **OPTIONS)(helper)  # or a large one stays scalar
            _registered.add(helper)


_registered: set[Any] = set()


def jit(loop: Callable[..., Any], *helpers: Callable[..., Any]) -> Callable[..., Any] | None:
    """A loop compiled for one thread, and kept on disk for the next time; None where Numba is not installed."""
    try:
        compiler = _compiler()
    except ImportError:
        return None
    register(*helpers)
    return compiler(loop)


@functools.cache
def _compiler() -> Any:
    from numba import njit
    from numba.core import event

    from . import team  # noqa: F401  first of all, as it says which vectors the processor has

    event.register("numba:compile", _Announcement())
    return njit(nogil=True, cache=True, **OPTIONS)


@functools.cache
def _Announcement() -> Any:  # noqa: N802
    """Says once why the first call takes so long."""
    from numba.core import event

    class Announcement(event.Listener):
        said = False

        def on_start(self, found: Any) -> None:
            if not self.said:
                self.said = True
                name = found.data["dispatcher"].__name__
                print(
                    f"tinyplm: compiling its kernels for this processor, beginning with {name}. This takes some "
                    "seconds, once: they are kept on disk.",
                    file=sys.stderr,
                    flush=True,
                )

        def on_end(self, found: Any) -> None:
            pass

    return Announcement()


def _stamp(*functions: Callable[..., Any]) -> int:
    """Changes when a function changes, or what all of them call."""
    common = (
        str(Path(__file__).with_name(f"{name}.py")) for name in ("compiled", "team", "dropout")
    )
    files = (*common, *(function.__code__.co_filename for function in functions))
    return zlib.crc32(repr([_checksum(file) for file in files]).encode())


@functools.cache
def _checksum(file: str) -> int:
    return zlib.crc32(Path(file).read_bytes())


def gemm(
    team: Array, like: Array, turn_a: Any, turn_b: Any, m: Any, n: Any, k: Any, times: Any,
    a: Any, step_a: Any, b: Any, step_b: Any, keep: Any, y: Any, step_y: Any,
) -> None:  # fmt: skip
    """In compiled code only: y = times a b + keep y by one thread of BLAS, for addresses, sizes and steps between rows.

    A matrix that is turned lies in memory as its transpose; `like` has the type of both.
    """
    raise NotImplementedError


def address(a: Array) -> Any:
    """In compiled code only: where the values of an array begin."""
    raise NotImplementedError


def array_at(address: Any, size: Any, like: Any) -> Any:
    """In compiled code only: the array of one axis and of the type of `like` whose values begin at an address."""
    raise NotImplementedError


def plus(total: Any, value: Any) -> Any:
    """The sum, in compiled code that of a loop in any order, so that it can be made of vectors."""
    return total + value


def largest(values: Any) -> Any:
    """In compiled code only: the largest of some values, leaving out NaN of either sign; minus infinity for none.

    A NaN without a sign may be the result. Floats of one sign have the order of their bits, which as integers have a
    maximum that is vectorised, as that of floats is not.
    """
    raise NotImplementedError


def cut(values: Any, start: int, size: int) -> Any:
    """In compiled code only: so many values of an array, from one on, in the order of memory.

    A slice would count itself among the users of that memory, and threads that count wait for each other.
    """
    return array_at(address(values) + start * values.itemsize, size, values)


def exponential(x: Any) -> Any:
    """In compiled code only: exp32 or exp64, by the type of x."""
    raise NotImplementedError


def exponential_below(x: Any) -> Any:
    """In compiled code only: exp32_below or exp64_below, for what is not above 0."""
    raise NotImplementedError


def exponential_within(x: Any) -> Any:
    """In compiled code only: exp32_within or exp64_within, which are a third cheaper."""
    raise NotImplementedError


def is_float(*arrays: Array) -> bool:
    """Whether all are float32 or all float64, in row-major order without gaps, as the compiled loops want them."""
    kind = arrays[0].dtype.char
    return kind in "fd" and all(a.dtype.char == kind and a.flags.c_contiguous for a in arrays)


def exp32(x: Any) -> Any:
    """E to the power x of one float32, without a branch; relative error at most 9e-8 in [-87, 88].

    Below -87 the result is 0, above 88 it is infinite; NaN stays NaN.
    """
    e = exp32_within(x)
    e = np.float32(0) if x < np.float32(-87) else e
    e = np.float32(np.inf) if x > np.float32(88) else e
    return e if x == x else x


def exp32_within(x: Any) -> Any:
    """As exp32 in [-87, 88]; beyond it the value at the end, for NaN any."""
    return _exp32(min(max(x, np.float32(-87)), np.float32(88)))


def exp32_below(x: Any) -> Any:
    """As exp32 for what is not above 0, with half of its comparisons."""
    y = np.float32(-87) if x < np.float32(-87) else x
    return np.float32(0) if x < np.float32(-87) else _exp32(y)


def _exp32(y: Any) -> Any:
    """E^y for y in [-87, 88].

    y is n log 2 + r with |r| <= log(2) / 2; a polynomial of degree 6, right to 1e-8, gives e^r (its coefficients are
    by interpolation at Chebyshev's points), and n goes into the exponent's bits.
    """
    n = np.floor(y * np.float32(LOG2_E) + np.float32(0.5))
    r = y - n * LN2_HIGH_32 - n * LN2_LOW_32
    p = np.float32(1.3926183587799378e-3)
    p = p * r + np.float32(8.363179052723659e-3)
    p = p * r + np.float32(4.166655461720339e-2)
    p = p * r + np.float32(1.6666576989698764e-1)
    p = p * r + np.float32(0.5)
    p = p * (r * r) + r + np.float32(1)
    bits = np.int32((np.int32(n) + np.int32(127)) << np.int32(23))
    return p * bits.view(np.float32)


def exp64(x: Any) -> Any:
    """E to the power x of one float64, without a branch; relative error at most 4e-16 in [-708, 709].

    Below -708 the result is 0, above 709 it is infinite; NaN stays NaN.
    """
    e = exp64_within(x)
    e = 0.0 if x < -708.0 else e
    e = np.inf if x > 709.0 else e
    return e if x == x else x


def exp64_within(x: Any) -> Any:
    """As exp64 in [-708, 709]; beyond it the value at the end, for NaN any."""
    return _exp64(min(max(x, -708.0), 709.0))


def exp64_below(x: Any) -> Any:
    """As exp64 for what is not above 0."""
    y = -708.0 if x < -708.0 else x
    return 0.0 if x < -708.0 else _exp64(y)


def _exp64(y: Any) -> Any:
    """As _exp32, with the Taylor series to degree 13, whose rest is below 5e-18."""
    n = np.floor(y * LOG2_E + 0.5)
    r = y - n * LN2_HIGH_64 - n * LN2_LOW_64
    p = 1 / 6227020800
    p = p * r + 1 / 479001600
    p = p * r + 1 / 39916800
    p = p * r + 1 / 3628800
    p = p * r + 1 / 362880
    p = p * r + 1 / 40320
    p = p * r + 1 / 5040
    p = p * r + 1 / 720
    p = p * r + 1 / 120
    p = p * r + 1 / 24
    p = p * r + 1 / 6
    p = p * r + 1 / 2
    p = p * r * r + r + 1.0
    bits = np.int64((np.int64(n) + np.int64(1023)) << np.int64(52))
    return p * bits.view(np.float64)


def largest32(values: Any) -> Any:
    """Of float32."""
    most = np.int32(-0x7F800001)  # minus infinity
    for j in range(values.size):
        v = np.float32(values[j])
        bits = v.view(np.int32)
        most = max(most, np.int32(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))))
    found = np.int32(most ^ ((most >> np.int32(31)) & np.int32(0x7FFFFFFF)))
    return found.view(np.float32)


def largest64(values: Any) -> Any:
    """Of float64."""
    most = np.int64(-0x7FF0000000000001)  # minus infinity
    for j in range(values.size):
        v = np.float64(values[j])
        bits = v.view(np.int64)
        most = max(most, np.int64(bits ^ ((bits >> np.int64(63)) & np.int64(0x7FFFFFFFFFFFFFFF))))
    found = np.int64(most ^ ((most >> np.int64(63)) & np.int64(0x7FFFFFFFFFFFFFFF)))
    return found.view(np.float64)
