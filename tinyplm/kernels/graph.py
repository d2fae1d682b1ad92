"""A device that is never waited for: arrays sent ahead, numbers read late, and work that is recorded and repeated.

Work is put on a stream of its own and done there in order, while the host is already ahead. What it reads from the host
goes through pinned memory on a second stream; what the host wants to know is on its way to pinned memory when the next
work begins. A graph is such work, recorded once: one launch repeats all of it, on the same memory.
"""

import contextlib
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..backend import library
from ..types import Array
from .dropout import SEEDS

APART = 256
"""What the places of arrays in a common piece of memory are multiples of."""


class Layout:
    """Where arrays lie, one behind the other, in one piece of memory.

    Args:
        groups: arrays of the host by name.

    Attributes:
        size: bytes of all together.
    """

    def __init__(self, groups: Sequence[Mapping[str, Array]]) -> None:
        self._places: list[dict[str, tuple[int, Array]]] = []
        self.size = 0
        for group in groups:
            self._places.append({})
            for name, array in group.items():
                self._places[-1][name] = self.size, array
                self.size += -(-array.nbytes // APART) * APART

    def views(self, memory: Array) -> list[dict[str, Array]]:
        """The arrays in this memory, which is of bytes."""
        return [
            {
                name: memory[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
                for name, (start, a) in group.items()
            }
            for group in self._places
        ]

    def fill(self, memory: Array) -> None:
        """Put the arrays there."""
        for views, group in zip(self.views(memory), self._places, strict=True):
            for name, (_, array) in group.items():
                views[name][...] = array


class Worker:
    """A stream of work and what goes with it. Within `working` all that is launched is on that stream."""

    def __init__(self) -> None:
        self._cupy: Any = library("cuda")
        self._stream = self._cupy.cuda.Stream(non_blocking=True)
        self._sending = self._cupy.cuda.Stream(non_blocking=True)
        self._slots = [_Slot(self._cupy), _Slot(self._cupy)]
        self._before, self._after = _event(self._cupy), _event(self._cupy)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Behind what was launched before, and before what is launched afterwards."""
        outer = self._cupy.cuda.get_current_stream()
        self._stream.wait_event(outer.record(self._before))
        try:
            with self._stream:
                yield
        finally:
            outer.wait_event(self._stream.record(self._after))

    def send(self, groups: Sequence[Mapping[str, Array]]) -> "Parcel":
        """Start copying arrays to the device. They may be read until the second send after this one."""
        layout = Layout(groups)
        slot = self._slots.pop(0)
        self._slots.append(slot)
        slot.free(layout.size)
        layout.fill(slot.pinned)
        with self._sending:
            self._sending.wait_event(slot.read)
            slot.memory.data.copy_from_host_async(slot.address, layout.size)
            self._sending.record(slot.sent)
        self._stream.wait_event(slot.sent)
        return Parcel(layout, slot.memory)

    def has_read(self) -> None:
        """All work that reads what was sent last has been launched."""
        self._stream.record(self._slots[-1].read)

    def bring(self, array: Array) -> "Late":
        """The values of a small array at this place of the work, which it may change afterwards."""
        return Late(self._cupy, array, self._stream)

    def recorded(self, work: Callable[[], None], pool: Any) -> Any:
        """A graph of the work, which is not done; `graph.launch()` does it."""
        with self.from_pool(pool), _nothing_collected():
            self._stream.begin_capture()
            try:
                work()
            except BaseException:
                with contextlib.suppress(Exception):  # it may have been ended by what went wrong
                    self._stream.end_capture()
                raise
            return self._stream.end_capture()

    def pool(self) -> Any:
        """Memory for a graph alone, as what it frees would be given to others who then shared it."""
        return self._cupy.cuda.MemoryPool(self._more)

    def _more(self, size: int) -> Any:
        """New memory for a pool.

        Where there is none, CuPy would give back what the pool has free and try again. While a graph is recorded there
        is no second try, as the graph uses that memory.
        """
        memory = self._cupy.cuda.memory
        try:
            return memory.MemoryPointer(memory.Memory(size), 0)
        except self._cupy.cuda.runtime.CUDARuntimeError as error:
            if not self._stream.is_capturing():
                raise
            raise memory.OutOfMemoryError(size, -1) from error

    def from_pool(self, pool: Any) -> Any:
        """Within this, new arrays lie in a pool."""
        return self._cupy.cuda.using_allocator(pool.malloc)

    def wait(self) -> None:
        """Until all of the work is done."""
        self._stream.synchronize()

    def give_back(self) -> None:
        """Give memory that no array has any more back to the device; this waits."""
        self.wait()
        self._cupy.get_default_memory_pool().free_all_blocks()

    def empty(self, size: int) -> Array:
        """So many bytes on the device."""
        return self._cupy.empty(size, np.uint8)


class Parcel:
    """Arrays on the device, together in one piece of memory."""

    def __init__(self, layout: Layout, memory: Array) -> None:
        self._layout, self._memory = layout, memory
        self.groups = layout.views(memory)

    def kept(self, worker: Worker) -> "Parcel":
        """A copy that stays where it is."""
        copy = Parcel(self._layout, worker.empty(self._layout.size))
        copy.take(self)
        return copy

    def take(self, other: "Parcel") -> None:
        """The values of another of the same layout."""
        self._memory.data.copy_from_device_async(other._memory.data, self._layout.size)  # type: ignore[attr-defined]


class _Slot:
    """Pinned memory, memory of the device, and when each can be written again."""

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self.sent, self.read = _event(cupy), _event(cupy)
        self.size = 0

    def free(self, size: int) -> None:
        """Wait until the host's memory was copied, two parcels ago; make room for so many bytes."""
        self.sent.synchronize()
        if size > self.size:
            self.read.synchronize()
            self.size = 1 << (size - 1).bit_length()  # batches that grow do not wait here each time
            self._pinned = self._cupy.cuda.alloc_pinned_memory(self.size)
            self.address = self._pinned.ptr
            self.pinned = np.frombuffer(self._pinned, np.uint8, self.size)
            self.memory = self._cupy.empty(self.size, np.uint8)
            # It may have been freed with work under way that the other stream does not wait for.
            self._cupy.cuda.get_current_stream().synchronize()


@contextlib.contextmanager
def _nothing_collected() -> Iterator[None]:
    """What is collected may wait for the device, which must not happen while work is recorded."""
    gc.collect()
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _event(cupy: Any) -> Any:
    return cupy.cuda.Event(disable_timing=True)


class Late:
    """Numbers on their way to the host."""

    def __init__(self, cupy: Any, array: Array, stream: Any) -> None:
        self._pinned = cupy.cuda.alloc_pinned_memory(array.nbytes)
        self._values = np.frombuffer(self._pinned, array.dtype, array.size)
        array.data.copy_to_host_async(self._pinned.ptr, array.nbytes, stream)  # type: ignore[attr-defined]
        self._there = stream.record(_event(cupy))

    @property
    def known(self) -> bool:
        """Whether they can be read without waiting."""
        return bool(self._there.done)

    def read(self) -> list[float]:
        """The numbers; waits for them."""
        self._there.synchronize()
        return self._values.tolist()


class Draws:
    """The seeds that work draws, counted, or those that it is to draw; nothing else can be drawn of given ones.

    Stands for a generator. `seeds` says how many were drawn, None if anything else was.
    """

    def __init__(self, rng: Any = None, given: Sequence[Any] = ()) -> None:
        self._rng, self._given = rng, iter(given)
        self.seeds: int | None = 0

    def integers(self, *arguments: Any, **options: Any) -> Any:
        """A seed, as the generator would draw it."""
        if arguments != (SEEDS,) or options:
            return self.__getattr__("integers")(*arguments, **options)
        if self.seeds is not None:
            self.seeds += 1
        if self._rng is not None:
            return self._rng.integers(SEEDS)
        seed = next(self._given, None)
        if seed is None:
            raise RuntimeError("this step draws more seeds than the same step did before")
        return seed

    def __getattr__(self, name: str) -> Any:
        if self._rng is None:
            raise AttributeError(f"only seeds can be drawn in a recorded step, not by {name}()")
        self.seeds = None
        return getattr(self._rng, name)
