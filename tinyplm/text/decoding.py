"""Bytes of a file to text, in blocks, with errors that say which byte and what it may be."""

import codecs
import io
import re
from collections.abc import Iterator
from pathlib import Path

from ..errors import DataError

_BLOCK = 1 << 18  # bytes read at a time

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

_MAGIC = {
    b"\x1f\x8b": "gzip; unpack it first",
    b"PK\x03\x04": "a zip archive or an office document; unpack it first, or export plain text",
    b"%PDF": "PDF; extract its text first",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"PAR1": "Parquet; export it as jsonl first",
    b"ARROW1": "Arrow; export it as jsonl first",
    b"SQLite": "an SQLite database; export it as csv first",
    b"\x93NUMPY": "a NumPy array",
    b"\x7fELF": "a program",
    b"7z\xbc\xaf": "a 7z archive; unpack it first",
    b"BZh": "bzip2; unpack it first",
    b"\xfd7zXZ": "xz; unpack it first",
    b"\x28\xb5\x2f\xfd": "zstd; unpack it first",
}


def find_codec(file: Path, encoding: str) -> tuple[str, str]:
    """How to name the encoding, and the codec; refuses what is no text at all."""
    with file.open("rb") as stream:
        head = stream.read(8192)
    name = codecs.lookup(encoding).name
    if name in ("utf-8", "utf-8-sig"):
        for mark, codec in _MARKS:
            if head.startswith(mark):
                return f"{codec.upper()} (byte order mark)", codec
        for magic, what in _MAGIC.items():
            if head.startswith(magic):
                raise DataError(f"{file.name} is not text: it begins like {what}.")
        zeros = head.count(0)
        if zeros * 1000 > len(head):
            even, odd = head[::2].count(0), head[1::2].count(0)
            hint = "Is it a binary file?"
            if max(even, odd) > len(head) // 4 and min(even, odd) <= len(head) // 50:
                wide = "utf-16-le" if odd > even else "utf-16-be"
                hint = f"It looks like {wide} without a byte order mark: pass --encoding {wide}."
            raise DataError(
                f"{file.name} is not UTF-8 text: {zeros:,} of its first {len(head):,} bytes are "
                f"zero. {hint}"
            )
        return "UTF-8", "utf-8"
    return encoding, encoding


def decoded(file: Path, codec: str) -> Iterator[str]:
    """The text of the file in blocks, line ends made line feeds; one is in memory."""
    decoder = codecs.getincrementaldecoder(codec)()
    ends = io.IncrementalNewlineDecoder(None, translate=True)
    with file.open("rb") as stream:
        at = 0
        if codec == "utf-8" and stream.read(3) == codecs.BOM_UTF8:
            at = 3
        stream.seek(at)
        while True:
            block = stream.read(_BLOCK)
            waiting = len(decoder.getstate()[0])  # the first bytes of a character cut in two
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise _not_in_encoding(file, codec, at - waiting + error.start, error) from None
            at += len(block)
            text = ends.decode(text, final=not block)
            if text:
                yield text
            if not block:
                return


def _not_in_encoding(file: Path, codec: str, offset: int, error: UnicodeDecodeError) -> DataError:
    byte = error.object[error.start]
    if error.reason == "unexpected end of data" and error.end == len(error.object):
        what = "begins a character that the end of the file cuts off"
        advice = "Was the copy or the download cut off?"
        return DataError(f"{file.name}: byte 0x{byte:02x} at offset {offset} {what}. {advice}")
    with file.open("rb") as stream:
        stream.seek(max(0, offset - 2048))
        around = stream.read(8192)
    guess = None if codec != "utf-8" else _guess(around)
    shown = "UTF-8" if codec == "utf-8" else codec
    if guess is None:
        return DataError(
            f"{file.name}: byte 0x{byte:02x} at offset {offset} is not {shown}. Pass --encoding "
            "with the right one, or convert the file; if most of it is fine, it is damaged there."
        )
    return DataError(
        f"{file.name}: byte 0x{byte:02x} at offset {offset} is not {shown}; it looks like {guess}. "
        f"Pass --encoding {guess}, or convert the file."
    )


# What text in each encoding is mostly made of, outside ASCII, in the order in which they are tried.
# Two bytes of one are often some rare character of another, so only common ones count: Hangul of
# the older standard; letters of Western Europe by ones and twos among plain letters; Chinese
# without kana before Japanese with both; Cyrillic next to Cyrillic.
_TYPICAL = {
    "cp949": ("euc_kr", r"[\uac00-\ud7a3]"),
    "cp1252": (
        "cp1252",
        r"(?<![^\x00-\x7f])[\u00a0-\u00ff\u2013-\u2019\u201c\u201d\u2026\u20ac]{1,2}(?![^\x00-\x7f])",
    ),
    "shift_jis": ("shift_jis", r"[\u3000-\u30ff\u4e00-\u9fff]"),
    "gb18030": ("gb2312", r"[\u4e00-\u9fff\u3000-\u3002\uff01-\uff1f]"),
    "euc_jp": ("euc_jp", r"[\u3000-\u30ff\u4e00-\u9fff]"),
    "big5": ("big5", r"[\u4e00-\u9fff\u3000-\u3002\uff01-\uff1f]"),
    "cp1251": ("cp1251", r"(?<=[\u0410-\u044f])[\u0410-\u044f]"),
}


def _guess(sample: bytes) -> str | None:
    """The first encoding in which nearly all that is not ASCII is typical, else the best one."""
    if sample[0] >= 0x80:
        # It may begin inside a character: leave that out.
        sample = sample.lstrip(bytes(range(0x80, 0x100))) or sample
    best, guess = 0.5, None
    for name, (codec, typical) in _TYPICAL.items():
        text = sample.decode(codec, errors="replace")
        foreign = re.findall(r"[^\x00-\x7f]", text)
        share = len("".join(re.findall(typical, text))) / max(1, len(foreign))
        if share > best:
            best, guess = share, name
        if best > 0.8:
            break
    return guess


def lines_of(file: Path, codec: str) -> Iterator[str]:
    """Lines, each with its line feed; no other character ends a line."""
    rest: list[str] = []
    for block in decoded(file, codec):
        first, *others = block.split("\n")
        rest.append(first)
        for other in others:
            yield "".join(rest) + "\n"
            rest = [other]
    if last := "".join(rest):
        yield last
