"""BERT: the names and settings of Hugging Face's `bert`, and ours.

Their linear layers store (out, in), ours (in, out); queries, keys and values are three layers there and one here. Files
may or may not begin the encoder's names with `bert.`; old ones call gains and biases of norms gamma and beta, and hold
position numbers, which are computed. The output layer over the vocabulary is a second name of the token embedding, and
its bias may be there under two names.

What a model carries is what its file has, and what `architectures` promises beyond that, which is then missed; or the
head that is asked for by name. A mixture of heads that no class of transformers has is named in config.json under a key
of our own, and `architectures` names the largest class that lies within it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, ConfigError
from ..types import Array, Generator
from .entry import TensorEntry, listed
from .family import Sorted
from .gpt2 import ACTIVATIONS
from .layout import Slot, check_depth, same_values, shapes_of, sort_by, their_arrays, twice
from .settings import Settings

if TYPE_CHECKING:
    from ..models.bert import Bert, BertConfig

BLOCK, LAYER = "blocks.{layers}.", "encoder.layer.{layers}."
SELF = LAYER + "attention.self."


def norm(ours: str, theirs: str) -> list[Slot]:
    """Gain and bias of a layer norm."""
    return [
        Slot(ours + ".gain", theirs + ".weight", "D"),
        Slot(ours + ".bias", theirs + ".bias", "D"),
    ]


def linear(ours: str, theirs: str, axes: str) -> list[Slot]:
    """Weight and bias of a linear layer, axes in our order."""
    return [
        Slot(ours + ".weight", theirs + ".weight", axes, turned=True),
        Slot(ours + ".bias", theirs + ".bias", axes[-1]),
    ]


def classes(ours: str, theirs: str, count: str) -> list[Slot]:
    """Weight and bias of a head, which has a row for each class on both sides."""
    return [
        Slot(ours + ".weight", theirs + ".weight", f"{count}D"),
        Slot(ours + ".bias", theirs + ".bias", count),
    ]


# V vocabulary, P rows of positions, S segments, D width, F feed-forward, C labels, B two.
ENCODER = [
    Slot("token_embedding.weight", "embeddings.word_embeddings.weight", "VD"),
    Slot("position_embedding.weight", "embeddings.position_embeddings.weight", "PD"),
    Slot("segment_embedding.weight", "embeddings.token_type_embeddings.weight", "SD"),
    *norm("norm", "embeddings.LayerNorm"),
    Slot(
        BLOCK + "attention.project_in.weight",
        (SELF + "query.weight", SELF + "key.weight", SELF + "value.weight"),
        "D3D",
        turned=True,
    ),
    Slot(
        BLOCK + "attention.project_in.bias",
        (SELF + "query.bias", SELF + "key.bias", SELF + "value.bias"),
        "3D",
    ),
    *linear(BLOCK + "attention.project_out", LAYER + "attention.output.dense", "DD"),
    *norm(BLOCK + "norm_1", LAYER + "attention.output.LayerNorm"),
    *linear(BLOCK + "feed_forward.expand", LAYER + "intermediate.dense", "DF"),
    *linear(BLOCK + "feed_forward.contract", LAYER + "output.dense", "FD"),
    *norm(BLOCK + "norm_2", LAYER + "output.LayerNorm"),
]
POOLER = linear("pooler", "pooler.dense", "DD")
INSIDE = ("embeddings.", "encoder.")
BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")
CARRIES = "tinyplm_carries"


@dataclass(frozen=True)
class Table:
    """What differs between BERT's folders and those of its heirs.

    Attributes:
        model_type: as config.json has it.
        prefix: of the encoder's names in models with heads.
        heads: the slots of each head, by its name.
        marks: for each head, how a name begins that only its weights have.
        tied: second names of the token embedding and of the output bias, with the first.
        architectures: the classes of transformers, and what each carries.
    """

    model_type: str
    prefix: str
    heads: Mapping[str, list[Slot]]
    marks: Mapping[str, str]
    tied: Mapping[str, str]
    architectures: Mapping[str, tuple[str, ...]]

    def sort(self, entries: Mapping[str, TensorEntry]) -> Sorted:
        """Entries under their names of today, without a prefix; which are buffers.

        Raises:
            CheckpointError: a weight is given under two names.
        """
        found: dict[str, TensorEntry] = {}
        ignored = []
        for name, entry in entries.items():
            bare = name.removeprefix(self.prefix)
            bare = bare.replace("LayerNorm.gamma", "LayerNorm.weight")
            bare = bare.replace("LayerNorm.beta", "LayerNorm.bias")
            if bare in BUFFERS:
                ignored.append(name)
            elif bare in found:
                raise twice(name, found[bare].name)
            else:
                found[bare] = entry
        for second, first in self.tied.items():
            other = found.pop(second, None)
            if other is not None and not same_values(found.setdefault(first, other), other):
                raise CheckpointError(
                    f"{other.name} differs from {found[first].name}, but this model's output layer is its token "
                    "embedding. It was trained apart, and cannot be read here."
                )
        return Sorted(found, (), tuple(ignored))

    def carried(
        self, values: Mapping[str, Any], names: Mapping[str, Any], head: str | None
    ) -> tuple[str, ...]:
        """What the model carries, by the head asked for, or the file and its settings."""
        from ..models.bert import HEADS

        if head is not None:
            if head not in HEADS:
                near = get_close_matches(head, HEADS, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ConfigError(f"No head {head!r}.{hint} Known: {', '.join(HEADS)}.")
            return (head,)
        # transformers copies keys that it does not know, whatever class it then saves.
        if CARRIES in values and "transformers_version" not in values:
            return self.named(values[CARRIES])
        said = values.get("architectures")
        first = said[0] if isinstance(said, list) and said else None
        promised = self.architectures.get(first, ()) if isinstance(first, str) else ()
        seen = {head for head, mark in self.marks.items() if any(n.startswith(mark) for n in names)}
        both = {"sequence-classification", "token-classification"}
        if both <= seen:  # one layer's name stands for either
            by_token = "token-classification" in promised or "pooler" not in seen
            seen.remove("sequence-classification" if by_token else "token-classification")
        seen |= set(promised)
        if "sequence-classification" in seen:
            seen.discard("pooler")
        return tuple(name for name in HEADS if name in seen)

    def named(self, said: Any) -> tuple[str, ...]:
        """The heads that config.json names under our own key."""
        if not isinstance(said, list) or not all(
            isinstance(name, str) and name in self.heads for name in said
        ):
            raise ConfigError(
                f"config.json has {CARRIES}={said!r}; expected a list of some of {', '.join(self.heads)}. It was "
                "edited, or written for another kind of model: mend it, or name the one head to load with head=."
            )
        return tuple(said)

    def read_config(
        self, values: Mapping[str, Any], found: Sorted, head: str | None = None
    ) -> tuple[Any, Sorted]:
        """Our config, and the entries under our names.

        Raises:
            ConfigError: a setting has a wrong type, is out of bounds, or asks for what is not computed.
            CheckpointError: settings and weights are of different depth, or the file has weights that we lack.
        """
        config = self.config(values, self.carried(values, found.entries, head), found)
        ours, rest = sort_by(self.slots(config), found.entries)
        names = [found.entries[bare].name for bare in rest]
        unknown = [name for name, bare in zip(names, rest, strict=True) if bare.startswith(INSIDE)]
        if unknown:
            raise CheckpointError(
                f"The file has weights that {self.model_type} does not compute with: {listed(unknown)}. It is of a "
                "changed model (adapters, relative positions?), whose results would differ. Merge the changes into "
                "the plain weights where it was trained, and save again."
            )
        return config, Sorted(ours, tuple(names), found.ignored)

    def settings(
        self, values: Mapping[str, Any], carries: tuple[str, ...], found: Sorted
    ) -> dict[str, Any]:
        """The settings that all of this family share, as our config has them."""
        settings = Settings(values, aliases={})
        settings.refuse("add_cross_attention", "this encoder has no other to attend to")
        settings.refuse("is_decoder", "this encoder sees both sides")
        settings.refuse("pruned_heads", "heads cannot be pruned here")
        settings.refuse("quantization_config", "quantized weights are not read")
        settings.choice("position_embedding_type", "absolute", {"absolute": "absolute"})
        layers = settings.whole("num_hidden_layers", 12)
        # Before anything is built: the file, whose size is bounded, says how deep the model can be.
        check_depth("num_hidden_layers", layers, found.entries, "encoder.layer.")
        labels = values.get("id2label")
        dropout = settings.number("hidden_dropout_prob", 0.1, low=0, below=1)
        own = values.get("classifier_dropout") is not None
        return {
            "hidden_size": settings.whole("hidden_size", 768),
            "layers": layers,
            "heads": settings.whole("num_attention_heads", 12),
            "ffn_size": settings.whole("intermediate_size", 3072),
            "segments": settings.whole("type_vocab_size", 2),
            "activation": settings.choice("hidden_act", "gelu", ACTIVATIONS),
            "eps": settings.positive("layer_norm_eps", 1e-12),
            "dropout": dropout,
            "attention_dropout": settings.number(
                "attention_probs_dropout_prob", 0.1, low=0, below=1
            ),
            "classifier_dropout": settings.number("classifier_dropout", dropout, low=0, below=1)
            if own
            else None,
            "init_std": settings.number("initializer_range", 0.02, low=0, below=1e3),
            "carries": carries,
            "labels": len(labels)
            if isinstance(labels, dict) and labels
            else settings.whole("num_labels", 2),
        }

    def config(self, values: Mapping[str, Any], carries: tuple[str, ...], found: Sorted) -> Any:
        """Our config."""
        from ..models.bert import BertConfig

        settings = Settings(values, aliases={})
        return BertConfig(
            vocab_size=settings.whole("vocab_size", 30_522),
            positions=settings.whole("max_position_embeddings", 512),
            **self.settings(values, carries, found),
        )

    def slots(self, config: "BertConfig") -> list[Slot]:
        """Where each parameter of such a model lies in a file."""
        found = list(ENCODER)
        own = {slot.ours for name in config.carries for slot in self.heads[name]}
        if config.pooled and POOLER[0].ours not in own:
            found += POOLER
        return found + [slot for name in config.carries for slot in self.heads[name]]

    def shapes(self, config: "BertConfig") -> dict[str, tuple[int, ...]]:
        """The shape of every parameter, by our name."""
        sizes = {
            "V": config.vocab_size,
            "P": self.rows(config),
            "S": config.segments,
            "D": config.hidden_size,
            "F": config.ffn_size or 4 * config.hidden_size,
            "C": config.labels,
            "B": 2,
        }
        return shapes_of(self.slots(config), sizes, {"layers": config.layers})

    def rows(self, config: Any) -> int:
        """Rows of the position table."""
        return int(config.positions)

    def build(self, config: Any, rng: Generator | None) -> "Bert":
        """The model; without rng its parameters have shapes and no values yet."""
        from ..models.bert import Bert

        return Bert(config, rng=rng)

    def write_arrays(self, config: Any, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """The parameters under the names to write; those of the encoder have a prefix where there is a head."""
        made = their_arrays(self.slots(config), arrays, {"layers": config.layers})
        prefix = self.prefix if set(config.carries) - {"pooler"} else ""
        return {
            prefix + name if name.startswith((*INSIDE, "pooler.")) else name: array
            for name, array in made.items()
        }

    def write_config(self, config: Any, end_of_text: int | None) -> dict[str, Any]:
        """The settings as config.json holds them."""
        written = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
        carried = set(config.carries)
        within = [name for name, heads in self.architectures.items() if carried.issuperset(heads)]
        largest = max(within, key=lambda name: len(self.architectures[name]))
        # The bare model of transformers has a pooler, or not.
        exact = carried in (set(self.architectures[largest]), {"pooler"})
        return {
            "architectures": [largest],
            "attention_probs_dropout_prob": config.attention_dropout,
            "classifier_dropout": config.classifier_dropout,
            "hidden_act": written[config.activation],
            "hidden_dropout_prob": config.dropout,
            "hidden_size": config.hidden_size,
            "initializer_range": config.init_std,
            "intermediate_size": config.ffn_size,
            "layer_norm_eps": config.eps,
            "max_position_embeddings": self.rows(config),
            "num_attention_heads": config.heads,
            "num_hidden_layers": config.layers,
            "pad_token_id": 0,
            "tie_word_embeddings": True,
            "type_vocab_size": config.segments,
            "vocab_size": config.vocab_size,
            **({} if config.labels == 2 else {"num_labels": config.labels}),
            **({} if exact else {CARRIES: list(config.carries)}),
        }


TABLE = Table(
    model_type="bert",
    prefix="bert.",
    heads={
        "masked-lm": [
            *linear("head.before.dense", "cls.predictions.transform.dense", "DD"),
            *norm("head.before.norm", "cls.predictions.transform.LayerNorm"),
            Slot("head.bias", "cls.predictions.bias", "V"),
        ],
        "next-sentence": classes("next_sentence", "cls.seq_relationship", "B"),
        "sequence-classification": classes("classifier", "classifier", "C"),
        "token-classification": classes("classifier", "classifier", "C"),
        "question-answering": classes("span", "qa_outputs", "B"),
        "pooler": POOLER,
    },
    marks={
        "masked-lm": "cls.predictions.",
        "next-sentence": "cls.seq_relationship.",
        "sequence-classification": "classifier.",
        "token-classification": "classifier.",
        "question-answering": "qa_outputs.",
        "pooler": "pooler.",
    },
    tied={
        "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    architectures={
        "BertForPreTraining": ("masked-lm", "next-sentence"),
        "BertForMaskedLM": ("masked-lm",),
        "BertForNextSentencePrediction": ("next-sentence",),
        "BertForSequenceClassification": ("sequence-classification",),
        "BertForTokenClassification": ("token-classification",),
        "BertForQuestionAnswering": ("question-answering",),
        "BertModel": (),
    },
)
sort, read_config, shapes = TABLE.sort, TABLE.read_config, TABLE.shapes
build, write_arrays, write_config = TABLE.build, TABLE.write_arrays, TABLE.write_config
