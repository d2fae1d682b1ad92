"""Text to ids and back, through the `tokenizers` library.

Six kinds can be trained, each one `tokenizer.json` that other libraries open too:

    chars      every character of the training text is a token, in the order of code points
    bytes      the 256 bytes; nothing is ever unknown
    bpe        byte-pair encoding of words at white space (Sennrich et al., 2016, arXiv:1508.07909)
    byte-bpe   byte-pair encoding of bytes, in pieces cut as GPT-2 does (Radford et al., 2019)
    wordpiece  the longest piece of the vocabulary first, from the left (as in BERT, 2018)
    unigram    the most probable segmentation (Kudo, 2018, arXiv:1804.10959)

`chars`, `bytes` and `byte-bpe` give back exactly the text they were given; `bpe` and `wordpiece`
turn white space into single spaces, and `unigram` normalises by NFKC besides (full-width letters
become plain ones).

The text of a special token, such as `<|endoftext|>`, is matched wherever it stands in a text: the
library's own rule, and what the published models expect. Remove such strings from text that you
do not trust, or look for `special_ids` in the result.

Training twice on the same text gives the same tokenizer, but for `unigram`, where the library adds
up in no fixed order: save it once and load it.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DtypeError,
    MissingFileError,
    ShapeError,
)
from ..types import Array
from . import kinds
from .cutting import cutting_marks, parts, split_long_text
from .files import (
    from_json,
    from_merges,
    from_sentencepiece,
    from_vocab,
    read_config,
    write_text,
)
from .kinds import SPECIAL_TOKENS

# The part each token plays: key in tokenizer_config.json, and names from which it is guessed.
_ROLES = {
    "end_of_text": ("eos_token", ("<|endoftext|>", "</s>", "<eos>", "[EOS]")),
    "unknown": ("unk_token", ("<unk>", "[UNK]")),
    "padding": ("pad_token", ("<pad>", "[PAD]")),
    "mask": ("mask_token", ("<mask>", "[MASK]")),
    "classifier": ("cls_token", ("[CLS]", "<cls>")),
    "separator": ("sep_token", ("[SEP]", "<sep>")),
}

_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model")

_PIECE = 1 << 14  # characters handed to the library at a time: it needs 160 bytes and more a token
_GROUP = 1 << 20  # characters in flight at a time, over which the library spreads its threads


class Tokenizer:
    """Text to ids and back.

    Made by `Tokenizer.train` or `Tokenizer.load`. `library` is the tokenizer of the `tokenizers`
    library underneath, for what is not offered here (offsets, for one).
    """

    def __init__(self, library: Any, *, config: dict[str, Any] | None = None) -> None:
        self.library = library
        self._config = dict(config or {})
        self._description: dict[str, Any] = json.loads(library.to_str())
        self._marks = cutting_marks(self._description)

    # Making one

    @classmethod
    def train(
        cls,
        kind: str,
        documents: Iterable[str],
        *,
        vocab_size: int = 8_000,
        special_tokens: Sequence[str] | None = None,
        appended_tokens: Sequence[str] = (),
        min_frequency: int = 2,
        lowercase: bool = False,
    ) -> "Tokenizer":
        """A tokenizer fitted to the documents, which are read once.

        Args:
            kind: one of chars, bytes, bpe, byte-bpe, wordpiece, unigram.
            documents: strings of any length; bytes needs none and does not read them.
            vocab_size: number of tokens, special ones included; a small text may give fewer. Not
                used by chars and bytes, whose size is given by the text or is 256.
            special_tokens: `SPECIAL_TOKENS[kind]` unless given. They have the first ids, but come
                last in chars, bytes and byte-bpe (so that bytes are their own ids and end of text
                is last, as in GPT-2); with "<pad>" among them first in byte-bpe too, as in
                RoBERTa. `()` gives chars exactly one token per character.
            appended_tokens: more special tokens with the last ids, such as the sentinels of T5.
            min_frequency: pairs seen less often are not merged (bpe, byte-bpe, wordpiece).
            lowercase: lower-case and strip accents first, as uncased BERT does (wordpiece only).
                Not for Korean, whose syllables it takes apart.

        Raises:
            ConfigError: settings that do not fit each other.
            DataError: no text at all.
        """
        if kind not in SPECIAL_TOKENS:
            raise ConfigError(f"no tokenizer kind {kind!r}.{_meant(kind, SPECIAL_TOKENS)}")
        if isinstance(documents, str):
            raise DtypeError("documents is one string; expected several. Pass [text].")
        if lowercase and kind != "wordpiece":
            raise ConfigError(f"lowercase=True is for wordpiece only; got kind={kind!r}")
        special = list(SPECIAL_TOKENS[kind] if special_tokens is None else special_tokens)
        appended = list(appended_tokens)
        names = special + appended
        if len(set(names)) < len(names) or not all(names):
            raise ConfigError(f"special tokens must be distinct and not empty; got {names}")
        room = vocab_size - len(names)
        least = 256 if kind == "byte-bpe" else 1
        if kind not in ("chars", "bytes") and room < least:
            raise ConfigError(
                f"vocab_size={vocab_size} leaves room for {max(room, 0)} tokens beside "
                f"{len(names)} special ones; {kind} needs at least {least}. Raise vocab_size."
            )
        unknown = next((t for t in special if t in _ROLES["unknown"][1]), None)
        if unknown is None and kind in ("bpe", "wordpiece", "unigram"):
            raise ConfigError(
                f"{kind} needs a token for what it does not know: add '<unk>' or '[UNK]' to "
                f"special_tokens; got {special}"
            )
        texts = kinds.training_pieces(documents)
        if kind == "chars":
            library = kinds.chars(texts, special, unknown)
        elif kind == "bytes":
            library = kinds.bytes_(special)
        else:
            library = kinds.LEARNERS[kind](
                texts,
                special=special,
                unknown=unknown or "",
                vocab_size=vocab_size - len(appended),
                min_frequency=min_frequency,
                lowercase=lowercase,
            )
            size = library.get_vocab_size() + len(appended)
            if size > vocab_size:
                raise ConfigError(
                    f"vocab_size={vocab_size}, but the text has so many different characters that "
                    f"{size} tokens are needed. Raise vocab_size, or use 'byte-bpe', which needs "
                    "256."
                )
        library.add_special_tokens(kinds.added(appended))
        return cls(library)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """The tokenizer in a folder, or in one of these files.

        Read are tokenizer.json, else vocab.json with merges.txt (GPT-1, GPT-2, RoBERTa), else
        vocab.txt (BERT), else spiece.model (T5). Truncation, padding and random dropping of merges that a file may ask
        for are left out: text gives the same ids, all of them, every time.

        Raises:
            MissingFileError: nothing there, or none of these files.
            CheckpointError: a file that is damaged or of another kind.
        """
        path = Path(path)
        if not path.exists():
            raise MissingFileError(
                f"no tokenizer at {path}: there is no such file or folder. Give the folder that "
                "holds tokenizer.json, or the file."
            )
        folder = path if path.is_dir() else path.parent
        names = [n for n in _FILES if (path / n).is_file()] if path.is_dir() else [path.name]
        if not names:
            found = ", ".join(sorted(p.name for p in islice(folder.iterdir(), 12))) or "nothing"
            raise MissingFileError(
                f"no tokenizer in {folder}: expected tokenizer.json, or vocab.json and merges.txt, "
                f"or vocab.txt, or spiece.model; found {found}."
            )
        name = names[0]
        config = read_config(folder)
        if name == "merges.txt":
            name = "vocab.json"
        if name == "vocab.json":
            library = from_merges(folder, config)
        elif name.endswith(".txt"):
            library = from_vocab(folder / name, config)
        elif name.endswith(".json"):
            library = from_json(folder / name)
        elif name.endswith(".model"):
            library = from_sentencepiece(folder / name, config)
        else:
            raise CheckpointError(
                f"{path} is not a tokenizer file: expected tokenizer.json, vocab.json, vocab.txt or "
                "spiece.model."
            )
        return cls(library, config=config)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write tokenizer.json and tokenizer_config.json; a file is either old or whole."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "token_type_ids", "attention_mask"]
            if self.kind == "wordpiece"
            else ["input_ids", "attention_mask"],
        } | self._config
        for role, (key, _) in _ROLES.items():
            id = self._own_role(role)
            if id is not None:
                config[key] = self.token(id)
        write_text(folder / "tokenizer.json", self.library.to_str(pretty=True))
        write_text(
            folder / "tokenizer_config.json",
            json.dumps(config, ensure_ascii=False, indent=2) + "\n",
        )

    # Using it

    def encode(self, text: str, *, add_special_tokens: bool = False) -> Array:
        """Ids of the text, (T,) int64; with special tokens around it if asked for.

        A long text is handed to the library in pieces cut where the library cuts as well, before
        white space, so that memory stays small and the ids are the same. Text without white space
        cannot be cut so (other than for chars and bytes) and goes in whole.

        Raises:
            DataError: a lone surrogate, or a character that this tokenizer has no token for.
        """
        return self.encode_batch([text], add_special_tokens=add_special_tokens)[0]

    def encode_batch(
        self, texts: Sequence[str], *, add_special_tokens: bool = False
    ) -> list[Array]:
        """Ids of each text, as `encode` gives them."""
        if isinstance(texts, str):
            raise DtypeError("texts is one string; expected several. Pass [text], or use encode.")
        found: list[list[Array]] = [[] for _ in texts]
        owners: list[int] = []
        group: list[str] = []
        waiting = 0
        # Special tokens go around the whole text, so with them it is not cut.
        marks = None if add_special_tokens else self._marks
        for owner, text in enumerate(texts):
            self._check(text)
            for piece in split_long_text(text, size=_PIECE, marks=marks, whole=self._contents):
                owners.append(owner)
                group.append(piece)
                waiting += len(piece)
                if waiting >= _GROUP:
                    self._encode_group(group, owners, found, add_special_tokens)
                    owners, group, waiting = [], [], 0
        self._encode_group(group, owners, found, add_special_tokens)
        return [
            arrays[0] if len(arrays) == 1 else np.concatenate([np.zeros(0, np.int64), *arrays])
            for arrays in found
        ]

    def encode_pair(self, first: str, second: str) -> tuple[Array, Array]:
        """Ids of two texts joined with special tokens, and the segment (0 or 1) of each."""
        self._check(first)
        self._check(second)
        encoding = self.library.encode(first, second, add_special_tokens=True)
        return np.array(encoding.ids, np.int64), np.array(encoding.type_ids, np.int64)

    def decode(self, ids: Sequence[int] | Array, *, skip_special: bool = False) -> str:
        """The text of the ids. Bytes that are not UTF-8 (half a character) become U+FFFD.

        Raises:
            DtypeError: ids are not integers.
            ShapeError: ids have more than one axis, or one is not below vocab_size.
        """
        array = np.asarray(ids)
        if array.size == 0:
            return ""
        if array.dtype.kind not in "iu":
            raise DtypeError(f"ids must be integers; got dtype {array.dtype}")
        if array.ndim != 1:
            raise ShapeError(f"ids must have one axis; got shape {array.shape}. Decode row by row.")
        wrong = np.flatnonzero((array < 0) | (array >= self.vocab_size))
        if wrong.size:
            raise ShapeError(
                f"ids contains {array[wrong[0]]} at [{wrong[0]}], but this tokenizer has "
                f"vocab_size={self.vocab_size}. Are these ids of another tokenizer, or labels "
                "with -100 in them?"
            )
        text: str = self.library.decode(array.tolist(), skip_special_tokens=skip_special)
        return text

    def token(self, id: int) -> str:
        """The token with this id, as it is written in the vocabulary."""
        found: str | None = self.library.id_to_token(int(id)) if 0 <= id < self.vocab_size else None
        if found is None:
            raise ShapeError(
                f"no token has id {id}; this tokenizer has vocab_size={self.vocab_size}"
            )
        return found

    def id(self, token: str) -> int:
        """The id of this token."""
        found: int | None = self.library.token_to_id(token)
        if found is None:
            raise DataError(
                f"no token {token!r} among the {self.vocab_size:,} of this tokenizer."
                f"{_meant(token, self._vocab)}"
            )
        return found

    def __contains__(self, token: str) -> bool:
        """Whether there is such a token."""
        return self.library.token_to_id(token) is not None

    # What it is

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id: the rows that an embedding needs."""
        return max(self._vocab.values()) + 1

    def __len__(self) -> int:
        return self.vocab_size

    @cached_property
    def kind(self) -> str:
        """One of the six kinds, or the library's name for its model if it is none of them."""
        model = self._description["model"]
        if model["type"] != "BPE":
            name: str = model["type"]
            return name.lower()
        if any(part["type"] == "ByteLevel" for part in parts(self._description["pre_tokenizer"])):
            return "byte-bpe" if model["merges"] else "bytes"
        return "bpe" if model["merges"] else "chars"

    @property
    def description(self) -> str:
        """One line about it, to print."""
        return f"{self.kind} tokenizer, {self.vocab_size:,} tokens"

    def __repr__(self) -> str:
        return f"<{self.description}>"

    @property
    def end_of_text(self) -> int | None:
        """Id that ends a document; of the separator where that is all there is, as in BERT."""
        own = self._own_role("end_of_text")
        return self.separator if own is None else own

    @property
    def unknown(self) -> int | None:
        """Id that stands for text without a token; None if there is no such text, or no such id."""
        return self._own_role("unknown")

    @property
    def padding(self) -> int | None:
        """Id that fills up short sequences."""
        return self._own_role("padding")

    @property
    def mask(self) -> int | None:
        """Id that hides a token."""
        return self._own_role("mask")

    @property
    def classifier(self) -> int | None:
        """Id whose position stands for the whole text."""
        return self._own_role("classifier")

    @property
    def separator(self) -> int | None:
        """Id between two texts."""
        return self._own_role("separator")

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of all special tokens."""
        return frozenset(t["id"] for t in self._description["added_tokens"] if t["special"])

    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything that decides which ids a text gets."""
        return hashlib.sha256(self.library.to_str().encode()).hexdigest()

    @cached_property
    def token_bytes(self) -> Array:
        """Bytes of UTF-8 text that each id stands for, (V,) int64; 0 for special tokens.

        Exact for chars, bytes and byte-bpe. For the others a token that starts a word counts the
        space before it.
        """
        lengths = np.zeros(self.vocab_size, np.int64)
        for token, id in self._vocab.items():
            if self.kind in ("bytes", "byte-bpe"):
                lengths[id] = len(token)  # one character of the token is one byte of the text
            elif self.kind == "wordpiece":
                start = token.startswith("##")
                lengths[id] = len(token[2:].encode()) if start else len(token.encode()) + 1
            else:
                plain = token if self.kind == "chars" else token.replace("</w>", " ")
                lengths[id] = len(plain.replace("\u2581", " ").encode())
        lengths[list(self.special_ids)] = 0
        return lengths

    # Within

    @cached_property
    def _vocab(self) -> dict[str, int]:
        vocab: dict[str, int] = self.library.get_vocab(with_added_tokens=True)
        return vocab

    @cached_property
    def _contents(self) -> tuple[str, ...]:
        """Text of the added tokens, which a cut must not divide."""
        return tuple(t["content"] for t in self._description["added_tokens"])

    @cached_property
    def _alphabet(self) -> frozenset[str] | None:
        """All characters that can be encoded, if others would be dropped without a word."""
        if self.kind != "chars" or self._description["model"]["unk_token"] is not None:
            return None
        return frozenset(t for t in self._vocab if len(t) == 1)

    def _own_role(self, role: str) -> int | None:
        """Id of the token that plays this part: as the files say, else by its usual name."""
        key, names = _ROLES[role]
        if role == "unknown":
            # What the configuration calls unknown may be end of text (GPT-2): the model knows.
            model = self._description["model"]
            if model["type"] == "Unigram":
                id: int | None = model["unk_id"]
                return id
            token = model.get("unk_token")
            return self._vocab.get(token) if token and self.kind != "byte-bpe" else None
        named = self._config.get(key)
        if isinstance(named, dict):
            named = named.get("content")
        if isinstance(named, str) and named in self._vocab:
            return self._vocab[named]
        return next((self._vocab[n] for n in names if self._vocab.get(n) in self.special_ids), None)

    def _check(self, text: str) -> None:
        """Refuse what the library would refuse obscurely, or drop without a word."""
        if not isinstance(text, str):
            raise DtypeError(f"text must be a string; got {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"text has a lone surrogate, {text[error.start]!r}, at offset {error.start}, which "
                "is no character and cannot be written as UTF-8. It comes from text decoded with "
                "errors='surrogateescape' or from broken JSON; decode it with errors='replace', "
                "or remove it."
            ) from None
        if self._alphabet is None or self._alphabet.issuperset(text):
            return
        specials = "|".join(map(re.escape, self._contents))
        some = next(iter(self._alphabet))
        rest = re.sub(specials, lambda m: some * len(m[0]), text) if specials else text
        for offset, character in enumerate(rest):
            if character not in self._alphabet:
                raise DataError(
                    f"character {character!r} (U+{ord(character):04X}) at offset {offset}, after "
                    f"{text[max(0, offset - 20) : offset]!r}, is not among the "
                    f"{len(self._alphabet)} characters of this tokenizer. Train it on this text "
                    "too, give it an '<unk>' token, or use the kind 'bytes' or 'byte-bpe', which "
                    "know all text."
                )

    def _encode_group(
        self, group: list[str], owners: list[int], found: list[list[Array]], special: bool
    ) -> None:
        for owner, encoding in zip(
            owners, self.library.encode_batch_fast(group, add_special_tokens=special), strict=True
        ):
            found[owner].append(np.array(encoding.ids, np.int64))


def _meant(name: str, known: Iterable[str]) -> str:
    """A hint at the nearest known name, with the known ones where they are few."""
    known = list(known)
    near = get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return hint + (f" Known: {', '.join(known)}." if len(known) <= 12 else "")
