"""Layers without a paper's name on them."""

from .attention import Cache as Cache
from .attention import CrossAttention as CrossAttention
from .attention import EncoderDecoderCache as EncoderDecoderCache
from .attention import Inspection as Inspection
from .attention import SelfAttention as SelfAttention
from .conditioned import Conditioned as Conditioned
from .embedding import Embedding as Embedding
from .feed_forward import ACTIVATIONS as ACTIVATIONS
from .feed_forward import FeedForward as FeedForward
from .feed_forward import GatedFeedForward as GatedFeedForward
from .head import Head as Head
from .linear import Linear as Linear
from .module import Module as Module
from .norm import LayerNorm as LayerNorm
from .norm import RMSNorm as RMSNorm
from .position import ClippedPositions as ClippedPositions
from .position import RelativeAttention as RelativeAttention
from .position import RelativeBias as RelativeBias
from .quantize import quantize as quantize
from .recurrent import CELLS as CELLS
from .recurrent import GRU as GRU
from .recurrent import LSTM as LSTM
from .recurrent import RNN as RNN
from .recurrent import Recurrent as Recurrent
from .transformer import PostNormBlock as PostNormBlock
from .transformer import PreNormBlock as PreNormBlock
