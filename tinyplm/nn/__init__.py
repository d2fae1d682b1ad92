"""Layers without a paper's name on them."""

from .attention import Cache as Cache
from .attention import Inspection as Inspection
from .attention import SelfAttention as SelfAttention
from .embedding import Embedding as Embedding
from .feed_forward import ACTIVATIONS as ACTIVATIONS
from .feed_forward import FeedForward as FeedForward
from .head import Head as Head
from .linear import Linear as Linear
from .module import Module as Module
from .norm import LayerNorm as LayerNorm
from .norm import RMSNorm as RMSNorm
from .quantize import quantize as quantize
from .transformer import PreNormBlock as PreNormBlock
