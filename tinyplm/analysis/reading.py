"""A text as a model of its kind reads it, and tokens as people read them."""

from typing import Any

import numpy as np

from ..errors import ConfigError, DataError
from ..text import Tokenizer
from ..text.kinds import byte_symbols
from ..types import Batch


def writes(model: Any) -> bool:
    """Whether a model goes on from a text, such as GPT-2."""
    return hasattr(model, "next_logits") and not translates(model)


def translates(model: Any) -> bool:
    """Whether a model reads one text and writes another, such as T5."""
    return hasattr(model, "conditioned")


def fills(model: Any) -> bool:
    """Whether a model fills gaps in a text, such as BERT with the head that it was pretrained with."""
    return not writes(model) and not translates(model) and getattr(model, "head", None) is not None


def read(model: Any, tokenizer: Tokenizer, text: str, pair: str | None = None) -> Batch:
    """A batch of one text, or of a pair, with the special tokens that its kind of model knows.

    A model that writes gets the text alone; one that translates gets the end of text behind it; any other gets what
    the tokenizer puts around a text, such as [CLS] and [SEP].

    Raises:
        ConfigError: a pair for a model that reads one text.
        DataError: no token in it, or characters that the tokenizer does not know.
    """
    segments = None
    if pair is not None and (writes(model) or translates(model)):
        raise ConfigError(
            f"A {type(model).__name__} reads one text, and two were given; write them as one text, or take a model "
            "such as BERT, which reads pairs."
        )
    if pair is not None:
        ids, segments = tokenizer.encode_pair(text, pair)
    else:
        ids = tokenizer.encode(text, add_special_tokens=not (writes(model) or translates(model)))
        end = tokenizer.end_of_text
        if translates(model) and end is not None and (not len(ids) or ids[-1] != end):
            ids = np.append(ids, end)
    if not len(ids):
        raise DataError("The text is empty; a model needs at least one token.")
    batch: Batch = {"input_ids": ids[None], "attention_mask": np.ones((1, len(ids)), np.int64)}
    if segments is not None and getattr(model.config, "segments", 1) > 1:
        batch["token_type_ids"] = segments[None]
    return batch


def shown_token(tokenizer: Tokenizer, token: int) -> str:
    r"""A token as text in quotes, so that spaces and line ends can be seen; parts of characters as \xed and such."""
    if token in tokenizer.special_ids:
        return tokenizer.token(token)
    text = tokenizer.token(token)
    if tokenizer.kind in ("bytes", "byte-bpe") and _BYTES.keys() >= set(text):
        raw = bytes(_BYTES[symbol] for symbol in text)
        text = raw.decode("utf-8", errors="backslashreplace")
        return "'" + text.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t") + "'"
    return repr(text)


_BYTES = {symbol: byte for byte, symbol in enumerate(byte_symbols())}


def label(tokenizer: Tokenizer, token: int) -> str:
    """A token as a short label: without quotes, each space in it an open box."""
    text = shown_token(tokenizer, token)
    if token in tokenizer.special_ids:
        return text
    return text[1:-1].replace("\u2581", " ").replace(" ", "\u2423")  # sentencepiece's space, too
