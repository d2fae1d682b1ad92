"""What is left of an encoder-decoder once texts are read: a language model that `generate` can write with."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..autograd import Tensor, no_grad
from ..backend import to_numpy
from ..types import Array
from .attention import EncoderDecoderCache


@dataclass(frozen=True)
class Conditioned:
    """A decoder that has texts to look at.

    Attributes:
        model: the encoder-decoder, with its config, head, decode and new_cache.
        memory: what its encoder made of the texts, (B, S, D).
        attention_mask: (B, S), 1 for a token of a text and 0 for padding; or None.
    """

    model: Any
    memory: Tensor
    attention_mask: Array | None

    @property
    def config(self) -> Any:
        """The model's."""
        return self.model.config

    def new_cache(self, batch: int, capacity: int) -> EncoderDecoderCache:
        """An empty cache for this many rows and positions."""
        cache: EncoderDecoderCache = self.model.new_cache(batch, capacity)
        return cache

    def next_logits(
        self,
        input_ids: Array,
        *,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        cache: EncoderDecoderCache | None = None,
    ) -> Array:
        """Logits (B, V) of the token after the last one given to the decoder, as a NumPy array.

        attention_mask is that of the decoder's tokens. position_ids are left out: a row begins with its start token.
        """
        with no_grad():
            hidden = self.model.decode(
                input_ids,
                self.memory,
                attention_mask=self.attention_mask,
                decoder_attention_mask=attention_mask,
                cache=cache,
            )
            return to_numpy(self.model.head(hidden[:, -1]).array)

    def chosen(self, rows: Array) -> "Conditioned":
        """The same with text rows[i] in row i."""
        mask = None if self.attention_mask is None else np.asarray(self.attention_mask)[rows]
        return replace(self, memory=Tensor.wrap(self.memory.array[rows]), attention_mask=mask)
