"""Text from a language model: greedy, sampling, top-k, nucleus, beam search and beam sampling.

Names, defaults and results are those of `generate` in Hugging Face transformers 5, token for token:
given the same logits, and for sampling the same draws. Where this differs, it is said below.

- temperature, top-k: Fan et al., 2018, "Hierarchical neural story generation", arXiv:1805.04833
- top-p (nucleus): Holtzman et al., 2020, "The curious case of neural text degeneration",
  arXiv:1904.09751
- repetition penalty: Keskar et al., 2019, "CTRL", section 4.1, arXiv:1909.05858
- no repeated n-grams: Paulus et al., 2018, "A deep reinforced model for abstractive
  summarization", arXiv:1705.04304
- a beam's score is its sum of log-probabilities over length ** length_penalty, or, with
  length_normalization="gnmt", over ((5 + length) / 6) ** length_penalty as in Wu et al., 2016,
  arXiv:1609.08144, eq. 14 (without their coverage), which the Transformer, T5 and GPT-3 report

A model is anything that follows `LanguageModel`, or an `EncoderDecoder`, which becomes one by
reading the texts; what is written then begins with its start token, which lengths count like a
prompt of one token. Its logits pass through small functions, in this
order:

    penalize_repetition, ban_repeated_ngrams, forbid_eos          always
    apply_temperature, keep_top_k, keep_top_p                     when sampling

In beam search they see log-probabilities and the result is not normalised again, so a repetition
penalty always multiplies there.

Differences from transformers: no randomness without `rng`; right-padded prompts, banning every
token, and a length that the model has no positions for are errors; beam search pads with
`pad_token_id` also when that is 0.

Shape letters: B rows, T tokens, V vocabulary, K beams, M candidates.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from .errors import ConfigError, DtypeError, NonFiniteError, ShapeError, TinyplmWarning
from .types import Array

# A beam score below every real one that arithmetic still leaves finite.
_NEVER = np.float32(-1e9)


class Cache(Protocol):
    """Keys and values of all layers for the tokens read so far; capacity is fixed when made."""

    length: int
    """Positions filled."""

    def reorder(self, rows: Array) -> None:
        """Row i becomes what row rows[i] was; there may be more or fewer rows than before."""


class LanguageModel(Protocol):
    """What generation needs of a model."""

    config: Any
    """Has vocab_size, and positions: the longest input, or None without a limit."""

    def new_cache(self, batch: int, capacity: int) -> Any:
        """An empty Cache for so many rows and positions."""

    def next_logits(
        self,
        input_ids: Array,
        *,
        attention_mask: Array | None,
        position_ids: Array,
        cache: Any,
    ) -> Array:
        """Logits (B, V) after the last token; with a cache, fills it.

        Shapes:
            input_ids, position_ids: (B, T), the tokens not yet in the cache;
            attention_mask: (B, cached + T) of 0 and 1, or None when no token is padding.
        """


class ConditionedModel(LanguageModel, Protocol):
    """A language model that looks at a text for each row."""

    def chosen(self, rows: Array) -> "ConditionedModel":
        """The same looking at text rows[i] in row i; there may be more or fewer rows than before.

        Called when rows change their texts, with or without a cache, which is reordered apart.
        """


class EncoderDecoder(Protocol):
    """What generation needs of a model that reads one text and writes another."""

    config: Any
    """As a language model's, and has decoder_start, the token that what is written begins with."""

    def conditioned(self, input_ids: Array, attention_mask: Array | None) -> ConditionedModel:
        """The language model that the decoder is, given texts (B, S) padded on either side."""


class ExponentialSource(Protocol):
    """What sampling needs of a generator; np.random.Generator has it."""

    def standard_exponential(self, size: Any) -> Any:
        """Independent draws from the exponential distribution of mean one."""


class Beams(NamedTuple):
    """The best sequences of a beam search, best first within each prompt."""

    ids: Array
    """(B * num_return_sequences, T), prompt included, padded on the right."""

    scores: Array
    """(B * num_return_sequences,) float32: log-probability, normalised by length as asked."""


# --- scores in, scores out ------------------------------------------------------------------------


def penalize_repetition(
    scores: Array, ids: Array, penalty: float, *, ignored: Array | None = None
) -> Array:
    """Divide the positive and multiply the negative scores of ids already in their row.

    Once per distinct id, however often it occurs. Zero stays zero; below one the penalty is a
    reward.

    Shapes:
        scores: (B, V) float32; ids: (B, T); ignored: (B,) leading tokens not to look at (padding).
    """
    if ignored is not None:
        # The last token is never padding, and penalising an id twice is penalising it once.
        ids = np.where(np.arange(ids.shape[1]) < ignored[:, None], ids[:, -1:], ids)
    seen = np.take_along_axis(scores, ids, axis=1)
    with np.errstate(over="ignore"):  # the caller looks for infinities
        penalized = np.where(seen < 0, seen * penalty, seen / penalty)
    result = scores.copy()
    np.put_along_axis(result, ids, penalized, axis=1)
    return result


def ban_repeated_ngrams(scores: Array, ids: Array, size: int) -> Array:
    """Minus infinity for each token that would complete an n-gram its row already contains.

    Size 1 bans every token seen. Rows shorter than size ban nothing. Padding counts as tokens, as
    in transformers.

    Shapes:
        scores: (B, V) float32; ids: (B, T).
    """
    length = ids.shape[1]
    if length < size:
        return scores
    windows = np.lib.stride_tricks.sliding_window_view(ids, size, axis=1)
    ending = ids[:, length + 1 - size :]
    rows, starts = np.nonzero((windows[:, :, :-1] == ending[:, None, :]).all(axis=2))
    result = scores.copy()
    result[rows, windows[rows, starts, -1]] = -np.inf
    return result


def forbid_eos(scores: Array, eos_ids: Array) -> Array:
    """Minus infinity for the tokens that end a sequence, while one is too short to end.

    Shapes:
        scores: (B, V) float32; eos_ids: (n,), n may be 0.
    """
    result = scores.copy()
    result[:, eos_ids] = -np.inf
    return result


def apply_temperature(scores: Array, temperature: float) -> Array:
    """Scores over a temperature above zero: below one sharpens, above one flattens."""
    with np.errstate(over="ignore"):  # the caller looks for the infinities of a tiny temperature
        return scores / temperature


def keep_top_k(scores: Array, k: int) -> Array:
    """Minus infinity for scores below the k-th largest of their row.

    Scores equal to the k-th largest all stay, so more than k may remain; k above V keeps
    everything.
    """
    vocabulary = scores.shape[1]
    if k >= vocabulary:
        return scores
    kth = np.partition(scores, vocabulary - k, axis=1)[:, vocabulary - k, None]
    return np.where(scores < kth, np.float32(-np.inf), scores)


def keep_top_p(scores: Array, p: float, *, at_least: int = 1) -> Array:
    """Minus infinity outside the nucleus: the fewest most probable tokens whose mass reaches p.

    The decision is made from the tail: sort ascending and drop while the running mass is at most 1
    - p. Exact equality therefore depends on float32 rounding. Of equal scores at the edge those of
    larger id stay. The best at_least tokens always stay.

    Shapes:
        scores: (B, V) float32, a few may be minus infinity already; those are not sorted, so it is
            cheap after top-k.
    """
    at_least = min(at_least, scores.shape[1])
    finite = scores > -np.inf
    counts = np.count_nonzero(finite, axis=1)
    width = max(int(counts.max()), at_least)
    head = np.full((len(scores), width), -np.inf, dtype=np.float32)
    head[np.arange(width) < counts[:, None]] = scores[finite]
    head.sort(axis=1)
    # Summed in float64, then rounded, as torch does: a float32 running sum over 50,000 tokens can
    # move the edge by one of them.
    mass = softmax(head).cumsum(axis=1, dtype=np.float64).astype(np.float32)
    dropped = np.minimum((mass <= 1 - p).sum(axis=1), width - at_least)
    edge = np.take_along_axis(head, dropped[:, None], axis=1)
    stay = scores >= edge
    surplus = stay.sum(axis=1) - (width - dropped)
    for row in np.flatnonzero(surplus):  # ties that straddle the edge; the smaller ids go
        stay[row, np.flatnonzero(scores[row] == edge[row])[: surplus[row]]] = False
    return np.where(stay, scores, np.float32(-np.inf))


def softmax(scores: Array) -> Array:
    """Probabilities of each row, float32; a row of minus infinities gives zeros."""
    top = scores.max(axis=1, keepdims=True)
    with np.errstate(over="ignore", invalid="ignore"):  # plus infinity is refused by the caller
        raised = np.exp(scores - np.where(np.isfinite(top), top, np.float32(0)))
        total = np.maximum(raised.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)
        probabilities: Array = raised / total
    return probabilities


def log_softmax(scores: Array) -> Array:
    """Log-probabilities of each row, float32; every row has a finite score."""
    centred: Array = scores - scores.max(axis=1, keepdims=True)
    centred -= np.log(np.exp(centred).sum(axis=1, keepdims=True))
    return centred


# --- what was asked for, checked ------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """A request after every check: what the two searches work from."""

    ids: Array
    mask: Array | None
    vocabulary: int
    max_length: int
    min_length: int
    do_sample: bool
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    no_repeat_ngram_size: int
    num_beams: int
    length_penalty: float
    length_normalization: str
    early_stopping: bool | str
    num_return_sequences: int
    eos: Array
    pad: int
    use_cache: bool
    rng: ExponentialSource | None

    def divisor(self, length: int) -> float:
        """What the log-probability of so many new tokens is divided by."""
        base = length if self.length_normalization == "power" else (5 + length) / 6
        return float(base**self.length_penalty)


def _conditioned(model: Any, input_ids: Any, settings: dict[str, Any]) -> tuple[Any, _Plan]:
    """The language model to write with and the plan, once an encoder-decoder has read the texts."""
    if not hasattr(model, "conditioned"):
        return model, _prepare(model, input_ids, **settings)
    texts = _checked_shape(input_ids)
    mask, pad = settings["attention_mask"], settings["pad_token_id"]
    start = np.full((len(texts), 1), model.config.decoder_start, dtype=np.int64)
    plan = _prepare(model, start, **(settings | {"attention_mask": np.ones_like(start)}))
    if mask is None and pad is not None and pad not in plan.eos and (texts == pad).any():
        mask = (texts != pad).astype(np.int64)
    return model.conditioned(texts, mask), plan


def _prepare(
    model: LanguageModel,
    input_ids: Any,
    *,
    attention_mask: Any = None,
    max_new_tokens: int | None = None,
    max_length: int | None = None,
    min_new_tokens: int = 0,
    min_length: int = 0,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int | None = 50,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    no_repeat_ngram_size: int = 0,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    length_normalization: str = "power",
    early_stopping: bool | str = False,
    num_return_sequences: int = 1,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int | None = None,
    use_cache: bool = True,
    rng: ExponentialSource | None = None,
) -> _Plan:
    """Check everything a caller can get wrong, before the first step."""
    vocabulary = int(model.config.vocab_size)
    ids = _checked_ids(input_ids, vocabulary)
    eos = _checked_eos(eos_token_id, vocabulary)
    pad = None if pad_token_id is None else _whole("pad_token_id", pad_token_id, 0)
    if pad is not None and pad >= vocabulary:
        raise ConfigError(
            f"pad_token_id={pad}, but this model has vocab_size={vocabulary} and reads the padding "
            "after a finished row. Any id of the vocabulary will do, such as eos_token_id."
        )
    num_beams = _whole("num_beams", num_beams, 1)
    num_return_sequences = _whole("num_return_sequences", num_return_sequences, 1)
    if num_return_sequences > num_beams and (num_beams > 1 or not do_sample):
        raise ConfigError(
            f"num_return_sequences={num_return_sequences}, but num_beams={num_beams} finds that "
            "many at most. Raise num_beams, or sample: do_sample=True with num_beams=1 returns any "
            "number."
        )
    if do_sample and not hasattr(rng, "standard_exponential"):
        raise ConfigError(
            f"do_sample=True with rng={rng!r}: sampling needs a source of randomness. "
            "Pass rng=np.random.default_rng(seed), or do_sample=False for the most probable text."
        )
    if early_stopping is not True and early_stopping is not False and early_stopping != "never":
        raise ConfigError(f"early_stopping={early_stopping!r}; it must be True, False or 'never'.")
    if length_normalization not in ("power", "gnmt"):
        raise ConfigError(
            f"length_normalization={length_normalization!r}; it must be 'power', length ** "
            "length_penalty, or 'gnmt', ((5 + length) / 6) ** length_penalty."
        )
    end, least = _checked_lengths(
        ids.shape[1],
        model.config.positions,
        max_new_tokens=max_new_tokens,
        max_length=max_length,
        min_new_tokens=min_new_tokens,
        min_length=min_length,
    )
    longest = end - ids.shape[1]
    length_penalty = _number("length_penalty", length_penalty)
    if abs(length_penalty) * math.log(longest) > 80:
        raise ConfigError(
            f"length_penalty={length_penalty} with {longest} new tokens: {longest} ** "
            f"{length_penalty} does not fit float32. Usual values lie between -2 and 2."
        )
    return _Plan(
        ids=ids,
        mask=_checked_mask(attention_mask, ids, pad, eos),
        vocabulary=vocabulary,
        max_length=end,
        min_length=least,
        do_sample=bool(do_sample),
        temperature=_number("temperature", temperature, positive=True),
        top_k=0 if top_k is None else _whole("top_k", top_k, 0),
        top_p=_number("top_p", top_p, positive=True, at_most=1.0),
        repetition_penalty=_number("repetition_penalty", repetition_penalty, positive=True),
        no_repeat_ngram_size=_whole("no_repeat_ngram_size", no_repeat_ngram_size, 0),
        num_beams=num_beams,
        length_penalty=length_penalty,
        length_normalization=length_normalization,
        early_stopping=early_stopping,
        num_return_sequences=num_return_sequences,
        eos=eos,
        pad=pad if pad is not None else int(eos[0]) if len(eos) else 0,
        use_cache=bool(use_cache),
        rng=rng,
    )


def _whole(name: str, value: Any, least: int) -> int:
    """A whole number of at least least."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ConfigError(f"{name}={value!r}; it must be a whole number of at least {least}.")
    return int(value)


def _number(name: str, value: Any, *, positive: bool = False, at_most: float = math.inf) -> float:
    """A finite number, above zero if positive."""
    known = isinstance(value, int | float | np.integer | np.floating)
    known = known and not isinstance(value, bool)
    if known and math.isfinite(value) and (value > 0 or not positive) and value <= at_most:
        return float(value)
    expected = "a finite number" + (" above 0" if positive else "")
    expected += f" and at most {at_most:g}" if at_most < math.inf else ""
    hint = ""
    if name == "temperature" and known and value == 0:
        hint = " For the most probable text use do_sample=False."
    raise ConfigError(f"{name}={value!r}; it must be {expected}.{hint}")


def _checked_shape(input_ids: Any) -> Array:
    """Ids as (B, T) int64."""
    try:
        ids = np.asarray(input_ids)
    except ValueError as error:
        raise ShapeError(
            "input_ids has rows of different lengths. Pad the shorter ones on the left and pass "
            "attention_mask with 0 there, or generate one prompt at a time."
        ) from error
    if ids.ndim != 2:
        raise ShapeError(
            f"input_ids has shape {ids.shape}; it must be (batch, tokens). One prompt is a batch "
            "of one: input_ids[None]."
        )
    if ids.size == 0:
        raise ShapeError(
            f"input_ids has shape {ids.shape}, so there is nothing to continue. Start from at "
            "least one token, such as the one that begins or separates documents."
        )
    if not np.issubdtype(ids.dtype, np.integer):
        raise DtypeError(f"input_ids has dtype {ids.dtype}; token ids are integers. Pass int64.")
    return ids


def _checked_ids(input_ids: Any, vocabulary: int) -> Array:
    """The prompt as (B, T) int64."""
    ids = _checked_shape(input_ids)
    if ids.max() >= vocabulary:
        row, column = np.unravel_index(int(ids.argmax()), ids.shape)
        seen = int(ids[row, column])
        raise ShapeError(
            f"input_ids contains {seen} at [{row}, {column}], but this model has "
            f"vocab_size={vocabulary}. Did you add tokens to the tokenizer? Resize the embeddings "
            f"to at least {seen + 1}, or load the tokenizer saved with the model."
        )
    if ids.min() < 0:
        row, column = np.unravel_index(int(ids.argmin()), ids.shape)
        raise ShapeError(
            f"input_ids contains {int(ids[row, column])} at [{row}, {column}], but ids start at 0. "
            "-100 belongs in labels only; for padding use a real id and attention_mask."
        )
    return ids.astype(np.int64)


def _checked_mask(attention_mask: Any, ids: Array, pad: int | None, eos: Array) -> Array | None:
    """(B, T) int64 of 0 and 1, or None without padding; if not given, guessed from the pad id."""
    mask: Array
    if attention_mask is None:
        # As in transformers: a pad id that also ends sequences may be a real token.
        if pad is None or pad in eos:
            return None
        mask = (ids != pad).astype(np.int64)
        origin = f"attention_mask, guessed from pad_token_id={pad},"
    else:
        given = np.asarray(attention_mask)
        if given.shape != ids.shape:
            raise ShapeError(
                f"attention_mask has shape {given.shape}, input_ids {ids.shape}; they must agree."
            )
        if not np.isin(given, (0, 1)).all():
            other = given[~np.isin(given, (0, 1))][0]
            raise ConfigError(
                f"attention_mask contains {other}; it must be 1 for a token and 0 for padding. "
                "Additive masks (0 and a large negative number) are made inside the model."
            )
        mask, origin = given.astype(np.int64), "attention_mask"
    if mask.all():
        return None
    if not mask.any(axis=1).all():
        row = int(np.flatnonzero(~mask.any(axis=1))[0])
        raise ShapeError(
            f"{origin} has only zeros in row {row}, so there is nothing to continue. "
            "Every prompt needs a token; if these are tokens, pass an attention_mask of ones."
        )
    if not mask[:, -1].all():
        row = int(np.flatnonzero(mask[:, -1] == 0)[0])
        raise ShapeError(
            f"{origin} ends in 0 in row {row}: the prompt is padded on the right, and new tokens "
            "would follow the padding. Pad on the left (padding_side='left'); if these are tokens, "
            "pass an attention_mask of ones."
        )
    return mask


def _checked_eos(eos_token_id: Any, vocabulary: int) -> Array:
    """The ids that end a sequence, as (n,) int64."""
    several = () if eos_token_id is None else eos_token_id
    if isinstance(several, int | np.integer):
        several = (several,)
    eos = [_whole("eos_token_id", one, 0) for one in several]
    if eos and max(eos) >= vocabulary:
        raise ConfigError(
            f"eos_token_id={max(eos)}, but this model has vocab_size={vocabulary} and could never "
            "stop there. Take the id from the tokenizer saved with the model, or pass None."
        )
    return np.array(eos, dtype=np.int64)


def _checked_lengths(
    prompt: int,
    positions: int | None,
    *,
    max_new_tokens: int | None,
    max_length: int | None,
    min_new_tokens: int,
    min_length: int,
) -> tuple[int, int]:
    """The length to stop at and the length before which no sequence ends, both with the prompt."""
    if max_new_tokens is not None:
        if max_length is not None:
            warnings.warn(
                f"max_new_tokens={max_new_tokens} and max_length={max_length} were both given; "
                "max_new_tokens is used.",
                TinyplmWarning,
                stacklevel=4,
            )
        end = prompt + _whole("max_new_tokens", max_new_tokens, 1)
    elif max_length is not None:
        end = _whole("max_length", max_length, 1)
        if end <= prompt:
            raise ConfigError(
                f"max_length={end}, but the prompt already has {prompt} tokens and max_length "
                "counts them. Raise it, or say how much to add with max_new_tokens."
            )
    else:
        end = prompt + 20 if positions is None else max(prompt + 1, min(prompt + 20, positions))
    # The last new token is never read back, so it needs no position.
    if positions is not None and end - 1 > positions:
        new = end - prompt
        cures = []
        if positions + 1 > new:
            cures.append(f"keep the last {positions + 1 - new} tokens of the prompt")
        if positions + 1 > prompt:
            cures.append(f"ask for at most {positions + 1 - prompt} new tokens")
        raise ShapeError(
            f"{prompt} tokens + {new} new, but this model has {positions} positions (the last new "
            f"token needs none). {' or '.join(cures or ['Shorten both']).capitalize()}; for longer "
            "text slide a window over it."
        )
    least = _whole("min_length", min_length, 0)
    extra = _whole("min_new_tokens", min_new_tokens, 0)
    if extra:  # as in transformers, it takes the place of min_length
        least = prompt + extra
    if least > end:
        raise ConfigError(
            f"{f'min_new_tokens={extra}' if extra else f'min_length={least}'} asks for {least} "
            f"tokens, prompt included, but generation stops at {end}. Lower it, or raise "
            "max_new_tokens."
        )
    return end, least


# --- steps ----------------------------------------------------------------------------------------


class _Reader:
    """Feeds a model what it has not read yet, with or without its cache."""

    def __init__(self, model: LanguageModel, plan: _Plan) -> None:
        rows, prompt = plan.ids.shape
        self.model = model
        self.vocabulary = plan.vocabulary
        self.cache = model.new_cache(rows, plan.max_length - 1) if plan.use_cache else None
        whole = np.ones((rows, plan.max_length), dtype=np.int64)
        if plan.mask is not None:
            whole[:, :prompt] = plan.mask
        self.mask = None if plan.mask is None else whole
        self.positions = np.where(whole == 1, whole.cumsum(axis=1) - 1, 0)
        self._texts = np.arange(rows)  # which text each row looks at

    def next_logits(self, ids: Array) -> Array:
        """Logits (rows, V), float32, after the last of ids (rows, T)."""
        rows, end = ids.shape
        start = 0 if self.cache is None else self.cache.length
        logits = self.model.next_logits(
            ids[:, start:],
            attention_mask=None if self.mask is None else self.mask[:, :end],
            position_ids=self.positions[:, start:end],
            cache=self.cache,
        )
        if logits.shape != (rows, self.vocabulary):
            raise ShapeError(
                f"next_logits of {type(self.model).__name__} returned shape {logits.shape}; "
                f"expected {(rows, self.vocabulary)}: rows and vocab_size."
            )
        return logits.astype(np.float32, copy=False)

    def choose_rows(self, rows: Array) -> None:
        """Go on with these rows, in this order; a row may be chosen several times."""
        if self.cache is not None:
            self.cache.reorder(rows)
        texts = self._texts[rows]
        if hasattr(self.model, "chosen") and not np.array_equal(texts, self._texts):
            self.model = self.model.chosen(rows)
        self._texts = texts
        self.positions = self.positions[rows]
        self.mask = None if self.mask is None else self.mask[rows]


def _refuse_non_finite(logits: Array, length: int) -> None:
    """Raise for NaN, plus infinity, or a row of minus infinities."""
    top = logits.max(axis=1)  # a NaN anywhere is the maximum
    if not np.isfinite(top).all():
        row = int(np.flatnonzero(~np.isfinite(top))[0])
        raise NonFiniteError(
            f"the logits for token {length} of row {row} have the maximum {top[row]}; they must be "
            "finite. The weights are likely damaged or training diverged: check that the "
            "parameters are finite."
        )


def _refuse_nothing_left(scores: Array, plan: _Plan) -> None:
    """Raise when no token may be chosen, or the temperature has overflowed."""
    top = scores.max(axis=1)
    if np.isposinf(top).any() or np.isnan(top).any():
        raise NonFiniteError(
            f"temperature={plan.temperature} and repetition_penalty={plan.repetition_penalty} turn "
            "the scores into infinities. Use values nearer to 1; for the most probable text use "
            "do_sample=False."
        )
    if np.isneginf(top).any():
        raise ConfigError(
            f"row {int(np.flatnonzero(np.isneginf(top))[0])} has no token left to choose: all "
            f"{plan.vocabulary} are banned by no_repeat_ngram_size={plan.no_repeat_ngram_size} and "
            f"the minimum length {plan.min_length}. Raise no_repeat_ngram_size, or generate less."
        )


def _process(scores: Array, ids: Array, plan: _Plan, padding: Array | None, at_least: int) -> Array:
    """The functions above that the plan asks for; at_least tokens survive top-k and top-p."""
    if plan.repetition_penalty != 1:
        scores = penalize_repetition(scores, ids, plan.repetition_penalty, ignored=padding)
    if plan.no_repeat_ngram_size:
        scores = ban_repeated_ngrams(scores, ids, plan.no_repeat_ngram_size)
    if ids.shape[1] < plan.min_length and len(plan.eos):
        scores = forbid_eos(scores, plan.eos)
    if not plan.do_sample:
        return scores
    if plan.temperature != 1:
        scores = apply_temperature(scores, plan.temperature)
    if plan.top_k:
        scores = keep_top_k(scores, max(plan.top_k, at_least))
    if plan.top_p < 1:
        scores = keep_top_p(scores, plan.top_p, at_least=at_least)
    return scores


def _race(shape: tuple[int, ...], rng: ExponentialSource | None) -> Array:
    """Exponential draws q, the winners of probabilities / q being a sample.

    The argmax is one draw, the largest n are n draws without replacement, in order. Drawn in
    float64: NumPy's float32 draws are exactly 0 once in 2**23, which at 50,000 tokens a step would
    let an arbitrary token win every few hundred steps.
    """
    assert rng is not None
    q = np.asarray(rng.standard_exponential(shape)).astype(np.float32)
    return np.maximum(q, np.finfo(np.float32).tiny)


def _top(values: Array, count: int) -> Array:
    """Indices (B, count) of each row's largest values in order; of equals the smaller index."""
    width = values.shape[1]
    kth = np.partition(values, width - count, axis=1)[:, width - count]
    found = np.empty((len(values), count), dtype=np.int64)
    for row, (value, limit) in enumerate(zip(values, kth, strict=True)):
        candidates = np.flatnonzero(value >= limit)
        found[row] = candidates[np.argsort(-value[candidates], kind="stable")[:count]]
    return found


def _leading_padding(plan: _Plan, repeats: int) -> Array | None:
    """Padding tokens at the start of each row, (B * repeats,)."""
    return None if plan.mask is None else np.repeat(plan.mask.argmax(axis=1), repeats)


# --- the searches ---------------------------------------------------------------------------------


def generate(
    model: LanguageModel | EncoderDecoder,
    input_ids: Any,
    *,
    attention_mask: Any = None,
    max_new_tokens: int | None = None,
    max_length: int | None = None,
    min_new_tokens: int = 0,
    min_length: int = 0,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int | None = 50,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    no_repeat_ngram_size: int = 0,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    length_normalization: str = "power",
    early_stopping: bool | str = False,
    num_return_sequences: int = 1,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int | None = None,
    use_cache: bool = True,
    rng: ExponentialSource | None = None,
    on_token: Callable[[Array], None] | None = None,
) -> Array:
    """Prompts with their continuations, as ids; of an encoder-decoder, what it writes for texts.

    Args:
        model: the language model, or an encoder-decoder.
        input_ids: prompts, (B, T) integers; shorter ones padded on the left. For an
            encoder-decoder the texts that it reads, padded on either side; the prompt is its start
            token then.
        attention_mask: (B, T), 1 for a token and 0 for padding. Without it padding is recognised by
            pad_token_id, unless that also ends sequences: where the id may be a real token, pass
            the mask. Positions count real tokens only.
        max_new_tokens: how many tokens to add at most; wins over max_length. With neither: 20, or
            as many as fit.
        max_length: the same with the prompt counted.
        min_new_tokens: so many new tokens come before an end token; if not 0, it takes the place of
            min_length.
        min_length: the same with the prompt counted.
        do_sample: draw each token from the distribution instead of taking the most probable; needs
            rng.
        temperature: divides the logits; used when sampling, like the next two.
        top_k: draw from the k most probable tokens; 0 or None for all. NOTE the default, 50.
        top_p: draw from the most probable tokens that hold this mass.
        repetition_penalty: divides (or, where negative, multiplies) the logits of tokens already in
            the row.
        no_repeat_ngram_size: no n-gram of this size occurs twice, prompt included; 0 for no such
            rule.
        num_beams: beams per prompt; 1 is no beam search. With do_sample candidates are drawn, not
            ranked.
        length_penalty: exponent on the length that divides a beam's score: above 0 favours longer
            ones.
        length_normalization: "power" divides by length ** length_penalty, "gnmt" by
            ((5 + length) / 6) ** length_penalty, whose usual exponent is 0.6.
        early_stopping: when a beam search ends: True at num_beams finished sequences, False when
            improvement is unlikely, "never" when it is impossible (exact for length_penalty up to
            0; textbook search with 0).
        num_return_sequences: rows returned per prompt: draws when sampling, else the best beams.
        eos_token_id: id or ids that end a sequence.
        pad_token_id: fills rows that ended before others; eos_token_id (the first of them) if not
            given.
        use_cache: keep keys and values of tokens already read. False reads everything again at each
            step.
        rng: source of randomness, np.random.default_rng(seed).
        on_token: called after each step with the (rows,) ids just chosen, before the next; not for
            beams.

    Returns:
        (B * num_return_sequences, up to max_length) int64, prompt (or start token) and end token
        included.

    Raises:
        ShapeError: the prompt is not (B, T), empty, padded on the right, too long, or has an id out
            of range.
        DtypeError: the prompt is not of integers.
        ConfigError: a setting that cannot be, or rules that ban every token.
        NonFiniteError: the model's logits are not finite.
    """
    settings = {
        "attention_mask": attention_mask,
        "max_new_tokens": max_new_tokens,
        "max_length": max_length,
        "min_new_tokens": min_new_tokens,
        "min_length": min_length,
        "do_sample": do_sample,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "repetition_penalty": repetition_penalty,
        "no_repeat_ngram_size": no_repeat_ngram_size,
        "num_beams": num_beams,
        "length_penalty": length_penalty,
        "length_normalization": length_normalization,
        "early_stopping": early_stopping,
        "num_return_sequences": num_return_sequences,
        "eos_token_id": eos_token_id,
        "pad_token_id": pad_token_id,
        "use_cache": use_cache,
        "rng": rng,
    }
    writer, plan = _conditioned(model, input_ids, settings)
    if plan.num_beams == 1:
        return _one_by_one(writer, plan, on_token)
    if on_token is not None:
        raise ConfigError(
            f"on_token with num_beams={plan.num_beams}: a beam search knows its text only at the "
            "end. Use num_beams=1."
        )
    return _beam_search(writer, plan).ids


def beam_search(
    model: LanguageModel | EncoderDecoder, input_ids: Any, *, num_beams: int, **settings: Any
) -> Beams:
    """The best sequences that num_beams running ones lead to, with their scores.

    Args:
        model: the language model, or an encoder-decoder.
        input_ids: prompts, or the texts that an encoder-decoder reads, as for `generate`.
        num_beams: beams per prompt; 1 is allowed here.
        **settings: those of `generate`, except on_token.
    """
    given = {"attention_mask": None, "pad_token_id": None, "num_beams": num_beams} | settings
    return _beam_search(*_conditioned(model, input_ids, given))


def _one_by_one(
    model: LanguageModel, plan: _Plan, on_token: Callable[[Array], None] | None
) -> Array:
    """Greedy search and sampling: one token per row and step."""
    prompts, prompt = plan.ids.shape
    rows = np.repeat(np.arange(prompts), plan.num_return_sequences)
    ids = np.full((len(rows), plan.max_length), plan.pad, dtype=np.int64)
    ids[:, :prompt] = plan.ids[rows]
    padding = _leading_padding(plan, plan.num_return_sequences)
    running = np.arange(len(rows))  # the rows that have not ended
    reader = _Reader(model, plan)
    for length in range(prompt, plan.max_length):
        if length == prompt:  # prompts are read once, however many sequences are drawn from them
            logits = reader.next_logits(plan.ids)[rows]
            if len(rows) > prompts:
                reader.choose_rows(rows)
        else:
            logits = reader.next_logits(ids[:, :length])
        if len(running) < len(rows):
            logits = logits[running]
        _refuse_non_finite(logits, length)
        ignored = None if padding is None else padding[running]
        scores = _process(logits, ids[running, :length], plan, ignored, 1)
        if scores is not logits:
            _refuse_nothing_left(scores, plan)
        if plan.do_sample:
            # Rows that have ended still take part in the draw, so when they ended has no effect on
            # the others.
            draws = _race((len(rows), plan.vocabulary), plan.rng)[running]
            with np.errstate(over="ignore"):
                scores = softmax(scores) / draws
        chosen = scores.argmax(axis=1)
        ids[running, length] = chosen
        if on_token is not None:
            on_token(ids[:, length].copy())
        running = running[~np.isin(chosen, plan.eos)]
        if not len(running):
            return ids[:, : length + 1]
    return ids


def _beam_search(model: LanguageModel, plan: _Plan) -> Beams:
    """Beam search and beam sampling for all prompts at once."""
    (B, prompt), K, V = plan.ids.shape, plan.num_beams, plan.vocabulary
    # Enough candidates that K of them go on even if every beam's best ones are ends.
    per_beam = max(2, 1 + len(plan.eos))
    M = per_beam * K
    if per_beam > V:
        raise ConfigError(
            f"a beam search with {len(plan.eos)} end ids looks at {per_beam} candidates per beam, "
            f"but this model has vocab_size={V}. Use generate with num_beams=1."
        )
    if plan.num_return_sequences > K:
        raise ConfigError(
            f"num_return_sequences={plan.num_return_sequences}, but num_beams={K} finds {K} "
            "sequences. Raise num_beams, or draw several with generate."
        )
    first_row = np.arange(B)[:, None] * K
    padding = _leading_padding(plan, K)

    running_BKT = np.full((B, K, plan.max_length), plan.pad, dtype=np.int64)
    running_BKT[:, :, :prompt] = plan.ids[:, None, :]
    running_scores = np.full((B, K), _NEVER)
    running_scores[:, 0] = 0  # all beams start equal: only one of them may have offspring
    ended_BKT = running_BKT.copy()
    ended_scores = np.full((B, K), _NEVER)
    ended_lengths = np.full((B, K), prompt)
    ended = np.zeros((B, K), dtype=bool)
    improvable = np.ones((B, 1), dtype=bool)

    reader = _Reader(model, plan)
    everyone = np.repeat(np.arange(B), K)
    for length in range(prompt, plan.max_length):
        flat = running_BKT[:, :, :length].reshape(B * K, length)
        if length == prompt:  # the beams of a prompt are still the same: read it once
            logits = reader.next_logits(plan.ids)[everyone]
            reader.choose_rows(everyone)
        else:
            logits = reader.next_logits(flat)
        _refuse_non_finite(logits, length)
        keep = per_beam if K > 1 else 1
        scores = _process(log_softmax(logits), flat, plan, padding, keep)
        scores = (scores.reshape(B, K, V) + running_scores[:, :, None]).reshape(B, K * V)
        _refuse_nothing_left(scores, plan)
        if plan.do_sample:
            with np.errstate(over="ignore"):
                picked = _top(softmax(scores) / _race((B, K * V), plan.rng), M)
        else:
            picked = _top(scores, M)
        candidate_scores = np.take_along_axis(scores, picked, axis=1)
        parents, tokens = np.divmod(picked, V)
        candidates_BMT = np.take_along_axis(running_BKT, parents[:, :, None], axis=1)
        candidates_BMT[:, :, length] = tokens
        new = length + 1 - prompt
        done = np.isin(tokens, plan.eos) | (length + 1 == plan.max_length)

        # The best K that are not done go on.
        open_scores = candidate_scores + np.where(done, _NEVER, np.float32(0))
        going_on = _top(open_scores, K)
        running_BKT = np.take_along_axis(candidates_BMT, going_on[:, :, None], axis=1)
        running_scores = np.take_along_axis(open_scores, going_on, axis=1)

        # Those done compete with the sequences that ended before, if they are among the first K
        # candidates.
        ends = done & (np.arange(M) < K)
        closed = ~improvable | (ended.all(axis=1, keepdims=True) & (plan.early_stopping is True))
        final = candidate_scores / plan.divisor(new)
        final = np.where(ends & ~closed, final, _NEVER)
        scores_BN = np.concatenate((ended_scores, final), axis=1)
        best = _top(scores_BN, K)
        ended_scores = np.take_along_axis(scores_BN, best, axis=1)
        everything = np.concatenate((ended_BKT, candidates_BMT), axis=1)
        ended_BKT = np.take_along_axis(everything, best[:, :, None], axis=1)
        lengths = np.concatenate((ended_lengths, np.full((B, M), length + 1)), axis=1)
        ended_lengths = np.take_along_axis(lengths, best, axis=1)
        ended = np.take_along_axis(np.concatenate((ended, ends), axis=1), best, axis=1)

        # Could the best running beam still displace the worst that ended? Once no, always no.
        hopeful = plan.early_stopping == "never" and plan.length_penalty > 0
        span = plan.max_length - prompt if hopeful else new
        possible = running_scores[:, :1] / plan.divisor(span)
        improvable &= possible > ended_scores.min(axis=1, keepdims=True)
        full = plan.early_stopping is True and ended.all()
        if not improvable.any() or full or done.all():
            break
        rows = np.take_along_axis(parents, going_on, axis=1) + first_row
        reader.choose_rows(rows.ravel())

    R = plan.num_return_sequences
    longest = int(ended_lengths[:, :R].max())
    return Beams(
        ids=ended_BKT[:, :R, :longest].reshape(B * R, longest),
        scores=ended_scores[:, :R].reshape(B * R),
    )
