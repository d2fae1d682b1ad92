"""The engine: tensors, the graph they leave behind, and the walk back through it.

An op is a function on arrays that returns its result and its pullback. Calling it on tensors runs the function and,
when a gradient is wanted, leaves a `Node`: the pullback and where its gradients go. Nodes are numbered as they are
made, so that number is a topological order: `backward` collects what is reachable with a stack of its own, visits it
newest first, and never recurses. A pullback is dropped as soon as it has run; with it goes the memory it kept.
"""

import functools
import itertools
from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..backend import is_array, namespace
from ..errors import DtypeError, GraphError, ShapeError
from ..types import Array
from . import guard, modes
from .arguments import Arguments, array_of
from .messages import check_finite, describe, explained, is_float, is_half, is_numeric
from .modes import mode

if TYPE_CHECKING:
    from .symbols import Symbols
else:
    Symbols = object

OPS: dict[str, "Op"] = {}
"""Every op by name."""

SIMPLE = frozenset({int, float, bool, str, type(None)})
"""Types of options that hold no array."""

_clock = itertools.count(1)  # numbers nodes and announced writes
_last_write = 0


class Node:
    """One application of an op: its pullback, and the nodes or leaves that want the gradients."""

    __slots__ = ("grad", "name", "number", "owned", "parents", "part", "pullback", "taken")

    def __init__(self, name: str, parents: Any, pullback: Any) -> None:
        self.name = name
        self.parents = parents  # one per positional input: a Node, a leaf Tensor, or None
        self.pullback = pullback
        self.number = next(_clock)
        self.grad: Any = None  # of the result, while backward gathers it
        self.owned = False  # whether grad may be added to in place
        self.part: int | None = None  # which result of its only parent this node stands for
        self.taken: dict[int, int] | None = None  # checksums, see guard


class Tensor(Symbols):
    """Values, perhaps with a gradient, and the node that made them.

    Args:
        data: an array of NumPy or CuPy, numbers, or nested lists of numbers. It is copied: a tensor owns its memory.
        requires_grad: whether `backward` shall leave a gradient in `.grad`.
        dtype: converts to this dtype; by default the data keeps its own.

    Raises:
        DtypeError: data is not numeric, or a gradient is asked of integers.
    """

    __slots__ = ("__weakref__", "_array", "_node", "grad", "requires_grad")
    __array_ufunc__ = None  # so that ndarray + Tensor asks the Tensor

    def __init__(self, data: Any, requires_grad: bool = False, dtype: Any = None) -> None:
        if isinstance(data, Tensor):
            data = data._array
        array = namespace(data).array(data, dtype=dtype, copy=True)
        if not is_numeric(array):
            raise DtypeError(f"Tensor holds numbers, but the data has dtype {array.dtype}.")
        if requires_grad and not is_float(array):
            raise DtypeError(
                f"A tensor of dtype {array.dtype} cannot have a gradient; only float64, float32, float16 and "
                "bfloat16 can. Convert it: Tensor(data, dtype='float32', requires_grad=True)."
            )
        self._array: Array = array
        self._node: Node | None = None
        self.requires_grad = requires_grad
        self.grad: Array | None = None

    @classmethod
    def wrap(cls, array: Array, requires_grad: bool = False) -> "Tensor":
        """A tensor around an array that nobody else will write to; no copy."""
        tensor = cls.__new__(cls)
        tensor._array, tensor._node = array, None
        tensor.requires_grad, tensor.grad = requires_grad, None
        return tensor

    @property
    def array(self) -> Array:
        """The values, to be read."""
        view = self._array.view()
        if namespace(view) is np:
            view.flags.writeable = False
        return view

    @property
    def data(self) -> Array:
        """The values, to be read or written; the engine watches for changes that would spoil a gradient."""
        guard.expose(self._array)
        return self._array

    @data.setter
    def data(self, array: Array) -> None:
        if array is self._array:  # the end of `tensor.data -= ...`
            return
        if self._node is not None:
            raise GraphError(
                f"data of a result of {self._node.name} cannot be replaced, as its graph is still there; "
                "compute a new tensor, or detach() first."
            )
        array = namespace(self._array).asarray(array)
        if array.shape != self.shape or array.dtype != self.dtype:
            raise ShapeError(
                f"data of a tensor of {describe(self._array)} cannot be replaced by {describe(array)}; "
                "make a new Tensor for another shape or dtype."
            )
        guard.expose(array)
        self._array = array

    def replace(self, array: Array) -> None:
        """Take another array of the same shape as the values, perhaps of another float dtype or library.

        The array is not copied, and nobody else may write to it.
        """
        if self._node is not None or array.shape != self.shape or not is_float(array):
            raise ShapeError(
                f"a leaf tensor of {describe(self._array)} cannot take {describe(array)}; the shape must be the same "
                "and the dtype float."
            )
        self._array, self.grad = array, None

    def write(self) -> Array:
        """The values, to be written in place now: an update. Graphs that still need the old values will refuse."""
        global _last_write
        _last_write = next(_clock)
        guard.announce(self._array, _last_write)
        return self._array

    shape = property(lambda self: self._array.shape, doc="Length of each axis.")
    dtype = property(lambda self: self._array.dtype, doc="Type of the values.")
    ndim = property(lambda self: self._array.ndim, doc="Number of axes.")
    size = property(lambda self: self._array.size, doc="Number of values.")

    def item(self) -> float:
        """The only value, as a Python number."""
        if self.size != 1:
            raise ShapeError(f"item() needs one value; this tensor has shape {self.shape}.")
        return self._array.item()

    def numpy(self) -> Array:
        """A copy of the values as a NumPy array."""
        return np.array(self._array) if namespace(self._array) is np else self._array.get()  # type: ignore[attr-defined]

    def detach(self) -> "Tensor":
        """The same values without their history."""
        return Tensor.wrap(self._array)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.array(self.numpy(), dtype=dtype)

    def __len__(self) -> int:
        return len(self._array)

    def __bool__(self) -> bool:
        return bool(self._array)

    def __repr__(self) -> str:
        made = f", op={self._node.name}" if self._node else ""
        wants = ", requires_grad=True" if self.requires_grad else ""
        return f"Tensor({np.array2string(self.numpy(), separator=', ')}, dtype={self.dtype}{wants}{made})"

    def backward(self, gradient: Any = None) -> None:
        """Add the gradient of this tensor to `.grad` of every leaf that it depends on.

        Args:
            gradient: of something with respect to this tensor, of its shape; 1 when this tensor has one value.

        Raises:
            GraphError: no gradient is wanted, the graph is gone, or kept values were changed in place.
            ShapeError: gradient is missing for a tensor of several values, or has another shape.
        """
        array = self._array
        if not self.requires_grad:
            raise GraphError(
                "backward() from a tensor that depends on nothing with requires_grad=True. Was it computed under "
                "no_grad, or from detached tensors?"
            )
        if gradient is None:
            if array.size != 1:
                raise ShapeError(
                    f"backward() from a tensor of shape {self.shape} needs a gradient of that shape; without one "
                    "only a single value can be differentiated. Sum or average it first."
                )
            gradient = namespace(array).ones_like(array)
        else:
            gradient = gradient._array if isinstance(gradient, Tensor) else gradient
            gradient = namespace(array).array(gradient, copy=True)
            if gradient.shape != array.shape or not is_float(gradient):
                raise ShapeError(
                    f"backward() was given a gradient of {describe(gradient)} for a tensor of {describe(array)}; "
                    "the shapes must be equal and the gradient float."
                )
            gradient = gradient.astype(array.dtype, copy=False)
        _walk_back(self._node or self, gradient)


class Op(Protocol):
    """What `op` makes: takes and returns tensors; ops with several results return a tuple of them."""

    __name__: str
    on_arrays: Callable[..., Any]

    def __call__(self, *inputs: Any, **attributes: Any) -> Tensor:
        """Run the op on tensors, arrays and numbers, and record it if a gradient is wanted."""
        ...


def op(function: Callable[..., Any]) -> Op:
    """Make an op of a function on arrays that returns its result and its pullback.

    Positional arguments are tensors, arrays or numbers; what may carry a gradient is positional, the rest keyword.
    The pullback takes the gradient of the result and returns one gradient per positional argument: an array of the
    argument's shape and dtype, a function of no arguments that makes it, or None. A function that returns a tuple of
    results gets a tuple of gradients, None for a result that was not used. `on_arrays` is the undecorated function.
    """
    expected = Arguments(function)
    name, most = expected.op, expected.most

    @functools.wraps(function)
    def call(*inputs: Any, **attributes: Any) -> Any:
        if len(inputs) > most or attributes:
            inputs, attributes = expected.arranged(inputs, attributes)
        arrays: list[Any] = []
        parents: list[Any] = []
        wanted = outside = False
        for option, x in attributes.items():
            if x.__class__ in SIMPLE:
                continue
            if x.__class__ is Tensor:
                attributes[option] = _plain(name, option, x)
                outside = True
            elif guard.hold_array((x,)):
                outside = True
        for x in inputs:
            parent = None
            if x.__class__ is Tensor:
                arrays.append(x._array)
                if x.requires_grad:
                    wanted = True
                    parent = x._node or x
            elif x.__class__ is float or x.__class__ is int or x is None:
                arrays.append(x)
            elif isinstance(x, np.generic):
                arrays.append(
                    x.item()
                )  # a scalar of NumPy is a number, no reason for another dtype
            elif x.__class__ is list or x.__class__ is tuple:
                arrays.append(array_of(name, x))
            else:
                arrays.append(x)
                outside = outside or isinstance(x, np.ndarray)
            parents.append(parent)
        try:
            result, pullback = function(*arrays, **attributes)
        except Exception as error:
            raise explained(name, arrays, error) from error
        if modes.in_use:
            if mode.anomaly:
                check_finite(f"{name} (forward)", result)
            wanted = wanted and mode.recording
        node = Node(name, parents, pullback) if wanted else None
        if outside or guard.exposed:
            given = [a for a, x in zip(arrays, inputs, strict=True) if a is x]
            taken = guard.watch(
                pullback if wanted else None, result, [*given, *attributes.values()]
            )
            if node is not None:
                node.taken = taken
        if result.__class__ is not tuple:
            return _result(result, node)
        if node is None:
            return tuple(_result(part, None) for part in result)
        node.grad = [None] * len(result)
        return tuple(_result(part, _part(node, i)) for i, part in enumerate(result))

    call.on_arrays = function  # type: ignore[attr-defined]
    OPS[name] = call  # type: ignore[assignment]
    return OPS[name]


def _result(array: Any, node: Node | None) -> Tensor:
    if array.__class__ is not np.ndarray and not is_array(array):
        array = np.asarray(array)
    tensor = Tensor.__new__(Tensor)
    tensor._array = array
    tensor._node = node
    tensor.requires_grad = node is not None
    tensor.grad = None
    return tensor


def _part(whole: Node, index: int) -> Node:
    """The node of one of several results; it hands its gradient on to the whole."""
    node = Node(whole.name, [whole], _part)  # any pullback: it says that the graph is not freed
    node.part = index
    return node


def _plain(name: str, option: str, value: Tensor) -> Array:
    """The array in place of a tensor that is given for an option."""
    if value.requires_grad:
        raise DtypeError(f"{name}: {option} cannot receive a gradient; pass {option}.detach().")
    return value._array


def _walk_back(root: Any, gradient: Array) -> None:
    """Run every pullback reachable from root, newest first, and leave gradients in the leaves."""
    leaves: dict[Tensor, Array] = {}
    owned: set[Tensor] = set()
    if root.__class__ is Tensor:
        leaves[root] = gradient
        nodes: list[Node] = []
    else:
        nodes = _reachable(root)
        root.grad, root.owned = gradient, True
        if root.part is not None:
            root.owned = False
    try:
        with np.errstate(all="ignore"):
            for node in nodes:
                _run(node, leaves, owned)
    except BaseException:
        for node in nodes:
            node.grad = node.pullback = None
            node.parents = ()
        raise
    _store(leaves)


def _run(node: Node, leaves: dict[Tensor, Any], owned: set[Tensor]) -> None:
    """Hand the gradient of a node to its parents, and drop what the node kept.

    The first gradient to arrive is borrowed, as others may have been given the same array: a second is added out of
    place. That sum is owned, and later ones are added in place.
    """
    g, pullback, parents = node.grad, node.pullback, node.parents
    node.grad = node.pullback = None
    node.parents = ()
    if g is None:
        return
    if node.part is not None:
        parents[0].grad[node.part] = g
        return
    if node.taken or guard.exposed or _last_write > node.number:
        _check_unchanged(node, pullback)
    given = pullback(tuple(g) if g.__class__ is list else g)
    if given.__class__ is not tuple:
        given = (given,)
    for parent, new in zip(parents, given, strict=False):
        if parent is None or new is None:
            continue
        if callable(new):
            new = new()
        if modes.in_use and mode.anomaly:
            check_finite(f"{node.name} (backward)", new)
        if parent.__class__ is Node:
            if parent.grad is None:
                parent.grad = new
            else:
                parent.grad, parent.owned = _sum(parent.grad, new, parent.owned), True
        elif parent not in leaves:
            leaves[parent] = new
        else:
            leaves[parent] = _sum(_wide(leaves[parent]), _wide(new), parent in owned)
            owned.add(parent)


def _sum(total: Array, new: Array, owned: bool) -> Array:
    """Two gradients together: in place if the first is owned, and in the higher of two precisions."""
    if total.dtype is not new.dtype:
        total, new = _wide(total), _wide(new)
    elif owned:
        total += new
        return total
    return total + new


def _wide(g: Array) -> Array:
    """A gradient in half precision as float32."""
    return g.astype(np.float32) if is_half(g.dtype) else g


def _reachable(root: Node) -> list[Node]:
    seen = {root}
    stack = [root]
    while stack:
        node = stack.pop()
        if node.pullback is None:
            raise GraphError(
                f"backward() a second time through {node.name}: its graph was freed by the first. Compute the "
                "result again, or add the losses and call backward() once."
            )
        for parent in node.parents:
            if parent.__class__ is Node and parent not in seen:
                seen.add(parent)
                stack.append(parent)
    return sorted(seen, key=attrgetter("number"), reverse=True)


def _store(leaves: dict[Tensor, Array]) -> None:
    """Give each leaf a gradient that is its own: of its dtype, writable, and shared with no other.

    That of a leaf in half precision is float32 where it is a sum, or where the op that made it gave that.
    """
    owners: set[int] = set()
    for leaf, new in leaves.items():
        dtype = leaf._array.dtype
        new = new if is_array(new) else np.asarray(new)
        if new.dtype != dtype and not (is_half(dtype) and new.dtype == np.float32):
            new = new.astype(dtype)  # a result in two precisions has the higher
        if leaf.grad is not None:
            leaf.grad = _sum(leaf.grad, _wide(new), owned=True)
            continue
        if new.base is not None or id(new) in owners:
            new = new.copy()
        owners.add(id(new))
        leaf.grad = new


def _check_unchanged(node: Node, pullback: Any) -> None:
    array = guard.changed(pullback, node.taken or {}, node.number)
    if array is not None:
        raise GraphError(
            f"{node.name}: data of {describe(array)} was changed in place after the forward pass that used it, so "
            "its gradient would be wrong. Call backward() before the change, or change a copy."
        )
