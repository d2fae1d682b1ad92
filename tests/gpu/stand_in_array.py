"""The arrays of the stand-in for CuPy, and how its functions compute: by NumPy, on the same memory.

A result that shares memory with an argument is a view of it; any other gets memory of its own, in row-major order, as
CuPy's results do. Python's numbers and NumPy's scalars may be mixed with arrays; arrays of NumPy may not.
"""

import numpy as np
import stand_in_device as device
import stand_in_streams as streams
from stand_in_device import MemoryPointer

HALVES = ("float16", "bfloat16")
SCALARS = (bool, int, float, complex, np.generic)


class Flags:
    """As CuPy's: three of NumPy's, to be read."""

    def __init__(self, array):
        flags = array._raw.flags
        self.c_contiguous, self.f_contiguous = flags.c_contiguous, flags.f_contiguous
        self.owndata = array.base is None
        self.fnc, self.forc = flags.fnc, flags.forc

    def __getitem__(self, name):
        return getattr(self, name.lower())


class ndarray:  # noqa: N801 - CuPy's name
    """An array on the device that is not there."""

    __slots__ = ("__weakref__", "_memory", "_raw", "base")
    __array_priority__ = 100
    __hash__ = None

    def __init__(self, shape, dtype=float, memptr=None, strides=None, order="C"):
        shape = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
        kind, self.base = supported(dtype), None
        size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        memptr = device.alloc(size) if memptr is None else memptr
        self._memory = memptr.mem
        self._raw = np.ndarray(shape, kind, memptr.mem.raw, memptr.offset, strides, order or "C")

    @classmethod
    def _view(cls, raw, of):
        made = cls.__new__(cls)
        made._raw, made._memory, made.base = raw, of._memory, of if of.base is None else of.base
        return made

    shape = property(lambda self: self._raw.shape)
    dtype = property(lambda self: self._raw.dtype)
    ndim = property(lambda self: self._raw.ndim)
    size = property(lambda self: self._raw.size)
    strides = property(lambda self: self._raw.strides)
    itemsize = property(lambda self: self._raw.itemsize)
    nbytes = property(lambda self: self._raw.nbytes)
    flags = property(Flags)
    device = property(lambda self: streams.Device(0))
    T = property(lambda self: self.transpose())
    mT = property(lambda self: self.swapaxes(-1, -2))  # noqa: N815 - CuPy's name
    real = property(lambda self: self)

    @property
    def data(self):
        return MemoryPointer(self._memory, self._raw.ctypes.data - self._memory.ptr)

    @property
    def __cuda_array_interface__(self):
        given = self._raw.__array_interface__
        return {**given, "version": 3, "stream": 1}

    @shape.setter
    def shape(self, shape):
        self._raw.shape = shape

    # What the host learns

    def get(self, stream=None, order="C", out=None, blocking=True):
        stream = stream or device.card.stream
        if out is not None and (out.shape, out.dtype) != (self.shape, self.dtype):
            raise ValueError("Shape or dtype mismatch")
        made = np.empty(self.shape, self.dtype, order.replace("A", "K")) if out is None else out
        if not self.size:
            return made
        if blocking:
            device.card.note("reads", "get")
            stream.settle()
            made[...] = self._raw
        elif device.is_memory_pinned(made.ctypes.data):
            stream.arriving(made, self._raw.copy())
        else:
            device.card.note("reads", "get into memory that is not pinned")
            made[...] = self._raw
        return made

    def item(self):
        if self.size != 1:
            raise ValueError("can only convert an array of size 1 to a Python scalar")
        return self.get().item()

    def __bool__(self):
        if self.size != 1:
            raise ValueError("The truth value of an array with more than one element is ambiguous.")
        return bool(self.get())

    def tolist(self):
        return self.get().tolist()

    def tobytes(self, order="C"):
        return self.get().tobytes(order)

    def __int__(self):
        return int(self.get())

    def __float__(self):
        return float(self.get())

    def __repr__(self):
        return repr(self.get())

    def __str__(self):
        return str(self.get())

    def __format__(self, spec):
        return format(self.get(), spec)

    def __reduce__(self):
        return array, (self.get(),)

    def __array__(self, dtype=None, copy=None):
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array "
            "explicitly."
        )

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        function = UFUNCS.get(ufunc.__name__)
        if function is None or any(
            not isinstance(x, (*SCALARS, ndarray, np.ndarray)) for x in inputs
        ):
            return NotImplemented
        if "out" in options:
            (options["out"],) = options["out"]
        return (function if method == "__call__" else getattr(function, method))(*inputs, **options)

    def __array_function__(self, function, types, arguments, options):
        mine = FUNCTIONS.get(function.__name__) if "." not in function.__module__ else None
        return NotImplemented if mine is None else mine(*arguments, **options)

    # What the host sends

    def set(self, arr, stream=None):
        if not isinstance(arr, np.ndarray) or (arr.shape, arr.dtype) != (self.shape, self.dtype):
            raise TypeError("only an array of NumPy of the same shape and dtype can be set")
        if not self.flags.c_contiguous:
            raise RuntimeError("Cannot set to non-contiguous array")
        given = np.ascontiguousarray(arr)
        self.data.copy_from_host_async(given.ctypes.data, given.nbytes, stream)

    # Indexing

    def __len__(self):
        return len(self._raw)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key):
        look, arrays = _index(key)
        return compute(lambda x, *at: x[look(x, at)], self, *arrays)

    def __setitem__(self, key, value):
        look, arrays = _index(key)
        if isinstance(value, np.ndarray) and arrays:
            value = array(value)
        elif not isinstance(value, (*SCALARS, ndarray)):
            raise TypeError(f"Unsupported type {type(value)}")

        def write(x, value, *at):
            x[look(x, at)] = value

        compute(write, self, value, *arrays)

    # Methods that NumPy has under the same name and with more parameters

    def astype(self, dtype, order="K", casting=None, subok=None, copy=True):
        if not copy and self.dtype == dtype:
            return self
        kind = supported(dtype)
        return compute(lambda x: x.astype(kind, order), self, keep=True)

    def copy(self, order="C"):
        return compute(lambda x: x.copy(order), self, keep=True)

    def __copy__(self):
        return self.copy()

    def __deepcopy__(self, memo):
        return self.copy()

    def view(self, dtype=None, type=None):
        return ndarray._view(self._raw.view() if dtype is None else self._raw.view(dtype), self)

    def fill(self, value):
        if isinstance(value, np.ndarray) and value.ndim:
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        compute(lambda x: x.fill(value), self)

    def reshape(self, *shape, order="C", copy=None):
        return compute(lambda x: x.reshape(*shape, order=order), self)

    def dot(self, b, out=None):
        return FUNCTIONS["dot"](self, b, out)

    def __matmul__(self, other):
        return FUNCTIONS["matmul"](self, other)


def _index(key):
    """How to index with a key, and the arrays in it. Numbers beyond an axis come round, as CuPy's do."""
    parts = key if isinstance(key, tuple) else (key,)
    arrays, places, found = [], [], []
    for part in parts:
        if isinstance(part, list | np.ndarray | np.bool_ | bool):
            part = np.asarray(part)
            part = array(part.astype(int) if part.size == 0 else part)
        if isinstance(part, ndarray):
            if part.dtype == bool:
                device.card.note("reads", "an index of truth values")
            elif part.dtype.kind not in "iu":
                raise IndexError(
                    f"arrays used as indices must be of integer or boolean type ({part.dtype})"
                )
            places.append(len(found))
            arrays.append(part)
        elif isinstance(part, tuple):
            raise NotImplementedError("a tuple within an index is not in the stand-in")
        found.append(part)

    def look(x, given):
        whole, given = list(found), iter(given)
        taken = sum(
            p.ndim if isinstance(p, ndarray) and p.dtype == bool else p is not None for p in whole
        )
        axis = 0
        for i, part in enumerate(found):
            if part is Ellipsis:
                axis += x.ndim - taken + 1
                continue
            if i in places:
                at = next(given)
                whole[i] = at if at.dtype == bool else at % max(x.shape[axis], 1)
                axis += at.ndim - 1 if at.dtype == bool else 0
            axis += part is not None
        # With an ellipsis a single value is a view and not a number.
        return tuple(whole) if arrays or any(p is Ellipsis for p in whole) else (*whole, ...)

    return look, arrays


def supported(dtype):
    """The dtype, if a device has it."""
    kind = np.dtype(dtype)
    if kind.hasobject or kind.char in "gGSUMm" or kind.byteorder == ">":
        raise ValueError(f"Unsupported dtype {kind}")
    return kind


def raw(x):
    """The memory behind an argument, within lists too; arrays of NumPy are refused."""
    if isinstance(x, ndarray):
        return x._raw
    if isinstance(x, np.ndarray):
        raise TypeError(f"Unsupported type {type(x)}")
    if isinstance(x, list | tuple):
        return type(x)(map(raw, x)) if not hasattr(x, "_fields") else x
    return x


def inside(x):
    """The arrays of the stand-in within an argument."""
    if isinstance(x, ndarray):
        yield x
    elif isinstance(x, list | tuple):
        for each in x:
            yield from inside(each)


def compute(function, *arguments, keep=False, **options):
    """What a function of NumPy makes of the memory behind the arguments, or leaves there; recorded in a capture."""
    given = [raw(a) for a in arguments]
    named = {name: raw(a) for name, a in options.items()}
    arrays = [*inside(arguments), *inside(tuple(options.values()))]
    stream = device.card.stream
    if stream.captured is None:
        with np.errstate(all="ignore"):
            return _wrapped(function(*given, **named), arrays, keep)
    memory = {id(a._memory): a._memory.raw for a in arrays}
    before = [(room, room.copy()) for room in memory.values()]
    with np.errstate(all="ignore"):
        result = _wrapped(function(*given, **named), arrays, keep)
    for to, values in before:
        to[...] = values
    new = [a for a in inside(result) if a.base is None and all(a is not b for b in arrays)]
    for a in new:
        a._memory.raw[...] = 0xFF
    places = [r._raw if any(r is a for a in new) else None for r in _each(result)]

    def again():
        with np.errstate(all="ignore"):
            found = function(*given, **named)
        for place, value in zip(places, _each(found), strict=True):
            if place is not None:
                place[...] = value

    stream.captured.add(again, [a._memory for a in (*arrays, *new)])
    return result


def _each(result):
    return result if isinstance(result, list | tuple) else (result,)


def _wrapped(result, arrays, keep):
    if isinstance(result, list | tuple):
        return type(result)(_wrapped(r, arrays, keep) for r in result)
    if isinstance(result, np.generic):
        result = np.asarray(result)
    if not isinstance(result, np.ndarray):
        return result
    for a in arrays:
        if result is a._raw:
            return a
        if np.may_share_memory(result, a._raw):
            return ndarray._view(result, a)
    order = "F" if keep and result.flags.fnc else "C"
    made = ndarray(result.shape, result.dtype, order=order)
    made._raw[...] = result
    return made


def array(obj, dtype=None, copy=True, order="K", subok=False, ndmin=0, *, blocking=False):
    """An array on the device: of one there, of host memory, or of numbers."""
    order = "K" if order is None else order
    if isinstance(obj, ndarray):
        kind = obj.dtype if dtype is None else supported(dtype)
        same = kind == obj.dtype and (order in "KA" or obj.flags[f"{order}_contiguous"])
        if not copy and same:
            return obj
        return compute(lambda x: x.astype(kind, order), obj, keep=True)
    if isinstance(obj, list | tuple) and any(True for _ in inside(obj)):
        return compute(lambda x: np.array(x, dtype), list(obj))
    given = np.array(obj, dtype, ndmin=ndmin)
    made = ndarray(
        given.shape, given.dtype, order="F" if order in "KA" and given.flags.fnc else "C"
    )
    if given.ndim == 0:
        compute(lambda x: x.fill(given[()]), made)
        return made
    if device.card.stream.captured is not None:
        raise RuntimeError("the current stream is capturing, so H2D transfers are disallowed")
    if isinstance(obj, np.ndarray) and device.is_memory_pinned(obj.ctypes.data):
        device.card.stream.reading(obj)
    elif made.size:
        device.card.note("uploads", "array")
    made._raw[...] = given
    return made


UFUNCS, FUNCTIONS = {}, {}
"""What the module offers; filled by `stand_in`."""


def _binary(name, symbol):
    ufunc = symbol.strip("_")

    def forward(self, other):
        if getattr(other, "__array_ufunc__", 1) is None or not isinstance(
            other, (*SCALARS, ndarray, np.ndarray)
        ):
            return NotImplemented
        return UFUNCS[name](self, other)

    def backward(self, other):
        return UFUNCS[name](other, self)

    def in_place(self, other):
        return UFUNCS[name](self, other, self)

    setattr(ndarray, f"__{ufunc}__", forward)
    setattr(ndarray, f"__r{ufunc}__", backward)
    setattr(ndarray, f"__i{ufunc}__", in_place)


for _name, _symbol in {
    "add": "add", "subtract": "sub", "multiply": "mul", "true_divide": "truediv", "power": "pow",
    "floor_divide": "floordiv", "remainder": "mod", "left_shift": "lshift", "right_shift": "rshift",
    "bitwise_and": "and", "bitwise_or": "or", "bitwise_xor": "xor", "less": "lt", "less_equal": "le",
    "greater": "gt", "greater_equal": "ge", "equal": "eq", "not_equal": "ne",
}.items():  # fmt: skip
    _binary(_name, _symbol)
for _name, _symbol in {
    "negative": "neg",
    "positive": "pos",
    "absolute": "abs",
    "invert": "invert",
}.items():
    setattr(ndarray, f"__{_symbol}__", lambda self, name=_name: UFUNCS[name](self))
