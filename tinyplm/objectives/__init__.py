"""What pretraining minimises: one file per objective, how the data is made and the loss, together."""

import difflib
from typing import Any

from ..errors import ConfigError
from .causal_lm import CausalLM as CausalLM
from .masked_lm import MaskedLM as MaskedLM
from .next_sentence import NextSentence as NextSentence
from .objective import Objective as Objective
from .objective import Prediction as Prediction
from .objective import Sum as Sum
from .prefix_lm import PrefixLM as PrefixLM
from .sequence_to_sequence import SequenceToSequence as SequenceToSequence
from .span_corruption import SpanCorruption as SpanCorruption
from .truncated_bptt import TruncatedBptt as TruncatedBptt

OBJECTIVES: dict[str, type[Objective]] = {
    "causal-lm": CausalLM,
    "mlm": MaskedLM,
    "nsp": NextSentence,
    "span-corruption": SpanCorruption,
    "prefix-lm": PrefixLM,
    "tbptt": TruncatedBptt,
    "seq2seq": SequenceToSequence,
}
"""Objectives by the names that the command line uses."""


def objective_named(name: str, tokenizer: Any) -> Objective:
    """The objective of a name, or the sum of several joined by +, such as mlm+nsp.

    Raises:
        ConfigError: no such objective, or the tokenizer lacks a token that it takes.
    """
    check_objective(name)
    parts = [OBJECTIVES[part].of(tokenizer) for part in name.split("+")]
    return parts[0] if len(parts) == 1 else Sum(*parts)


def check_objective(name: str) -> None:
    """Refuse a name that is no objective and no sum of several.

    Raises:
        ConfigError: with the nearest that is.
    """
    for part in name.split("+"):
        if part not in OBJECTIVES:
            near = difflib.get_close_matches(part, OBJECTIVES, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            known = ", ".join(sorted(OBJECTIVES))
            raise ConfigError(
                f"No objective '{part}'.{hint} Known: {known}; several are joined by +."
            )
