"""The ids of a whole corpus in one file, mapped into memory.

Training then needs no more memory for a large corpus than for a small one.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, DataError, MissingFileError, TinyplmWarning
from ..types import Array
from .corpus import Corpus, Piece
from .tokenizer import Tokenizer

_BATCH = 1 << 20  # characters tokenized, or tokens counted, at a time
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class TokenFile:
    """The ids of a corpus, mapped into memory.

    Attributes:
        tokens: all ids in order, (N,) uint16 or uint32, read from disk as they are used.
        text_bytes: bytes of UTF-8 that the ids stand for, so that loss can be told per byte.
        documents: how many documents there are; each is followed by the end-of-text id, if the
            tokenizer has one.
        unknown: how many ids are the unknown token's.
        vocab_size: of the tokenizer.
        token_bytes: bytes each id stands for, (V,).
        path: where the ids lie.
    """

    tokens: Array
    text_bytes: int
    documents: int
    unknown: int
    vocab_size: int
    token_bytes: Array
    path: Path

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "TokenFile":
        """The file written by `tokenize_corpus` at this path.

        Raises:
            MissingFileError: one of the two files is not there.
            DataError: they are damaged or do not fit each other.
        """
        return cls._open(Path(path), _read_record(Path(path)))

    @classmethod
    def _open(cls, path: Path, record: dict[str, Any]) -> "TokenFile":
        try:
            dtype, count = np.dtype(record["dtype"]), int(record["count"])
            fields = {
                k: int(record[k]) for k in ("text_bytes", "documents", "unknown", "vocab_size")
            }
            token_bytes = np.array(record["token_bytes"], np.int64)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{_record_path(path)} is damaged ({error!r}). Delete it; it is made anew."
            ) from None
        if not path.is_file():
            raise MissingFileError(f"{path} is missing, but {_record_path(path).name} is there.")
        size = path.stat().st_size
        if size != count * dtype.itemsize or not count:
            raise DataError(
                f"{path} has {size:,} bytes; expected {count * dtype.itemsize:,} ({count:,} tokens "
                f"of {dtype.itemsize} bytes). It is damaged: delete it; it is made anew."
            )
        tokens = np.memmap(path, dtype=dtype, mode="r", shape=(count,))
        return cls(tokens=tokens, token_bytes=token_bytes, path=path, **fields)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, key: int | slice) -> Array:
        """The ids there, as int64."""
        return np.asarray(self.tokens[key], dtype=np.int64)

    def split(self, validation: float = 0.1) -> tuple["TokenFile", "TokenFile"]:
        """The first part for training, the last `validation` of the tokens for validation.

        `text_bytes` of the parts add up to that of the whole. They are exact where every token
        stands for fixed bytes (chars, bytes, byte-bpe); else the bytes are divided in proportion
        to the lengths of the tokens. `documents` and `unknown` stay those of the whole.
        """
        if not 0 <= validation < 1:
            raise ConfigError(f"validation must be at least 0 and below 1; got {validation}")
        cut = int(len(self) * (1 - validation))
        first, last = (self._weight(part) for part in (self.tokens[:cut], self.tokens[cut:]))
        held_out = self.text_bytes * last // max(1, first + last)
        return (
            replace(self, tokens=self.tokens[:cut], text_bytes=self.text_bytes - held_out),
            replace(self, tokens=self.tokens[cut:], text_bytes=held_out),
        )

    def digest(self) -> str:
        """A hash of all ids, to tell whether they are still what they were."""
        return hashlib.sha256(self.tokens.data).hexdigest()

    def _weight(self, tokens: Array) -> int:
        """Bytes of these tokens by the table, counted in blocks so that memory stays small."""
        return sum(
            int(self.token_bytes[tokens[i : i + _BATCH]].sum())
            for i in range(0, len(tokens), _BATCH)
        )


def tokenize_corpus(
    corpus: Corpus, tokenizer: Tokenizer, path: str | os.PathLike[str]
) -> TokenFile:
    """Write the ids of all documents to `path`, or open what lies there if it is the same.

    Beside it lies a .json of the same stem, which says how it was made. A file is written under
    another name and renamed when it is whole. The end-of-text id follows each document.

    Warns:
        TinyplmWarning: more than 5 % of the tokens of the first 1,000 lines are unknown.

    Raises:
        DataError: there is no text, or it cannot be read.
    """
    path = Path(path)
    fingerprint = _hash([_FORMAT, corpus.fingerprint, tokenizer.fingerprint])
    try:
        record = _read_record(path)
        if record.get("fingerprint") == fingerprint:
            return TokenFile._open(path, record)
    except (MissingFileError, DataError):
        pass  # nothing usable: it is made below
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    count = text_bytes = documents = unknown = 0
    end = tokenizer.end_of_text
    separator = np.array([] if end is None else [end], np.int64)
    try:
        with temporary.open("wb") as file:
            open_document = False
            for batch in _batches(corpus.pieces()):
                texts = [piece.text for piece in batch]
                if not count:
                    _warn_of_unknown(batch, tokenizer, corpus.name)
                for piece, ids in zip(batch, tokenizer.encode_batch(texts), strict=True):
                    open_document = open_document or len(ids) > 0
                    ends = piece.ends_document and open_document
                    if ends:
                        documents += 1
                        open_document = False
                    if tokenizer.unknown is not None:
                        unknown += int((ids == tokenizer.unknown).sum())
                    if ends:
                        ids = np.concatenate([ids, separator])
                    ids.astype(dtype).tofile(file)
                    count += len(ids)
                text_bytes += sum(len(text.encode()) for text in texts)
            file.flush()
            os.fsync(file.fileno())
        if not count:
            raise DataError(f"{corpus.name} holds no text: {text_bytes} bytes, 0 tokens.")
        # The record goes first and comes back last, so that it never describes another file.
        _record_path(path).unlink(missing_ok=True)
        os.replace(temporary, path)
        record = {
            "format": _FORMAT,
            "fingerprint": fingerprint,
            "source": corpus.description,
            "tokenizer": tokenizer.description,
            "dtype": dtype.name,
            "count": count,
            "text_bytes": text_bytes,
            "documents": documents,
            "unknown": unknown,
            "vocab_size": tokenizer.vocab_size,
            "token_bytes": tokenizer.token_bytes.tolist(),
        }
        temporary.write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")
        os.replace(temporary, _record_path(path))
    finally:
        temporary.unlink(missing_ok=True)
    return TokenFile._open(path, record)


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text) + 1
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _warn_of_unknown(batch: list[Piece], tokenizer: Tokenizer, name: str) -> None:
    if tokenizer.unknown is None:
        return
    text = "".join(piece.text + "\n" * piece.ends_document for piece in batch)
    sample = [line for line in text.split("\n") if line.strip()][:1000]
    ids = tokenizer.encode("\n".join(sample))
    share = float((ids == tokenizer.unknown).mean()) if len(ids) else 0.0
    if share > 0.05:
        warnings.warn(
            f"{100 * share:.0f} % of tokens in a {len(sample):,}-line sample are unknown. The "
            "tokenizer does not match this text (Korean text, English vocabulary?). Train one: "
            f"tinyplm tokenizer train --data {name} --vocab-size 8000.",
            TinyplmWarning,
            stacklevel=3,
        )


def _record_path(path: Path) -> Path:
    return path.with_suffix(".json")


def _read_record(path: Path) -> dict[str, Any]:
    record = _record_path(path)
    if record == path:
        raise ConfigError(f"{path}: a token file may not end in .json; use .bin.")
    try:
        data = json.loads(record.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingFileError(
            f"no token file at {path}: {record.name} is not there. Make one with tokenize_corpus."
        ) from None
    except ValueError as error:
        raise DataError(f"{record} is damaged ({error}). Delete it; it is made anew.") from None
    if not isinstance(data, dict):
        raise DataError(f"{record} is not the record of a token file. Delete it; it is made anew.")
    return data


def _hash(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
