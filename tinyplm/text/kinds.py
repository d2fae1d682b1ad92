"""What each kind of tokenizer is made of, and its training by the `tokenizers` library.

Each function takes texts and gives back a tokenizer of the library, which is imported on first
use.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ..errors import DataError, DtypeError
from .cutting import split_long_text

SPECIAL_TOKENS = {
    "chars": ("<|endoftext|>",),
    "bytes": ("<|endoftext|>",),
    "bpe": ("<unk>", "<|endoftext|>"),
    "byte-bpe": ("<|endoftext|>",),
    "wordpiece": ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    "unigram": ("<pad>", "</s>", "<unk>"),
}
"""The special tokens of each kind unless others are asked for."""

_PRIVATE, _ROOM = (
    0xF0000,
    0x20000,
)  # where the characters begin that mean nothing, and how many there are
_PIECE = 1 << 14  # characters: the library keeps much for each string while it counts words


def training_pieces(documents: Iterable[str]) -> Iterator[str]:
    """The documents in pieces, since the library keeps much for each string it is handed."""
    empty = True
    for document in documents:
        if not isinstance(document, str):
            raise DtypeError(f"a document must be a string; got {type(document).__name__}")
        try:
            document.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"a document has a lone surrogate at offset {error.start}, which cannot be written "
                "as UTF-8. Decode the text with errors='replace'."
            ) from None
        if document:
            empty = False
            yield from split_long_text(document, size=_PIECE)
    if empty:
        raise DataError("no text to train a tokenizer on: the documents are empty.")


def added(tokens: Sequence[str]) -> list[Any]:
    """Special tokens, as the library wants them."""
    from tokenizers import AddedToken

    # As published for RoBERTa: the mask takes the space before it along.
    return [
        AddedToken(token, special=True, normalized=False, lstrip=token == "<mask>")
        for token in tokens
    ]


def chars(texts: Iterable[str], special: list[str], unknown: str | None) -> Any:
    """Every character a token. No merges, so the library leaves characters alone."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models

    characters: set[str] = set()
    for text in texts:
        characters.update(text)
    vocab = {token: id for id, token in enumerate([*sorted(characters), *special])}
    library = Library(models.BPE(vocab=vocab, merges=[], unk_token=unknown))
    library.decoder = decoders.Fuse()
    library.add_special_tokens(added(special))
    return library


def bytes_(special: list[str]) -> Any:
    """Every byte a token, and its own id."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers

    vocab = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    library = Library(models.BPE(vocab=vocab, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(added(special))
    return library


def byte_symbols() -> list[str]:
    """The character that GPT-2 writes for each byte: itself if visible, else U+0100 and on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(0x100, 0x200))
    return [chr(byte if byte in visible else next(hidden)) for byte in range(256)]


def _byte_bpe(
    texts: Iterable[str], *, special: list[str], vocab_size: int, min_frequency: int, **_: Any
) -> Any:
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers, trainers

    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    first = special if "<pad>" in special else []  # as published: RoBERTa counts from padding's id
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(special) + len(first),
        min_frequency=min_frequency,
        special_tokens=added(first),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(texts, trainer)
    library.add_special_tokens(added(special))
    template(library, "<s> $A </s>", "<s> $A </s> </s> $B </s>", ("<s>", "</s>"))
    return library


def _bpe(
    texts: Iterable[str],
    *,
    special: list[str],
    unknown: str,
    vocab_size: int,
    min_frequency: int,
    **_: Any,
) -> Any:
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers, trainers

    library = Library(models.BPE(unk_token=unknown))
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    library.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=added(special),
        show_progress=False,
    )
    library.train_from_iterator(texts, trainer)
    return library


def _wordpiece(
    texts: Iterable[str],
    *,
    special: list[str],
    unknown: str,
    vocab_size: int,
    min_frequency: int,
    lowercase: bool,
) -> Any:
    from tokenizers import Tokenizer as Library
    from tokenizers import models, pre_tokenizers, trainers

    # Pieces are merged by counts of pairs, as in BPE, and a character within a word is another symbol than the same at
    # its beginning. The library's own trainer breaks ties by the order of a hash table, so that no two of its
    # vocabularies are alike; its BPE of words whose symbols have been told apart gives the same ones every time.
    library = Library(models.WordPiece(vocab={unknown: 0}, unk_token=unknown))
    bert_around(library, lowercase=lowercase)
    symbols: dict[tuple[bool, str], str] = {}

    def told_apart(word: str) -> str:
        if len(symbols) + len(word) > _ROOM:
            return ""  # a hundred thousand characters are known by then
        keys = ((i > 0, character) for i, character in enumerate(word))
        return "".join(symbols.setdefault(key, chr(_PRIVATE + len(symbols))) for key in keys)

    def words() -> Iterator[str]:
        for text in texts:
            normal = library.normalizer.normalize_str(text)
            found = library.pre_tokenizer.pre_tokenize_str(normal)
            yield " ".join(told_apart(word) for word, _ in found)

    pairs = Library(models.BPE())
    pairs.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pairs.train_from_iterator(
        words(),
        trainers.BpeTrainer(
            vocab_size=vocab_size - len(special), min_frequency=min_frequency, show_progress=False
        ),
    )
    meant = {symbol: key for key, symbol in symbols.items()}
    vocab = {token: id for id, token in enumerate(special)}
    by_id: dict[str, int] = pairs.get_vocab()
    for piece in sorted(by_id, key=by_id.__getitem__):
        text = "".join(meant[symbol][1] for symbol in piece)
        vocab.setdefault("##" + text if meant[piece[0]][0] else text, len(vocab))
    library.model = models.WordPiece(vocab=vocab, unk_token=unknown)
    library.add_special_tokens(added(special))
    template(library, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ("[CLS]", "[SEP]"))
    return library


def _unigram(
    texts: Iterable[str], *, special: list[str], unknown: str, vocab_size: int, **_: Any
) -> Any:
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    library = Library(models.Unigram())
    library.normalizer = normalizers.NFKC()
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    library.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        unk_token=unknown,
        special_tokens=added(special),
        show_progress=False,
    )
    library.train_from_iterator(texts, trainer)
    template(library, "$A </s>", "$A </s> $B </s>", ("</s>",))
    # The library reads long decimals with an error in the last bit, so a saved tokenizer would
    # not be quite the one that was trained; it reads ten digits without.
    data = json.loads(library.to_str())
    data["model"]["vocab"] = [[t, float(f"{score:.10g}")] for t, score in data["model"]["vocab"]]
    return Library.from_str(json.dumps(data))


LEARNERS = {"byte-bpe": _byte_bpe, "bpe": _bpe, "wordpiece": _wordpiece, "unigram": _unigram}


def bert_around(library: Any, *, lowercase: bool) -> None:
    """What BERT puts before and after its WordPiece model."""
    from tokenizers import decoders, normalizers, pre_tokenizers

    library.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece(prefix="##")


def template(library: Any, single: str, pair: str, tokens: Sequence[str]) -> None:
    """Have these special tokens put around a text on request, if the vocabulary has them all."""
    from tokenizers import processors

    ids = [(token, library.token_to_id(token)) for token in tokens]
    if all(id is not None for _, id in ids):
        library.post_processor = processors.TemplateProcessing(
            single=single, pair=pair, special_tokens=ids
        )
