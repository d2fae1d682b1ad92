"""Truncated backpropagation through time: a state that is carried on, a gradient that is not.

Mikolov, Karafiat, Burget, Cernocky and Khudanpur, "Recurrent neural network based language model", Interspeech 2010,
section 2; Williams and Peng, "An efficient gradient-based algorithm for on-line training of recurrent network
trajectories", Neural Computation 2, 1990. With parallel streams as in Zaremba et al., 2014, arXiv:1409.2329, section
4.1.

Procedure: the text is cut into as many streams as a batch has rows, read side by side, `length` tokens at a time. The
state at the end of a window is where the next window begins, as a number: the gradient stops there, so that its cost
does not grow with the text. At the beginning of a stream, once an epoch, the state is zero.

    loss = - 1/N sum over the N tokens of a batch of log P(token | all tokens of its stream before it)
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ..autograd import Tensor, recording
from ..backend import namespace, to_numpy
from ..errors import ConfigError, DataError
from ..text.streams import Streams
from ..types import Array, Batch, Generator
from .causal_lm import CausalLM
from .objective import Batches, Objective

State = list[tuple[Array, ...]]


@dataclass(kw_only=True)
class TruncatedBptt(Objective):
    """Predict each token from all before it in its stream.

    What is carried from batch to batch lives here, not in the model. Evaluation, which is what runs without recording,
    carries a state of its own and leaves that of training alone.

    Attributes:
        smoothing: share of the target spread over the vocabulary; 0 in the papers.
    """

    on_host: ClassVar[frozenset[str]] = frozenset({"fresh"})
    smoothing: float = 0.0
    _training: State | None = field(default=None, init=False, repr=False, compare=False)
    _evaluation: State | None = field(default=None, init=False, repr=False, compare=False)

    def batches(self, text: Any, *, length: int, batch: int, seed: int) -> Batches:
        """Parallel streams, each of which goes on in the next batch."""
        return Streams(text, length=length, batch=batch, seed=seed)

    def prepare(self, batch: Batch, *, rng: Generator) -> Batch:
        """Shift: inputs without the last token, labels without the first. Nothing is drawn."""
        return CausalLM(smoothing=self.smoothing).prepare(batch, rng=rng)

    def read(self, model: Any, batch: Batch, *, rng: Generator | None = None) -> Tensor:
        """Hidden states, from the state that the batch before left, or from zero in rows that are `fresh`.

        A batch without the field `fresh` begins everywhere.
        """
        if not hasattr(model, "read"):
            raise ConfigError(
                f"Objective 'tbptt' carries a state from batch to batch, which {type(model).__name__} does not have. "
                "Use a recurrent model, such as lstm, or the objective 'causal-lm'."
            )
        training = recording()
        before = self._begun(self._training if training else self._evaluation, batch)
        hidden, after = model.read(
            batch["input_ids"], before, attention_mask=batch.get("attention_mask"), rng=rng
        )
        kept: State = [tuple(_copied(part) for part in layer) for layer in after]
        if training:
            self._training = kept
        else:
            self._evaluation = kept
        return hidden

    def _begun(self, carried: State | None, batch: Batch) -> list[tuple[Tensor, ...]] | None:
        """The state to begin with, zero where a stream begins."""
        rows = len(batch["input_ids"])
        fresh = np.asarray(to_numpy(batch.get("fresh", np.ones(rows, bool))))
        if fresh.all():
            return None
        if carried is None or len(carried[0][0]) != rows:
            there = "nothing" if carried is None else f"the state of {len(carried[0][0])} streams"
            raise DataError(
                f"{rows - int(fresh.sum())} of {rows} streams go on from an earlier batch, but {there} was carried "
                "over. Begin with the first batch of an epoch, keep the batch size, and restore the objective together "
                "with its batches."
            )
        xp = namespace(carried[0][0])
        goes_on = xp.asarray(~fresh)[:, None]
        return [
            tuple(
                Tensor.wrap(
                    # CuPy makes float32 of halves here.
                    xp.where(goes_on, part, part.dtype.type(0)).astype(part.dtype, copy=False)
                )
                for part in layer
            )
            for layer in carried
        ]

    def arrays(self) -> dict[str, Array]:
        """What training carries on, by names; empty before the first batch."""
        return {
            f"{layer}.{part}": to_numpy(values)
            for layer, parts in enumerate(self._training or [])
            for part, values in enumerate(parts)
        }

    def restore(self, arrays: dict[str, Array]) -> None:
        """Go on from what `arrays` gave."""
        places = sorted(tuple(map(int, name.split("."))) for name in arrays)
        layers: State = [() for _ in {layer for layer, _ in places}]
        for layer, part in places:
            layers[layer] = (*layers[layer], arrays[f"{layer}.{part}"])
        self._training = layers or None
        self._evaluation = None


def _copied(part: Tensor) -> Array:
    """The values alone: a part of a larger array would keep that alive."""
    return namespace(part.array).array(part.array)
