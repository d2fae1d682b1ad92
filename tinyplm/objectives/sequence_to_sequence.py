"""Sequence to sequence: predict a target, token by token, from a source and from the target so far.

Sutskever, Vinyals and Le, "Sequence to Sequence Learning with Neural Networks", 2014, arXiv:1409.3215, sections 2 and
3.2; Cho et al., 2014, arXiv:1406.1078, eq. 4. Label smoothing: Szegedy et al., 2015, arXiv:1512.00567, section 7.

Procedure: an end token follows every source and every target. The decoder is given the true target shifted by one
(teacher forcing): a start token, then all but the last; at each place it predicts the token that stands there. The
start token is the end token, as in figure 1 of Sutskever et al., unless the model has another.

    loss = - 1/N sum over the N target tokens, ends included, of log P(token | source, tokens before it)
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from ..autograd.ops.loss import IGNORED
from ..backend import namespace
from ..errors import ConfigError
from ..text.pairs import PairBatches
from ..types import Array, Batch, Generator
from .objective import Batches, Objective


@dataclass(frozen=True, kw_only=True)
class SequenceToSequence(Objective):
    """Predict a target from its source.

    Attributes:
        end_id: follows every source and every target.
        padding_id: fills up shorter rows.
        smoothing: share of each label spread over the vocabulary; 0 in the papers named here.
    """

    reads: ClassVar[str] = "pairs"

    end_id: int
    padding_id: int
    smoothing: float = 0.0

    @classmethod
    def of(cls, tokenizer: Any, **settings: Any) -> Self:
        """With the tokenizer's own end and padding.

        Raises:
            ConfigError: it lacks one of them.
        """
        found = {"end": tokenizer.end_of_text, "padding": tokenizer.padding}
        if lacking := [name for name, id in found.items() if id is None]:
            raise ConfigError(
                "Objective 'seq2seq' needs an end and a padding token; this tokenizer has no "
                f"{' and no '.join(lacking)} token. Train one with both, such as tinyplm pretrain seq2seq does by "
                "itself, or add <pad> and </s> to its special tokens."
            )
        return cls(end_id=found["end"], padding_id=found["padding"], **settings)

    def batches(self, text: Any, *, length: int, batch: int, seed: int) -> Batches:
        """Pairs of similar length together; those longer than `length` are left out."""
        return PairBatches(text, length=length, batch=batch, seed=seed, padding=self.padding_id)

    def prepare(self, batch: Batch, *, rng: Generator) -> Batch:
        """Ends behind sources and targets; inputs of the decoder and labels. Nothing is drawn.

        Shapes:
            given: input_ids and attention_mask (B, S), target_ids and target_mask (B, T), padded on the right.
            made: input_ids and attention_mask (B, S + 1); decoder_input_ids, decoder_attention_mask and labels
            (B, T + 1).
        """
        source, source_mask = self._ended(batch["input_ids"], batch["attention_mask"])
        target, target_mask = self._ended(batch["target_ids"], batch["target_mask"])
        start = np.full((len(target), 1), self.end_id, np.int64)
        kept = {k: v for k, v in batch.items() if k not in ("target_ids", "target_mask")}
        return kept | {
            "input_ids": source,
            "attention_mask": source_mask,
            "decoder_input_ids": np.concatenate([start, target[:, :-1]], axis=1),
            "decoder_attention_mask": target_mask,
            "labels": np.where(target_mask == 1, target, IGNORED),
        }

    def read(self, model: Any, batch: Batch, *, rng: Generator | None = None) -> Any:
        """The decoder's hidden states; it starts from the model's own start token, if that is another."""
        start = getattr(getattr(model, "config", None), "decoder_start", None)
        given = batch["decoder_input_ids"]
        unknown = namespace(given) is not np  # what a card holds is not looked at
        if start is not None and (unknown or (given[:, 0] != start).any()):
            given = given.copy()
            given[:, 0] = start
        return super().read(model, batch | {"decoder_input_ids": given}, rng=rng)

    def _ended(self, ids: Any, mask: Any) -> tuple[Array, Array]:
        """Rows with the end behind their last token."""
        ids, mask = np.asarray(ids, np.int64), np.asarray(mask, np.int64)
        B, T = ids.shape
        lengths = mask.sum(axis=1)
        ended = np.full((B, T + 1), self.padding_id, np.int64)
        ended[:, :T] = np.where(mask == 1, ids, self.padding_id)
        ended[np.arange(B), lengths] = self.end_id
        return ended, (np.arange(T + 1) <= lengths[:, None]).astype(np.int64)
