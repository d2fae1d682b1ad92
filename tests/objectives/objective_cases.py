"""What the conformance suite needs to know of an objective."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyplm.models.gpt2 import Gpt2, Gpt2Config
from tinyplm.objectives import CausalLM

VOCAB = 23


@dataclass(frozen=True)
class Case:
    """An objective, token batches for it, and a model that it can train."""

    objective: Any
    draws: bool  # whether prepare chooses anything at random
    batch: Callable[[int], dict[str, Any]]  # of a seed
    nothing: list[dict[str, Any]]  # batches in which nothing can be predicted
    uniform: Callable[[], Any]  # a float64 model that predicts uniformly
    model: Callable[[], Any]  # a float64 model without dropout


def _gpt2():
    config = Gpt2Config(
        vocab_size=VOCAB, hidden_size=8, layers=1, heads=2, positions=16,
        dropout=0.0, embedding_dropout=0.0, attention_dropout=0.0,
    )  # fmt: skip
    model = Gpt2(config, rng=np.random.default_rng(0))
    rng = np.random.default_rng(1)
    model.load({k: 0.4 * rng.standard_normal(a.shape) for k, a in model.arrays().items()})
    return model


def _uniform_gpt2():
    model = _gpt2()
    arrays = {k: np.array(a) for k, a in model.arrays().items()}
    arrays["token_embedding.weight"][:] = 0  # the head's weight too
    model.load(arrays)
    return model


def _padded(seed):
    """Texts of 7, 3, 1 and 5 tokens."""
    ids = np.random.default_rng(seed).integers(VOCAB, size=(4, 7))
    mask = (np.arange(7) < np.array([[7], [3], [1], [5]])).astype(np.int64)
    return {"input_ids": ids, "attention_mask": mask}


def _without_mask(seed):
    return {"input_ids": np.random.default_rng(seed).integers(VOCAB, size=(4, 7))}


CASES: dict[str, list[Case]] = {
    "causal-lm": [
        Case(
            objective=CausalLM(smoothing=smoothing),
            draws=False,
            batch=batch,
            nothing=[
                {"input_ids": np.zeros((2, 1), np.int64)},
                {"input_ids": np.zeros((2, 0), np.int64)},
                {
                    "input_ids": np.zeros((2, 5), np.int64),
                    "attention_mask": np.zeros((2, 5), np.int64),
                },
                {
                    "input_ids": np.zeros((2, 5), np.int64),
                    "attention_mask": np.array([[1, 0, 0, 0, 0], [0, 0, 0, 0, 1]]),
                },
            ],
            uniform=_uniform_gpt2,
            model=_gpt2,
        )
        for smoothing in (0.0, 0.1)
        for batch in (_padded, _without_mask)
    ]
}
