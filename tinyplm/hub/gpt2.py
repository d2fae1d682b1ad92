"""GPT-2: the names and settings of Hugging Face's `gpt2`, and ours.

No array changes its layout: the original code stores projections as (in, out), and so do we.
Files may or may not begin their names with `transformer.`; files of before 2021 carry the causal
mask as `attn.bias`, which is no bias and is not read. The output layer is a second name of the
token embedding unless its values differ; either name alone stands for both.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, ConfigError
from ..types import Array, Generator
from .entry import TensorEntry, listed
from .family import Sorted
from .layout import Slot, check_depth, same_values, shapes_of, sort_by, their_arrays, twice
from .settings import Settings

if TYPE_CHECKING:
    from ..models.gpt2 import Gpt2, Gpt2Config

PREFIX = "transformer."

# V vocabulary, P positions, D width, F feed-forward.
SLOTS = [
    Slot("token_embedding.weight", "wte.weight", "VD"),
    Slot("position_embedding.weight", "wpe.weight", "PD"),
    Slot("norm.gain", "ln_f.weight", "D"),
    Slot("norm.bias", "ln_f.bias", "D"),
    Slot("blocks.{layers}.norm_1.gain", "h.{layers}.ln_1.weight", "D"),
    Slot("blocks.{layers}.norm_1.bias", "h.{layers}.ln_1.bias", "D"),
    Slot("blocks.{layers}.attention.project_in.weight", "h.{layers}.attn.c_attn.weight", "D3D"),
    Slot("blocks.{layers}.attention.project_in.bias", "h.{layers}.attn.c_attn.bias", "3D"),
    Slot("blocks.{layers}.attention.project_out.weight", "h.{layers}.attn.c_proj.weight", "DD"),
    Slot("blocks.{layers}.attention.project_out.bias", "h.{layers}.attn.c_proj.bias", "D"),
    Slot("blocks.{layers}.norm_2.gain", "h.{layers}.ln_2.weight", "D"),
    Slot("blocks.{layers}.norm_2.bias", "h.{layers}.ln_2.bias", "D"),
    Slot("blocks.{layers}.feed_forward.expand.weight", "h.{layers}.mlp.c_fc.weight", "DF"),
    Slot("blocks.{layers}.feed_forward.expand.bias", "h.{layers}.mlp.c_fc.bias", "F"),
    Slot("blocks.{layers}.feed_forward.contract.weight", "h.{layers}.mlp.c_proj.weight", "FD"),
    Slot("blocks.{layers}.feed_forward.contract.bias", "h.{layers}.mlp.c_proj.bias", "D"),
]
EMBEDDING, HEAD, THEIR_HEAD = "token_embedding.weight", "head.weight", "lm_head.weight"
TOP = Slot(HEAD, THEIR_HEAD, "VD")
MASKS = ("attn.bias", "attn.masked_bias")
# A name that begins so and is not in the tables is a part of the computation that we lack.
COMPUTED = ("h.", "wte.", "wpe.", "ln_f.", "lm_head.")

ALIASES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}
# Theirs and ours. The last of theirs with one meaning is the one that is written.
ACTIVATIONS = {
    "gelu_accurate": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_python": "gelu",
    "gelu": "gelu",
    "relu": "relu",
    "swish": "silu",
    "silu": "silu",
    "tanh": "tanh",
}


def sort(entries: Mapping[str, TensorEntry]) -> Sorted:
    """Entries under our names; which were ignored as masks, which belong to something else.

    Raises:
        CheckpointError: a weight is given under two names, or is one that this model lacks.
    """
    full: dict[str, str] = {}  # by the name without the prefix
    ignored = []
    for name in entries:
        bare = name.removeprefix(PREFIX)
        if re.fullmatch(rf"h\.[0-9]+\.({'|'.join(map(re.escape, MASKS))})", bare):
            ignored.append(name)
        elif bare in full:
            raise twice(name, full[bare])
        else:
            full[bare] = name
    ours, rest = sort_by([*SLOTS, TOP], {bare: entries[name] for bare, name in full.items()})
    names = [full[bare] for bare in rest]
    unknown = [
        n for n, bare in zip(names, rest, strict=True) if n != bare or bare.startswith(COMPUTED)
    ]
    unused = [name for name in names if name not in unknown]
    if unknown:
        raise CheckpointError(
            f"The file has weights that GPT-2 does not compute with: {listed(unknown)}. It is of a "
            "changed model (adapters, cross-attention?), whose results would differ. Merge the "
            "changes into the plain weights where it was trained, and save again."
        )
    return Sorted(ours, tuple(unused), tuple(ignored))


def read_config(
    values: Mapping[str, Any], found: Sorted, head: str | None = None
) -> tuple["Gpt2Config", Sorted]:
    """Our config, and the entries with the output layer dropped where it is tied.

    Raises:
        ConfigError: a setting has a wrong type, is out of bounds, or asks for what is not computed.
        CheckpointError: settings and weights are of different depth.
    """
    from ..models.gpt2 import Gpt2Config

    if head is not None:
        raise ConfigError(
            f"head={head!r}, but a GPT-2 has one head, the language model's; leave it out."
        )
    settings = Settings(values, aliases=ALIASES)
    settings.refuse("add_cross_attention", "this GPT-2 has no encoder to attend to")
    settings.refuse("is_encoder_decoder", "this GPT-2 is a decoder alone")
    settings.refuse("pruned_heads", "heads cannot be pruned here")
    settings.refuse("quantization_config", "quantized weights are not read")
    width = settings.whole("n_embd", 768)
    layers = settings.whole("n_layer", 12)
    # Before anything is built: the file, whose size is bounded, says how deep the model can be.
    check_depth("n_layer", layers, found.entries, "blocks.")
    tied, found = _tie(settings.truth("tie_word_embeddings", True), found)
    config = Gpt2Config(
        vocab_size=settings.whole("vocab_size", 50_257),
        hidden_size=width,
        layers=layers,
        heads=settings.whole("n_head", 12),
        ffn_size=settings.optional_whole("n_inner") or 4 * width,
        positions=settings.whole("n_positions", 1024),
        activation=settings.choice("activation_function", "gelu_new", ACTIVATIONS),
        eps=settings.positive("layer_norm_epsilon", 1e-5),
        dropout=settings.number("resid_pdrop", 0.1, low=0, below=1),
        embedding_dropout=settings.number("embd_pdrop", 0.1, low=0, below=1),
        attention_dropout=settings.number("attn_pdrop", 0.1, low=0, below=1),
        tied=tied,
        scaled=settings.truth("scale_attn_weights", True),
        scaled_by_depth=settings.truth("scale_attn_by_inverse_layer_idx", False),
        init_std=settings.number("initializer_range", 0.02, low=0, below=1e3),
    )
    return config, found


def _tie(flag: bool, found: Sorted) -> tuple[bool, Sorted]:
    """Whether the output layer is the token embedding: the values decide, not the flag."""
    entries = dict(found.entries)
    head, embedding = entries.get(HEAD), entries.get(EMBEDDING)
    if head is None:
        return flag, found
    if embedding is not None:
        if not same_values(head, embedding):
            return False, found
    else:
        entries[EMBEDDING] = head
    del entries[HEAD]
    return True, replace(found, entries=entries)


def shapes(config: "Gpt2Config") -> dict[str, tuple[int, ...]]:
    """The shape of every parameter, by our name."""
    sizes = {
        "V": config.vocab_size,
        "P": config.positions,
        "D": config.hidden_size,
        "F": config.ffn_size or 4 * config.hidden_size,
    }
    return shapes_of(_slots(config), sizes, {"layers": config.layers})


def _slots(config: "Gpt2Config") -> list[Slot]:
    return SLOTS if config.tied else [*SLOTS, TOP]


def build(config: "Gpt2Config", rng: Generator | None) -> "Gpt2":
    """The model; without rng its parameters have shapes and no values yet."""
    from ..models.gpt2 import Gpt2

    return Gpt2(config, rng=rng)


def write_arrays(config: "Gpt2Config", arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The parameters, by our names, under the names to write."""
    made = their_arrays(_slots(config), arrays, {"layers": config.layers})
    return {name if name == THEIR_HEAD else PREFIX + name: made[name] for name in made}


def write_config(config: "Gpt2Config", end_of_text: int | None) -> dict[str, Any]:
    """The settings as config.json holds them."""
    written = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    if config.activation not in written:
        raise ConfigError(
            f"activation={config.activation!r} has no name in config.json; known: "
            f"{', '.join(written)}."
        )
    if end_of_text is None and config.vocab_size == 50_257:
        end_of_text = 50_256  # the published vocabulary
    return {
        "architectures": ["GPT2LMHeadModel"],
        "activation_function": written[config.activation],
        "attn_pdrop": config.attention_dropout,
        "bos_token_id": end_of_text,
        "embd_pdrop": config.embedding_dropout,
        "eos_token_id": end_of_text,
        "initializer_range": config.init_std,
        "layer_norm_epsilon": config.eps,
        "n_embd": config.hidden_size,
        "n_head": config.heads,
        "n_inner": None if config.ffn_size == 4 * config.hidden_size else config.ffn_size,
        "n_layer": config.layers,
        "n_positions": config.positions,
        "resid_pdrop": config.dropout,
        "scale_attn_by_inverse_layer_idx": config.scaled_by_depth,
        "scale_attn_weights": config.scaled,
        "tie_word_embeddings": config.tied,
        "vocab_size": config.vocab_size,
    }
