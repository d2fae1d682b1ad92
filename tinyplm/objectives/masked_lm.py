"""Masked language modelling: hide some tokens, and predict them from both sides.

Devlin, Chang, Lee and Toutanova, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
NAACL 2019 (arXiv:1810.04805), section 3.1 task 1 and appendix A.1; as a test of reading the idea is older (Taylor,
"Cloze Procedure", 1953). Fresh masks each time: Liu et al., "RoBERTa", 2019 (arXiv:1907.11692), section 4.1.

Procedure, for each row of a batch:
1. n = max(1, 15 % of its tokens, rounded to the nearest number, halves to the even one), at most `most` if that is
   given. Tokens that frame the row count too, as in the released code, but are never chosen.
2. n tokens are chosen at random, none twice. By whole words: words in a random order, each taken with all its pieces,
   or passed over where it would make more than n.
3. Of the chosen, 80 % become the mask token, 10 % a random token, 10 % stay; each draws for itself.
4. The labels are the tokens as they were, at the chosen places alone.

    loss = - 1/N sum over the N chosen of log P(token | the row as it is now)        (nats per chosen token)

What differs from the released code: it divides by N + 0.00001, and its random tokens may be special ones, five in
30,522; here they are not, since a token of padding would shift RoBERTa's positions.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import numpy as np

from ..autograd import ops
from ..autograd.ops.loss import IGNORED
from ..backend import namespace
from ..errors import ConfigError
from ..text import Windows
from ..text.sentences import framing
from ..types import Array, Batch, Generator
from .objective import Batches, Objective, Prediction


@dataclass(frozen=True, kw_only=True)
class MaskedLM(Objective):
    """Predict hidden tokens from those on both sides.

    Attributes:
        mask: id that hides a token.
        vocab_size: number of ids.
        special: ids that are never chosen, and never put in another's place.
        rate: share of a row's tokens that is chosen.
        keep: share of the chosen that stays.
        swap: share of the chosen that becomes a random token.
        most: chosen tokens of a row at most; 20 of 128 and 77 of 512 in the paper's code.
        whole_words: choose words, not pieces of words.
        copies: masks that there are for one row of tokens, which then come back with it; 10 in the paper's code.
            None: fresh ones each time, as in RoBERTa.
        seed: of those masks.
        begins: (V,) booleans, true for tokens that begin a word; for whole words.
        frame: ids before and behind the tokens of a window.
        smoothing: share of the target spread over the vocabulary; 0 in the papers.
    """

    mask: int
    vocab_size: int
    special: frozenset[int] = frozenset()
    rate: float = 0.15
    keep: float = 0.10
    swap: float = 0.10
    most: int | None = None
    whole_words: bool = False
    copies: int | None = None
    seed: int = 0
    begins: Array | None = field(default=None, repr=False, compare=False)
    frame: tuple[Sequence[int], Sequence[int]] = ((), ())
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise ConfigError(f"rate is {self.rate}, but it must be above 0 and at most 1.")
        if self.keep < 0 or self.swap < 0 or self.keep + self.swap > 1:
            raise ConfigError(
                f"keep is {self.keep} and swap {self.swap}; expected shares that add up to at most 1."
            )
        for name, least in (("most", 1), ("copies", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} is {value}, expected at least {least}.")
        if self.whole_words and self.begins is None:
            raise ConfigError(
                "whole_words needs `begins`, which says what tokens begin a word; MaskedLM.of makes it."
            )

        if not self._others.size:
            raise ConfigError(
                f"All {self.vocab_size} tokens are special; there is nothing to predict. Give the vocab_size of the "
                "tokenizer."
            )

    @cached_property
    def _others(self) -> Array:
        """What a token may be exchanged for."""
        return np.setdiff1d(np.arange(self.vocab_size), list(self.special))

    @classmethod
    def of(cls, tokenizer: Any, **settings: Any) -> Self:
        """The objective for texts cut by this tokenizer.

        Raises:
            ConfigError: it has no mask token, or whole words are wanted and its tokens do not tell where one begins.
        """
        if tokenizer.mask is None:
            raise ConfigError(
                f"Objective 'mlm' needs a mask token; this {tokenizer.kind} tokenizer has none. Train one with "
                "special_tokens that include '[MASK]' or '<mask>' (a wordpiece tokenizer has it by default), or use "
                "an objective without masks, such as causal-lm or span-corruption."
            )
        found = {
            "mask": tokenizer.mask,
            "vocab_size": tokenizer.vocab_size,
            "special": tokenizer.special_ids,
            "frame": framing(tokenizer) or ((), ()),
        }
        if settings.get("whole_words"):
            found["begins"] = _begins_word(tokenizer)
        return cls(**(found | settings))

    def batches(self, text: Any, *, length: int, batch: int, seed: int) -> Batches:
        """Windows that share no token, each in its frame; with masks that come back, the same windows each epoch."""
        return Windows(
            text,
            length=length,
            batch=batch,
            seed=seed,
            mode="plain",
            frame=self.frame,
            shift=self.copies is None,
        )

    def prepare(self, batch: Batch, *, rng: Generator) -> Batch:
        """Hide what is chosen: `input_ids` as the model reads them, `labels` what they were.

        `label_places` (B, n) says where, so that on a card nobody has to wait to know it: first those of a row's
        labels, in their order, and as many more without a label as the row with the most labels has.
        """
        ids_BT = np.asarray(batch["input_ids"])
        real_BT = np.asarray(batch.get("attention_mask", np.ones_like(ids_BT))) == 1
        plain_BT = real_BT & ~np.isin(ids_BT, list(self.special))
        if self.copies is None:
            made_BT, chosen_BT = self._hidden(ids_BT, real_BT, plain_BT, rng)
        else:
            made_BT, chosen_BT = ids_BT.copy(), np.zeros_like(real_BT)
            for b, real in enumerate(real_BT):
                copy = int(rng.integers(self.copies)) if self.copies > 1 else 0
                row, plain = (
                    ids_BT[b : b + 1, real],
                    plain_BT[b : b + 1, real],
                )  # whatever the padding
                found = self._hidden(row, np.ones_like(plain), plain, self._own(row, copy))
                made_BT[b, real], chosen_BT[b, real] = found[0][0], found[1][0]
        most = max(1, int(chosen_BT.sum(axis=1).max(initial=0)))
        return batch | {
            "input_ids": made_BT,
            "labels": np.where(chosen_BT, ids_BT, IGNORED),
            "label_places": np.argsort(~chosen_BT, axis=1, kind="stable")[:, :most],
        }

    def predictions(self, model: Any, hidden: Any, batch: Batch) -> dict[str, Prediction]:
        """The tokens at the places that may have a label."""
        labels_BT, places_BN = batch["labels"], batch.get("label_places")
        if places_BN is None:
            return super().predictions(model, hidden, batch)
        B, T, D = hidden.shape
        xp = namespace(places_BN)
        rows_BN = xp.arange(B)[:, None] * T + places_BN
        labels = xp.take_along_axis(labels_BT, places_BN, axis=1).reshape(-1)
        chosen = ops.take_rows(ops.reshape(hidden, shape=(B * T, D)), rows_BN.reshape(-1))
        return {"tokens": Prediction(chosen, model.head, labels)}

    def nothing(self, term: str, batch: Batch) -> str:
        """The message for a batch in which nothing was chosen."""
        ids = np.asarray(batch["input_ids"])
        tokens = int(np.asarray(batch.get("attention_mask", np.ones_like(ids))).sum())
        return (
            f"No token of this batch was chosen, so the loss is undefined. With rate={self.rate:g} and {tokens} tokens "
            "this happens often where words are longer than that share, and always where all tokens are special or "
            "padding: use longer sequences or a higher rate."
        )

    def _own(self, ids: Array, copy: int) -> Generator:
        """The generator of a row's mask: from its tokens, the seed and the number of the copy."""
        digest = hashlib.sha256(np.asarray(ids, "<i8").tobytes()).digest()
        return np.random.default_rng([self.seed, copy, int.from_bytes(digest[:16], "little")])

    def _hidden(
        self, ids_BT: Array, real_BT: Array, plain_BT: Array, rng: Generator
    ) -> tuple[Array, Array]:
        """Rows with their chosen tokens hidden, and where those are."""
        # round() as Python has it: halves to the even number.
        count_B = np.maximum(1, np.rint(self.rate * real_BT.sum(axis=1)).astype(np.int64))
        if self.most is not None:
            count_B = np.minimum(self.most, count_B)
        if self.whole_words:
            chosen_BT = self._words(ids_BT, plain_BT, count_B, rng)
        else:
            keys_BT = np.where(plain_BT, rng.random(ids_BT.shape), np.inf)
            rank_BT = keys_BT.argsort(axis=1).argsort(axis=1)
            chosen_BT = plain_BT & (rank_BT < count_B[:, None])
        draw_BT = rng.random(ids_BT.shape)
        random_BT = self._others[rng.integers(self._others.size, size=ids_BT.shape)]
        made_BT = np.where(chosen_BT & (draw_BT >= self.keep), self.mask, ids_BT)
        made_BT = np.where(chosen_BT & (draw_BT >= 1 - self.swap), random_BT, made_BT)
        return made_BT, chosen_BT

    def _words(self, ids_BT: Array, plain_BT: Array, count_B: Array, rng: Generator) -> Array:
        """Where the chosen words are: whole ones, together no more than a row's count."""
        assert self.begins is not None  # checked at the door
        begins_BT = self.begins[ids_BT]
        begins_BT[:, 1:] |= ~plain_BT[:, :-1]  # behind a special token or padding
        chosen_BT = np.zeros_like(plain_BT)
        for plain, begins, count, chosen in zip(
            plain_BT, begins_BT, count_B, chosen_BT, strict=True
        ):
            places = np.flatnonzero(plain)
            words = np.split(places, np.flatnonzero(begins[places])) if places.size else []
            words = [word for word in words if word.size]
            left = int(count)
            for w in rng.permutation(len(words)):
                if words[w].size <= left:
                    chosen[words[w]] = True
                    left -= words[w].size
                if not left:
                    break
        return chosen_BT


def _begins_word(tokenizer: Any) -> Array:
    """For each token whether it begins a word: it is no continuation, or it has a space in front."""
    tokens = [tokenizer.token(id) for id in range(tokenizer.vocab_size)]
    if any(token.endswith("</w>") for token in tokens):
        raise ConfigError(
            "whole_words does not fit this tokenizer, whose tokens say where a word ends, not where it begins."
        )
    if tokenizer.kind == "wordpiece":
        return np.array([not token.startswith("##") for token in tokens])
    # A space, tab or line feed as byte-level tokens write it, as SentencePiece does, or as it is.
    spaces = ("\u0120", "\u010a", "\u010d", "\u0109", "\u2581", " ", "\n", "\r", "\t")
    return np.array([token.startswith(spaces) for token in tokens])
