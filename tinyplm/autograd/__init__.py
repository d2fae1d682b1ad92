"""The engine: tensors, ops with their gradients, and the check that the gradients are right."""

from . import operators as operators
from . import ops as ops
from .check import GradientError as GradientError
from .check import KinkError as KinkError
from .check import check_grad as check_grad
from .engine import OPS as OPS
from .engine import Tensor as Tensor
from .engine import op as op
from .modes import detect_anomaly as detect_anomaly
from .modes import no_grad as no_grad
from .modes import recording as recording
