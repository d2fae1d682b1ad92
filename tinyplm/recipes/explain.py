"""What an objective makes of a text: what goes in, what has to be predicted, and what may be looked at.

Everything is asked of the objective itself: its batches cut the text, its `prepare` hides and labels, its `read` and
`predictions` run a model. What each position may look at is seen in a small new model of the kind that learns from it.
"""

import itertools
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..analysis.reading import shown_token
from ..autograd import no_grad, ops
from ..autograd.ops.loss import IGNORED
from ..errors import ConfigError, DataError
from ..nn import Inspection
from ..objectives import OBJECTIVES, check_objective, objective_named
from ..text import Tokenizer
from ..text.kinds import SPECIAL_TOKENS
from ..types import Array, Batch
from .material import TOKENIZERS
from .models import MODELS, Entry
from .run import Run

UNBOUNDED = 1_000_000
OTHER = "Penguins are birds. They do not fly."
"""Another document, for objectives that ask whether two passages belong together."""

CLASSES = {"pairs": ("the second passage follows the first", "it is from another document")}
"""What the labels of a term mean, where they are no tokens."""

Sight = list[list[bool]]
"""For each position, down, whether it may look at each position, across."""


@dataclass(frozen=True)
class Part:
    """A sequence that a model reads.

    Attributes:
        name: "input", or "encoder" and "decoder", or "window 1" and so on.
        tokens: as text.
        was: what stood there before the objective put something else; None where it left the text alone.
        segments: which passage each token belongs to; None where there is one.
        visible: what each position may look at within the part; None if no model here learns from the objective.
        encoder: what each position of a decoder may look at in the encoder; None elsewhere.
    """

    name: str
    tokens: list[str]
    was: list[str | None]
    segments: list[int] | None = None
    visible: Sight | None = None
    encoder: Sight | None = None


@dataclass(frozen=True)
class Term:
    """One term of the loss: a mean over its labels.

    Attributes:
        name: as the objective calls it.
        part: number of the part whose positions have the labels; None if the text as a whole has one.
        targets: what each position has to predict, None where nothing; or the one label of the whole.
        losses: nats of each target under a model; None without one.
    """

    name: str
    part: int | None
    targets: list[str | None]
    losses: list[float | None] | None

    @property
    def labels(self) -> int:
        """How many predictions there are."""
        return sum(target is not None for target in self.targets)

    @property
    def mean(self) -> float | None:
        """Nats per label; None without a model."""
        known = [loss for loss in self.losses or () if loss is not None]
        return sum(known) / len(known) if known else None


@dataclass(frozen=True)
class Explanation:
    """One text under one objective.

    Attributes:
        parts: what the model reads.
        terms: what it is asked.
        notes: what else there is to know.
    """

    parts: list[Part]
    terms: list[Term]
    notes: list[str] = field(default_factory=list)

    @property
    def labels(self) -> int:
        """How many predictions there are in all."""
        return sum(term.labels for term in self.terms)

    @property
    def loss(self) -> float | None:
        """The sum over the terms of nats per label, the loss of this text alone; None without a model."""
        means: dict[str, list[tuple[float, int]]] = {}
        for term in self.terms:
            if term.mean is not None:
                means.setdefault(term.name, []).append((term.mean, term.labels))
        if not means:
            return None
        return sum(
            sum(mean * count for mean, count in found) / sum(count for _, count in found)
            for found in means.values()
        )


def explain(
    objective: str,
    text: str,
    tokenizer: Tokenizer | None = None,
    model: Any = None,
    *,
    target: str | None = None,
    seed: int = 0,
) -> Explanation:
    """Show an objective on a text.

    Args:
        objective: its name on the command line, or several joined by +.
        text: a sentence or so; blank lines divide documents. For pairs of texts, "source => target".
        tokenizer: cuts the text; without one, each of its words is a token.
        model: whose losses to show.
        target: of a pair, if it does not stand in the text.
        seed: of all that is drawn.

    Raises:
        ConfigError: no such objective; a tokenizer, a model or a target that does not fit it.
        DataError: the text is too short, or has characters that the tokenizer does not know.
        ShapeError: the text is longer than the model's positions.
    """
    check_objective(objective)
    kinds = [OBJECTIVES[part] for part in objective.split("+")]
    if model is not None:
        _check_fit(objective, model)
    notes = []
    if pairs := any(kind.reads == "pairs" for kind in kinds):
        texts = list(_pair(objective, text, target))
    else:
        if target is not None:
            raise ConfigError(
                f"Objective '{objective}' reads one text, so there is no target; 'seq2seq' reads pairs."
            )
        texts = [part for part in re.split(r"\n\s*\n", text) if part.strip()]
        if len(texts) == 1 and any(kind.frames for kind in kinds):
            texts.append(OTHER)
            notes.append(f"Passages of another document are from: {OTHER}")
    if not texts or not texts[0]:
        raise DataError("The text is empty. Give a sentence or so, in quotes.")
    tokenizer = tokenizer or words(*texts, objective=objective)
    made = objective_named(objective, tokenizer)
    ids = tokenizer.encode_batch(texts)
    # A model's positions limit an example that is made of the text; a text that is all of one is refused below.
    most = getattr(getattr(model, "config", None), "positions", None) if made.frames else None
    examples = _examples(objective, made, ids, tokenizer, seed, pairs=pairs, most=most)
    parts: list[Part] = []
    terms: list[Term] = []
    for number, (raw, batch) in enumerate(examples):
        sight = _sight(objective, batch, tokenizer)
        terms += _terms(made, batch, tokenizer, model, len(parts))
        parts += _parts(raw, batch, tokenizer, sight, number if len(examples) > 1 else None)
    if len(examples) > 1:
        notes.append(
            "Each window begins with the state that the one before left; the gradient stops there."
        )
    return Explanation(parts, terms, notes)


def words(*texts: str, objective: str = "causal-lm") -> Tokenizer:
    """A tokenizer for these texts alone: byte pairs are merged until each word is one token.

    It has the special tokens of the first model that learns from the objective.
    """
    entry = _entry(objective)
    return Tokenizer.train(
        "byte-bpe",
        texts,
        vocab_size=UNBOUNDED,
        min_frequency=1,
        special_tokens=special_tokens(objective),
        appended_tokens=entry.appended_tokens if entry else (),
    )


def special_tokens(objective: str) -> tuple[str, ...] | None:
    """Special tokens of the first model that learns from an objective; None if those of any tokenizer will do."""
    entry = _entry(objective)
    if entry is None or entry.special_tokens is not None:
        return entry.special_tokens if entry else None
    own = tuple(SPECIAL_TOKENS[TOKENIZERS.get(entry.tokenizer, entry.tokenizer)])
    return None if own == tuple(SPECIAL_TOKENS["byte-bpe"]) else own


def _entry(objective: str) -> Entry | None:
    """The first model that learns from an objective."""
    return next((entry for entry in MODELS.values() if entry.fits(objective)), None)


def _check_fit(objective: str, model: Any) -> None:
    for entry in MODELS.values():
        if type(model) is entry.build and not entry.fits(objective):
            raise ConfigError(
                f"Objective '{objective}' does not fit a {type(model).__name__}, which can learn from: "
                f"{', '.join(entry.objectives)}."
            )


def _pair(objective: str, text: str, target: str | None) -> tuple[str, str]:
    if target is None:
        text, arrow, target = text.partition("=>")
        if not arrow:
            raise ConfigError(
                f"Objective '{objective}' reads pairs of texts, and there is one. Write 'source => target', or give "
                "the target with --target."
            )
    return text.strip(), target.strip()


# Examples


class _OnePair:
    """A source and its target, as batches of pairs want them."""

    def __init__(self, source: Array, target: Array) -> None:
        self.lengths = np.array([[len(source), len(target), 0]])
        self._pair = (source, target)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, number: int) -> tuple[Array, Array]:
        return self._pair


def _examples(
    name: str,
    made: Any,
    ids: list[Array],
    tokenizer: Tokenizer,
    seed: int,
    *,
    pairs: bool,
    most: int | None,
) -> list[tuple[Batch, Batch]]:
    """Batches of one example as they are cut and as they are prepared: one, or two windows where a state is carried."""
    end = tokenizer.end_of_text
    for ended in (True, False):
        if pairs:
            material: Any = _OnePair(*ids)
        else:
            between = [] if end is None else [end]
            stream = [token for each in ids for token in [*each.tolist(), *between]]
            material = np.array(stream if ended or end is None else stream[:-1], np.int64)
        tokens = int(material.lengths.max()) if pairs else len(material)
        raw = _batches(name, made, material, tokens, seed, min(tokens + 8, most or tokens + 8))
        rng = np.random.default_rng(seed)
        found = [(batch, made.prepare(batch, rng=rng)) for batch in raw]
        # In training, documents end with the end of text. Where the objective itself puts it behind them, once will do.
        if pairs or not any(_doubled(batch, end) for _, batch in found):
            break
    for _, batch in found:
        for term, count in made.counts(batch).items():
            if not count:
                raise DataError(made.nothing(term, batch))
    return [(batch, _trimmed(prepared)) for batch, prepared in found]


def _batches(
    name: str, made: Any, material: Any, tokens: int, seed: int, longest: int
) -> list[Batch]:
    """As much of the text as the objective takes at a time; two halves where one goes on from the other."""
    problem: Exception | None = None
    for length in range(longest, 0, -1):
        try:
            first = next(made.batches(material, length=length, batch=1, seed=seed).in_order())
        except (DataError, ConfigError, StopIteration) as error:
            problem = error
            continue
        if "fresh" in first and length > 1:
            halves = made.batches(material, length=-(-length // 2), batch=1, seed=seed)
            return list(itertools.islice(halves.in_order(), 2))
        ids = first["input_ids"][0]
        if first.keys() == {"input_ids"} and np.array_equal(ids, material[: len(ids)]):
            return [{"input_ids": material[None]}]  # where no window is exactly as long as the text
        return [first]
    raise DataError(
        f"The text has {tokens} token{'' if tokens == 1 else 's'}, too few for objective '{name}' ({problem}). "
        "Give a longer text."
    )


def _doubled(batch: Batch, end: int | None) -> bool:
    """Whether something that is read or predicted ends twice."""
    for key in ("input_ids", "decoder_input_ids", "labels"):
        if end is not None and key in batch and batch[key].ndim == 2:
            row = batch[key][0]
            row = row[row != IGNORED]
            if row[-2:].tolist() == [end, end]:
                return True
    return False


# What is read, and what is asked


def _parts(
    raw: Batch, batch: Batch, tokenizer: Tokenizer, sight: dict[str, Sight], window: int | None
) -> list[Part]:
    names = ["encoder", "decoder"] if "decoder_input_ids" in batch else ["input"]
    if window is not None:
        names = [f"window {window + 1}"]
    ids = batch["input_ids"][0]
    segments = batch["token_type_ids"][0].tolist() if "token_type_ids" in batch else None
    first = Part(
        name=names[0],
        tokens=[shown_token(tokenizer, int(i)) for i in ids],
        was=_was(raw["input_ids"][0], batch, tokenizer),
        segments=segments,
        visible=sight.get("self") if len(names) == 1 else sight.get("encoder"),
    )
    if len(names) == 1:
        return [first]
    written = [shown_token(tokenizer, int(i)) for i in batch["decoder_input_ids"][0]]
    return [
        first,
        Part(
            name=names[1],
            tokens=written,
            was=[None] * len(written),
            visible=sight.get("self"),
            encoder=sight.get("cross"),
        ),
    ]


def _was(before: Array, batch: Batch, tokenizer: Tokenizer) -> list[str | None]:
    """For each token what stood there before, where that was something else, or was chosen and left as it was."""
    now, labels = batch["input_ids"][0], batch.get("labels")
    was: list[str | None] = [None] * len(now)

    def shown(ids: Any) -> str:
        return " ".join(shown_token(tokenizer, int(i)) for i in ids)

    if "decoder_input_ids" in batch:
        # A special token that is read and predicted stands for what is predicted behind it.
        row = [int(i) for i in np.ravel(labels)] if labels is not None else []
        marks = [n for n, i in enumerate(row) if i in now and i in tokenizer.special_ids]
        for start, stop in itertools.pairwise([*marks, len(row)]):
            if stop > start + 1:
                was[now.tolist().index(row[start])] = shown(row[start + 1 : stop])
    elif len(before) == len(now):
        changed = before != now
        if labels is not None and labels.shape == (1, len(now)):
            chosen = labels[0] != IGNORED
            if (labels[0] == before)[chosen].all():  # what is predicted is what stood there
                changed = changed | chosen
        was = [shown([a]) if b else None for a, b in zip(before, changed, strict=True)]
    return was


def _trimmed(batch: Batch) -> Batch:
    """The batch of one row without what fills it up, and without what a decoder reads behind its last label."""
    kept = {key: values for key, values in batch.items() if key != "label_places"}  # all are shown
    S = batch["input_ids"].shape[1]
    if "attention_mask" in batch:
        real = int(np.flatnonzero(batch["attention_mask"][0])[-1]) + 1
        one = "decoder_input_ids" not in batch
        for key in ("input_ids", "attention_mask", "token_type_ids", *(("labels",) if one else ())):
            if key in batch and batch[key].shape == (1, S):
                kept[key] = batch[key][:, :real]
    if "decoder_input_ids" in batch:
        last = int(np.flatnonzero(batch["labels"][0] != IGNORED)[-1]) + 1
        for key in ("decoder_input_ids", "decoder_attention_mask", "labels"):
            if key in batch:
                kept[key] = batch[key][:, :last]
    return kept


def _terms(made: Any, batch: Batch, tokenizer: Tokenizer, model: Any, parts: int) -> list[Term]:
    predictions = {}
    if model is not None:
        with no_grad():
            predictions = made.predictions(model, made.read(model, batch), batch)
    found = []
    for name, key in made.labels.items():
        labels = np.atleast_1d(batch[key][0])
        losses: list[float | None] | None = None
        if name in predictions:
            hidden, head, wanted = predictions[name]
            with no_grad():
                each = ops.cross_entropy(head(hidden), wanted, reduction="none").numpy()
            losses = [
                None if label == IGNORED else float(loss)
                for label, loss in zip(labels, np.atleast_1d(each[0]), strict=True)
            ]
        whole = batch[key].ndim == 1
        found.append(
            Term(
                name=name,
                part=None if whole else parts + ("decoder_input_ids" in batch),
                targets=[
                    None
                    if label == IGNORED
                    else CLASSES[name][label]
                    if name in CLASSES
                    else shown_token(tokenizer, int(label))
                    for label in labels.tolist()
                ],
                losses=losses,
            )
        )
    return found


# What may be looked at


class _Watched:
    """A model that is inspected whenever it is called."""

    def __init__(self, model: Any, inspection: Inspection) -> None:
        self._model = model
        self._inspection = inspection

    def __call__(self, *given: Any, **named: Any) -> Any:
        return self._model(*given, inspection=self._inspection, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _sight(name: str, batch: Batch, tokenizer: Tokenizer) -> dict[str, Sight]:
    """What each position may look at, by kind of attention, in a small new model that learns from the objective.

    A new one has no weight so small that it is rounded to nothing, as a trained one may. A recurrent model has no
    attention: it hands on a state, to the right, to the left, or both; one step tells.
    """
    model = _small(name, batch, tokenizer)
    if model is None:
        return {}
    # An objective of its own, as some carry a model's state from batch to batch; here each window begins anew.
    made = objective_named(name, tokenizer)
    batch = {key: value for key, value in batch.items() if key != "fresh"}
    inspection = Inspection()
    with no_grad():
        made.read(_Watched(model, inspection), batch)
    found = {
        kind: (np.sum([each.numpy()[0] for each in weights], axis=0) > 0)
        for kind, weights in (
            ("self", inspection.attentions),
            ("encoder", inspection.encoder_attentions),
            ("cross", inspection.cross_attentions),
        )
        if weights
    }
    sight = {
        kind: (seen if seen.ndim == 2 else seen.any(axis=0)).tolist()
        for kind, seen in found.items()
    }
    if "self" not in sight:
        if "decoder_input_ids" in batch:  # what writes sees what it has written
            sight["self"] = np.tri(batch["decoder_input_ids"].shape[1], dtype=bool).tolist()
        else:
            sight["self"] = _recurrent(
                batch["input_ids"],
                lambda ids: _predicted(made, model, batch | {"input_ids": ids}),
            )
    if "decoder_input_ids" in batch and "encoder" not in sight:
        sight["encoder"] = _recurrent(
            batch["input_ids"],
            lambda ids: model.encode(ids, attention_mask=batch["attention_mask"]),
        )
    return sight


def _predicted(made: Any, model: Any, batch: Batch) -> Any:
    """Hidden states of the first term's predictions."""
    return next(iter(made.predictions(model, made.read(model, batch), batch).values())).hidden


def _recurrent(ids: Array, run: Any) -> Sight:
    """What positions of a network that reads in order learn of: all before, all behind, or both."""
    T = ids.shape[1]
    if T == 1:
        return [[True]]
    with no_grad():
        plain = _states(run(ids))
        reaches = []
        for changed, near in ((0, 1), (T - 1, T - 2)):
            other = ids.copy()
            other[0, changed] = (other[0, changed] + 1) % 2
            reaches.append(not np.array_equal(_states(run(other))[near], plain[near]))
    right, left = reaches
    seen = np.eye(T, dtype=bool)
    if right:
        seen |= np.tri(T, dtype=bool)
    if left:
        seen |= np.tri(T, dtype=bool).T
    return seen.tolist()


def _states(hidden: Any) -> Array:
    """(T, D) of what a model gives."""
    return np.asarray((hidden[0] if isinstance(hidden, tuple) else hidden).numpy()[0])


def _small(name: str, batch: Batch, tokenizer: Tokenizer) -> Any:
    """A model with one layer that learns from an objective; None if there is none."""
    for model, entry in MODELS.items():
        if entry.fits(name):
            longest = max(
                batch[key].shape[1] for key in ("input_ids", "decoder_input_ids") if key in batch
            )
            settings = {"layers": 1, "heads": 1, "hidden_size": 8, "positions": longest + 2}
            run = Run(**(dict(entry.defaults) | {"model": model, "objective": name} | settings))
            return entry.build(entry.config_for(run, tokenizer), rng=np.random.default_rng(0))
    return None
