import math
import subprocess
import sys

import numpy as np
import pytest

from tinyplm.errors import ConfigError, DataError, TinyplmWarning
from tinyplm.train.plot import MISSING, _smoothed, plot_losses, text_plot


def run(steps=200, drop=2.0):
    for step in range(1, steps + 1):
        loss = 2 + drop * math.exp(-step / 30)
        yield {"step": step, "loss": loss, "seconds": 0.1}
        if step % 50 == 0:
            yield {"step": step, "validation_loss": loss + 0.1}


def size_of(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


@pytest.mark.parametrize(
    "names", [["run"], ["_a", "b $x$ {y}", "한국어"], [f"{i}" for i in range(9)]]
)
def test_a_picture_is_written(names, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "new" / "losses.png"
    assert str(path) in plot_losses({name: run() for name in names}, path)
    assert size_of(path) == (1280, 800)


@pytest.mark.parametrize(
    "records",
    [
        [{"step": 1, "loss": 3.0}],
        [{"step": 5, "validation_loss": 3.0}],
        [{"step": 1, "loss": 3.0}, {"step": 2, "loss": math.nan}, {"step": 3, "loss": math.inf}],
        [{"step": i, "loss": 1.5} for i in range(500)],
        [{"step": 1, "loss": 3.0}, {"step": 2, "accuracy": 0.5}, {"step": 3, "loss": None}],
    ],
)
def test_odd_runs_can_be_drawn_both_ways(records, tmp_path):
    pytest.importorskip("matplotlib")
    plot_losses({"run": records}, tmp_path / "losses.png")
    assert size_of(tmp_path / "losses.png") == (1280, 800)
    assert "loss (nats per token)" in plot_losses({"run": records}, None, encoding="utf-8")


def test_drawing_leaves_no_global_state_behind(tmp_path):
    pytest.importorskip("matplotlib")
    code = (
        "import sys; from pathlib import Path; from tinyplm.train.plot import plot_losses\n"
        "assert 'matplotlib' not in sys.modules\n"
        "plot_losses({'run': [{'step': 1, 'loss': 3.0}]}, Path(sys.argv[1]))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.png")], check=True)


def test_without_matplotlib_a_text_plot_follows_the_message(monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.warns(TinyplmWarning) as warned:
        text = plot_losses({"run": run()}, tmp_path / "losses.png", encoding="utf-8")
    assert str(warned[0].message) == MISSING
    assert (
        MISSING == 'Plotting needs matplotlib: pip install "tinyplm[plot]". (A text plot follows.)'
    )
    assert not list(tmp_path.iterdir())
    assert text == plot_losses({"run": run()}, None, encoding="utf-8")


def test_a_text_plot_is_this():
    series = {"training": [(0, 4.0), (5, 2.0), (10, 0.0)], "validation": [(10, 1.0)]}
    assert text_plot(series, 24, 8, ascii_only=True).split("\n") == [
        "loss (nats per token)",
        "4.00 |*",
        "     |",
        "     |        *",
        "     |                 o",
        "0.00 |                 *",
        "     +" + "-" * 17 + "-",
        "      step 0" + " " * 10 + "10",
        "* training: 0.0000 at the end, lowest 0.0000",
        "o validation: 1.0000 at the end, lowest 1.0000",
    ]


def test_a_braille_line_has_no_gap_and_goes_through_its_ends():
    lines = text_plot({"a": [(0, 2.0), (100, 1.0)]}, 60, 12).split("\n")[1:-3]
    dots = set()
    for row, line in enumerate(lines):
        for column, cell in enumerate(line.split("|")[1]):
            bits = ord(cell) - 0x2800 if cell != " " else 0
            assert 0 <= bits < 256
            for bit, (x, y) in enumerate(
                [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (0, 3), (1, 3)]
            ):
                if bits >> bit & 1:
                    dots.add((2 * column + x, 4 * row + y))
    assert (0, 0) in dots
    assert max(dots) == (2 * (60 - 6) - 1, 4 * 9 - 1)
    assert {x for x, _ in dots} == set(range(2 * (60 - 6)))
    assert all(
        {(x + 1, y), (x + 1, y + 1)} & dots for x, y in dots - {max(dots)} if (x + 1, y) not in dots
    )


@pytest.mark.parametrize(("width", "height"), [(24, 6), (76, 18), (200, 50)])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_a_text_plot_keeps_to_its_size(width, height, ascii_only):
    rng = np.random.default_rng(0)
    series = {
        name: [(i * 7, scale * rng.normal()) for i in range(n)]
        for name, n, scale in [("a", 5_000, 1e-3), ("b", 3, 1.0), ("c", 40, 30.0)]
    }
    lines = text_plot(series, width, height, ascii_only=ascii_only).split("\n")
    assert len(lines) == height + 3
    assert all(len(line) <= width for line in lines[:height])
    assert len(lines[height - 2]) == width
    assert all(line.isascii() or not ascii_only for line in lines)


@pytest.mark.parametrize(
    ("encoding", "dots"), [("utf-8", True), ("cp949", False), ("ascii", False), ("no-such", False)]
)
def test_characters_are_those_that_the_output_can_show(encoding, dots):
    text = plot_losses({"한": run(), "b": run()}, None, encoding=encoding)
    assert any("\u2800" < letter <= "\u28ff" for letter in text) == dots
    assert dots or text.isascii()


def test_what_is_not_finite_is_left_out_and_counted():
    points = [(1, 2.0), (2, math.nan), (3, math.inf), (4, 1.0)]
    text = text_plot({"a": points}, ascii_only=True)
    assert text.endswith("* a: 1.0000 at the end, lowest 1.0000 (2 of 4 not finite, left out)")


def test_nothing_to_plot_is_told():
    for records in ([], [{"step": 1, "loss": math.nan}], [{"step": 1, "accuracy": 1.0}]):
        with pytest.raises(DataError, match="no finite 'loss' or 'validation_loss' in run"):
            plot_losses({"run": records}, None)
    with pytest.raises(DataError, match="no finite loss"):
        text_plot({"a": []})
    with pytest.raises(ConfigError, match="width=10"):
        text_plot({"a": [(1, 1.0)]}, 10, 10)


def test_smoothing_is_the_mean_of_its_window():
    values = [1.0, 5.0, math.nan, 2.0, 9.0]
    assert _smoothed(values, 1) == [1.0, 3.0, 3.5, 5.5, 5.5]
    assert math.isnan(_smoothed([math.nan], 1)[0])
