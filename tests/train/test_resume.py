"""A run that was interrupted, in whatever way, ends with the same bits as one that was not."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

import tinyplm
from tinyplm.errors import CheckpointError, ConfigError, DataError, ShapeError, TinyplmWarning
from tinyplm.recipes.pretrain import Evaluated, Finished, Saved, pretrain, saved_run
from tinyplm.recipes.run import Run
from tinyplm.train import checkpoint
from tinyplm.train.loop import Step
from tinyplm.train.progress import read_metrics

STEPS = 14
SETTINGS = {
    "tokenizer": "chars",
    "validation": 0.2,
    "layers": 1,
    "heads": 2,
    "hidden_size": 16,
    "positions": 8,
    "dropout": 0.2,
    "steps": STEPS,
    "batch": 3,
    "accumulate": 2,
    "evaluate_every": 4,
    "evaluation_windows": 6,
    "checkpoint_every": 3,
    "sample_tokens": 5,
}
SCRIPT = """
import json, sys
from tinyplm.recipes.pretrain import pretrain
from tinyplm.recipes.run import Run
for event in pretrain(Run(**json.loads(sys.argv[1])), resume=sys.argv[2] == "resume"):
    print(type(event).__name__, getattr(event, "interrupted", ""), flush=True)
"""


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Some five hundred letters: fifty windows, eight updates and a third an epoch."""
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(written(seed=0), encoding="utf-8")
    return path


def written(seed):
    words = random.Random(seed)
    return " ".join("".join(words.choices("abcdé", k=words.randint(2, 7))) for _ in range(92))


def settings(text, output, **changes):
    return SETTINGS | {"data": str(text), "output": str(output)} | changes


def run(text, output, *, resume=False, **changes):
    return pretrain(Run(**settings(text, output, **changes)), resume=resume)


def outcome(folder):
    """All that a run leaves behind, but for the time it took."""
    last = checkpoint.load_latest(folder)
    records = read_metrics(folder / "metrics.jsonl")
    for record in records:
        assert record.pop("seconds") > 0
    files = {p.name: p.read_bytes() for p in folder.iterdir() if p.name in FILES}
    assert files.keys() == FILES
    arrays = {
        f"{group}/{name}": array
        for group, named in last.arrays.items()
        for name, array in named.items()
    }
    return {"records": records, "step": last.step, "state": last.state, "files": files}, arrays


FILES = {"model.safetensors", "config.json", "tokenizer.json", "tokens.bin"}


def assert_same(folder, expected):
    (what, arrays), (expected_what, expected_arrays) = outcome(folder), expected
    assert what["step"] == STEPS
    assert what == expected_what
    assert arrays.keys() == expected_arrays.keys()
    for name, array in arrays.items():
        assert array.dtype == expected_arrays[name].dtype
        assert array.tobytes() == expected_arrays[name].tobytes(), name


@pytest.fixture(scope="module")
def uninterrupted(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    events = list(run(text, folder))
    return events, outcome(folder)


@pytest.fixture(scope="module")
def expected(uninterrupted):
    return uninterrupted[1]


def test_the_run_is_what_the_others_are_compared_with(uninterrupted):
    events, (what, arrays) = uninterrupted
    assert [e.number for e in events if isinstance(e, Step)] == list(range(1, STEPS + 1))
    assert [e.step for e in events if isinstance(e, Evaluated)] == [4, 8, 12, 14]
    assert [e.step for e in events if isinstance(e, Saved)] == [3, 6, 9, 12, 14]
    assert isinstance(events[-1], Finished)
    assert [r["step"] for r in what["records"]] == list(range(1, STEPS + 1))
    assert [r["step"] for r in what["records"] if "validation_loss" in r] == [4, 8, 12, 14]
    assert what["state"]["windows"]["epoch"] == 1  # the order was drawn anew on the way
    assert {"model/token_embedding.weight", "optimizer/square.norm.gain"} <= arrays.keys()
    assert what["state"]["optimizer"] == {"steps": STEPS}


def test_the_same_seed_gives_the_same_bits_and_another_another(text, tmp_path, expected):
    list(run(text, tmp_path / "same"))
    assert_same(tmp_path / "same", expected)
    list(run(text, tmp_path / "other", seed=1))
    first, other = expected[1], outcome(tmp_path / "other")[1]
    for name, array in first.items():
        if "bias" not in name and "mean" not in name:
            assert not np.array_equal(array, other[name]), name


@pytest.mark.parametrize("place", [0, 1, 3, 6, 9, 13, 18, 22, 23])
def test_stopping_after_any_event_and_going_on_changes_nothing(
    text, tmp_path, uninterrupted, place
):
    events, expected = uninterrupted
    assert len(events) == 25
    records = run(text, tmp_path)
    for _ in range(place + 1):
        event = next(records)
    assert type(event) is type(events[place])
    records.close()
    ready = next(resumed := run(text, tmp_path, resume=True))
    steps_saved = [e.step for e in events[: place + 1] if isinstance(e, Saved)]
    assert ready.resumed == max(steps_saved, default=0)
    list(resumed)
    assert_same(tmp_path, expected)


def test_stopping_again_and_again_changes_nothing(text, tmp_path, expected):
    rounds = 0
    while True:
        for event in (records := run(text, tmp_path, resume=rounds > 0)):
            if isinstance(event, Saved) and event.step < STEPS:
                break
        records.close()
        rounds += 1
        if isinstance(event, Finished):
            break
    assert rounds == 5
    assert_same(tmp_path, expected)


def test_a_finished_run_can_be_resumed_and_stays_as_it_is(text, tmp_path, expected):
    *_, before = run(text, tmp_path)
    events = list(run(text, tmp_path, resume=True))
    assert [type(e).__name__ for e in events] == ["Prepared", "Finished"]
    assert (events[-1].score, events[-1].sample) == (before.score, before.sample)
    assert_same(tmp_path, expected)


def test_a_new_run_never_starts_where_one_lies(text, tmp_path, expected):
    list(run(text, tmp_path))
    with pytest.raises(ConfigError, match="already holds a run"):
        next(run(text, tmp_path))
    assert_same(tmp_path, expected)


def test_the_saved_settings_are_those_that_go_on(text, tmp_path, expected):
    records = run(text, tmp_path)
    while not isinstance(next(records), Saved):
        pass
    records.close()
    list(pretrain(saved_run(str(tmp_path), "gpt2"), resume=True))
    assert_same(tmp_path, expected)


def interrupted_at(text, folder, step):
    records = run(text, folder)
    for event in records:
        if isinstance(event, Saved) and event.step == step:
            break
    records.close()


DAMAGE = {
    "cut short": lambda p: (p / "model.safetensors").write_bytes(
        (p / "model.safetensors").read_bytes()[:-7]
    ),
    "a byte of the moments": lambda p: flip(p / "optimizer.safetensors", -1),
    "no manifest": lambda p: (p / "manifest.json").unlink(),
    "no state": lambda p: (p / "state.json").unlink(),
}


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(text, tmp_path, expected, kind):
    interrupted_at(text, tmp_path, 9)
    DAMAGE[kind](tmp_path / "checkpoint-000009")
    records = run(text, tmp_path, resume=True)
    with pytest.warns(TinyplmWarning, match="damaged checkpoint and took checkpoint-000006"):
        assert next(records).resumed == 6
    list(records)
    assert_same(tmp_path, expected)


def test_if_every_checkpoint_is_damaged_the_run_does_not_start_anew_in_silence(text, tmp_path):
    interrupted_at(text, tmp_path, 9)
    for folder in tmp_path.glob("checkpoint-*"):
        DAMAGE["no state"](folder)
    with pytest.raises(CheckpointError, match="none of its 2 checkpoints is intact"):
        next(run(text, tmp_path, resume=True))


def test_a_run_goes_on_with_the_tokens_it_began_with_whatever_became_of_the_text(
    text, tmp_path, expected
):
    for number, change in enumerate(
        (
            lambda path: path.write_text(written(seed=1), encoding="utf-8"),
            lambda path: path.unlink(),
        )
    ):
        copy = tmp_path / "copy.txt"
        shutil.copy(text, copy)
        folder = tmp_path / f"run {number}"
        interrupted_at(copy, folder, 6)
        change(copy)
        list(run(copy, folder, resume=True))
        assert_same(folder, expected)


def test_lost_tokens_are_made_again_from_the_same_text(text, tmp_path, expected):
    interrupted_at(text, tmp_path, 6)
    (tmp_path / "tokens.bin").unlink()
    list(run(text, tmp_path, resume=True))
    assert_same(tmp_path, expected)


def test_other_tokens_than_those_the_run_began_with_are_refused(text, tmp_path):
    copy, folder = tmp_path / "copy.txt", tmp_path / "run"
    shutil.copy(text, copy)
    interrupted_at(copy, folder, 6)
    before = {
        p: p.read_bytes() for p in folder.rglob("*") if "checkpoint" in str(p) and p.is_file()
    }
    # As long as before, and of the same letters, so that nothing but the content tells.
    tokens = np.fromfile(folder / "tokens.bin", "uint16")
    tokens[[10, 11]] = tokens[[11, 10]] if tokens[10] != tokens[11] else tokens[[10, 11]] ^ 1
    tokens.tofile(folder / "tokens.bin")
    with pytest.raises(DataError, match=r"tokens\.bin.*began with"):
        list(run(copy, folder, resume=True))
    (folder / "tokens.bin").unlink()
    copy.write_text(copy.read_text(encoding="utf-8")[::-1], encoding="utf-8")
    with pytest.raises(DataError, match=r"tokens\.bin.*began with"):
        list(run(copy, folder, resume=True))
    assert before == {p: p.read_bytes() for p in before}


@pytest.mark.parametrize("changes", [{"hidden_size": 8}, {"layers": 2}, {"positions": 4}], ids=str)
def test_settings_of_another_model_are_refused(text, tmp_path, changes):
    interrupted_at(text, tmp_path, 6)
    with pytest.raises((ShapeError, ConfigError)):
        list(run(text, tmp_path, resume=True, **changes))


SIGNALS = [
    pytest.param(
        number,
        id=number.name,
        marks=pytest.mark.skipif(os.name == "nt", reason="cannot be sent there"),
    )
    for number in (signal.SIGINT, signal.SIGTERM)
]


def asked_to_end(records, step, *numbers):
    events = []
    for event in records:
        events.append(event)
        if isinstance(event, Step) and event.number == step:
            for number in numbers:
                os.kill(os.getpid(), number)
    return events


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("step", [5, 13])
def test_a_request_to_end_is_granted_after_the_update_with_a_checkpoint(
    text, tmp_path, expected, number, step
):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.warns(TinyplmWarning, match="Stopping after this update"):
        events = asked_to_end(run(text, tmp_path), step, number)
    assert events[-1] == Saved(step, tmp_path / f"checkpoint-{step:06d}", interrupted=True)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    list(run(text, tmp_path, resume=True))
    assert_same(tmp_path, expected)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_request_ends_at_once_and_the_run_still_goes_on(text, tmp_path, expected, number):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TinyplmWarning)
        with pytest.raises(KeyboardInterrupt):
            asked_to_end(run(text, tmp_path), 5, number, number)
    list(run(text, tmp_path, resume=True))
    assert_same(tmp_path, expected)


def started(text, folder, *, resume):
    environment = os.environ | {"PYTHONPATH": str(Path(tinyplm.__file__).parents[1])}
    return subprocess.Popen(
        [
            sys.executable, "-c", SCRIPT, json.dumps(settings(text, folder)),
            "resume" if resume else "begin",
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
        env=environment,
    )  # fmt: skip


@pytest.mark.slow
def test_a_process_killed_at_random_moments_again_and_again_ends_with_the_same_bits(
    text, tmp_path, expected
):
    moments = random.Random(0)
    folder = tmp_path / "run"
    kills = 0
    for attempt in range(5):
        process = started(text, folder, resume=attempt > 0)
        for _ in range(moments.randint(2, 9)):
            process.stdout.readline()
        time.sleep(moments.uniform(0, 0.003))
        process.kill()
        process.communicate()
        kills += process.returncode != 0
    assert kills >= 2
    list(run(text, folder, resume=True))
    assert_same(folder, expected)


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_a_process_asked_to_end_saves_and_ends_well(text, tmp_path, expected, number):
    process = started(text, tmp_path, resume=False)
    assert process.stdout.readline().startswith("Prepared")
    assert process.stdout.readline().startswith("Step")
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    if "Finished" not in output:  # it may have been too quick for the signal
        assert output.splitlines()[-1] == "Saved True"
        assert "Stopping after this update" in errors
    list(run(text, tmp_path, resume=True))
    assert_same(tmp_path, expected)
