"""Other frameworks on the same data of the same card: PyTorch with its backends and its compiler, Triton, JAX.

Arrays are handed over without a copy. PyTorch queues on the stream that CuPy uses, so both are timed by the same
events; JAX has streams of its own, so the host's clock tells its time.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from .gpu_cases import dtype_of, is_array
from .gpu_timing import Way

BACKENDS = {
    "flash": "FLASH_ATTENTION",
    "cudnn": "CUDNN_ATTENTION",
    "efficient": "EFFICIENT_ATTENTION",
    "math": "MATH",
}
"""PyTorch's for attention, by our names."""

DEVICE = "cuda"
"""PyTorch's name of where all this is."""

Run = Callable[[int], Any]


@functools.cache
def has_torch() -> bool:
    """Whether PyTorch is here and sees the card."""
    if find_spec("torch") is None:
        return False
    import torch

    return bool(torch.cuda.is_available())


def found() -> tuple[str, ...]:
    """The frameworks that are here."""
    names = ["torch"] if has_torch() else []
    return (*names, *(name for name in ("triton", "jax") if names and find_spec(name) is not None))


def tensor(array: Any) -> Any:
    """An array of the card as PyTorch's, on the same memory."""
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_dlpack(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_dlpack(array)


def array_of(xp: Any, made: Any) -> Any:
    """What PyTorch made as an array of ours, on the same memory."""
    import torch

    made = made.detach()
    if made.dtype == torch.bfloat16:
        return xp.from_dlpack(made.contiguous().view(torch.int16)).view(dtype_of("bfloat16"))
    return xp.from_dlpack(made)


def torch_way(xp: Any, variant: str, run: Run, *, graph: bool = True) -> Way:
    """A way of PyTorch's; run returns tensors."""
    return Way(
        "torch",
        variant,
        run,
        graph=torch_graph if graph else None,
        read=lambda made: tuple(array_of(xp, t) for t in _several(made)),
    )


def _several(made: Any) -> Sequence[Any]:
    return made if isinstance(made, tuple | list) else (made,)


def torch_graph(run: Run, calls: int) -> Callable[[], None]:
    """So many calls as a graph of PyTorch's."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for i in range(calls):
            run(i)
    torch.cuda.current_stream().wait_stream(side)
    before, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            made = [run(i) for i in range(calls)]
    except BaseException:
        torch.cuda.set_stream(before)  # a capture that ends badly leaves its own
        raise
    kept = (made, run)
    return lambda kept=kept: graph.replay()


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """By torch.compile, for these shapes alone."""
    import torch

    return torch.compile(function, dynamic=False, fullgraph=True, **options)


def eager_and_compiled(
    xp: Any, function: Callable[..., Any], sets: list[tuple[Any, ...]], name: str = "eager"
) -> Iterator[Way]:
    """A function of tensors as it is written, and compiled."""
    import torch

    given = [tuple(tensor(a) if is_array(a) else a for a in s) for s in sets]
    for variant, one in ((name, function), ("compiled", compiled(function))):

        def run(i: int, one: Any = one) -> Any:
            with torch.no_grad():
                return one(*given[i % len(given)])

        yield torch_way(xp, variant, run)


# Attention


@contextlib.contextmanager
def _only(backend: str) -> Iterator[None]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(getattr(SDPBackend, BACKENDS[backend])):
        yield


def attention(
    xp: Any,
    sets: list[tuple[Any, Any, Any, Any]],
    *,
    scale: float,
    causal: bool = False,
    mask: Any = None,
    rate: float = 0.0,
    backward: bool = False,
) -> Iterator[Way]:
    """PyTorch's with each backend forced; sets of q, k, v (B, H, T, K) and the gradient of the result.

    A mask is a tensor of booleans or of what is added to scores. A backend that does not take these is a way that
    fails with PyTorch's own words.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    given = [tuple(map(tensor, s)) for s in sets]
    for backend in BACKENDS:
        if mask is not None and backend == "flash":
            continue

        def attend(q: Any, k: Any, v: Any, backend: str = backend) -> Any:
            with _only(backend):
                return scaled_dot_product_attention(
                    q, k, v, attn_mask=mask, dropout_p=rate, is_causal=causal, scale=scale
                )

        if not backward:

            def run(i: int, attend: Any = attend) -> Any:
                with torch.no_grad():
                    return attend(*given[i % len(given)][:3])

            yield torch_way(xp, backend, run)
            continue
        learned = [mask] if mask is not None and mask.is_floating_point() else []
        yield torch_way(xp, backend, _gradients(attend, given, learned), graph=False)


def _gradients(
    attend: Callable[..., Any], given: list[tuple[Any, ...]], learned: Sequence[Any] = ()
) -> Run:
    """Gradients of q, k, v and what is learned besides, again and again, of results that are computed once."""
    import torch

    kept: list[Any] = []
    for t in learned:
        t.requires_grad_()

    def run(i: int) -> Any:
        if not kept:
            for q, k, v, g in given:
                leaves = [t.detach().requires_grad_() for t in (q, k, v)]
                kept.append((attend(*leaves), leaves, g))
        y, leaves, g = kept[i % len(kept)]
        return torch.autograd.grad(y, [*leaves, *learned], g, retain_graph=True)

    return run


def flex(
    xp: Any,
    sets: list[tuple[Any, Any, Any, Any]],
    *,
    scale: float,
    seen: Callable[..., Any] | None = None,
    score: Callable[..., Any] | None = None,
    learned: Sequence[Any] = (),
    backward: bool = False,
) -> Way:
    """PyTorch's compiled attention with a rule of its own: seen(b, h, t, s), or score(score, b, h, t, s).

    Tensors in a rule that are learned have gradients too.
    """
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    given = [tuple(map(tensor, s)) for s in sets]
    q, k = given[0][:2]
    blocks = None
    if seen is not None:
        blocks = create_block_mask(seen, q.shape[0], None, q.shape[2], k.shape[2], device=DEVICE)
    one = torch.compile(flex_attention, dynamic=False)

    def attend(q: Any, k: Any, v: Any) -> Any:
        return one(q, k, v, score_mod=score, block_mask=blocks, scale=scale)

    if backward:
        return torch_way(xp, "flex", _gradients(attend, given, learned), graph=False)

    def run(i: int) -> Any:
        with torch.no_grad():
            return attend(*given[i % len(given)][:3])

    return torch_way(xp, "flex", run, graph=False)


def jax_attention(
    xp: Any, sets: list[tuple[Any, Any, Any, Any]], *, scale: float, causal: bool, backward: bool
) -> Iterator[Way]:
    """JAX's dot_product_attention with each implementation; it takes (B, T, H, K)."""
    import jax

    given = [tuple(_of_jax(a.swapaxes(1, 2)) for a in s) for s in sets]
    for implementation in ("cudnn", "xla"):

        def attend(q: Any, k: Any, v: Any, name: str = implementation) -> Any:
            return jax.nn.dot_product_attention(
                q, k, v, is_causal=causal, scale=scale, implementation=name
            )

        def gradients(q: Any, k: Any, v: Any, g: Any, attend: Any = attend) -> Any:
            return jax.vjp(attend, q, k, v)[1](g)

        one = jax.jit(gradients if backward else attend)
        count = 4 if backward else 3

        def run(i: int, one: Any = one, count: int = count) -> Any:
            return one(*given[i % len(given)][:count])

        # Its gradients include the forward pass, as what that keeps stays within one compiled function.
        variant = f"{implementation}, forward too" if backward else implementation
        yield Way(
            "jax",
            variant,
            run,
            wall=True,
            read=lambda made: tuple(_from_jax(xp, a).swapaxes(1, 2) for a in _several(made)),
            finish=jax.block_until_ready,
        )


def _of_jax(array: Any) -> Any:
    import jax

    whole = array if array.flags.c_contiguous else array.copy()
    if array.dtype.name == "bfloat16":
        bits = jax.dlpack.from_dlpack(whole.view(np.int16))
        return jax.lax.bitcast_convert_type(bits, jax.numpy.bfloat16)
    return jax.dlpack.from_dlpack(whole)


def _from_jax(xp: Any, made: Any) -> Any:
    return xp.asarray(np.asarray(made).view(dtype_of(str(made.dtype))))


# Products


def products(xp: Any, sets: list[tuple[Any, Any]]) -> Iterator[Way]:
    """PyTorch's product, and a short one in Triton."""
    import torch

    given = [tuple(map(tensor, s)) for s in sets]
    yield torch_way(xp, "matmul", lambda i: torch.matmul(*given[i % len(given)]))
    if find_spec("triton") is not None and given[0][0].dtype == torch.bfloat16:
        from .gpu_triton import product

        run = functools.partial(_by_triton, product, given)
        way = torch_way(xp, "matmul", run)
        way.library = "triton"
        yield way


def _by_triton(product: Any, given: list[tuple[Any, Any]], i: int) -> Any:
    return product(*given[i % len(given)])


def triton_attention(
    xp: Any, sets: list[tuple[Any, Any, Any, Any]], *, scale: float, causal: bool
) -> Way:
    """The short forward attention in Triton."""
    from .gpu_triton import attention as attend

    given = [tuple(map(tensor, s[:3])) for s in sets]
    way = torch_way(
        xp, "attention", lambda i: attend(*given[i % len(given)], scale=scale, causal=causal)
    )
    way.library = "triton"
    return way
