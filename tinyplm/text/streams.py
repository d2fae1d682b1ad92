"""Batches of parallel streams, each of which goes on in the next batch: what carries a state is trained on these."""

from collections.abc import Iterator

import numpy as np

from ..errors import ConfigError, DataError
from ..types import Array, Batch
from .batching import Tokens, check_goes_on


class Streams:
    """Endless batches whose row r goes on where row r of the batch before ended.

    Each epoch cuts the tokens into as many streams as a batch has rows, from a starting point of its own, and reads all
    of them side by side. `fresh` says in which rows a stream begins.

        batch["input_ids"]      (B, length + 1) int64, sharing one token with the next batch
        batch["fresh"]          (B,) booleans

    Args:
        tokens: ids in one axis.
        length: tokens that a model reads at a time.
        batch: streams side by side.
        seed: of the starting points.

    Raises:
        DataError: the text is shorter than one window.
        ConfigError: a length, batch or seed that cannot be.
    """

    def __init__(self, tokens: Tokens, *, length: int, batch: int, seed: int = 0) -> None:
        if length < 1 or batch < 1 or seed < 0:
            raise ConfigError(
                f"length and batch must be at least 1 and seed at least 0; got length={length}, batch={batch}, "
                f"seed={seed}"
            )
        if len(tokens) < length + 1:
            raise DataError(
                f"the text has {len(tokens):,} tokens, but one window needs {length + 1:,}. Lower the length to at "
                f"most {max(0, len(tokens) - 1):,}, or use more text."
            )
        self.tokens = tokens
        self.length = length
        self.batch = batch
        self.seed = seed
        self._epoch = self._cursor = self._offset = self.per_epoch = self._apart = 0
        self._start(0, 0)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next piece of every stream.

        Raises:
            DataError: the text is too short for so many streams.
        """
        if self._cursor == self.per_epoch:
            self._start(self._epoch + 1, 0)
        if not self.per_epoch:
            raise DataError(
                f"the text has {len(self.tokens):,} tokens, too few for {self.batch} streams of {self.length} tokens "
                f"each. Lower the batch to at most {(len(self.tokens) - 1) // self.length:,}, lower the length, or use "
                "more text."
            )
        first = self._offset + self._cursor * self.length
        rows = [first + row * self._apart for row in range(self.batch)]
        fresh = self._cursor == 0
        self._cursor += 1
        return _piece(self.tokens, rows, self.length, fresh)

    def state(self) -> dict[str, int]:
        """Where it stands, for JSON."""
        return {
            "epoch": self._epoch,
            "cursor": self._cursor,
            "seed": self.seed,
            "length": self.length,
            "batch": self.batch,
            "tokens": len(self.tokens),
        }

    def restore(self, state: dict[str, int]) -> None:
        """Go on from a `state`, with the same batches as if never stopped.

        Raises:
            ConfigError: the state is of another text, length, batch or seed.
        """
        check_goes_on(state, self.state(), "seed", "length", "batch", "tokens")
        self._start(int(state["epoch"]), int(state["cursor"]))

    def in_order(self) -> Iterator[Batch]:
        """The whole text in streams side by side, fewer of them where it is short, for evaluation.

        The last piece is shorter, and fewer tokens than there are streams are left over. The endless iterator does
        not move.
        """
        count = min(self.batch, (len(self.tokens) - 1) // self.length)
        each = (len(self.tokens) - 1) // count
        for start in range(0, each, self.length):
            rows = [row * each + start for row in range(count)]
            yield _piece(self.tokens, rows, min(self.length, each - start), start == 0)

    def _start(self, epoch: int, cursor: int) -> None:
        """Derive the epoch's starting point from seed and epoch."""
        (drawn,) = np.random.SeedSequence([self.seed, epoch]).generate_state(1, np.uint64)
        spare = len(self.tokens) - 1 - self.batch * self.length
        self._offset = int(drawn) % (min(self.length, max(0, spare) + 1))
        self._apart = (len(self.tokens) - 1 - self._offset) // self.batch
        self.per_epoch = self._apart // self.length
        self._epoch = epoch
        self._cursor = cursor


def _piece(tokens: Tokens, rows: list[int], length: int, fresh: bool) -> Batch:
    windows: list[Array] = [np.asarray(tokens[at : at + length + 1], np.int64) for at in rows]
    return {"input_ids": np.stack(windows), "fresh": np.full(len(rows), fresh)}
