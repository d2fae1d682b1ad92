"""What is tried of training on a card, emulated or real: a small GPT-2, and what some steps make of it."""

import ml_dtypes
import numpy as np

from tinyplm.models.gpt2 import Gpt2, Gpt2Config
from tinyplm.objectives import CausalLM
from tinyplm.optim import AdamW
from tinyplm.train.loop import train

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def gpt2(device="cuda", dtype=None, dropout=0.1):
    rates = {"dropout": dropout, "embedding_dropout": dropout, "attention_dropout": dropout}
    config = Gpt2Config(vocab_size=13, hidden_size=16, layers=1, heads=2, positions=8, **rates)
    return Gpt2(config, rng=np.random.default_rng(0)).to(device, dtype)


def batches(rows=4, seed=0):
    rng = np.random.default_rng(seed)
    while True:
        yield {"input_ids": rng.integers(13, size=(rows, 9))}


class Trained:
    """A model after some steps, and its records."""

    def __init__(self, model, *, steps, make=AdamW, objective=None, source=None, **options):
        self.model, self.optimizer = model, make(model.named_parameters())
        self.rng = np.random.default_rng(0)
        self.steps = list(
            train(
                model, objective or CausalLM(), source or batches(), self.optimizer,
                lambda step: 1e-2 / (step + 1), rng=self.rng, steps=steps, **options,
            )
        )  # fmt: skip

    @property
    def numbers(self):
        return [(s.loss, s.gradient_norm) for s in self.steps]

    @property
    def arrays(self):
        there = self.model.arrays() | self.optimizer.arrays()
        return {name: a.get() if hasattr(a, "get") else a for name, a in there.items()}


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert a[name].tobytes() == b[name].tobytes(), name
