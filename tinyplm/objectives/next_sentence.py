"""Next sentence prediction: did the second passage follow the first, or does it come from another document?

Devlin, Chang, Lee and Toutanova, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
NAACL 2019 (arXiv:1810.04805), section 3.1 task 2 and appendix A.2.

Procedure: `text.sentences.SentencePairs` cuts documents into pairs of passages and draws every second one's second half
from another document. Nothing is left to choose when a batch is prepared.

    loss = - 1/N sum over the N pairs of log P(label | the pooled vector of [CLS])        (nats per pair)

Labels: 0 the passage that followed, 1 one from another document.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from ..errors import ConfigError, DataError
from ..text.sentences import SentencePairs, ends_of_sentences, framing
from ..types import Array, Batch, Generator
from .objective import Batches, Objective, Prediction


@dataclass(frozen=True, kw_only=True)
class NextSentence(Objective):
    """Predict whether two passages followed one another.

    Attributes:
        classifier: id in front of both passages.
        separator: id behind each.
        padding: id that fills up short pairs.
        end_of_text: id behind each document of the stream.
        ends: (V,) booleans, true for tokens that end a sentence.
        short: share of pairs that are cut for a shorter length, drawn from 2 on.
        other: share of pairs whose second passage is from another document.
        smoothing: share of the target spread over both classes; 0 in the paper.
    """

    frames: ClassVar[bool] = True
    labels: ClassVar[Mapping[str, str]] = {"pairs": "next_sentence_labels"}

    classifier: int
    separator: int
    padding: int
    end_of_text: int
    ends: Array = field(repr=False, compare=False)
    short: float = 0.1
    other: float = 0.5
    smoothing: float = 0.0

    @classmethod
    def of(cls, tokenizer: Any, **settings: Any) -> Self:
        """The objective for texts cut by this tokenizer.

        Raises:
            ConfigError: it has no token to put in front of a text, or none to put behind it.
        """
        frame = framing(tokenizer)
        if frame is None or tokenizer.end_of_text is None:
            raise ConfigError(
                "Objective 'nsp' puts tokens such as [CLS] and [SEP] around two passages; this "
                f"{tokenizer.kind} tokenizer has none. Use a wordpiece tokenizer, or train one with special_tokens "
                "that include them."
            )
        ((classifier,), (separator,)) = frame
        found = {
            "classifier": classifier,
            "separator": separator,
            "padding": 0 if tokenizer.padding is None else tokenizer.padding,
            "end_of_text": tokenizer.end_of_text,
            "ends": ends_of_sentences(tokenizer),
        }
        return cls(**(found | settings))

    def batches(self, text: Any, *, length: int, batch: int, seed: int) -> Batches:
        """Pairs of passages, each at most `length` tokens with those around it."""
        return SentencePairs(
            text,
            length=length,
            batch=batch,
            seed=seed,
            classifier=self.classifier,
            separator=self.separator,
            padding=self.padding,
            end_of_text=self.end_of_text,
            ends=self.ends,
            short=self.short,
            other=self.other,
        )

    def prepare(self, batch: Batch, *, rng: Generator) -> Batch:
        """The batch as it is: the labels were made with the pairs."""
        if "next_sentence_labels" not in batch:
            raise DataError(
                "The batch has no next_sentence_labels, so there is no pair to judge; take batches from this "
                "objective's `batches`, which makes pairs of a text."
            )
        return dict(batch)

    def predictions(self, model: Any, hidden: Any, batch: Batch) -> dict[str, Prediction]:
        """The label of each pair, from its pooled vector."""
        if not hasattr(model, "next_sentence"):
            raise ConfigError(
                f"Objective 'nsp' needs a model that carries 'next-sentence'; this {type(model).__name__} does not. "
                "Build it with carries=('masked-lm', 'next-sentence')."
            )
        pooled = model.pooled(hidden, batch.get("attention_mask"))
        return {"pairs": Prediction(pooled, model.next_sentence, batch["next_sentence_labels"])}

    def nothing(self, term: str, batch: Batch) -> str:
        """The message for a batch without labels."""
        return "No pair of this batch has a label, so the loss is undefined. Was the batch made by SentencePairs?"
