"""What an objective makes of a text: what goes in, what has to be predicted, and what may be looked at."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..autograd import no_grad, ops
from ..autograd.ops.loss import IGNORED
from ..errors import DataError
from ..objectives import OBJECTIVES
from ..text import Tokenizer
from ..text.kinds import byte_symbols

UNBOUNDED = 1_000_000


@dataclass(frozen=True)
class Explanation:
    """One text under one objective.

    Attributes:
        inputs: tokens that the model reads, as text.
        targets: what each position has to predict; None where nothing.
        visible: for each position, the positions that it may look at.
        losses: nats of each target under a model; None without one.
    """

    inputs: list[str]
    targets: list[str | None]
    visible: list[list[bool]]
    losses: list[float | None] | None

    @property
    def labels(self) -> int:
        """How many predictions there are."""
        return sum(target is not None for target in self.targets)

    @property
    def mean_loss(self) -> float | None:
        """Nats per label, the loss of this text alone."""
        known = [loss for loss in self.losses or () if loss is not None]
        return sum(known) / len(known) if known else None


def explain(
    objective: str, text: str, tokenizer: Tokenizer | None = None, model: Any = None
) -> Explanation:
    """Show an objective on a text, which is taken for a whole document.

    Args:
        objective: its name on the command line.
        text: a sentence or so.
        tokenizer: cuts the text; without one, each of its words is a token.
        model: whose losses to show.

    Raises:
        DataError: the text is too short, or has characters that the tokenizer does not know.
        ShapeError: the text is longer than the model's positions.
    """
    return EXPLAINERS[objective](text, tokenizer or words(text), model)


def words(text: str) -> Tokenizer:
    """A tokenizer for this text alone: byte pairs are merged until each word is one token."""
    return Tokenizer.train("byte-bpe", [text], vocab_size=UNBOUNDED, min_frequency=1)


def shown_token(tokenizer: Tokenizer, token: int) -> str:
    r"""A token as text in quotes, so that spaces and line ends can be seen; parts of characters as \xed and such."""
    if token in tokenizer.special_ids:
        return tokenizer.token(token)
    text = tokenizer.token(token)
    if tokenizer.kind in ("bytes", "byte-bpe") and _BYTES.keys() >= set(text):
        raw = bytes(_BYTES[symbol] for symbol in text)
        text = raw.decode("utf-8", errors="backslashreplace")
        return "'" + text.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t") + "'"
    return repr(text)


_BYTES = {symbol: byte for byte, symbol in enumerate(byte_symbols())}


def _causal_lm(text: str, tokenizer: Tokenizer, model: Any) -> Explanation:
    ids = tokenizer.encode(text).tolist()
    if ids and tokenizer.end_of_text is not None:
        ids.append(tokenizer.end_of_text)  # as in training, where each document ends with it
    if len(ids) < 2:
        raise DataError(
            f"The text has {len(ids)} token{'' if len(ids) == 1 else 's'}; to predict one from those before it takes "
            "at least 2. Give a longer text."
        )
    objective = OBJECTIVES["causal-lm"]()
    batch = objective.prepare({"input_ids": np.array([ids])}, rng=np.random.default_rng(0))
    (inputs,), (labels,) = batch["input_ids"], batch["labels"]
    losses = None
    if model is not None:
        with no_grad():
            each = ops.cross_entropy(
                model.head(model(batch["input_ids"])), batch["labels"], reduction="none"
            )
        losses = [
            None if label == IGNORED else float(loss)
            for label, loss in zip(labels, each.numpy()[0], strict=True)
        ]
    return Explanation(
        inputs=[shown_token(tokenizer, int(i)) for i in inputs],
        targets=[None if t == IGNORED else shown_token(tokenizer, int(t)) for t in labels],
        visible=np.tri(len(inputs), dtype=bool).tolist(),
        losses=losses,
    )


EXPLAINERS: dict[str, Callable[[str, Tokenizer, Any], Explanation]] = {"causal-lm": _causal_lm}
"""How each objective is shown, by its name on the command line."""
