"""What a model family's table offers, and which families there are.

A family is one file beside this one, named after its model_type, and one line here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any, Protocol, cast

from ..errors import ConfigError, DtypeError
from ..types import Array, Generator
from .entry import TensorEntry, shown

FAMILIES = {
    "gpt2": "Gpt2",
    "t5": "T5",
    "bert": "Bert",
    "roberta": "Roberta",
    "tinyplm-recurrent": "RecurrentLM",
    "tinyplm-seq2seq": "Seq2Seq",
}
"""Each known model_type and our class for it."""


@dataclass(frozen=True)
class Sorted:
    """The tensors of a folder under our names, and the names that have no place in the model."""

    entries: Mapping[str, TensorEntry]
    unused: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


class Family(Protocol):
    """The functions of a family's file."""

    def sort(self, entries: Mapping[str, TensorEntry]) -> Sorted:
        """Entries under our names."""

    def read_config(
        self, values: Mapping[str, Any], found: Sorted, head: str | None = None
    ) -> tuple[Any, Sorted]:
        """Our config, and the entries that such a model takes; with a head that is asked for by name."""

    def shapes(self, config: Any) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter, by our name."""

    def build(self, config: Any, rng: Generator | None) -> Any:
        """The model."""

    def write_arrays(self, config: Any, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """The parameters, by our names, under the names to write and in the layout to write."""

    def write_config(self, config: Any, end_of_text: int | None) -> dict[str, Any]:
        """The settings as config.json holds them, architectures among them."""


def family_named(model_type: object) -> Family:
    """The table of a model_type from config.json.

    Raises:
        ConfigError: there is none.
    """
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        seen = "no model_type" if model_type is None else f"model_type {shown(model_type)}"
        near = get_close_matches(str(model_type)[:80].lower(), FAMILIES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"config.json has {seen}.{hint} Known: {', '.join(FAMILIES)}.")
    return cast(Family, import_module(f".{model_type.replace('-', '_')}", __package__))


def model_type_of(model: object) -> str:
    """The model_type under which a model is saved.

    Raises:
        DtypeError: it is not a model that can be saved so.
    """
    named = {name: model_type for model_type, name in FAMILIES.items()}
    for kind in type(model).__mro__:  # the nearest first: some models are heirs of others
        if kind.__name__ in named:
            return named[kind.__name__]
    raise DtypeError(
        f"A {type(model).__name__} cannot be saved as a model folder; known: "
        f"{', '.join(FAMILIES.values())}."
    )
