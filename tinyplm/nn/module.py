"""What every layer and model is: a thing whose attributes are parameters, modules, or lists of modules."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

from ..autograd import Tensor
from ..backend import on_device
from ..errors import ShapeError
from ..types import Array
from .quantized import Quantized


class Module:
    """A layer or a model. Its parameters are found by walking its attributes in the order they were written."""

    __call__: Callable[..., Any]

    def named_parameters(self) -> dict[str, Tensor]:
        """Every parameter by its path; one reachable twice, as tied weights are, is there once, under its first."""
        found: dict[str, Tensor] = {}
        seen: set[int] = set()
        for path, tensor in _walk(self, ""):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                found[path] = tensor
        return found

    def parameters(self) -> list[Tensor]:
        """Every parameter once."""
        return list(self.named_parameters().values())

    @property
    def parameter_count(self) -> int:
        """How many numbers the parameters hold."""
        return sum(tensor.size for tensor in self.parameters())

    def arrays(self) -> dict[str, Array]:
        """The values of every parameter by its path, to be read."""
        return {path: tensor.array for path, tensor in self.named_parameters().items()}

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Take these arrays as the values of the parameters; nothing changes if one does not fit.

        Raises:
            ShapeError: a name is missing or unknown, or a shape differs.
        """
        parameters = self.named_parameters()
        if missing := sorted(parameters.keys() - arrays.keys()):
            raise ShapeError(f"no values for {', '.join(missing[:8])} ({len(missing)} missing).")
        if unknown := sorted(arrays.keys() - parameters.keys()):
            raise ShapeError(f"no parameter {', '.join(unknown[:8])} ({len(unknown)} unknown).")
        for path, tensor in parameters.items():
            if arrays[path].shape != tensor.shape:
                raise ShapeError(f"{path}: values {arrays[path].shape}, model {tensor.shape}.")
        for path, tensor in parameters.items():
            tensor.replace(arrays[path])

    def to(self, device: str, dtype: Any = None) -> Self:
        """Move every parameter to "cpu" or "cuda", perhaps to another float dtype; the module itself.

        What is computed follows the parameters: arguments may stay NumPy's arrays. Gradients are forgotten.

        Raises:
            MissingExtraError: device is "cuda" and CuPy or a driver is missing.
            DeviceMemoryError: it has no room.
            GraphError: the weights are quantised, which is for the CPU.
        """
        for tensor in self.parameters():
            before = tensor.array
            if (array := on_device(before, device, dtype)) is not before:
                tensor.replace(array)
        return self

    def clear_gradients(self) -> None:
        """Forget every parameter's gradient."""
        for tensor in self.parameters():
            tensor.grad = None


def _walk(thing: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(thing, Tensor):
        yield path, thing
    elif isinstance(thing, Module):
        for name, value in vars(thing).items():
            yield from _walk(value, f"{path}.{name}" if path else name)
    elif isinstance(thing, list):
        for number, value in enumerate(thing):
            yield from _walk(value, f"{path}.{number}")
    elif isinstance(thing, Quantized):
        raise thing.refusal()
