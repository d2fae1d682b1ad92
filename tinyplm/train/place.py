"""Where a step runs: in NumPy, where every number is known at once, or on a card, which is not waited for.

A place computes the gradient of an update's batches and applies it, unless loss or gradient norm are not finite; then
everything stays as it was, and whoever reads the numbers learns of it.
"""

import math
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..autograd import Tensor
from ..autograd.modes import mode
from ..backend import namespace
from ..errors import DeviceMemoryError, TinyplmWarning
from ..kernels.dropout import SEEDS
from ..kernels.graph import Draws, Late, Parcel, Worker
from ..kernels.many import Clipping
from ..nn.checks import checked_ids
from ..optim import gradient_norm, shrink
from ..types import Array, Batch, Generator

GRAPHS = 4
"""How many kinds of batch get a graph; each keeps a step's memory."""

REMEMBERED = 64
"""Kinds of batches that are counted, to see which come again."""


@dataclass(frozen=True)
class Update:
    """What an update is made of, as `train` takes it."""

    model: Any
    objective: Any
    optimizer: Any
    parameters: list[Tensor]
    batches: int
    clip: float | None
    rng: Generator


class Numbers(Protocol):
    """Loss and gradient norm of an update."""

    @property
    def known(self) -> bool:
        """Whether they can be read without waiting."""
        ...

    def read(self) -> Sequence[float]:
        """The two numbers."""
        ...


@dataclass(frozen=True)
class Known:
    """Numbers that are there."""

    loss: float
    norm: float
    known = True

    def read(self) -> Sequence[float]:
        """The two numbers."""
        return self.loss, self.norm


class Place(Protocol):
    """Where a step runs.

    Attributes:
        ahead: updates that may have been begun while the numbers of an earlier one are not read yet.
    """

    ahead: int

    def update(self, batches: list[Batch], counts: Mapping[str, float], rate: float) -> Numbers:
        """Compute one update of prepared batches, which together have these counts."""
        ...

    def rewind(self, updates: int) -> None:
        """The last updates were left out, as the first of them was not finite."""
        ...

    def close(self) -> None:
        """No more updates follow."""
        ...


def place_of(update: Update, *, graph: bool | None = None) -> Place:
    """Where the model's parameters lie.

    Args:
        update: what is to be done.
        graph: whether a card records steps that come again, and repeats them; if None, it does.
    """
    on_host = all(namespace(p.array) is np for p in update.parameters)
    return OnHost(update) if on_host else OnCard(update, graph=graph is not False)


class OnHost:
    """In NumPy."""

    ahead = 0

    def __init__(self, update: Update) -> None:
        self._update = update

    def update(self, batches: list[Batch], counts: Mapping[str, float], rate: float) -> Known:
        """As any place does."""
        u, loss = self._update, 0.0
        for p in u.parameters:
            p.grad = None
        for batch in batches:
            part = u.objective.loss(u.model, batch, counts=counts, rng=u.rng)
            loss += part.item()
            if not math.isfinite(loss):
                return Known(loss, math.nan)
            part.backward()
        norm = gradient_norm(u.parameters)
        if math.isfinite(norm):
            u.optimizer.step(rate, shrink=shrink(norm, u.clip))
        return Known(loss, norm)

    def rewind(self, updates: int) -> None:
        """Nothing was counted."""

    def close(self) -> None:
        """Nothing is under way."""


class OnCard:
    """On a card. Batches are sent ahead, numbers come late, and a step that comes again is repeated as a graph.

    A step is computed twice as it is, which compiles and sizes everything; the third time it is recorded. Steps are the
    same if their arrays, which all lie on the card, have the same shapes and types and their counts are the same. Seeds
    are drawn beforehand then, as many as before and from the same generator: the same bits, recorded or not.
    """

    ahead = 4

    def __init__(self, update: Update, *, graph: bool) -> None:
        self._update, self._graph = update, graph
        self._worker = Worker()
        like = update.parameters[0].array
        self._clipping = Clipping(like)
        self._losses = namespace(like).zeros(update.batches, np.float64)
        self._precision = np.result_type(np.float32, *{p.dtype for p in update.parameters})
        self._seen: OrderedDict[Any, _Kind] = OrderedDict()
        self._known: list[tuple[Array, bool]] = []  # the parameters that recorded steps are of
        self._stays = update.objective.on_host

    def update(self, batches: list[Batch], counts: Mapping[str, float], rate: float) -> Late:
        """As any place does."""
        before = self._update.optimizer.steps
        try:
            return self._run(batches, counts, rate)
        except Exception as error:
            self.rewind(self._update.optimizer.steps - before)
            if isinstance(error, DeviceMemoryError) or not isinstance(error, MemoryError):
                raise
            raise DeviceMemoryError(
                f"No room on the card for this step ({error}). Use a smaller --batch with more --accumulate, shorter "
                "--positions, --precision bfloat16 or a smaller model; other programs on the card (nvidia-smi shows "
                "them) may hold the rest."
            ) from error

    def rewind(self, updates: int) -> None:
        """The optimizer had counted them. Their numbers are still on their way to memory that is about to be freed."""
        self._worker.wait()
        self._update.optimizer.rewind(updates)

    def close(self) -> None:
        """Wait for all work, since its memory is about to be freed."""
        self._forget()

    def _run(self, batches: list[Batch], counts: Mapping[str, float], rate: float) -> Late:
        u = self._update
        sent = [self._sent(batch) for batch in batches]
        kind = self._kind(batches, sent, counts)
        seeds: list[int] = []
        if kind is not None and kind.times >= 2:
            seeds = [int(u.rng.integers(SEEDS)) for _ in range(kind.seeds)]
        alone = {
            "numbers": np.array(u.optimizer.advance(rate), self._precision),
            "seeds": np.array(seeds, np.int64),
        }
        with self._worker.working():
            parcel = self._worker.send([*sent, alone])
            if kind is None:
                self._compute(batches, parcel, counts, Draws(u.rng))
            elif kind.times == 0:
                draws = Draws(u.rng)
                self._compute(batches, parcel, counts, draws)
                kind.seeds, kind.comes_again = draws.seeds or 0, draws.seeds is not None
            elif kind.times == 1:
                self._clear()
                self._worker.give_back()
                kind.pool = self._worker.pool()
                with self._worker.from_pool(kind.pool):
                    self._compute(batches, parcel, counts, Draws(u.rng))
                kind.gradients = [p.grad for p in u.parameters]
            elif kind.graph is not None or self._recorded(kind, batches, parcel, counts):
                kind.parcel.take(parcel)
                kind.graph.launch()
                for p, g in zip(u.parameters, kind.gradients, strict=True):
                    p.grad = g
                    if g is not None:
                        p.write()
            else:
                self._compute(batches, parcel, counts, Draws(given=seeds))
            self._worker.has_read()
            if kind is not None:
                kind.times += 1
            return self._worker.bring(self._clipping.found)

    def _compute(
        self, batches: list[Batch], parcel: Parcel, counts: Mapping[str, float], draws: Draws
    ) -> None:
        """The whole update, launched."""
        u = self._update
        *there, alone = parcel.groups
        self._clear()
        for i, (batch, fields) in enumerate(zip(batches, there, strict=True)):
            part = u.objective.loss(u.model, batch | fields, counts=counts, rng=draws)
            self._losses[i] = part.array.reshape(())
            part.backward()
        gradients = [p.grad for p in u.parameters if p.grad is not None]
        self._clipping(gradients, self._losses, u.clip)
        u.optimizer.apply(alone["numbers"], self._clipping.factor)

    def _recorded(
        self, kind: "_Kind", batches: list[Batch], parcel: Parcel, counts: Mapping[str, float]
    ) -> bool:
        """Record a step, of arrays that stay where they are; whether that could be."""
        kind.parcel = parcel.kept(self._worker)
        seeds = kind.parcel.groups[-1]["seeds"]
        draws = Draws(given=[seeds[i : i + 1] for i in range(kind.seeds)])
        kind.gradients = None  # their memory is the graph's
        try:
            kind.graph = self._worker.recorded(
                lambda: self._compute(batches, kind.parcel, counts, draws), kind.pool
            )
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
        else:
            kind.gradients = [p.grad for p in self._update.parameters]
            return True
        # Only now nothing holds what the error had left in the pool.
        self._graph = False
        self._clear()
        self._forget()
        warnings.warn(
            f"Steps are launched kernel by kernel, which is slower for small models: this one could not be recorded "
            f"as a graph ({why}). --no-graph does without trying.",
            TinyplmWarning,
            stacklevel=2,
        )
        return False

    def _sent(self, batch: Batch) -> dict[str, Array]:
        """What of a batch goes to the card, where nobody looks at ids."""
        config = getattr(self._update.model, "config", None)
        names = {"input_ids": "vocab_size", "decoder_input_ids": "vocab_size"}
        if getattr(config, "source_vocab_size", None):
            names["input_ids"] = "source_vocab_size"
        for name, of_config in names.items():
            most = getattr(config, of_config, None)
            if most is not None and name in batch:
                checked_ids(batch[name], most, name, of_config)
        return {
            name: value
            for name, value in batch.items()
            if isinstance(value, np.ndarray)
            and value.dtype.kind in "biuf"
            and name not in self._stays
        }

    def _kind(
        self, batches: list[Batch], sent: list[dict[str, Array]], counts: Mapping[str, float]
    ) -> "_Kind | None":
        """What is known of steps like this one; None if it is not to be repeated."""
        whole = all(
            batch.keys() == there.keys() for batch, there in zip(batches, sent, strict=True)
        )
        if not self._graph or mode.anomaly or not whole:
            return None
        now = [(p.data, p.requires_grad) for p in self._update.parameters]
        if any(
            array is not old or learns != learnt
            for (array, learns), (old, learnt) in zip(now, self._known, strict=False)
        ):
            self._forget()
        self._known = now
        key = (
            tuple(tuple((n, a.shape, a.dtype) for n, a in there.items()) for there in sent),
            tuple(counts.items()),
        )
        kind = self._seen.setdefault(key, _Kind())
        self._seen.move_to_end(key)
        if len(self._seen) > REMEMBERED:
            del self._seen[next(k for k, other in self._seen.items() if other.pool is None)]
        full = sum(other.pool is not None for other in self._seen.values()) >= GRAPHS
        return kind if kind.comes_again and (kind.pool is not None or not full) else None

    def _clear(self) -> None:
        """Let go of the last gradients."""
        for p in self._update.parameters:
            p.grad = None

    def _forget(self) -> None:
        """No step is known any more. Graphs may be at work; then their memory is free."""
        self._worker.wait()
        pools = [kind.emptied(self._update.parameters) for kind in self._seen.values()]
        self._seen.clear()
        for pool in pools:
            if pool is not None:
                pool.free_all_blocks()


@dataclass(eq=False)
class _Kind:
    """Steps of the same shapes and counts.

    Attributes:
        times: that it came.
        comes_again: whether it can be repeated at all: it draws nothing but seeds.
        seeds: that it draws.
        pool: the graph's memory.
        graph: the recorded step.
        parcel: what the graph reads.
        gradients: that it leaves in its pool.
    """

    times: int = 0
    comes_again: bool = True
    seeds: int = 0
    pool: Any = None
    graph: Any = None
    parcel: Any = None
    gradients: Any = None

    def emptied(self, parameters: Sequence[Tensor]) -> Any:
        """The pool, if there is one, with nothing of the graph in it."""
        for p, g in zip(parameters, self.gradients or (), strict=False):
            if p.grad is g:
                p.grad = None
        pool, self.pool = self.pool, None
        self.graph = self.parcel = self.gradients = None
        return pool
