import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
if str(ROOT) not in sys.path:  # pytest alone does not add the folder it runs in
    sys.path.insert(0, str(ROOT))

from bench import __main__ as command  # noqa: E402
from bench import measure  # noqa: E402

FIELDS = {
    "benchmark": str,
    "what": str,
    "shapes": str,
    "dtype": str,
    "library": str,
    "variant": str,
    "median": float,
    "minimum": float,
    "spread": float,
    "ratio": float,
    "ratio_to": str,
    "rounds": int,
    "calls": int,
    "threads": int,
    "machine": str,
    "versions": dict,
    "date": str,
}


def check_record(record):
    for name, kind in FIELDS.items():
        assert isinstance(record[name], kind), f"{name}: {record[name]!r}"
    assert 0 < record["minimum"] <= record["median"]
    assert record["spread"] >= 0
    assert record["ratio"] > 0
    assert {"python", "numpy", "tinyplm"} <= record["versions"].keys()


def test_contestants_take_turns_in_an_order_that_reverses():
    order = []
    contestants = [
        measure.Contestant(
            library="ours",
            variant=name,
            run=lambda name=name: order.append(name),
            prepare=lambda name=name: order.append(f"prepare {name}"),
        )
        for name in "AB"
    ]
    samples = measure.race(contestants, rounds=2, repeats=1, pause=0)
    turns = [["prepare " + name, name] * 2 for name in "ABBA"]  # a call that is not timed, and one
    assert order == [call for turn in turns for call in turn]
    assert [len(found.rounds) for found in samples] == [2, 2]
    assert [len(found.all) for found in samples] == [2, 2]


def test_a_record_holds_the_median_the_spread_and_the_ratio_round_by_round():
    ours = measure.Contestant(library="ours", variant="x", run=lambda: None)
    theirs = measure.Contestant(library="torch", variant="y", run=lambda: None)
    mine = measure.Samples([[1.0, 1.0], [2.0, 2.0], [4.0, 4.0]])
    others = measure.Samples([[2.0, 2.0], [6.0, 6.0], [16.0, 16.0]])  # 2, 3 and 4 times as long
    record = measure.record(
        theirs,
        others,
        to=(ours, mine),
        benchmark="b",
        what="w",
        shapes="1",
        dtype="float32",
        options=measure.Options(threads=2),
        more={"tokens_per_second": 3.0},
    )
    check_record(record)
    assert record["median"] == 6.0
    assert record["minimum"] == 2.0
    assert record["spread"] == (13.5 - 3.0) / 6.0  # quartiles of 2 2 6 6 16 16
    assert record["ratio"] == 3.0
    assert record["ratio_to"] == "ours x"
    assert record["threads"] == 2
    assert record["tokens_per_second"] == 3.0
    assert "torch y" in measure.table([record])


@pytest.mark.parametrize("theirs", [1.001, float("nan")])
def test_numbers_that_differ_are_refused_before_any_time_is_taken(theirs):
    measure.require_close("loss", 1.0, 1.00001)
    with pytest.raises(measure.WrongResultError, match=r"loss: ours is 1\.0"):
        measure.require_close("loss", 1.0, theirs)


def test_op_overhead_prints_a_json_line_for_each_measurement(tmp_path, capsys):
    file = tmp_path / "results" / "now.jsonl"
    arguments = ["op-overhead", "--quick", "--ours-only", "--json", str(file)]
    assert command.main(arguments) == 0
    printed = capsys.readouterr()
    records = [json.loads(line) for line in printed.out.splitlines()]
    assert [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] == records
    assert len(records) == 2
    for record in records:
        check_record(record)
        assert record["benchmark"] == "op-overhead"
        assert record["library"] == "ours"
        assert record["ratio"] == 1.0
        assert record["ops_per_second"] == pytest.approx(1000 / record["median"])
    assert "y + 1.0" in printed.err
    # The same file as the earlier one: every measurement is found in it.
    assert command.main([*arguments[:3], "--compare", str(file)]) == 0
    assert "ratio then" in (compared := capsys.readouterr().err)
    assert compared.rstrip().splitlines()[-1].split()[:2] == ["1.00", "1.00"]


def test_kernels_are_checked_and_timed_beside_their_definition(capsys):
    pytest.importorskip("numba")
    assert command.main(["kernels", "--quick", "--ours-only"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for record in records:
        check_record(record)
    timed = {(record["what"], record["variant"]) for record in records}
    for kernel in ("gelu_tanh_forward", "layer_norm_pullback", "score_softmax", "adamw_update"):
        assert {(kernel, v) for v in ("numba", "definition", "copy of its inputs")} <= timed


def test_the_list_names_every_benchmark_and_a_wrong_name_gets_it_too(capsys):
    assert command.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in command.BENCHMARKS)
    with pytest.raises(SystemExit):
        command.main(["training"])
    assert "training-step" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--threads", "0"], "at least 1"),
        (["--threads", "2"], "NumPy is loaded"),
        (["--compare", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_words(arguments, said, capsys):
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert said in capsys.readouterr().err


def test_shakespeare_without_a_text_says_what_is_missing(tmp_path, capsys):
    config = tmp_path / "run.toml"
    config.write_text("layers = 1\n", encoding="utf-8")
    assert command.main(["shakespeare", "--config", str(config)]) == 1
    assert "--data FILE" in capsys.readouterr().err
