"""A case for every op: inputs drawn at random, the value computed otherwise, and what hard inputs give.

The tests and the command `tinyplm gradcheck` run over the same cases.
"""

from . import (  # noqa: F401
    activation,
    attention,
    elementwise,
    index,
    linalg,
    loss,
    norm,
    recurrent,
    reduce,
    shape,
)
from .case import CASES as CASES
from .case import Case as Case
from .case import Hard as Hard
from .case import Sample as Sample
from .case import Seed as Seed
from .draw import Draw as Draw
from .draw import NumpyDraw as NumpyDraw
