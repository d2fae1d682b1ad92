"""Ids to batches: windows of a long stream, and padding of short sequences."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ..errors import ConfigError, DataError, DtypeError, ShapeError
from ..types import Array, Batch


class Tokens(Protocol):
    """A stream of ids: an array, a memory map or a `TokenFile`."""

    def __len__(self) -> int: ...
    def __getitem__(self, key: slice, /) -> Any: ...


class Windows:
    """Endless batches of windows cut from a stream of tokens.

    Each epoch cuts the stream into windows from a starting point of its own and visits each once,
    in an order of its own. Both follow from seed and epoch alone, so three numbers say where it
    stands, and no order is ever stored: a stream of any length needs no memory here.

        windows = Windows(tokens, length=128, batch=16, seed=0)
        for batch in windows:
            batch["input_ids"]                      # (16, 129) int64

    Args:
        tokens: ids in one axis.
        length: tokens that a model reads at a time.
        batch: windows in a batch.
        seed: of the order. Two objects with the same seed give the same batches.
        mode: "causal" gives windows of length + 1 tokens, each sharing one with the next, so that
            every token is predicted once: inputs are [:, :-1], labels [:, 1:]. "plain" gives
            windows of `length` tokens that share none.
        frame: ids put before and behind the tokens of each window, within its length, such as
            ((cls,), (sep,)).
        shift: whether each epoch begins at a point of its own; else its windows are always the same ones.

    Raises:
        DataError: the stream is shorter than one window.
        ConfigError: a length, batch or mode that cannot be.
    """

    def __init__(
        self,
        tokens: Tokens,
        *,
        length: int,
        batch: int,
        seed: int = 0,
        mode: str = "causal",
        frame: tuple[Sequence[int], Sequence[int]] = ((), ()),
        shift: bool = True,
    ) -> None:
        if mode not in ("causal", "plain"):
            raise ConfigError(f"mode must be 'causal' or 'plain'; got {mode!r}")
        if length < 1 or batch < 1 or seed < 0:
            raise ConfigError(
                f"length and batch must be at least 1 and seed at least 0; got length={length}, "
                f"batch={batch}, seed={seed}"
            )
        self.frame = frame
        self.shift = shift
        length -= sum(map(len, frame))
        if length < 1:
            raise ConfigError(
                f"a window of {length + sum(map(len, frame))} has no room for tokens beside {sum(map(len, frame))} "
                "special ones. Choose a greater length."
            )
        self.tokens = tokens
        self.length = length
        self.batch = batch
        self.seed = seed
        self.width = length + (mode == "causal")
        if len(tokens) < self.width:
            raise DataError(
                f"the text has {len(tokens):,} tokens, but one window needs {self.width:,} "
                f"(length={length}, mode={mode!r}). Lower the length to at most "
                f"{max(0, len(tokens) - self.width + length):,}, or use more text."
            )
        self._epoch = self._cursor = self._offset = self.per_epoch = 0
        self._keys: list[Any] = []
        self._start(0, 0)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch: input_ids (B, length + 1), or (B, length) in mode plain, int64."""
        rows: list[Array] = []
        while len(rows) < self.batch:
            if self._cursor == self.per_epoch:
                self._start(self._epoch + 1, 0)
            stop = min(self._cursor + self.batch - len(rows), self.per_epoch)
            places = np.arange(self._cursor, stop, dtype=np.uint64)
            for window in permuted(places, self.per_epoch, self._keys).tolist():
                at = self._offset + window * self.length
                rows.append(np.asarray(self.tokens[at : at + self.width], dtype=np.int64))
            self._cursor = stop
        return {"input_ids": self._framed(rows)}

    def state(self) -> dict[str, int]:
        """Where it stands, for JSON; the batch size is not part of it and may change."""
        return {
            "epoch": self._epoch,
            "cursor": self._cursor,
            "seed": self.seed,
            "length": self.length,
            "tokens": len(self.tokens),
        }

    def restore(self, state: dict[str, int]) -> None:
        """Go on from a `state`, with the same batches as if never stopped.

        Raises:
            ConfigError: the state is of another text, length or seed.
        """
        check_goes_on(state, self.state(), "seed", "length", "tokens")
        self._start(int(state["epoch"]), int(state["cursor"]))

    def in_order(self) -> Iterator[Batch]:
        """Every window once, from the start of the stream, for evaluation.

        The last batch may be smaller. The endless iterator does not move.
        """
        count = (len(self.tokens) - self.width) // self.length + 1
        for first in range(0, count, self.batch):
            starts = range(first, min(first + self.batch, count))
            rows = [self.tokens[i * self.length : i * self.length + self.width] for i in starts]
            yield {"input_ids": self._framed(rows)}

    def _framed(self, rows: list[Array]) -> Array:
        """The windows as one array, each between the special ids that frame it."""
        first, last = (np.tile(np.array(ids, np.int64), (len(rows), 1)) for ids in self.frame)
        return np.concatenate([first, np.stack(rows).astype(np.int64), last], axis=1)

    def _start(self, epoch: int, cursor: int) -> None:
        """Derive the epoch's starting point and order from seed and epoch."""
        # The hash behind SeedSequence is fixed by NumPy; the streams of its generators are not.
        offset, *keys = np.random.SeedSequence([self.seed, epoch]).generate_state(7, np.uint64)
        choices = min(self.length, len(self.tokens) - self.width + 1)
        self._offset = int(offset) % choices if self.shift else 0
        self._keys = keys
        self.per_epoch = (len(self.tokens) - self._offset - self.width) // self.length + 1
        self._epoch = epoch
        self._cursor = cursor


def check_goes_on(state: Mapping[str, Any], now: Mapping[str, Any], *keys: str) -> None:
    """Refuse a state that is of another text or of other settings than those of now.

    Raises:
        ConfigError: names what differs.
    """
    for key in keys:
        if state.get(key) != now[key]:
            raise ConfigError(
                f"cannot go on: {key} was {state.get(key)} and is {now[key]}. Use the data and "
                "settings that the run began with, or start a new run."
            )


def permuted(places: Array, count: int, keys: Sequence[Any]) -> Array:
    """Where each place of range(count) goes in a permutation that the keys choose.

    A Feistel network: the halves of a number are mixed into each other in turn, which can be
    undone whatever the mixing function, so no two numbers meet. It permutes a power of four;
    numbers that leave range(count) are sent on until they are back in it, three more times on
    average at most.
    """
    half = np.uint64(max(1, ((count - 1).bit_length() + 1) // 2))
    low = np.uint64((1 << int(half)) - 1)

    def once(x: Array) -> Array:
        left, right = x >> half, x & low
        for key in keys:
            mixed = (right ^ key) * np.uint64(0x9E3779B97F4A7C15)  # wraps around, as wanted
            mixed ^= mixed >> np.uint64(29)
            mixed *= np.uint64(0xBF58476D1CE4E5B9)
            mixed ^= mixed >> np.uint64(32)
            left, right = right, left ^ (mixed & low)
        return (left << half) | right

    result = once(places)
    while (outside := result >= count).any():
        result[outside] = once(result[outside])
    return result


def pad(
    sequences: Sequence[Sequence[int] | Array],
    *,
    padding: int,
    length: int | None = None,
    side: str = "right",
) -> Batch:
    """Sequences of different lengths as one batch.

    Args:
        sequences: ids, each in one axis.
        padding: the id to fill up with.
        length: of the rows; that of the longest sequence unless given.
        side: "right" or "left", where the filling goes.

    Returns:
        input_ids and attention_mask (1 for a token, 0 for filling), both (B, T) int64.

    Raises:
        ShapeError: no sequences, or one longer than `length`.
        ConfigError: another side.
    """
    if side not in ("right", "left"):
        raise ConfigError(f"side must be 'right' or 'left'; got {side!r}")
    rows = [np.asarray(s) if len(s) else np.zeros(0, np.int64) for s in sequences]
    if not rows:
        raise ShapeError("pad: no sequences; expected at least one")
    for i, row in enumerate(rows):
        if row.ndim != 1:
            raise ShapeError(f"pad: sequence {i} must have one axis; got shape {row.shape}")
        if row.dtype.kind not in "iu":
            raise DtypeError(f"pad: sequence {i} must hold integer ids; got dtype {row.dtype}")
    longest = max(len(row) for row in rows)
    T = longest if length is None else length
    if longest > T:
        i = next(i for i, row in enumerate(rows) if len(row) > T)
        raise ShapeError(
            f"pad: sequence {i} has {len(rows[i])} tokens, more than length={T}. Truncate it first."
        )
    ids_BT = np.full((len(rows), T), padding, np.int64)
    mask_BT = np.zeros((len(rows), T), np.int64)
    for i, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(T - len(row), T)
        ids_BT[i, where] = row
        mask_BT[i, where] = 1
    return {"input_ids": ids_BT, "attention_mask": mask_BT}
