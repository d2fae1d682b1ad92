"""Correctness on a card: every variant of every kernel against its definition in float64, at sizes NumPy can afford.

New arrays hold NaN and lie between guards; inputs are new random values each time and are rounded before the reference
sees them; whole numbers have to come out of a product exactly; each call is made twice and has to give the same bits.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from tinyplm.kernels import cuda
from tinyplm.kernels.attention import Rules, attention_forward, attention_pullback
from tinyplm.kernels.registry import KERNELS, Kernel, Variant

from .gpu_arguments import ARGUMENTS
from .gpu_cases import (
    LIMITS,
    Ground,
    allowed,
    dtype_of,
    every_kernel,
    ground_of,
    is_array,
    relative,
)
from .gpu_worker import Record, State, said

ROWS = ((3, 7), (64, 768), (301, 517), (7, 4096), (3, 8200))
PRODUCTS = ((1, 1, 1), (7, 33, 65), (128, 136, 64), (300, 517, 129), (257, 136, 1024))
LAYOUTS = ("nn", "nt", "tn", "tt")
HEADS = ((1, 64, 64), (7, 65, 16), (65, 65, 40), (127, 127, 64), (200, 300, 80), (512, 512, 64))
"""Queries, keys, width of a head."""
WIDE_HEADS = ((130, 130, 96), (129, 129, 128), (100, 100, 256))
GUARD = 64
"""Values around each new array, which nobody may write to."""
OF_SUMS = 1e-6
"""Relative error allowed to sums in float32 and float64."""
SUMS = {"sum_rows", "sum_of_squares", "cross_entropy_total"}
OF_ATTENTION = {"float32": (1e-5, 1e-5), "float16": (5e-3, 1e-2), "bfloat16": (5e-3, 1e-2)}
"""Forwards and backwards."""
EXACT_TERMS = 4096
"""Of products of whole numbers up to 8, which float32 adds up exactly."""
SCALE = 0.3
FACES = ("plain", "causal", "window", "padding", "bias", "dense bias", "dropout")
"""Of attention."""


def variants(settings: dict[str, Any]) -> list[tuple[str, str]]:
    """Every kernel with every variant for the card, the readable ones last; one kernel that has none is left out."""
    every_kernel()
    found = [
        (kernel.name, variant.name)
        for kernel in KERNELS.values()
        for variant in kernel.variants
        if variant.library == "cupy"
    ]
    wanted = settings.get("kernels") or []
    if wanted:
        found = [pair for pair in found if any(w in (pair[0], family(pair[0])) for w in wanted)]
    if settings.get("quick"):
        found = [pair for pair in found if pair[1] == "cuda"]
    return sorted(found, key=lambda pair: pair[1] != "cuda")


def family(kernel: str) -> str:
    """What the command line calls its cases by."""
    if kernel.startswith("attention"):
        return "attention"
    return "matmul" if kernel == "product" or kernel.startswith("linear_") else "memory"


def check(state: State, name: str, variant: str) -> Iterator[Record]:
    """One variant at all its sizes and types."""
    ground, kernel = ground_of(state), KERNELS[name]
    one = next(v for v in kernel.variants if v.name == variant)
    if one.function is None:
        yield {"failed": f"{name}: {variant} cannot be built here"}
        return
    quick = bool(state.settings.get("quick"))
    if name == "product":
        yield from _products(ground, kernel, one, quick)
    elif name in ("attention_forward", "attention_pullback"):
        yield from _attention(ground, one, name == "attention_pullback", quick)
    elif name in ARGUMENTS:
        yield from _rows(ground, kernel, one, quick)
    else:
        yield {"unknown": name}


def _judged(
    about: Record, errors: list[float], limits: list[float], same: bool, guarded: bool
) -> Record:
    """A record that says whether all is well, and in words if not."""
    worst = max(
        (e / limit if e == e else math.inf for e, limit in zip(errors, limits, strict=True)),
        default=0.0,
    )
    wrong = []
    if not worst <= 1:
        wrong.append(
            f"errors {', '.join(f'{e:.1e}' for e in errors)}, allowed {', '.join(f'{x:.1e}' for x in limits)}"
        )
    if not same:
        wrong.append("other bits the second time")
    if not guarded:
        wrong.append("written outside of an array")
    said_so = "; ".join(wrong)
    return about | {"fine": not wrong, "errors": errors, "worst": worst, "said": said_so}


@contextlib.contextmanager
def poisoned(xp: Any) -> Iterator[list[Any]]:
    """New arrays of kernels hold NaN and lie between guards; the rooms, to be looked at."""
    rooms: list[Any] = []
    own = cuda.empty

    def empty(like: Any, shape: tuple[int, ...], dtype: Any = None, *, zeros: bool = False) -> Any:
        kind = np.dtype(like.dtype if dtype is None else dtype)
        size = math.prod(shape)
        room = xp.full((size + 2 * GUARD) * kind.itemsize, 0xFF, np.uint8)
        rooms.append((room, GUARD * kind.itemsize))
        inner = room.view(kind)[GUARD : GUARD + size]
        if zeros:
            inner.fill(0)
        return inner.reshape(shape)

    cuda.empty = empty
    try:
        yield rooms
    finally:
        cuda.empty = own


def unharmed(rooms: list[Any]) -> bool:
    """Whether nobody wrote around them."""
    return all(bool(((room[:edge] == 0xFF) & (room[-edge:] == 0xFF)).all()) for room, edge in rooms)


def bits(xp: Any, array: Any) -> bytes:
    """Of an array, wherever its values lie."""
    return xp.asnumpy(array).tobytes()


def called(ground: Ground, function: Any, given: tuple[Any, ...]) -> tuple[list[Any], bool]:
    """Results in NumPy: what is returned, or the arguments that are written to; and whether the guards are whole."""
    xp = ground.xp
    own = [a.copy() if is_array(a) else a for a in given]
    with poisoned(xp) as rooms:
        made = function(*own)
        ground.card.synchronize()
        whole = unharmed(rooms)
        if made is None:
            changed = [
                a
                for a, b in zip(own, given, strict=True)
                if is_array(a) and bits(xp, a) != bits(xp, b)
            ]
            return [xp.asnumpy(a) for a in changed], whole
        results = flattened(made)
        return [xp.asnumpy(a) if is_array(a) else np.asarray(a) for a in results], whole


def flattened(made: Any) -> list[Any]:
    """All arrays and numbers of a result."""
    if isinstance(made, tuple | list):
        return [a for part in made if part is not None for a in flattened(part)]
    return [made]


def exactly(xp: Any, kernel: Kernel, given: tuple[Any, ...]) -> list[Any]:
    """What the definition says in float64 of the same values, by NumPy."""
    wide = [_wide(xp, a) for a in given]
    before = [a.copy() if isinstance(a, np.ndarray) else a for a in wide]
    made = kernel.definition(*wide)
    if made is None:
        pairs = zip(wide, before, strict=True)
        return [a for a, b in pairs if isinstance(a, np.ndarray) and not np.array_equal(a, b)]
    return [np.asarray(a) for a in flattened(made)]


def _wide(xp: Any, a: Any) -> Any:
    if not is_array(a):
        return a
    there = xp.asnumpy(a)
    return there if there.dtype.kind in "iub" else there.astype(np.float64)


def _types(one: Variant, quick: bool) -> tuple[str, ...]:
    if one.name != "cuda":
        return ("float32",)
    return ("bfloat16",) if quick else ("bfloat16", "float16", "float32")


def _rows(ground: Ground, kernel: Kernel, one: Variant, quick: bool) -> Iterator[Record]:
    for dtype in _types(one, quick):
        for R, C in ROWS[1:3] if quick else ROWS:
            about = {"what": kernel.name, "variant": one.name, "shapes": f"{R}x{C}", "dtype": dtype}
            given = ARGUMENTS[kernel.name](ground, R, C, dtype)
            if not one.when(*given):
                continue
            try:
                found, whole = called(ground, one.function, given)
                again, _ = called(ground, one.function, given)
                exact = exactly(ground.xp, kernel, given)
            except Exception as error:
                yield about | {"fine": False, "failed": said(error)}
                ground.card.synchronize()  # if that fails too, the process is lost
                continue
            if len(found) != len(exact):
                said_so = f"{len(found)} results, expected {len(exact)}"
                yield about | {"fine": False, "said": said_so}
                continue
            errors = [relative(np, f, e) for f, e in zip(found, exact, strict=True)]
            limits = [_allowed(kernel.name, f.dtype.name, dtype) for f in found]
            same = [f.tobytes() for f in found] == [a.tobytes() for a in again]
            yield _judged(about, errors, limits, same, whole)


def _allowed(kernel: str, result: str, given: str) -> float:
    if kernel in SUMS and result in ("float32", "float64"):
        return OF_SUMS
    return allowed(kernel, result, given)


def _products(ground: Ground, kernel: Kernel, one: Variant, quick: bool) -> Iterator[Record]:
    """Random values, and whole numbers, of every layout; results of their type and in float32."""
    sizes = (*PRODUCTS[1:4], (64, 72, EXACT_TERMS)) if not quick else PRODUCTS[3:4]
    for dtype in _types(one, quick):
        for M, N, K in sizes:
            for layout in LAYOUTS:
                for whole_numbers in (False, True):
                    shapes = f"{M}x{N}x{K} {layout}" + (" whole" if whole_numbers else "")
                    about = {
                        "what": "product",
                        "variant": one.name,
                        "shapes": shapes,
                        "dtype": dtype,
                    }
                    a = _operand(ground, M, K, dtype, layout[0] == "t", whole_numbers)
                    b = _operand(ground, N, K, dtype, layout[1] == "n", whole_numbers).T
                    if not one.when(a, b):
                        continue
                    try:
                        yield _one_product(ground, kernel, one, about, a, b, whole_numbers)
                    except Exception as error:
                        yield about | {"fine": False, "failed": said(error)}
                        ground.card.synchronize()


def _operand(g: Ground, rows: int, terms: int, dtype: str, turned: bool, whole: bool) -> Any:
    """(rows, terms), stored the other way around if turned."""
    shape = (terms, rows) if turned else (rows, terms)
    made = g.integers(-8, 9, shape).astype(dtype_of(dtype)) if whole else g.normal(shape, dtype)
    return made.T if turned else made


def _one_product(
    ground: Ground, kernel: Kernel, one: Variant, about: Record, a: Any, b: Any, whole: bool
) -> Record:
    xp = ground.xp
    exact = exactly(xp, kernel, (a, b))[0]
    out = xp.full(exact.shape, np.nan, np.float32)
    errors, limits, same, guarded = [], [], True, True
    for given in ((a, b), (a, b, out, 0.0), (a, b, xp.ones(exact.shape, np.float32), 1.0)):
        if not one.when(*given):
            continue
        expected = exact + 1 if len(given) == 4 and given[3] else exact
        with poisoned(xp) as rooms:
            found = one.function(*given)
            ground.card.synchronize()
            guarded &= unharmed(rooms)
        first = xp.asnumpy(found)
        if len(given) == 2 or not given[3]:
            same &= first.tobytes() == bits(xp, one.function(*given))
        kept = first.astype(np.float64)
        if whole:  # the exact sum, rounded once
            errors.append(
                float(not np.array_equal(kept, expected.astype(first.dtype).astype(np.float64)))
            )
            limits.append(0.5)
        else:
            errors.append(relative(np, first, expected))
            limits.append(LIMITS[first.dtype.name])
    return _judged(about, errors, limits, same, guarded)


# ---- attention


def _attention(ground: Ground, one: Variant, backward: bool, quick: bool) -> Iterator[Record]:
    for dtype in _types(one, quick):
        for face in FACES:
            wide = face == "plain" and not quick
            for T, S, K in HEADS[3:4] if quick else HEADS + WIDE_HEADS if wide else HEADS[1:5]:
                what = "attention_pullback" if backward else "attention_forward"
                about = {
                    "what": f"{what} {face}", "variant": one.name, "shapes": f"2x3x{T}x{S}x{K}", "dtype": dtype,
                }  # fmt: skip
                try:
                    record = _one_attention(ground, one, backward, face, about, (T, S, K))
                except Exception as error:
                    record = about | {"fine": False, "failed": said(error)}
                    ground.card.synchronize()
                if record is not None:
                    yield record


def _one_attention(
    ground: Ground,
    one: Variant,
    backward: bool,
    face: str,
    about: Record,
    size: tuple[int, int, int],
) -> Record | None:
    (T, S, K), xp, dtype = size, ground.xp, about["dtype"]
    q = ground.normal((2, T, 3, 3, K), dtype)[:, :, 1].swapaxes(1, 2)  # heads that lie apart
    k, v = (ground.normal((2, 3, S, K), dtype) for _ in range(2))
    mask = None
    if face == "padding":
        lengths = np.array([S, max(1, S // 3)])
        mask = xp.asarray((np.arange(S)[None, :] < lengths[:, None])[:, None, None, :])
    bias = None
    if face == "bias":
        bias = ground.normal((3, S + T - 1), "float32")
    elif face == "dense bias":
        bias = ground.normal((1, 3, T, S), dtype)
    causal = face in ("causal", "window") and S >= T
    rules = Rules(
        causal=causal,
        mask=mask,
        scale=SCALE,
        rate=0.25 if face == "dropout" else 0.0,
        seed=2**40 + 17,
        window=max(2, S // 4) if face == "window" else None,
    )
    given = (q, k, v, bias, rules, False)
    if not backward:
        if not one.when(*given):
            return None
        return _compared(ground, one, about, given, attention_forward, 0)
    found = attention_forward(*given)
    g = ground.normal((2, T, 3, K), dtype).swapaxes(1, 2)
    into = tuple(xp.full(a.shape, np.nan, a.dtype) for a in (q, k, v))
    whole = (g, None, q, k, v, bias, rules, found, into)
    if not one.when(*whole):
        return None
    return _compared(ground, one, about, whole, attention_pullback, 1)


def _compared(
    ground: Ground, one: Variant, about: Record, given: tuple[Any, ...], kernel: Kernel, way: int
) -> Record:
    xp = ground.xp
    results, guarded = [], True
    for _ in range(2):
        with poisoned(xp) as rooms:
            made = one.function(*given)
            ground.card.synchronize()
            guarded &= unharmed(rooms)
        arrays = [made.y] if way == 0 else [*given[-1], *([made] if made is not None else [])]
        results.append([xp.asnumpy(a) for a in arrays])
    exact = _exact(xp, kernel, given, way)
    limit = OF_ATTENTION[about["dtype"]][way]
    errors = [relative(np, f, e) for f, e in zip(results[0], exact, strict=True)]
    same = [a.tobytes() for a in results[0]] == [a.tobytes() for a in results[1]]
    return _judged(about, errors, [limit] * len(errors), same, guarded)


def _exact(xp: Any, kernel: Kernel, given: tuple[Any, ...], way: int) -> list[Any]:
    """The definitions in float64, the backward one from a forward pass of its own."""
    start = 2 if way else 0
    q, k, v, bias, rules = (_wide(xp, a) for a in given[start : start + 5])
    rules = rules._replace(mask=None if rules.mask is None else xp.asnumpy(rules.mask))
    found = attention_forward.definition(q, k, v, bias, rules, False)
    if way == 0:
        return [found.y]
    into = tuple(map(np.zeros_like, (q, k, v)))
    g_bias = kernel.definition(_wide(xp, given[0]), None, q, k, v, bias, rules, found, into)
    return [*into, *([] if g_bias is None else [g_bias])]
