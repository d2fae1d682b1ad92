"""Documents in.

A corpus is read from

    nothing           Python's own documentation, which is on every machine that runs this
    .txt .text .md    one document (or one per paragraph block, see `open_corpus`)
    .jsonl .ndjson    one JSON object, or one string, a line; each is a document
    .csv .tsv         one document a row, from one column; a .tsv has no quoting
    a folder          all of these in it and below it, in the order of their names

All of it is read as UTF-8 unless another encoding is named, and streamed: a large text file comes
in pieces cut before white space, where tokenizers cut too. Every line end becomes a line feed.
"""

import codecs
import csv
import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ConfigError, DataError, MissingFileError
from . import python_documentation
from .cutting import last_cut
from .decoding import decoded, find_codec, lines_of

_LONGEST = 1 << 22  # characters of one piece, if there is no white space to cut at

_KINDS = {
    **dict.fromkeys((".txt", ".text", ".md"), "text"),
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
    ".csv": "csv",
    ".tsv": "tsv",
}


class Piece(NamedTuple):
    """Part of a document, in order; `ends_document` is true of its last part."""

    text: str
    ends_document: bool


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Documents that can be read any number of times; made by `open_corpus`.

    Attributes:
        name: what it was opened from, for messages.
        description: one line to print: what was found and how it is read.
        bytes: size of the files, or of the text where there are none.
        fingerprint: changes when a file or the way of reading it does.
        skipped: files of a folder that are not read.
    """

    name: str
    description: str
    bytes: int
    fingerprint: str
    skipped: tuple[str, ...] = ()
    sources: tuple[Callable[[], Iterator[Piece]], ...] = ()

    def pieces(self) -> Iterator[Piece]:
        """All text in order, long documents in several pieces; nothing is held in memory."""
        for source in self.sources:
            yield from source()

    def documents(self) -> Iterator[str]:
        """Whole documents in order, without the empty ones."""
        parts: list[str] = []
        for text, ends_document in self.pieces():
            parts.append(text)
            if ends_document:
                document = "".join(parts)
                parts = []
                if document:
                    yield document


def open_corpus(
    path: str | os.PathLike[str] | None = None,
    *,
    encoding: str = "utf-8",
    column: str | int | None = None,
    blank_line_ends_document: bool = False,
) -> Corpus:
    """Find out what is there and how to read it; the text itself is read later.

    Args:
        path: a file or a folder; None for Python's own documentation.
        encoding: of every file. A byte order mark is accepted, and decides if this is utf-8.
        column: the column of a csv or tsv, by name or by number from 0, or the field of a jsonl.
            Unless given, a field "text", else the one with the longest texts.
        blank_line_ends_document: in text files, for objectives that need many documents.

    Raises:
        MissingFileError: nothing there.
        DataError: nothing in it that can be read.
        ConfigError: an encoding that does not exist.
    """
    if path is None:
        return _python_documentation()
    try:
        codecs.lookup(encoding)
    except LookupError:
        raise ConfigError(
            f"no encoding {encoding!r}; for example: utf-8, cp949, utf-16, latin-1, shift_jis."
        ) from None
    path = Path(path)
    if not path.exists():
        raise MissingFileError(_missing(path))
    skipped: list[str] = []
    if path.is_dir():
        files = []
        for file in sorted(path.rglob("*"), key=lambda p: p.relative_to(path).as_posix()):
            name = file.relative_to(path).as_posix()
            if not file.is_file() or any(part.startswith(".") for part in name.split("/")):
                continue
            if file.suffix.lower() in _KINDS and file.stat().st_size:
                files.append(file)
            else:
                skipped.append(name)
        if not files:
            found = f"found {_some(skipped)}" if skipped else "found no files"
            raise DataError(
                f"{path}: nothing to read in this folder. Expected files ending in "
                f"{', '.join(_KINDS)} that are not empty; {found}."
            )
    else:
        files = [path]
    sources = []
    notes: Counter[str] = Counter()
    for file in files:
        read, note = _source(file, encoding, column, blank_line_ends_document)
        sources.append(read)
        notes[note] += 1
    stats = [file.stat() for file in files]
    size = sum(stat.st_size for stat in stats)
    shown = ", ".join(f"{n} x {note}" if n > 1 else note for note, n in notes.items())
    description = f"{path}: {len(files)} files, {shown}" if path.is_dir() else f"{path}: {shown}"
    description += f", {_size(size)}"
    if skipped:
        description += f"; skipped {_some(skipped)}"
    listing = [
        (str(file.relative_to(path)), stat.st_size, stat.st_mtime_ns)
        for file, stat in zip(files, stats, strict=True)
    ]
    return Corpus(
        name=str(path),
        description=description,
        bytes=size,
        fingerprint=_hash(
            [str(path.resolve()), listing, encoding, column, blank_line_ends_document]
        ),
        skipped=tuple(skipped),
        sources=tuple(sources),
    )


def _source(
    file: Path, encoding: str, column: str | int | None, blank_line: bool
) -> tuple[Callable[[], Iterator[Piece]], str]:
    """A way to read the file, and a few words about it."""
    if not file.stat().st_size:
        raise DataError(f"{file.name} is empty (0 bytes). Is this the file you meant?")
    read_as, codec = find_codec(file, encoding)
    kind = _KINDS.get(file.suffix.lower(), "text")
    if kind == "text":
        reader = _blank_line_documents if blank_line else _one_document
        return lambda: reader(file, codec), f"text as {read_as}"
    if kind == "jsonl":
        field = _jsonl_field(file, codec, column)
        shown = "of strings" if field is None else f"field {field!r}"
        return lambda: _jsonl(file, codec, field), f"jsonl, {shown}, as {read_as}"
    index, header = _table_column(file, codec, kind, column)
    shown = f"column {header[index]!r}" if header else f"column {index}, no header"
    return lambda: _table(file, codec, kind, index, header), f"{kind}, {shown}, as {read_as}"


# Text to documents


def _one_document(file: Path, codec: str) -> Iterator[Piece]:
    """A text file as one document in pieces."""
    text = ""
    for block in decoded(file, codec):
        text += block
        cut = last_cut(text, 1, len(text))
        if cut is None and len(text) >= _LONGEST:
            cut = len(text)
        if cut is not None:
            yield Piece(text[:cut], False)
            text = text[cut:]
    yield Piece(text, True)


def _blank_line_documents(file: Path, codec: str) -> Iterator[Piece]:
    """A text file as documents with one or more empty lines between them."""
    lines: list[str] = []
    for line in lines_of(file, codec):
        if line.strip():
            lines.append(line)
        elif lines:
            yield Piece("".join(lines), True)
            lines = []
    if lines:
        yield Piece("".join(lines), True)


def _jsonl_records(file: Path, codec: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(lines_of(file, codec), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.rstrip())
        except (json.JSONDecodeError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
            where = f", column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            hint = (
                " A .jsonl file has one complete JSON value on each line."
                if number == 1 and line.strip() in ("[", "{")
                else f" The line begins {line[:40].strip()!r}."
            )
            raise DataError(
                f"{file.name}, line {number}{where}: not JSON ({reason}).{hint}"
            ) from None
        if not isinstance(record, dict | str):
            raise DataError(
                f"{file.name}, line {number}: expected an object or a string, found "
                f"{type(record).__name__}. One document a line."
            )
        yield number, record


def _jsonl_field(file: Path, codec: str, column: str | int | None) -> str | None:
    """The field that holds the text; None if each line is a string."""
    first = [record for _, record in islice(_jsonl_records(file, codec), 20)]
    if not first:
        raise DataError(f"{file.name} holds no records, only white space.")
    if isinstance(first[0], str):
        return None
    if column is not None:
        return str(column)
    lengths: Counter[str] = Counter()
    for record in first:
        if isinstance(record, dict):
            lengths.update({k: len(v) for k, v in record.items() if isinstance(v, str)})
    if not lengths:
        raise DataError(
            f"{file.name}, line 1: no field holds a string; found {_some(list(first[0]))}. Each "
            'line needs its text, such as {"text": "..."}.'
        )
    return "text" if "text" in lengths else lengths.most_common(1)[0][0]


def _jsonl(file: Path, codec: str, field: str | None) -> Iterator[Piece]:
    for number, record in _jsonl_records(file, codec):
        text = record
        if isinstance(record, dict):
            if field not in record:
                raise DataError(
                    f"{file.name}, line {number}: no field {field!r}; it has "
                    f"{_some(list(record))}. Name the field with --text-column."
                )
            text = record[field]
        if not isinstance(text, str):
            raise DataError(
                f"{file.name}, line {number}: field {field!r} is {json.dumps(text)[:40]}, not a "
                "string. Name another field with --text-column, or mend the line."
            )
        yield Piece(text, True)


def _rows(file: Path, codec: str, kind: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of each row that is not empty."""
    lines = lines_of(file, codec)
    if kind == "tsv":
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, line.rstrip("\n").split("\t")
        return
    # A limit of the whole process, 128 KiB at first, which an article in a cell exceeds.
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(lines)
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"{file.name}, line {reader.line_num}: not csv ({error}).") from None


def _table_column(
    file: Path, codec: str, kind: str, column: str | int | None
) -> tuple[int, list[str]]:
    """Which column holds the text, and the names of all, none if there is no header."""
    rows = [row for _, row in islice(_rows(file, codec, kind), 100)]
    if not rows:
        raise DataError(f"{file.name} has no rows, only white space.")
    first, rest = rows[0], rows[1:]
    header = first if _is_header(first, rest) else []
    if column is not None:
        if isinstance(column, str) and column in first:
            return first.index(column), first
        if isinstance(column, int) or column.isdecimal():
            if int(column) < len(first):
                return int(column), header
            raise DataError(
                f"{file.name} has no column {column}: its rows have {len(first)}, numbered from 0."
            )
        near = get_close_matches(column, first, n=1)
        raise DataError(
            f"{file.name} has no column {column!r}; it has {_some(first)}."
            + (f" Did you mean {near[0]!r}?" if near else "")
        )
    if "text" in header:
        return header.index("text"), header
    sample = rest if header else rows
    lengths = [sum(len(row[i]) for row in sample if i < len(row)) for i in range(len(first))]
    return lengths.index(max(lengths)), header


def _is_header(first: list[str], rest: list[list[str]]) -> bool:
    """Whether the first row names the columns: by usual names, or words above numbers."""
    usual = {
        *("id", "text", "document", "sentence", "label", "content", "review", "comment", "title"),
        *("body", "date", "source", "target", "question", "answer", "url", "lang", "category"),
        *("sentence1", "sentence2", "premise", "hypothesis", "score", "index", "idx", "name"),
    }
    if {cell.strip().lower() for cell in first} & usual:
        return True
    if not rest:
        return False

    def numeric(cell: str) -> bool:
        return bool(re.fullmatch(r"\s*[-+]?\d+(\.\d*)?\s*", cell))

    return any(
        not numeric(name) and all(len(row) > i and numeric(row[i]) for row in rest)
        for i, name in enumerate(first)
    )


def _table(file: Path, codec: str, kind: str, index: int, header: list[str]) -> Iterator[Piece]:
    rows = _rows(file, codec, kind)
    width = None
    for number, row in rows:
        width = width or len(row)
        if len(row) != width:
            hint = (
                "A .tsv has no quoting: a tab or a line break inside a cell splits it."
                if kind == "tsv"
                else "Is a quotation mark missing, or a comma not quoted?"
            )
            raise DataError(
                f"{file.name}, line {number}: {len(row)} cells, but the first row has "
                f"{width}. {hint}"
            )
        if header:
            header = []
            continue
        yield Piece(row[index], True)


@lru_cache(maxsize=1)
def _python_documentation() -> Corpus:
    """The topics of `help()` and the docstrings of the standard library, one document each."""
    topics = python_documentation.topics()
    modules = python_documentation.docstrings()
    texts = [*topics, *modules]
    if not texts:
        raise DataError(
            "this Python comes without its documentation (no pydoc_data, no sources of the "
            "standard library), which is the text used unless another is given. Give one with "
            "--data PATH."
        )
    size = sum(len(text.encode()) for text in texts)
    version = ".".join(map(str, sys.version_info[:3]))
    return Corpus(
        name="Python's documentation",
        description=f"documentation of Python {version}: {len(topics)} topics of help(), "
        f"docstrings of {len(modules)} modules, {_size(size)}",
        bytes=size,
        fingerprint=_hash(texts),
        sources=(lambda: (Piece(text, True) for text in texts),),
    )


# Words for messages


def _missing(path: Path) -> str:
    if not path.parent.is_dir():
        return f"no file or folder {path}: its folder {path.parent} does not exist either."
    names = [p.name for p in path.parent.iterdir()]
    near = get_close_matches(path.name, names, n=3)
    where = "this folder" if path.parent == Path() else str(path.parent)
    hint = f" Did you mean {_some(near)}?" if near else f" {where} has {_some(sorted(names))}."
    return f"no file or folder {path}.{hint}"


def _some(names: list[str]) -> str:
    """A few of the names and how many more there are."""
    shown = ", ".join(map(str, names[:5])) or "nothing"
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown


def _size(count: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} bytes"


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
