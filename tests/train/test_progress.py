import errno
import io
import json
import os
import sys

import numpy as np
import pytest

from tinyplm.errors import CheckpointError, ConfigError, DataError, TinyplmWarning
from tinyplm.train import checkpoint
from tinyplm.train.progress import MetricsLog, Progress, duration, read_metrics


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    """Each look at it takes a second."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


def train(progress, first, last):
    for step in range(first, last + 1):
        progress.update(step, loss=8 / step, tokens=2_000)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (7_500, "2 h 05 min"),
        (4_000_000, "1,111 h 06 min"),
    ],
)
def test_a_duration_reads_well(seconds, text):
    assert duration(seconds) == text


def test_without_a_terminal_there_is_a_plain_line_now_and_then_and_at_the_end():
    stream = io.StringIO()
    with Progress(1_000, stream=stream, every=400, clock=Clock()) as progress:
        train(progress, 1, 1_000)
    assert stream.getvalue().splitlines() == [
        "step 400/1,000  loss 0.0200  2,000 tokens/s  10 min 00 s left",
        "step 800/1,000  loss 0.0100  2,000 tokens/s  3 min 20 s left",
        "step 1,000/1,000  loss 0.0080  2,000 tokens/s  0 s left",
    ]


def test_time_left_of_a_resumed_run_counts_from_where_it_resumed():
    stream = io.StringIO()
    with Progress(100, start=90, stream=stream, every=1, clock=Clock()) as progress:
        progress.update(91, loss=2.0, tokens=10)
    assert stream.getvalue() == "step 91/100  loss 2.0000  10 tokens/s  9 s left\n"


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_quiet_prints_nothing(stream):
    with Progress(10, stream=stream, every=0, quiet=True) as progress:
        train(progress, 1, 10)
        progress.note("saved")
    assert stream.getvalue() == ""


def test_a_terminal_without_tqdm_has_one_line_that_is_written_over(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    stream = Terminal()
    with Progress(10, stream=stream, clock=Clock()) as progress:
        train(progress, 1, 5)
        progress.note("saved checkpoint-000005")
        train(progress, 6, 10)
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in stream.getvalue().split("\n")]
    assert lines == [
        "saved checkpoint-000005",
        "step 10/10  loss 0.8000  2,000 tokens/s  0 s left",
        "",
    ]


def test_a_terminal_with_tqdm_has_a_bar_and_notes_stand_above_it():
    pytest.importorskip("tqdm")
    stream = Terminal()
    with Progress(10, stream=stream, clock=Clock()) as progress:
        train(progress, 1, 5)
        progress.note("saved checkpoint-000005")
        train(progress, 6, 10)
    text = stream.getvalue()
    assert "\rsaved checkpoint-000005\n" in text
    last = text.rstrip("\n").rsplit("\r", 1)[-1]
    assert last.startswith("100% |")
    assert "step 10/10  loss 0.8000  2,000 tokens/s  0 s left" in last


# --- the file ----------------------------------------------------------------------------------


def records(first, last):
    for step in range(first, last + 1):
        yield {"step": step, "loss": 1 / step, "seconds": np.float32(step), "text": "한국어"}
        if step % 4 == 0:
            yield {"step": step, "validation_loss": np.float64(2 / step)}


def log(path, first, last, **options):
    with MetricsLog(path, **options) as metrics:
        for record in records(first, last):
            metrics.write(record)


def test_each_record_is_in_the_file_as_soon_as_it_is_written(tmp_path):
    with MetricsLog(tmp_path / "run" / "metrics.jsonl") as metrics:
        for n, record in enumerate(records(1, 8), start=1):
            metrics.write(record)
            assert len(read_metrics(metrics.path)) == n
        metrics.sync()
    assert read_metrics(metrics.path) == [
        {key: float(v) if isinstance(v, np.floating) else v for key, v in record.items()}
        for record in records(1, 8)
    ]


@pytest.mark.parametrize("resumed", [0, 3, 4, 8, 9])
@pytest.mark.parametrize("torn", [b"", b'{"step": 10, "lo', b'{"step": 10}'])
def test_an_interrupted_and_resumed_run_leaves_the_file_of_an_uninterrupted_one(
    resumed, torn, tmp_path
):
    log(tmp_path / "whole.jsonl", 1, 12)
    path = tmp_path / "metrics.jsonl"
    log(path, 1, 9)
    path.write_bytes(path.read_bytes() + torn)
    log(path, resumed + 1, 12, resumed=resumed)
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.jsonl", "whole.jsonl"]


def test_a_log_that_exists_is_continued(tmp_path):
    log(tmp_path / "a", 1, 3)
    log(tmp_path / "a", 4, 5)
    log(tmp_path / "b", 1, 5)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_crash_while_records_are_removed_leaves_all_or_the_right_ones(monkeypatch, tmp_path):
    class CrashError(BaseException):
        pass

    def crash(*given):
        raise CrashError

    path = tmp_path / "metrics.jsonl"
    log(path, 1, 9)
    before = path.read_bytes()
    for name in ("open", "write", "fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "os", Some(name, crash))
            with pytest.raises(CrashError):
                MetricsLog(path, resumed=4)
        assert path.read_bytes() == before
    MetricsLog(path, resumed=4).close()
    assert [r["step"] for r in read_metrics(path)] == [1, 2, 3, 4, 4]


class Some:
    """The os module with one function changed."""

    def __init__(self, name, function):
        setattr(self, name, function)

    def __getattr__(self, name):
        return getattr(os, name)


def test_a_damaged_line_in_the_middle_is_removed_with_a_warning(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\0\0\0\n{"step": 2}\n')
    with pytest.raises(DataError, match="line 2: expected a JSON object"):
        read_metrics(path)
    with pytest.warns(TinyplmWarning, match="line 2, is no record"):
        MetricsLog(path).close()
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]


def test_what_is_not_finite_is_valid_json_and_comes_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as metrics:
        metrics.write({"step": 1, "loss": float("inf"), "norms": [np.float32("-inf"), 1.5]})
        metrics.write({"step": np.int64(2), "loss": float("nan"), "by": {"a": np.arange(2)}})
    for line in path.read_text("utf-8").splitlines():
        json.loads(line, parse_constant=pytest.fail)
    one, two = read_metrics(path)
    assert one == {"step": 1, "loss": float("inf"), "norms": [float("-inf"), 1.5]}
    assert np.isnan(two.pop("loss"))
    assert two == {"step": 2, "by": {"a": [0, 1]}}


@pytest.mark.parametrize("record", [{}, {"step": 1.5}, {"step": True}, {"step": "1"}])
def test_a_record_without_a_step_is_refused(record, tmp_path):
    with MetricsLog(tmp_path / "m") as metrics, pytest.raises(ConfigError, match="whole number"):
        metrics.write(record)
    assert (tmp_path / "m").read_bytes() == b""


class Full:
    """A file on a disk with little room left."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, content):
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self.file.write(content[: self.room])
        self.room -= written
        return written

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.parametrize("room", [0, 5])
def test_a_full_disk_leaves_no_half_record(room, tmp_path):
    path = tmp_path / "metrics.jsonl"
    log(path, 1, 3)
    before = path.read_bytes()
    with MetricsLog(path) as metrics:
        file, metrics._file = metrics._file, Full(metrics._file, room)
        with pytest.raises(CheckpointError, match=r"has no room for step 4: .* Free some space"):
            metrics.write({"step": 4, "loss": 1.0})
        assert path.read_bytes() == before
        metrics._file = file
        metrics.write({"step": 4})
    assert path.read_bytes() == before + b'{"step": 4}\n'


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match="cannot be opened"):
        MetricsLog(tmp_path / "file" / "metrics.jsonl")
    with pytest.raises(DataError, match="is this the right folder"):
        read_metrics(tmp_path / "none.jsonl")
