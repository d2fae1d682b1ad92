"""Correctness on a card: every variant of every kernel against its definition in float64, at sizes NumPy can afford.

New arrays hold NaN and lie between guards; inputs are new random values each time and are rounded before the reference
sees them; whole numbers have to come out of a product exactly; each call is made twice and has to give the same bits.
"""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tinyplm.kernels import cuda
from tinyplm.kernels.attention import Rules, attention_forward, attention_pullback
from tinyplm.kernels.registry import KERNELS, Kernel, Variant

from . import gpu_matmul
from .gpu_arguments import ARGUMENTS
from .gpu_cases import (
    Ground,
    allowed,
    dtype_of,
    every_kernel,
    ground_of,
    is_array,
    nans,
    relative,
)
from .gpu_worker import Record, State, said

TYPES = ("bfloat16", "float16", "float32")
ROWS = ((3, 7), (64, 768), (301, 517), (7, 4096), (3, 8200))
PRODUCTS = ((7, 33, 65), (128, 136, 64), (300, 517, 129), (257, 136, 1024))
UNEVEN = (264, 520, 392)
"""Rows, columns and terms that fill no tile, and begin at multiples of 16 bytes."""
LAYOUTS = ("nn", "nt", "tn", "tt")
HEADS = ((7, 65, 16), (65, 65, 40), (127, 127, 64), (200, 300, 80))
"""Queries, keys, width of a head."""
MORE_HEADS = ((1, 64, 64), (512, 512, 64), (130, 130, 96), (129, 129, 128), (100, 100, 256))
"""With nothing but attention."""
FACES = ("plain", "causal", "window", "padding", "bias", "dense bias", "dropout")
"""Of attention."""
GUARD = 64
"""Values around each new array, which nobody may write to."""
OF_SUMS = 1e-6
"""Relative error allowed to sums in float32 and float64."""
SUMS = {"sum_rows", "sum_of_squares", "cross_entropy_total"}
OF_ATTENTION = {"float32": (1e-5, 1e-5), "float16": (5e-3, 1e-2), "bfloat16": (5e-3, 1e-2)}
"""Forwards and backwards."""
EXACT_TERMS = 4096
"""Of products of whole numbers up to 8, which float32 adds up exactly."""

Given = tuple[Any, ...]


@dataclass
class Planned:
    """Stands for a variant of the product: one plan, forced by its name."""

    name: str

    def when(self, *_: Any) -> bool:
        """Plans that do not take a product are not offered for it."""
        return True

    @property
    def function(self) -> Callable[..., Any]:
        """To be called."""
        return partial(gpu_matmul.by_plan, self.name)


@dataclass
class Trial:
    """A call of a variant, and what it has to give.

    Attributes:
        about: the call.
        variant: that is called.
        make: its arguments.
        exact: results in float64, from the arguments.
        limits: relative errors that are allowed, from the types of the results.
        results: of what was returned, and of the arguments; those that were written to if nothing was returned.
        whole: all numbers are whole, and the results are the exact ones rounded once.
    """

    about: Record
    variant: Variant | Planned
    make: Callable[[], Given]
    exact: Callable[[Given], list[Any]]
    limits: Callable[[list[str]], list[float]]
    results: Callable[[Any, Given], list[Any]] | None = None
    whole: bool = False


def variants(settings: dict[str, Any]) -> list[tuple[str, str]]:
    """Every kernel with every variant for the card, the readable ones last."""
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
    return "matmul" if kernel.startswith(("product", "linear_")) else "memory"


def check(state: State, name: str, variant: str) -> Iterator[Record]:
    """One variant at all its sizes and types."""
    ground = ground_of(state)
    one = next(v for v in KERNELS[name].variants if v.name == variant)
    if one.function is None:
        yield {"failed": f"{name}: {variant} cannot be built here"}
        return
    if (found := trials(ground, name, one, bool(state.settings.get("quick")))) is None:
        yield {"unknown": name}
        return
    for trial in found:
        record = judged(ground, trial)
        if record is not None:
            yield record
    ground.free()


def trials(ground: Ground, name: str, one: Variant, quick: bool) -> Iterator[Trial] | None:
    """Calls of a variant; None where no arguments are known."""
    if name == "product":
        return _of_products(ground, one, quick)
    if name in ("attention_forward", "attention_pullback"):
        return _of_attention(ground, name, one, quick)
    return _of_rows(ground, KERNELS[name], one, quick) if name in ARGUMENTS else None


def judged(ground: Ground, trial: Trial) -> Record | None:
    """Call twice and compare; None where the variant does not take these arguments.

    A failure is a record too, unless the card has been lost with it.
    """
    about = trial.about | {"variant": trial.variant.name}
    try:
        given = trial.make()
        if not trial.variant.when(*given):
            return None
        found, guarded = called(ground, trial, given)
        again, _ = called(ground, trial, given)
        exact = trial.exact(given)
    except Exception as error:
        ground.card.synchronize()
        return about | {"fine": False, "failed": said(error)}
    if len(found) != len(exact):
        words = f"{len(found)} results, expected {len(exact)}"
        return about | {"fine": False, "said": words}
    limits = trial.limits([f.dtype.name for f in found])
    errors = []
    for f, e in zip(found, exact, strict=True):
        if trial.whole:
            once = e.astype(f.dtype)
            errors.append(0.0 if np.array_equal(f, once) else relative(np, f, e) + 1.0)
        else:
            errors.append(relative(np, f, e))
    same = [f.tobytes() for f in found] == [a.tobytes() for a in again]
    return _in_words(about, errors, limits, same, guarded)


def _in_words(
    about: Record, errors: list[float], limits: list[float], same: bool, guarded: bool
) -> Record:
    shares = [e / limit if e == e else math.inf for e, limit in zip(errors, limits, strict=True)]
    wrong = []
    if not all(share <= 1 for share in shares):
        shown = [", ".join(f"{x:.1e}" for x in numbers) for numbers in (errors, limits)]
        wrong.append(f"errors {shown[0]}, allowed {shown[1]}")
    if not same:
        wrong.append("other bits the second time")
    if not guarded:
        wrong.append("written outside of an array")
    worst = max(shares, default=0.0)
    return about | {"fine": not wrong, "errors": errors, "worst": worst, "said": "; ".join(wrong)}


# ---- calling


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


def called(ground: Ground, trial: Trial, given: Given) -> tuple[list[Any], bool]:
    """Results in NumPy, and whether the guards are whole; waits, so that a fault is this call's."""
    xp = ground.xp
    own = tuple(a.copy() if is_array(a) else a for a in given)
    with poisoned(xp) as rooms:
        made = trial.variant.function(*own)  # type: ignore[misc]
        ground.card.synchronize()
        guarded = unharmed(rooms)
        if trial.results is not None:
            arrays = trial.results(made, own)
        elif made is None:
            pairs = [(a, b) for a, b in zip(own, given, strict=True) if is_array(a)]
            arrays = [a for a, b in pairs if xp.asnumpy(a).tobytes() != xp.asnumpy(b).tobytes()]
        else:
            arrays = flattened(made)
        return [xp.asnumpy(a) if is_array(a) else np.asarray(a) for a in arrays], guarded


def flattened(made: Any) -> list[Any]:
    """All arrays and numbers of a result."""
    if isinstance(made, tuple | list):
        return [a for part in made if part is not None for a in flattened(part)]
    return [made]


def exactly(xp: Any, kernel: Kernel, given: Given) -> list[Any]:
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
    return TYPES[:1] if quick else TYPES


# ---- what is called


def _of_rows(ground: Ground, kernel: Kernel, one: Variant, quick: bool) -> Iterator[Trial]:
    for dtype, (R, C) in itertools.product(_types(one, quick), ROWS[1:3] if quick else ROWS):
        yield Trial(
            {"what": kernel.name, "shapes": f"{R}x{C}", "dtype": dtype},
            one,
            partial(ARGUMENTS[kernel.name], ground, R, C, dtype),
            partial(exactly, ground.xp, kernel),
            lambda found, dtype=dtype: [_allowed(kernel.name, name, dtype) for name in found],
        )


def _allowed(kernel: str, result: str, given: str) -> float:
    if kernel in SUMS and result in ("float32", "float64"):
        return OF_SUMS
    return allowed(kernel, result, given)


def _of_products(ground: Ground, one: Variant, quick: bool) -> Iterator[Trial]:
    """Random values, and whole numbers, of every layout; results of their type, in float32, and added to it."""
    sizes = PRODUCTS[2:3] if quick else (*PRODUCTS, (64, 72, EXACT_TERMS))
    faces = ("", "whole", "to float32", "added")
    for dtype, size, layout, face in itertools.product(_types(one, quick), sizes, LAYOUTS, faces):
        if dtype == "float16" and layout != "nn":
            continue
        M, N, K = size
        yield Trial(
            {"what": "product", "shapes": f"{M}x{N}x{K} {layout} {face}".strip(), "dtype": dtype},
            one,
            partial(_factors, ground, size, layout, dtype, face),
            partial(_exact_product, ground.xp),
            _limits(dtype, K),
            whole=face == "whole",
        )
    if one.name == "cuda" and not quick:
        yield from _of_plans(ground)


def _of_plans(ground: Ground) -> Iterator[Trial]:
    """Every plan, at a size that fills no tile."""
    M, N, K = size = UNEVEN
    for layout, face in itertools.product(LAYOUTS, ("", "whole")):
        for name in gpu_matmul.plans(M, N, K, layout, TYPES[0]):
            yield Trial(
                {"what": "product", "shapes": f"{M}x{N}x{K} {layout} {face}", "dtype": TYPES[0]},
                Planned(name),
                partial(_factors, ground, size, layout, TYPES[0], face),
                partial(_exact_product, ground.xp),
                _limits(TYPES[0], K),
                whole=face == "whole",
            )


def _limits(dtype: str, terms: int) -> Any:
    return lambda found: [gpu_matmul.limit(name, dtype, terms) for name in found]


def _factors(
    g: Ground, size: tuple[int, int, int], layout: str, dtype: str, face: str
) -> tuple[Any, ...]:
    M, N, K = size
    a = _operand(g, M, K, dtype, layout[0] == "t", face == "whole")
    b = _operand(g, N, K, dtype, layout[1] == "n", face == "whole").T
    if face in ("", "whole"):
        return a, b
    if face == "added":
        return a, b, g.normal((M, N), "float32"), 1.0
    return a, b, nans(g.xp, (M, N), "float32"), 0.0


def _operand(g: Ground, rows: int, terms: int, dtype: str, turned: bool, whole: bool) -> Any:
    """(rows, terms), stored the other way around if turned."""
    shape = (terms, rows) if turned else (rows, terms)
    numbers = g.rng.integers(-8, 9, shape).astype(dtype_of(dtype)) if whole else None
    made = g.normal(shape, dtype) if numbers is None else g.xp.asarray(numbers)
    return made.T if turned else made


def _exact_product(xp: Any, given: Given) -> list[Any]:
    a, b = _wide(xp, given[0]), _wide(xp, given[1])
    return [a @ b + (_wide(xp, given[2]) if len(given) == 4 and given[3] else 0)]


def _of_attention(ground: Ground, name: str, one: Variant, quick: bool) -> Iterator[Trial]:
    way = int(name == "attention_pullback")
    for dtype, face in itertools.product(_types(one, quick), FACES):
        if dtype == "float16" and face != "plain":
            continue
        sizes = HEADS + MORE_HEADS if face == "plain" else HEADS
        for size in HEADS[2:3] if quick else sizes:
            limit = OF_ATTENTION[dtype][way]
            yield Trial(
                {
                    "what": f"{name} {face}",
                    "shapes": "2x3x{}x{}x{}".format(*size),
                    "dtype": dtype,
                },
                one,
                partial(_attended, ground, way, face, size, dtype),
                partial(_exact_attention, ground.xp, way),
                lambda found, limit=limit: [limit] * len(found),
                _gradients if way else (lambda made, given: [made.y]),
            )


def _attended(
    g: Ground, way: int, face: str, size: tuple[int, int, int], dtype: str
) -> tuple[Any, ...]:
    """Two batch rows and three heads, some of which lie apart in memory."""
    (T, S, K), xp = size, g.xp
    q = g.normal((2, T, 3, 3, K), dtype)[:, :, 1].swapaxes(1, 2)
    k, v = (g.normal((2, 3, S, K), dtype) for _ in range(2))
    mask = bias = None
    if face == "padding":
        lengths = np.array([S, max(1, S // 3)])
        mask = xp.asarray((np.arange(S)[None, :] < lengths[:, None])[:, None, None, :])
    elif face == "bias":
        bias = g.normal((3, S + T - 1), "float32")
    elif face == "dense bias":
        bias = g.normal((1, 3, T, S), dtype)
    rules = Rules(
        causal=face in ("causal", "window"),
        mask=mask,
        scale=0.3,
        rate=0.25 if face == "dropout" else 0.0,
        seed=2**40 + 17,
        window=max(2, S // 4) if face == "window" else None,
    )
    given = (q, k, v, bias, rules, False)
    if not way:
        return given
    found = attention_forward(*given)
    into = tuple(nans(xp, a.shape, dtype) for a in (q, k, v))
    gradient = g.normal((2, T, 3, K), dtype).swapaxes(1, 2)
    return gradient, None, q, k, v, bias, rules, found, into


def _gradients(made: Any, given: Given) -> list[Any]:
    return [*given[-1], *([] if made is None else [made])]


def _exact_attention(xp: Any, way: int, given: Given) -> list[Any]:
    """The definitions in float64, the backward one from a forward pass of its own."""
    q, k, v, bias, rules = (_wide(xp, a) for a in given[2 * way : 2 * way + 5])
    rules = rules._replace(mask=None if rules.mask is None else xp.asnumpy(rules.mask))
    found = attention_forward.definition(q, k, v, bias, rules, False)
    if not way:
        return [found.y]
    into = tuple(map(np.zeros_like, (q, k, v)))
    g = _wide(xp, given[0])
    return _gradients(
        attention_pullback.definition(g, None, q, k, v, bias, rules, found, into), (into,)
    )


# ---- what all this launches


def discover(state: State) -> Iterator[Record]:
    """Files of device code, templates with what they are made for, that checks and cases will launch.

    They are called with nothing launched: what they ask for is all that is wanted.
    """
    from .gpu_cases import cases

    ground, seen = ground_of(state), set(cuda.FILES)
    asked: list[str] = []
    own, cuda.launch = cuda.launch, lambda file, *rest, **options: asked.append(file)
    try:
        for work in itertools.chain(_calls(ground, state), _runs(ground, cases(state.settings))):
            with contextlib.suppress(Exception):  # it will fail again where that is told
                work()
            for file in asked:
                if file not in seen:
                    seen.add(file)
                    yield {"file": file}
            asked.clear()
    finally:
        cuda.launch = own


def _calls(ground: Ground, state: State) -> Iterator[Callable[[], object]]:
    quick = bool(state.settings.get("quick"))
    for name, variant in variants(state.settings):
        one = next(v for v in KERNELS[name].variants if v.name == variant)
        if variant == "cuda" and one.function is not None:
            for trial in trials(ground, name, one, quick) or ():
                yield partial(_call, trial)


def _call(trial: Trial) -> None:
    given = trial.make()
    if trial.variant.when(*given):
        trial.variant.function(*given)  # type: ignore[misc]


def _runs(ground: Ground, cases: list[Any]) -> Iterator[Callable[[], object]]:
    for case in cases:
        if case.files is not None:
            yield partial(_run, ground, case)


def _run(ground: Ground, case: Any) -> None:
    for file in case.files(ground):
        cuda.launch(file)
