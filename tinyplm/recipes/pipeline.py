"""Text in, answer out: a model and its tokenizer behind one call, as `transformers.pipeline` has it.

Tasks, and what one text gives:

    fill-mask              [{"score", "token", "token_str", "sequence"}, ...], likeliest first
    text-generation        [{"generated_text"}, ...], one for each of num_return_sequences
    text2text-generation   [{"generated_text"}, ...]
    feature-extraction     hidden states (1, T, D) as nested lists, or as an array

A list of texts gives a list of these, in the same order; texts are run several at a time, shorter ones filled up, which
changes nothing but the last digits. With several masks in a text, fill-mask gives a list for each.

Differences from transformers: a list of one text gives a list of one; nothing is drawn without `rng`; a target that is
no single token is refused, not cut.
"""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..analysis.reading import fills, read, translates, writes
from ..autograd import no_grad
from ..errors import ConfigError, DataError, DtypeError
from ..generate import generate
from ..text import Tokenizer, pad
from ..types import Array, Batch, Generator
from .trained import open_trained

Answer = list[dict[str, Any]]
"""What one text gives."""


def pipeline(
    task: str,
    model: Any,
    tokenizer: Tokenizer | str | Path | None = None,
    *,
    batch_size: int = 8,
    device: str | None = None,
) -> "Pipeline":
    """A task done by a model.

        fill = tinyplm.pipeline("fill-mask", model="path/of/a/bert")
        fill("The capital of France is [MASK].", top_k=3)

    Args:
        task: "fill-mask", "text-generation", "text2text-generation" or "feature-extraction".
        model: a model, or the folder of one or of a run, which has the tokenizer too.
        tokenizer: or its folder; needed where `model` is no folder.
        batch_size: texts that are run at a time.
        device: "cpu" or "cuda", where a model is moved to; when None a model stays where it is, and one from a folder
            is put into the CPU's memory.

    Raises:
        ConfigError: no such task, or one that this model cannot do; a model without a tokenizer.
        MissingExtraError, DeviceMemoryError: there is no such device, or no room on it.
        MissingFileError: no such folder, or no model in it.
    """
    if task not in TASKS:
        near = difflib.get_close_matches(task, TASKS, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ConfigError(f"No task '{task}'.{hint} Known: {', '.join(TASKS)}.")
    if isinstance(model, str | Path):
        trained = open_trained(model, device=device or "cpu")
        model, own = trained.model, trained.tokenizer
        tokenizer = own if tokenizer is None else tokenizer
    if isinstance(tokenizer, str | Path):
        tokenizer = Tokenizer.load(tokenizer)
    if tokenizer is None:
        raise ConfigError(
            f"A pipeline needs the tokenizer of its {type(model).__name__}; pass tokenizer=, or the folder that "
            "holds both as model=."
        )
    if not TASKS[task].fits(model):
        fitting = [name for name, kind in TASKS.items() if kind.fits(model)]
        raise ConfigError(
            f"Task '{task}' needs a model that {TASKS[task].needs}, and this {type(model).__name__} does not. "
            f"It can do: {', '.join(fitting)}."
        )
    if len(tokenizer) > model.config.vocab_size:
        raise ConfigError(
            f"The tokenizer has {len(tokenizer):,} tokens, but this {type(model).__name__} has vocab_size="
            f"{model.config.vocab_size:,}. Take the tokenizer that was saved with the model."
        )
    if device is not None:
        model.to(device)
    return TASKS[task](model, tokenizer, batch_size=batch_size)


class Pipeline:
    """What all tasks share; made by `pipeline`.

    Attributes:
        model: that does the task.
        tokenizer: its own.
        batch_size: texts that are run at a time.
        needs: what a model does that can do the task, in words.
    """

    needs: ClassVar[str]

    @staticmethod
    def fits(model: Any) -> bool:
        """Whether a model can do the task."""
        raise NotImplementedError

    def __init__(self, model: Any, tokenizer: Tokenizer, *, batch_size: int) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}, expected at least 1.")
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size

    def __call__(self, *texts: Any, **settings: Any) -> Any:
        """Do the task: each has settings of its own."""
        raise NotImplementedError

    def _batches(self, texts: Sequence[str], *, side: str = "right") -> Iterator[Batch]:
        """The texts in order, several at a time, shorter ones filled up on one side."""
        for text in texts:
            if not isinstance(text, str):
                raise DtypeError(
                    f"Expected a text or a list of texts; got a {type(text).__name__} among them."
                )
        rows = [read(self.model, self.tokenizer, text)["input_ids"][0] for text in texts]
        filling = self.tokenizer.padding
        for start in range(0, len(rows), self.batch_size):
            yield pad(
                rows[start : start + self.batch_size],
                padding=self.tokenizer.end_of_text or 0 if filling is None else filling,
                side=side,
            )


class FillMask(Pipeline):
    """The likeliest tokens in place of each mask token of a text."""

    needs = "fills gaps in a text"

    @staticmethod
    def fits(model: Any) -> bool:
        """With a head over the vocabulary, and all of the text in sight."""
        return fills(model)

    def __call__(
        self, text: str | Sequence[str], *, top_k: int = 5, targets: str | Sequence[str] = ()
    ) -> Any:
        """For each mask the likeliest tokens.

        Args:
            text: with at least one mask token in it, or a list of such texts.
            top_k: how many tokens for each mask.
            targets: only these are weighed; each has to be one token. Scores stay those among all tokens.

        Raises:
            DataError: a text without a mask token, or a target that is not one token.
        """
        if top_k < 1:
            raise ConfigError(f"top_k={top_k}, expected at least 1.")
        mask = self.tokenizer.mask
        if mask is None:
            raise ConfigError(
                "This tokenizer has no mask token, so there is nothing to fill. Take the tokenizer that was saved "
                "with the model."
            )
        texts = [text] if isinstance(text, str) else list(text)
        chosen = self._target_ids([targets] if isinstance(targets, str) else targets)
        found: list[Any] = []
        for batch in self._batches(texts):
            with no_grad():
                hidden = self.model(**batch)
            for row, ids in enumerate(batch["input_ids"]):
                places = np.flatnonzero(ids == mask)
                if not len(places):
                    raise DataError(
                        f"No mask token ({self.tokenizer.token(mask)}) found in the text: {texts[len(found)]!r}. "
                        "Put it where a token is to be guessed."
                    )
                with no_grad():
                    logits = self.model.head(hidden[row][places]).numpy().astype(np.float64)
                scores = np.exp(logits - logits.max(axis=-1, keepdims=True))
                scores /= scores.sum(axis=-1, keepdims=True)
                kept = ids[batch["attention_mask"][row] == 1]
                answers = [
                    self._answers(kept, int(place), own, top_k, chosen, alone=len(places) == 1)
                    for place, own in zip(places, scores, strict=True)
                ]
                found.append(answers[0] if len(answers) == 1 else answers)
        return found[0] if isinstance(text, str) else found

    def _answers(
        self,
        ids: Array,
        place: int,
        scores: Array,
        top_k: int,
        chosen: Array | None,
        *,
        alone: bool,
    ) -> Answer:
        """The best tokens at one place of one text."""
        candidates = np.arange(len(scores)) if chosen is None else chosen
        best = candidates[np.argsort(-scores[candidates], kind="stable")[:top_k]]
        answers = []
        for token in best.tolist():
            filled = ids.copy()
            filled[place] = token
            answers.append(
                {
                    "score": float(scores[token]),
                    "token": token,
                    "token_str": self.tokenizer.decode([token]),
                    # Of several masks the others are still to be seen.
                    "sequence": self.tokenizer.decode(filled, skip_special=alone),
                }
            )
        return answers

    def _target_ids(self, targets: Sequence[str]) -> Array | None:
        """Ids of the targets; None without any."""
        ids = []
        for target in targets:
            own = self.tokenizer.encode(target).tolist()
            if len(own) != 1 or own[0] == self.tokenizer.unknown:
                shown = ", ".join(repr(self.tokenizer.token(i)) for i in own) or "none"
                raise DataError(
                    f"Target {target!r} is {len(own)} token{'' if len(own) == 1 else 's'} ({shown}), and a mask stands "
                    "for one that is known. Choose targets that are one token."
                )
            ids += own
        return np.unique(ids) if ids else None


class TextGeneration(Pipeline):
    """Texts that go on from a prompt."""

    needs = "goes on from a text"

    @staticmethod
    def fits(model: Any) -> bool:
        """A model with one part that predicts the next token."""
        return writes(model)

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        return_full_text: bool = True,
        rng: Generator | None = None,
        **settings: Any,
    ) -> Any:
        """What follows each prompt.

        Args:
            text: a prompt, or a list of them.
            return_full_text: with the prompt before it.
            rng: draws the tokens where do_sample=True; nothing is drawn without it.
            **settings: of `tinyplm.generate.generate`: max_new_tokens (20 unless given), num_return_sequences,
                do_sample, temperature, top_k, top_p, num_beams and so on.

        Raises:
            ShapeError: a prompt and what is to follow are longer than the model's positions.
            ConfigError: settings that cannot be.
        """
        texts = [text] if isinstance(text, str) else list(text)
        found: list[Answer] = []
        for batch in self._batches(texts, side="left"):
            for prompt, rows in zip(
                texts[len(found) :], self._generated(batch, rng, settings), strict=False
            ):
                answers: Answer = []
                for ids, start in rows:
                    before = self.tokenizer.decode(ids[:start], skip_special=True)
                    whole = self.tokenizer.decode(ids, skip_special=True)
                    new = whole[len(before) :]
                    answers.append({"generated_text": prompt + new if return_full_text else new})
                found.append(answers)
        return found[0] if isinstance(text, str) else found

    def _generated(
        self, batch: Batch, rng: Generator | None, settings: dict[str, Any]
    ) -> list[list[tuple[Array, int]]]:
        """For each row the sequences that were made of it, without filling, and where the new tokens begin."""
        end = self.tokenizer.end_of_text
        made = generate(self.model, **batch, rng=rng, **({"eos_token_id": end} | settings))
        B, T = batch["input_ids"].shape
        first = np.argmax(batch["attention_mask"], axis=1)
        return [
            [(ids[first[row] :], T - int(first[row])) for ids in rows]
            for row, rows in enumerate(made.reshape(B, -1, made.shape[1]))
        ]


class Text2TextGeneration(Pipeline):
    """A text made of a text."""

    needs = "reads one text and writes another"

    @staticmethod
    def fits(model: Any) -> bool:
        """A model of two parts."""
        return translates(model)

    def __call__(
        self, text: str | Sequence[str], *, rng: Generator | None = None, **settings: Any
    ) -> Any:
        """What the model writes on reading each text.

        Args:
            text: what it reads, or a list of texts.
            rng: draws the tokens where do_sample=True; nothing is drawn without it.
            **settings: of `tinyplm.generate.generate`, as in text-generation.
        """
        texts = [text] if isinstance(text, str) else list(text)
        found: list[Answer] = []
        end = self.tokenizer.end_of_text
        for batch in self._batches(texts):
            made = generate(self.model, **batch, rng=rng, **({"eos_token_id": end} | settings))
            for rows in made.reshape(len(batch["input_ids"]), -1, made.shape[1]):
                found.append(
                    [
                        {"generated_text": self.tokenizer.decode(ids, skip_special=True)}
                        for ids in rows
                    ]
                )
        if isinstance(text, str):
            return found[0]
        return [one for answers in found for one in answers] if _all_single(found) else found


def _all_single(found: list[Answer]) -> bool:
    return all(len(answers) == 1 for answers in found)


class FeatureExtraction(Pipeline):
    """The hidden states of a text: one vector for each token."""

    needs = "reads text"

    @staticmethod
    def fits(model: Any) -> bool:
        """Any model does."""
        return True

    def __call__(self, text: str | Sequence[str], *, return_tensors: str | None = None) -> Any:
        """Hidden states (1, T, D) of each text, after the last layer; of the encoder where there are two parts.

        Args:
            text: a text, or a list of them.
            return_tensors: "np" for arrays; nested lists when None.
        """
        if return_tensors not in (None, "np"):
            raise ConfigError(
                f"return_tensors={return_tensors!r}; expected 'np' for arrays, or None for lists."
            )
        texts = [text] if isinstance(text, str) else list(text)
        found: list[Any] = []
        run = self.model.encode if translates(self.model) else self.model
        for batch in self._batches(texts):
            with no_grad():
                made = run(**batch)
            hidden_BTD = getattr(made, "annotations", made).numpy()  # as a Seq2Seq calls them
            for hidden, real in zip(hidden_BTD, batch["attention_mask"], strict=True):
                kept = hidden[None, real == 1]
                found.append(kept if return_tensors == "np" else kept.tolist())
        return found[0] if isinstance(text, str) else found


TASKS: dict[str, type[Pipeline]] = {
    "fill-mask": FillMask,
    "text-generation": TextGeneration,
    "text2text-generation": Text2TextGeneration,
    "feature-extraction": FeatureExtraction,
}
"""Every task by its name."""
