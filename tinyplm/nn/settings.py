"""What a config asks of its fields when it is made."""

import math
from collections.abc import Collection
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, get_args

from ..errors import ConfigError
from .feed_forward import ACTIVATIONS

LARGEST = {
    "embedding_size": 1 << 24,
    "hidden_size": 1 << 24,
    "head_size": 1 << 24,
    "ffn_size": 1 << 26,
    "layers": 10_000,
    "decoder_layers": 10_000,
    "heads": 1 << 24,
}
"""The largest of each size that is not taken for a mistake; of others 2^31."""

IDS = ("decoder_start", "padding")
"""Fields that name a token, and so may be 0."""


def check_fields(config: Any, what: str, **choices: Collection[str | None]) -> None:
    """Refuse a field that cannot be, by its type: a size, a rate called dropout, a small number such as eps, a choice.

    Args:
        config: a dataclass.
        what: it is a config of, for messages.
        choices: the values that fields of text may have; an activation is one of ACTIVATIONS.

    Raises:
        ConfigError: names the field, what it is and what was expected.
    """
    for field in fields(config):
        name, value = field.name, getattr(config, field.name)
        kinds = get_args(field.type) if isinstance(field.type, UnionType) else (field.type,)
        if value is None and NoneType in kinds:
            continue
        if bool in kinds:
            fits, expected = type(value) is bool, ", but it must be true or false"
        elif int in kinds:
            least, most = int(name not in IDS), LARGEST.get(name, 1 << 31)
            fits = type(value) is int and least <= value <= most
            expected = f", but a {what} needs a whole number from {least} to {most}"
        elif float in kinds:
            low, high = 0, {"init_factor": 1e6, "init_std": 1e3}.get(name, 1)
            rate = name.endswith("dropout")
            number = type(value) in (int, float) and math.isfinite(value)
            fits = number and (low <= value if rate else low < value) and value < high
            expected = (
                f", but it must be {'at least' if rate else 'above'} {low} and below {high:g}"
            )
        elif str in kinds:
            known = choices.get(name, ACTIVATIONS)
            fits = isinstance(value, str) and value in known
            expected = f"; known: {', '.join(map(str, known))}"
        else:
            continue
        if not fits:
            raise ConfigError(f"{name} is {value!r}{expected}.")
