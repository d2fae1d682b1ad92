"""What a device does in an order: streams, events and graphs of the stand-in for CuPy; and what it says of itself."""

import weakref

import numpy as np
import stand_in_device as device
from stand_in_device import Card, CUDARuntimeError


class Stream:
    """An order of work. What it has in flight is settled when somebody waits for it."""

    numbers = iter(range(1000, 1 << 30))

    def __init__(self, null=False, non_blocking=False, ptds=False, priority=None):
        self.ptr = 0 if null else next(self.numbers)
        self.is_non_blocking, self.priority, self.device_id = non_blocking, priority, 0
        self.captured = None
        self.flight = []

    def __enter__(self):
        device.card.streams.append(self)
        return self

    def __exit__(self, *_):
        device.card.streams.pop()

    def use(self):
        device.card.streams[-1] = self
        return self

    def do(self, work, *memory):
        """Do it now, or keep it for the graph."""
        if self.captured is None:
            work()
        else:
            self.captured.add(work, memory)

    def reading(self, given):
        """A copy reads this host memory: it may not change until then."""
        before = given.copy()

        def settle():
            if not np.array_equal(before, given):
                device.card.faults.append(
                    "host memory was written while a copy of it was in flight"
                )
                raise AssertionError(device.card.faults[-1])

        self.flight.append(settle)

    def arriving(self, to, values):
        """A copy writes this host memory: nobody can know it before."""
        to.view(np.uint8)[...] = 0xFF
        self.flight.append(lambda: to.__setitem__(..., values))

    def settle(self, count=None):
        count = len(self.flight) if count is None else min(count, len(self.flight))
        done, self.flight[:count] = self.flight[:count], []
        for work in done:
            work()

    @property
    def done(self):
        self.settle()
        return True

    def synchronize(self):
        device.card.note("reads", "Stream.synchronize")
        self.settle()

    def record(self, event=None):
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event):
        """Order between streams is that of the program here."""

    def launch_host_func(self, callback, arg):
        self.do(lambda: callback(arg))

    def is_capturing(self):
        return self.captured is not None

    def begin_capture(self, mode=None):
        if self.ptr == 0:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        self.captured = Graph._new()

    def end_capture(self):
        graph, self.captured = self.captured, None
        return graph


class Event:
    """A place in a stream's order."""

    def __init__(self, block=False, disable_timing=False, interprocess=False):
        self.stream, self.works = None, []

    def record(self, stream=None):
        self.stream = stream or device.card.stream
        self.works = list(self.stream.flight)

    @property
    def done(self):
        self._settle()
        return True

    def synchronize(self):
        device.card.note("waits", "Event.synchronize")
        self._settle()

    def _settle(self):
        if self.stream is not None:
            mine = [work for work in self.stream.flight if work in self.works]
            self.stream.settle(len(mine))


class Graph:
    """What a stream recorded. It keeps no memory: whose owner has gone is not its own any more."""

    def __init__(self, *_, **__):
        raise NotImplementedError("a graph is made by capturing a stream")

    @classmethod
    def _new(cls):
        graph = cls.__new__(cls)
        graph.works, graph.memory = [], {}
        return graph

    def add(self, work, memory):
        self.works.append(work)
        for each in memory:
            self.memory[id(each)] = (weakref.ref(each), weakref.ref(each.pool))

    def launch(self, stream=None):
        for memory, pool in self.memory.values():
            if memory() is None and (pool() is None or pool() is device.card.pool):
                raise AssertionError(
                    "a graph was launched that uses memory which is freed: keep its inputs, its results and its pool"
                )
        stream = stream or device.card.stream
        assert stream.captured is None, "a graph within a graph is not in the stand-in"
        for work in self.works:
            work()

    def upload(self, stream=None):
        """Nothing to do."""


class Device:
    """The only one."""

    id, mem_info = 0, property(lambda self: device.card.free)
    compute_capability = property(lambda self: str(device.card.capability))

    def __init__(self, device=None):
        assert device in (None, 0)

    def __int__(self):
        return 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def use(self):
        return self

    def synchronize(self):
        _synchronize("Device.synchronize")


def _synchronize(what="deviceSynchronize"):
    device.card.note("reads", what)
    for stream in {id(s): s for s in device.card.streams}.values():
        stream.settle()


RUNTIME = {
    "CUDARuntimeError": CUDARuntimeError,
    "deviceSynchronize": _synchronize,
    "driverGetVersion": lambda: 13000,
    "runtimeGetVersion": lambda: 13000,
    "getDevice": lambda: 0,
    "setDevice": lambda number: None,
    "getDeviceCount": lambda: 1,
    "getDeviceProperties": lambda number: {
        "name": b"no card at all", "multiProcessorCount": device.card.processors,
        "sharedMemPerBlockOptin": device.card.shared, "totalGlobalMem": device.card.free[1],
    },
    "memGetInfo": lambda: device.card.free,
    "streamIsCapturing": lambda stream: device.card.stream.captured is not None,
    "streamCaptureModeGlobal": 0,
    "streamCaptureModeThreadLocal": 1,
    "streamCaptureModeRelaxed": 2,
}  # fmt: skip


def get_elapsed_time(start, end):
    return 0.0


def new_card():
    """Another device, on which nothing has happened."""
    device.card = Card()
    Stream.null = Stream(null=True)
    device.card.streams = [Stream.null]
    return device.card


new_card()
