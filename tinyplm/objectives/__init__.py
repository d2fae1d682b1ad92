"""What pretraining minimises: one file per objective, how the data is made and the loss, together."""

from typing import Any

from .causal_lm import CausalLM as CausalLM
from .objective import Objective as Objective
from .objective import Prediction as Prediction
from .objective import Sum as Sum

OBJECTIVES: dict[str, type[Objective]] = {"causal-lm": CausalLM}
"""Objectives by the names that the command line uses."""


def objective_named(name: str, tokenizer: Any) -> Objective:
    """The objective of a name, or the sum of several joined by +, such as mlm+nsp.

    Raises:
        ConfigError: the tokenizer lacks a token that it takes.
    """
    parts = [OBJECTIVES[part].of(tokenizer) for part in name.split("+")]
    return parts[0] if len(parts) == 1 else Sum(*parts)
