import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
if str(ROOT) not in sys.path:  # pytest alone does not add the folder it runs in
    sys.path.insert(0, str(ROOT))

from bench import __main__ as command  # noqa: E402
from bench import floors, growth, measure, steps  # noqa: E402
from bench.plot import plot  # noqa: E402
from bench.workers import crew  # noqa: E402

FIELDS = {
    "benchmark": str,
    "what": str,
    "shapes": str,
    "dtype": str,
    "library": str,
    "variant": str,
    "median": float,
    "minimum": float,
    "unit": str,
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
    samples = measure.race(contestants, rounds=2, repeats=1)
    turns = [["prepare " + name, name] * 2 for name in "ABBA"]  # a call that is not timed, and one
    assert order == [call for turn in turns for call in turn]
    assert [len(found.rounds) for found in samples] == [2, 2]
    assert [len(found.all) for found in samples] == [2, 2]


def described(**more):
    """Ours takes 1, 2 and 4 seconds; PyTorch 2, 3 and 4 times as long, JAX 1.5 times, NumPy a tenth."""
    ours = [1.0, 2.0, 4.0]
    entries = {"ours x": [1, 1, 1], "torch y": [2, 3, 4], "jax z": [1.5] * 3, "numpy n": [0.1] * 3}
    contestants, samples = [], []
    for name, factors in entries.items():
        library, variant = name.split()
        contestants.append(measure.Contestant(library=library, variant=variant, run=lambda: None))
        rounds = [[t * f, t * f] for t, f in zip(ours, factors, strict=True)]
        samples.append(measure.Samples(rounds))
    options = measure.Options(threads=2)
    return measure.describe(
        contestants, samples, benchmark="b", what="w", shapes="1", options=options, **more
    )


def test_a_record_holds_the_median_the_spread_and_the_ratio_round_by_round():
    record = described(more={"axis": "layers"})[1]
    check_record(record)
    assert record["median"] == 6.0
    assert record["minimum"] == 2.0
    assert record["spread"] == (13.5 - 3.0) / 6.0  # quartiles of 2 2 6 6 16 16
    assert record["ratio"] == 3.0
    assert record["ratio_range"] == [2.0, 4.0]
    assert record["ratio_to"] == "ours x"
    assert record["threads"] == 2
    assert record["axis"] == "layers"


def test_ours_is_set_against_the_fastest_peer_and_the_floor():
    records = described(floor=(0.5, "half a second"))
    assert records[0]["best_peer"] == "jax z"  # not NumPy, which is no peer
    assert records[0]["times_best_peer"] == 1.5
    assert records[0]["share_of_floor"] == 0.25
    assert "best_peer" not in records[1]
    text = measure.table(records)
    assert "1.50 times the best peer, jax z" in text
    assert "of the floor  25%" in text
    assert "half a second" in text


def test_bytes_are_shown_as_bytes():
    assert measure.shown(1.5e9, "B").split() == ["1.50", "GB"]
    assert measure.shown(2e5, "B").split() == ["0.20", "MB"]
    assert measure.shown(0.002, "s").split() == ["2.00", "ms"]


def test_the_exponent_of_a_power_law_is_found():
    x = [256, 512, 1024]
    assert growth.exponent(x, [3.0 * v**1.5 for v in x]) == pytest.approx(1.5)


def test_the_operations_of_a_step_are_counted_as_the_paper_would():
    size = steps.Size(layers=2, heads=2, width=8, batch=3, positions=4, vocabulary=10)
    matrices = 2 * 12 * 8 * 8 + 8 * 10
    pairs = 3 * (1 + 2 + 3 + 4)  # each position sees itself and those before
    assert size.flops() == 6 * 12 * matrices + 3 * 2 * 2 * pairs * 8 * 2


def test_contestants_in_processes_of_their_own_answer_and_those_that_cannot_are_left_out(capsys):
    entries = [("ours", "a", dict), ("torch", "b", Broken())]
    with crew(entries) as workers:
        assert [worker.variant for worker in workers] == ["a"]
        assert workers[0].ask(len) == 0
    assert "left out: torch b: ZeroDivisionError" in capsys.readouterr().err
    with (
        pytest.raises(measure.BenchError, match="ours c: ZeroDivisionError"),
        crew([("ours", "c", Broken())]),
    ):
        pass


class Broken:
    """Pickled by the name of its class, and fails when built."""

    def __call__(self):
        raise ZeroDivisionError("as it must")


def test_a_copy_and_a_read_of_the_same_bytes_take_some_time():
    assert 0 < floors._rate(None, floors._copied, 1 << 16, 2) < 1e13
    assert 0 < floors._rate(None, floors._read, 1 << 16, 1) < 1e13
    assert 0 < floors._best_product(None, ((8, 8, 8),)) < 1e14


@pytest.mark.parametrize("name", ["bars.png", "curves.svg"])
def test_comparisons_are_drawn_as_bars_and_growth_as_curves(name, tmp_path):
    pytest.importorskip("matplotlib")
    records = described()
    if name == "curves.svg":
        curve = {"axis": "layers", "exponent": 1.0}
        records = [r | curve | {"value": v} for v in (1, 2) for r in described()]
    plot(records, tmp_path / "pictures" / name)
    assert (tmp_path / "pictures" / name).stat().st_size > 1000
    with pytest.raises(ValueError, match="nothing to draw"):
        plot(described()[1:], tmp_path / "nothing.png")


@pytest.mark.parametrize("theirs", [1.001, float("nan")])
def test_numbers_that_differ_are_refused_before_any_time_is_taken(theirs):
    measure.require_close("loss", 1.0, 1.00001)
    with pytest.raises(measure.WrongResultError, match=r"loss: ours is 1\.0"):
        measure.require_close("loss", 1.0, theirs)


@pytest.mark.slow
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
        assert "best_peer" not in record
    assert "y + 1.0" in printed.err
    # The same file as the earlier one: every measurement is found in it.
    assert command.main([*arguments[:3], "--compare", str(file)]) == 0
    assert "times ours then" in (compared := capsys.readouterr().err)
    assert compared.rstrip().splitlines()[-1].split()[:2] == ["1.00", "1.00"]


def test_every_parameter_of_a_kernel_gets_an_argument_by_its_name():
    from bench import kernels

    sizes = kernels.Sizes(rows=6, columns=4, vocabulary=5, groups=2, positions=3)
    assert sizes.argument("x_RC").shape == (6, 4)
    assert sizes.argument("s_GTS").shape == (2, 3, 3)
    assert sizes.argument("bias").shape == (4,)
    assert sizes.argument("labels_R").max() < 5
    assert sizes.argument("scale_R1").min() > 0
    assert sizes.argument("eps") == 1e-5
    for unknown in ("rules", "x_Q", "whatever"):
        with pytest.raises(KeyError):
            sizes.argument(unknown)


def test_the_bytes_a_kernel_must_move_are_its_arguments_and_what_it_makes_or_changes():
    import numpy as np

    from bench import kernels

    x, y = np.ones(8, np.float32), np.zeros(8, np.float32)
    assert kernels._moved((x,), np.exp) == 2 * x.nbytes
    assert kernels._moved((x, y), lambda a, b: (a, a + b)) == 3 * x.nbytes  # one result is given
    assert (
        kernels._moved((x, y, 2.0), lambda a, b, s: np.add(b, a * s, out=b)[:0].size or None)
        == 3 * x.nbytes
    )


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
