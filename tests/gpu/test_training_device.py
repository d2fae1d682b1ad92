"""Training on a card: the steps of the CPU, the same bits from a graph, and nothing broken by what is not finite."""

import itertools
import math
import warnings

import numpy as np
import pytest
from device_training import BFLOAT16, Trained, assert_same_bits, batches, gpt2

from tinyplm.errors import NonFiniteError
from tinyplm.kernels import cuda
from tinyplm.objectives import CausalLM
from tinyplm.optim import SGD, Adafactor, AdamW
from tinyplm.train.loop import train

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what CuPy says of its surroundings
    cupy = pytest.importorskip("cupy")

pytestmark = pytest.mark.gpu
PRECISIONS = pytest.mark.parametrize("dtype", [None, BFLOAT16], ids=["float32", "bfloat16"])


@pytest.fixture(autouse=True, scope="module")
def device():
    if not cupy.cuda.is_available() or not cuda.usable():
        pytest.skip("no device that tinyplm's kernels run on")


def test_ten_steps_are_those_of_the_cpu():
    here, there = Trained(gpt2("cpu"), steps=10), Trained(gpt2(), steps=10)
    for (loss, norm), (found, found_norm) in zip(here.numbers, there.numbers, strict=True):
        assert found == pytest.approx(loss, rel=1e-5)
        assert found_norm == pytest.approx(norm, rel=1e-4)


@PRECISIONS
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_repeated_as_a_graph_has_the_same_bits(dtype, accumulate):
    """Recorded without a warning, which would be an error here."""
    options = {"steps": 20, "accumulate": accumulate}
    eager = Trained(gpt2(dtype=dtype), graph=False, **options)
    graphs = Trained(gpt2(dtype=dtype), graph=True, **options)
    assert graphs.numbers == eager.numbers
    assert_same_bits(graphs.arrays, eager.arrays)


@pytest.mark.parametrize("make", [SGD, lambda p: SGD(p, momentum=0.9, weight_decay=0.1), Adafactor])
def test_other_rules_repeat_too(make):
    eager, graphs = (Trained(gpt2(), steps=8, make=make, graph=g) for g in (False, True))
    assert_same_bits(graphs.arrays, eager.arrays)


@PRECISIONS
def test_batches_sent_ahead_are_not_overwritten(dtype):
    """With nobody reading, the host is as far ahead as it may be; read at every step it is not ahead at all."""
    far = Trained(gpt2(dtype=dtype), steps=60)
    model = gpt2(dtype=dtype)
    optimizer = AdamW(model.named_parameters())
    steps = train(
        model, CausalLM(), batches(), optimizer, lambda step: 1e-2 / (step + 1),
        rng=np.random.default_rng(0), steps=60,
    )  # fmt: skip
    assert [(s.loss, s.gradient_norm) for s in steps] == far.numbers
    there = {n: a.get() for n, a in (model.arrays() | optimizer.arrays()).items()}
    assert_same_bits(far.arrays, there)


class Sabotaged(CausalLM):
    """The loss is multiplied by a number of the batch."""

    def loss(self, model, batch, **options):
        return super().loss(model, batch, **options) * batch["factor"]


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("at", [1, 5])
def test_a_number_that_is_not_finite_leaves_all_as_it_was(graph, at):
    def source():
        for i, batch in enumerate(batches()):
            yield batch | {"factor": np.array([math.nan if i + 1 == at else 1.0], np.float32)}

    before = Trained(gpt2(), steps=at - 1, objective=Sabotaged(), source=source(), graph=graph)
    model = gpt2()
    optimizer = AdamW(model.named_parameters())
    steps = train(
        model, Sabotaged(), source(), optimizer, lambda step: 1e-2 / (step + 1),
        rng=np.random.default_rng(0), steps=9, graph=graph,
    )  # fmt: skip
    begun = list(itertools.islice(steps, at + 2))
    with pytest.raises(NonFiniteError, match=f"at step {at}"):
        begun[-1].loss  # noqa: B018
    there = {n: a.get() for n, a in (model.arrays() | optimizer.arrays()).items()}
    assert_same_bits(there, before.arrays)
