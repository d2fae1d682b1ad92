"""Byte-pair encoding, the algorithm itself: a definition to read, not to run on large texts.

Sennrich, Haddow and Birch, 2016, "Neural Machine Translation of Rare Words with Subword Units"
(arXiv:1508.07909), section 3.2. Words start as characters. The pair of neighbours seen most often
in all words becomes one symbol, everywhere, again and again; the order of these merges is the
model. A new word is encoded by making the same merges in the same order.

The paper leaves ties open. Here, as in the `tokenizers` library, the pair with the smallest ids
wins: characters are numbered by code point, merged symbols in the order in which they appear.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import pairwise

Merge = tuple[str, str]


def train(
    words: Mapping[str, int], *, vocab_size: int, min_frequency: int = 1
) -> tuple[list[str], list[Merge]]:
    """The vocabulary, characters first, and the merges in the order in which they were made.

    Args:
        words: how often each word occurs. A merge never reaches across two words.
        vocab_size: stop when the vocabulary has this many symbols.
        min_frequency: stop when the best pair is seen less often than this.
    """
    vocab = {character: i for i, character in enumerate(sorted(set("".join(words))))}
    split = {word: list(word) for word in words}
    merges: list[Merge] = []
    while len(vocab) < vocab_size:
        counts: Counter[Merge] = Counter()
        for word, symbols in split.items():
            for pair in pairwise(symbols):
                counts[pair] += words[word]
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], vocab[pair[0]], vocab[pair[1]]))
        if counts[best] < min_frequency:
            break
        merges.append(best)
        vocab.setdefault("".join(best), len(vocab))
        split = {word: _merge(symbols, best) for word, symbols in split.items()}
    return list(vocab), merges


def encode(word: str, merges: Iterable[Merge]) -> list[str]:
    """The symbols of one word: always the earliest merge that is possible, leftmost first."""
    rank = {pair: i for i, pair in enumerate(merges)}
    symbols = list(word)
    while True:
        known = [(rank[pair], i) for i, pair in enumerate(pairwise(symbols)) if pair in rank]
        if not known:
            return symbols
        _, i = min(known)
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]


def _merge(symbols: list[str], pair: Merge) -> list[str]:
    """The symbols with each occurrence of the pair joined, from left to right."""
    joined: list[str] = []
    for symbol in symbols:
        # A symbol just made cannot be joined again: it is longer than the pair's first.
        if joined and (joined[-1], symbol) == pair:
            joined[-1] += symbol
        else:
            joined.append(symbol)
    return joined
