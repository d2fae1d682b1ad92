"""Update rules, learning-rate schedules and clipping."""

from .adam import AdamW as AdamW
from .clip import gradient_norm as gradient_norm
from .clip import shrink as shrink
from .schedule import SCHEDULES as SCHEDULES
from .sgd import SGD as SGD
