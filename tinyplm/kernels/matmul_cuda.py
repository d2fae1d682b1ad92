"""Products on a card: where operands lie, and launching what matmul_plan.py chose.

    out = last(a b + bias + keep out + other)

with one rounding at the end: `last` is GELU of that, or out is multiplied by GELU's slope at `other`.
"""

import functools
import struct
from typing import Any, NamedTuple

import numpy as np

from ..backend import namespace
from ..types import Array
from . import cuda, matmul_plan, matmul_tiles
from .matmul_plan import Plan, Problem

RUN = 8
"""Values of a row that are finished together, as in matmul_parts.cu."""

_RESULT = struct.Struct("=QQQQQqqiifIIxxxx")
_GIVEN = struct.Struct("=QqqQqqQQQQQqqiifIIxxxxiiIIIxxxx")
"""Structures of matmul_result.cu and matmul_given.cu, the first of which is in the second."""


@functools.cache
def _name(kind: np.dtype[Any]) -> str:
    """As kind.name, which NumPy makes anew each time."""
    return kind.name


class Layout(NamedTuple):
    """Where the values of a matrix, or of a batch of them, lie.

    Attributes:
        turned: whether columns lie one after the other, instead of rows.
        pitch: values from one row (or column) to the next.
        step: values from one matrix to the next; 0 if all are the same one.
    """

    turned: bool
    pitch: int
    step: int


def layout(a: Array) -> Layout | None:
    """That of an array of two or three axes; None if neither rows nor columns lie side by side.

    A matrix of one row or column is seen so that its values lie side by side, if they do.
    """
    size, (rows, columns), (down, across) = a.itemsize, a.shape[-2:], a.strides[-2:]
    if across == size and (columns > 1 or down != size or rows <= 1):
        turned, pitch = False, down if rows > 1 else 0
    elif down == size or rows <= 1:
        turned, pitch = True, across if columns > 1 else 0
    elif columns <= 1:
        turned, pitch = False, down
    else:
        return None
    step = a.strides[0] if a.ndim == 3 and len(a) > 1 else 0
    if pitch < 0 or pitch % size or step % size:
        return None
    return Layout(turned, pitch // size, step // size)


class Operands(NamedTuple):
    """What a product is computed of, and where it goes; see this file's first lines.

    Attributes:
        a: (rows, terms), or a batch of them.
        b: (terms, columns), of the dtype of a, or a batch.
        out: (rows, columns) or a batch: of that dtype, or float32.
        a_lies: how a lies.
        b_lies: how b lies.
        out_lies: how out does, which is not turned.
        bias: (columns), or None.
        other: as out but without gaps, in the dtype of a: added, or what the slope is of.
        before: as other: gets what GELU is of.
        keep: how many times out counts.
    """

    a: Array
    b: Array
    out: Array
    a_lies: Layout
    b_lies: Layout
    out_lies: Layout
    bias: Array | None = None
    other: Array | None = None
    before: Array | None = None
    keep: float = 0.0


def takes(a: Array, b: Array, *others: Array | None) -> bool:
    """Whether these are matrices, or batches of them, that `compute` knows, and others have their dtype."""
    kind = a.dtype
    return (
        _name(kind) in cuda.TYPES
        and b.dtype == kind
        and a.ndim in (2, 3)
        and b.ndim in (2, 3)
        and a.shape[-1] == b.shape[-2]
        and (a.ndim == 2 or b.ndim == 2 or len(a) == len(b) or 1 in (len(a), len(b)))
        and all(o is None or o.dtype == kind for o in others)
    )


def takes_result(out: Array, a: Array, b: Array) -> bool:
    """Whether the product of these can go there, in their dtype or in float32."""
    batch = max((a.shape[:-2], b.shape[:-2]))
    return _name(out.dtype) in (_name(a.dtype), "float32") and out.shape == (
        *batch,
        a.shape[-2],
        b.shape[-1],
    )


def _side_by_side(a: Array) -> tuple[Array, Layout]:
    """A matrix and how it lies: a copy, if neither its rows nor its columns lie side by side."""
    found = layout(a)
    if found is None:
        a = namespace(a).ascontiguousarray(a)
        found = layout(a) or Layout(False, 0, 0)  # or it is empty
    return a, found


def compute(
    a: Array,
    b: Array,
    out: Array | None = None,
    keep: float = 0.0,
    *,
    bias: Array | None = None,
    other: Array | None = None,
    before: Array | None = None,
    last: str = "plain",
) -> Array:
    """The product, in a new array if none is given; `takes` holds for all of them. What has gaps is copied first."""
    (a, a_lies), (b, b_lies) = _side_by_side(a), _side_by_side(b)
    bias, other = cuda.whole(bias, other)
    batch = next((len(x) for x in (a, b) if x.ndim == 3 and len(x) != 1), 1)
    (rows, terms), columns = a.shape[-2:], b.shape[-1]
    if out is None:
        shape = (rows, columns) if a.ndim == b.ndim == 2 else (batch, rows, columns)
        out = cuda.empty(a, shape)
    if not out.size:
        return out
    if (columns > 1 and out.strides[-1] != out.itemsize) or min(out.strides) < 0:
        out[...] = compute(a, b, out.copy(), keep, bias=bias, other=other, before=before, last=last)
        return out
    _, out_lies = _side_by_side(out)
    if out_lies.turned:  # a single column or row
        out_lies = Layout(False, out.strides[-2] // out.itemsize, out_lies.step)
    given = Operands(a, b, out, a_lies, b_lies, out_lies, bias, other, before, keep)
    problem = Problem(
        batch, rows, columns, terms, _name(a.dtype), _name(out.dtype), a_lies.turned, b_lies.turned,
        _even(a, a_lies) and _even(b, b_lies),
        _even(out, out_lies)
        and not (_at(bias) | _at(other) | _at(before)) % 16
        and (other is before is None or columns * a.itemsize % 16 == 0),  # these have no gaps
        last,
    )  # fmt: skip
    plan = matmul_plan.plan(problem, cuda.card())
    matmul_plan.TIERS[plan.tier].start(plan, problem, given)
    return out


def _even(a: Array, lies: Layout) -> bool:
    """Whether every row (or column) begins at a multiple of 16 bytes, behind the one before."""
    rows, width = a.shape[:-3:-1] if lies.turned else a.shape[-2:]
    forward = lies.step >= 0 and (lies.pitch >= width or rows == 1)
    return forward and not (cuda.address(a) | lies.pitch * a.itemsize | lies.step * a.itemsize) % 16


def _at(a: Array | None) -> int:
    return 0 if a is None else cuda.address(a)


def _packed(layout: struct.Struct, *values: Any) -> Array:
    """A structure, to be passed by value."""
    return np.frombuffer(layout.pack(*values), f"V{layout.size}")


def result_of(plan: Plan, problem: Problem, o: Operands) -> tuple[Array, Array | None]:
    """What becomes of sums, as matmul_result.cu has it; and the room for their parts, held till they are added."""
    values, parts = _result(plan, problem, o)
    return _packed(_RESULT, *values), parts


def _result(plan: Plan, problem: Problem, o: Operands) -> tuple[tuple[Any, ...], Array | None]:
    parts = None
    if plan.split > 1:
        values = problem.batch * problem.rows * problem.columns
        parts = cuda.empty(o.a, (plan.split * values,), np.float32)
    return (
        _at(o.out), _at(o.bias), _at(o.other), _at(o.before), _at(parts),
        o.out_lies.pitch, o.out_lies.step, problem.rows, problem.columns, o.keep,
        o.out.dtype != o.a.dtype, problem.stores,
    ), parts  # fmt: skip


def start(plan: Plan, problem: Problem, o: Operands) -> None:
    """Launch a kernel that gets what matmul_given.cu says, and the one that adds up parts if there are some."""
    result, parts = _result(plan, problem, o)
    down, across = matmul_plan.tiles_of(problem, *plan.tile[:2])
    given = _packed(
        _GIVEN, _at(o.a), *o.a_lies[1:], _at(o.b), *o.b_lies[1:], *result,
        problem.terms, plan.chunk, problem.batch, down, across,
    )  # fmt: skip
    cuda.launch(plan.file, plan.kernel, plan.blocks, plan.threads, given, shared=plan.shared)
    if parts is not None:
        add_parts(problem, plan.split, _packed(_RESULT, *result))


def add_parts(problem: Problem, split: int, result: Array) -> None:
    """Launch what adds up parts and finishes the sums."""
    runs = problem.batch * problem.rows * -(-problem.columns // RUN)
    cuda.launch(
        f"matmul_parts {problem.dtype} {problem.last}", f"add_parts_{problem.dtype}_{problem.last}",
        -(-runs // cuda.THREADS), cuda.THREADS, result, problem.batch, split,
    )  # fmt: skip


matmul_plan.add("few", matmul_plan.Tier(matmul_tiles.few_plans, start))
matmul_plan.add("tensor", matmul_plan.Tier(matmul_tiles.tensor_plans, start))
matmul_plan.add("plain", matmul_plan.Tier(matmul_tiles.plain_plans, start))
