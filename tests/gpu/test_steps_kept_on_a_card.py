"""What a card keeps from step to step: of what is recorded, of what goes wrong, and when it is given back."""

import dataclasses
import gc
import itertools
import math
import time
import weakref

import numpy as np
import pytest
from device_training import Trained, assert_same_bits, batches, gpt2

from tinyplm import Tensor
from tinyplm.errors import GraphError, NonFiniteError, ShapeError, TinyplmWarning
from tinyplm.kernels.dropout import SEEDS
from tinyplm.kernels.graph import Draws, Worker
from tinyplm.models.seq2seq import Seq2Seq, Seq2SeqConfig
from tinyplm.objectives import CausalLM
from tinyplm.optim import AdamW
from tinyplm.train import place
from tinyplm.train.loop import Step, train

pytestmark = pytest.mark.device


def training(model, optimizer=None, *, steps=9, graph=True, objective=None, source=None):
    return train(
        model, objective or CausalLM(), source or batches(),
        optimizer or AdamW(model.named_parameters()), lambda _: 1e-2,
        rng=np.random.default_rng(0), steps=steps, graph=graph,
    )  # fmt: skip


def new_data(model):
    p = model.parameters()[0]
    p.data = p.data.copy()


def frozen(model):
    model.parameters()[1].requires_grad = False


@pytest.mark.parametrize("change", [new_data, frozen])
def test_a_model_that_is_changed_between_steps_is_not_repeated_as_it_was(quick, change):
    def run(graph):
        model = gpt2()
        for step in training(model, graph=graph):
            if step.number == 5:
                change(model)
                before = {n: a.get() for n, a in model.arrays().items()}
        after = {n: a.get() for n, a in model.arrays().items()}
        return after, [n for n in after if not np.array_equal(after[n], before[n])]

    (graphs, moved), (eager, should) = run(True), run(False)
    assert_same_bits(graphs, eager)
    assert moved == should


def test_gradients_that_are_cleared_leave_graphs_as_they_are(quick):
    model, counts = gpt2(), []
    for _ in training(model, steps=7):
        model.clear_gradients()
        counts.append(len(quick.launched))
    assert counts[3:] == [counts[3]] * 4  # from the fourth on nothing is launched by itself


def test_a_repeated_step_is_noticed_by_a_graph_that_needs_the_old_values(quick):
    model, objective = gpt2(dropout=0), CausalLM()
    steps = training(model)
    for _ in range(4):
        next(steps)
    batch = objective.prepare(next(batches()), rng=np.random.default_rng(0))
    loss = objective.loss(model, batch)
    next(steps)
    with pytest.raises(GraphError, match="changed in place"):
        loss.backward()


class Sabotaged(CausalLM):
    """The third batch has a loss that is not a number."""

    def loss(self, model, batch, **options):
        return super().loss(model, batch, **options) * batch["factor"]


def sabotaged():
    for i, batch in enumerate(batches()):
        yield batch | {"factor": np.array([math.nan if i == 2 else 1.0], np.float32)}


@pytest.mark.parametrize("graph", [False, True])
def test_no_step_follows_an_error_that_was_told(quick, graph):
    model = gpt2()
    optimizer, source = AdamW(model.named_parameters()), sabotaged()
    steps = training(model, optimizer, objective=Sabotaged(), source=source, graph=graph)
    begun = list(itertools.islice(steps, 4))
    with pytest.raises(NonFiniteError, match="at step 3"):
        begun[3].loss  # noqa: B018
    with pytest.raises(NonFiniteError, match="at step 3"):
        next(steps)
    assert optimizer.steps == 2
    with pytest.raises(NonFiniteError, match="at step 3"):
        begun[2].loss  # noqa: B018
    assert math.isfinite(begun[1].loss)


def test_a_loop_that_is_left_counts_only_what_was_done(quick):
    model = gpt2()
    optimizer = AdamW(model.named_parameters())
    steps = training(model, optimizer, objective=Sabotaged(), source=sabotaged())
    begun = list(itertools.islice(steps, 4))
    steps.close()
    assert optimizer.steps == 2
    assert math.isfinite(begun[1].loss)
    with pytest.raises(NonFiniteError, match="at step 3"):
        begun[3].gradient_norm  # noqa: B018


def test_a_parameter_in_float64_that_is_not_used_changes_nothing(quick):
    plain, beside = gpt2(), gpt2()
    beside.unused = Tensor(np.zeros(3), requires_grad=True)
    beside.unused.replace(quick.cupy.zeros(3))
    assert beside.unused.dtype == np.float64
    right, found = Trained(plain, steps=5), Trained(beside, steps=5)
    assert found.numbers == right.numbers
    assert_same_bits({n: found.arrays[n] for n in right.arrays}, right.arrays)


@pytest.fixture
def pools(quick, monkeypatch):
    """The pools of graphs."""
    made = []
    pool = place.Worker.pool
    monkeypatch.setattr(place.Worker, "pool", lambda self: made.append(pool(self)) or made[-1])
    return made


def test_memory_of_graphs_is_free_when_the_model_changes_and_at_the_end(quick, pools):
    model = gpt2()
    for step in training(model, steps=8):
        if step.number == 4:
            (first,) = pools
            assert first.used_bytes() > 0
            new_data(model)
    assert [pool.total_bytes() for pool in pools] == [0, 0]
    assert all(p.grad is None for p in model.parameters())


def test_memory_of_a_step_that_is_not_yet_recorded_is_free(quick, pools):
    model = gpt2()
    list(training(model, steps=2))
    assert [pool.total_bytes() for pool in pools] == [0]
    assert all(p.grad is None for p in model.parameters())


def test_a_pool_has_no_second_try_while_its_memory_is_recorded(quick, monkeypatch):
    """Before it CuPy gives back what is free, and a graph would go on using it."""
    cuda = quick.cupy.cuda
    worker = place.Worker()
    pool = worker.pool()

    def none_left(size):
        raise cuda.runtime.CUDARuntimeError(2)

    monkeypatch.setattr(cuda.memory, "Memory", none_left)
    with pytest.raises(cuda.runtime.CUDARuntimeError):
        pool.malloc(64)
    with pytest.raises(cuda.memory.OutOfMemoryError):
        worker.recorded(lambda: pool.malloc(64), pool)


def test_memory_of_a_step_that_cannot_be_recorded_is_free(quick, pools):
    class Reading(CausalLM):
        def loss(self, model, batch, **options):
            loss = super().loss(model, batch, **options)
            float(loss.array)  # waits
            return loss

    steps = training(gpt2(), objective=Reading())
    with pytest.warns(TinyplmWarning, match="could not be recorded"):
        list(itertools.islice(steps, 3))
    assert [pool.total_bytes() for pool in pools] == [0]


def test_the_last_gradients_are_gone_before_a_step_takes_its_memory(quick, monkeypatch):
    model, held = gpt2(), []

    class Looking(CausalLM):
        def loss(self, model, batch, **options):
            held.append([p.grad for p in model.parameters() if p.grad is not None])
            return super().loss(model, batch, **options)

    given_back = place.Worker.give_back
    monkeypatch.setattr(
        place.Worker,
        "give_back",
        lambda self: held.append([g() for g in last if g() is not None]) or given_back(self),
    )
    for _ in training(model, steps=3, objective=Looking()):
        last = [weakref.ref(p.grad) for p in model.parameters()]
    assert held == [[]] * 4  # three steps, and what was given back before the second


def test_a_step_that_is_kept_keeps_nothing_else(quick):
    model = gpt2()
    steps = training(model, steps=5)
    first = next(steps)
    assert math.isfinite(first.loss)
    watched = weakref.ref(steps.gi_frame.f_locals["waiting"])
    kept = [first, *steps]
    del steps
    gc.collect()
    assert watched() is None
    assert all(math.isfinite(step.loss) for step in kept)


def test_a_step_is_a_record_as_on_the_cpu(quick):
    steps = Trained(gpt2(), steps=2).steps
    step = steps[0]
    made = Step(
        number=1, loss=step.loss, gradient_norm=step.gradient_norm, learning_rate=1e-2,
        tokens=step.tokens, seconds=step.seconds,
    )  # fmt: skip
    assert step == made
    assert step != steps[1]
    assert repr(step) == repr(made)
    assert dataclasses.asdict(step) == dataclasses.asdict(made)
    late = next(training(gpt2()))
    assert "_waiting" not in repr(late)
    assert str(late.loss) in repr(late)
    assert not hasattr(late, "losses")


def test_batches_that_grow_wait_for_the_stream_only_where_they_double(quick):
    worker, before = Worker(), len(quick.reads)
    for n in range(1, 33):
        parcel = worker.send([{"n": np.full(n * 64, n, np.int32)}])
        assert (parcel.groups[0]["n"].get() == n).all()
        worker.has_read()
    waited = [read for read in quick.reads[before:] if "Stream.synchronize" in read]
    assert len(waited) <= 2 * 6  # two places, of 256 bytes to 8192


def test_a_step_by_hand_sends_one_array(quick):
    model = gpt2(dropout=0)
    optimizer, objective = AdamW(model.named_parameters()), CausalLM()
    batch = objective.prepare(next(batches()), rng=np.random.default_rng(0))
    for _ in range(2):
        model.clear_gradients()
        objective.loss(model, batch).backward()
        before = len(quick.uploads)
        optimizer.step(1e-3, shrink=0.5)
    assert len(quick.uploads) == before + 1


def test_what_only_draws_given_seeds_has_nothing_else():
    draws = Draws(given=[3])
    assert not hasattr(draws, "standard_normal")
    with pytest.raises(AttributeError, match="only seeds"):
        draws.integers(5)
    assert draws.integers(SEEDS) == 3
    with pytest.raises(RuntimeError, match="more seeds"):
        draws.integers(SEEDS)


def test_waiting_is_part_of_a_step_s_seconds(quick, monkeypatch):
    read = place.Late.read
    monkeypatch.setattr(place.Late, "read", lambda self: time.sleep(0.2) or read(self))
    steps = training(gpt2(), steps=9, graph=False)
    begun = list(itertools.islice(steps, 4))
    began = time.perf_counter()
    begun[3].loss  # noqa: B018
    assert time.perf_counter() - began >= 0.8
    assert next(steps).seconds >= 0.8


def test_ids_of_a_source_are_held_to_the_source_s_vocabulary(quick):
    config = Seq2SeqConfig(
        vocab_size=5, source_vocab_size=9, embedding_size=4, hidden_size=4, layers=1
    )
    model = Seq2Seq(config, rng=np.random.default_rng(0)).to("cuda")
    update = place.Update(model, CausalLM(), None, model.parameters(), 1, None, None)
    there = place.OnCard(update, graph=False)
    ids = np.array([[8, 4]])
    assert there._sent({"input_ids": ids})["input_ids"] is ids
    with pytest.raises(ShapeError, match="decoder_input_ids contains 8"):
        there._sent({"decoder_input_ids": ids})
    with pytest.raises(ShapeError, match=r"input_ids contains 9.*source_vocab_size=9"):
        there._sent({"input_ids": ids + 1})
