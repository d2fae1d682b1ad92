"""What bytes bound on a card: norms, activations, dropout, softmax, embeddings, the loss, the optimizer."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tinyplm.kernels.registry import KERNELS

from .gpu_arguments import ARGUMENTS
from .gpu_cases import (
    LIMITS,
    Case,
    Ground,
    Work,
    all_finite,
    allowed,
    is_array,
    relative,
    some,
    wide,
)
from .gpu_matmul import ours
from .gpu_timing import Way

TOKENS, WIDTH, FFN, VOCABULARY = 65_536, 768, 3_072, 50_304
LARGE_ROWS, LARGE_WIDTH = 16_384, 4_096
PARAMETERS = 124_475_904
"""Of GPT-2 with a vocabulary of 50,304, in one array."""
CHECKED = 1 << 28
"""Values that are still checked whole on the card, as float64."""
LOSS_ROWS = 256
"""Of the loss, checked."""

Rates = tuple[float, float]


@dataclass(frozen=True)
class Entry:
    """A kernel at a size.

    Attributes:
        kernel: its name.
        rows: of its main array.
        columns: of that.
        each: bytes read and written for each value of it, in bfloat16.
        rates: bytes per second that the design predicts (none measured).
        priority: of its case.
        quick: part of a quick run.
    """

    kernel: str
    rows: int
    columns: int
    each: float
    rates: Rates | None = None
    priority: int = 2
    quick: bool = False


STANDARD = (
    Entry("layer_norm_forward", TOKENS, WIDTH, 8, (3.7e12, 4.0e12), 1, True),
    Entry("layer_norm_pullback", TOKENS, WIDTH, 8, (3.0e12, 3.6e12), 1),
    Entry("gelu_tanh_forward", TOKENS, FFN, 4, (3.8e12, 4.1e12), 1),
    Entry("gelu_tanh_pullback", TOKENS, FFN, 6, (3.8e12, 4.1e12), 1),
    Entry("sum_rows", TOKENS, FFN, 2, (3.5e12, 3.5e12), 1),
    Entry("dropout_forward", TOKENS, WIDTH, 4, (3.7e12, 3.7e12)),
    Entry("gelu_forward", TOKENS, FFN, 4, (2.7e12, 4.1e12)),
    Entry("gelu_pullback", TOKENS, FFN, 6, (2.7e12, 4.1e12)),
    Entry("rms_norm_forward", LARGE_ROWS, LARGE_WIDTH, 8, (3.7e12, 4.0e12)),
    Entry("rms_norm_pullback", LARGE_ROWS, LARGE_WIDTH, 8, (3.0e12, 3.6e12)),
    Entry("layer_norm_forward", LARGE_ROWS, LARGE_WIDTH, 8, (3.7e12, 4.0e12)),
    Entry("layer_norm_pullback", LARGE_ROWS, LARGE_WIDTH, 8, (3.0e12, 3.6e12)),
    Entry("softmax_forward", TOKENS, 1024, 4, (3.7e12, 3.7e12)),
    Entry("softmax_pullback", TOKENS, 1024, 6, (3.7e12, 3.7e12), 3),
    Entry("relu_forward", TOKENS, FFN, 4, (3.8e12, 4.1e12), 3),
    Entry("relu_pullback", TOKENS, FFN, 6, (3.8e12, 4.1e12), 3),
    Entry("dropout_pullback", TOKENS, WIDTH, 4, (3.7e12, 3.7e12), 3),
    Entry("scale_in_place", TOKENS, FFN, 4, None, 3),
)


def cases(settings: dict[str, Any]) -> list[Case]:
    """The standard ones, or every kernel of rows at the sizes (rows, columns) that were asked for."""
    asked = [s for s in settings.get("sizes") or [] if len(s) == 2]
    if settings.get("sizes"):
        kernels = {e.kernel: e for e in STANDARD}.values()
        return [_case(Entry(e.kernel, R, C, e.each, e.rates, 1)) for R, C in asked for e in kernels]
    return [
        *map(_case, STANDARD),
        _special("loss", "cross_entropy_in_place", f"{TOKENS}x{VOCABULARY}", _loss,
                 4.0 * TOKENS * VOCABULARY, (3.65e12, 4.3e12), "8", 1, quick=True, seconds=15),
        _special("optimizer", "adamw_update", "flat 124M", _adamw,
                 28.0 * PARAMETERS, (3.5e12, 4.1e12), "9", 2),
        _special("optimizer", "AdamW", "GPT-2 124M", _optimizer,
                 30.0 * PARAMETERS, (3.7e12, 4.3e12), "9", 1, quick=True, seconds=10),
        _special("optimizer", "sum_of_squares", "flat 124M", _norm,
                 2.0 * PARAMETERS, (3.8e12, 3.8e12), "7", 2),
        _special("embedding", "copy_rows", f"{TOKENS} of {VOCABULARY}x{WIDTH}", _taken,
                 4.0 * TOKENS * WIDTH + 8.0 * TOKENS, (3.0e12, 3.0e12), "7", 2),
        _special("embedding", "add_rows", f"{TOKENS} to {VOCABULARY}x{WIDTH}", _added,
                 2.0 * TOKENS * WIDTH + 4.0 * VOCABULARY * WIDTH + 8.0 * TOKENS, None, "", 1),
    ]  # fmt: skip


def _special(
    family: str,
    what: str,
    shapes: str,
    build: Callable[[Ground], Work],
    moved: float,
    rates: Rates | None,
    source: str,
    priority: int,
    *,
    quick: bool = False,
    seconds: float = 6.0,
) -> Case:
    return Case(
        family=family,
        what=what,
        shapes=shapes,
        dtype="bfloat16",
        flops=0.0,
        moved=moved,
        predicted=None if rates is None else (moved / rates[1], moved / rates[0]),
        source=source,
        priority=priority,
        quick=quick,
        seconds=seconds,
        compiles=what in _TORCH,
        build=build,
    )


def _case(e: Entry) -> Case:
    moved = e.each * e.rows * e.columns
    return _special(
        "memory", e.kernel, f"{e.rows}x{e.columns}", partial(_build, e), moved, e.rates,
        "7" if e.rates else "", e.priority, quick=e.quick,
    )  # fmt: skip


def _build(e: Entry, ground: Ground) -> Work:
    kernel, make = KERNELS[e.kernel], ARGUMENTS[e.kernel]
    sets = ground.sets(
        e.each * e.rows * e.columns, lambda: make(ground, e.rows, e.columns, "bfloat16")
    )
    return work(ground, e.kernel, sets, _exactly(ground, kernel, sets[0]))


def work(ground: Ground, name: str, sets: list[tuple[Any, ...]], exact: list[Any] | None) -> Work:
    """Ours and PyTorch's on these sets, against what is exact, or only against NaN if that is None."""
    ways = list(ours(ground, KERNELS[name], sets[0], lambda f, i: _made(f, sets[i % len(sets)])))
    if "torch" in ground.peers and name in _TORCH:
        from . import gpu_peers

        ways += gpu_peers.eager_and_compiled(ground.xp, _TORCH[name], sets)
    return Work(ways, partial(_error, ground.xp, name, exact))


def _made(function: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """Results, or the arguments where it works in place."""
    made = function(*given)
    if made is None:
        return tuple(a for a in given if is_array(a) and a.dtype.kind not in "iub")
    return made if isinstance(made, tuple) else (made,)


def _exactly(ground: Ground, kernel: Any, given: tuple[Any, ...]) -> list[Any] | None:
    """By the definition on the card in float64; None if there is no room for that, or it works in place."""
    if sum(a.size for a in given if is_array(a)) > CHECKED:
        return None
    full = [wide(ground.xp, a) if is_array(a) and a.dtype.kind not in "iub" else a for a in given]
    made = kernel.definition(*full)
    if made is None:
        return None
    return list(made) if isinstance(made, tuple) else [made]


def _error(xp: Any, name: str, exact: list[Any] | None, results: tuple[Any, ...]) -> float:
    arrays = [a for a in results if is_array(a) and a.ndim]
    if not all(all_finite(xp, a) for a in arrays):
        return math.nan
    if exact is None:
        return 0.0
    return max(
        relative(xp, found, right) / allowed(name, found.dtype.name, "bfloat16")
        for found, right in zip(results, exact, strict=False)
    )


# ---- what has no rows and columns alone


def _loss(ground: Ground) -> Work:
    """Logits are overwritten, so they are brought back before each call, outside of what is timed."""
    xp, kernel = ground.xp, KERNELS["cross_entropy_in_place"]
    logits = ground.normal((TOKENS, VOCABULARY), "bfloat16")
    labels = ground.integers(0, VOCABULARY, (TOKENS,))
    share = xp.full(TOKENS, 1 / TOKENS, np.float32)
    own, losses = logits.copy(), xp.full(TOKENS, np.nan, np.float32)
    given = (own, losses, labels, share, 0.0, True)

    def restore(i: int) -> None:
        xp.copyto(own, logits)

    def run(function: Any, i: int) -> Any:
        function(*given)
        return losses, own

    ways = [way for way in ours(ground, kernel, given, run) if way.variant != "definition"]
    for way in ways:
        way.before, way.graph = restore, None
    if "torch" in ground.peers:
        from . import gpu_peers

        ways += gpu_peers.eager_and_compiled(
            xp, _torch_loss, [(logits, labels, share)], "by its formula"
        )
    rows = xp.asarray(np.sort(ground.rng.integers(0, TOKENS, LOSS_ROWS)))
    right, exact_losses = some(xp, logits, rows), xp.zeros(LOSS_ROWS)
    kernel.definition(right, exact_losses, labels[rows], wide(xp, share[rows]), 0.0, True)

    def error(results: tuple[Any, ...]) -> float:
        found, gradient = results
        if not (all_finite(xp, found) and all_finite(xp, gradient)):
            return math.nan
        return max(
            relative(xp, found[rows], exact_losses) / LIMITS["float32"],
            relative(xp, some(xp, gradient, rows), right) / LIMITS["bfloat16"],
        )

    return Work(ways, error)


def _adamw(ground: Ground) -> Work:
    (given,) = [ARGUMENTS["adamw_update"](ground, 1, PARAMETERS, "float32")]
    return work(ground, "adamw_update", [given], None)


def _norm(ground: Ground) -> Work:
    xp, g = ground.xp, ground.normal((PARAMETERS,), "bfloat16")
    full = wide(xp, g)
    found = work(ground, "sum_of_squares", [(g,)], None)
    right = float((full * full).sum())

    def error(results: tuple[Any, ...]) -> float:
        return abs(float(results[0]) - right) / right / LIMITS["bfloat16"]

    return Work(found.ways, error)


def _optimizer(ground: Ground) -> Work:
    """All of GPT-2's parameters in bfloat16 with masters, by the optimizer; PyTorch's fused one on float32."""
    from tinyplm import Tensor
    from tinyplm.optim import AdamW

    shapes = _shapes()
    parameters = {}
    for name, shape in shapes.items():
        p = Tensor(ground.normal(shape, "bfloat16", 0.02), requires_grad=True)
        p.grad = ground.normal(shape, "float32" if len(shape) == 2 else "bfloat16", 1e-3)
        parameters[name] = p
    optimizer = AdamW(parameters, weight_decay=0.1)

    def run(_: int) -> Any:
        optimizer.step(1e-4)
        return tuple(p.array for p in parameters.values())

    ways = [Way("ours", "AdamW, masters", run)]
    if "torch" in ground.peers:
        ways.append(_torch_optimizer(ground, list(shapes.values())))
    return Work(ways, partial(_error, ground.xp, "adamw_update", None))


def _shapes() -> dict[str, tuple[int, ...]]:
    """Of GPT-2's parameters."""
    from tinyplm.models.gpt2 import Gpt2, Gpt2Config

    model = Gpt2(Gpt2Config(vocab_size=VOCABULARY), rng=None)
    return {name: p.shape for name, p in model.named_parameters().items()}


def _torch_optimizer(ground: Ground, shapes: list[tuple[int, ...]]) -> Way:
    import torch

    from . import gpu_peers

    parameters = []
    for shape in shapes:
        p = gpu_peers.tensor(ground.normal(shape, "float32", 0.02)).requires_grad_()
        p.grad = gpu_peers.tensor(ground.normal(shape, "float32", 1e-3))
        parameters.append(p)
    optimizer = torch.optim.AdamW(parameters, 1e-4, weight_decay=0.1, fused=True)

    def run(_: int) -> Any:
        optimizer.step()
        return tuple(parameters)

    return gpu_peers.torch_way(ground.xp, "fused AdamW, float32", run, graph=False)


def _taken(ground: Ground) -> Work:
    table = ground.normal((VOCABULARY, WIDTH), "bfloat16")
    sets = [(table, ground.integers(0, VOCABULARY, (TOKENS,))) for _ in range(2)]
    return work(ground, "copy_rows", sets, [some(ground.xp, table, sets[0][1])])


def _added(ground: Ground) -> Work:
    """Ids as text has them: few are most of them."""
    sets = []
    for _ in range(2):
        ids = np.minimum(ground.rng.zipf(1.2, TOKENS) - 1, VOCABULARY - 1)
        sets.append(
            (ground.normal((TOKENS, WIDTH), "bfloat16"), ground.xp.asarray(ids), VOCABULARY)
        )
    g, ids, rows = sets[0]
    exact = np.zeros((rows, WIDTH))
    np.add.at(exact, ground.xp.asnumpy(ids), ground.xp.asnumpy(g).astype(np.float64))
    return work(ground, "add_rows", sets, [ground.xp.asarray(exact)])


# ---- PyTorch's, from the arguments of ours; results in the order of ours, maybe fewer


def _torch_norm(x: Any, branch: Any, gain: Any, bias: Any, eps: float) -> Any:
    import torch

    total = x + branch
    return total, torch.nn.functional.layer_norm(total, gain.shape, gain, bias, eps)


def _torch_norm_back(g: Any, g_sum: Any, x: Any, mean: Any, scale: Any, gain: Any) -> Any:
    import torch

    back = torch.ops.aten.native_layer_norm_backward
    gx, g_gain, g_bias = back(g, x, gain.shape, mean, scale, gain, gain, [True] * 3)
    return gx + g_sum, g_gain, g_bias


def _torch_rms(x: Any, branch: Any, gain: Any, eps: float) -> Any:
    import torch

    total = x + branch
    return total, torch.nn.functional.rms_norm(total, gain.shape, gain, eps)


def _torch_rms_back(g: Any, g_sum: Any, x: Any, scale: Any, gain: Any) -> Any:
    import torch

    wide, given = x.to(torch.float32) * scale, g.to(torch.float32)
    h = given * gain
    gx = scale * (h - wide * (h * wide).mean(1, keepdim=True)) + g_sum
    return gx.to(x.dtype), (given * wide).sum(0)


def _torch_loss(logits: Any, labels: Any, share: Any) -> Any:
    """Losses and the gradient of the logits."""
    import torch

    wide = logits.to(torch.float32)
    total = torch.logsumexp(wide, 1, keepdim=True)
    losses = (total - wide.gather(1, labels[:, None]))[:, 0]
    columns = torch.arange(logits.shape[1], device=logits.device)
    target = (columns[None, :] == labels[:, None]).to(torch.float32)
    return losses, ((torch.exp(wide - total) - target) * share[:, None]).to(logits.dtype)


def _torch_added(g: Any, ids: Any, rows: int) -> Any:
    import torch

    return torch.ops.aten.embedding_dense_backward(g, ids, rows, -1, False)


def _functional(name: str, **options: Any) -> Callable[..., Any]:
    def call(x: Any, *_: Any) -> Any:
        import torch

        return getattr(torch.nn.functional, name)(x, **options)

    return call


def _aten(name: str, *more: Any, **options: Any) -> Callable[..., Any]:
    def call(g: Any, x: Any, *_: Any) -> Any:
        import torch

        return getattr(torch.ops.aten, name)(g, x, *more, **options)

    return call


def _torch_softmax_back(g: Any, y: Any, axis: int) -> Any:
    import torch

    return torch.ops.aten._softmax_backward_data(g, y, axis, y.dtype)


def _torch_sum(g: Any) -> Any:
    import torch

    return g.sum(0, dtype=torch.float32)


def _torch_squares(g: Any) -> Any:
    import torch

    return torch.linalg.vector_norm(g, dtype=torch.float32) ** 2


def _torch_rows(table: Any, ids: Any) -> Any:
    import torch

    return torch.nn.functional.embedding(ids, table)


_TORCH: dict[str, Callable[..., Any]] = {
    "layer_norm_forward": _torch_norm,
    "layer_norm_pullback": _torch_norm_back,
    "rms_norm_forward": _torch_rms,
    "rms_norm_pullback": _torch_rms_back,
    "gelu_forward": _functional("gelu"),
    "gelu_pullback": _aten("gelu_backward"),
    "gelu_tanh_forward": _functional("gelu", approximate="tanh"),
    "gelu_tanh_pullback": _aten("gelu_backward", approximate="tanh"),
    "relu_forward": _functional("relu"),
    "relu_pullback": _aten("threshold_backward", 0.0),
    "softmax_forward": _functional("softmax", dim=1),
    "softmax_pullback": _torch_softmax_back,
    "sum_rows": _torch_sum,
    "sum_of_squares": _torch_squares,
    "copy_rows": _torch_rows,
    "add_rows": _torch_added,
}
