"""Where words go: results to standard output, everything else to standard error."""

import contextlib
import json
import math
import os
import sys
import unicodedata
import warnings
from collections.abc import Sequence
from typing import Any, TextIO

from ..errors import TinyplmWarning
from ..train.progress import Progress


def debugging() -> bool:
    """Whether the user wants to see where an error came from."""
    return os.environ.get("TINYPLM_TRACEBACK", "") not in ("", "0")


class Console:
    """What a verb says.

    Attributes:
        json: results are one JSON object instead of words.
        progress: the line that stands on the terminal, if one does; other words go above it.
    """

    def __init__(self, *, json: bool = False) -> None:
        self.json = json
        self.progress: Progress | None = None

    def say(self, text: str = "") -> None:
        """Tell the reader something that is no result."""
        if self.progress is not None:
            self.progress.note(text)
        else:
            print(text, file=sys.stderr, flush=True)

    def result(self, text: str = "") -> None:
        """Print a result in words."""
        if not self.json:
            print(text, flush=True)

    def value(self, value: Any) -> None:
        """Print a result as JSON, where that is wanted."""
        if self.json:
            print(json.dumps(_plain(value), ensure_ascii=False, allow_nan=False), flush=True)

    def show_warning(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        """Print a warning in one line; those of libraries are for developers only."""
        if issubclass(category, TinyplmWarning):
            # It may come from a signal, in the midst of another line.
            with contextlib.suppress(RuntimeError):
                self.say(f"Warning: {message}")
        elif debugging():
            self.say(warnings.formatwarning(message, category, filename, lineno, line).rstrip())


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns under a header: numbers to the right, text to the left, wide letters counted as two."""
    cells = [[_cell(value) for value in row] for row in rows]
    right = [
        all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(header))
    ]
    widths = [max(map(_width, column)) for column in zip(header, *cells, strict=True)]
    lines = []
    for row in [list(header), *cells]:
        padded = [
            " " * (width - _width(cell)) + cell if to_right else cell + " " * (width - _width(cell))
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def size(count: float) -> str:
    """Bytes to read, such as 12 MB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return (
                f"{count / scale:.3g} {unit}"
                if count < 1000 * scale
                else f"{count / scale:,.0f} {unit}"
            )
    return f"{count:.0f} bytes"


def shows(text: str) -> bool:
    """Whether standard output can show these characters."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _width(text: str) -> int:
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(map(bool, map(unicodedata.combining, text)))


def _plain(value: Any) -> Any:
    """Values as JSON has them: nothing but finite numbers, text, lists and objects."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
