"""The smallest useful config of every model, and what its paper's sizes must count."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyplm.models.gpt2 import Gpt2, Gpt2Config


@dataclass(frozen=True)
class Case:
    """What the conformance suite needs to know of a model."""

    build: Callable[..., Any]
    config: Any
    counts: dict[str, int]
    causal: bool

    def model(self, *, dropout: float = 0.0, dtype: str = "float32", seed: int = 0) -> Any:
        """A model whose gains and biases are not those of a new one, so that each of them matters."""
        rates = dict.fromkeys(("dropout", "embedding_dropout", "attention_dropout"), dropout)
        model = self.build(
            type(self.config)(**(vars(self.config) | rates)), rng=np.random.default_rng(seed)
        )
        rng = np.random.default_rng(seed + 1)
        model.load(
            {
                name: (array + 0.2 * rng.standard_normal(array.shape)).astype(dtype)
                for name, array in model.arrays().items()
            }
        )
        return model

    def ids(self, batch: int, time: int, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).integers(self.config.vocab_size, size=(batch, time))


CASES: dict[str, Case] = {
    "gpt2": Case(
        build=Gpt2,
        config=Gpt2Config(
            vocab_size=31, hidden_size=12, layers=2, heads=3, ffn_size=20, positions=16
        ),
        counts={
            "small": 124_439_808,
            "medium": 354_823_168,
            "large": 774_030_080,
            "xl": 1_557_611_200,
        },
        causal=True,
    ),
}
