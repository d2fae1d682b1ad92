"""What a run is trained on: its text, its tokenizer, and its tokens in the run's folder."""

import difflib
import itertools
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DataError, MissingFileError
from ..objectives import OBJECTIVES
from ..text import TokenFile, Tokenizer, open_corpus, pairs, tokenize_corpus
from .models import MODELS
from .run import Run

TOKENIZERS = {"chars": "chars", "bytes": "bytes", "bpe": "byte-bpe", "wordpiece": "wordpiece"}
"""Tokenizers that a run trains, by their names on the command line."""


class Material:
    """The text of a run. One that is resumed reads the tokens it began with, whatever has become of the text since."""

    def __init__(self, run: Run, output: Path, *, resumed: bool) -> None:
        self.run = run
        self.output = output
        self.resumed = resumed
        wants = {OBJECTIVES[part].reads for part in run.objective_name.split("+")}
        if len(wants) > 1:
            raise ConfigError(
                f"Objective '{run.objective_name}' joins one that reads a text and one that reads pairs of texts. "
                "Train on one of them."
            )
        self.pairs = wants == {"pairs"}
        self.path = output / ("pairs.bin" if self.pairs else "tokens.bin")
        self._kept = self._open() if resumed else None
        self._corpus: Any = None
        if not resumed:
            _check_tokenizer(run.tokenizer)
        if self._kept is None:
            self._corpus = self._read()

    @property
    def description(self) -> str:
        """What is read, in a line."""
        return self._corpus.description if self._corpus else f"the tokens kept in {self.path}"

    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer, trained or loaded, and saved in its folder."""
        if self.resumed:
            return Tokenizer.load(self.output)
        run, entry = self.run, MODELS[self.run.model]
        name = run.tokenizer or entry.tokenizer
        if name in TOKENIZERS:
            special = entry.special_tokens if name == entry.tokenizer else None
            if name == "chars" and len(list(itertools.islice(self._corpus.documents(), 2))) < 2:
                special = ()  # one document needs no token between documents
            tokenizer = Tokenizer.train(
                TOKENIZERS[name],
                self._corpus.documents(),
                vocab_size=run.vocab_size,
                special_tokens=special,
                appended_tokens=entry.appended_tokens,
            )
        else:
            tokenizer = Tokenizer.load(Path(name))
        tokenizer.save(self.output)
        return tokenizer

    def tokens(self, tokenizer: Tokenizer) -> Any:
        """The tokens, kept in the run's folder."""
        if self._kept is None:
            write = pairs.tokenize_pairs if self.pairs else tokenize_corpus
            self._kept = write(self._corpus, tokenizer, self.path)
        return self._kept

    def split(self, tokens: Any) -> tuple[Any, Any]:
        """What is trained on, and what is held out.

        Raises:
            DataError: too little of either.
        """
        run = self.run
        training, held_out = tokens.split(run.validation)
        what, least, most = ("pairs", 1, 1) if self.pairs else ("tokens", 2, run.positions + 1)
        if len(training) < most or len(held_out) < least:
            raise DataError(
                f"The text has {len(tokens):,} {what}: {len(training):,} to train on and {len(held_out):,} held out. "
                + (
                    "Give more pairs."
                    if self.pairs
                    else f"A window of {run.positions} positions needs at least {run.positions + 1} to train on and 2 "
                    "held out. Give more text, or lower --positions."
                )
            )
        return training, held_out

    def window(self, text: Any) -> int:
        """Tokens that are read at a time, fewer where the text is shorter."""
        return self.run.positions if self.pairs else min(self.run.positions, len(text) - 1)

    def digest(self) -> str:
        """A hash of what is read, to tell whether it is still what it was."""
        found = self._open()
        if found is None:
            raise DataError(
                f"{self.path} is missing or damaged; start a new run with another --output."
            )
        return str(found.digest())

    def _open(self) -> Any:
        """The tokens that the run began with; None if they are gone."""
        try:
            return pairs.PairFile.open(self.path) if self.pairs else TokenFile.open(self.path)
        except (MissingFileError, DataError):
            return None

    def _read(self) -> Any:
        run = self.run
        if not self.pairs:
            parts = run.objective_name.split("+")
            return open_corpus(
                run.data,
                encoding=run.encoding,
                column=run.text_column,
                blank_line_ends_document=any(OBJECTIVES[part].frames for part in parts),
            )
        if run.text_column is not None:
            raise ConfigError(
                f"text_column is '{run.text_column}', but {run.model} reads pairs of texts: columns source and target, "
                "or the first two. Leave it out."
            )
        if run.data is None:
            raise ConfigError(
                f"{run.model} learns from pairs of texts, and there is no --data. Name a .tsv, .csv or .jsonl file "
                "with two columns, source and target."
            )
        return pairs.open_pairs(run.data, encoding=run.encoding)


def _check_tokenizer(name: str | None) -> None:
    """Refuse a tokenizer that is neither trained here nor on the disk."""
    if name is not None and name not in TOKENIZERS and not Path(name).exists():
        near = difflib.get_close_matches(name, TOKENIZERS, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ConfigError(
            f"--tokenizer is '{name}', which is neither a file or folder nor one of: {', '.join(TOKENIZERS)}.{hint}"
        )
