"""Strings to integers: tokenizers, corpora, token files and batches."""

from .batching import Windows as Windows
from .batching import pad as pad
from .corpus import Corpus as Corpus
from .corpus import Piece as Piece
from .corpus import open_corpus as open_corpus
from .cutting import split_long_text as split_long_text
from .pairs import PairBatches as PairBatches
from .pairs import PairFile as PairFile
from .pairs import open_pairs as open_pairs
from .pairs import tokenize_pairs as tokenize_pairs
from .streams import Streams as Streams
from .token_file import TokenFile as TokenFile
from .token_file import tokenize_corpus as tokenize_corpus
from .tokenizer import Tokenizer as Tokenizer
