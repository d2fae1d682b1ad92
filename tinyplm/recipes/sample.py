"""What a model has learned, shown on a few lines at the end of a run."""

from typing import Any

import numpy as np

from ..analysis.reading import translates, writes
from ..autograd import no_grad
from ..autograd.ops.loss import IGNORED
from ..generate import generate
from ..kernels.precision import fixed_weights, precision
from .generate_text import first_token

SHOWN = 3
"""Examples of the held-out text that are shown."""


def sample(ready: Any) -> str:
    """Text that the model writes from nothing, or what it makes of a few examples that it did not learn from."""
    with precision(ready.run.products), fixed_weights():
        if writes(ready.model):
            return _continued(ready)
        if translates(ready.model):
            return _answered(ready)
        return _filled(ready)


def _continued(ready: Any) -> str:
    """A text from its beginning."""
    model, tokenizer, run = ready.model, ready.tokenizer, ready.run
    room = min(run.sample_tokens, run.positions - 1)
    if not room:
        return ""
    ids = generate(
        model,
        np.array([[first_token(tokenizer)]]),
        max_new_tokens=room,
        do_sample=True,
        temperature=0.8,
        top_k=50,
        rng=np.random.default_rng(run.seed),
    )[0, 1:]
    ends = np.flatnonzero(ids == tokenizer.end_of_text)
    documents = np.split(ids, ends)
    return "\n".join(tokenizer.decode(document, skip_special=True) for document in documents)


def _examples(ready: Any) -> dict[str, Any]:
    """The first rows that the objective makes of the held-out text."""
    batch = next(ready.held_out_batches.in_order())
    prepared = ready.objective.prepare(batch, rng=np.random.default_rng(ready.run.seed))
    return {name: np.asarray(values)[:SHOWN] for name, values in prepared.items()}


def _filled(ready: Any) -> str:
    """What the model puts in place of hidden tokens, in braces, and what stood there where it is wrong."""
    batch, tokenizer, lines = _examples(ready), ready.tokenizer, []
    if "labels" not in batch:
        return ""
    with no_grad():
        hidden = ready.objective.read(ready.model, batch)
        guesses = ready.model.head(hidden).numpy().argmax(axis=-1)
    for ids, labels, guessed in zip(batch["input_ids"], batch["labels"], guesses, strict=True):
        text = ""
        for token, label, guess in zip(ids, labels, guessed, strict=True):
            if label == IGNORED:
                plain = tokenizer.decode([token], skip_special=True)
                text += plain if tokenizer.kind == "byte-bpe" else _spaced(tokenizer, int(token))
                continue
            right = tokenizer.token(int(label)).strip("\u0120")
            guess_text = tokenizer.token(int(guess)).strip("\u0120")
            text += f" {{{right}}}" if guess == label else f" {{{guess_text}, not {right}}}"
        lines.append(" ".join(text.split()))
    return "\n".join(lines)


def _spaced(tokenizer: Any, token: int) -> str:
    """A token of a WordPiece tokenizer as it stands in a text."""
    if token in tokenizer.special_ids:
        return ""
    text: str = tokenizer.token(token)
    return text[2:] if text.startswith("##") else f" {text}"


def _answered(ready: Any) -> str:
    """What the model answers, and what was wanted."""
    batch, tokenizer, lines = _examples(ready), ready.tokenizer, []
    for row in range(len(batch["input_ids"])):
        given = batch["input_ids"][row : row + 1]
        mask = batch["attention_mask"][row : row + 1] if "attention_mask" in batch else None
        wanted = batch["labels"][row]
        wanted = wanted[wanted != IGNORED]
        answer = generate(
            ready.model,
            given,
            attention_mask=mask,
            max_new_tokens=len(wanted) + 4,
            eos_token_id=tokenizer.end_of_text,
        )[0, 1:]
        for title, ids in (("reads", given[0]), ("writes", answer), ("wanted", wanted)):
            lines.append(f"{title:<7} {tokenizer.decode(_without_padding(ids, tokenizer))}")
    return "\n".join(lines)


def _without_padding(ids: Any, tokenizer: Any) -> Any:
    return ids[ids != tokenizer.padding] if tokenizer.padding is not None else ids
