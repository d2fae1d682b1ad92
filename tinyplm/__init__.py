"""Classic pretrained language models on one small automatic-differentiation engine."""

from .autograd import Tensor as Tensor
from .autograd import check_grad as check_grad
from .autograd import detect_anomaly as detect_anomaly
from .autograd import no_grad as no_grad
from .autograd import ops as ops

__version__ = "0.1.0"
