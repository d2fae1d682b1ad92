"""RoBERTa: the names and settings of Hugging Face's `roberta`, and ours.

The encoder's names are BERT's. The position table has two rows more than there are positions, padding + 1 of them. A
classifier of whole inputs has a dense layer of its own, which is our `pooler`; one that lies beside it is not read.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..types import Generator
from .bert import POOLER, Table, classes, linear, norm
from .family import Sorted
from .layout import Slot
from .settings import Settings

if TYPE_CHECKING:
    from ..models.roberta import Roberta


class RobertaTable(Table):
    """BERT's table with positions that begin behind the padding's."""

    def config(self, values: Mapping[str, Any], carries: tuple[str, ...], found: Sorted) -> Any:
        """Our config."""
        from ..models.roberta import RobertaConfig

        settings = Settings(values, aliases={})
        rows = settings.whole("max_position_embeddings", 512)
        padding = values.get("pad_token_id", 1)
        if type(padding) is not int or not 0 <= padding < rows - 1:
            raise ConfigError(
                f"config.json has pad_token_id={padding!r} and max_position_embeddings={rows}; positions begin behind "
                "the padding's row, so expected a whole number that leaves room for one."
            )
        return RobertaConfig(
            vocab_size=settings.whole("vocab_size", 50_265),
            positions=rows - padding - 1,
            padding=padding,
            **self.settings(values, carries, found),
        )

    def rows(self, config: Any) -> int:
        """Rows of the position table."""
        return int(config.positions + config.padding + 1)

    def build(self, config: Any, rng: Generator | None) -> "Roberta":
        """The model; without rng its parameters have shapes and no values yet."""
        from ..models.roberta import Roberta

        return Roberta(config, rng=rng)

    def write_config(self, config: Any, end_of_text: int | None) -> dict[str, Any]:
        """The settings as config.json holds them."""
        published = config.vocab_size == 50_265
        return super().write_config(config, end_of_text) | {
            "bos_token_id": 0 if published else None,
            "eos_token_id": 2 if published and end_of_text is None else end_of_text,
            "pad_token_id": config.padding,
        }


TABLE = RobertaTable(
    model_type="roberta",
    prefix="roberta.",
    heads={
        "masked-lm": [
            *linear("head.before.dense", "lm_head.dense", "DD"),
            *norm("head.before.norm", "lm_head.layer_norm"),
            Slot("head.bias", "lm_head.bias", "V"),
        ],
        "sequence-classification": [
            *linear("pooler", "classifier.dense", "DD"),
            *classes("classifier", "classifier.out_proj", "C"),
        ],
        "token-classification": classes("classifier", "classifier", "C"),
        "question-answering": classes("span", "qa_outputs", "B"),
        "pooler": POOLER,
    },
    marks={
        "masked-lm": "lm_head.",
        "sequence-classification": "classifier.dense.",
        "token-classification": "classifier.weight",
        "question-answering": "qa_outputs.",
        "pooler": "pooler.",
    },
    tied={
        "lm_head.decoder.weight": "embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    },
    architectures={
        "RobertaForMaskedLM": ("masked-lm",),
        "RobertaForSequenceClassification": ("sequence-classification",),
        "RobertaForTokenClassification": ("token-classification",),
        "RobertaForQuestionAnswering": ("question-answering",),
        "RobertaModel": (),
    },
)
sort, read_config, shapes = TABLE.sort, TABLE.read_config, TABLE.shapes
build, write_arrays, write_config = TABLE.build, TABLE.write_arrays, TABLE.write_config
