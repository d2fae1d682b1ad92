"""What the benchmark of a card times and checks: ours on the stand-in with emulated kernels, PyTorch's on the CPU."""

import json
import math
import sys
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from bench import (  # noqa: E402
    gpu,
    gpu_arguments,
    gpu_attention,
    gpu_cases,
    gpu_checks,
    gpu_here,
    gpu_matmul,
    gpu_memory,
    gpu_plan,
    gpu_questions,
    gpu_steps,
)
from bench.gpu_attention import Shape  # noqa: E402
from bench.gpu_cases import Case, Ground, Work  # noqa: E402
from bench.gpu_timing import Card, Way  # noqa: E402
from bench.gpu_worker import State, Task, perform  # noqa: E402
from bench.steps import Size  # noqa: E402
from tinyplm.kernels import cuda  # noqa: E402
from tinyplm.kernels.registry import KERNELS  # noqa: E402

SPECIAL = {"product", "attention_forward", "attention_pullback"}
"""Kernels that have checks of their own."""


class Ticking(Card):
    """The stand-in's, on which whatever is between two marks takes a millisecond; nothing is held."""

    def __init__(self, xp):
        super().__init__(xp)
        self.ticks = 0

    def now(self):
        self.ticks += 20
        return self.ticks * 1e-3

    def wait(self, seconds):
        pass

    def mark(self):
        self.ticks += 1
        return self.ticks

    def between(self, first, last):
        return (last - first) * 1e-3

    def hold(self, seconds):
        pass


def ground_on(xp, card=None):
    return Ground(xp, card or Ticking(xp), np.random.default_rng(0))


@pytest.fixture
def state(card, monkeypatch):
    """Of a process, whose card is the stand-in with emulated kernels; few sets, few calls."""
    monkeypatch.setattr(gpu_cases, "MOST_SETS", 2)
    gpu_cases.every_kernel()
    ground = ground_on(card.cupy)
    monkeypatch.setattr(gpu_cases.gpu_timing, "race", quick(gpu_cases.gpu_timing.race))
    return State({}, {"xp": card.cupy, "ground": ground})


def quick(race):
    return lambda card, ways, **options: race(card, ways, **options | {"rounds": 2, "most": 3})


def timed(state, case):
    return list(gpu_cases._timed(state.kept["ground"], case))


# ---- data


def test_large_arrays_hold_random_values_that_do_not_repeat_within_a_block(monkeypatch):
    monkeypatch.setattr(gpu_cases, "BLOCK", 4093)
    ground = ground_on(np)
    small, large = ground.normal((20, 20), "float32"), ground.normal((100, 100), "bfloat16", 0.5)
    assert small.dtype == np.float32
    assert large.dtype.name == "bfloat16"
    for values, scale in ((small, 1.0), (large.astype(np.float64), 0.5)):
        assert abs(values.std() / scale - 1) < 6 / math.sqrt(2 * values.size)  # six deviations
        assert abs(values.mean()) < 6 * scale / math.sqrt(values.size)
    flat = large.reshape(-1).astype(np.float64)
    assert not np.array_equal(flat[:1000], flat[1000:2000])
    assert not np.array_equal(flat, ground.normal((100, 100), "bfloat16", 0.5).reshape(-1))


def test_input_sets_are_more_than_the_cache_holds():
    ground = ground_on(np)
    assert len(ground.sets(gpu_cases.CACHED / 3, object)) == 3
    assert len(ground.sets(1e12, object)) == 1
    assert len(ground.sets(1, object)) == gpu_cases.MOST_SETS


def test_values_that_are_missing_are_noticed_by_their_bits():
    for name in ("float32", "float16", "bfloat16"):
        values = np.linspace(-1e4, 1e4, 1000).astype(gpu_cases.dtype_of(name))
        assert gpu_cases.all_finite(np, values)
        for bad in (np.nan, np.inf, -np.inf):
            values[500] = bad
            assert not gpu_cases.all_finite(np, values)
            assert not gpu_cases.all_finite(np, values.reshape(10, 100).T)
    assert gpu_cases.relative(np, np.array([3.0, 4.5]), np.array([3.0, 4.0])) == 0.1
    assert math.isnan(gpu_cases.relative(np, np.array([3.0, np.nan]), np.array([3.0, 4.0])))


# ---- checks


def test_every_kernel_with_device_code_can_be_checked():
    unknown = {
        name
        for name, kernel in KERNELS.items()
        for variant in kernel.variants
        if variant.library == "cupy" and name not in SPECIAL
    } - set(gpu_arguments.ARGUMENTS)
    assert not unknown, "write arguments for them in bench/gpu_arguments.py"
    assert {name for name, _ in gpu_checks.variants({})} >= SPECIAL
    assert gpu_checks.variants({"kernels": ["matmul"], "quick": True})[0] == ("product", "cuda")


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(gpu_checks, "ROWS", ((3, 7), (9, 40)))
    monkeypatch.setattr(gpu_checks, "PRODUCTS", ((1, 1, 1), (7, 33, 65), (20, 24, 40)))
    monkeypatch.setattr(gpu_checks, "EXACT_TERMS", 64)
    monkeypatch.setattr(gpu_checks, "UNEVEN", (24, 40, 16))
    monkeypatch.setattr(gpu_matmul, "plans", lambda *_: ["64x64"])
    monkeypatch.setattr(gpu_checks, "HEADS", ((1, 9, 16), (7, 12, 16)))
    monkeypatch.setattr(gpu_checks, "MORE_HEADS", ())
    monkeypatch.setattr(gpu_checks, "_types", lambda one, quick: ("bfloat16", "float32"))


@pytest.mark.device
@pytest.mark.parametrize(
    "name",
    ["layer_norm_forward", "gelu_tanh_pullback", "cross_entropy_in_place", "adamw_update", "add_rows", "sum_rows"],
)  # fmt: skip
def test_a_right_kernel_passes(state, small, name):
    found = list(gpu_checks.check(state, name, "cuda"))
    assert len(found) == 4
    assert all(r["fine"] for r in found), found


@pytest.mark.device
def test_a_right_product_passes_and_exactly_on_whole_numbers(state, small, monkeypatch):
    monkeypatch.setattr(gpu_checks, "_types", lambda one, quick: ("bfloat16",))
    monkeypatch.setattr(gpu_checks, "LAYOUTS", ("nn", "tn"))
    found = list(gpu_checks.check(state, "product", "cuda"))
    assert all(r["fine"] for r in found), [r for r in found if not r["fine"]]
    assert {r["shapes"].split()[1] for r in found} == {"nn", "tn"}
    chosen = [r for r in found if r["variant"] == "cuda"]
    for face in ("whole", "to float32", "added"):
        assert 4 * sum(face in r["shapes"] for r in chosen) == len(chosen)
    assert [r["variant"] for r in found if r not in chosen] == ["64x64"] * 4


@pytest.mark.device
@pytest.mark.parametrize("name", ["attention_forward"])
def test_a_right_attention_passes_with_every_face(state, small, monkeypatch, name):
    monkeypatch.setattr(gpu_checks, "_types", lambda one, quick: ("bfloat16",))
    found = list(gpu_checks.check(state, name, "cuda"))
    assert all(r["fine"] for r in found), [r for r in found if not r["fine"]]
    assert {r["what"].partition(" ")[2] for r in found} >= {"plain", "causal", "window", "bias"}


def wrong(function, harm):
    def call(*arguments):
        return harm(function(*arguments))

    return call


def nudged(made):
    made[1, 2] += 1.0
    return made


def lost(made):
    made[0, 0] = np.nan
    return made


def overrun(made):
    from tinyplm.kernels import cuda

    assert cuda.empty.__module__ == "bench.gpu_checks"
    made.base[gpu_checks.GUARD - 1 : gpu_checks.GUARD] = 0  # the last byte before it
    return made


CALLS = iter(range(1000))


def restless(made):
    made[0, 0] = next(CALLS) * 1e-9
    return made


@pytest.mark.device
@pytest.mark.parametrize(
    ("harm", "said"),
    [(nudged, "errors"), (lost, "errors"), (overrun, "outside"), (restless, "other bits")],
)
def test_a_wrong_kernel_does_not_pass(state, small, harm, said, monkeypatch):
    variant = next(v for v in KERNELS["gelu_forward"].variants if v.name == "cuda")
    right = variant.function
    monkeypatch.setitem(variant.__dict__, "function", wrong(right, harm))
    found = list(gpu_checks.check(state, "gelu_forward", "cuda"))
    assert not any(r["fine"] for r in found)
    assert all(said in r["said"] for r in found), found


@pytest.mark.device
def test_a_kernel_that_fails_is_told_of_and_the_next_size_goes_on(state, small, monkeypatch):
    variant = next(v for v in KERNELS["gelu_forward"].variants if v.name == "cuda")

    def fails(x):
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(variant.__dict__, "function", fails)
    found = list(gpu_checks.check(state, "gelu_forward", "cuda"))
    assert [r["failed"] for r in found] == ["RuntimeError: no such kernel"] * 4


@pytest.mark.device
def test_what_checks_and_cases_launch_is_found_without_a_launch(card, state, small, monkeypatch):
    shape = Shape("causal", 4, 4, 300, 300, 64)
    few = [
        gpu_matmul._case(300, 200, 100, "nn", priority=1),
        gpu_attention._case(shape, "forward", 1),
        gpu_attention._case(shape, "backward", 1),
    ]
    monkeypatch.setattr(gpu_cases, "cases", lambda settings: few)
    monkeypatch.setattr(
        gpu_checks, "variants", lambda settings: [("product", "cuda"), ("gelu_forward", "cuda")]
    )
    before, launch = len(card.launched), cuda.launch
    files = [record["file"] for record in gpu_checks.discover(state)]
    assert cuda.launch is launch
    assert len(set(files)) == len(files)
    assert "gelu" not in files  # which is compiled anyway
    wanted = gpu_matmul.files(300, 200, 100, "nn", "bfloat16", False, None)
    monkeypatch.setattr(gpu_matmul, "plans", lambda *_: [])
    assert set(wanted) < set(files)
    for kind in ("attention ", "attention_pullback "):
        assert any(file.startswith(kind) and " bfloat16 64 " in file for file in files)
    assert len(card.launched) == before


# ---- cases


def tiny(entry):
    return replace(entry, rows=8, columns=32)


@pytest.mark.device
@pytest.mark.parametrize("name", sorted({e.kernel for e in gpu_memory.STANDARD}))
def test_cases_of_rows_are_right_and_timed(state, name):
    entry = tiny(next(e for e in gpu_memory.STANDARD if e.kernel == name))
    found = timed(state, gpu_memory._case(entry))
    assert [r.get("library") for r in found] == ["ours"]
    (record,) = found
    assert record["variant"] == "cuda"
    assert record["error"] <= 1
    assert record["median"] == pytest.approx(1e-3)
    assert record["moved"] == entry.each * 8 * 32


@pytest.mark.device
@pytest.mark.parametrize("what", ["loss", "adamw", "optimizer", "norm", "taken", "added"])
def test_the_other_memory_bound_cases_are_right_and_timed(state, monkeypatch, what):
    for name, value in (("TOKENS", 64), ("WIDTH", 16), ("VOCABULARY", 96), ("PARAMETERS", 1000)):
        monkeypatch.setattr(gpu_memory, name, value)
    monkeypatch.setattr(gpu_memory, "LOSS_ROWS", 16)
    if what == "optimizer":
        monkeypatch.setattr(gpu_memory, "_shapes", lambda: {"a": (5, 8), "b": (8,), "c": (3, 3)})
    build = getattr(gpu_memory, f"_{what}")
    case = gpu_memory._special("f", what, "s", build, 1e3, None, "", 1)
    found = timed(state, case)
    assert [(r["library"], "median" in r) for r in found] == [("ours", True)], found
    assert found[0]["error"] <= 1


@pytest.mark.device
@pytest.mark.parametrize("layout", ["nn", "nt", "tn"])
def test_products_are_right_and_timed(state, layout):
    case = gpu_matmul._case(70, 48, 40, layout, priority=1)
    found = timed(state, case)
    assert [(r["library"], r.get("alone")) for r in found] == [
        *(("ours", True), ("ours", None), ("cupy", None))
    ]
    assert all(r["error"] <= 1 and r["median"] > 0 for r in found), found


@pytest.mark.device
def test_plans_of_a_product_are_timed_by_their_names(state, monkeypatch):
    names = gpu_matmul.plans(70, 48, 40, "nn", "bfloat16")
    assert len(names) > 3
    monkeypatch.setattr(gpu_matmul, "plans", lambda *_: ["64x64", "64x128"])
    case = gpu_matmul._case(70, 48, 40, "nn", priority=1, forced=True)
    found = timed(state, case)
    assert [r["variant"] for r in found] == ["64x64", "64x128"]
    assert all(r["error"] <= 1 and r["median"] for r in found)
    assert {"64x64", "64x128"} < set(names)


@pytest.mark.device
@pytest.mark.parametrize("name", ["linear", "linear_gelu", "linear_residual"])
def test_fused_linear_layers_are_right_and_timed(state, monkeypatch, name):
    monkeypatch.setattr(gpu_matmul, "TOKENS", 48)
    monkeypatch.setattr(gpu_matmul, "WIDTH", 16)
    found = timed(state, gpu_matmul._fused(name))
    assert [(r["library"], r["variant"]) for r in found] == [("ours", "cuda")], found
    assert found[0]["error"] <= 1


SHAPES = [
    Shape("causal", 2, 2, 20, 20, 16),
    Shape("window", 1, 2, 20, 20, 16),
    Shape("padding", 2, 2, 20, 20, 16),
    Shape("bias", 2, 2, 20, 20, 16),
    Shape("dropout", 1, 2, 20, 20, 16),
    Shape("decode", 2, 2, 1, 30, 16),
]


@pytest.mark.device
@pytest.mark.parametrize("way", ["forward", "backward"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.kind)
def test_attention_is_right_and_timed(state, monkeypatch, shape, way):
    if shape.kind == "decode" and way == "backward":
        pytest.skip("nothing is decoded backwards")
    monkeypatch.setattr(gpu_attention, "WINDOW", 6)
    found = timed(state, gpu_attention._case(shape, way, 1))
    assert found[0]["library"] == "ours"
    assert found[0]["variant"] == "cuda"
    assert found[0]["error"] <= 1


def test_a_wrong_result_is_not_timed_and_a_way_that_fails_is_told_of(plain_card):
    xp = plain_card.cupy
    right = xp.asarray(np.arange(1.0, 5.0))

    def refuses(i):
        raise RuntimeError("no kernel image")

    def build(ground):
        ways = [
            Way("ours", "wrong", lambda i: right * 1.1),
            Way("ours", "right", lambda i: right * 1.0),
            Way("torch", "refuses", refuses),
            Way("torch", "coarse", lambda i: right * 1.01),
        ]
        return Work(ways, lambda made: gpu_cases.relative(xp, made[0], right) / 3e-3)

    case = Case(
        family="f", what="w", shapes="s", dtype="float32", flops=1.0, moved=1.0, build=build
    )
    every = list(gpu_cases._timed(ground_on(xp), case))
    assert [r["variant"] for r in every if r.get("alone")] == ["right"]
    found = {r["variant"]: r for r in every if "alone" not in r}
    assert found["wrong"]["wrong"] == pytest.approx(0.1 / 3e-3)
    assert "median" not in found["wrong"]
    assert "median" in found["right"]
    assert found["refuses"]["failed"] == "RuntimeError: no kernel image"
    assert "median" in found["coarse"]  # a peer may round more often


def test_a_card_that_is_lost_ends_the_case(plain_card, monkeypatch):
    xp = plain_card.cupy

    class Lost(Ticking):
        def synchronize(self):
            raise RuntimeError("an illegal memory access was encountered")

    case = Case(
        family="f", what="w", shapes="s", dtype="float32", flops=1.0, moved=1.0,
        build=lambda ground: Work([Way("ours", "v", lambda i: None)], lambda made: 0.0),
    )  # fmt: skip
    records = gpu_cases._timed(ground_on(xp, Lost(xp)), case)
    assert "illegal" in next(records)["failed"]
    with pytest.raises(RuntimeError, match="illegal"):
        next(records)


# ---- steps


TINY = Size(2, 2, 32, 2, 8, 24)


@pytest.mark.device
def test_our_steps_run_on_the_card_with_a_graph_and_without(state):
    stepped = gpu_steps._gpt(TINY, 2)
    assert stepped.tokens == 32
    losses = {}
    for variant, make in stepped.ours.items():
        run = make()
        losses[variant] = [run(1), run(3)]
    assert losses["graph"] == losses["without a graph"]
    first, later = losses["graph"]
    assert first == pytest.approx(math.log(24), rel=0.05)
    assert 0 < later < first + 0.1


@pytest.mark.parity
def test_pytorchs_steps_have_our_first_loss(state, monkeypatch):
    pytest.importorskip("torch")
    from bench import gpu_peers

    monkeypatch.setattr(gpu_peers, "DEVICE", "cpu")
    stepped = gpu_steps._gpt(TINY, 2)
    ours, theirs = stepped.ours["without a graph"](), stepped.peers["eager"]()
    assert theirs(1) == pytest.approx(ours(1), rel=gpu_steps.AGREE)
    assert theirs(2) == pytest.approx(ours(2), rel=gpu_steps.AGREE)


# ---- peers, on the CPU


@pytest.fixture
def host(monkeypatch):
    pytest.importorskip("torch")
    warnings.simplefilter("ignore", DeprecationWarning)  # PyTorch's own, of its modules
    from bench import gpu_peers

    monkeypatch.setattr(gpu_peers, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_cases, "MOST_SETS", 2)
    made = ground_on(np)
    made.peers = ("torch",)
    return made


def assert_near(ground, work, ways):
    """Those that take these inputs compute what ours has to; how many do."""
    count = 0
    for way in ways:
        try:
            made = way.run(0)
        except RuntimeError:  # a backend that is not for the CPU, or not for these
            continue
        count += 1
        assert work.error(way.read(made)) <= 5, way.name
    return count


@pytest.mark.parity
@pytest.mark.parametrize("name", sorted(gpu_memory._TORCH))
def test_pytorchs_kernels_compute_what_ours_do(host, name):
    from bench import gpu_peers

    given = gpu_arguments.ARGUMENTS[name](host, 8, 32, "float32")
    exact = gpu_memory._exactly(host, KERNELS[name], given)
    work = Work([], lambda made: gpu_memory._error(np, name, exact, made))
    eager = next(iter(gpu_peers.eager_and_compiled(np, gpu_memory._TORCH[name], [given])))
    assert assert_near(host, work, [eager]) == 1


@pytest.mark.parity
@pytest.mark.parametrize("way", ["forward", "backward"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.kind)
def test_pytorchs_attention_computes_what_ours_does(host, monkeypatch, shape, way):
    if shape.kind == "decode" and way == "backward":
        pytest.skip("nothing is decoded backwards")
    monkeypatch.setattr(gpu_attention, "WINDOW", 6)
    work = gpu_attention._build(shape, way, False, host)
    peers = [w for w in work.ways if w.library == "torch" and w.variant != "flex"]
    assert assert_near(host, work, peers) >= 1
    with_rules = [w for w in work.ways if w.variant == "flex"]
    assert bool(with_rules) == (shape.kind in ("window", "padding", "bias"))


@pytest.mark.parity
@pytest.mark.parametrize("way", ["forward", "backward"])
def test_jaxs_attention_computes_what_ours_does(host, way):
    pytest.importorskip("jax")
    host.peers = ("jax",)
    shape = Shape("causal", 2, 2, 20, 20, 16)
    work = gpu_attention._build(shape, way, True, host)
    peers = {w.variant.partition(",")[0]: w for w in work.ways if w.library == "jax"}
    assert set(peers) == {"cudnn", "xla"}
    assert assert_near(host, work, [peers["xla"]]) == 1


@pytest.mark.parity
def test_pytorchs_products_and_linear_layers_compute_what_ours_do(host, monkeypatch):
    monkeypatch.setattr(gpu_matmul, "TOKENS", 40)
    monkeypatch.setattr(gpu_matmul, "WIDTH", 16)
    for layout in ("nn", "nt", "tn"):
        work = gpu_matmul._build(70, 48, 40, layout, "bfloat16", False, host)
        assert assert_near(host, work, [w for w in work.ways if w.library == "torch"]) == 1
    for name in gpu_matmul._TORCH:
        work = gpu_matmul._fused(name).build(host)
        assert assert_near(host, work, [w for w in work.ways if w.variant == "eager"]) == 1


@pytest.mark.parity
def test_pytorchs_loss_by_its_formula_is_ours(host, monkeypatch):
    for name, value in (("TOKENS", 64), ("VOCABULARY", 96), ("LOSS_ROWS", 16)):
        monkeypatch.setattr(gpu_memory, name, value)
    work = gpu_memory._loss(host)
    peers = [w for w in work.ways if w.library == "torch" and w.variant != "compiled"]
    assert assert_near(host, work, peers) == 1


# ---- what is there


def test_the_compilers_words_are_read():
    log = (
        "ptxas info    : Compiling entry function 'a' for 'sm_90a'\n"
        "    0 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads\n"
        "ptxas info    : Used 40 registers, used 1 barriers\n"
        "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized\n"
        "ptxas info    : Used 168 registers\n"
    )
    found = gpu_here.said_by_compiler(log)
    assert (found["kernels"], found["registers"], found["spills"]) == (2, 168, 12)
    assert "serialized" in found["notes"][0]


@pytest.mark.device
def test_a_file_is_compiled_with_its_time_and_kept(monkeypatch, tmp_path):
    from tinyplm.kernels import compilers

    if next(compilers.found(), None) is None:
        pytest.skip("needs NVRTC or nvcc")
    monkeypatch.setattr(cuda, "cache_file", lambda: tmp_path / "products.json")
    (first,) = gpu_here.compiled(State({}), "gelu", "sm_90a")
    (second,) = gpu_here.compiled(State({}), "gelu", "sm_90a")
    assert first["kernels"] > 0
    assert first["seconds"] > 0
    assert second["cached"]
    assert first["bytes"] == second["bytes"]


def test_questions_go_on_where_one_has_no_answer(plain_card, monkeypatch):
    def probes():
        raise RuntimeError("no machine code runs here")

    monkeypatch.setattr(gpu_questions, "_probes", probes)
    monkeypatch.setattr(gpu_questions.compilers, "found", lambda: iter(()))
    state = State({}, {"xp": plain_card.cupy})
    names = [name for name in gpu_questions.QUESTIONS if "rate of adding" not in name]
    answers = {name: next(iter(gpu_questions.ask(state, name))) for name in names}
    assert all(answer["asked"].endswith((".", "?", ")")) for answer in answers.values())
    assert answers["bfloat16 arrays"]["answer"] == "yes"
    assert answers["graph of cublas"]["answer"] == "no"
    assert "during stream capture" in answers["graph of cublas"]["text"]
    assert answers["rate of wgmma"]["failed"] == "RuntimeError: no machine code runs here"


# ---- the whole


class AtHome:
    """Stands for a process of the card: tasks run here, on the stand-in."""

    state = None

    def __init__(self, settings, log):
        log.touch()

    def run(self, task, limit):
        for record in perform(json.loads(json.dumps(asdict(task))), AtHome.state):
            yield json.loads(json.dumps(record))

    def close(self):
        pass


@pytest.mark.device
def test_a_whole_run_on_the_stand_in_ends_with_a_table(state, small, monkeypatch, tmp_path, capsys):
    few = [
        gpu_memory._case(tiny(gpu_memory.STANDARD[0])),
        gpu_matmul._case(70, 48, 40, "nn", priority=1),
    ]
    everything = gpu_cases.cases({})
    assert any(c.compiles for c in everything)
    monkeypatch.setattr(gpu_plan, "cases", lambda settings: few)
    monkeypatch.setattr(gpu_cases, "cases", lambda settings: few)
    monkeypatch.setattr(gpu.cuda, "FILES", ("gelu",))
    monkeypatch.setattr(gpu_plan, "discover", lambda: Task("here", "d", "bench.gpu_here:here"))
    monkeypatch.setattr(gpu_plan, "QUESTIONS", {"bfloat16 arrays": None, "graph of cublas": None})
    monkeypatch.setattr(gpu_checks, "variants", lambda settings: [("relu_forward", "cuda")])
    monkeypatch.setattr(gpu_here, "COPIED", 1 << 12)
    for size in ("WIDE", "SINGLE"):
        monkeypatch.setattr(gpu_here, size, 16)
    monkeypatch.setattr(gpu_here, "Card", Ticking)
    monkeypatch.setattr(gpu_here, "race", quick(gpu_here.race))
    monkeypatch.setattr(cuda, "cache_file", lambda: None)
    monkeypatch.setattr(gpu, "Worker", AtHome)
    monkeypatch.setattr(AtHome, "state", state)
    assert gpu.Run({"peers": True, "seed": 1}, 300.0, tmp_path).all(list(gpu.SECTIONS)) == 0
    table = capsys.readouterr().out
    for said in (
        "no card at all", "ceiling: copy", "compiled 1 files", "bfloat16 arrays                  yes", "of cublas",
        "correct, and twice the same bits: 4 of 4 checks", "layer_norm_forward 8x32 bf16", "product nn 70x48x40 bf16",
    ):  # fmt: skip
        assert said in table, said
    assert "failed" not in table
    (line,) = [one for one in table.splitlines() if one.startswith("layer_norm_forward")]
    assert "1,000 1,000-1,000" in " ".join(line.split())
    (lines,) = tmp_path.glob("*.jsonl")
    sections = {json.loads(one)["section"] for one in lines.read_text("utf-8").splitlines()}
    assert sections == {"here", "compile", "questions", "ceilings", "checks", "times", "done"}
