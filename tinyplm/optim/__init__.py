"""Update rules, learning-rate schedules and clipping."""

from typing import Any

from .adafactor import Adafactor as Adafactor
from .adam import AdamW as AdamW
from .clip import gradient_norm as gradient_norm
from .clip import shrink as shrink
from .optimizer import Optimizer as Optimizer
from .optimizer import masters as masters
from .schedule import SCHEDULES as SCHEDULES
from .sgd import SGD as SGD

OPTIMIZERS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "adamw": (AdamW, ("beta_1", "beta_2", "weight_decay")),
    "adafactor": (Adafactor, ()),
    "sgd": (SGD, ("weight_decay",)),
}
"""Update rules by the names that the command line uses, with the settings of a run that they take."""
