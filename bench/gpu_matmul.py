"""Products on a card: square ones, those of a GPT-2's layers with both gradients, its head, and fused linear layers."""

import contextlib
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from tinyplm.errors import MissingExtraError
from tinyplm.kernels import matmul
from tinyplm.kernels.registry import Kernel

from .gpu_cases import (
    COPY_RATE,
    LIMITS,
    Case,
    Ground,
    Seconds,
    Work,
    all_finite,
    is_array,
    relative,
    some,
    wide,
)
from .gpu_timing import Way

TOKENS, WIDTH, VOCABULARY = 12_288, 768, 50_304
STEP_TOKENS = 65_536
SQUARES = (8192, 4096, 2048)
EVERY = 64
"""One row of so many is checked, at a random place among them, against float64."""
CUT = 5e-9
"""Most of the relative error of a float32 sum of halves, for each of its terms.

Tensor cores cut towards zero whenever 8 or 16 are added (Fasi et al., 2021), so that sums shrink: simulated, by 1.6e-9
a term where 16 are, by twice that where 8 are.
"""

# Operations per second, from and to, that the design predicts (none measured).
LARGE = (700e12, 740e12), "5.1, tier 3"
OF_MODELS = (520e12, 640e12), "12, linear layers"
SINGLE = (30e12, 50e12), "1, plain float32"


def cases(settings: dict[str, Any]) -> list[Case]:
    """The standard ones, or a product of each size that was asked for."""
    asked = [s for s in settings.get("sizes") or [] if len(s) == 3]
    if asked:
        ways = (False, True) if settings.get("forced") else (False,)
        return [_case(*size, "nn", priority=1, forced=way) for size in asked for way in ways]
    if settings.get("sizes"):
        return []
    found = [_case(n, n, n, "nn", priority=1, quick=n == 4096) for n in SQUARES]
    for columns in (3 * WIDTH, WIDTH, 4 * WIDTH):
        # The result, and the gradients of both operands: b is stored turned, then a.
        first = 1 if columns != WIDTH else 2
        found += [
            _case(TOKENS, columns, WIDTH, "nn", priority=first, quick=columns == 4 * WIDTH),
            _case(TOKENS, WIDTH, columns, "nt", priority=first),
            _case(WIDTH, columns, TOKENS, "tn", priority=first, quick=columns == 4 * WIDTH),
        ]
    found += [
        _case(STEP_TOKENS, VOCABULARY, WIDTH, "nt", priority=1, seconds=15),
        _case(STEP_TOKENS, WIDTH, VOCABULARY, "nn", priority=2, seconds=15),
        _case(VOCABULARY, WIDTH, STEP_TOKENS, "tn", priority=2, seconds=15),
        _case(4096, 4096, 4096, "nn", dtype="float32", priority=2, seconds=8),
        _case(4096, 4096, 4096, "nn", dtype="float16", priority=3),
        *map(_fused, ("linear", "linear_gelu", "linear_residual")),
    ]
    first = 1 if settings.get("forced") else 2
    return [
        *found,
        _case(4096, 4096, 4096, "nn", priority=first, forced=True, seconds=15),
        _case(TOKENS, 4 * WIDTH, WIDTH, "nn", priority=first, forced=True, seconds=15),
        _case(WIDTH, 4 * WIDTH, TOKENS, "tn", priority=first, forced=True, seconds=15),
    ]


def _case(
    M: int,
    N: int,
    K: int,
    layout: str,
    *,
    dtype: str = "bfloat16",
    forced: bool = False,
    priority: int,
    quick: bool = False,
    seconds: float = 6.0,
) -> Case:
    """(M, K) by (K, N); "t" stands for an operand that is stored the other way around, as the guide's table has it."""
    size = 4 if dtype == "float32" else 2
    out = 4 if layout == "tn" else size  # a weight's gradient is float32
    rates, source = SINGLE if dtype == "float32" else LARGE if min(M, N, K) >= 2048 else OF_MODELS
    flops, moved = 2.0 * M * N * K, size * K * (M + N) + out * M * N
    return Case(
        family="matmul",
        what=f"product {layout}" + (" plans" if forced else ""),
        shapes=f"{M}x{N}x{K}",
        dtype=dtype,
        flops=flops,
        moved=moved,
        predicted=expected(flops, moved, rates),
        source=source,
        priority=priority,
        seconds=seconds,
        quick=quick,
        build=partial(_build, M, N, K, layout, dtype, forced),
        files=partial(files, M, N, K, layout, dtype, forced),
    )


def expected(flops: float, moved: float, rates: Seconds) -> Seconds:
    """Seconds from and to, at rates from and to, or of the copy if that is longer."""
    low, high = rates
    return max(flops / high, moved / COPY_RATE), max(flops / low, moved / COPY_RATE)


def _build(M: int, N: int, K: int, layout: str, dtype: str, forced: bool, ground: Ground) -> Work:
    xp = ground.xp
    single = layout == "tn" and dtype != "float32"
    size = np.dtype(np.uint16).itemsize * (2 if dtype == "float32" else 1)

    def make() -> tuple[Any, Any]:
        a = ground.normal((K, M), dtype).T if layout[0] == "t" else ground.normal((M, K), dtype)
        b = ground.normal((N, K), dtype).T if layout[1] == "t" else ground.normal((K, N), dtype)
        return a, b

    sets = ground.sets(size * (M * K + K * N + M * N), make)
    outs = [xp.full((M, N), np.nan, np.float32) for _ in sets] if single else [None] * len(sets)

    def run(kernel: Any, i: int) -> Any:
        i %= len(sets)
        return kernel(*sets[i]) if outs[i] is None else kernel(*sets[i], outs[i])

    given = (*sets[0],) if outs[0] is None else (*sets[0], outs[0])
    ways = list(ours(ground, matmul.product, given, run))
    if forced:
        ways = [
            Way("ours", name, partial(run, partial(by_plan, name)), graph=ground.graph)
            for name in plans(M, N, K, layout, dtype)
        ]
    else:
        if single:  # cuBLAS of CuPy writes what it reads
            ways.append(Way("cupy", "matmul", lambda i: xp.matmul(*sets[i % len(sets)])))
        else:
            ways.append(Way("cupy", "matmul", lambda i: run(matmul.product.definition, i)))
        if "torch" in ground.peers:
            from . import gpu_peers

            ways += gpu_peers.products(xp, sets)
    best = _offered(M, N, K, layout, dtype)[:1]
    planned = {"plan": best[0].name, "planned": best[0].seconds} if best and not forced else {}
    return Work(ways, _rows_error(ground, *sets[0]), planned)


def ours(
    ground: Ground, kernel: Kernel, given: tuple[Any, ...], run: Callable[[Any, int], Any]
) -> Iterator[Way]:
    """Each variant for the card that takes these arguments, the readable ones too; the definition if there is none."""
    count, library = 0, ground.xp.__name__
    for variant in kernel.variants if library == "cupy" else ():
        if variant.library != library or not variant.when(*given):
            continue
        function = None
        with contextlib.suppress(MissingExtraError):  # the readable ones without Numba
            function = variant.function
        if function is not None:
            count += 1
            first = kernel if count == 1 and not variant.by_name else function
            yield Way("ours", variant.name, partial(run, first), graph=ground.graph)
    if not count:
        yield Way("ours", "definition", partial(run, kernel.definition))


def by_plan(name: str, *given: Any) -> Any:
    """A product by the plan of this name."""
    from tinyplm.kernels import matmul_plan

    with matmul_plan.forced(name):
        return matmul.product(*given)


def plans(M: int, N: int, K: int, layout: str, dtype: str) -> list[str]:
    """Names of all that could compute a product on an H200, the fastest by prediction first."""
    return list(dict.fromkeys(p.name for p in _offered(M, N, K, layout, dtype)))


def files(
    M: int, N: int, K: int, layout: str, dtype: str, forced: bool, ground: Ground
) -> list[str]:
    """Templates that a product launches; of all plans if they are all timed."""
    offered = _offered(M, N, K, layout, dtype)
    return list(dict.fromkeys(p.file for p in (offered if forced else offered[:1])))


def _offered(M: int, N: int, K: int, layout: str, dtype: str) -> list[Any]:
    from tinyplm.kernels import matmul_plan as planning

    out = "float32" if layout == "tn" else dtype
    turned, values = (layout[0] == "t", layout[1] == "t"), 4 if dtype == "float32" else 8
    copies = (M if turned[0] else K) % values == (K if turned[1] else N) % values == 0
    stores = N % (4 if out == "float32" else 8) == 0
    problem = planning.Problem(1, M, N, K, dtype, out, *turned, copies, stores)
    card = planning.Card(90, 132, 227 * 1024)
    found = [p for tier in planning.TIERS.values() for p in tier.plans(problem, card, None)]
    return sorted(found, key=lambda p: p.seconds)


def _rows_error(ground: Ground, a: Any, b: Any) -> Callable[[tuple[Any, ...]], float]:
    """Against float64 on the card of the same rounded inputs: every value is there, and some rows are right."""
    xp, M = ground.xp, a.shape[0]
    each = min(EVERY, max(1, M // 8))
    rows = np.arange(0, M - each + 1, each) + ground.rng.integers(
        0, each, len(range(0, M - each + 1, each))
    )
    picked = xp.asarray(rows)
    exact = xp.matmul(some(xp, a, picked), wide(xp, b))

    def error(results: tuple[Any, ...]) -> float:
        (y,) = results
        if not all_finite(xp, y):
            return math.nan
        return relative(xp, some(xp, y, picked), exact) / limit(
            y.dtype.name, a.dtype.name, a.shape[1]
        )

    return error


def limit(result: str, given: str, terms: int) -> float:
    """Of a product's relative error, by the dtypes of its result and its operands."""
    return max(LIMITS[result], CUT * terms if result == "float32" != given else 0.0)


# ---- linear layers with what follows them


def _fused(name: str) -> Case:
    """12,288 tokens through GPT-2's first, third and last linear layer of a block."""
    N, K = {
        "linear": (3 * WIDTH, WIDTH),
        "linear_gelu": (4 * WIDTH, WIDTH),
        "linear_residual": (WIDTH, 4 * WIDTH),
    }[name]
    flops = 2.0 * TOKENS * N * K
    results = 2 if name != "linear" else 1  # u and y; or the residual that is read
    moved = 2.0 * (K * (TOKENS + N) + results * TOKENS * N + N)
    return Case(
        family="matmul",
        what=f"{name}_forward",
        shapes=f"{TOKENS}x{N}x{K}",
        dtype="bfloat16",
        flops=flops,
        moved=moved,
        predicted=expected(flops, moved, OF_MODELS[0]),
        source=OF_MODELS[1],
        priority=1 if name == "linear_gelu" else 2,
        seconds=9,
        compiles=True,
        build=partial(_build_fused, name, N, K),
    )


def _build_fused(name: str, N: int, K: int, ground: Ground) -> Work:
    def make() -> tuple[Any, ...]:
        x, w = ground.normal((TOKENS, K), "bfloat16"), ground.normal((K, N), "bfloat16", K**-0.5)
        given = x, w, ground.normal((N,), "bfloat16")
        if name == "linear_gelu":
            return (*given, False)
        return (*given, ground.normal((TOKENS, N), "bfloat16")) if name.endswith("al") else given

    sets = ground.sets(2.0 * (K * (TOKENS + N) + 2 * TOKENS * N), make)
    kernel = getattr(matmul, f"{name}_forward")
    ways = list(ours(ground, kernel, sets[0], lambda f, i: f(*sets[i % len(sets)])))
    if "torch" in ground.peers:
        from . import gpu_peers

        ways += gpu_peers.eager_and_compiled(ground.xp, _TORCH[name], sets)
    rows = ground.rng.integers(0, TOKENS, 256)
    xp, picked = ground.xp, ground.xp.asarray(rows)
    whole = [
        (some(xp, a, picked) if a.ndim == 2 and len(a) == TOKENS else wide(xp, a))
        if is_array(a)
        else a
        for a in sets[0]
    ]
    exact = kernel.definition(*whole)
    exact = exact if isinstance(exact, tuple) else (exact,)

    def error(results: tuple[Any, ...]) -> float:
        # PyTorch returns what comes last alone.
        pairs = list(zip(reversed(results), reversed(exact), strict=False))
        if not all(all_finite(xp, y) for y, _ in pairs):
            return math.nan
        return max(relative(xp, some(xp, y, picked), e) for y, e in pairs) / LIMITS["bfloat16"]

    return Work(ways, error)


def _torch_linear(x: Any, w: Any, b: Any) -> Any:
    import torch

    return torch.addmm(b, x, w)


def _torch_gelu(x: Any, w: Any, b: Any, exact: bool) -> Any:
    import torch

    u = torch.addmm(b, x, w)
    return u, torch.nn.functional.gelu(u, approximate="none" if exact else "tanh")


def _torch_residual(x: Any, w: Any, b: Any, residual: Any) -> Any:
    import torch

    return torch.addmm(b, x, w) + residual


_TORCH = {"linear": _torch_linear, "linear_gelu": _torch_gelu, "linear_residual": _torch_residual}
