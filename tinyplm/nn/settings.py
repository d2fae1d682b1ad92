"""What a config asks of its fields when it is made."""

import math
from collections.abc import Collection, Mapping
from typing import Any

from ..errors import ConfigError

SIZES = {
    "vocab_size": 1 << 31,
    "source_vocab_size": 1 << 31,
    "embedding_size": 1 << 24,
    "hidden_size": 1 << 24,
    "layers": 10_000,
}
"""The largest of each size that is not taken for a mistake."""


def check_fields(
    config: Any,
    what: str,
    *,
    choices: Mapping[str, Collection[str | None]],
    rates: Collection[str],
    flags: Collection[str],
) -> None:
    """Refuse a field that cannot be; sizes are those of SIZES that the config has, and init_std.

    Args:
        config: has the fields.
        what: it is a config of, for messages.
        choices: the values that a field may have.
        rates: fields from 0 to below 1.
        flags: fields that are true or false.

    Raises:
        ConfigError: names the field, what it is and what was expected.
    """
    fields = vars(config)
    for name, most in SIZES.items():
        value = fields.get(name, 1)
        if type(value) is not int or not 1 <= value <= most:
            raise ConfigError(
                f"{name} is {value!r}, but a {what} needs a whole number from 1 to {most}."
            )
    for name, known in choices.items():
        value = fields[name]
        if not isinstance(value, str | None) or value not in known:
            raise ConfigError(f"{name} is {value!r}; known: {', '.join(map(str, known))}.")
    for name in rates:
        if not is_number(fields[name]) or not 0 <= fields[name] < 1:
            raise ConfigError(f"{name} is {fields[name]!r}, but it must be at least 0 and below 1.")
    if not is_number(fields["init_std"]) or not 0 < fields["init_std"] < 1:
        raise ConfigError(
            f"init_std is {fields['init_std']!r}, but it must be above 0 and below 1."
        )
    for name in flags:
        if type(fields[name]) is not bool:
            raise ConfigError(f"{name} is {fields[name]!r}, but it must be true or false.")


def is_number(value: Any) -> bool:
    """Whether this is a finite number and no boolean."""
    return type(value) in (int, float) and math.isfinite(value)
