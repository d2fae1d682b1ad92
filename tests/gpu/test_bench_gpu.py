"""The benchmark of a card without one: its clock, its processes, its table, its plan."""

import itertools
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from bench import __main__ as command  # noqa: E402
from bench import gpu, gpu_plan, gpu_questions, gpu_report, gpu_timing  # noqa: E402
from bench.gpu_cases import Case, cases  # noqa: E402
from bench.gpu_timing import Way, race  # noqa: E402
from bench.gpu_worker import Task, Worker  # noqa: E402


class Clocked:
    """A card whose work takes time that is known: the host goes on as soon as it has asked."""

    def __init__(self):
        self.host = self.done = 0.0
        self.waited, self.holds, self.captured = [], [], 0

    def launch(self, device, host):
        self.host += host
        self.done = max(self.done, self.host) + device

    def now(self):
        return self.host

    def wait(self, seconds):
        self.waited.append(seconds)
        self.host += seconds

    def synchronize(self):
        self.host = max(self.host, self.done)

    def mark(self):
        return max(self.host, self.done)

    def between(self, first, last):
        self.host = max(self.host, last)
        return last - first

    def hold(self, seconds):
        self.holds.append(seconds)
        self.done = max(self.done, self.host) + seconds

    def graph(self, run, calls):
        """The same work for the card, one launch for the host; half a microsecond is lost between two."""
        before = self.host, self.done
        for i in range(calls):
            run(i)
        device = self.done - max(before)
        self.host, self.done = before
        self.captured += 1
        return lambda: self.launch(device, 10e-6)


def way(card, device, host, *, library="ours", graph=False, **more):
    def run(i):
        card.launch(device, host)

    return Way(library, "way", run, graph=card.graph if graph else None, **more)


def times(card, *ways, **options):
    return [(one, found.described()) for one, found in race(card, ways, **options)]


@pytest.mark.parametrize(
    ("device", "host"), [(1e-3, 1e-5), (50e-6, 100e-6), (60e-6, 60e-6), (0.2, 1e-4), (3e-5, 4e-4)]
)
def test_events_tell_the_cards_time_whatever_the_host_takes(device, host):
    card = Clocked()
    ((_, found),) = times(card, way(card, device, host))
    assert found["how"] == "events"
    assert found["median"] == pytest.approx(device)
    assert found["low"] == pytest.approx(device)
    assert found["high"] == pytest.approx(device)
    assert found["host"] == pytest.approx(host)
    assert found["samples"] >= 9
    assert found["samples"] <= 150


def test_short_work_is_timed_as_a_graph_and_the_host_apart():
    card = Clocked()

    def captured(run, calls):
        assert calls == gpu_timing.IN_GRAPH
        return lambda: card.launch(calls * 5e-6, 10e-6)

    one = way(card, 5e-6, 30e-6)
    one.graph = captured
    ((_, found),) = times(card, one)
    assert found["how"] == "graph"
    assert found["median"] == pytest.approx(5e-6)
    assert found["host"] == pytest.approx(30e-6)


def test_what_cannot_be_captured_is_timed_by_events():
    card = Clocked()

    def refuses(run, calls):
        raise NotImplementedError("cuBLAS")

    one = way(card, 5e-6, 30e-6)
    one.graph = refuses
    ((_, found),) = times(card, one)
    assert found["how"] == "events"
    assert found["median"] == pytest.approx(5e-6)


def test_a_way_with_streams_of_its_own_is_timed_by_the_host():
    card = Clocked()
    one = way(card, 1e-3, 1e-5, wall=True, finish=lambda made: card.synchronize())
    ((_, found),) = times(card, one)
    assert found["how"] == "wall"
    assert found["median"] == pytest.approx(1e-3, rel=0.02)


def test_ways_take_turns_and_inputs_rotate():
    card, seen = Clocked(), []

    def running(name):
        def run(i):
            seen.append((name, i))
            card.launch(1e-3, 1e-5)

        return Way(name, "way", run)

    times(card, running("a"), running("b"), rounds=2, most=3)
    turns = [name for name, _ in itertools.groupby(name for name, _ in seen)]
    assert turns == ["a", "b", "a"]  # the second round in reverse, so that b goes on
    assert {i for name, i in seen if name == "a"} >= {0, 1, 2}


def test_what_must_be_restored_is_restored_outside_of_the_time():
    card, order = Clocked(), []

    def before(i):
        order.append("before")
        card.launch(5e-3, 1e-5)

    def run(i):
        order.append("run")
        card.launch(1e-4, 1e-5)

    ((_, found),) = times(card, Way("ours", "way", run, before=before), rounds=1, most=4)
    assert found["median"] == pytest.approx(1e-4)
    timed = order[order.index("before") :]
    assert timed == ["before", "run"] * (len(timed) // 2)


def test_heavy_work_is_followed_by_a_pause():
    card = Clocked()
    times(card, way(card, 2e-3, 1e-5), heavy=True)
    assert card.waited == [gpu_timing.PAUSE] * 3
    card = Clocked()
    times(card, way(card, 2e-3, 1e-5))
    assert card.waited == []


def test_a_way_that_fails_is_left_out_and_the_others_go_on():
    card, told = Clocked(), []

    def run(i):
        raise RuntimeError("no kernel for these")

    found = times(
        card,
        Way("torch", "flash", run),
        way(card, 1e-3, 1e-5),
        failed=lambda w, e: told.append(w.name),
    )
    assert told == ["torch flash"]
    assert [one.library for one, _ in found] == ["ours"]
    with pytest.raises(RuntimeError, match="no kernel"):
        times(card, Way("torch", "flash", run))


def test_the_range_holds_the_middle_eight_tenths():
    found = gpu_timing.Times("events", [float(n) for n in range(11)], 1.0).described()
    assert (found["low"], found["median"], found["high"]) == (1.0, 5.0, 9.0)
    assert gpu_timing.Times("events", [2.0], 1.0).described()["low"] == 2.0


# ---- processes


TASKS = """
import os, sys, time

def counts(state, most):
    print("noise for the log")
    for n in range(most):
        yield {"n": n}
    state.kept["seen"] = state.kept.get("seen", 0) + 1
    yield {"seen": state.kept["seen"], "seed": state.settings["seed"]}

def fails(state):
    yield {"n": 0}
    raise ValueError("two lines,\\nof which both are told")

def dies(state):
    yield {"n": 0}
    os._exit(9)

def hangs(state):
    yield {"pid": os.getpid()}
    time.sleep(600)

class Gone:
    class cuda:
        class Device:
            def synchronize(self):
                raise RuntimeError("an illegal memory access was encountered")

def faults(state):
    state.kept["xp"] = Gone
    raise RuntimeError("an illegal memory access was encountered")
    yield
"""


@pytest.fixture
def worker(tmp_path, monkeypatch):
    (tmp_path / "tasks_of_this_test.py").write_text(TASKS, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    made = Worker({"seed": 5}, tmp_path / "log")
    yield made
    made.close()


def task(name, *arguments):
    return Task("tests", name, f"tasks_of_this_test:{name}", arguments)


def test_a_process_answers_task_after_task_and_keeps_what_it_has(worker):
    first = list(worker.run(task("counts", 2), 30))
    assert first == [{"n": 0}, {"n": 1}, {"seen": 1, "seed": 5}]
    assert list(worker.run(task("counts", 0), 30)) == [{"seen": 2, "seed": 5}]
    assert "noise for the log" in worker.log.read_text(encoding="utf-8")
    found = list(worker.run(task("fails"), 30))
    assert found == [{"n": 0}, {"failed": "ValueError: two lines, of which both are told"}]
    assert list(worker.run(task("counts", 0), 30)) == [{"seen": 3, "seed": 5}]


def test_a_process_that_is_lost_is_replaced(worker):
    before = list(worker.run(task("counts", 0), 30))
    dead = list(worker.run(task("dies"), 30))
    assert dead[0] == {"n": 0}
    assert "ended with 9" in dead[1]["failed"]
    assert list(worker.run(task("counts", 0), 30)) == before  # counted anew


def test_a_process_whose_card_is_lost_is_replaced(worker):
    list(worker.run(task("counts", 0), 30))
    found = list(worker.run(task("faults"), 30))
    assert "illegal memory access" in found[0]["failed"]
    assert list(worker.run(task("counts", 0), 30)) == [{"seen": 1, "seed": 5}]


def test_a_task_that_never_ends_is_ended(worker):
    list(worker.run(task("counts", 0), 30))
    began = time.monotonic()
    (first, late) = worker.run(task("hangs"), 1.0)
    assert time.monotonic() - began < 15
    assert "too long" in late["failed"]
    with pytest.raises(ProcessLookupError):
        os.kill(first["pid"], 0)


# ---- the report


def record(what, library, median, **more):
    about = {
        "section": "times", "name": what, "family": "memory", "what": what, "shapes": "2x3", "dtype": "bfloat16",
        "flops": 0.0, "moved": 4.3e8, "predicted": [1e-4, 2e-4], "source": "7", "library": library, "variant": "v",
    }  # fmt: skip
    timed = {"median": median, "low": median, "high": 2 * median, "minimum": median}
    return about | (timed if median else {}) | more


@pytest.fixture
def report(tmp_path):
    return gpu_report.Report(tmp_path / "deep" / "gpu.jsonl")


def test_the_table_sets_ours_against_floor_prediction_and_best_peer(report, tmp_path):
    report.add({"section": "ceilings", "ceiling": "copy", "rate": 4.0e12})
    report.add(record("norm", "ours", 200e-6))
    report.add(record("norm", "torch", 300e-6, variant="eager"))
    report.add(record("norm", "torch", 250e-6, variant="compiled"))
    text = gpu_report.table(report)
    (line,) = [one for one in text.splitlines() if one.startswith("norm")]
    assert "200" in line
    assert " 54%" in line  # 107.5 us at 4 TB/s, not at the 4.3 of the predictions
    assert "100-200" in line
    assert "torch compiled 250 = 1.25x" in line
    written = (tmp_path / "deep" / "gpu.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(one) for one in written] == report.records


def test_times_taken_alone_count_only_where_there_are_no_others(report):
    report.add(record("norm", "ours", 100e-6, alone=True))
    assert "100" in gpu_report.table(report).splitlines()[-1]
    report.add(record("norm", "ours", 300e-6))
    assert " 300 " in gpu_report.table(report).splitlines()[-1]


def test_the_table_says_what_is_wrong_failed_missing_and_left_out(report):
    report.add({"section": "here", "card": "A card", "versions": {"cupy": "14", "jax": None}})
    report.add(
        {"section": "questions", "name": "q", "question": "q", "answer": "no", "failed": "E: why"}
    )
    report.add({"section": "checks", "what": "gelu", "shapes": "1x1", "dtype": "f", "fine": True})
    wrong = {"what": "norm", "shapes": "3x7", "dtype": "bfloat16", "said": "errors 9"}
    report.add({"section": "checks", "fine": False} | wrong)
    report.add({"section": "checks", "unknown": "new_kernel"})
    report.add(record("loss", "ours", 0, wrong=7.0))
    report.add(record("loss", "torch", 1e-3))
    report.add(record("softmax", "torch", 0, failed="RuntimeError: no"))
    report.add({"section": "left out", "name": "product big", "of": "times"})
    text = gpu_report.table(report)
    for said in (
        "not installed: jax", "q  ", "E: why", "1 of 2 checks", "WRONG norm 3x7", "errors 9", "new_kernel",
        "loss 2x3 bfloat16: ours v is wrong: 7", "torch v, 1 of them: RuntimeError: no", "left out", "product big",
    ):  # fmt: skip
        assert said in text, said
    (line,) = [one for one in text.splitlines() if one.startswith("loss 2x3 bf16")]
    assert "WRONG" in line


def test_the_command_ends_with_1_for_what_is_ours(report):
    for found, wrong in (
        ({"section": "checks", "fine": False}, True),
        (record("norm", "ours", 0, wrong=2.0), True),
        (record("norm", "torch", 0, wrong=2.0), False),
        (record("step", "torch", 0, wrong=9.0, said="first loss 9") | {"section": "steps"}, True),
        ({"section": "questions", "question": "q", "answer": "wrong sums", "off": ["by 4"]}, False),
    ):
        report.add({"name": "n"} | found)
        assert gpu._is_wrong(report.records[-1]) is wrong
    text = gpu_report.table(report)
    assert "wrong sums" in text
    assert "torch v is wrong: first loss 9" in text


# ---- the plan


def test_without_a_card_one_sentence_says_so(monkeypatch, capsys, tmp_path):
    from tinyplm.recipes import doctor

    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    monkeypatch.setattr(doctor, "cuda", lambda: {"driver": None, "cards": [], "extra": None})
    assert command.main(["gpu"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "needs a card" in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(
        doctor, "cuda", lambda: {"driver": "13.0", "cards": ["A"], "extra": "cuda13"}
    )
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    assert command.main(["gpu"]) == 1
    assert "tinyplm[cuda13]" in capsys.readouterr().err


def test_a_dry_run_lists_cases_with_floors_and_predictions(capsys):
    assert command.main(["gpu", "--dry"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [one for one in lines if one.startswith("product nn 8192x8192x8192 bf16")]
    assert line.split()[4:8] == ["1,100", "402.7", "1,392", "1,486-1,571"]
    assert command.main(["gpu", "--dry", "attention", "--quick"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:-1]
    assert lines
    assert all(one.startswith("attention") for one in lines)
    assert command.main(["gpu", "--dry", "matmul", "--sizes", "100x200x300"]) == 0
    assert "product nn 100x200x300 bf16" in capsys.readouterr().out


@pytest.mark.parametrize("sizes", ["4096x", "0x4x4", "axb"])
def test_sizes_that_are_none_are_refused(sizes):
    with pytest.raises(SystemExit, match="expected sizes"):
        gpu.main(["--dry", "--sizes", sizes])


def test_cases_have_names_of_their_own_and_the_important_come_first():
    found = cases({})
    assert len({c.name for c in found}) == len(found)
    assert [c.priority for c in found] == sorted(c.priority for c in found)
    assert all(c.predicted is None or c.floor() <= 1.001 * c.predicted[1] for c in found)
    named = cases({"kernels": ["gelu_tanh_forward"]})
    assert {c.what for c in named} == {"gelu_tanh_forward"}


def test_operations_and_bytes_are_those_of_the_formulas():
    by_name = {c.name: c for c in cases({})}
    square = by_name["product nn 4096x4096x4096 bfloat16"]
    assert square.flops == 2 * 4096**3
    assert square.moved == 3 * 2 * 4096**2
    weight = by_name["product tn 768x3072x12288 bfloat16"]  # its result is float32
    assert weight.moved == 2 * 12288 * (768 + 3072) + 4 * 768 * 3072
    causal = by_name["attention_forward causal 16x32x1024x64 bfloat16"]
    assert causal.flops == 4 * 16 * 32 * 1024 * 1024 * 64 / 2
    assert by_name["attention_pullback causal 16x32x1024x64 bfloat16"].flops == 2.5 * causal.flops
    window = by_name["attention_forward window 4x32x4096x64 bfloat16"]
    pairs = sum(min(t + 1, 256) for t in range(4096))
    assert window.flops == 4 * 4 * 32 * pairs * 64
    assert by_name["layer_norm_forward 65536x768 bfloat16"].moved == 8 * 65536 * 768
    assert by_name["AdamW GPT-2 124M bfloat16"].floor() == pytest.approx(868e-6, rel=0.01)


class Answers:
    """Stands for a process: what each task yields is known."""

    def __init__(self, settings, log):
        self.closed = False

    def run(self, task, limit):
        assert limit <= task.limit
        if task.section == "here":
            yield {"card": "A card", "architecture": "sm_90a", "versions": {}}
        elif task.section in ("times", "steps"):
            yield record(task.name, "ours", 1e-4) | {"name": task.name}

    def close(self):
        self.closed = True


def test_what_there_is_no_time_for_is_left_out_and_listed(monkeypatch, tmp_path, capsys):
    now = [0.0]

    class Slow(Answers):
        def run(self, task, limit):
            now[0] += task.seconds
            yield from super().run(task, limit)

    monkeypatch.setattr(gpu, "Worker", Slow)
    monkeypatch.setattr(gpu.time, "monotonic", lambda: now[0])
    run = gpu.Run({"peers": False}, 60.0, tmp_path)
    assert run.all(["times"]) == 0
    found = {
        section: [r["name"] for r in run.report.of(section)] for section in ("times", "left out")
    }
    wanted = [t.name for t in gpu_plan.tasks("times", {})]
    assert found["times"][0] == wanted[0]
    assert found["times"] + found["left out"] == wanted or set(
        found["times"] + found["left out"]
    ) == set(wanted)
    assert now[0] <= 60
    assert "left out for want of time" in capsys.readouterr().out
    assert all(worker.closed for worker in run.workers)
    assert len(list(tmp_path.iterdir())) == 2  # records and the table


def test_files_are_compiled_side_by_side_each_once(monkeypatch, tmp_path):
    seen = []

    class Compiling(Answers):
        def run(self, task, limit):
            if task.section == "discover":
                yield {"file": "matmul bfloat16 64"}
            elif task.section == "compile":
                seen.append(task.arguments)
                time.sleep(0.001)
                yield {"file": task.arguments[0], "seconds": 1.0}
            else:
                yield from super().run(task, limit)

    monkeypatch.setattr(gpu, "Worker", Compiling)
    monkeypatch.setattr(gpu.os, "cpu_count", lambda: 4)
    run = gpu.Run({"peers": False}, 600.0, tmp_path)
    assert run.all(["compile"]) == 0
    files = [*gpu.cuda.FILES, "matmul bfloat16 64"]
    assert sorted(seen) == sorted((f, "sm_90a") for f in files)
    assert len(run.workers) == 1 + 4


# ---- what the questions are asked with


def test_a_swizzled_row_keeps_its_values_and_meets_every_bank_once():
    rows = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    lies = gpu_questions.swizzled(rows)
    for r in range(64):
        assert sorted(lies[r]) == sorted(rows[r])
        for c in range(8):
            at = c ^ (r % 8)
            np.testing.assert_array_equal(lies[r, 8 * at : 8 * at + 8], rows[r, 8 * c : 8 * c + 8])
    for r in range(0, 64, 8):
        for c in range(8):  # where eight rows keep one chunk
            assert {c ^ (row % 8) for row in range(r, r + 8)} == set(range(8))


@pytest.mark.parametrize("height", [64, 128])
def test_a_turned_operand_lies_in_panels(height):
    values = np.arange(height * 64, dtype=np.uint16).reshape(height, 64)
    lies = gpu_questions.operand(values, True).reshape(-1)
    for m, k in ((0, 0), (5, 1), (63, 63), (height - 1, 17), (40, 9)):
        chunk = (m % 64) // 8 ^ k % 8
        byte = m // 64 * 8192 + k * 128 + chunk * 16 + m % 8 * 2
        assert lies[byte // 2] == values[m, k]
    plain = gpu_questions.operand(values, False).reshape(-1)
    m, k = height - 3, 30
    assert plain[(m * 128 + (k // 8 ^ m % 8) * 16 + k % 8 * 2) // 2] == values[m, k]
    assert (8192, 1024, 2048) in gpu_questions.settings(True)


def test_a_question_that_fails_is_answered_with_the_reason(monkeypatch):
    monkeypatch.setitem(gpu_questions.QUESTIONS, "graph with a private pool", broken)
    (answer,) = gpu_questions.ask(None, "graph with a private pool")
    assert answer["answer"] == "no"
    assert answer["failed"] == "RuntimeError: not captured"
    assert answer["asked"] == "Does it?"


def broken(state):
    """Does it?"""
    raise RuntimeError("not captured")


@pytest.mark.device
def test_the_probes_compile_for_the_card_without_spills():
    import re

    from tinyplm.kernels import compilers

    compiler = next(compilers.found(), None)
    if compiler is None:
        pytest.skip("needs NVRTC or nvcc")
    made = compiler.compile(gpu_questions.PROBES.read_text("utf-8"), "sm_90a")
    assert "C75" not in made.log
    assert not any(map(int, re.findall(r"(\d+) bytes spill", made.log)))
    launched = re.findall(r'_start\(\s*"(\w+)"', Path(gpu_questions.__file__).read_text("utf-8"))
    assert launched
    for name in {*launched, *(f"offsets_{a}{b}" for a in (0, 1) for b in (0, 1))}:
        assert f"'{name}'" in made.log  # which names every kernel


def test_a_case_counts_the_longer_of_both_times():
    case = Case(
        family="f", what="w", shapes="s", dtype="bfloat16", flops=790e9, moved=4.3e6, build=lambda ground: None
    )  # fmt: skip
    assert case.floor() == pytest.approx(1e-3)
    moved = replace(case, flops=790e6)
    assert moved.floor() == pytest.approx(1e-6)
    assert replace(case, dtype="float32").floor() == pytest.approx(15.8e-3)
