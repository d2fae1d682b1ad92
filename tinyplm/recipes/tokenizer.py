"""Training a tokenizer on a text, for models to come."""

from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError
from ..text import Tokenizer, open_corpus

KINDS = {
    "bpe": "byte-bpe",
    "chars": "chars",
    "bytes": "bytes",
    "wordpiece": "wordpiece",
    "unigram": "unigram",
}
"""Kinds by their names on the command line."""

_SAMPLE = 1_000_000  # characters on which its tokens are counted


@dataclass(frozen=True)
class TrainedTokenizer:
    """A tokenizer that was trained and saved.

    Attributes:
        tokenizer: as saved.
        output: the folder.
        text: what it was trained on, in a line.
        bytes_per_token: of the beginning of that text.
    """

    tokenizer: Tokenizer
    output: Path
    text: str
    bytes_per_token: float


def train_tokenizer(
    data: str | None,
    kind: str,
    output: str | Path,
    *,
    vocab_size: int = 8_000,
    encoding: str = "utf-8",
    text_column: str | None = None,
) -> TrainedTokenizer:
    """Train a tokenizer on a text and save it in a folder.

    Args:
        data: a file or folder of text; Python's own documentation when None.
        kind: a key of `KINDS`.
        output: a folder that holds no tokenizer yet.
        vocab_size: tokens; the text decides for chars and bytes.
        encoding: of the text.
        text_column: of .csv, .tsv and .jsonl files.

    Raises:
        ConfigError: a size that does not fit the text, or a folder that holds a tokenizer.
        MissingFileError, DataError: what the message says.
    """
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output {output} is a file; name a new or an empty folder.")
    if (output / "tokenizer.json").exists():
        raise ConfigError(f"{output} already holds a tokenizer; name another folder with --output.")
    corpus = open_corpus(data, encoding=encoding, column=text_column)
    tokenizer = Tokenizer.train(KINDS[kind], corpus.documents(), vocab_size=vocab_size)
    tokenizer.save(output)
    sample, size = list[str](), 0
    for document in corpus.documents():
        sample.append(document[: _SAMPLE - size])
        size += len(sample[-1])
        if size >= _SAMPLE:
            break
    tokens = sum(len(ids) for ids in tokenizer.encode_batch(sample))
    bytes_ = sum(len(text.encode()) for text in sample)
    return TrainedTokenizer(tokenizer, output, corpus.description, bytes_ / max(1, tokens))
