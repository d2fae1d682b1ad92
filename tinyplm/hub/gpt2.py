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

import numpy as np

from ..errors import CheckpointError, ConfigError
from ..types import Generator
from .entry import TensorEntry, listed, shown
from .family import Sorted
from .settings import Settings

if TYPE_CHECKING:
    from ..models.gpt2 import Gpt2, Gpt2Config

ARCHITECTURE = "GPT2LMHeadModel"
PREFIX = "transformer."

# Theirs, ours, and the axes: V vocabulary, P positions, D width, Q three times D, F feed-forward.
OUTSIDE = (
    ("wte.weight", "token_embedding.weight", "VD"),
    ("wpe.weight", "position_embedding.weight", "PD"),
    ("ln_f.weight", "norm.gain", "D"),
    ("ln_f.bias", "norm.bias", "D"),
)
BLOCK = (
    ("ln_1.weight", "norm_1.gain", "D"),
    ("ln_1.bias", "norm_1.bias", "D"),
    ("attn.c_attn.weight", "attention.project_in.weight", "DQ"),
    ("attn.c_attn.bias", "attention.project_in.bias", "Q"),
    ("attn.c_proj.weight", "attention.project_out.weight", "DD"),
    ("attn.c_proj.bias", "attention.project_out.bias", "D"),
    ("ln_2.weight", "norm_2.gain", "D"),
    ("ln_2.bias", "norm_2.bias", "D"),
    ("mlp.c_fc.weight", "feed_forward.expand.weight", "DF"),
    ("mlp.c_fc.bias", "feed_forward.expand.bias", "F"),
    ("mlp.c_proj.weight", "feed_forward.contract.weight", "FD"),
    ("mlp.c_proj.bias", "feed_forward.contract.bias", "D"),
)
EMBEDDING, HEAD, THEIR_HEAD = "token_embedding.weight", "head.weight", "lm_head.weight"
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
    outside = {theirs: ours for theirs, ours, _ in OUTSIDE} | {THEIR_HEAD: HEAD}
    block = {theirs: ours for theirs, ours, _ in BLOCK}
    ours: dict[str, TensorEntry] = {}
    unused, ignored, unknown = [], [], []
    for name, entry in entries.items():
        bare = name.removeprefix(PREFIX)
        part = re.fullmatch(r"h\.(0|[1-9][0-9]{0,8})\.(.+)", bare)
        if bare in outside:
            target = outside[bare]
        elif part and part[2] in block:
            target = f"blocks.{part[1]}.{block[part[2]]}"
        elif part and part[2] in MASKS:
            ignored.append(name)
            continue
        elif bare != name or bare.startswith(COMPUTED):
            unknown.append(name)
            continue
        else:
            unused.append(name)
            continue
        if target in ours:
            raise CheckpointError(
                f"The file has both {shown(name)} and {shown(ours[target].name)}, two names of one "
                "weight; which one counts is not known. Remove one."
            )
        ours[target] = entry
    if unknown:
        raise CheckpointError(
            f"The file has weights that GPT-2 does not compute with: {listed(unknown)}. It is of a "
            "changed model (adapters, cross-attention?), whose results would differ. Merge the "
            "changes into the plain weights where it was trained, and save again."
        )
    return Sorted(ours, tuple(unused), tuple(ignored))


def read_config(values: Mapping[str, Any], found: Sorted) -> tuple["Gpt2Config", Sorted]:
    """Our config, and the entries with the output layer dropped where it is tied.

    Raises:
        ConfigError: a setting has a wrong type, is out of bounds, or asks for what is not computed.
        CheckpointError: settings and weights are of different depth.
    """
    from ..models.gpt2 import Gpt2Config

    settings = Settings(values, aliases=ALIASES)
    settings.refuse("add_cross_attention", "this GPT-2 has no encoder to attend to")
    settings.refuse("is_encoder_decoder", "this GPT-2 is a decoder alone")
    settings.refuse("pruned_heads", "heads cannot be pruned here")
    settings.refuse("quantization_config", "quantized weights are not read")
    width = settings.whole("n_embd", 768)
    layers = settings.whole("n_layer", 12)
    # Before anything is built: the file, whose size is bounded, says how deep the model can be.
    _check_depth(layers, found)
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


def _check_depth(layers: int, found: Sorted) -> None:
    numbers = {int(name.split(".")[1]) for name in found.entries if name.startswith("blocks.")}
    if len(numbers) != layers or max(numbers, default=-1) != layers - 1:
        blocks = f"{len(numbers):,}, numbered up to {max(numbers)}" if numbers else "none"
        raise CheckpointError(
            f"config.json says n_layer={layers:,}, but the file has the weights of {blocks}. "
            "Settings and weights are of different models, or the file is incomplete."
        )


def _tie(flag: bool, found: Sorted) -> tuple[bool, Sorted]:
    """Whether the output layer is the token embedding: the values decide, not the flag."""
    entries = dict(found.entries)
    head, embedding = entries.get(HEAD), entries.get(EMBEDDING)
    if head is None:
        return flag, found
    if embedding is not None:
        same = (head.shape, head.dtype) == (embedding.shape, embedding.dtype)
        if not same or not np.array_equal(head.read(), embedding.read(), equal_nan=True):
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
        "Q": 3 * config.hidden_size,
        "F": config.ffn_size or 4 * config.hidden_size,
    }
    rows = [(name, axes) for _, name, axes in OUTSIDE]
    for i in range(config.layers):
        rows += [(f"blocks.{i}.{name}", axes) for _, name, axes in BLOCK]
    if not config.tied:
        rows.append((HEAD, "VD"))
    return {name: tuple(sizes[axis] for axis in axes) for name, axes in rows}


def build(config: "Gpt2Config", rng: Generator | None) -> "Gpt2":
    """The model; without rng its parameters have shapes and no values yet."""
    from ..models.gpt2 import Gpt2

    return Gpt2(config, rng=rng)


def their_names(config: "Gpt2Config") -> dict[str, str]:
    """Our name of every parameter with the name to write."""
    names = {ours: PREFIX + theirs for theirs, ours, _ in OUTSIDE}
    for i in range(config.layers):
        names |= {f"blocks.{i}.{ours}": f"{PREFIX}h.{i}.{theirs}" for theirs, ours, _ in BLOCK}
    if not config.tied:
        names[HEAD] = THEIR_HEAD
    return names


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
