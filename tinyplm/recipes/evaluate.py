"""How well a trained model predicts a text, all of it, with a window that slides."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..analysis.reading import translates, writes
from ..errors import ConfigError, MissingFileError
from ..nn import quantize
from ..text import TokenFile, open_corpus, tokenize_corpus
from ..train.evaluate import Score, score_text
from ..types import Array
from .run import read_saved
from .trained import Trained

UNBOUNDED_WINDOW = 512
"""Tokens read at once by a model that has no longest context."""


@dataclass(frozen=True)
class Evaluation:
    """What a text cost, and which text it was.

    Attributes:
        score: nats per token, over `score.tokens` tokens that stand for `score.bytes` bytes.
        text: what was read, in a line.
        window: tokens read at once.
        stride: from one window to the next.
        float32: what the text cost before weights were quantised; None where they were not.
    """

    score: Score
    text: str
    window: int
    stride: int
    float32: Score | None = None


def evaluate(
    trained: Trained,
    data: str | None,
    *,
    held_out_of: str | Path | None = None,
    stride: int | None = None,
    encoding: str = "utf-8",
    text_column: str | None = None,
    quantized: str | None = None,
    on_start: Callable[[str, int], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Score a causal model on a text.

    Where the tokenizer has a token that ends a text, it goes before the first document, so that every token is
    predicted, and the end of each document is predicted too. Otherwise the first token has nothing before it: neither
    it nor its bytes count.

    Args:
        trained: the model.
        data: a file or folder of text; with None, the text that the run in `held_out_of` held out.
        held_out_of: the folder of a run.
        stride: tokens from one window to the next; half a window when None.
        encoding: of the text.
        text_column: of .csv, .tsv and .jsonl files.
        quantized: "int8" or "bfloat16" for weights in fewer bits; what they cost as they were is measured too.
        on_start: called with a line about the text, and the number of tokens to predict.
        on_progress: called now and then with how many tokens have been predicted; with `quantized` each counts twice.

    Raises:
        ConfigError: the model is not causal, or a stride that cannot be.
        MissingFileError, DataError: what the message says.
    """
    model, tokenizer = trained.model, trained.tokenizer
    if translates(model):
        raise ConfigError(
            f"A {type(model).__name__} reads one text and writes another: a text alone has no loss. What it lost on "
            "pairs that were held out stands in the metrics.jsonl of its run."
        )
    if not writes(model):
        raise ConfigError(
            f"A {type(model).__name__} does not predict from left to right, so it has no loss per token of a text."
        )
    window = model.config.positions or UNBOUNDED_WINDOW
    stride = max(1, window // 2) if stride is None else stride
    if not 1 <= stride <= window:
        raise ConfigError(f"stride is {stride}, expected 1 to {window}, the model's positions.")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        if data is None:
            ids, text_bytes, text = _held_out(held_out_of)
        else:
            corpus = open_corpus(data, encoding=encoding, column=text_column)
            tokens = tokenize_corpus(corpus, tokenizer, Path(folder) / "tokens.bin")
            ids, text_bytes, text = tokens[:], tokens.text_bytes, corpus.description
            del tokens  # its file is open until then, and Windows deletes no open file
            if tokenizer.end_of_text is not None:
                ids = np.concatenate([[tokenizer.end_of_text], ids])
            else:
                text_bytes -= int(tokenizer.token_bytes[ids[0]])
    if on_start is not None:
        on_start(text, len(ids) - 1)
    before = None
    if quantized is not None:
        before = score_text(
            model, ids, text_bytes=text_bytes, window=window, stride=stride, on_progress=on_progress
        )
        model = quantize(model, quantized)
    done = 0 if before is None else before.tokens
    score = score_text(
        model,
        ids,
        text_bytes=text_bytes,
        window=window,
        stride=stride,
        on_progress=on_progress and (lambda count: on_progress(done + count)),
    )
    return Evaluation(score, text, window, stride, before)


def _held_out(folder: str | Path | None) -> tuple[Array, int, str]:
    """The tokens that a run held out, after the last that it learned from."""
    if folder is None or not (Path(folder) / "run.json").is_file():
        raise MissingFileError(
            "No text to evaluate on: name a file or folder with --data. Only the folder of a run has a text of its "
            "own, the part that was held out."
        )
    run = read_saved(Path(folder))
    training, held_out = TokenFile.open(Path(folder) / "tokens.bin").split(run.validation)
    ids = np.concatenate([training[len(training) - 1 :], held_out[:]])
    return ids, held_out.text_bytes, f"the last {100 * run.validation:g} % of the run's text"
