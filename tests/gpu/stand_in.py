"""A module that stands for CuPy where there is no card: NumPy computes, and CuPy's rules are kept.

`install` puts it in the place of CuPy; tinyplm's own kernels go to the emulator where there is one. What it offers is
what CuPy 14 offers, by cupy_names.json; what CuPy has and this lacks raises NotImplementedError. `docs/gpu.md` says
what it cannot show.
"""

import functools
import sys
import types
from importlib.machinery import ModuleSpec

import cupy_names
import ml_dtypes
import numpy as np
import stand_in_array as arrays
import stand_in_device as device
import stand_in_streams as streams
from stand_in_array import FUNCTIONS, HALVES, SCALARS, UFUNCS, array, compute, inside, ndarray

NAMES = cupy_names.kept()
HOST = {
    *("broadcast_shapes", "can_cast", "dtype", "finfo", "iinfo", "isdtype", "isscalar", "issubdtype", "iterable"),
    *("may_share_memory", "min_scalar_type", "ndim", "promote_types", "result_type", "shape", "shares_memory", "size"),
}  # fmt: skip
"""Functions that ask about arrays and read nothing."""
PRODUCTS = {"matmul", "dot", "inner", "vdot", "tensordot"}
"""What cuBLAS computes, which cannot be captured."""
JOINING = {"concatenate", "stack", "vstack", "hstack", "dstack", "column_stack"}
"""Functions that send a table of addresses up where they get more than eight arrays."""
READING = {
    *("argwhere", "bincount", "compress", "count_nonzero", "extract", "flatnonzero", "histogram", "nonzero"),
    *("intersect1d", "setdiff1d", "union1d", "unique"),
}  # fmt: skip
"""Functions that wait for the device, as a shape depends on values."""
SORTING = {"argpartition", "argsort", "lexsort", "msort", "partition", "sort"}
"""Functions that cannot be captured."""
REDUCTIONS = {"all", "any", "max", "mean", "min", "prod", "std", "sum", "var", "cumsum", "cumprod"}
KEEPING = {"empty_like", "zeros_like", "ones_like", "full_like", "copy"}
"""Functions whose results lie in memory as their argument does."""
_WHOLE = ("int32", "uint32")
_ADDED = (*_WHOLE, "int64", "uint64", "float32", "float64")
SCATTERED = {
    "add": (*_ADDED, "float16"), "subtract": _WHOLE, "maximum": _ADDED, "minimum": _ADDED,
}  # fmt: skip
"""What `at` of a function takes."""


class Ufunc:
    """A function of single values."""

    def __init__(self, name):
        self.__name__, self.name = name, f"cupy_{name}"
        self._numpy, self._bfloat16 = getattr(np, name), bool(NAMES["ufuncs"][name])
        self.nin, self.nout = self._numpy.nin, self._numpy.nout

    def __call__(self, *inputs, out=None, where=None, dtype=None, casting="same_kind"):
        if len(inputs) > self.nin:
            inputs, (out,) = inputs[: self.nin], inputs[self.nin :]
        for x in inputs:
            if not isinstance(x, (*SCALARS, ndarray)):
                raise TypeError(f"Unsupported type {type(x)}")
        options = {"casting": casting, "dtype": dtype}
        if out is not None:
            options["out"] = out
        if where is not None:
            options["where"] = where
        widen = not self._bfloat16

        def call(*given, **named):
            if widen:
                given = [_without_bfloat16(x) for x in given]
            return self._numpy(*given, **named)

        return compute(call, *inputs, **options)

    def at(self, a, indices, b=None):
        if a.dtype.name not in SCATTERED.get(self.__name__, ()):
            raise TypeError(f"cupy.{self.__name__}.at does not support {a.dtype}")
        look, found = arrays._index(indices)
        b = array(b) if isinstance(b, np.ndarray) else b
        compute(lambda x, b, *at: self._numpy.at(x, look(x, at), b), a, b, *found)

    def reduce(self, a, axis=0, dtype=None, out=None, keepdims=False):
        return compute(self._numpy.reduce, a, axis=axis, dtype=dtype, out=out, keepdims=keepdims)

    def accumulate(self, a, axis=0, dtype=None, out=None):
        return compute(self._numpy.accumulate, a, axis=axis, dtype=dtype, out=out)

    def outer(self, a, b):
        return compute(self._numpy.outer, a, b)


def _without_bfloat16(x):
    return x.astype(np.float32) if getattr(x, "dtype", None) == ml_dtypes.bfloat16 else x


def _checked(name, parameters, arguments, options):
    """CuPy takes so many arguments, and by these names."""
    if parameters is None or any(p.startswith("*") for p in parameters):
        return
    if len(arguments) > len(parameters) or set(options) - set(parameters):
        raise TypeError(
            f"cupy's {name}({', '.join(parameters)}) got {len(arguments)} arguments and {options}"
        )


def _computed(name, numpy_function, arguments, options):
    options = {k: v for k, v in options.items() if v is not None or k not in ("where", "casting")}
    given = [*inside(arguments), *inside(tuple(options.values()))]
    if name in HOST:
        return numpy_function(*arrays.raw(arguments), **options)
    if name in READING or (name == "where" and len(arguments) == 1):
        device.card.note("reads", name)
    if name in JOINING and len(arguments[0]) > 8:
        device.card.note("uploads", name)
    product = name in PRODUCTS or (name == "einsum" and len(given) > 1)
    if (product or name in SORTING) and device.card.stream.captured is not None:
        raise NotImplementedError(f"{name} (cuBLAS or a sort) during stream capture is unsupported")
    if name == "matmul" and max(a.ndim for a in given) > 2 and given[0].dtype == ml_dtypes.bfloat16:
        raise TypeError("data type 'E' not understood")  # as CuPy's
    half = next((a.dtype for a in given if a.dtype.name in HALVES), None)
    wide = half is not None and (product or name in REDUCTIONS)

    def call(*found, **named):
        if name == "where":
            found = [_without_bfloat16(x) for x in found]
        if not wide:
            return numpy_function(*found, **named)
        # As cuBLAS and CuPy's sums do: in float32, rounded once.
        to = named.get("dtype") or np.result_type(*(a.dtype for a in given))
        found = [x.astype(np.float32) if getattr(x, "dtype", None) == half else x for x in found]
        out = named.pop("out", None)
        named = {k: v for k, v in named.items() if k != "dtype"}
        result = np.asarray(numpy_function(*found, **named))
        if name in ("all", "any"):
            return result
        if out is None:
            return result.astype(to)
        out[...] = result
        return out

    result = compute(call, *arguments, keep=name in KEEPING, **options)
    if name in ("empty", "empty_like"):
        result._memory.raw[...] = 0xFF
    return result


def _function(name):
    """A function of the module: NumPy's, with CuPy's parameters."""
    parameters, numpy_function = NAMES["functions"][name], getattr(np, name)

    def call(*arguments, **options):
        _checked(name, parameters, arguments, options)
        return _computed(name, numpy_function, arguments, options)

    call.__name__ = call.__qualname__ = name
    return call


def _method(name):
    parameters = NAMES["methods"][name]

    def call(self, *arguments, **options):
        _checked(name, parameters, arguments, options)
        function = getattr(np.ndarray, name)
        return _computed(name, function, (self, *arguments), options)

    call.__name__ = name
    return call


def asarray(a, dtype=None, order=None, *, copy=None, blocking=False):
    return array(a, dtype, bool(copy), order)


def ascontiguousarray(a, dtype=None):
    return array(a, dtype, False, "C")


def asnumpy(a, stream=None, order="C", out=None, *, blocking=True):
    if isinstance(a, ndarray):
        return a.get(stream, order, out, blocking)
    return np.asarray(a, order=order)


def copyto(dst, src, casting="same_kind", where=None):
    if isinstance(src, np.ndarray) and src.size != 1:
        raise ValueError("non-scalar numpy.ndarray cannot be used for copyto")
    src = src.item() if isinstance(src, np.ndarray) else src
    options = {"casting": casting} if where is None else {"casting": casting, "where": where}
    compute(np.copyto, dst, src, **options)


def as_strided(x, shape=None, strides=None):
    return compute(lambda x: np.lib.stride_tricks.as_strided(x, shape, strides), x)


class Grid:
    """ogrid and mgrid."""

    def __init__(self, name):
        self._numpy = getattr(np, name)

    def __getitem__(self, key):
        return compute(lambda: self._numpy[key])


def _erf(x, out=None):
    from tinyplm.kernels.erf import erf

    return compute(lambda x: np.asarray(erf.definition(x)), x)


class Function:
    """A kernel of tinyplm, which the emulator runs."""

    def __init__(self, file, name):
        self.file, self.name, self.ptr = file, name, (file, name)

    def __call__(
        self, grid, block, args, shared_mem=0, stream=None, enable_cooperative_groups=False
    ):
        given = []
        for a in args:
            if isinstance(a, np.ndarray) and a.size != 1:
                raise TypeError("You are trying to pass a numpy.ndarray as a kernel parameter.")
            given.append(a._raw if isinstance(a, ndarray) else a)
        stream = stream or device.card.stream
        most = device.card.allowed.get((self.file, self.name), 48 * 1024)
        assert shared_mem <= most, (
            f"{self.name}: {shared_mem} bytes of shared memory, {most} allowed"
        )
        device.card.launched.append(self.name)
        if device.card.emulator is None:
            return
        options = {"shared": shared_mem} if shared_mem else {}
        run = functools.partial(
            device.card.emulator.launch, self.file, self.name, grid[0], block[0], *given, **options
        )
        stream.do(run, *(a._memory for a in inside(tuple(args))))


class Module:
    """Machine code, which is the name of its file here."""

    def load(self, cubin):
        self.file = cubin.decode()

    def get_function(self, name):
        return Function(self.file, name)


class _Part(types.ModuleType):
    """A module with what the stand-in has of it; the rest of CuPy's names say so."""

    def __init__(self, name, known, **members):
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        self._known = frozenset(known)
        for member, value in members.items():
            if member in self._known:
                setattr(self, member, value)

    def __getattr__(self, name):
        if not name.startswith("_") and name in self._known:
            raise NotImplementedError(f"{self.__name__}.{name} is not in the stand-in for CuPy")
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


def module():
    """The stand-in, with its modules."""
    known = NAMES["members"]
    members = {}
    for name in NAMES["ufuncs"]:
        if isinstance(getattr(np, name, None), np.ufunc):
            UFUNCS[name] = members[name] = Ufunc(name)
    for name, parameters in NAMES["functions"].items():
        if parameters is not None and callable(getattr(np, name, None)):
            members[name] = FUNCTIONS[name] = _function(name)
        elif isinstance(getattr(np, name, None), float | type(None)) and hasattr(np, name):
            members[name] = getattr(np, name)
    for name in known[""]:
        if isinstance(getattr(np, name, None), type) and issubclass(getattr(np, name), np.generic):
            members[name] = getattr(np, name)
    mine = (array, asarray, ascontiguousarray, asnumpy, copyto)
    FUNCTIONS.update({f.__name__: f for f in mine}, asanyarray=asarray)
    members |= FUNCTIONS | {"bool": np.bool_, "dtype": np.dtype, "ndarray": ndarray}
    members |= {"ogrid": Grid("ogrid"), "mgrid": Grid("mgrid"), "newaxis": None}
    members["get_default_memory_pool"] = lambda: device.card.pool
    members["is_available"] = lambda: True
    members["finfo"], members["iinfo"] = ml_dtypes.finfo, np.iinfo
    for name, parameters in NAMES["methods"].items():
        if parameters is not None and name not in vars(ndarray) and hasattr(np.ndarray, name):
            setattr(ndarray, name, _method(name))
    cupy = _Part("cupy", known[""], **members)
    cupy.cuda = cuda()
    cupy.lib = _Part("cupy.lib", known["lib"])
    cupy.lib.stride_tricks = _Part(
        "cupy.lib.stride_tricks", known["lib.stride_tricks"], as_strided=as_strided
    )
    cupy.__version__ = NAMES["version"]
    return cupy


def cuda():
    """cupy.cuda, with its modules."""
    known = NAMES["members"]
    members = _of_device(known["cuda"])
    members["get_current_stream"] = lambda device_id=-1: device.card.stream
    members["get_allocator"] = lambda: device.card.allocators[-1]
    members["is_available"] = lambda: True
    part = _Part("cupy.cuda", known["cuda"], **members)
    part.runtime = _Part("cupy.cuda.runtime", known["cuda.runtime"], **streams.RUNTIME)
    part.function = _Part(
        "cupy.cuda.function", known["cuda.function"], Module=Module, Function=Function
    )
    for name in ("memory", "pinned_memory", "stream", "graph"):
        names = known[f"cuda.{name}"]
        setattr(part, name, _Part(f"cupy.cuda.{name}", names, **_of_device(names)))
    return part


def _of_device(names):
    return {n: getattr(m, n) for m in (device, streams) for n in names if hasattr(m, n)}


def cupyx():
    known = NAMES["members"]
    part = _Part(
        "cupyx", known["cupyx"], empty_pinned=device.empty_pinned, zeros_pinned=device.zeros_pinned
    )
    part.scipy = _Part("cupyx.scipy", ["special"])
    part.scipy.special = _Part("cupyx.scipy.special", known["cupyx.scipy.special"], erf=_erf)
    return part


def backends():
    """As much of cupy_backends as raises what a kernel may have of shared memory."""

    def set_attribute(kernel, what, value):
        assert what == 8, "only CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES"
        assert value <= device.card.shared
        device.card.allowed[kernel] = value

    part = _Part("cupy_backends", ["cuda"])
    part.cuda = _Part("cupy_backends.cuda", ["api", "libs"])
    part.cuda.api = _Part("cupy_backends.cuda.api", ["driver"])
    part.cuda.api.driver = _Part(
        "cupy_backends.cuda.api.driver", ["funcSetAttribute"], funcSetAttribute=set_attribute
    )
    return part


def install(monkeypatch, emulator=None):
    """Put the stand-in in the place of CuPy, and the emulator behind tinyplm's kernels; the card, to ask.

    Without an emulator tinyplm's kernels are not usable, and the definitions compute.
    """
    import emulator as emulation

    from tinyplm.kernels import cuda as kernels
    from tinyplm.kernels import tensor_map

    card = streams.new_card()
    card.emulator, card.cupy = emulator, module()
    parts, todo = {}, [card.cupy, cupyx(), backends()]
    while todo:
        part = todo.pop()
        parts[part.__name__] = part
        todo += [m for m in vars(part).values() if isinstance(m, _Part)]
    for name, part in parts.items():
        monkeypatch.setitem(sys.modules, name, part)
    monkeypatch.setattr(kernels, "usable", lambda: emulator is not None)
    monkeypatch.setattr(kernels, "cubin", lambda file, arch: file.encode())
    monkeypatch.setattr(tensor_map, "encoded", emulation.map_bytes)
    forget()
    return card


def forget():
    """Nothing that was built for another device is used."""
    from tinyplm.kernels import cuda as kernels
    from tinyplm.kernels.registry import KERNELS

    kernels._module.cache_clear()
    kernels._function.cache_clear()
    kernels._card.cache_clear()
    kernels._memory.cache_clear()
    kernels._allowed.clear()
    for kernel in KERNELS.values():
        for variant in kernel.variants:
            if variant.library == "cupy":
                vars(variant).pop("function", None)
