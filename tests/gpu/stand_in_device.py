"""The device of the stand-in for CuPy: what is counted, memory and its pools, and memory of the host that is pinned.

Work is done at once, in the order of the program, on host memory. What a real device does later, or on its own, is
checked instead: memory that is freed turns into NaN, a copy to the host arrives when somebody waits for it, and memory
that a copy still reads may not be written. While a stream captures, nothing is computed: what is recorded runs when its
graph is launched, on the same memory.
"""

import contextlib
import ctypes
import os
import sys
from collections import deque

import numpy as np

GUARD = 512
"""Bytes around every allocation that nobody may write to, and what its address is a multiple of."""


class CUDARuntimeError(RuntimeError):
    """As CuPy's."""


class OutOfMemoryError(MemoryError):
    """As CuPy's."""


class Card:
    """What happened, for tests to ask.

    Attributes:
        reads: every time the host waited for the device to read something, or waited for all of a stream.
        waits: every time the host waited for an event.
        uploads: every copy from host memory that is not pinned.
        launched: names of kernels of tinyplm, in order.
        faults: what is wrong and could not be raised where it was found.
        capability, processors, shared: compute capability, multiprocessors, and bytes of shared memory that a block can
            have; a small card, as what is tried is small.
        allowed: bytes of dynamic shared memory that kernels were allowed, by kernel.
    """

    def __init__(self):
        self.reads, self.waits, self.uploads = [], [], []
        self.launched, self.faults = [], []
        self.emulator = None
        self.capability, self.processors, self.shared = 80, 4, 163 * 1024
        self.allowed = {}
        self.pool = MemoryPool(most_freed=4096)
        self.allocators = [self.pool.malloc]
        self.streams = []
        self.pinned = {}
        self.free = (75 * 10**9, 80 * 10**9)

    @property
    def stream(self):
        return self.streams[-1]

    def note(self, kind, what):
        """Count it; a capture allows none of it."""
        if self.stream.captured is not None:
            raise CUDARuntimeError(
                f"cudaErrorStreamCaptureUnsupported: {what} while a stream captures"
            )
        getattr(self, kind).append(f"{what} at {_place()}")

    @contextlib.contextmanager
    def without(self, *kinds):
        """Nothing of these kinds may happen within; by default no read and no upload."""
        kinds = kinds or ("reads", "uploads")
        before = {kind: len(getattr(self, kind)) for kind in kinds}
        yield
        new = {kind: getattr(self, kind)[n:] for kind, n in before.items()}
        assert not any(new.values()), new

    def check(self):
        """Nothing was written outside of an array, or to one that was gone."""
        assert not self.faults, self.faults
        assert all((room == 0xFF).all() for room in self.pool.freed), "freed memory was written to"


def _place():
    frame, here = sys._getframe(1), os.path.dirname(__file__)
    while frame.f_code.co_filename.startswith(os.path.join(here, "stand_in")):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


class Memory:
    """One allocation, filled with NaN, with a guard on both sides; it is filled with NaN again when it is freed."""

    device_id = 0

    def __init__(self, size):
        self.size, self.pool = size, None
        self.room = np.full(size + 3 * GUARD, 0xFF, np.uint8)
        begin = GUARD + -self.room.ctypes.data % GUARD
        self.raw = self.room[begin : begin + size]
        self.ptr = self.room.ctypes.data + begin

    def __del__(self):
        if sys is None or sys.is_finalizing():  # the program ends
            return
        if self.pool is None:
            return
        self.pool.used -= self.size
        begin = self.ptr - self.room.ctypes.data
        if (self.room[:begin] != 0xFF).any() or (self.room[begin + self.size :] != 0xFF).any():
            card.faults.append(f"written around an allocation of {self.size} bytes")
        self.raw[...] = 0xFF
        self.pool.freed.append(self.room)


class MemoryPointer:
    """A place in an allocation."""

    device_id = 0

    def __init__(self, mem, offset):
        self.mem, self.offset = mem, offset
        self.ptr = mem.ptr + offset

    def __int__(self):
        return self.ptr

    def __add__(self, offset):
        return MemoryPointer(self.mem, self.offset + offset)

    def __sub__(self, offset):
        return self + -offset

    def bytes(self, size):
        return self.mem.raw[self.offset : self.offset + size]

    def copy_from_device_async(self, src, size, stream=None):
        to, given = self.bytes(size), src.bytes(size)
        (stream or card.stream).do(lambda: to.__setitem__(..., given), self.mem, src.mem)

    def copy_from_host_async(self, mem, size, stream=None):
        stream = stream or card.stream
        if stream.captured is not None:
            raise RuntimeError("the current stream is capturing, so H2D transfers are disallowed")
        given = _host(mem, size)
        self.bytes(size)[...] = given
        if is_memory_pinned(mem):
            stream.reading(given)
        else:
            card.note("uploads", "copy_from_host_async")

    def copy_to_host_async(self, mem, size, stream=None):
        stream = stream or card.stream
        if stream.captured is not None:
            raise RuntimeError("the current stream is capturing, so D2H transfers are disallowed")
        stream.arriving(_host(mem, size), self.bytes(size).copy())

    def copy_from_host(self, mem, size):
        card.note("reads", "copy_from_host")
        self.bytes(size)[...] = _host(mem, size)

    def copy_to_host(self, mem, size):
        card.note("reads", "copy_to_host")
        _host(mem, size)[...] = self.bytes(size)

    def memset_async(self, value, size, stream=None):
        to = self.bytes(size)
        (stream or card.stream).do(lambda: to.fill(value), self.mem)


def _host(mem, size):
    address = mem if isinstance(mem, int) else mem.value
    return np.frombuffer((ctypes.c_ubyte * size).from_address(address), np.uint8)


class MemoryPool:
    """Counts what is in use. What is freed stays the pool's, as addresses of it may be in a table or a graph.

    It is not given to others. In the default pool, which gives it to anybody, it may not be written to any more.
    """

    def __init__(self, allocator=None, most_freed=None):
        self.allocator = allocator or (lambda size: MemoryPointer(Memory(size), 0))
        self.used = self.most = self.limit = 0
        self.freed = deque(maxlen=most_freed)

    def malloc(self, size):
        if self.limit and self.used + size > self.limit:
            raise OutOfMemoryError(f"Out of memory allocating {size} bytes ({self.used} in use)")
        pointer = self.allocator(size)
        pointer.mem.pool = self
        self.used += size
        self.most = max(self.most, self.used)
        return pointer

    def used_bytes(self):
        return self.used

    def total_bytes(self):
        return self.most

    def free_bytes(self):
        return self.most - self.used

    def n_free_blocks(self):
        return int(self.most > self.used)

    def free_all_blocks(self, stream=None):
        self.most = self.used

    def set_limit(self, size=None, fraction=None):
        self.limit = int(fraction * card.free[1]) if size is None else size

    def get_limit(self):
        return self.limit


def alloc(size):
    """Memory of the allocator in use, which must be a pool of its own while a stream captures."""
    if card.stream.captured is not None and len(card.allocators) == 1:
        raise CUDARuntimeError(
            "memory of the default pool was taken while a stream captures: what is freed there is given to others, "
            "who would share it with the graph. Capture with cupy.cuda.using_allocator(pool.malloc)."
        )
    return card.allocators[-1](size)


@contextlib.contextmanager
def using_allocator(allocator=None):
    card.allocators.append(allocator)
    try:
        yield
    finally:
        card.allocators.pop()


def set_allocator(allocator=None):
    card.allocators[1:] = [allocator] if allocator else []


class PinnedMemoryPointer(bytearray):
    """Host memory that a device can copy from by itself; a buffer, as CuPy's is."""

    @property
    def ptr(self):
        return ctypes.addressof(ctypes.c_ubyte.from_buffer(self))

    def size(self):
        return len(self)

    def __del__(self):
        card.pinned.pop(self.ptr, None)


def alloc_pinned_memory(size):
    memory = PinnedMemoryPointer(b"\xff" * max(size, 1))
    card.pinned[memory.ptr] = len(memory)
    return memory


def is_memory_pinned(address):
    return any(begin <= address < begin + size for begin, size in card.pinned.items())


def empty_pinned(shape, dtype=float, order="C"):
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    return np.ndarray(shape, dtype, buffer=alloc_pinned_memory(size), order=order)


def zeros_pinned(shape, dtype=float, order="C"):
    made = empty_pinned(shape, dtype, order)
    made[...] = 0
    return made


card = Card()
"""The device in use; `stand_in_streams.new_card` makes another."""
