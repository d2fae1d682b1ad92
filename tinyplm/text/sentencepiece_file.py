"""The files that SentencePiece writes (Kudo & Richardson, 2018, arXiv:1808.06226), read without its library.

A file is one message of protocol buffers: numbered fields, each a whole number or so many bytes, some of which are
messages again. Read are

    1   a piece, once for each id:   1 text, 2 score (float32), 3 kind
    2   how it was trained:          3 algorithm, 35 bytes for unknown text, 40 id of the unknown piece
    3   how text is normalised:      2 rules, 3 a space is put in front, 4 spaces are joined, 5 spaces become U+2581

The rules are a trie of what is replaced, as an array in which a state's number and a byte lead to the next state,
and behind it the replacements, each ended by a byte 0. Who follows such an array does not look where it ends, so it is
gone through here first.
"""

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import CheckpointError, MissingFileError
from ..types import Array

LIMIT = 1 << 26
"""Bytes of the largest file that is read; that of mT5, with 250,000 pieces, has 4 million."""

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
UNIGRAM = 1
ALGORITHMS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}


class Pieces(NamedTuple):
    """What a file says.

    Attributes:
        pieces: text and score of each id.
        unknown: id that stands for text without a piece.
        control: ids of tokens that no text contains, such as </s>.
        defined: ids of tokens that are always cut out whole.
        rules: the normalisation, as it lies in the file; empty without one.
    """

    pieces: list[tuple[str, float]]
    unknown: int
    control: list[int]
    defined: list[int]
    rules: bytes


def read_pieces(path: Path) -> Pieces:
    """The pieces of a file.

    Raises:
        MissingFileError: there is none.
        CheckpointError: it is damaged, of another kind, or asks for what is not done here.
    """
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= LIMIT else b""
    except OSError as error:
        raise MissingFileError(f"{path} could not be read: {error.strerror or error}.") from None
    if size > LIMIT:
        raise CheckpointError(
            f"{path} has {size:,} bytes, expected the few millions of a SentencePiece model. Is it the weights of a "
            "model?"
        )
    try:
        return _pieces(data)
    except _DamagedError as error:
        raise CheckpointError(
            f"{path} is damaged, or no SentencePiece model: {error}. Was the download or the copy cut off? Where the "
            "model's tokenizer.json is to be had, it will do as well."
        ) from None


class _DamagedError(Exception):
    """What is wrong with the bytes."""


def _pieces(data: bytes) -> Pieces:
    pieces: list[tuple[str, float]] = []
    kinds: list[int] = []
    trained: dict[int, int] = {}
    normalised: dict[int, int | bytes] = {}
    for number, value in _fields(data):
        if number == 1:
            text, score, kind = _piece(_bytes(value, "a piece"), len(pieces))
            pieces.append((text, score))
            kinds.append(kind)
        elif number == 2:
            some = _fields(_bytes(value, "the part on training"))
            trained |= {key: one for key, one in some if isinstance(one, int)}
        elif number == 3:
            normalised |= dict(_fields(_bytes(value, "the part on normalisation")))
    if not pieces:
        raise _DamagedError("it has no pieces")
    texts = [text for text, _ in pieces]
    if len(set(texts)) < len(texts):
        raise _DamagedError(f"of its {len(texts):,} pieces some are the same")
    algorithm = trained.get(3, UNIGRAM)
    if algorithm != UNIGRAM:
        name = ALGORITHMS.get(algorithm, f"number {algorithm}")
        raise _DamagedError(f"its algorithm is {name}, and only unigram is read")
    if trained.get(35) or BYTE in kinds:
        raise _DamagedError("it spells unknown text in bytes, which is not done here")
    for key, what in ((3, "no space in front"), (4, "spaces kept"), (5, "spaces left as they are")):
        if normalised.get(key, 1) != 1:
            raise _DamagedError(f"it wants {what}, which is not done here")
    named = [i for i, kind in enumerate(kinds) if kind == UNKNOWN]
    unknown = named[0] if named else trained.get(40, 0)
    if len(named) > 1 or not 0 <= unknown < len(pieces):
        raise _DamagedError(
            f"expected one unknown piece among its {len(pieces):,}, found {len(named)}"
        )
    rules = _bytes(normalised.get(2, b""), "the rules of normalisation")
    if rules:
        _check_rules(rules)
    return Pieces(
        pieces,
        unknown,
        [i for i, kind in enumerate(kinds) if kind == CONTROL],
        [i for i, kind in enumerate(kinds) if kind == USER],
        rules,
    )


def _piece(data: bytes, id: int) -> tuple[str, float, int]:
    text, score, kind = b"", 0.0, NORMAL
    for number, value in _fields(data):
        if number == 1:
            text = _bytes(value, f"the text of piece {id}")
        elif number == 2:
            packed = _bytes(value, f"the score of piece {id}")
            if len(packed) != 4:
                raise _DamagedError(f"the score of piece {id} has {len(packed)} bytes, not 4")
            (score,) = struct.unpack("<f", packed)
        elif number == 3:
            kind = value if isinstance(value, int) else -1
    if not math.isfinite(score) or not NORMAL <= kind <= BYTE:
        raise _DamagedError(f"piece {id} has the score {score} and the kind {kind}")
    try:
        return text.decode(), score, kind
    except UnicodeDecodeError:
        raise _DamagedError(f"piece {id}, {text[:20]!r}, is not UTF-8") from None


def _bytes(value: int | bytes, what: str) -> bytes:
    if not isinstance(value, bytes):
        raise _DamagedError(f"{what} is a number")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of the fields of a message; floats as their bytes."""
    at = 0
    while at < len(data):
        key, at = _whole(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _whole(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _whole(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise _DamagedError(f"byte {at - 1} of a part begins a field of unknown kind {wire}")
        if size > len(data) - at:
            raise _DamagedError(
                f"a field of {size:,} bytes begins where only {len(data) - at:,} are left"
            )
        yield number, data[at : at + size]
        at += size


def _whole(data: bytes, at: int) -> tuple[int, int]:
    """A whole number, seven bits a byte, the lowest first; and where it ends."""
    value = 0
    for i in range(10):
        if at + i >= len(data):
            break
        value |= (data[at + i] & 0x7F) << (7 * i)
        if data[at + i] < 0x80:
            return value, at + i + 1
    raise _DamagedError(f"a number at byte {at} of a part does not end")


def _check_rules(rules: bytes) -> None:
    """Refuse rules that lead out of their array, or to replacements that are not there."""
    size = int.from_bytes(rules[:4], "little")
    if len(rules) < 8 or size % 4 or not 4 <= size <= len(rules) - 4:
        raise _DamagedError(
            f"its rules of normalisation have {len(rules):,} bytes and say {size:,} of themselves"
        )
    units = np.frombuffer(rules, "<u4", size // 4, 4).astype(np.int64)
    replacements = rules[4 + size :]
    try:
        replacements.decode()
    except UnicodeDecodeError:
        raise _DamagedError("its replacements of characters are not UTF-8") from None
    begins = np.frombuffer(replacements, np.uint8) & 0xC0 != 0x80
    follow = np.arange(1, 256)
    reached = np.zeros(len(units), bool)
    found = _offsets(units[:1])
    while found.size:
        if found.max() >= len(units):
            raise _DamagedError("its rules of normalisation lead out of their table")
        found = np.unique(found[~reached[found]])
        reached[found] = True
        following = []
        for start in range(0, len(found), 1 << 12):
            places = found[start : start + (1 << 12), None] ^ follow
            if places.max() >= len(units):
                raise _DamagedError("its rules of normalisation lead out of their table")
            labels = units[places] & 0x800000FF
            states = places[labels == follow]
            bases = states ^ _offsets(units[states])
            ends = bases[(units[states] >> 8) & 1 == 1]
            if ends.size:
                values = units[ends[ends < len(units)]] & 0x7FFFFFFF
                if ends.max() >= len(units) or not values.max() < len(begins):
                    raise _DamagedError("its rules of normalisation name missing replacements")
                if not begins[values].all():
                    raise _DamagedError("its rules of normalisation divide a character")
            following.append(bases)
        found = np.concatenate(following) if following else found[:0]


def _offsets(units: Array) -> Array:
    """How far each unit leads; shifted by 8 more where a bit says so."""
    return (units >> 10) << ((units & 0x200) >> 6)
