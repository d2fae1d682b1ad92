"""Sequence to sequence by recurrent networks, without attention and with it.

Sutskever, Vinyals and Le, "Sequence to Sequence Learning with Neural Networks", 2014, arXiv:1409.3215;
Bahdanau, Cho and Bengio, "Neural Machine Translation by Jointly Learning to Align and Translate", 2014,
arXiv:1409.0473;
Luong, Pham and Manning, "Effective Approaches to Attention-based Neural Machine Translation", 2015, arXiv:1508.04025.

The idea in five lines: one network reads the source, another writes the target from what the first has understood.
Sutskever et al. hand over the last state only, a vector of fixed size, and find that reading the source backwards helps
a lot. Bahdanau et al. let the decoder look back: before each step it compares its state with every state of the encoder
and takes their weighted mean along, so that long sources need not fit into one vector. Luong et al. look after the
step, compare by simpler scores, and mix what was found into the output (and, with input feeding, into the next input).

    attention    query              scores                      output of the decoder
    None         -                  -                           h_t                                     (Sutskever)
    "additive"   h_t-1, before      v' tanh(W h + U e_s)        maxout of (h_t-1, y_t-1, context)       (Bahdanau)
    "dot"        h_t, behind        h' e_s                      tanh(W (context, h_t))                  (Luong)
    "general"    h_t, behind        h' W e_s                    as dot
    "concat"     h_t, behind        v' tanh(W h + U e_s)        as dot

Differences: any cell may be used with any attention; an LSTM of a bidirectional encoder hands on its c as it is; the
local attention of Luong et al. is left out. Source and target may share one vocabulary.

Symbols: B batch, S source, T target, V vocab_size, E embedding_size, H hidden_size, A width of an annotation.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from ..autograd import Tensor, no_grad, ops
from ..backend import namespace, to_numpy
from ..errors import ConfigError, ShapeError
from ..nn import CELLS, Embedding, Head, Inspection, Linear, Module, Recurrent, init
from ..nn.checks import checked_ids, checked_mask
from ..nn.recurrent import State
from ..nn.scores import Additive, Dot, General
from ..nn.settings import check_fields
from ..types import Array, Generator

ATTENTIONS = (None, "additive", "dot", "general", "concat")


@dataclass(frozen=True, kw_only=True)
class Seq2SeqConfig:
    """What a recurrent encoder and decoder are made of.

    Attributes:
        cell: "lstm", "gru" or "rnn".
        vocab_size: tokens of the target, V.
        source_vocab_size: tokens of the source; vocab_size when None.
        embedding_size: width of both embeddings, E; hidden_size when None.
        hidden_size: width of a layer's state, H.
        layers: of the encoder, and of the decoder.
        bidirectional: the encoder reads in both directions, and an annotation is 2 H wide.
        reversed: the encoder reads the source from its end.
        attention: None, "additive", "dot", "general" or "concat".
        input_feeding: the output of a step is part of the next input; with the attentions of Luong et al.
        dropout: of embeddings and of what each layer hands up.
        decoder_start: the token that every target begins behind.
        init_std: standard deviation of new embeddings and of the head.
        positions: the longest text, which has no limit here.
    """

    positions: ClassVar[None] = None

    cell: str = "lstm"
    vocab_size: int = 50_000
    source_vocab_size: int | None = None
    embedding_size: int | None = None
    hidden_size: int = 1_000
    layers: int = 4
    bidirectional: bool = False
    reversed: bool = False
    attention: str | None = None
    input_feeding: bool = False
    dropout: float = 0.0
    decoder_start: int = 0
    init_std: float = 0.05

    def __post_init__(self) -> None:
        if self.embedding_size is None and type(self.hidden_size) is int:
            object.__setattr__(self, "embedding_size", self.hidden_size)
        if self.source_vocab_size is None and type(self.vocab_size) is int:
            object.__setattr__(self, "source_vocab_size", self.vocab_size)
        check_fields(self, "Seq2Seq", cell=CELLS, attention=ATTENTIONS)
        if self.decoder_start >= self.vocab_size:
            raise ConfigError(
                f"decoder_start is {self.decoder_start!r}, but it must be a token below vocab_size={self.vocab_size}."
            )
        if self.attention == "dot" and self.bidirectional:
            raise ConfigError(
                "attention='dot' compares states of one width, but with bidirectional=True those of the encoder are "
                "twice as wide. Use 'general', or bidirectional=False."
            )
        if self.attention is None and self.bidirectional:
            raise ConfigError(
                "bidirectional=True with attention=None: only the last state is handed over, so what is read forwards "
                "would not be used. Use reversed=True, or an attention."
            )
        if self.input_feeding and self.attention in (None, "additive"):
            raise ConfigError(
                f"input_feeding=True with attention={self.attention!r}: it feeds back what 'dot', 'general' and "
                "'concat' put out. Use one of these, or input_feeding=False."
            )


SIZES = {
    # The single LSTM of section 3.4, which reads the source reversed.
    "sutskever": Seq2SeqConfig(vocab_size=80_000, source_vocab_size=160_000, reversed=True),  # 384,112,000
    # RNNsearch, appendix A.
    "bahdanau": Seq2SeqConfig(
        cell="gru",
        vocab_size=30_000,
        embedding_size=620,
        layers=1,
        bidirectional=True,
        attention="additive",
    ),  # 99,066,000
    # Section 4.1, with global attention.
    "luong": Seq2SeqConfig(
        reversed=True, attention="general", input_feeding=True, dropout=0.2
    ),  # 221,082,000
}  # fmt: skip
"""Sutskever et al. print 384M parameters; the other papers print none."""


class Memory(NamedTuple):
    """What the encoder hands to the decoder.

    Attributes:
        annotations: (B, S, A), its last layer at every place of the source.
        keys: (B, S, H), what the decoder compares itself with; None without attention.
        real: (B, S) booleans, false for padding.
        states: that the decoder begins with.
    """

    annotations: Tensor
    keys: Tensor | None
    real: Array
    states: list[State]


class Progress(NamedTuple):
    """Where the decoder stands: the states of its cells, and its last output, which input feeding takes up."""

    states: list[State]
    fed: Tensor | None


class Seq2Seq(Module):
    """The model; calling it gives the decoder's outputs, and `head` turns them into logits."""

    def __init__(self, config: Seq2SeqConfig, *, rng: Generator | None) -> None:
        c = config
        E, H = c.embedding_size or c.hidden_size, c.hidden_size
        A = 2 * H if c.bidirectional else H
        self.config = c
        self.source_embedding = Embedding(
            c.source_vocab_size or c.vocab_size, E, std=c.init_std, rng=rng
        )
        self.encoder = Recurrent(
            c.cell, E, H, layers=c.layers, dropout=c.dropout, rng=rng,
            direction="both" if c.bidirectional else "forward",
        )  # fmt: skip
        std = 1 / math.sqrt(H)
        self.bridges = [Linear(H, H, std=std, rng=rng) for _ in range(c.layers * c.bidirectional)]
        self.target_embedding = Embedding(c.vocab_size, E, std=c.init_std, rng=rng)
        also_reads = A if c.attention == "additive" else H if c.input_feeding else 0
        self.decoder = Recurrent(
            c.cell, E + also_reads, H, layers=c.layers, dropout=c.dropout, rng=rng
        )
        self.score: Dot | Additive | None = None
        if c.attention in ("additive", "concat"):
            self.score = Additive(H, A, rng=rng)
        elif c.attention is not None:
            self.score = Dot() if c.attention == "dot" else General(H, A, rng=rng)
        self.output = None
        if c.attention == "additive":
            self.output = Linear(H + E + A, 2 * H, std=1 / math.sqrt(H + E + A), rng=rng)
        elif c.attention is not None:
            self.output = Linear(A + H, H, bias=False, std=1 / math.sqrt(A + H), rng=rng)
        self.head = Head(
            init.normal(rng, (c.vocab_size, H), c.init_std), init.zeros(rng, (c.vocab_size,))
        )

    def __call__(
        self,
        input_ids: Array,
        *,
        attention_mask: Array | None = None,
        decoder_input_ids: Array | None = None,
        decoder_attention_mask: Array | None = None,
        inspection: Inspection | None = None,
        rng: Generator | None = None,
    ) -> Tensor:
        """Outputs of the decoder (B, T, H).

        Args:
            input_ids: sources, (B, S) integers in [0, source_vocab_size).
            attention_mask: (B, S) of 1 for real tokens and 0 for padding on either side, which is never looked at.
            decoder_input_ids: (B, T) integers in [0, V): the start token, then the target without its last.
            decoder_attention_mask: (B, T) of 1 and 0; padding changes no state.
            inspection: collects hidden states of both sides (embeddings, layers, and last the output), and as
                cross_attentions the alignment (B, 1, T, S).
            rng: source of dropout; without it nothing is dropped.

        Raises:
            ShapeError: ids out of range, empty or missing, or a mask of another shape.
            DtypeError: ids that are not integers.
        """
        if decoder_input_ids is None:
            raise ShapeError(
                "decoder_input_ids is missing: the decoder needs the start token and the target so far. Objective "
                "'seq2seq' makes them; to write a target use generate."
            )
        memory = self.encode(
            input_ids, attention_mask=attention_mask, inspection=inspection, rng=rng
        )
        begin = self.begin(memory)
        return self.decode(
            memory, begin, decoder_input_ids, decoder_attention_mask, inspection=inspection, rng=rng
        )[0]

    def encode(
        self,
        input_ids: Array,
        *,
        attention_mask: Array | None = None,
        inspection: Inspection | None = None,
        rng: Generator | None = None,
    ) -> Memory:
        """Read sources; arguments are those of calling it. Annotations stand in the order of the source."""
        c = self.config
        xp = namespace(self.head.matrix().array)
        most = c.source_vocab_size or c.vocab_size
        ids = xp.asarray(checked_ids(input_ids, most, "input_ids", "vocab_size"))
        mask = xp.ones(ids.shape, bool) if attention_mask is None else attention_mask
        real = xp.asarray(checked_mask(mask, ids.shape))
        x = ops.dropout(self.source_embedding(ids), rate=c.dropout, rng=rng)
        seen = [x]
        turned = (ops.flip(x, axis=1), real[:, ::-1]) if c.reversed else (x, real)
        y, states = self.encoder(turned[0], real=turned[1], seen=seen, rng=rng)
        if c.reversed:
            y = ops.flip(y, axis=1)
        if inspection is not None:
            inspection.encoder_hidden_states += [
                seen[0],
                *(ops.flip(s, axis=1) if c.reversed else s for s in seen[1:]),
            ]
        if self.bridges:  # of the cells that read backwards, whose last word is the first
            states = [
                (ops.tanh(bridge(h)), *rest)
                for bridge, (h, *rest) in zip(self.bridges, states[1::2], strict=True)
            ]
        return Memory(y, None if self.score is None else self.score.keys(y), real, states)

    def begin(self, memory: Memory) -> Progress:
        """Where the decoder stands before its first step."""
        fed = Tensor.wrap(memory.states[-1][0].array * 0) if self.config.input_feeding else None
        return Progress(memory.states, fed)

    def decode(
        self,
        memory: Memory,
        progress: Progress,
        decoder_input_ids: Array,
        decoder_attention_mask: Array | None = None,
        *,
        inspection: Inspection | None = None,
        rng: Generator | None = None,
    ) -> tuple[Tensor, Progress]:
        """Outputs (B, T, H) for the next tokens of the target, and where the decoder then stands."""
        c = self.config
        xp = namespace(memory.real)
        ids = checked_ids(decoder_input_ids, c.vocab_size, "decoder_input_ids", "vocab_size")
        if len(ids) != len(memory.real):
            raise ShapeError(
                f"decoder_input_ids has {len(ids)} rows, but {len(memory.real)} sources were read: each needs a target."
            )
        real = None
        if decoder_attention_mask is not None:
            real = xp.asarray(checked_mask(decoder_attention_mask, ids.shape))
        x = ops.dropout(self.target_embedding(xp.asarray(ids)), rate=c.dropout, rng=rng)
        weights: Tensor | None = None
        seen: list[Tensor] | None = None if inspection is None else [x]
        if c.attention == "additive" or c.input_feeding:
            way = self._look_first if c.attention == "additive" else self._feed
            y, weights, steps, progress = way(memory, progress, x, real, rng)
            if seen is not None:
                layers = zip(*[[state[0] for state in states] for states in steps], strict=True)
                seen += [ops.stack(said, axis=1) for said in layers]
        else:
            y, states = self.decoder(x, progress.states, real=real, seen=seen, rng=rng)
            progress = Progress(states, None)
            if c.attention is not None:
                y, weights = self._combine(memory, y)
        y = ops.dropout(y, rate=c.dropout, rng=rng)
        if inspection is not None and seen is not None:
            inspection.hidden_states += [*seen[:-1], y]
            if weights is not None:
                inspection.cross_attentions.append(weights[:, None])
        return y, progress

    def _look(self, memory: Memory, query: Tensor) -> tuple[Tensor, Tensor]:
        """For queries (B, T, H) the weighted means of annotations (B, T, A), and the weights (B, T, S)."""
        assert self.score is not None
        assert memory.keys is not None
        scores = self.score(query, memory.keys)
        hidden = ops.masked_fill(scores, ~memory.real[:, None], value=-math.inf)
        weights = ops.softmax(hidden)
        return ops.matmul(weights, memory.annotations), weights

    def _combine(self, memory: Memory, y: Tensor) -> tuple[Tensor, Tensor]:
        """tanh(W (context, h)) and the weights (Luong et al., eq. 5)."""
        assert self.output is not None
        context, weights = self._look(memory, y)
        return ops.tanh(self.output(ops.concatenate([context, y], axis=-1))), weights

    def _feed(
        self, memory: Memory, progress: Progress, x: Tensor, real: Any, rng: Generator | None
    ) -> tuple[Tensor, Tensor, list[list[State]], Progress]:
        """Step by step, each output part of the next input (Luong et al., section 3.3)."""
        states, fed = progress
        assert fed is not None
        outputs, looks, steps = [], [], []
        for t, x_BE in enumerate(_steps(x)):
            here = None if real is None else real[:, t]
            states = self.decoder.step(
                ops.concatenate([x_BE, fed], axis=-1), states, real=here, rng=rng
            )
            y, weights = self._combine(memory, states[-1][0][:, None])
            new = y[:, 0]
            fed = new if here is None else ops.where(here[:, None], new, fed)
            outputs.append(fed)
            looks.append(weights[:, 0])
            steps.append(states)
        y, weights = ops.stack(outputs, axis=1), ops.stack(looks, axis=1)
        return y, weights, steps, Progress(states, fed)

    def _look_first(
        self, memory: Memory, progress: Progress, x: Tensor, real: Any, rng: Generator | None
    ) -> tuple[Tensor, Tensor, list[list[State]], Progress]:
        """Step by step, each looking with the state before it (Bahdanau et al., appendix A.2.2)."""
        states = progress.states
        queries, contexts, looks, steps = [], [], [], []
        for t, x_BE in enumerate(_steps(x)):
            queries.append(states[-1][0])
            context, weights = self._look(memory, queries[-1][:, None])
            contexts.append(context[:, 0])
            looks.append(weights[:, 0])
            both = ops.concatenate([x_BE, contexts[-1]], axis=-1)
            here = None if real is None else real[:, t]
            states = self.decoder.step(both, states, real=here, rng=rng)
            steps.append(states)
        assert self.output is not None
        told = [ops.stack(queries, axis=1), x, ops.stack(contexts, axis=1)]
        pairs = self.output(ops.concatenate(told, axis=-1))
        y = ops.max(ops.reshape(pairs, shape=(*pairs.shape[:2], -1, 2)), axis=-1)
        return y, ops.stack(looks, axis=1), steps, Progress(states, None)

    def conditioned(self, input_ids: Array, attention_mask: Array | None = None) -> "Conditioned":
        """The language model that the decoder is, given sources (B, S)."""
        with no_grad():
            return Conditioned(self, self.encode(input_ids, attention_mask=attention_mask))


class DecoderCache:
    """Where a decoder stands after the tokens written so far.

    Attributes:
        length: tokens read.
        progress: of the decoder.
    """

    def __init__(self, progress: Progress) -> None:
        self.length = 0
        self.progress = progress

    def reorder(self, rows: Array) -> None:
        """Let batch row i be what row rows[i] was; there may be more rows than before, or fewer."""
        states, fed = self.progress
        self.progress = Progress(
            [tuple(_rows(part, rows) for part in state) for state in states],
            None if fed is None else _rows(fed, rows),
        )


class Conditioned:
    """A decoder and the sources it looks at, as a language model; see `generate`."""

    def __init__(self, model: Seq2Seq, memory: Memory) -> None:
        self.model = model
        self.memory = memory
        self.config = model.config

    def new_cache(self, batch: int, capacity: int) -> DecoderCache:
        """The state before the first token; the capacity has no limit."""
        return DecoderCache(self.model.begin(self.memory))

    def next_logits(
        self,
        input_ids: Array,
        *,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        cache: DecoderCache | None = None,
    ) -> Array:
        """Logits (B, V) of the token after the last one given, as a NumPy array; nothing is recorded."""
        with no_grad():
            begin = self.model.begin(self.memory) if cache is None else cache.progress
            y, after = self.model.decode(self.memory, begin, input_ids)
            if cache is not None:
                cache.progress = after
                cache.length += y.shape[1]
            return to_numpy(self.model.head(y[:, -1]).array)

    def chosen(self, rows: Array) -> "Conditioned":
        """The same looking at source rows[i] in row i."""
        annotations, keys, real, states = self.memory
        memory = Memory(
            _rows(annotations, rows),
            None if keys is None else _rows(keys, rows),
            real[rows],
            [tuple(_rows(part, rows) for part in state) for state in states],
        )
        return Conditioned(self.model, memory)


def _rows(x: Tensor, rows: Array) -> Tensor:
    return Tensor.wrap(x.array[rows])


def _steps(x: Tensor) -> list[Tensor]:
    """The inputs (B, E) of each step."""
    parts: Any = ops.split(x, parts=x.shape[1], axis=1)
    return [ops.reshape(part, shape=(x.shape[0], x.shape[2])) for part in parts]
