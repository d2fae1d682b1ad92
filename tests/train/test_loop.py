"""The loop: it learns, it adds up, and it stops before a bad update."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from tinyplm import Tensor
from tinyplm.errors import DataError, NonFiniteError
from tinyplm.models.gpt2 import Gpt2, Gpt2Config
from tinyplm.nn import Module
from tinyplm.objectives import CausalLM
from tinyplm.optim import SGD, AdamW
from tinyplm.train.loop import Step, train


def gpt2(dtype="float32", dropout=0.0):
    model = Gpt2(
        Gpt2Config(
            vocab_size=13, hidden_size=16, layers=2, heads=2, positions=8,
            dropout=dropout, embedding_dropout=dropout, attention_dropout=dropout,
        ),
        rng=np.random.default_rng(0),
    )  # fmt: skip
    model.load({name: a.astype(dtype) for name, a in model.arrays().items()})
    return model


def batches(rows=4, seed=0):
    rng = np.random.default_rng(seed)
    while True:
        yield {"input_ids": rng.integers(13, size=(rows, 9))}


def run(model, source, *, steps, optimizer=None, rate=1e-2, **options):
    optimizer = optimizer or AdamW(model.named_parameters())
    rng = np.random.default_rng(0)
    return list(
        train(model, CausalLM(), source, optimizer, lambda _: rate, rng=rng, steps=steps, **options)
    )


def test_one_batch_is_learnt_by_heart():
    model = gpt2()
    batch = next(batches())
    batch["input_ids"][:, 0] = np.arange(4)  # the first token tells the rows apart
    records = run(model, itertools.repeat(batch), steps=120)
    assert records[0].loss == pytest.approx(math.log(13), abs=0.05)
    assert records[-1].loss < 0.02


def test_records_say_what_happened():
    model = gpt2()
    rates = [0.01, 0.02, 0.03]
    records = list(
        train(
            model, CausalLM(), batches(), AdamW(model.named_parameters()), rates.__getitem__,
            rng=np.random.default_rng(0), steps=3, accumulate=2,
        )
    )  # fmt: skip
    assert [r.number for r in records] == [1, 2, 3]
    assert [r.learning_rate for r in records] == rates
    assert [r.tokens for r in records] == [2 * 4 * 8] * 3
    assert all(r.seconds > 0 and math.isfinite(r.gradient_norm) for r in records)


def test_a_record_is_frozen_and_prints_and_compares_by_its_fields():
    found = run(gpt2(), batches(), steps=1)[0]
    fields = dataclasses.asdict(found)
    assert list(fields) == ["number", "loss", "gradient_norm", "learning_rate", "tokens", "seconds"]
    made = Step(**fields)
    assert found == made
    assert vars(found) == vars(made)
    assert repr(found) == repr(made) == f"Step({', '.join(f'{k}={v}' for k, v in fields.items())})"
    assert found != dataclasses.replace(made, loss=0.0)
    assert made.known
    assert not hasattr(made, "losses")
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.loss = 0.0


def test_the_loss_and_norm_recorded_are_those_before_the_update():
    model = gpt2("float64")
    batch = next(batches())
    prepared = CausalLM().prepare(batch, rng=np.random.default_rng(0))
    loss = CausalLM().loss(model, prepared)
    loss.backward()
    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in model.parameters()))
    record = run(model, iter([batch]), steps=1)[0]
    assert record.loss == loss.item()
    assert record.gradient_norm == pytest.approx(norm, rel=1e-12)


def test_numbering_goes_on_from_the_start_and_ends_at_the_number_of_steps():
    seen = []
    model = gpt2()
    records = train(
        model, CausalLM(), batches(), SGD(model.named_parameters()),
        lambda step: seen.append(step) or 0.1, rng=np.random.default_rng(0), start=5, steps=8,
    )  # fmt: skip
    assert [r.number for r in records] == [6, 7, 8]
    assert seen == [5, 6, 7]
    assert run(gpt2(), batches(), steps=8, start=8) == []


def test_without_a_number_of_steps_it_goes_on():
    model = gpt2()
    records = train(
        model, CausalLM(), batches(), SGD(model.named_parameters()), lambda _: 0.1,
        rng=np.random.default_rng(0),
    )  # fmt: skip
    assert [r.number for r in itertools.islice(records, 4)] == [1, 2, 3, 4]


def padded(lengths, seed=0):
    ids = np.random.default_rng(seed).integers(13, size=(len(lengths), 9))
    return {"input_ids": ids, "attention_mask": (np.arange(9) < np.array(lengths)[:, None]) * 1}


@pytest.mark.parametrize("optimizer", [AdamW, SGD])
def test_accumulation_equals_the_large_batch_with_unequal_numbers_of_tokens(optimizer):
    large = [padded([9, 2, 3, 9, 1, 5], seed) for seed in range(3)]
    cuts = [(0, 2), (2, 5), (5, 6)]
    small = [{k: v[a:b] for k, v in batch.items()} for batch in large for a, b in cuts]
    whole, parts = gpt2("float64"), gpt2("float64")
    one = run(whole, iter(large), steps=3, optimizer=optimizer(whole.named_parameters()))
    three = run(
        parts, iter(small), steps=3, accumulate=3, optimizer=optimizer(parts.named_parameters())
    )
    for a, b in zip(one, three, strict=True):
        assert math.isclose(a.loss, b.loss, rel_tol=1e-12)
        assert math.isclose(a.gradient_norm, b.gradient_norm, rel_tol=1e-12)
        assert a.tokens == b.tokens
    if optimizer is SGD:  # Adam divides by gradients, so their rounding may show
        for name, array in whole.arrays().items():
            np.testing.assert_allclose(parts.arrays()[name], array, rtol=0, atol=1e-12)


def test_a_batch_without_labels_among_others_adds_nothing():
    batch, empty = padded([9, 4]), padded([1, 0])
    alone, beside = gpt2("float64"), gpt2("float64")
    one = run(alone, iter([batch]), steps=1, optimizer=SGD(alone.named_parameters()))
    two = run(
        beside, iter([empty, batch]), steps=1, accumulate=2,
        optimizer=SGD(beside.named_parameters()),
    )  # fmt: skip
    assert one[0].loss == two[0].loss
    for name, array in alone.arrays().items():
        np.testing.assert_array_equal(beside.arrays()[name], array)


def test_clipping_bounds_the_update():
    for clip, expected in ((0.5, 0.5), (None, None), (1e9, None)):
        model = gpt2("float64")
        before = {name: array.copy() for name, array in model.arrays().items()}
        record = run(
            model, batches(), steps=1, rate=1.0, clip=clip,
            optimizer=SGD(model.named_parameters()),
        )[0]  # fmt: skip
        moved = math.sqrt(
            sum(float(((a - before[n]) ** 2).sum()) for n, a in model.arrays().items())
        )
        assert record.gradient_norm > 0.5
        assert moved == pytest.approx(expected or record.gradient_norm, rel=1e-5)


class Sabotaged:
    """Causal language modelling that fails at one call."""

    def __init__(self, at, factor):
        self.at, self.factor, self.calls = at, factor, 0

    prepare = CausalLM().prepare
    counts = CausalLM().counts

    def loss(self, model, batch, **options):
        self.calls += 1
        loss = CausalLM().loss(model, batch, **options)
        return self.factor(model, loss) if self.calls == self.at else loss


def loss_is_nan(_, loss):
    return loss * math.nan


def loss_is_infinite(_, loss):
    return loss * math.inf


def gradient_is_nan(model, loss):
    # The root of 0 is 0, and its derivative is not finite.
    first = model.blocks[0].attention.project_in.bias
    return loss + ((first * 0.0).sum() ** 0.5) * 0.0


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (
            loss_is_nan,
            r"Loss became nan at step 4 \(gradient norm \d\.\de[-+]\d\d one step before\)",
        ),
        (loss_is_infinite, r"Loss became inf at step 4"),
        (gradient_is_nan, r"Gradient norm became nan at step 4"),
    ],
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_number_that_is_not_finite_stops_before_the_update(factor, message, accumulate):
    model = gpt2()
    optimizer = AdamW(model.named_parameters())
    records = train(
        model, Sabotaged(4 * accumulate, factor), batches(), optimizer, lambda _: 0.01,
        rng=np.random.default_rng(0), steps=9, accumulate=accumulate,
    )  # fmt: skip
    assert [next(records).number for _ in range(3)] == [1, 2, 3]
    before = {name: a.copy() for name, a in (model.arrays() | optimizer.arrays()).items()}
    with pytest.raises(NonFiniteError, match=message + ".*Try a lower learning rate"):
        next(records)
    for name, array in (model.arrays() | optimizer.arrays()).items():
        np.testing.assert_array_equal(array, before[name])
    assert optimizer.steps == 3


def test_at_the_first_step_the_message_has_no_norm_before():
    with pytest.raises(NonFiniteError, match=r"at step 1\. Try"):
        next(
            train(
                (model := gpt2()), Sabotaged(1, loss_is_nan), batches(),
                AdamW(model.named_parameters()), lambda _: 0.01, rng=np.random.default_rng(0),
            )
        )  # fmt: skip


def test_a_model_that_overflows_stops_with_its_parameters_finite():
    model = gpt2()
    with pytest.raises(NonFiniteError), np.errstate(all="ignore"):
        run(
            model,
            batches(),
            steps=50,
            rate=1e30,
            clip=None,
            optimizer=SGD(model.named_parameters()),
        )
    # The update that broke it was finite; what it led to was never applied.
    assert all(not np.isnan(array).any() for array in model.arrays().values())


def test_batches_that_end_too_early_are_said():
    source = itertools.islice(batches(), 5)
    with pytest.raises(DataError, match="ended after 2 updates, but training goes on to 9"):
        run(gpt2(), source, steps=9, accumulate=2)


def test_the_same_seed_gives_the_same_bits_with_dropout_and_another_another():
    def trained(seed):
        model = gpt2(dropout=0.2)
        rng = np.random.default_rng(seed)
        optimizer = AdamW(model.named_parameters())
        losses = [
            r.loss
            for r in train(
                model, CausalLM(), batches(), optimizer, lambda _: 0.01, rng=rng, steps=5
            )
        ]
        return losses, model.arrays()

    (first, first_arrays), (again, arrays), (other, _) = trained(0), trained(0), trained(1)
    assert first == again
    assert first != other
    for name, array in arrays.items():
        np.testing.assert_array_equal(first_arrays[name], array)


def test_gradients_of_an_earlier_step_do_not_linger():
    class Twice(Module):
        def __init__(self):
            self.w = Tensor(np.array([2.0]), requires_grad=True)

    class Square:
        def prepare(self, batch, *, rng):
            return batch

        def counts(self, batch):
            return {"things": 1.0}

        def loss(self, model, batch, *, counts, rng):
            return (model.w * model.w).sum()

    model = Twice()
    records = train(
        model, Square(), itertools.repeat({"input_ids": np.zeros(1)}), SGD({"w": model.w}),
        lambda _: 0.25, rng=np.random.default_rng(0), steps=3, clip=None,
    )  # fmt: skip
    assert [(r.loss, r.gradient_norm) for r in records] == [(4.0, 4.0), (1.0, 2.0), (0.25, 1.0)]
    assert model.w.item() == 0.25
