"""Classic pretrained language models on one small automatic-differentiation engine."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .autograd import Tensor as Tensor
from .autograd import check_grad as check_grad
from .autograd import detect_anomaly as detect_anomaly
from .autograd import no_grad as no_grad
from .autograd import ops as ops

if TYPE_CHECKING:
    from .hub import from_pretrained as from_pretrained
    from .hub import load as load
    from .hub import save_pretrained as save_pretrained
    from .kernels.precision import precision as precision
    from .nn import quantize as quantize
    from .recipes.pipeline import pipeline as pipeline
    from .text import Tokenizer as Tokenizer

__version__ = "0.1.0"

_ON_FIRST_USE = {
    "Tokenizer": "text",
    "from_pretrained": "hub",
    "load": "hub",
    "pipeline": "recipes.pipeline",
    "precision": "kernels.precision",
    "quantize": "nn",
    "save_pretrained": "hub",
}


def __getattr__(name: str) -> Any:
    """What is dear to import comes when it is first asked for."""
    if name in _ON_FIRST_USE:
        found = getattr(import_module(f".{_ON_FIRST_USE[name]}", __name__), name)
        globals()[name] = found
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ON_FIRST_USE})
