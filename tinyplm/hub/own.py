"""Models that no other library has: config.json holds our own settings, and the weights our own names.

Each has a file beside this one, named after its model_type, with one such table.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields
from importlib import import_module
from typing import Any

from ..errors import ConfigError
from ..types import Array, Generator
from .entry import TensorEntry
from .family import Sorted


class Own:
    """The table of a model that is saved as it is.

    Args:
        file: of the model, in `tinyplm.models`.
        model: name of its class.
        config: name of its config's class.
    """

    def __init__(self, file: str, model: str, config: str) -> None:
        self.file, self.model, self.config = file, model, config

    def _found(self, name: str) -> Any:
        return getattr(import_module(f"...models.{self.file}", __name__), name)

    def sort(self, entries: Mapping[str, TensorEntry]) -> Sorted:
        """Entries under our names, which they have already."""
        return Sorted(entries)

    def read_config(
        self, values: Mapping[str, Any], found: Sorted, head: str | None = None
    ) -> tuple[Any, Sorted]:
        """Our config, and the entries that are in such a model.

        Raises:
            ConfigError: a setting that cannot be, or a head that is asked for.
        """
        if head is not None:
            raise ConfigError(
                f"head='{head}', but a {self.model} has one head, which predicts tokens; leave it out."
            )
        kind = self._found(self.config)
        known = {field.name for field in fields(kind)}
        config = kind(**{name: value for name, value in values.items() if name in known})
        names = self.shapes(config)
        unused = tuple(sorted(found.entries.keys() - names.keys()))
        return config, Sorted({k: v for k, v in found.entries.items() if k in names}, unused)

    def shapes(self, config: Any) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter."""
        return {name: p.shape for name, p in self.build(config, None).named_parameters().items()}

    def build(self, config: Any, rng: Generator | None) -> Any:
        """The model; without rng its parameters have shapes and no values yet."""
        return self._found(self.model)(config, rng=rng)

    def write_arrays(self, config: Any, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """The parameters as they are."""
        return dict(arrays)

    def write_config(self, config: Any, end_of_text: int | None) -> dict[str, Any]:
        """The settings as they are."""
        return asdict(config) | {"architectures": [self.model], "eos_token_id": end_of_text}
