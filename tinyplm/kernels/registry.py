"""A kernel: one definition in plain array code, and any number of faster variants that must earn their place."""

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from numpy import ndarray

from ..backend import namespace

KERNELS: dict[str, "Kernel"] = {}
"""Every kernel by name."""


@dataclass
class Variant:
    """A faster way to compute what a kernel defines.

    Attributes:
        name: what it is asked for by.
        library: the array library whose arrays it takes, "numpy" or "cupy".
        when: whether it applies to these arguments.
        build: compiles it and returns the function to call; None where it cannot be built here.
        by_name: whether it computes only where it is asked for by its name.
    """

    name: str
    library: str
    when: Callable[..., bool]
    build: Callable[[], Callable[..., Any] | None]
    by_name: bool = False

    @functools.cached_property
    def function(self) -> Callable[..., Any] | None:
        """The built function; built at the first call, once."""
        return self.build()


class Kernel:
    """Calls the first variant that applies, else the definition."""

    def __init__(self, definition: Callable[..., Any]) -> None:
        functools.update_wrapper(self, definition)
        self.name = definition.__name__
        self.definition = definition
        self.variants: list[Variant] = []
        self._forced: str | None = None
        KERNELS[self.name] = self

    def variant(
        self,
        name: str,
        *,
        library: str,
        when: Callable[..., bool] = lambda *_: True,
        by_name: bool = False,
    ) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
        """Register a variant; the decorated function builds it."""

        def register(build: Callable[[], Any]) -> Callable[[], Any]:
            self.variants.append(Variant(name, library, when, build, by_name))
            return build

        return register

    @contextmanager
    def using(self, name: str) -> Iterator[None]:
        """Force the variant of this name, or "reference" for the definition, within a block.

        Where the variant does not apply to the arguments, the definition computes.
        """
        if name.startswith("numba-cuda"):
            importlib.import_module(".numba_cuda", __package__)  # which registers them
        before, self._forced = self._forced, name
        try:
            yield
        finally:
            self._forced = before

    def _wants(self, variant: Variant) -> bool:
        return not variant.by_name if self._forced is None else self._forced == variant.name

    def __call__(self, *arguments: Any) -> Any:
        """Compute with the first variant that applies to the arguments, else as defined."""
        if self.variants and self._forced != "reference":
            library = "numpy" if type(arguments[0]) is ndarray else namespace(arguments[0]).__name__
            for variant in self.variants:
                if (
                    variant.library == library
                    and self._wants(variant)
                    and variant.when(*arguments)
                    and variant.function
                ):
                    return variant.function(*arguments)
        return self.definition(*arguments)
