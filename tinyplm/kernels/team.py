"""The team of threads as compiled code sees it: one job at a time, split in parts that anybody may claim.

Imports Numba, so it is itself imported where kernels are built, and nowhere else. A job is the address of a function
and of its arguments, so that a thread of the team needs neither Python nor its lock to do a part. What belongs to a
job is published by one word that holds its number, its parts and the next part to claim. Claiming is a compare and
swap of that word: it fails when the job has changed meanwhile, so whatever was read before it belongs to the job.
"""

from typing import Any

import numba
import numpy as np
from llvmlite import binding, ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload, register_jitable

from .compiled import (
    OPTIONS,
    _exp32,
    _exp64,
    address,
    array_at,
    cut,
    exp32,
    exp32_below,
    exp32_within,
    exp64,
    exp64_below,
    exp64_within,
    exponential,
    exponential_below,
    exponential_within,
    gemm,
    largest,
    largest32,
    largest64,
    plus,
)
from .dropout import kept, mixed, random32
from .threads import (
    ARGUMENTS,
    BUSY,
    CALL,
    COUNT_THREADS,
    DGEMM,
    DONE,
    HALF_GEMM,
    NEXT,
    SET_THREADS,
    SGEMM,
    TOTAL,
)

_features = binding.get_host_cpu_features()
if _features.get("avx512f") and numba.config.CPU_FEATURES is None:
    # LLVM avoids the widest vectors, whose use once slowed the clock; loops of arithmetic gain by half with them. Numba
    # reads this at its first compilation.
    numba.config.CPU_FEATURES = _features.flatten() + ",-prefer-256-bit"

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_JOB = (types.int64, types.int64, types.int64, types.int64)  # arguments, part, start, stop

ANY_ORDER = OPTIONS | {"fastmath": {"contract", "reassoc", "nsz"}}
"""For sums alone: elsewhere the order that is written is meant, such as in arithmetic in two parts."""

compiled = njit(nogil=True, cache=True, **OPTIONS)


def _word(context: Any, builder: Any, signature: Any, values: Any) -> Any:
    """Address of one word of the team's array, the first two arguments of what is being compiled."""
    array = context.make_array(signature.args[0])(context, builder, values[0])
    return builder.gep(array.data, [values[1]])


@intrinsic
def load(typing: Any, team: Any, word: Any) -> Any:
    """Read a word; nothing that follows is done before."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.load_atomic(_word(context, builder, signature, values), "acquire", 8)

    return types.int64(team, types.int64), code


@intrinsic
def store(typing: Any, team: Any, word: Any, value: Any) -> Any:
    """Write a word; everything before is done by then."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        place = _word(context, builder, signature, values)
        builder.store_atomic(values[2], place, "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(team, types.int64, types.int64), code


@intrinsic
def add(typing: Any, team: Any, word: Any, value: Any) -> Any:
    """Add to a word, in one step for all threads."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        place = _word(context, builder, signature, values)
        return builder.atomic_rmw("add", place, values[2], "seq_cst")

    return types.int64(team, types.int64, types.int64), code


@intrinsic
def swap(typing: Any, team: Any, word: Any, old: Any, new: Any) -> Any:
    """Replace a word if it still is what it was; whether it was."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        place = _word(context, builder, signature, values)
        pair = builder.cmpxchg(place, values[2], values[3], "seq_cst", "seq_cst")
        return builder.extract_value(pair, 1)

    return types.boolean(team, types.int64, types.int64, types.int64), code


@intrinsic
def rest(typing: Any) -> Any:
    """Tell the processor that we are waiting, where it can be told."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        if builder.module.triple.startswith(("x86_64", "i686")):
            nothing = ir.FunctionType(ir.VoidType(), [])
            name = "llvm.x86.sse2.pause"
            builder.call(cgutils.get_or_insert_function(builder.module, nothing, name), [])
        return context.get_dummy_value()

    return types.void(), code


@intrinsic
def packed(typing: Any, body: Any, team: Any, arguments: Any) -> Any:
    """Addresses of a function that does a part of a body, and of the arguments it will find there."""
    inner = body.get_call_type(
        typing, (team, types.int64, types.int64, types.int64, *arguments), {}
    )

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kept = ir.LiteralStructType([values[1].type, values[2].type])
        slot = cgutils.alloca_once(builder, kept)
        builder.store(values[1], builder.gep(slot, [_I32(0), _I32(0)]))
        builder.store(values[2], builder.gep(slot, [_I32(0), _I32(1)]))
        module = builder.module
        function = ir.Function(
            module,
            context.call_conv.get_function_type(types.none, _JOB),
            module.get_unique_name("part"),
        )
        function.linkage = "internal"
        inside = ir.IRBuilder(function.append_basic_block())
        place, part, start, stop = context.call_conv.decode_arguments(inside, _JOB, function)
        found = inside.load(inside.inttoptr(place, slot.type))
        given = inside.extract_value(found, 1)
        context.get_function(body, inner)(
            inside,
            [
                inside.extract_value(found, 0),
                *(part, start, stop),
                *(inside.extract_value(given, i) for i in range(len(arguments))),
            ],
        )
        context.call_conv.return_value(inside, context.get_constant_null(types.none))
        addresses = [builder.ptrtoint(function, _I64), builder.ptrtoint(slot, _I64)]
        return context.make_tuple(builder, signature.return_type, addresses)

    return types.UniTuple(types.int64, 2)(body, team, arguments), code


@intrinsic
def do_part(typing: Any, address: Any, arguments: Any, part: Any, start: Any, stop: Any) -> Any:
    """Call what `packed` made."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = context.call_conv.get_function_type(types.none, _JOB)
        function = builder.inttoptr(values[0], kind.as_pointer())
        context.call_conv.call_function(builder, function, types.none, _JOB, values[1:])
        return context.get_dummy_value()

    return types.void(types.int64, *_JOB), code


@intrinsic
def set_threads(typing: Any, address: Any, count: Any) -> Any:
    """Tell BLAS how many threads to use."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_I32])
        count = builder.trunc(values[1], _I32)
        builder.call(builder.inttoptr(values[0], kind.as_pointer()), [count])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), code


@intrinsic
def count_threads(typing: Any, address: Any) -> Any:
    """Ask BLAS how many threads it uses."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        address = builder.inttoptr(values[0], ir.FunctionType(_I32, []).as_pointer())
        return builder.sext(builder.call(address, []), _I64)

    return types.int64(types.int64), code


@compiled
def claim(team):
    """Do a part of the present job, if one is left; whether one was."""
    word = load(team, NEXT)
    parts, part = (word >> 16) & 0xFFFF, word & 0xFFFF
    if part >= parts:
        return False
    call, arguments, total = load(team, CALL), load(team, ARGUMENTS), load(team, TOTAL)
    if swap(team, NEXT, word, word + 1):
        do_part(call, arguments, part, total * part // parts, total * (part + 1) // parts)
        add(team, DONE, 1)
    return True


@compiled
def serve(team, patience):
    """Do parts of any job until there has been none for so many looks.

    While a job is under way its end is near, and the next job may follow: such looks hardly count.
    """
    idle = 0
    while idle < patience * 64:
        if claim(team):
            idle = 0
        else:
            rest()
            idle += 1 if load(team, BUSY) else 64


@compiled
def do_job(team, call, place, total, parts):
    """Do all parts of the items 0 to total, with whoever is awake; call and place are what `packed` returned.

    When the team is at work for another thread, the caller does the same parts alone.
    """
    if not swap(team, BUSY, 0, 1):
        for part in range(parts):
            do_part(call, place, part, total * part // parts, total * (part + 1) // parts)
        return
    blas_threads = count_threads(team[COUNT_THREADS]) if team[COUNT_THREADS] else 1
    if blas_threads > 1:
        set_threads(team[SET_THREADS], 1)
    if parts < 2:
        do_part(call, place, 0, 0, total)
    else:
        store(team, DONE, 0)
        store(team, CALL, call)
        store(team, ARGUMENTS, place)
        store(team, TOTAL, total)
        number = (load(team, NEXT) >> 32) + 1
        store(team, NEXT, ((number & 0x7FFFFFFF) << 32) | (parts << 16))
        while claim(team):
            pass
        while load(team, DONE) < parts:
            rest()
    if blas_threads > 1:
        set_threads(team[SET_THREADS], blas_threads)
    store(team, BUSY, 0)


@overload(gemm, jit_options=OPTIONS, strict=False)
def _gemm(
    team: Any, like: Any, turn_a: Any, turn_b: Any, m: Any, n: Any, k: Any, times: Any,
    a: Any, step_a: Any, b: Any, step_b: Any, keep: Any, y: Any, step_y: Any,
) -> Any:  # fmt: skip
    kind = np.float64 if like.dtype == types.float64 else np.float32
    word = {types.float32: SGEMM, types.float64: DGEMM, types.uint16: HALF_GEMM}[like.dtype]

    def call(team, like, turn_a, turn_b, m, n, k, times, a, step_a, b, step_b, keep, y, step_y):
        turns = 112 if turn_a else 111, 112 if turn_b else 111
        _blas(
            team[word], turns[0], turns[1], m, n, k, kind(times), a, step_a, b, step_b,
            kind(keep), y, step_y,
        )  # fmt: skip

    return call


@intrinsic
def _blas(
    typing: Any, blas: Any, turn_a: Any, turn_b: Any, m: Any, n: Any, k: Any, one: Any,
    a: Any, step_a: Any, b: Any, step_b: Any, keep: Any, y: Any, step_y: Any,
) -> Any:  # fmt: skip
    """Call the C interface of a BLAS with 64-bit integers at this address."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kinds = [_I32, _I32, _I32, *(value.type for value in values[3:])]
        turns = [builder.trunc(value, _I32) for value in values[1:3]]
        address = builder.inttoptr(values[0], ir.FunctionType(ir.VoidType(), kinds).as_pointer())
        builder.call(address, [_I32(101), *turns, *values[3:]])  # 101: row-major
        return context.get_dummy_value()

    i = types.int64
    return types.void(i, i, i, i, i, i, one, i, i, i, i, one, i, i), code


@overload(exponential, jit_options=OPTIONS, strict=False)
def _exponential(x: Any) -> Any:
    return exp32 if x == types.float32 else exp64


@overload(exponential_below, jit_options=OPTIONS, strict=False)
def _exponential_below(x: Any) -> Any:
    return exp32_below if x == types.float32 else exp64_below


@overload(exponential_within, jit_options=OPTIONS, strict=False)
def _exponential_within(x: Any) -> Any:
    return exp32_within if x == types.float32 else exp64_within


@overload(largest, jit_options=OPTIONS, strict=False)
def _largest(values: Any) -> Any:
    return largest32 if values.dtype == types.float32 else largest64


_HELPERS = (_exp32, exp32, exp32_below, exp32_within, _exp64, exp64, exp64_below, exp64_within)
for _helper in (cut, largest32, largest64, *_HELPERS):
    register_jitable(forceinline=True, **OPTIONS)(_helper)
register_jitable(forceinline=True, **ANY_ORDER)(plus)


class _Word:
    """A value of 32 bits in the code that is being made, with the operators that a mixer needs."""

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value

    def _with(self, make: Any, other: Any) -> "_Word":
        return _Word(self.builder, make(self.value, getattr(other, "value", _I32(other))))

    def __add__(self, other: Any) -> "_Word":
        return self._with(self.builder.add, other)

    def __mul__(self, other: int) -> "_Word":
        return self._with(self.builder.mul, other)

    def __and__(self, other: int) -> "_Word":
        return self._with(self.builder.and_, other)

    def __xor__(self, other: Any) -> "_Word":
        return self._with(self.builder.xor, other)

    def __rshift__(self, other: int) -> "_Word":
        return self._with(self.builder.lshr, other)


def _drawn(builder: Any, seed: Any, index: Any) -> Any:
    """The code of random32: left to itself, LLVM would multiply 64 bits, which takes three times as long."""
    halves = (h for v in (seed, index) for h in (v, builder.lshr(v, _I64(32))))
    return mixed(*(_Word(builder, builder.trunc(h, _I32)) for h in halves)).value


@intrinsic
def _random32(typing: Any, seed: Any, index: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return _drawn(builder, *values)

    return types.uint32(types.int64, types.int64), code


@intrinsic
def _kept(typing: Any, seed: Any, index: Any, threshold: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        least = builder.trunc(values[2], _I32)
        return builder.icmp_unsigned(">=", _drawn(builder, *values[:2]), least)

    return types.boolean(types.int64, types.int64, types.int64), code


@overload(random32, jit_options=OPTIONS, strict=False)
def _random32_of(seed: Any, index: Any) -> Any:
    return lambda seed, index: _random32(seed, index)


@overload(kept, jit_options=OPTIONS, strict=False)
def _kept_of(seed: Any, index: Any, threshold: Any) -> Any:
    return lambda seed, index, threshold: _kept(seed, index, threshold)


@intrinsic
def _pointer(typing: Any, address: Any, like: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], context.get_value_type(signature.return_type))

    return types.CPointer(like.dtype)(types.int64, like), code


@overload(array_at, jit_options=OPTIONS, strict=False)
def _array_at(address: Any, size: Any, like: Any) -> Any:
    return lambda address, size, like: carray(_pointer(address, like), size)


@intrinsic
def _address(typing: Any, a: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, values[0])
        return builder.ptrtoint(array.data, _I64)

    return types.int64(a), code


@overload(address, jit_options=OPTIONS, strict=False)
def _address_of(a: Any) -> Any:
    return lambda a: _address(a)
