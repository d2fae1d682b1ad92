"""Pictures of records: bars of the best peer's time over ours, and curves of what grows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .measure import Record

OURS, THEIRS, OTHER = (
    "#0072B2",
    "#D55E00",
    "#009E73",
)  # told apart by readers with any colour vision


def plot(records: Sequence[Record], output: Path) -> None:
    """Draw the records into a PNG or SVG file, by its name; bars on top, one panel of curves for each quantity below.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: nothing was compared, or no such kind of picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if turned := [r for r in records if "accuracy_by_length" in r]:
        from .reversal import draw

        return draw(turned, output)
    bars = [r for r in records if "times_best_peer" in r and "axis" not in r]
    curves: dict[str, list[Record]] = {}
    for record in records:
        if "axis" in record:
            curves.setdefault(record["what"], []).append(record)
    if not bars and not curves:
        raise ValueError("no record compares ours with a peer, so there is nothing to draw.")
    rows = (len(curves) + 1) // 2
    heights = [0.8 + 0.34 * len(bars)] * bool(bars) + [3.2] * rows
    figure = Figure(figsize=(10, sum(heights)), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(heights), 2, height_ratios=heights)
    if bars:
        _bars(figure.add_subplot(grid[0, :]), bars)
    for number, (title, points) in enumerate(curves.items()):
        row, column = divmod(number, 2)
        _curves(figure.add_subplot(grid[row + bool(bars), column]), title, points)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output)


def _bars(axes: Any, records: Sequence[Record]) -> None:
    """One bar for each measurement: to the right of 1 ours wins."""
    from matplotlib.ticker import LogFormatter

    places = range(len(records))
    ratios = [r["times_best_peer"] for r in records]
    ranges = [r["times_best_peer_range"] for r in records]
    # A median lies within the range of its rounds.
    errors = [
        [value - low for value, (low, _) in zip(ratios, ranges, strict=True)],
        [high - value for value, (_, high) in zip(ratios, ranges, strict=True)],
    ]
    colours = [OURS if value >= 1 else THEIRS for value in ratios]
    widths = [value - 1 for value in ratios]
    axes.barh(places, widths, left=1, xerr=errors, color=colours, error_kw={"elinewidth": 0.8})
    axes.set_xscale("log")
    for which in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        which(LogFormatter(minor_thresholds=(2, 0.5)))
    names = [f"{r['benchmark']}: {r['what']}, {r['shapes']}" for r in records]
    axes.set_yticks(places, [name if len(name) < 70 else name[:69] + "…" for name in names])
    for place, record in zip(places, records, strict=True):
        value, high = record["times_best_peer"], record["times_best_peer_range"][1]
        text = f" {value:.2f} · {record['best_peer']}"
        axes.text(max(value, high, 1), place, text, va="center", fontsize=7)
    axes.axvline(1, color="0.2", linewidth=1)
    axes.invert_yaxis()
    axes.tick_params(which="both", labelsize=7)
    axes.margins(x=0.25, y=0.02)
    axes.set_xlabel("times the best peer (its time over ours; above 1 ours is faster or smaller)")
    axes.spines[["top", "right"]].set_visible(False)


def _curves(axes: Any, title: str, records: Sequence[Record]) -> None:
    """Each library's values, both axes in powers of ten."""
    for library in dict.fromkeys(r["library"] for r in records):
        own = [r for r in records if r["library"] == library]
        axes.loglog(
            [r["value"] for r in own],
            [r["median"] for r in own],
            marker="o",
            markersize=4,
            color={"ours": OURS, "torch": THEIRS}.get(library, OTHER),
            label=f"{library}, exponent {own[0]['exponent']:.2f}",
        )
    values = sorted({r["value"] for r in records})
    axes.set_xticks(values, [f"{value:,}" for value in values])
    axes.set_xticks([], minor=True)
    axes.set_title(title, loc="left", fontsize=9)
    axes.set_xlabel(records[0]["axis"])
    axes.set_ylabel({"s": "seconds", "B": "bytes"}[records[0]["unit"]])
    axes.grid(color="0.88", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
