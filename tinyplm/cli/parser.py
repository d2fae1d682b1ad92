"""Arguments: as argparse reads them, with the nearest name suggested for a mistyped one."""

import argparse
import difflib
import math
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from ..errors import ConfigError


class UsageError(ConfigError):
    """Arguments that cannot be understood."""


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str, **settings: Any) -> None:
        super().__init__(prog, max_help_position=30, **settings)


class Parser(argparse.ArgumentParser):
    """A parser that raises what is wrong, names no half options, and ends its help with an example."""

    def __init__(self, *, example: str = "", **settings: Any) -> None:
        settings.setdefault("allow_abbrev", False)
        settings.setdefault("formatter_class", _Help)
        if example:
            settings["epilog"] = f"example:\n  {example}"
        super().__init__(**settings)

    def error(self, message: str) -> NoReturn:
        """Refuse the arguments."""
        message = message.removeprefix("argument ")
        end = "" if message.endswith((".", "?")) else "."
        raise UsageError(f"{message[:1].upper()}{message[1:]}{end} See: {self.prog} --help")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """The arguments, all of them understood."""
        found, extras = self.parse_known_args(args, namespace)
        if extras:
            parser: Parser = getattr(found, "parser", self)
            wrong = next((extra for extra in extras if extra.startswith("-")), extras[0])
            options = [o for action in parser._actions for o in action.option_strings]
            if wrong.startswith("-"):
                name = wrong.split("=")[0]
                parser.error(f"no option '{name}'.{nearest(name, options)}")
            parser.error(
                f"'{wrong}' is one argument too many; a text of several words goes in quotes"
            )
        return found

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = list(map(str, action.choices))
            what = (action.metavar or action.dest) if not action.option_strings else "choice"
            where = f" for {action.option_strings[0]}" if action.option_strings else ""
            raise UsageError(
                f"No {str(what).lower()} '{value}'{where}.{nearest(str(value), known)} Known: {', '.join(known)}."
            )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the option of where to compute."""
    parser.add_argument(
        "--device",
        metavar="NAME",
        choices=("cpu", "cuda"),
        default="cpu",
        help="where to compute: cpu, or cuda for a graphics card (default: cpu)",
    )


def nearest(name: str, known: Iterable[str]) -> str:
    """A question after the nearest known name, with a space before it; empty if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean '{near[0]}'?" if near else ""


def known_name(what: str, name: str, known: Iterable[str]) -> str:
    """The name, if it is known.

    Raises:
        UsageError: it is not; the nearest is suggested.
    """
    names = sorted(known)
    if name not in names:
        raise UsageError(f"No {what} '{name}'.{nearest(name, names)} Known: {', '.join(names)}.")
    return name


def whole(text: str) -> int:
    """A whole number of an option."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number") from None


def count(text: str) -> int:
    """A whole number of at least 1."""
    number = whole(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is too small; expected at least 1")
    return number


def natural(text: str) -> int:
    """A whole number of at least 0."""
    number = whole(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is negative; expected at least 0")
    return number


def number(text: str) -> float:
    """A number of an option."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number") from None


def not_negative(text: str) -> float:
    """A finite number of at least 0."""
    value = number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: expected a finite number of at least 0")
    return value
