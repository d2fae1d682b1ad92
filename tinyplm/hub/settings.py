"""Reading the settings of config.json by name, each with its type and bounds."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from ..errors import ConfigError
from .entry import shown

# No size of a model is larger; what is, is a mistake or an attack.
SIZE_LIMIT = 2**31


class Settings:
    """The settings of one model; a key may have older or other names."""

    def __init__(self, values: Mapping[str, Any], *, aliases: Mapping[str, str]) -> None:
        self._values = dict(values)
        for alias, name in aliases.items():
            if alias not in values:
                continue
            if name in values and values[name] != values[alias]:
                raise ConfigError(
                    f"config.json gives {name}={shown_value(values[name])} and "
                    f"{alias}={shown_value(values[alias])}, two names of one setting. Keep one."
                )
            self._values[name] = values[alias]

    def whole(self, key: str, default: int) -> int:
        """A whole number from 1 on."""
        value = self._values.get(key, default)
        if type(value) is not int or not 1 <= value < SIZE_LIMIT:
            raise self._refused(key, value, f"a whole number from 1 to {SIZE_LIMIT - 1:,}")
        return value

    def optional_whole(self, key: str) -> int | None:
        """A whole number from 1 on; None where the key is missing or null."""
        return None if self._values.get(key) is None else self.whole(key, 1)

    def number(self, key: str, default: float, *, low: float, below: float) -> float:
        """A number from low on that is smaller than below."""
        value = self._values.get(key, default)
        if type(value) not in (int, float) or not low <= value < below:
            raise self._refused(key, value, f"a number from {low} to below {below}")
        return float(value)

    def positive(self, key: str, default: float) -> float:
        """A number above 0 and below 1."""
        value = self._values.get(key, default)
        if type(value) not in (int, float) or not 0 < value < 1:
            raise self._refused(key, value, "a number above 0 and below 1")
        return float(value)

    def truth(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._values.get(key, default)
        if type(value) is not bool:
            raise self._refused(key, value, "true or false")
        return value

    def choice(self, key: str, default: str, meanings: Mapping[str, str]) -> str:
        """What a known word means here."""
        value = self._values.get(key, default)
        if not isinstance(value, str) or value not in meanings:
            near = get_close_matches(str(value)[:80], meanings, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise self._refused(key, value, f"one of {', '.join(meanings)}{hint}")
        return meanings[value]

    def refuse(self, key: str, why: str) -> None:
        """Raise if a setting that cannot be followed is switched on."""
        value = self._values.get(key)
        if value not in (None, False, 0) and value != {} and value != []:
            raise ConfigError(
                f"config.json has {key}={shown_value(value)}; {why}. Results without it would be "
                "wrong, so the model is not loaded."
            )

    def _refused(self, key: str, value: object, expected: str) -> ConfigError:
        return ConfigError(
            f"config.json has {key}={shown_value(value)}; expected {expected}. Is the file "
            "damaged, or written for another kind of model?"
        )


def shown_value(value: object) -> str:
    """A setting as it would stand in the file, cut."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int | float):
        return f"{value:g}" if isinstance(value, float) else str(value)[:40]
    return shown(value)
