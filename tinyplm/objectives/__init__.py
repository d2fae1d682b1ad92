"""What pretraining minimises: one file per objective, how the data is made and the loss, together."""

from .causal_lm import CausalLM as CausalLM
from .objective import Objective as Objective

OBJECTIVES: dict[str, type] = {"causal-lm": CausalLM}
"""Objectives by the names that the command line uses."""
