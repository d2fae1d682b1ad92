"""Span corruption: cut spans out of a text, and write what was cut.

Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", JMLR 21, 2020
(arXiv:1910.10683), sections 3.1.4 and 3.3.4; the numbers and the order of steps are those of the released pipeline.

Procedure, for each row of n tokens:
1. noise = round(15 % of n), from 1 to n - 1, and spans = max(1, round(noise / 3)); halves go to the even number.
2. The noise is divided into that many spans of at least one token, all divisions being equally likely; so are the other
   n - noise tokens. Clean and noisy spans take turns, so that a row begins clean and ends with noise.
3. Inputs: each noisy span becomes one sentinel, <extra_id_0>, <extra_id_1>, ...; then </s>.
   Targets: each clean span becomes the sentinel of the noise behind it; then </s>. The figure of the paper, unlike the
   pipeline, shows one more sentinel before </s>: `closing`.
4. The decoder reads its start token and the targets before the last.

    loss = - 1/N sum over the N targets of log P(target | the inputs, the targets before it)      (nats per target)

So 568 tokens of a text make 512 inputs and 114 targets. What differs from the pipeline: rows are neither packed nor
reversed, and rows shorter than the others are padded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from ..autograd.ops.loss import IGNORED
from ..errors import ConfigError
from ..text import Windows
from ..types import Array, Batch, Generator
from .objective import Batches, Objective


@dataclass(frozen=True, kw_only=True)
class SpanCorruption(Objective):
    """Write the spans that were cut out of a text.

    Attributes:
        sentinels: ids that stand for the first span, the second, and so on.
        end: id that ends inputs and targets.
        start: id that the decoder reads first.
        padding: id that fills up short rows.
        rate: share of the tokens that is cut.
        span: mean length of what is cut.
        closing: one more sentinel follows the last span of the targets.
        smoothing: share of the target spread over the vocabulary; 0 in the paper.
    """

    sentinels: Sequence[int]
    end: int
    start: int = 0
    padding: int = 0
    rate: float = 0.15
    span: float = 3.0
    closing: bool = False
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ConfigError(f"rate is {self.rate}, but it must be above 0 and below 1.")
        if not self.span >= 1:
            raise ConfigError(f"span is {self.span}, but spans have a mean of at least 1 token.")
        if not self.sentinels:
            raise ConfigError("sentinels is empty; expected the ids of <extra_id_0> and so on.")

    @classmethod
    def of(cls, tokenizer: Any, **settings: Any) -> Self:
        """The objective for texts cut by this tokenizer.

        Raises:
            ConfigError: it has no sentinels, no padding or nothing that ends a text.
        """
        return cls(
            **(
                {"sentinels": sentinels_of(tokenizer)}
                | marks_of(tokenizer, "span-corruption")
                | settings
            )
        )

    def sizes(self, tokens: int) -> tuple[int, int]:
        """How many of so many tokens are noise, and in how many spans."""
        noise = min(max(round(tokens * self.rate), 1), tokens - 1)
        spans = max(1, round(noise / self.span))
        return noise, min(spans, noise, tokens - noise)

    def widths(self, tokens: int) -> tuple[int, int]:
        """How many inputs and targets so many tokens make."""
        noise, spans = self.sizes(tokens)
        return tokens - noise + spans + 1, noise + spans + self.closing + 1

    def raw_length(self, inputs: int) -> int:
        """How many tokens of a text make so many inputs at most.

        Raises:
            ConfigError: not even two tokens do.
        """
        tokens = max(2, inputs)
        while tokens > 2 and self.widths(tokens)[0] > inputs:
            tokens -= 1
        while self.widths(tokens + 1)[0] <= inputs:
            tokens += 1
        if self.widths(tokens)[0] > inputs:
            raise ConfigError(
                f"{inputs} inputs are too few for span corruption: 2 tokens of a text make {self.widths(2)[0]}. Use "
                "more positions."
            )
        return tokens

    def batches(self, text: Any, *, length: int, batch: int, seed: int) -> Batches:
        """Windows of as many tokens as make `length` inputs."""
        raw = self.raw_length(length)
        self._check_sentinels(raw)
        return Windows(text, length=raw, batch=batch, seed=seed, mode="plain")

    def prepare(self, batch: Batch, *, rng: Generator) -> Batch:
        """Cut: `input_ids` with sentinels, `labels` with what was cut, `decoder_input_ids` the labels before each."""
        ids_BT = np.asarray(batch["input_ids"])
        real_BT = np.asarray(batch.get("attention_mask", np.ones_like(ids_BT))) == 1
        counts = real_BT.sum(axis=1)
        most = int(counts.max(initial=0))
        S, T = self.widths(most) if most > 1 else (most + 1, 1)
        inputs_BS = np.full((len(ids_BT), S), self.padding, np.int64)
        labels_BT = np.full((len(ids_BT), T), IGNORED, np.int64)
        mask_BS = np.zeros_like(inputs_BS)
        for count in np.unique(counts):  # rows of one length make inputs of one length
            rows = np.flatnonzero(counts == count)
            tokens = ids_BT[rows][real_BT[rows]].reshape(len(rows), count)
            if count > 1:
                tokens, targets = self._cut(tokens, rng)
                labels_BT[rows, : targets.shape[1]] = targets
            else:  # nothing can be cut
                tokens = self._ended(tokens)
            inputs_BS[rows, : tokens.shape[1]] = tokens
            mask_BS[rows, : tokens.shape[1]] = 1
        made = {key: value for key, value in batch.items() if key != "attention_mask"}
        made |= {"input_ids": inputs_BS, "labels": labels_BT}
        made["decoder_input_ids"] = shifted(labels_BT, self.start, self.padding)
        if "attention_mask" in batch:
            made["attention_mask"] = mask_BS
        return made

    def nothing(self, term: str, batch: Batch) -> str:
        """The message for a batch in which no row has two tokens."""
        return (
            "No row of this batch has two tokens, so there is nothing to predict: one must stay and one must be cut. "
            "Is everything padding?"
        )

    def _cut(self, ids_RT: Array, rng: Generator) -> tuple[Array, Array]:
        """Inputs and targets of rows of one length."""
        R, T = ids_RT.shape
        noise, spans = self.sizes(T)
        self._check_sentinels(T)
        lengths = np.empty(
            (R, spans, 2), np.int64
        )  # of each clean span and the noisy one behind it
        lengths[:, :, 1] = _divided(noise, spans, R, rng)
        lengths[:, :, 0] = _divided(T - noise, spans, R, rng)
        places = np.tile(np.arange(2 * spans), R)
        place_RT = np.repeat(places, lengths.reshape(-1)).reshape(R, T)
        first_RT = np.diff(place_RT, axis=1, prepend=-1) != 0
        noisy_RT = place_RT % 2 == 1
        sentinels = np.asarray(self.sentinels, np.int64)
        either_RT = np.where(first_RT, sentinels[place_RT // 2], ids_RT)
        inputs = np.where(noisy_RT, either_RT, ids_RT)[~noisy_RT | first_RT]
        targets = np.where(noisy_RT, ids_RT, either_RT)[noisy_RT | first_RT]
        targets = targets.reshape(R, -1)
        if self.closing:
            targets = np.concatenate([targets, np.full((R, 1), sentinels[spans])], axis=1)
        return self._ended(inputs.reshape(R, -1)), self._ended(targets)

    def _ended(self, ids_RT: Array) -> Array:
        return np.concatenate([ids_RT, np.full((len(ids_RT), 1), self.end, np.int64)], axis=1)

    def _check_sentinels(self, tokens: int) -> None:
        needed = self.sizes(tokens)[1] + self.closing
        if needed > len(self.sentinels):
            raise ConfigError(
                f"{tokens} tokens have {needed} spans to cut, but there are {len(self.sentinels)} sentinels. Use "
                f"shorter inputs, a greater span than {self.span:g}, or a tokenizer with more of them."
            )


def sentinels_of(tokenizer: Any) -> tuple[int, ...]:
    """Ids of <extra_id_0>, <extra_id_1> and so on, as many as a tokenizer has.

    Raises:
        ConfigError: it has none.
    """
    found: list[int] = []
    while (token := f"<extra_id_{len(found)}>") in tokenizer:
        found.append(tokenizer.id(token))
    if not found:
        raise ConfigError(
            f"Objective 'span-corruption' needs sentinels, <extra_id_0> to <extra_id_99> in T5; this {tokenizer.kind} "
            "tokenizer has none. Train one with appended_tokens that include them (for the models t5 and t5-v1.1 this "
            "is done by itself), or use an objective without sentinels, such as prefix-lm."
        )
    return tuple(found)


def marks_of(tokenizer: Any, objective: str) -> dict[str, int]:
    """The ids that end a text and fill up rows, the latter also to start a decoder with.

    Raises:
        ConfigError: the tokenizer lacks one.
    """
    end, padding = tokenizer.end_of_text, tokenizer.padding
    if end is None or padding is None:
        lacks = "nothing that ends a text" if end is None else "no padding"
        raise ConfigError(
            f"Objective {objective!r} needs a token that ends a text and one for padding, which also starts the "
            f"decoder; this {tokenizer.kind} tokenizer has {lacks}. Train one with special_tokens that include "
            "'<pad>' and '</s>'."
        )
    return {"end": end, "start": padding, "padding": padding}


def shifted(labels_BT: Array, start: int, padding: int) -> Array:
    """What a decoder reads to predict labels: the start, then each label before; padding where there is none."""
    first = np.full((len(labels_BT), 1), start, np.int64)
    before = np.where(labels_BT[:, :-1] == IGNORED, padding, labels_BT[:, :-1])
    return np.concatenate([first, before], axis=1)


def _divided(total: int, parts: int, rows: int, rng: Generator) -> Array:
    """For each row the lengths (rows, parts) of a random division of a total into parts of at least 1."""
    begins = np.zeros((rows, total - 1), bool)
    begins[:, : parts - 1] = True
    places = np.nonzero(rng.permuted(begins, axis=1))[1].reshape(rows, parts - 1) + 1
    ends = np.full((rows, 1), total)
    return np.diff(np.concatenate([places, ends], axis=1), axis=1, prepend=0)
