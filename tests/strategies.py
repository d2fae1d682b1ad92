"""Drawing with hypothesis, so that failures shrink: the same cases that the command draws with NumPy."""

import numpy as np
from hypothesis import strategies as st

from tinyplm.autograd.cases import CASES, Draw

GRID = 1 << 12
FEW = 6  # up to so many values are drawn one by one, and shrink; more come from a seed


class HypothesisDraw(Draw):
    """Draws from hypothesis."""

    def __init__(self, draw):
        self.draw = draw

    def integer(self, low, high):
        return self.draw(st.integers(low, high))

    def values(self, low, high, count):
        if count > FEW:
            return np.random.default_rng(self.draw(st.integers(0, 1 << 32))).uniform(
                low, high, count
            )
        inside = st.integers(int(np.ceil(low * GRID)), int(np.floor(high * GRID)))
        return np.array(self.draw(st.lists(inside, min_size=count, max_size=count)), float) / GRID

    def whole(self, shape, low, high):
        count = int(np.prod(shape, dtype=int))
        if count > FEW:
            rng = np.random.default_rng(self.draw(st.integers(0, 1 << 32)))
            return self.arranged(rng.integers(low, high + 1, size=shape))
        return super().whole(shape, low, high)


@st.composite
def samples(draw, name):
    """One use of an op, as its case draws it."""
    return CASES[name].draw(HypothesisDraw(draw))


@st.composite
def arrays(draw, least=0, most=3, low=-2.0, high=2.0):
    """An array of any shape and strides."""
    d = HypothesisDraw(draw)
    return d.array(d.shape(least, most), low, high)
