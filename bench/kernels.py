"""Each variant of a kernel beside its definition and a copy of what it reads.

A kernel that works element by element is finished when it takes no longer than the copy.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from tinyplm.kernels.adam import adamw_update
from tinyplm.kernels.gelu import gelu_tanh_forward, gelu_tanh_pullback
from tinyplm.kernels.layer_norm import layer_norm_forward, layer_norm_pullback
from tinyplm.kernels.registry import Kernel
from tinyplm.kernels.softmax import score_softmax, score_softmax_pullback

from .measure import Contestant, Options, Record, WrongResultError, measure, note

Arguments = tuple[Any, ...]


def run(options: Options) -> Iterator[Record]:
    """At the sizes of the small training step, and at larger ones."""
    for kernel, arguments in _cases(large=False) + ([] if options.quick else _cases(large=True)):
        for variant in kernel.variants:
            if variant.library != "numpy" or not variant.when(*arguments):
                continue
            if variant.function is None:
                note(f'{kernel.name}: {variant.name} is not installed; pip install "tinyplm[fast]"')
                continue
            _check(kernel, variant.name, variant.function, arguments)
            read = [a for a in arguments if isinstance(a, np.ndarray)]
            yield from measure(
                [
                    _contestant("ours", variant.name, variant.function, arguments),
                    _contestant("ours", "definition", kernel.definition, arguments),
                    Contestant(library="numpy", variant="copy of its inputs", run=_copy(read)),
                ],
                benchmark="kernels",
                what=kernel.name,
                shapes=" ".join("x".join(map(str, a.shape)) for a in read),
                options=options,
                rounds=3 if options.quick else 5,
                repeats=30,
                pause=0,
                work={"read_bytes": sum(a.nbytes for a in read)},
            )


def _cases(*, large: bool) -> list[tuple[Kernel, Arguments]]:
    rng = np.random.default_rng(0)

    def array(*shape: int) -> Any:
        return rng.standard_normal(shape, dtype=np.float32)

    N, D, groups, T = (2048, 384, 16, 256) if large else (768, 128, 48, 64)
    F = 4 * D
    x_RC, gain, bias = array(N, D), array(D), array(D)
    _, n_RC, scale_R1 = layer_norm_forward.definition(x_RC, gain, bias, 1e-5)
    p_GTS = array(groups, T, T)
    score_softmax.definition(p_GTS, 0.125, 0)
    return [
        (gelu_tanh_forward, (array(N, F),)),
        (gelu_tanh_pullback, (array(N, F), array(N, F))),
        (layer_norm_forward, (x_RC, gain, bias, 1e-5)),
        (layer_norm_pullback, (array(N, D), n_RC, scale_R1, gain)),
        (score_softmax, (array(groups, T, T), 0.125, 0)),
        (score_softmax_pullback, (array(groups, T, T), p_GTS, 0.125)),
        (
            adamw_update,
            (
                *(array(D, F), array(D, F), array(D, F), array(D, F) ** 2),
                *(0.5, 0.9999, 0.9, 0.99, 1e-3, 0.5, 1e-8),
            ),
        ),
    ]


def _outcome(function: Any, arguments: Arguments, dtype: type = np.float32) -> list[Any]:
    """What the function returns, or what it made of its arguments if it works in place."""
    own = _own(arguments, dtype)
    result = function(*own)
    if result is None:
        return [a for a in own if isinstance(a, np.ndarray)]
    return list(result) if isinstance(result, tuple) else [result]


def _own(arguments: Arguments, dtype: type = np.float32) -> list[Any]:
    return [a.astype(dtype) if isinstance(a, np.ndarray) else a for a in arguments]


def _check(kernel: Kernel, name: str, function: Any, arguments: Arguments) -> None:
    """The variant errs at most twice as much as the definition does at the same precision."""
    exact = _outcome(kernel.definition, arguments, np.float64)
    plain = _outcome(kernel.definition, arguments)
    for right, usual, found in zip(exact, plain, _outcome(function, arguments), strict=True):
        allowed = 2 * abs(usual - right).max() + 1e-7 * abs(right).max()
        error = abs(found - right).max()
        if not error <= allowed:
            raise WrongResultError(
                f"{kernel.name}, variant {name}: error {error:.2e}, allowed {allowed:.2e}."
            )


def _contestant(library: str, variant: str, function: Any, arguments: Arguments) -> Contestant:
    own = _own(arguments)
    in_place = function(*own) is None

    def restore() -> None:
        for mine, original in zip(own, arguments, strict=True):
            if isinstance(mine, np.ndarray):
                np.copyto(mine, original)

    return Contestant(
        library=library,
        variant=variant,
        run=lambda: function(*own),
        prepare=restore if in_place else None,
    )


def _copy(arrays: list[Any]) -> Any:
    pairs = [(np.empty_like(a), a) for a in arrays]

    def copy() -> None:
        for out, a in pairs:
            np.copyto(out, a)

    return copy
