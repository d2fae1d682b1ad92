"""Sentences and documents in a stream of tokens, and pairs of passages as BERT is pretrained on.

A document ends at the end-of-text id. A sentence ends at a token whose text ends in . ! ? or their like in other
scripts, or at the end of its document; abbreviations are not known, which the procedure does not mind.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..errors import ConfigError, DataError
from ..types import Array, Batch, Generator
from .batching import Tokens, check_goes_on, pad, permuted

_ENDS = (".", "!", "?", "\u2026", "\u3002", "\uff01", "\uff1f", "\uff0e", "\u0964", "\u061f")
_BEHIND = " \n\t\"'\u201d\u2019)]}\u300d\u300f\uff09\u00bb*_"  # what may stand behind the mark that ends a sentence
_BLOCK = 1 << 20  # tokens looked at at a time while documents and sentences are found
_SLOTS = 64  # documents that are read at a time, so that a batch is not all from one

# Where A and B stand in the stream, and 1 if B is from another document.
_Pair = tuple[range, range, int]


def framing(tokenizer: Any) -> tuple[tuple[int], tuple[int]] | None:
    """The ids that go in front of and behind a text, such as ((CLS,), (SEP,)); None if there are none."""
    first, last = tokenizer.classifier, tokenizer.separator
    if first is None and "<s>" in tokenizer and "</s>" in tokenizer:  # as RoBERTa has them
        first, last = tokenizer.id("<s>"), tokenizer.id("</s>")
    return None if first is None or last is None else ((first,), (last,))


def ends_of_sentences(tokenizer: Any) -> Array:
    """For each token whether it ends a sentence, (V,) booleans."""
    ends = np.zeros(tokenizer.vocab_size, bool)
    for id in range(tokenizer.vocab_size):
        if id not in tokenizer.special_ids:
            ends[id] = tokenizer.decode([id]).rstrip(_BEHIND).endswith(_ENDS)
    return ends


class SentencePairs:
    """Endless batches of two passages in a row, half of which did not follow one another.

    From each document in turn (Devlin et al., 2019, appendix A.2, and the released code):
    1. Sentences are gathered until they fill `length` less the three ids around them, or for one pair in ten a
       shorter length, drawn uniformly from 2 on; or until the document ends.
    2. They are divided at a random place between sentences: A is what comes before.
    3. With probability one half, and always if there was one sentence only, B is from another document: from a random
       sentence of it on, as much as was wanted, or as there is. What came behind A goes back, for the next pair.
       Otherwise B is what came behind A.
    4. While both are too long, the longer loses a token, at its front or its back with equal chance.

    The released code draws the shorter length once for a document; here it is drawn for each pair, so that a text of a
    few long documents is not spoiled by one draw. It also tries ten times to find another document; here one always is.

    Documents are read in an order of each epoch's own, up to 64 of them side by side, so that the rows of a batch have
    little to do with one another. What a document gives follows from seed, epoch and its number, so a few numbers say
    where all stands. Where sentences begin is found once, eight bytes for each, so that a pair costs as much in a long
    document as in a short one.

    Args:
        tokens: ids in one axis.
        length: of a row at most, with the three ids around the passages.
        batch: pairs in a batch.
        seed: of everything that is drawn.
        classifier: id in front.
        separator: id behind each passage.
        padding: id that fills up rows to the longest of the batch.
        end_of_text: id that ends a document.
        ends: (V,) booleans, true for ids that end a sentence.
        short: share of pairs that are made for a shorter length.
        other: share of pairs whose B is from another document, before those of one sentence.

    Raises:
        DataError: fewer than two documents, or no document of two sentences.
        ConfigError: a length, batch or seed that cannot be.
    """

    def __init__(
        self,
        tokens: Tokens,
        *,
        length: int,
        batch: int,
        seed: int = 0,
        classifier: int,
        separator: int,
        padding: int,
        end_of_text: int,
        ends: Array,
        short: float = 0.1,
        other: float = 0.5,
    ) -> None:
        if length < 5 or batch < 1 or seed < 0:
            raise ConfigError(
                "length must be at least 5 (two passages of a token and three ids around them), batch at least 1 and "
                f"seed at least 0; got length={length}, batch={batch}, seed={seed}"
            )
        if not 0 <= short <= 1 or not 0 <= other <= 1:
            raise ConfigError(f"short and other are shares; got short={short}, other={other}")
        self.tokens = tokens
        self.length = length
        self.batch = batch
        self.seed = seed
        self.classifier, self.separator, self.padding = classifier, separator, padding
        self.end_of_text = end_of_text
        self.ends = ends
        self.short, self.other = short, other
        self.documents, self._edges = self._find_documents()
        # Each slot: epoch, place in its order, pairs taken; then the next place of all, and the slot whose turn it is.
        self._slots: list[list[int]] = []
        self._running: list[Iterator[_Pair]] = []
        self._next, self._turn = [0, 0], 0
        for _ in range(min(_SLOTS, len(self.documents))):
            self._slots.append([])
            self._running.append(iter(()))
            self._open(len(self._slots) - 1)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch: input_ids, token_type_ids, attention_mask (B, T) and next_sentence_labels (B,), int64."""
        pairs: list[_Pair] = []
        while len(pairs) < self.batch:
            slot = self._turn
            pair = next(self._running[slot], None)
            if pair is None:
                self._open(slot)
                continue
            self._slots[slot][2] += 1
            self._turn = (slot + 1) % len(self._slots)
            pairs.append(pair)
        return self._joined(pairs)

    def state(self) -> dict[str, Any]:
        """Where it stands, for JSON; the batch size is not part of it and may change."""
        return {
            "slots": [list(slot) for slot in self._slots],
            "next": list(self._next),
            "turn": self._turn,
            "seed": self.seed,
            "length": self.length,
            "tokens": len(self.tokens),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`, with the same batches as if never stopped.

        Raises:
            ConfigError: the state is of another text, length or seed.
        """
        check_goes_on(state, self.state(), "seed", "length", "tokens")
        if len(state["slots"]) != len(self._slots):
            raise ConfigError(
                "cannot go on: the text was cut into other documents. Start a new run."
            )
        self._slots = [[int(n) for n in slot] for slot in state["slots"]]
        self._next, self._turn = [int(n) for n in state["next"]], int(state["turn"])
        for slot, (epoch, place, taken) in enumerate(self._slots):
            self._running[slot] = self._opened(epoch, place)
            for _ in range(taken):
                next(self._running[slot])

    def in_order(self) -> Iterator[Batch]:
        """Pairs of every document once, from the start of the stream, for evaluation; the same ones each time.

        The last batch may be smaller. The endless iterator does not move.
        """
        waiting = []
        for document in range(len(self.documents)):
            for pair in self._pairs(document, np.random.default_rng([self.seed, document])):
                waiting.append(pair)
                if len(waiting) == self.batch:
                    yield self._joined(waiting)
                    waiting = []
        if waiting:
            yield self._joined(waiting)

    def _find_documents(self) -> tuple[Array, Array]:
        """Where documents and sentences are.

        Returns:
            Start and end of each document that has a token, (N, 2), without the ids that end them; and in order every
            place where a sentence starts or a document starts or ends, so that the sentences of a document are
            between neighbours.
        """
        stops, edges, several, size = [], [], False, len(self.tokens)
        for start in range(0, size, _BLOCK):
            block = np.asarray(self.tokens[start : start + _BLOCK + 1])
            stop_here = block == self.end_of_text
            stops.append(start + np.flatnonzero(stop_here[:_BLOCK]))
            ends = self.ends[block]
            # A run of marks ends one sentence, not several.
            inside = ends[:-1] & ~ends[1:] & ~stop_here[1:]
            several = several or bool(inside.any())
            edges.append(start + 1 + np.flatnonzero(inside | stop_here[:-1] | stop_here[1:]))
        last = np.concatenate([*stops, [size]])
        first = np.concatenate([[0], last[:-1] + 1])
        found = np.stack([first, last], axis=1)[last > first]
        if len(found) < 2 or not several:
            seen = (
                f"{len(found)} document{'s' * (len(found) != 1)}"
                if len(found) < 2
                else f"{len(found):,} documents of one sentence each"
            )
            raise DataError(
                f"This part of the text has {seen}, but objective 'nsp' takes second passages from other documents: "
                "it needs at least two documents, and two sentences in one of them. Use 'mlm' alone, or give the text "
                "as documents: a folder of files, a .jsonl file, or blank lines between documents."
            )
        return found, np.concatenate([[0], *edges, [size]])

    def _open(self, slot: int) -> None:
        """Let a slot read the next document that none has read."""
        epoch, place = self._next
        self._slots[slot] = [epoch, place, 0]
        self._running[slot] = self._opened(epoch, place)
        place += 1
        self._next = [epoch, place] if place < len(self.documents) else [epoch + 1, 0]

    def _opened(self, epoch: int, place: int) -> Iterator[_Pair]:
        # The hash behind SeedSequence is fixed by NumPy.
        keys = list(np.random.SeedSequence([self.seed, epoch]).generate_state(6, np.uint64))
        places = np.array([place], np.uint64)
        document = int(permuted(places, len(self.documents), keys)[0])
        return self._pairs(document, np.random.default_rng([self.seed, epoch, document, 1]))

    def _sentences(self, document: int) -> tuple[int, int]:
        """The first and the last edge of a document: each edge but the last is the start of a sentence of it."""
        first, last = np.searchsorted(self._edges, self.documents[document])
        return int(first), int(last)

    def _gathered(self, at: int, last: int, wanted: int) -> int:
        """The edge behind a passage from edge `at` on: a sentence at least, until enough is there or the last edge."""
        behind = self._edges[at + 1 : last]
        return at + 1 + int(np.searchsorted(behind, self._edges[at] + wanted))

    def _pairs(self, document: int, rng: Generator) -> Iterator[_Pair]:
        """The pairs that a document gives. No token is read, so that pairs taken before are passed over quickly."""
        room = self.length - 3
        at, last = self._sentences(document)
        while at < last:
            wanted = int(rng.integers(2, room + 1)) if rng.random() < self.short else room
            taken = self._gathered(at, last, wanted)
            cut = at + 1 if taken - at == 1 else int(rng.integers(at + 1, taken))
            a = range(self._edges[at], self._edges[cut])
            if taken - at == 1 or rng.random() < self.other:
                b, label, at = self._elsewhere(document, wanted - len(a), rng), 1, cut
            else:
                b, label, at = range(self._edges[cut], self._edges[taken]), 0, taken
            yield (*_shortened(a, b, room, rng), label)

    def _elsewhere(self, document: int, wanted: int, rng: Generator) -> range:
        """A passage from a random sentence of another document on: at least one, until enough is there."""
        other = int(rng.integers(len(self.documents) - 1))
        first, last = self._sentences(other + (other >= document))
        start = first + int(rng.integers(last - first))
        return range(self._edges[start], self._edges[self._gathered(start, last, wanted)])

    def _read(self, passage: range) -> Array:
        return np.asarray(self.tokens[passage.start : passage.stop], dtype=np.int64)

    def _joined(self, pairs: list[_Pair]) -> Batch:
        """Pairs as a batch: in front the classifier's id, behind each passage a separator."""
        front, behind = [self.classifier], [self.separator]
        rows = [
            np.concatenate([front, self._read(a), behind, self._read(b), behind])
            for a, b, _ in pairs
        ]
        batch = pad(rows, padding=self.padding)
        mask = batch["attention_mask"]
        first = np.array([[len(a) + 2] for a, _, _ in pairs])
        return batch | {
            "token_type_ids": ((np.arange(mask.shape[1]) >= first) & (mask == 1)).astype(np.int64),
            "next_sentence_labels": np.array([label for *_, label in pairs], np.int64),
        }


def _shortened(a: range, b: range, room: int, rng: Generator) -> tuple[range, range]:
    """Both cut until they fit: the longer loses a token at a time, the first or the last."""
    fronts = rng.random(max(0, len(a) + len(b) - room)) < 0.5
    # The longer until both are as long, then B and A in turn.
    more = abs(len(a) - len(b))
    alone, both = fronts[:more], fronts[more:]
    from_a, from_b = both[1::2], both[::2]
    if len(a) > len(b):
        from_a = np.concatenate([alone, from_a])
    else:
        from_b = np.concatenate([alone, from_b])
    return _without(a, from_a), _without(b, from_b)


def _without(passage: range, fronts: Array) -> range:
    """A passage less one token for each of `fronts`: the first where it is true, else the last."""
    start = int(np.count_nonzero(fronts))
    return passage[start : len(passage) - (len(fronts) - start)]
