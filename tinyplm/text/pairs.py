"""Pairs of texts, a source and a target: read from a table, kept as ids on disk, and cut into batches.

A pair is a row of a .tsv or .csv, or an object of a .jsonl; its columns are called source and target, or are the first
two. As with token files, the ids lie in one file that is mapped into memory, and beside it a .json of the same stem.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, DataError, MissingFileError, TinyplmWarning
from ..types import Array, Batch
from .batching import check_goes_on, pad, permuted
from .corpus import _hash, _is_header, _jsonl_records, _missing, _rows, _size, _some
from .decoding import find_codec
from .tokenizer import Tokenizer

_GROUP = 4_096  # pairs tokenized at a time
_FORMAT = 1
_POOL = 64  # batches whose pairs are sorted by length together
_NAMES = ("source", "target")


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Pairs of texts that can be read any number of times; made by `open_pairs`.

    Attributes:
        name: what it was opened from, for messages.
        description: one line to print: what was found and how it is read.
        bytes: size of the file.
        fingerprint: changes when the file or the way of reading it does.
        read: gives the pairs anew.
    """

    name: str
    description: str
    bytes: int
    fingerprint: str
    read: Callable[[], Iterator[tuple[str, str]]]

    def documents(self) -> Iterator[str]:
        """Every source and target that is not empty, for training a tokenizer on both."""
        for pair in self.read():
            yield from (text for text in pair if text)


def open_pairs(path: str | os.PathLike[str], *, encoding: str = "utf-8") -> Pairs:
    """Find out which two columns a file has; the pairs themselves are read later.

    Args:
        path: a .tsv, .csv or .jsonl file. A .tsv has no quoting.
        encoding: of the file. A byte order mark is accepted.

    Raises:
        MissingFileError: nothing there.
        DataError: no two columns, or a file that cannot be read.
        ConfigError: an encoding that does not exist.
    """
    path = Path(path)
    if not path.exists():
        raise MissingFileError(_missing(path))
    kind = {".tsv": "tsv", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}.get(
        path.suffix.lower()
    )
    if kind is None or not path.is_file():
        raise DataError(
            f"{path} is {'a folder' if path.is_dir() else f'a {path.suffix or chr(34) * 2} file'}, but pairs of texts "
            "are read from one .tsv, .csv or .jsonl file with two columns, source and target."
        )
    if not path.stat().st_size:
        raise DataError(f"{path.name} is empty (0 bytes). Is this the file you meant?")
    try:
        read_as, codec = find_codec(path, encoding)
    except LookupError:
        raise ConfigError(
            f"no encoding {encoding!r}; for example: utf-8, cp949, utf-16, latin-1."
        ) from None
    if kind == "jsonl":
        fields = _fields(path, codec)
        read: Callable[[], Iterator[tuple[str, str]]] = lambda: _of_objects(path, codec, fields)  # noqa: E731
        shown = f"fields {fields[0]!r} and {fields[1]!r}"
    else:
        first, second, header = _columns(path, codec, kind)
        read = lambda: _of_rows(path, codec, kind, first, second, bool(header))  # noqa: E731
        named = f"{header[first]!r} and {header[second]!r}" if header else "0 and 1, no header"
        shown = f"columns {named}"
    stat = path.stat()
    return Pairs(
        name=str(path),
        description=f"{path}: pairs of a {kind}, {shown}, as {read_as}, {_size(stat.st_size)}",
        bytes=stat.st_size,
        fingerprint=_hash([str(path.resolve()), stat.st_size, stat.st_mtime_ns, encoding, shown]),
        read=read,
    )


def _columns(file: Path, codec: str, kind: str) -> tuple[int, int, list[str]]:
    """Which two columns hold the texts, and the names of all, none if there is no header."""
    rows = [row for _, row in islice(_rows(file, codec, kind), 100)]
    if not rows:
        raise DataError(f"{file.name} has no rows, only white space.")
    first, rest = rows[0], rows[1:]
    if len(first) < 2:
        other = "," if kind == "tsv" else "\t"
        hint = {
            "tsv": "Is it separated by commas? Then name it .csv. ",
            "csv": "Is it separated by tabs? Then name it .tsv. ",
        }[kind]
        raise DataError(
            f"{file.name} has {len(first)} column ({first[0][:40]!r} in its first row), but pairs of texts need two: "
            f"source and target. {hint if other in first[0] else ''}Put a {'tab' if kind == 'tsv' else 'comma'} "
            "between them, and if you like a first row that names them: source and target."
        )
    lower = [cell.strip().lower() for cell in first]
    if set(_NAMES) <= set(lower):
        return lower.index("source"), lower.index("target"), first
    return 0, 1, first if _is_header(first, rest) else []


def _of_rows(
    file: Path, codec: str, kind: str, first: int, second: int, header: bool
) -> Iterator[tuple[str, str]]:
    width = None
    for number, row in _rows(file, codec, kind):
        width = width or len(row)
        if len(row) != width:
            hint = (
                "A .tsv has no quoting: a tab or a line break inside a cell splits it."
                if kind == "tsv"
                else "Is a quotation mark missing, or a comma not quoted?"
            )
            raise DataError(
                f"{file.name}, line {number}: {len(row)} cells, but the first row has {width}. {hint}"
            )
        if header:
            header = False
        else:
            yield row[first], row[second]


def _fields(file: Path, codec: str) -> tuple[str, str]:
    """Which two fields hold the texts."""
    found = [record for _, record in islice(_jsonl_records(file, codec), 1)]
    if not found:
        raise DataError(f"{file.name} holds no records, only white space.")
    record = found[0]
    strings = (
        [k for k, v in record.items() if isinstance(v, str)] if isinstance(record, dict) else []
    )
    if set(_NAMES) <= set(strings):
        return _NAMES
    if len(strings) < 2:
        seen = _some(list(record)) if isinstance(record, dict) else "a string"
        raise DataError(
            f"{file.name}, line 1: pairs of texts need two fields that hold strings; found {seen}. Write each line as "
            '{"source": "...", "target": "..."}.'
        )
    return strings[0], strings[1]


def _of_objects(file: Path, codec: str, fields: tuple[str, str]) -> Iterator[tuple[str, str]]:
    for number, record in _jsonl_records(file, codec):
        texts = [record.get(name) if isinstance(record, dict) else None for name in fields]
        for name, text in zip(fields, texts, strict=True):
            if not isinstance(text, str):
                raise DataError(
                    f"{file.name}, line {number}: field {name!r} is {json.dumps(text)[:40]}, not a string. Every line "
                    f"needs {fields[0]!r} and {fields[1]!r}."
                )
        yield str(texts[0]), str(texts[1])


@dataclass(frozen=True, kw_only=True)
class PairFile:
    """The ids of pairs, mapped into memory.

    Attributes:
        tokens: all ids in order, source and target in turn, read from disk as they are used.
        lengths: (N, 3) of each pair: tokens of the source, of the target, and bytes of the target.
        starts: (N,) where the source of each pair begins.
        unknown: how many ids of the whole file are the unknown token's.
        vocab_size: of the tokenizer.
        path: where the ids lie.
    """

    tokens: Array
    lengths: Array
    starts: Array
    unknown: int
    vocab_size: int
    path: Path

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "PairFile":
        """The file written by `tokenize_pairs` at this path.

        Raises:
            MissingFileError: one of the two files is not there.
            DataError: they are damaged or do not fit each other.
        """
        path = Path(path)
        return cls._open(path, _read_record(path))

    @classmethod
    def _open(cls, path: Path, record: dict[str, Any]) -> "PairFile":
        try:
            dtype, count = np.dtype(record["dtype"]), int(record["count"])
            pairs, unknown = int(record["pairs"]), int(record["unknown"])
            vocab_size = int(record["vocab_size"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path.with_suffix('.json')} is damaged ({error!r}). Delete it; it is made anew."
            ) from None
        if not path.is_file():
            raise MissingFileError(
                f"{path} is missing, but {path.with_suffix('.json').name} is there."
            )
        expected, size = 12 * pairs + count * dtype.itemsize, path.stat().st_size
        if size != expected or not pairs:
            raise DataError(
                f"{path} has {size:,} bytes; expected {expected:,} ({pairs:,} pairs, {count:,} tokens of "
                f"{dtype.itemsize} bytes). It is damaged: delete it; it is made anew."
            )
        table = np.memmap(path, np.uint32, mode="r", shape=(pairs, 3))
        lengths = np.array(table, np.int64)
        if lengths[:, :2].sum() != count:
            raise DataError(
                f"{path} is damaged: its pairs have {lengths[:, :2].sum():,} tokens, and {count:,} are there. Delete "
                "it; it is made anew."
            )
        tokens: Array = np.zeros(0, dtype)
        if count:
            tokens = np.memmap(path, dtype, mode="r", offset=12 * pairs, shape=(count,))
        ends = lengths[:, :2].sum(axis=1).cumsum()
        return cls(
            tokens=tokens,
            lengths=lengths,
            starts=ends - lengths[:, :2].sum(axis=1),
            unknown=unknown,
            vocab_size=vocab_size,
            path=path,
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> tuple[Array, Array]:
        """Source and target of a pair, int64."""
        start, (source, target, _) = self.starts[number], self.lengths[number]
        ids = np.asarray(self.tokens[start : start + source + target], np.int64)
        return ids[:source], ids[source:]

    @property
    def text_bytes(self) -> int:
        """Bytes of UTF-8 of the targets, which are what is predicted."""
        return int(self.lengths[:, 2].sum())

    def split(self, validation: float = 0.1) -> tuple["PairFile", "PairFile"]:
        """The first part for training, the last `validation` of the pairs for validation."""
        if not 0 <= validation < 1:
            raise ConfigError(f"validation must be at least 0 and below 1; got {validation}")
        cut = len(self) - int(len(self) * validation + 0.5)
        if validation and len(self) > 1:
            cut = min(cut, len(self) - 1)
        first, last = slice(0, cut), slice(cut, None)
        return (
            replace(self, lengths=self.lengths[first], starts=self.starts[first]),
            replace(self, lengths=self.lengths[last], starts=self.starts[last]),
        )

    def digest(self) -> str:
        """A hash of all pairs, to tell whether they are still what they were."""
        found = hashlib.sha256(np.ascontiguousarray(self.lengths).data)
        found.update(self.tokens.data)
        return found.hexdigest()


def tokenize_pairs(pairs: Pairs, tokenizer: Tokenizer, path: str | os.PathLike[str]) -> PairFile:
    """Write the ids of all pairs to `path`, or open what lies there if it is the same.

    Warns:
        TinyplmWarning: more than 5 % of the tokens are unknown.

    Raises:
        DataError: there are no pairs, or they cannot be read.
    """
    path = Path(path)
    if path.suffix == ".json":
        raise ConfigError(f"{path}: a pair file may not end in .json; use .bin.")
    record_path = path.with_suffix(".json")
    fingerprint = _hash([_FORMAT, pairs.fingerprint, tokenizer.fingerprint])
    try:
        record = _read_record(path)
        if record.get("fingerprint") == fingerprint:
            return PairFile._open(path, record)
    except (MissingFileError, DataError):
        pass  # nothing usable: it is made below
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    ids_only = path.with_name(f"{path.name}.{os.getpid()}.ids.tmp")
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    lengths: list[tuple[int, int, int]] = []
    count = unknown = 0
    try:
        with ids_only.open("wb") as file:
            source = pairs.read()
            while group := list(islice(source, _GROUP)):
                found = tokenizer.encode_batch([text for pair in group for text in pair])
                for i, (_, target) in enumerate(group):
                    lengths.append((len(found[2 * i]), len(found[2 * i + 1]), len(target.encode())))
                ids = np.concatenate(found)
                if tokenizer.unknown is not None:
                    unknown += int((ids == tokenizer.unknown).sum())
                ids.astype(dtype).tofile(file)
                count += len(ids)
        if not lengths:
            raise DataError(f"{pairs.name} holds no pairs beside its header.")
        if unknown > 0.05 * count:
            warnings.warn(
                f"{100 * unknown / count:.0f} % of the {count:,} tokens of {pairs.name} are unknown. The tokenizer "
                "does not match this text (Korean text, English vocabulary?). Train one: tinyplm tokenizer train "
                f"--data {pairs.name} --vocab-size 8000.",
                TinyplmWarning,
                stacklevel=2,
            )
        with temporary.open("wb") as file, ids_only.open("rb") as ids_file:
            np.array(lengths, np.uint32).tofile(file)
            while block := ids_file.read(1 << 20):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        # The record goes first and comes back last, so that it never describes another file.
        record_path.unlink(missing_ok=True)
        os.replace(temporary, path)
        record = {
            "format": _FORMAT,
            "fingerprint": fingerprint,
            "source": pairs.description,
            "tokenizer": tokenizer.description,
            "dtype": dtype.name,
            "count": count,
            "pairs": len(lengths),
            "unknown": unknown,
            "vocab_size": tokenizer.vocab_size,
        }
        temporary.write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")
        os.replace(temporary, record_path)
    finally:
        temporary.unlink(missing_ok=True)
        ids_only.unlink(missing_ok=True)
    return PairFile._open(path, record)


class PairBatches:
    """Endless batches of pairs of similar length, padded on the right.

    Each epoch visits every pair once in an order of its own: pairs are shuffled, those of a few dozen batches are
    sorted by length, and the batches they are cut into are shuffled. All follows from seed and epoch.

        input_ids, attention_mask       (B, S) int64, the sources
        target_ids, target_mask         (B, T) int64

    Args:
        pairs: a `PairFile`, or anything with a length, `lengths` and pairs of ids by number.
        length: the longest source and target, with one token more that marks its end; longer pairs are left out.
        batch: pairs in a batch; the last of an epoch may have fewer.
        seed: of the order.
        padding: the id to fill up with.

    Warns:
        TinyplmWarning: pairs are left out.

    Raises:
        DataError: no pair is short enough.
        ConfigError: a length, batch or seed that cannot be.
    """

    def __init__(
        self, pairs: Any, *, length: int, batch: int, seed: int = 0, padding: int = 0
    ) -> None:
        if length < 1 or batch < 1 or seed < 0:
            raise ConfigError(
                f"length and batch must be at least 1 and seed at least 0; got length={length}, batch={batch}, "
                f"seed={seed}"
            )
        self.pairs = pairs
        self.length = length
        self.batch = batch
        self.seed = seed
        self.padding = padding
        lengths = np.asarray(pairs.lengths)[:, :2]
        self._kept = np.flatnonzero((lengths < length).all(axis=1))
        self._sums = lengths.sum(axis=1)
        left_out = len(lengths) - len(self._kept)
        longest = int(lengths.max(initial=0))
        if not len(self._kept):
            raise DataError(
                f"All {len(lengths):,} pairs are too long for {length} positions, with one for the end: the longest "
                f"text has {longest:,} tokens. Raise --positions to {longest + 1:,}, or shorten the texts."
            )
        if left_out:
            warnings.warn(
                f"{left_out:,} of {len(lengths):,} pairs are left out, as a text of theirs has more than {length - 1} "
                f"tokens, which {length} positions with one for the end do not hold. --positions {longest + 1} reads "
                "all.",
                TinyplmWarning,
                stacklevel=3,
            )
        self.per_epoch = -(-len(self._kept) // batch)
        self._start(0, 0)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch."""
        if self._cursor == self.per_epoch:
            self._start(self._epoch + 1, 0)
        rows = self._order[self._cursor]
        self._cursor += 1
        return self._padded(rows)

    def state(self) -> dict[str, int]:
        """Where it stands, for JSON."""
        return {
            "epoch": self._epoch,
            "cursor": self._cursor,
            "seed": self.seed,
            "length": self.length,
            "batch": self.batch,
            "pairs": len(self.pairs),
        }

    def restore(self, state: dict[str, int]) -> None:
        """Go on from a `state`, with the same batches as if never stopped.

        Raises:
            ConfigError: the state is of other pairs, or of another length, batch or seed.
        """
        check_goes_on(state, self.state(), "seed", "length", "batch", "pairs")
        self._start(int(state["epoch"]), int(state["cursor"]))

    def in_order(self) -> Iterator[Batch]:
        """Every pair once, as they stand in the file, for evaluation. The endless iterator does not move."""
        for start in range(0, len(self._kept), self.batch):
            yield self._padded(self._kept[start : start + self.batch])

    def _start(self, epoch: int, cursor: int) -> None:
        """Derive the order of an epoch from seed and epoch."""
        keys = np.random.SeedSequence([self.seed, epoch]).generate_state(12, np.uint64)
        count, pool = len(self._kept), _POOL * self.batch
        shuffled = self._kept[permuted(np.arange(count, dtype=np.uint64), count, list(keys[:6]))]
        batches: list[Array] = []
        for start in range(0, count, pool):
            rows = shuffled[start : start + pool]
            rows = rows[np.argsort(self._sums[rows], kind="stable")]
            batches += [rows[i : i + self.batch] for i in range(0, len(rows), self.batch)]
        places = np.arange(len(batches), dtype=np.uint64)
        self._order = [batches[i] for i in permuted(places, len(batches), list(keys[6:])).tolist()]
        self._epoch = epoch
        self._cursor = cursor

    def _padded(self, rows: Array) -> Batch:
        chosen = [self.pairs[int(row)] for row in rows]
        sources = pad([source for source, _ in chosen], padding=self.padding)
        targets = pad([target for _, target in chosen], padding=self.padding)
        return sources | {
            "target_ids": targets["input_ids"],
            "target_mask": targets["attention_mask"],
        }


def _read_record(path: Path) -> dict[str, Any]:
    record = path.with_suffix(".json")
    try:
        data = json.loads(record.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingFileError(
            f"no pair file at {path}: {record.name} is not there. Make one with tokenize_pairs."
        ) from None
    except ValueError as error:
        raise DataError(f"{record} is damaged ({error}). Delete it; it is made anew.") from None
    if not isinstance(data, dict):
        raise DataError(f"{record} is not the record of a pair file. Delete it; it is made anew.")
    return data
