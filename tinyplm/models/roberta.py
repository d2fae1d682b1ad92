"""RoBERTa: A Robustly Optimized BERT Pretraining Approach.

Liu, Ott, Goyal, Du, Joshi, Chen, Levy, Lewis, Zettlemoyer and Stoyanov, 2019 (arXiv:1907.11692).

The paper in five lines: BERT was trained too little. The same encoder, trained longer on ten times the text, in batches
of thousands, on full windows without the prediction of next sentences, with a new mask each time a window is read,
and with GPT-2's byte-level tokens, does as well as everything that had been published since.

What differs from BERT here: positions are counted over tokens that are not padding, and begin behind the padding's own
row; one segment; eps 1e-5; the transform before the vocabulary bends by the exact GELU whatever the blocks do; a
classifier has its own dense layer instead of a pooler that was pretrained (`pooler` holds either).
The paper draws new weights from a plain normal distribution; rows of padding begin at 0.

Symbols: those of `bert`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from ..autograd import Tensor, ops
from ..backend import namespace
from ..errors import ConfigError
from ..types import Array, Generator
from .bert import Bert, BertConfig, Transform


@dataclass(frozen=True, kw_only=True)
class RobertaConfig(BertConfig):
    """What a RoBERTa is made of, as `BertConfig` says; positions are those that can be used, 512 as published.

    Attributes:
        padding: the id that fills up short inputs; the position table has padding + 1 rows before the first position.
    """

    vocab_size: int = 50_265
    segments: int = 1
    eps: float = 1e-5
    carries: tuple[str, ...] = ("masked-lm",)
    padding: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if "next-sentence" in self.carries:
            raise ConfigError(
                f"carries is {self.carries!r}, but a RoBERTa is not trained on next sentences; leave that out, or "
                "build a BERT."
            )
        if self.padding >= self.vocab_size:
            raise ConfigError(
                f"padding is {self.padding}, but there are vocab_size={self.vocab_size} tokens; it must be one of them."
            )


SIZES = {
    "base": RobertaConfig(),  # 124,697,433 parameters
    "large": RobertaConfig(hidden_size=1_024, layers=24, heads=16),  # 355,412,057
}


class Roberta(Bert):
    """The model: BERT with positions that count tokens."""

    paper: ClassVar[str] = "RoBERTa"

    def __init__(self, config: RobertaConfig, *, rng: Generator | None) -> None:
        super().__init__(config, rng=rng)
        if rng is not None:
            parameters = self.named_parameters()
            for table in ("token_embedding.weight", "position_embedding.weight"):
                rows = parameters[table].array.copy()
                rows[config.padding] = 0
                parameters[table].replace(rows)

    @staticmethod
    def _source(rng: Generator | None) -> Generator | None:
        return rng

    @staticmethod
    def _rows(config: Any) -> int:
        return int(config.positions + config.padding + 1)

    def _transform(self, rng: Generator | None) -> Transform:
        return Transform(self.config, activation="gelu", rng=rng)

    def _places(self, ids_BT: Array, position_ids: Array | None) -> Array:
        """Given positions count from 0; without them tokens are counted, and padding stays at its own row."""
        padding = self.config.padding
        if position_ids is not None:
            return position_ids + padding + 1
        real = ids_BT != padding
        return namespace(real).where(real, real.cumsum(axis=1), 0) + padding

    def features(
        self,
        hidden: Tensor,
        attention_mask: Array | None = None,
        *,
        rng: Generator | None = None,
    ) -> Tensor:
        """What the classifier reads; that of whole inputs drops in front of its dense layer too."""
        c = self.config
        if "sequence-classification" in c.carries:
            rate = c.dropout if c.classifier_dropout is None else c.classifier_dropout
            hidden = ops.dropout(hidden, rate=rate, rng=rng)
        return super().features(hidden, attention_mask, rng=rng)
