"""Loss against step, as a picture where matplotlib is installed and as text everywhere."""

import itertools
import math
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinyplm.errors import ConfigError, DataError, TinyplmWarning

MISSING = 'Plotting needs matplotlib: pip install "tinyplm[plot]". (A text plot follows.)'

Points = Sequence[tuple[float, float]]

# Told apart by readers with any colour vision, and in grey (Okabe and Ito, 2008).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "*ox+#@%&"
_KINDS = {"training": "loss", "validation": "validation_loss"}
_ACROSS = 0.02  # share of the curve that one point of the smoothed line averages over


def plot_losses(
    runs: Mapping[str, Iterable[Mapping[str, Any]]],
    output: Path | None,
    *,
    width: int = 76,
    height: int = 18,
    encoding: str | None = None,
) -> str:
    """Plot the losses of runs into the PNG file `output`; return the text to show the reader.

    The records are those of `read_metrics`: "step", and in nats per token "loss" (training) or
    "validation_loss" or both. With `output=None`, or without matplotlib, the text is a plot, in
    characters that `encoding` (that of standard output by default) can show.

    Raises:
        DataError: no run has a finite loss.
    """
    curves = {name: _curves(records) for name, records in runs.items()}
    series = {
        kind if len(curves) == 1 else f"{kind} of {name}": points
        for name, kinds in curves.items()
        for kind, points in kinds.items()
    }
    if not any(_finite(points) for points in series.values()):
        raise DataError(
            "Nothing to plot: no finite 'loss' or 'validation_loss' in "
            f"{', '.join(runs) or 'no run'}. Did the run stop before its first record?"
        )
    if output is not None:
        try:
            _picture(curves, Path(output))
            return f"Losses are drawn in {output}"
        except ImportError:
            warnings.warn(MISSING, TinyplmWarning, stacklevel=2)
    encoding = encoding or getattr(sys.stdout, "encoding", None) or "ascii"
    return text_plot(series, width, height, ascii_only=not _shows(encoding, "⣿"))


def text_plot(
    series: Mapping[str, Points], width: int = 76, height: int = 18, *, ascii_only: bool = False
) -> str:
    """Return curves drawn with characters: the first as a line, the others by marks of their own.

    `series` has (step, loss) pairs by name; what is not finite is left out and counted. The plot
    is `width` characters wide and `height` lines high, axes included; a line for each name
    follows. Braille dots make the line, eight to a character and one column wide in terminals of
    every language; `ascii_only` takes marks for it too.

    Raises:
        DataError: there is no finite point.
        ConfigError: less than 24 characters wide or 6 lines high.
    """
    if width < 24 or height < 6:
        raise ConfigError(
            f"A text plot needs 24 characters by 6 lines; got width={width}, height={height}."
        )
    finite: dict[str, Points] = {name: _finite(points) for name, points in series.items()}
    everything = [point for points in finite.values() for point in points]
    if not everything:
        raise DataError("Nothing to plot: there is no finite loss.")
    left, right = min(x for x, _ in everything), max(x for x, _ in everything)
    low, high = min(y for _, y in everything), max(y for _, y in everything)
    # One value only: put it in the middle of an axis of some height.
    spread = (high - low) or abs(high) * 0.1 or 1.0
    if high == low:
        low, high = low - spread / 2, high + spread / 2

    rows = height - 3  # above: the title; below: the axis and its numbers
    labels = [_number(high - (high - low) * row / (rows - 1), spread) for row in range(rows)]
    margin = max(map(len, labels))
    columns = width - margin - 2
    grid = [[" "] * columns for _ in range(rows)]

    def place(points: Points, across: int, down: int) -> list[tuple[int, int]]:
        return [
            (
                round((x - left) / ((right - left) or 1) * (across - 1)),
                round((high - y) / (high - low) * (down - 1)),
            )
            for x, y in points
        ]

    marks = {}
    for number, (name, points) in enumerate(finite.items()):
        if number == 0 and not ascii_only:
            marks[name] = "⠤⠤"
            dots = _line(place(_thinned(points, columns * 2), columns * 2, rows * 4))
            for (column, row), bits in _braille(dots).items():
                grid[row][column] = chr(0x2800 + bits)
            continue
        marks[name] = mark = _MARKERS[(number - (not ascii_only)) % len(_MARKERS)]
        for column, row in place(_thinned(points, columns), columns, rows):
            grid[row][column] = mark

    shown = _ticks(rows)
    lines = ["loss (nats per token)"]
    for row, cells in enumerate(grid):
        label = labels[row] if row in shown else ""
        lines.append(f"{label:>{margin}} |{''.join(cells)}".rstrip())
    lines.append(" " * margin + " +" + "-" * columns)
    first, last = f"step {left:,.0f}", f"{right:,.0f}" if right > left else ""
    lines.append((" " * (margin + 2) + first + last.rjust(columns - len(first))).rstrip())
    for name, points in series.items():
        text = f"{marks[name]} {name}"
        if kept := finite[name]:
            text += f": {kept[-1][1]:.4f} at the end, lowest {min(y for _, y in kept):.4f}"
        if missing := len(points) - len(kept):
            text += f" ({missing:,} of {len(points):,} not finite, left out)"
        lines.append(text.encode("ascii", "backslashreplace").decode() if ascii_only else text)
    return "\n".join(lines)


def _curves(records: Iterable[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Return (step, loss) pairs for training and validation, as far as there are any."""
    kept = list(records)
    curves = {
        kind: [(float(r["step"]), float(r[key])) for r in kept if r.get(key) is not None]
        for kind, key in _KINDS.items()
    }
    return {kind: points for kind, points in curves.items() if points}


def _finite(points: Points) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _shows(encoding: str, text: str) -> bool:
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


# --- text --------------------------------------------------------------------------------------


def _number(value: float, spread: float) -> str:
    """Return a loss with as many digits as its neighbours on the axis need to differ."""
    digits = min(max(2 - math.floor(math.log10(spread)), 0), 6)
    return f"{value:.{digits}f}" if abs(value) < 1e6 else f"{value:.2e}"


def _ticks(rows: int) -> set[int]:
    """Return the rows that get a number: top, bottom and some evenly between."""
    steps = max((rows - 1) // 4, 1)
    return {round(i * (rows - 1) / steps) for i in range(steps + 1)}


def _thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """Average neighbours until no more than `most` points are left; the last one stays as it is."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / most)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    means = [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups
    ]
    return [points[0], *means[1:-1], points[-1]]


def _line(places: Sequence[tuple[int, int]]) -> set[tuple[int, int]]:
    """Return every dot on the way from each place to the next."""
    dots = set(places)
    for (x0, y0), (x1, y1) in itertools.pairwise(places):
        for i in range(steps := max(abs(x1 - x0), abs(y1 - y0))):
            dots.add((round(x0 + (x1 - x0) * i / steps), round(y0 + (y1 - y0) * i / steps)))
    return dots


def _braille(dots: set[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """Return the bits of a braille character, two dots wide and four high, for each cell."""
    bits = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
    cells: dict[tuple[int, int], int] = {}
    for x, y in dots:
        cell = (x // 2, y // 4)
        cells[cell] = cells.get(cell, 0) | bits[y % 4][x % 2]
    return cells


# --- picture -----------------------------------------------------------------------------------


def _smoothed(values: Sequence[float], reach: int) -> list[float]:
    """Return the mean of up to `reach` finite values on either side; nan where there are none."""
    means = []
    for i in range(len(values)):
        # At the start, where the course is steep, the window narrows on both sides so that it does
        # not lean; at the end it loses one side only, as a narrow window there would show noise.
        half = min(reach, i)
        near = [v for v in values[i - half : i + half + 1] if math.isfinite(v)]
        means.append(sum(near) / len(near) if near else math.nan)
    return means


def _picture(curves: Mapping[str, Mapping[str, Points]], output: Path) -> None:
    """Draw training as a thin line and its smoothed course, validation as a dashed one."""
    # A figure of its own, not pyplot: no window, no global state, nothing left behind.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 5), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, (name, kinds) in enumerate(curves.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        # matplotlib hides what starts with an underscore, and so a name never comes first.
        suffix = "" if len(curves) == 1 else f" of {name}"
        if points := kinds.get("training"):
            x = [step for step, _ in points]
            y = [loss if math.isfinite(loss) else math.nan for _, loss in points]
            reach = round(len(y) * _ACROSS / 2)
            if reach:
                axes.plot(x, y, color=colour, linewidth=0.7, alpha=0.3)
                y = _smoothed(y, reach)
            dot = "o" if len(_finite(points)) == 1 else None
            axes.plot(x, y, color=colour, linewidth=1.8, marker=dot, label=f"training{suffix}")
        if points := kinds.get("validation"):
            alone = len(curves) == 1
            axes.plot(
                [x for x, _ in points],
                [y if math.isfinite(y) else math.nan for _, y in points],
                color=_COLOURS[1] if alone else colour,
                linestyle="--",
                linewidth=1.3,
                marker="o",
                markersize=4.5,
                markerfacecolor="white",
                markevery=max(len(points) // 25, 1),
                label=f"validation{suffix}",
            )
    axes.set_xlabel("step (updates)")
    axes.set_ylabel("loss (nats per token)")
    axes.margins(x=0.01)
    axes.grid(color="0.88", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    title = axes.set_title(next(iter(curves)), loc="left") if len(curves) == 1 else None
    legend = axes.legend(frameon=False)
    fonts = _fonts("".join(curves))
    for text in [*legend.get_texts(), *([title] if title else [])]:
        text.set_parse_math(False)  # a dollar sign in the name of a folder is a dollar sign
        text.set_fontfamily(fonts)
    output.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # A letter that no installed font has becomes an empty box; that spoils no curve.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(output, format="png")


def _fonts(text: str) -> list[str]:
    """Return fonts for these names: the usual one, then those installed for other scripts."""
    if text.isascii():
        return ["DejaVu Sans"]
    from matplotlib.font_manager import fontManager

    wanted = (
        *("Malgun Gothic", "Apple SD Gothic Neo", "AppleGothic", "NanumGothic", "Noto Sans CJK"),
        *("Noto Sans KR", "Yu Gothic", "Hiragino Sans", "Microsoft YaHei", "PingFang SC"),
    )
    installed = sorted({font.name for font in fontManager.ttflist})
    return ["DejaVu Sans", *(name for name in installed if name.startswith(wanted))]
