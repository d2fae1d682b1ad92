"""Tokenizer files: what is found in a folder, as a tokenizer of the `tokenizers` library."""

import json
import os
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, MissingFileError
from .kinds import SPECIAL_TOKENS, added, bert_around, template
from .sentencepiece_file import read_pieces


def from_json(path: Path) -> Any:
    """A tokenizer.json, without what would make ids depend on more than the text."""
    data = _read_json(path)
    model = data.get("model")
    if not isinstance(model, dict):
        keys = ", ".join(sorted(map(str, data))[:6]) or "none"
        raise CheckpointError(
            f"{path} is not a tokenizer: expected the key 'model', found {keys}. The file to read "
            "is tokenizer.json of the tokenizers library."
        )
    # Shortening, filling up and dropping merges by chance are asked for here, not by a file.
    data |= {"truncation": None, "padding": None}
    if "dropout" in model:
        model["dropout"] = None
    from tokenizers import Tokenizer as Library

    with _Wrapped(path):
        library = Library.from_str(json.dumps(data))
        for token in data.get("added_tokens") or []:
            if library.token_to_id(token["content"]) != token["id"]:
                raise CheckpointError(
                    f"{path} is damaged: it gives the added token {token['content']!r} the id "
                    f"{token['id']}, but its vocabulary leaves room for "
                    f"{library.token_to_id(token['content'])} only."
                )
        if not library.get_vocab_size():
            raise CheckpointError(f"{path} is damaged: its vocabulary is empty.")
    return library


def from_merges(folder: Path, config: dict[str, Any]) -> Any:
    """GPT-2 and RoBERTa, or GPT-1 where tokens end in </w>."""
    vocab = _read_json(folder / "vocab.json")
    path = folder / "merges.txt"
    if not path.is_file():
        raise MissingFileError(f"{folder} has vocab.json but no merges.txt; BPE needs both.")
    merges = []
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        # The first line is a version; later ones may well begin with the character "#".
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        pair = line.rstrip("\r").split(" ")
        if len(pair) != 2:
            raise CheckpointError(f"{path}: line {number} is {line!r}; expected two symbols.")
        merges.append((pair[0], pair[1]))
    from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Library

    with _Wrapped(path):
        if any(token.endswith("</w>") for token in vocab):
            model = models.BPE(
                vocab=vocab, merges=merges, unk_token="<unk>", end_of_word_suffix="</w>"
            )
            library = Library(model)
            library.normalizer = normalizers.BertNormalizer(lowercase=True)
            library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
            library.decoder = decoders.BPEDecoder(suffix="</w>")
        else:
            library = Library(models.BPE(vocab=vocab, merges=merges))
            library.pre_tokenizer = pre_tokenizers.ByteLevel(
                add_prefix_space=bool(config.get("add_prefix_space", False))
            )
            library.decoder = decoders.ByteLevel()
            template(library, "<s> $A </s>", "<s> $A </s> </s> $B </s>", ("<s>", "</s>"))
    known = ("<s>", "<pad>", "</s>", "<unk>", "<|endoftext|>")
    library.add_special_tokens(added([token for token in known if token in vocab]))
    if "<mask>" in vocab:
        # As published for RoBERTa: the mask takes the space before it along.
        library.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=False)])
    return library


def from_vocab(path: Path, config: dict[str, Any]) -> Any:
    """BERT: one token a line, the line's number is the id."""
    lines = _read_text(path).split("\n")
    if not lines[-1]:
        lines.pop()
    vocab = {token.rstrip("\r"): id for id, token in enumerate(lines)}
    if "[UNK]" not in vocab:
        raise CheckpointError(
            f"{path} is not a vocabulary of BERT: among its {len(lines):,} lines none is [UNK]."
        )
    from tokenizers import Tokenizer as Library
    from tokenizers import models

    cased = any(c.isupper() for token in vocab if not token.startswith("[") for c in token)
    with _Wrapped(path):
        library = Library(models.WordPiece(vocab=vocab, unk_token="[UNK]"))
        bert_around(library, lowercase=bool(config.get("do_lower_case", not cased)))
        template(library, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ("[CLS]", "[SEP]"))
    library.add_special_tokens(added([t for t in SPECIAL_TOKENS["wordpiece"] if t in vocab]))
    return library


def from_sentencepiece(path: Path, config: dict[str, Any]) -> Any:
    """T5: pieces with scores, of which the most probable sequence is taken; sentinels behind them."""
    found = read_pieces(path)
    texts = [text for text, _ in found.pieces]
    like_t5 = texts[:3] == ["<pad>", "</s>", "<unk>"]
    count = config.get("extra_ids")
    if type(count) is not int:  # the published file has no sentinels, and the settings may be lost
        count = 100 if like_t5 and not any("<extra_id_" in text for text in texts) else 0
    if not 0 <= count <= 10_000:
        raise CheckpointError(
            f"{path.parent / 'tokenizer_config.json'} has extra_ids={count}, expected a number from 0 to 10,000."
        )
    sentinels = [f"<extra_id_{k}>" for k in reversed(range(count))]
    # The library reads long decimals with an error in the last bit, and ten digits without.
    vocab = [(text, float(f"{score:.10g}")) for text, score in found.pieces]
    from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Library

    with _Wrapped(path):
        library = Library(
            models.Unigram([*vocab, *((token, 0.0) for token in sentinels)], unk_id=found.unknown)
        )
        if found.rules:
            library.normalizer = normalizers.Precompiled(found.rules)
        library.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
        )
        library.decoder = decoders.Metaspace()
        special = sorted({*found.control, found.unknown})
        library.add_special_tokens(added([*(texts[id] for id in special), *sentinels]))
        library.add_tokens([AddedToken(texts[id], normalized=False) for id in found.defined])
        if like_t5:
            template(library, "$A </s>", "$A </s> $B </s>", ("</s>",))
    return library


def read_config(folder: Path) -> dict[str, Any]:
    """What the files beside the tokenizer say about it; empty if there are none."""
    config: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            config |= _read_json(folder / name)
    return config


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(_read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is damaged: not JSON ({error}). Was the download or the copy cut off?"
        ) from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(data).__name__}.")
    return data


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{path} is damaged or of another kind: byte 0x{error.object[error.start]:02x} at "
            f"offset {error.start} is not UTF-8."
        ) from None


class _Wrapped:
    """Turns whatever the library raises, its panics too, into an error about the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: Any
    ) -> None:
        # A panic of the library does not derive from Exception, and is known by its name only.
        foreign = isinstance(error, Exception) or "Panic" in getattr(kind, "__name__", "")
        if foreign and not isinstance(error, CheckpointError):
            raise CheckpointError(
                f"{self.path} is damaged or of another kind: the tokenizers library says: {error}"
            ) from None


def write_text(path: Path, text: str) -> None:
    """Write under another name and rename, so that the file is either old or whole."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
