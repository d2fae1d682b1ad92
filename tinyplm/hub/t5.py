"""T5: the names and settings of Hugging Face's `t5`, and ours.

Their linear layers are (out, in), ours (in, out), and ours hold queries, keys and values side by side. The embedding is
stored once, as `shared`; its names within the stacks are second names. The presence of `lm_head` and its values tell
whether the output layer is the embedding: the flag `tie_word_embeddings` has also meant that the decoder's result is
multiplied by 1 / sqrt(d_model), until `scale_decoder_outputs` came to say so. Old files give cross-attention a table of
relative positions, which nothing computes with.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, ConfigError
from ..types import Array, Generator
from .entry import TensorEntry, listed
from .family import Sorted
from .layout import Slot, check_depth, same_values, shapes_of, sort_by, their_arrays
from .settings import Settings

if TYPE_CHECKING:
    from ..models.t5 import T5, T5Config

EMBEDDING, HEAD, THEIR_HEAD = "token_embedding.weight", "head.weight", "lm_head.weight"
SHARED = "shared.weight"
ALIASES_OF_SHARED = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
UNUSED_TABLE = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
COMPUTED = ("encoder.", "decoder.", "shared.", "lm_head.")
TOP = Slot(HEAD, THEIR_HEAD, "VD")

ALIASES = {
    "hidden_size": "d_model",
    "head_dim": "d_kv",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
}
# Theirs, and whether there is a gate and ours. The last of theirs with one meaning is the one that is written.
ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "silu": "silu",
    "tanh": "tanh",
}
FEED_FORWARD = {name: (False, ours) for name, ours in ACTIVATIONS.items()} | {
    "gated-relu": (True, "relu"),
    "gated-gelu_python": (True, "gelu"),
    "gated-gelu_new": (True, "gelu_tanh"),
    "gated-gelu": (True, "gelu_tanh"),  # the tanh form, though the name says nothing of it
    "gated-silu": (True, "silu"),
    "gated-tanh": (True, "tanh"),
}


def _stack(side: str, counted: str, gated: bool) -> list[Slot]:
    """Slots of the encoder or the decoder. D width, I heads times their width, F feed-forward, N buckets, H heads."""
    ours, theirs = f"{side}.blocks.{{{counted}}}", f"{side}.block.{{{counted}}}"
    attention, last = f"{theirs}.layer.0.SelfAttention", 1 if side == "encoder" else 2
    feed_forward, theirs_of = f"{ours}.feed_forward", f"{theirs}.layer.{last}.DenseReluDense"
    slots = [
        Slot(
            f"{side}.position.table",
            f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            "NH",
        ),
        Slot(f"{ours}.norm_1.gain", f"{theirs}.layer.0.layer_norm.weight", "D"),
        Slot(
            f"{ours}.attention.project_in.weight",
            (f"{attention}.q.weight", f"{attention}.k.weight", f"{attention}.v.weight"),
            "D3I",
            turned=True,
        ),
        Slot(f"{ours}.attention.project_out.weight", f"{attention}.o.weight", "ID", turned=True),
        Slot(f"{ours}.norm_2.gain", f"{theirs}.layer.{last}.layer_norm.weight", "D"),
        Slot(f"{feed_forward}.contract.weight", f"{theirs_of}.wo.weight", "FD", turned=True),
        Slot(f"{side}.norm.gain", f"{side}.final_layer_norm.weight", "D"),
    ]
    if gated:
        slots += [
            Slot(f"{feed_forward}.gate.weight", f"{theirs_of}.wi_0.weight", "DF", turned=True),
            Slot(f"{feed_forward}.expand.weight", f"{theirs_of}.wi_1.weight", "DF", turned=True),
        ]
    else:
        slots.append(
            Slot(f"{feed_forward}.expand.weight", f"{theirs_of}.wi.weight", "DF", turned=True)
        )
    if side == "decoder":
        crossed = f"{theirs}.layer.1.EncDecAttention"
        cross = f"{ours}.cross_attention"
        slots += [
            Slot(f"{ours}.norm_cross.gain", f"{theirs}.layer.1.layer_norm.weight", "D"),
            Slot(f"{cross}.project_query.weight", f"{crossed}.q.weight", "DI", turned=True),
            Slot(
                f"{cross}.project_memory.weight",
                (f"{crossed}.k.weight", f"{crossed}.v.weight"),
                "D2I",
                turned=True,
            ),
            Slot(f"{cross}.project_out.weight", f"{crossed}.o.weight", "ID", turned=True),
        ]
    return slots


def _slots(gated: bool) -> list[Slot]:
    return [
        Slot(EMBEDDING, SHARED, "VD"),
        *_stack("encoder", "layers", gated),
        *_stack("decoder", "decoder_layers", gated),
    ]


def _slots_of(config: "T5Config") -> list[Slot]:
    return _slots(config.gated) if config.tied else [*_slots(config.gated), TOP]


def sort(entries: Mapping[str, TensorEntry]) -> Sorted:
    """Entries under our names; which were ignored, which belong to something else.

    Raises:
        CheckpointError: a stack has an embedding of its own, or a weight is one that this model lacks.
    """
    left = dict(entries)
    ignored = [UNUSED_TABLE] if left.pop(UNUSED_TABLE, None) is not None else []
    for alias in ALIASES_OF_SHARED:
        second = left.pop(alias, None)
        if second is None:
            continue
        first = left.setdefault(SHARED, second)
        if first is not second and not same_values(first, second):
            raise CheckpointError(
                f"{alias} and {first.name} differ, but T5 has one embedding for both stacks. It is of a changed model, "
                "whose results would differ."
            )
    gated = any(".wi_0." in name for name in left)
    ours, rest = sort_by([*_slots(gated), TOP], left)
    if unknown := [name for name in rest if name.startswith(COMPUTED)]:
        raise CheckpointError(
            f"The file has weights that T5 does not compute with: {listed(unknown)}. It is of a changed model "
            "(adapters, tables of positions in every layer?), whose results would differ. Merge the changes into the "
            "plain weights where it was trained, and save again."
        )
    return Sorted(ours, tuple(rest), tuple(ignored))


def read_config(
    values: Mapping[str, Any], found: Sorted, head: str | None = None
) -> tuple["T5Config", Sorted]:
    """Our config, and the entries with the output layer dropped where it is tied.

    Raises:
        ConfigError: a setting has a wrong type, is out of bounds, or asks for what is not computed.
        CheckpointError: settings and weights are of different depth.
    """
    from ..models.t5 import T5Config

    if head is not None:
        raise ConfigError(
            f"head={head!r}, but a T5 has one head, the language model's; leave it out."
        )
    settings = Settings(values, aliases=ALIASES)
    settings.refuse("pruned_heads", "heads cannot be pruned here")
    settings.refuse("quantization_config", "quantized weights are not read")
    layers = settings.whole("num_layers", 6)
    decoder_layers = settings.optional_whole("num_decoder_layers")
    # Before anything is built: the file, whose size is bounded, says how deep the model can be.
    check_depth("num_layers", layers, found.entries, "encoder.blocks.")
    check_depth("num_decoder_layers", decoder_layers or layers, found.entries, "decoder.blocks.")
    tied, found = _tie(found)
    word = settings.choice("feed_forward_proj", "relu", {name: name for name in FEED_FORWARD})
    gated, activation = FEED_FORWARD[word]
    scaled = settings.truth("tie_word_embeddings", True)
    start = values.get("decoder_start_token_id")
    config = T5Config(
        vocab_size=settings.whole("vocab_size", 32_128),
        hidden_size=settings.whole("d_model", 512),
        head_size=settings.whole("d_kv", 64),
        ffn_size=settings.whole("d_ff", 2_048),
        layers=layers,
        decoder_layers=None if decoder_layers == layers else decoder_layers,
        heads=settings.whole("num_heads", 8),
        buckets=settings.whole("relative_attention_num_buckets", 32),
        max_distance=settings.whole("relative_attention_max_distance", 128),
        gated=gated,
        activation=activation,
        eps=settings.positive("layer_norm_epsilon", 1e-6),
        dropout=settings.number("dropout_rate", 0.1, low=0, below=1),
        tied=tied,
        scaled_output=settings.truth("scale_decoder_outputs", scaled),
        decoder_start=0
        if start is None
        else int(settings.number("decoder_start_token_id", 0, low=0, below=2**31)),
        init_factor=settings.number("initializer_factor", 1.0, low=1e-300, below=1e6),
    )
    return config, found


def _tie(found: Sorted) -> tuple[bool, Sorted]:
    """Whether the output layer is the token embedding: it is, if it is not there or the same."""
    entries = dict(found.entries)
    head, embedding = entries.get(HEAD), entries.get(EMBEDDING)
    if head is None:
        return True, found
    if embedding is not None:
        if not same_values(head, embedding):
            return False, found
    else:
        entries[EMBEDDING] = head
    del entries[HEAD]
    return True, replace(found, entries=entries)


def shapes(config: "T5Config") -> dict[str, tuple[int, ...]]:
    """The shape of every parameter, by our name."""
    sizes = {
        "V": config.vocab_size,
        "D": config.hidden_size,
        "I": config.heads * config.head_size,
        "F": config.ffn_size,
        "N": config.buckets,
        "H": config.heads,
    }
    return shapes_of(_slots_of(config), sizes, _counts(config))


def _counts(config: "T5Config") -> dict[str, int]:
    return {"layers": config.layers, "decoder_layers": config.decoder_layers or config.layers}


def build(config: "T5Config", rng: Generator | None) -> "T5":
    """The model; without rng its parameters have shapes and no values yet."""
    from ..models.t5 import T5

    return T5(config, rng=rng)


def write_arrays(config: "T5Config", arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The parameters, by our names, under the names to write and in the layout to write."""
    return their_arrays(_slots_of(config), arrays, _counts(config))


def write_config(config: "T5Config", end_of_text: int | None) -> dict[str, Any]:
    """The settings as config.json holds them."""
    written = {ours: theirs for theirs, ours in FEED_FORWARD.items()}
    word = written[config.gated, config.activation]
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "d_ff": config.ffn_size,
        "d_kv": config.head_size,
        "d_model": config.hidden_size,
        "decoder_start_token_id": config.decoder_start,
        "dense_act_fn": word.removeprefix("gated-") if word != "gated-gelu" else "gelu_new",
        "dropout_rate": config.dropout,
        "eos_token_id": 1 if end_of_text is None else end_of_text,
        "feed_forward_proj": word,
        "initializer_factor": config.init_factor,
        "is_encoder_decoder": True,
        "is_gated_act": config.gated,
        "layer_norm_epsilon": config.eps,
        "num_decoder_layers": config.decoder_layers or config.layers,
        "num_heads": config.heads,
        "num_layers": config.layers,
        "pad_token_id": config.decoder_start,
        "relative_attention_max_distance": config.max_distance,
        "relative_attention_num_buckets": config.buckets,
        "scale_decoder_outputs": config.scaled_output,
        "tie_word_embeddings": config.tied,
        "vocab_size": config.vocab_size,
    }
