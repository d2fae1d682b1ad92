"""The models that can be pretrained, and how a run's settings become one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..models import gpt2


@dataclass(frozen=True)
class Entry:
    """A model on offer.

    Attributes:
        paper: what it comes from, in a line.
        sizes: its published configs by name.
        build: a model from a config and a generator, None for placeholders.
        config: the config of a run's settings and a vocabulary size.
        objectives: names of the objectives that fit, its own first; the parts of a sum fit too.
        tokenizer: the kind that is trained for it.
        special_tokens: of that tokenizer; those of the kind when None.
        appended_tokens: more special tokens, with its last ids.
        defaults: settings of a run that differ for this model.
    """

    paper: str
    sizes: dict[str, Any]
    build: Callable[..., Any]
    config: Callable[[Any, int], Any]
    objectives: tuple[str, ...]
    tokenizer: str = "bpe"
    special_tokens: tuple[str, ...] | None = None
    appended_tokens: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def fits(self, objective: str) -> bool:
        """Whether it can learn from this objective, or from this sum of several."""
        parts = {part for name in self.objectives for part in name.split("+")}
        return parts.issuperset(objective.split("+"))


def _gpt2(run: Any, vocab_size: int) -> gpt2.Gpt2Config:
    return gpt2.Gpt2Config(
        vocab_size=vocab_size,
        hidden_size=run.hidden_size,
        layers=run.layers,
        heads=run.heads,
        positions=run.positions,
        dropout=run.dropout,
        embedding_dropout=run.dropout,
        attention_dropout=run.dropout,
    )


MODELS: dict[str, Entry] = {
    "gpt2": Entry(
        paper="Radford et al., 2019: Language Models are Unsupervised Multitask Learners",
        sizes=dict(gpt2.SIZES),
        build=gpt2.Gpt2,
        config=_gpt2,
        objectives=("causal-lm",),
    ),
}
"""Every model by its name on the command line."""
