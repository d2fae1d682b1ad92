"""Several objectives as one."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from tinyplm import Tensor
from tinyplm.autograd.ops.loss import IGNORED
from tinyplm.errors import ConfigError, DataError
from tinyplm.nn import Head, Module
from tinyplm.objectives import Objective, Prediction, Sum


class Model(Module):
    """Hidden states are one-hot ids; counts how often it is asked."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.head = Head(Tensor(rng.standard_normal((5, 5)), requires_grad=True))
        self.other = Head(Tensor(rng.standard_normal((2, 5)), requires_grad=True))
        self.asked = 0

    def __call__(self, ids, **_):
        self.asked += 1
        return Tensor(np.eye(5)[ids])


class Tokens(Objective):
    def prepare(self, batch, *, rng):
        labels = np.where(batch["input_ids"] == 3, IGNORED, batch["input_ids"])
        return batch | {"labels": labels}

    def nothing(self, term, batch):
        return f"nothing in {term}"


@dataclass(frozen=True)
class Rows(Objective):
    labels: ClassVar = {"rows": "row_labels"}
    frames: ClassVar = True
    smoothing: float = 0.0

    def batches(self, text, *, length, batch, seed):
        return iter([length])

    def prepare(self, batch, *, rng):
        assert "labels" in batch, "parts prepare in turn"
        return batch | {"row_labels": rng.integers(2, size=len(batch["input_ids"]))}

    def predictions(self, model, hidden, batch):
        return {"rows": Prediction(hidden[:, 0], model.other, batch["row_labels"])}


@pytest.fixture
def prepared():
    ids = np.array([[0, 3, 1], [4, 3, 3]])
    return Sum(Tokens(), Rows()).prepare({"input_ids": ids}, rng=np.random.default_rng(1))


def test_terms_stay_apart_and_the_model_is_asked_once(prepared):
    model, both = Model(), Sum(Tokens(), Rows())
    assert both.counts(prepared) == {"tokens": 3.0, "rows": 2.0}
    terms = both.terms(model, prepared)
    assert model.asked == 1
    assert terms["tokens"].item() == pytest.approx(Tokens().loss(model, prepared).item(), rel=1e-14)
    assert terms["rows"].item() == pytest.approx(Rows().loss(model, prepared).item(), rel=1e-14)
    whole = both.loss(model, prepared).item()
    assert whole == pytest.approx(sum(t.item() for t in terms.values()), rel=1e-14)


def test_batches_are_those_of_the_part_that_frames_its_own():
    for parts in ((Tokens(), Rows()), (Rows(), Tokens())):
        assert list(Sum(*parts).batches(None, length=7, batch=1, seed=0)) == [7]


def test_each_part_says_what_it_has_nothing_of(prepared):
    both = Sum(Tokens(), Rows())
    empty = prepared | {"labels": np.full((2, 3), IGNORED)}
    with pytest.raises(DataError, match="nothing in tokens"):
        both.loss(Model(), empty)


@pytest.mark.parametrize("parts", [(), (Tokens(), Tokens()), (Tokens(), Rows(0.1))], ids=len)
def test_what_cannot_be_added_is_refused(parts):
    with pytest.raises(ConfigError, match="expected objectives with terms of different names"):
        Sum(*parts)
