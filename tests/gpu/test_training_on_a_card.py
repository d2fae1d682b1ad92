"""Training on a card, on the stand-in for CuPy with emulated kernels: the same steps, nobody waits, and they repeat."""

import itertools
import json
import math
import re
import warnings

import numpy as np
import pytest
from device_training import BFLOAT16, Trained, assert_same_bits, batches, gpt2

from tinyplm.cli.main import main
from tinyplm.errors import (
    ConfigError,
    DeviceMemoryError,
    NonFiniteError,
    ShapeError,
    TinyplmWarning,
)
from tinyplm.objectives import CausalLM
from tinyplm.optim import SGD, Adafactor, AdamW
from tinyplm.recipes.pretrain import Finished, Saved, pretrain
from tinyplm.recipes.run import Run
from tinyplm.recipes.trained import open_trained
from tinyplm.train import checkpoint
from tinyplm.train.loop import Step, train
from tinyplm.train.progress import read_metrics

pytestmark = pytest.mark.device

PRECISIONS = pytest.mark.parametrize("dtype", [None, BFLOAT16], ids=["float32", "bfloat16"])


def test_ten_steps_are_those_of_the_cpu(quick):
    """Float32 throughout and the same dropout: apart by roundings, which Adam's first steps magnify."""
    here, there = Trained(gpt2("cpu"), steps=10), Trained(gpt2(), steps=10, graph=False)
    for (loss, norm), (found, found_norm) in zip(here.numbers, there.numbers, strict=True):
        assert found == pytest.approx(loss, rel=1e-5)
        assert found_norm == pytest.approx(norm, rel=1e-4)
    assert [s.tokens for s in there.steps] == [32] * 10


@PRECISIONS
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_repeated_as_a_graph_has_the_same_bits(quick, dtype, accumulate):
    options = {"steps": 6, "accumulate": accumulate}
    eager = Trained(gpt2(dtype=dtype), graph=False, **options)
    launches = len(quick.launched)
    graphs = Trained(gpt2(dtype=dtype), graph=True, **options)
    assert (
        0 < len(quick.launched) - launches < launches
    )  # three of six steps were not launched kernel by kernel
    assert graphs.numbers == eager.numbers
    assert_same_bits(graphs.arrays, eager.arrays)
    assert graphs.rng.bit_generator.state == eager.rng.bit_generator.state


@pytest.mark.parametrize("make", [SGD, lambda p: SGD(p, momentum=0.9, weight_decay=0.1), Adafactor])
def test_other_rules_repeat_too_and_are_those_of_the_cpu(quick, make):
    here = Trained(gpt2("cpu"), steps=5, make=make)
    eager, graphs = (Trained(gpt2(), steps=5, make=make, graph=g) for g in (False, True))
    assert_same_bits(graphs.arrays, eager.arrays)
    assert [loss for loss, _ in eager.numbers] == pytest.approx(
        [loss for loss, _ in here.numbers], rel=1e-5
    )


@PRECISIONS
def test_a_whole_step_is_recorded_without_another_library(card, dtype):
    """Every product is a kernel of tinyplm's: that of CuPy refuses to be captured, which would be a warning."""
    eager, graphs = (Trained(gpt2(dtype=dtype), steps=4, graph=g) for g in (False, True))
    assert graphs.numbers == eager.numbers
    assert_same_bits(graphs.arrays, eager.arrays)


@PRECISIONS
@pytest.mark.parametrize("graph", [False, True])
def test_nobody_waits_for_the_card_in_a_step(quick, dtype, graph):
    model = gpt2(dtype=dtype)
    steps = train(
        model, CausalLM(), batches(), AdamW(model.named_parameters()), lambda _: 1e-3,
        rng=np.random.default_rng(0), steps=20, graph=graph,
    )  # fmt: skip
    for _ in range(4):
        next(steps)
    with quick.without("reads", "uploads"):
        for _ in range(4):
            last = next(steps)
    assert math.isfinite(last.loss)


def test_masters_are_float32_and_parameters_their_rounding(quick):
    run = Trained(gpt2(dtype=BFLOAT16), steps=4)
    arrays = run.arrays
    for name, p in run.model.named_parameters().items():
        assert p.dtype == BFLOAT16
        assert arrays[f"master.{name}"].dtype == np.float32
        assert arrays[f"master.{name}"].astype(BFLOAT16).tobytes() == arrays[name].tobytes()
        assert arrays[f"mean.{name}"].dtype == np.float32
    assert any(
        (arrays[n].astype(np.float32) != arrays[f"master.{n}"]).any() for n in run.model.arrays()
    )


class Sabotaged(CausalLM):
    """One batch has an embedding that is not a number; all is done on the card."""

    def loss(self, model, batch, **options):
        loss = super().loss(model, batch, **options)
        return loss * batch["factor"]


def sabotaged(at, value=math.nan):
    for i, batch in enumerate(batches()):
        yield batch | {"factor": np.array([value if i + 1 == at else 1.0], np.float32)}


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_number_that_is_not_finite_is_told_late_and_leaves_all_as_it_was(quick, graph, at):
    before = Trained(gpt2(), steps=at - 1, objective=Sabotaged(), source=sabotaged(at), graph=graph)
    model = gpt2()
    optimizer = AdamW(model.named_parameters())
    steps = train(
        model, Sabotaged(), sabotaged(at), optimizer, lambda step: 1e-2 / (step + 1),
        rng=np.random.default_rng(0), steps=9, graph=graph,
    )  # fmt: skip
    begun = list(itertools.islice(steps, at + 2))  # nobody has noticed
    with pytest.raises(NonFiniteError, match=f"Loss became nan at step {at}"):
        begun[-1].loss  # noqa: B018
    with pytest.raises(NonFiniteError, match=f"at step {at}"):
        begun[at - 1].gradient_norm  # noqa: B018
    assert [(s.loss, s.gradient_norm) for s in begun[: at - 1]] == before.numbers
    there = {n: a.get() for n, a in (model.arrays() | optimizer.arrays()).items()}
    assert_same_bits(there, before.arrays)
    assert optimizer.steps == at - 1


def test_a_loop_that_nobody_asks_stops_by_itself(quick):
    model = gpt2()
    steps = train(
        model, Sabotaged(), sabotaged(2), AdamW(model.named_parameters()), lambda _: 1e-2,
        rng=np.random.default_rng(0),
    )  # fmt: skip
    with pytest.raises(NonFiniteError, match="at step 2"):
        list(itertools.islice(steps, 20))


def test_steps_of_other_shapes_and_counts_are_told_apart(quick):
    def source():
        for i, batch in enumerate(batches()):
            ids = batch["input_ids"]
            mask = np.ones_like(ids)
            mask[0, 5 + i % 2 :] = 0
            yield {"input_ids": ids[: 2 + i % 2], "attention_mask": mask[: 2 + i % 2]}

    eager, graphs = (Trained(gpt2(), steps=9, source=source(), graph=g) for g in (False, True))
    assert graphs.numbers == eager.numbers
    assert_same_bits(graphs.arrays, eager.arrays)


def test_parameters_that_are_given_other_arrays_are_not_mistaken(quick):
    def run(graph):
        model = gpt2()
        optimizer = AdamW(model.named_parameters())
        steps = train(
            model, CausalLM(), batches(), optimizer, lambda _: 1e-2,
            rng=np.random.default_rng(0), steps=9, graph=graph,
        )  # fmt: skip
        for step in steps:
            if step.number == 5:
                model.load({name: a.copy() for name, a in model.arrays().items()})
        return {n: a.get() for n, a in model.arrays().items()}

    assert_same_bits(run(True), run(False))


def test_what_cannot_be_recorded_is_said_once_and_done_all_the_same(quick):
    class Reading(CausalLM):
        def loss(self, model, batch, **options):
            loss = super().loss(model, batch, **options)
            float(loss.array)  # waits
            return loss

    with pytest.warns(TinyplmWarning, match="could not be recorded") as told:
        found = Trained(gpt2(), steps=6, objective=Reading(), graph=True)
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = Trained(gpt2(), steps=6, objective=Reading(), graph=False)
    assert found.numbers == again.numbers
    assert_same_bits(found.arrays, again.arrays)


def test_what_stays_on_the_host_is_not_recorded(quick):
    seen = []

    class Beside(CausalLM):
        on_host = frozenset({"beside"})

        def loss(self, model, batch, **options):
            assert isinstance(batch["beside"], np.ndarray)
            assert not isinstance(batch["input_ids"], np.ndarray)
            seen.append(batch)
            return super().loss(model, batch, **options)

    source = ({**batch, "beside": np.ones(3)} for batch in batches())
    Trained(gpt2(), steps=5, objective=Beside(), source=source, graph=True)
    assert len(seen) == 5


def test_without_kernels_of_our_own_it_is_the_same(plain_card):
    """An older card, or one without a compiler."""
    for make in (AdamW, SGD, Adafactor):
        here = Trained(gpt2("cpu"), steps=3, make=make)
        there = Trained(gpt2(), steps=3, make=make, graph=False)
        assert [n for n, _ in there.numbers] == pytest.approx(
            [n for n, _ in here.numbers], rel=1e-5
        )
    model = gpt2()
    before = {n: a.get() for n, a in model.arrays().items()}
    with pytest.raises(NonFiniteError, match="at step 1"):
        list(
            train(
                model, Sabotaged(), sabotaged(1), AdamW(model.named_parameters()), lambda _: 1e-2,
                rng=np.random.default_rng(0), steps=3, graph=False,
            )
        )  # fmt: skip
    assert_same_bits({n: a.get() for n, a in model.arrays().items()}, before)


def test_an_id_that_is_outside_is_told_before_it_goes_up(quick):
    ids = np.zeros((2, 9), np.int64)
    ids[1, 4] = 13
    with pytest.raises(ShapeError, match=r"input_ids contains 13 at \[1, 4\].*vocab_size=13"):
        Trained(gpt2(), steps=1, source=iter([{"input_ids": ids}]))


def test_no_room_is_said_with_what_to_do(quick):
    model = gpt2()
    quick.pool.set_limit(quick.pool.used_bytes() + 60_000)
    with pytest.raises(DeviceMemoryError, match="--batch"):
        Trained(model, steps=1)


TEXT = "".join(
    f"the {a} {b} {c}. " for a in ("old", "new", "red") for b in "abcdefgh" for c in "stuvwxyz"
)
SETTINGS = {
    "tokenizer": "chars", "validation": 0.1, "layers": 1, "heads": 2, "hidden_size": 16, "positions": 8,
    "dropout": 0.1, "steps": 8, "batch": 4, "evaluate_every": 4, "evaluation_windows": 8, "checkpoint_every": 2,
    "sample_tokens": 5, "device": "cuda",
}  # fmt: skip


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def whole(text, output, *, stop=None, resume=False, **changes):
    run = Run(**SETTINGS | {"data": str(text), "output": str(output)} | changes)
    events = []
    for event in pretrain(run, resume=resume):
        events.append(event)
        if isinstance(event, Saved) and event.step == stop:
            break
    return events


def left(folder):
    saved = checkpoint.load_latest(folder)
    arrays = {f"{g}/{n}": a for g, named in saved.arrays.items() for n, a in named.items()}
    records = read_metrics(folder / "metrics.jsonl")
    for record in records:
        del record["seconds"]
    return arrays, records, (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_that_was_stopped_goes_on_with_the_same_bits(quick, text, tmp_path, precision):
    events = whole(text, tmp_path / "whole", precision=precision)
    assert [e.number for e in events if isinstance(e, Step)] == list(range(1, 9))
    assert isinstance(events[-1], Finished)
    whole(text, tmp_path / "parts", precision=precision, stop=4, graph=False)
    whole(text, tmp_path / "parts", precision=precision, resume=True)
    (expected, *others), (found, *same) = left(tmp_path / "whole"), left(tmp_path / "parts")
    assert_same_bits(found, expected)
    assert same == others
    kind = BFLOAT16 if precision == "bfloat16" else np.float32
    assert all(a.dtype == kind for n, a in found.items() if n.startswith("model/"))


def test_what_is_saved_is_float32_from_the_masters(quick, text, tmp_path):
    whole(text, tmp_path / "run", precision="bfloat16")
    saved = checkpoint.load_latest(tmp_path / "run")
    finished = open_trained(tmp_path / "run").model.arrays()
    unfinished = open_trained(saved.path).model.arrays()
    assert_same_bits(finished, unfinished)
    for name, array in finished.items():
        assert array.tobytes() == saved.arrays["optimizer"][f"master.{name}"].tobytes()


def test_the_command_trains_on_a_card(quick, text, tmp_path, capsys):
    options = {**SETTINGS, "data": text, "output": tmp_path / "run", "precision": "bfloat16"}
    given = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    assert main(["pretrain", "gpt2", *given, "--graph", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["steps"] == 8
    assert math.isfinite(result["validation"]["nats_per_token"])
    settings = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert (settings["device"], settings["precision"], settings["graph"]) == (
        "cuda",
        "bfloat16",
        True,
    )
    assert "clip_by_norm" in quick.launched


def test_a_precision_that_a_card_has_not_and_a_model_that_is_too_large_are_refused(
    quick, text, tmp_path
):
    with pytest.raises(ConfigError, match=r"precision is bfloat16x3.*bfloat16 for speed"):
        Run(**SETTINGS, precision="bfloat16x3")
    quick.free = (10_000, 80 * 10**9)
    with pytest.raises(ConfigError, match="free on the card"):
        whole(text, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_step_without_room_leaves_the_checkpoint(quick, text, tmp_path):
    events = pretrain(
        Run(**SETTINGS | {"data": str(text), "output": str(tmp_path / "run"), "graph": False})
    )
    while not (isinstance(event := next(events), Saved) and event.step == 2):
        pass
    quick.pool.set_limit(quick.pool.used_bytes() + 10_000)
    with pytest.raises(DeviceMemoryError, match=r"--batch.*Checkpoint 2 is intact"):
        list(events)
    assert checkpoint.load_latest(tmp_path / "run").step == 2


def test_a_bad_number_leaves_the_checkpoint_before_it(quick, text, tmp_path):
    with pytest.raises(NonFiniteError, match=r"at step \d+.*Checkpoint \d+ is intact") as caught:
        whole(
            text, tmp_path / "run", lr=1e30, warmup=2, clip=0.0, optimizer="sgd", checkpoint_every=1
        )
    bad, kept = map(int, re.findall(r"(?:step|Checkpoint) (\d+)", str(caught.value)))
    assert kept < bad
    assert checkpoint.load_latest(tmp_path / "run").step == kept
