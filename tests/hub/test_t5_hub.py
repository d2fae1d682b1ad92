"""T5 folders as other programs write them, old and new, whole and wrong."""

import json

import numpy as np
import pytest

import tinyplm
from tinyplm.errors import CheckpointError, ConfigError
from tinyplm.hub.safetensors_file import write_safetensors
from tinyplm.models.t5 import T5, T5Config

V, D, K, F, H = 23, 12, 5, 14, 2
I = H * K  # noqa: E741
CONFIG = {
    "model_type": "t5", "vocab_size": V, "d_model": D, "d_kv": K, "d_ff": F, "num_layers": 2, "num_heads": H,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 9, "dropout_rate": 0.0,
}  # fmt: skip


def arrays(*, gated=False, layers=2, decoder_layers=2, buckets=8, seed=0):
    """Weights under the names and in the layout of transformers."""
    rng = np.random.default_rng(seed)

    def drawn(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    made = {"shared.weight": drawn(V, D)}
    for side, count in (("encoder", layers), ("decoder", decoder_layers)):
        for i in range(count):
            block, last = f"{side}.block.{i}.layer", 1 if side == "encoder" else 2
            kinds = {0: "SelfAttention"} | ({1: "EncDecAttention"} if side == "decoder" else {})
            for number, kind in kinds.items():
                for part in "qkv":
                    made[f"{block}.{number}.{kind}.{part}.weight"] = drawn(I, D)
                made[f"{block}.{number}.{kind}.o.weight"] = drawn(D, I)
            for number in range(last + 1):
                made[f"{block}.{number}.layer_norm.weight"] = drawn(D)
            for name in ("wi_0", "wi_1") if gated else ("wi",):
                made[f"{block}.{last}.DenseReluDense.{name}.weight"] = drawn(F, D)
            made[f"{block}.{last}.DenseReluDense.wo.weight"] = drawn(D, F)
        table = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        made[table] = drawn(buckets, H)
        made[f"{side}.final_layer_norm.weight"] = drawn(D)
    return made


def write(folder, weights, **settings):
    folder.mkdir(exist_ok=True)
    config = {key: value for key, value in (CONFIG | settings).items() if value != "absent"}
    (folder / "config.json").write_text(json.dumps(config))
    with (folder / "model.safetensors").open("wb") as stream:
        write_safetensors(stream, weights)
    return folder


def logits(model):
    rng = np.random.default_rng(9)
    source, target = rng.integers(V, size=(2, 7)), rng.integers(V, size=(2, 4))
    return model.head(model(source, decoder_input_ids=target)).array


def test_every_weight_finds_its_place(tmp_path):
    weights = arrays()
    model = tinyplm.from_pretrained(write(tmp_path, weights))
    ours = model.arrays()
    np.testing.assert_array_equal(ours["token_embedding.weight"], weights["shared.weight"])
    block = "decoder.block.1.layer"
    qkv = [weights[f"{block}.0.SelfAttention.{part}.weight"].T for part in "qkv"]
    name = "decoder.blocks.1.attention.project_in.weight"
    np.testing.assert_array_equal(ours[name], np.concatenate(qkv, axis=1))
    kv = [weights[f"{block}.1.EncDecAttention.{part}.weight"].T for part in "kv"]
    name = "decoder.blocks.1.cross_attention.project_memory.weight"
    np.testing.assert_array_equal(ours[name], np.concatenate(kv, axis=1))
    np.testing.assert_array_equal(
        ours["decoder.blocks.1.feed_forward.contract.weight"],
        weights[f"{block}.2.DenseReluDense.wo.weight"].T,
    )
    assert model.parameter_count == sum(a.size for a in weights.values())


def test_gates_are_told_from_what_they_gate(tmp_path):
    weights = arrays(gated=True)
    model = tinyplm.from_pretrained(write(tmp_path, weights, feed_forward_proj="gated-gelu"))
    assert model.config.gated
    assert model.config.activation == "gelu_tanh"
    for ours, theirs in (("gate", "wi_0"), ("expand", "wi_1")):
        np.testing.assert_array_equal(
            model.arrays()[f"encoder.blocks.0.feed_forward.{ours}.weight"],
            weights[f"encoder.block.0.layer.1.DenseReluDense.{theirs}.weight"].T,
        )


HEAD = np.random.default_rng(5).standard_normal((V, D)).astype(np.float32)


@pytest.mark.parametrize(
    ("head", "settings", "tied", "scaled"),
    [
        (None, {}, True, True),
        (None, {"tie_word_embeddings": True}, True, True),
        # v1.1 as published.
        (HEAD, {"tie_word_embeddings": False}, False, False),
        # v1.1 as version 5 of transformers writes it: only the newer key tells.
        (HEAD, {"tie_word_embeddings": True, "scale_decoder_outputs": False}, False, False),
        (HEAD, {"tie_word_embeddings": False, "scale_decoder_outputs": True}, False, True),
        (None, {"tie_word_embeddings": False}, True, False),
        ("same", {"tie_word_embeddings": True}, True, True),
    ],
)
def test_weights_say_whether_the_head_is_tied_and_settings_whether_it_is_scaled(
    tmp_path, head, settings, tied, scaled
):
    weights = arrays()
    if head is not None:
        weights["lm_head.weight"] = weights["shared.weight"] if isinstance(head, str) else head
    model = tinyplm.from_pretrained(write(tmp_path, weights, **settings))
    assert model.config.tied is tied
    assert model.config.scaled_output is scaled
    assert (model.head.weight is model.token_embedding.weight) is tied
    assert model.head.scale == (D**-0.5 if scaled else 1.0)


@pytest.mark.parametrize("missing", ["absent", None])
def test_settings_that_old_files_lack_have_their_defaults(tmp_path, missing):
    weights = arrays(buckets=32)
    folder = write(
        tmp_path, weights, relative_attention_max_distance="absent",
        relative_attention_num_buckets="absent", num_decoder_layers=missing,
        decoder_start_token_id=missing,
    )  # fmt: skip
    config = tinyplm.from_pretrained(folder).config
    assert (config.buckets, config.max_distance) == (32, 128)
    assert (config.decoder_layers, config.decoder_start) == (None, 0)


def test_stacks_may_have_different_depths_and_any_number_of_buckets(tmp_path):
    weights = arrays(decoder_layers=3, buckets=6)
    settings = {"num_decoder_layers": 3, "relative_attention_num_buckets": 6}
    config = tinyplm.from_pretrained(write(tmp_path, weights, **settings)).config
    assert (config.layers, config.decoder_layers, config.buckets) == (2, 3, 6)


def test_second_names_of_the_embedding_and_an_unused_table_are_passed_over(tmp_path):
    plain = tinyplm.from_pretrained(write(tmp_path / "plain", arrays()))
    weights = arrays()
    unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    weights[unused] = np.ones((8, H), np.float32)
    for side in ("encoder", "decoder"):
        weights[f"{side}.embed_tokens.weight"] = weights["shared.weight"]
    loaded = tinyplm.load(write(tmp_path / "old", weights))
    assert loaded.report.ignored == (unused,)
    np.testing.assert_array_equal(logits(loaded.model), logits(plain))
    del weights["shared.weight"], weights["decoder.embed_tokens.weight"]
    one_name = tinyplm.from_pretrained(write(tmp_path / "one", weights))
    np.testing.assert_array_equal(logits(one_name), logits(plain))
    head_only = {k: v for k, v in arrays().items() if k != "shared.weight"}
    head_only["lm_head.weight"] = arrays()["shared.weight"]
    other = tinyplm.from_pretrained(write(tmp_path / "head", head_only))
    np.testing.assert_array_equal(logits(other), logits(plain))


def test_stacks_with_different_embeddings_are_refused(tmp_path):
    weights = arrays()
    weights["decoder.embed_tokens.weight"] = weights["shared.weight"] + 1
    with pytest.raises(CheckpointError, match=r"decoder\.embed_tokens\.weight and shared\.weight"):
        tinyplm.from_pretrained(write(tmp_path, weights))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gated": True, "activation": "gelu_tanh", "tied": False, "scaled_output": False},
        {"gated": True, "activation": "gelu"},
        {"activation": "gelu_tanh", "decoder_layers": 1, "decoder_start": 3},
        {"activation": "silu", "gated": True, "buckets": 6, "max_distance": 20, "init_factor": 0.5},
    ],
    ids=str,
)
def test_what_is_written_is_read_again(tmp_path, settings):
    config = T5Config(
        vocab_size=V, hidden_size=D, head_size=K, ffn_size=F, layers=2, heads=H, **settings
    )
    model = T5(config, rng=np.random.default_rng(0))
    tinyplm.save_pretrained(model, tmp_path)
    again = tinyplm.from_pretrained(tmp_path)
    assert again.config == config
    np.testing.assert_array_equal(logits(again), logits(model))


def without(name, weights):
    return {key: value for key, value in weights.items() if key != name}


BAD = {
    "an incomplete attention": (
        without("encoder.block.1.layer.0.SelfAttention.k.weight", arrays()),
        {},
        CheckpointError,
        "not all 3 parts of encoder.blocks.1.attention.project_in.weight",
    ),
    "a table in every layer": (
        arrays()
        | {
            "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight": np.ones(
                (8, H), np.float32
            )
        },
        {},
        CheckpointError,
        "does not compute with",
    ),
    "more layers than weights": (arrays(), {"num_layers": 10**6}, CheckpointError, "num_layers=1,000,000"),
    "a shallower decoder": (
        arrays(decoder_layers=1),
        {},
        CheckpointError,
        "num_decoder_layers=2",
    ),
    "an unknown activation": (arrays(), {"feed_forward_proj": "gated-gelo"}, ConfigError, "did you mean 'gated-gelu'"),
    "a width of another type": (arrays(), {"d_kv": "64"}, ConfigError, "d_kv"),
    "a start beyond the vocabulary": (arrays(), {"decoder_start_token_id": 99}, ConfigError, "99"),
    "pruned heads": (arrays(), {"pruned_heads": {"0": [1]}}, ConfigError, "pruned"),
    "other widths": (arrays(), {"d_kv": 6}, CheckpointError, "project_in"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_folders_that_do_not_fit_are_refused_in_words(kind, tmp_path):
    weights, settings, error, message = BAD[kind]
    with pytest.raises(error, match=message):
        tinyplm.from_pretrained(write(tmp_path, weights, **settings))
