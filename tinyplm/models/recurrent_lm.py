"""Recurrent language models: one state, carried from token to token.

Elman and simple networks: Elman, "Finding Structure in Time", Cognitive Science 14, 1990; Mikolov, Karafiat, Burget,
Cernocky and Khudanpur, "Recurrent neural network based language model", Interspeech 2010 (no arXiv number).
LSTM: Hochreiter and Schmidhuber, "Long Short-Term Memory", Neural Computation 9, 1997.
GRU: Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder", 2014, arXiv:1406.1078.
As a language model of several layers: Zaremba, Sutskever and Vinyals, "Recurrent Neural Network Regularization", 2014,
arXiv:1409.2329.

The idea in five lines: a model reads one token at a time and keeps what it needs in a vector of fixed size; from that
it predicts the next token. Nothing limits how far back it may look but what fits and survives in the vector. In the
simple network the state is overwritten at every step, and the gradient of what is long past fades; the LSTM adds to a
cell and decides by gates what to write, keep and show, and the GRU does so with one state and two gates. Zaremba et al.
stack layers and apply dropout to what goes up, never to what goes from step to step.

Differences: training streams and lengths are the objective's (truncated backpropagation through time, or plain
windows); one bias for each gate, where PyTorch keeps two; the reset of the GRU comes behind the product.

Symbols: B batch, T time, V vocabulary, E embedding_size, H hidden_size.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from ..autograd import Tensor, no_grad, ops, recording
from ..backend import namespace, to_numpy
from ..errors import GraphError
from ..nn import CELLS, Embedding, Head, Inspection, Linear, Module, Recurrent, init
from ..nn.checks import checked_ids, checked_mask
from ..nn.recurrent import State
from ..nn.settings import check_fields
from ..types import Array, Generator


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig:
    """What a recurrent language model is made of.

    Attributes:
        cell: "lstm", "gru" or "rnn".
        vocab_size: tokens, V.
        embedding_size: width of the embeddings, E; hidden_size when None.
        hidden_size: width of a layer's state, H.
        layers: cells on top of each other.
        dropout: of what each layer hands up, the last one included.
        embedding_dropout: of the embeddings.
        tied: the head's weight is the embedding's, behind a projection where E and H differ.
        init_std: standard deviation of new embeddings and of the head, larger than in other models, as a new cell makes
            little of small inputs; cells begin as nn.recurrent says.
        positions: the longest text, which has no limit here.
    """

    positions: ClassVar[None] = None

    cell: str = "lstm"
    vocab_size: int = 10_000
    embedding_size: int | None = None
    hidden_size: int = 650
    layers: int = 2
    dropout: float = 0.5
    embedding_dropout: float = 0.5
    tied: bool = False
    init_std: float = 0.2

    def __post_init__(self) -> None:
        if self.embedding_size is None and type(self.hidden_size) is int:
            object.__setattr__(self, "embedding_size", self.hidden_size)
        check_fields(self, "recurrent model", cell=CELLS)


SIZES = {  # Zaremba et al., section 4.1; the paper gives the settings, not the counts
    "small": RecurrentConfig(hidden_size=200, dropout=0.0, embedding_dropout=0.0),  # 4,651,600
    "medium": RecurrentConfig(),  # 19,775,200
    "large": RecurrentConfig(hidden_size=1_500, dropout=0.65, embedding_dropout=0.65),  # 66,022,000
}
"""The LSTMs of Zaremba et al. (2014)."""


class RecurrentCache:
    """What a model remembers of the tokens read so far.

    Attributes:
        length: tokens read.
        states: of every cell; None before the first token.
        capacity: how many tokens may be read; the state has the same size for any number.
    """

    def __init__(self, capacity: int) -> None:
        self.length = 0
        self.states: list[State] | None = None
        self.capacity = capacity

    def reorder(self, rows: Array) -> None:
        """Let batch row i be what row rows[i] was; there may be more rows than before, or fewer."""
        if self.states is not None:
            self.states = [
                tuple(Tensor.wrap(part.array[rows]) for part in state) for state in self.states
            ]


class RecurrentLM(Module):
    """The model; calling it gives hidden states, and `head` turns them into logits."""

    def __init__(self, config: RecurrentConfig, *, rng: Generator | None) -> None:
        c = config
        E, H = c.embedding_size or c.hidden_size, c.hidden_size
        self.config = c
        self.token_embedding = Embedding(c.vocab_size, E, std=c.init_std, rng=rng)
        self.stack = Recurrent(c.cell, E, H, layers=c.layers, dropout=c.dropout, rng=rng)
        self.head = Head(
            self.token_embedding.weight
            if c.tied
            else init.normal(rng, (c.vocab_size, H), c.init_std),
            init.zeros(rng, (c.vocab_size,)),
            before=Linear(H, E, std=1 / math.sqrt(H), rng=rng) if c.tied and E != H else None,
        )

    def __call__(
        self,
        input_ids: Array,
        *,
        attention_mask: Array | None = None,
        state: list[State] | None = None,
        cache: RecurrentCache | None = None,
        inspection: Inspection | None = None,
        rng: Generator | None = None,
    ) -> Tensor:
        """Hidden states of the last layer, (B, T, H).

        Args:
            input_ids: (B, T) integers in [0, V); with a cache, only the tokens that it has not read yet.
            attention_mask: (B, S) of 1 for real tokens and 0 for padding on either side, which changes no state; S
                counts the tokens that a cache has read.
            state: to begin with, as `read` gives it; zeros unless given.
            cache: remembers the state from call to call. Only under no_grad: nothing flows back into it.
            inspection: collects the embeddings and what each layer says.
            rng: source of dropout; without it nothing is dropped.

        Raises:
            ShapeError: ids out of range or empty, a mask or a state of another shape.
            DtypeError: ids that are not integers.
            GraphError: a cache while gradients are recorded.
        """
        if cache is None:
            return self.read(
                input_ids, state, attention_mask=attention_mask, inspection=inspection, rng=rng
            )[0]
        if recording():
            raise GraphError(
                "A cache keeps states without their history, so gradients would be wrong. Use it within "
                "tinyplm.no_grad(), or pass the state on with read(), which remembers where it came from."
            )
        ids = checked_ids(input_ids, self.config.vocab_size, "input_ids", "vocab_size")
        if attention_mask is not None:
            whole = (len(ids), cache.length + ids.shape[1])
            attention_mask = checked_mask(attention_mask, whole)[:, cache.length :]
        hidden, cache.states = self.read(
            ids, cache.states, attention_mask=attention_mask, inspection=inspection, rng=rng
        )
        cache.length += ids.shape[1]
        return hidden

    def read(
        self,
        input_ids: Array,
        state: list[State] | None = None,
        *,
        attention_mask: Array | None = None,
        inspection: Inspection | None = None,
        rng: Generator | None = None,
    ) -> tuple[Tensor, list[State]]:
        """Hidden states (B, T, H), and the state behind the last token, from which reading can go on.

        The state is a tuple for each layer, (h,) or (h, c) of (B, H). Arguments and errors are those of calling it.
        """
        c = self.config
        xp = namespace(self.head.matrix().array)
        ids_BT = xp.asarray(checked_ids(input_ids, c.vocab_size, "input_ids", "vocab_size"))
        real_BT = (
            None
            if attention_mask is None
            else xp.asarray(checked_mask(attention_mask, ids_BT.shape))
        )
        x = ops.dropout(self.token_embedding(ids_BT), rate=c.embedding_dropout, rng=rng)
        seen: list[Tensor] | None = None if inspection is None else [x]
        hidden, after = self.stack(x, state, real=real_BT, seen=seen, rng=rng)
        hidden = ops.dropout(hidden, rate=c.dropout, rng=rng)
        if inspection is not None and seen is not None:
            inspection.hidden_states += [*seen[:-1], hidden]
        return hidden, after

    def new_cache(self, batch: int, capacity: int) -> RecurrentCache:
        """A state of nothing read yet; batch and capacity are those that the first call brings."""
        return RecurrentCache(capacity)

    def next_logits(
        self,
        input_ids: Array,
        *,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        cache: RecurrentCache | None = None,
    ) -> Array:
        """Logits (B, V) of the token after the last one given, as a NumPy array; nothing is recorded.

        There are no positions here: position_ids are what other models need.
        """
        with no_grad():
            hidden = self(input_ids, attention_mask=attention_mask, cache=cache)
            return to_numpy(self.head(hidden[:, -1]).array)
