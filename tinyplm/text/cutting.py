"""Where a long text may be cut so that its tokens stay the same."""

import re
from collections.abc import Iterator, Sequence
from typing import Any


def split_long_text(
    text: str, *, size: int, marks: str | None = " \n", whole: Sequence[str] = ()
) -> Iterator[str]:
    """The text in pieces of about `size` characters, cut before white space.

    A cut falls before one of the characters in `marks` where the character before it is not white
    space. All tokenizers trained here cut at such a place too and look at nothing beyond it, so
    the ids of the pieces are those of the whole.

    Args:
        text: any text.
        size: characters in a piece; more if there is no place to cut.
        marks: characters to cut before. "" allows any place that divides none of the strings in
            `whole`; None allows no place at all.
        whole: strings that a cut at any place must not divide.
    """
    start = 0
    while marks is not None and len(text) - start > size:
        end = start + size
        if marks:
            cut = last_cut(text, start + 1, end, marks)
            if cut is None:
                # Nothing in this piece: take the first place after it.
                later = re.compile(rf"(?<=\S)[{re.escape(marks)}]").search(text, end)
                cut = later.start() if later else len(text)
        else:
            cut = end
            for string in whole:
                at = text.find(string, max(start, cut - len(string) + 1), cut + len(string) - 1)
                if at > start:
                    cut = min(cut, at)
                elif at == start:
                    cut = max(cut, at + len(string))
        yield text[start:cut]
        start = cut
    if start < len(text) or not text:
        yield text[start:]


def last_cut(text: str, start: int, end: int, marks: str = " \n") -> int | None:
    """The last place in text[start:end] before one of the marks and not after white space."""
    for mark in marks:
        at = text.rfind(mark, start, end)
        while at > 0 and text[at - 1].isspace():
            at = text.rfind(mark, start, at)
        if at > 0:
            return at
    return None


def cutting_marks(description: dict[str, Any]) -> str | None:
    """Where text may be cut before it is handed to this tokenizer, as `split_long_text` wants it.

    Only combinations known to be safe allow a cut; with any other the text goes in whole.
    """
    harmless = {
        *("BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled"),
        "StripAccents",
    }
    if any(part["type"] not in harmless for part in parts(description["normalizer"])):
        return None
    for token in description["added_tokens"]:
        if token["rstrip"] or any(c.isspace() for c in token["content"]):
            return None
    first = next(iter(parts(description["pre_tokenizer"])), {"type": None})
    model = description["model"]
    bare = model["type"] == "BPE" and not model["merges"] and not description["normalizer"]
    if bare and first["type"] is None:
        return ""
    if first["type"] == "ByteLevel":
        if bare and not first["use_regex"] and not first["add_prefix_space"]:
            return ""
        if not first["use_regex"]:
            return None
        return " " if first["add_prefix_space"] else " \n"
    if first["type"] == "Metaspace" and first.get("split", True):
        return " "
    return " \n" if first["type"] in ("WhitespaceSplit", "Whitespace", "BertPreTokenizer") else None


def parts(component: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The component, or what it is a sequence of, in order."""
    if component is None:
        return []
    if component["type"] != "Sequence":
        return [component]
    inner = component.get("pretokenizers", component.get("normalizers", []))
    return [part for child in inner for part in parts(child)]
