"""Clipping by the global norm (Pascanu et al., 2013, arXiv:1211.5063, algorithm 1)."""

import math
from collections.abc import Iterable

from ..autograd import Tensor
from ..kernels.many import sum_of_squares


def gradient_norm(parameters: Iterable[Tensor]) -> float:
    """Euclidean length of all gradients together; not finite where a gradient is not."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return math.sqrt(sum_of_squares(*gradients)) if gradients else 0.0


def shrink(norm: float, limit: float | None) -> float:
    """The factor that brings gradients of this norm down to the limit; 1 without a limit or below it.

    The norm gets 1e-6 added, as in PyTorch, so that results can be compared.
    """
    return 1.0 if limit is None else min(1.0, limit / (norm + 1e-6))
