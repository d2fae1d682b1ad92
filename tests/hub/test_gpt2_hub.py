"""GPT-2 folders: both ways, under every name that is in use, and hostile ones."""

import json
import math
import warnings
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import tinyplm.hub.gpt2
from tinyplm.errors import (
    CheckpointError,
    ConfigError,
    DtypeError,
    MissingFileError,
    NonFiniteError,
    TinyplmWarning,
)
from tinyplm.hub import from_pretrained, load, save_pretrained
from tinyplm.hub.entry import TensorEntry
from tinyplm.hub.safetensors_file import read_safetensors, write_safetensors
from tinyplm.models.gpt2 import Gpt2, Gpt2Config

CONFIG = {
    "vocab_size": 13,
    "hidden_size": 6,
    "layers": 2,
    "heads": 3,
    "ffn_size": 10,
    "positions": 7,
    "activation": "gelu_tanh",
    "eps": 1e-5,
    "dropout": 0.1,
    "embedding_dropout": 0.2,
    "attention_dropout": 0.3,
    "tied": True,
    "scaled": True,
    "scaled_by_depth": False,
    "init_std": 0.02,
}


def make(rng, **changes):
    """A model of odd sizes in which no value is like another."""
    model = Gpt2(Gpt2Config(**(CONFIG | changes)), rng=rng)
    for parameter in model.named_parameters().values():
        parameter.replace(rng.normal(size=parameter.shape).astype(parameter.dtype))
    return model


def values(model):
    return {name: np.array(p.array) for name, p in model.named_parameters().items()}


def assert_same(model, expected):
    found = values(model)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.fixture
def model(rng):
    return make(rng)


@pytest.fixture
def folder(tmp_path, model):
    save_pretrained(model, tmp_path / "model")
    return tmp_path / "model"


def edit_config(folder, *removed, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | changes
    for key in removed:
        del config[key]
    path.write_text(json.dumps(config), encoding="utf-8")


def edit_weights(folder, edit):
    """Rewrite the weights after edit changed the dictionary of arrays."""
    path = folder / "model.safetensors"
    arrays = {name: entry.read() for name, entry in read_safetensors(path).items()}
    changed = edit(arrays)
    with open(path, "wb") as stream:
        write_safetensors(stream, arrays if changed is None else changed)


# ---- both ways


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shard", ["5GB", 600, "1KB"])
def test_a_model_comes_back_as_it_was(tmp_path, rng, tied, shard):
    model = make(rng, tied=tied, activation="silu", scaled=False, scaled_by_depth=True, ffn_size=24)
    save_pretrained(model, tmp_path, max_shard_size=shard)
    loaded = load(tmp_path)
    assert loaded.model.config == model.config
    assert_same(loaded.model, values(model))
    assert loaded.report.complete
    assert loaded.report.values == sum(array.size for array in values(model).values())
    assert (loaded.model.head.weight is loaded.model.token_embedding.weight) == tied


@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu", "relu", "silu", "tanh"])
def test_every_activation_has_a_name_that_comes_back(tmp_path, rng, activation):
    save_pretrained(make(rng, activation=activation), tmp_path)
    assert from_pretrained(tmp_path).config.activation == activation


def test_the_files_carry_the_names_that_others_expect(folder):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config | {"n_inner": 10, "n_embd": 6, "n_layer": 2, "n_head": 3} == config
    assert config["architectures"] == ["GPT2LMHeadModel"]
    assert config["model_type"] == "gpt2"
    assert config["dtype"] == "float32"
    assert config["activation_function"] == "gelu_new"
    assert (config["resid_pdrop"], config["embd_pdrop"], config["attn_pdrop"]) == (0.1, 0.2, 0.3)
    names = set(read_safetensors(folder / "model.safetensors"))
    assert len(names) == 4 + 2 * 12
    assert all(name.startswith("transformer.") for name in names)
    assert {"transformer.wte.weight", "transformer.h.1.attn.c_attn.bias"} <= names
    assert json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))


def test_a_feed_forward_of_four_widths_is_written_as_null(tmp_path, rng):
    save_pretrained(make(rng, ffn_size=24), tmp_path)
    assert '"n_inner": null' in (tmp_path / "config.json").read_text(encoding="utf-8")
    assert from_pretrained(tmp_path).config.ffn_size == 24


@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("wanted", ["bfloat16", "float16", "float32", "float64"])
def test_any_dtype_on_disk_loads_in_any_dtype(tmp_path, model, stored, wanted):
    save_pretrained(model, tmp_path, dtype=stored)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["dtype"] == stored
    kinds = {"bfloat16": ml_dtypes.bfloat16}
    expected = {
        name: array.astype(kinds.get(stored, stored)).astype(kinds.get(wanted, wanted))
        for name, array in values(model).items()
    }
    read = from_pretrained(tmp_path, dtype=wanted)
    assert {p.dtype.name for p in read.named_parameters().values()} == {wanted}
    assert_same(read, expected)


def test_a_dtype_that_is_none_is_refused(folder, model):
    for dtype in ("int8", "float8", "", "auto"):
        with pytest.raises(ConfigError, match="expected one of float32"):
            load(folder, dtype=dtype)
        with pytest.raises(ConfigError, match="expected one of float32"):
            save_pretrained(model, folder, dtype=dtype)


def test_loaded_parameters_can_be_written_and_trained(folder):
    for parameter in from_pretrained(folder).named_parameters().values():
        assert parameter.requires_grad
        parameter.write()[...] = 0


def test_saving_over_the_folder_a_model_came_from_works(folder, rng):
    model = from_pretrained(folder)
    for parameter in model.named_parameters().values():
        parameter.write()[...] += 1
    save_pretrained(model, folder)
    assert_same(from_pretrained(folder), values(model))


class Words:
    """What saving needs of a tokenizer."""

    end_of_text = 4

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def save(self, folder):
        (Path(folder) / "tokenizer.json").write_text("{}", encoding="utf-8")


def test_a_tokenizer_is_saved_beside_the_model(tmp_path, model):
    save_pretrained(model, tmp_path, tokenizer=Words(13))
    assert (tmp_path / "tokenizer.json").exists()
    for name in ("config.json", "generation_config.json"):
        written = json.loads((tmp_path / name).read_text(encoding="utf-8"))
        assert (written["bos_token_id"], written["eos_token_id"]) == (4, 4)
    with pytest.raises(ConfigError, match=r"The tokenizer has 14 tokens, the model vocab_size=13"):
        save_pretrained(model, tmp_path, tokenizer=Words(14))


def test_further_settings_are_kept_but_cannot_contradict_the_model(tmp_path, model):
    save_pretrained(model, tmp_path, extra_config={"eos_token_id": 5, "note": "한글", "n_layer": 2})
    loaded = load(tmp_path)
    assert (loaded.config["eos_token_id"], loaded.config["note"]) == (5, "한글")
    with pytest.raises(ConfigError, match="may not change n_layer"):
        save_pretrained(model, tmp_path, extra_config={"n_layer": 3})
    with pytest.raises(ConfigError, match="cannot be written as JSON"):
        save_pretrained(model, tmp_path, extra_config={"x": math.nan})
    with pytest.raises(ConfigError, match="cannot be written as JSON"):
        save_pretrained(model, tmp_path, extra_config={"x": object()})


@pytest.mark.parametrize("size", [0, -1, "0GB", "many", "5TB", "1.5GB", True, "", None])
def test_a_shard_size_that_is_none_is_refused(tmp_path, model, size):
    with pytest.raises(ConfigError, match="max_shard_size"):
        save_pretrained(model, tmp_path, max_shard_size=size)


def test_something_else_than_a_model_is_not_saved(tmp_path):
    with pytest.raises(DtypeError, match="A dict cannot be saved"):
        save_pretrained({}, tmp_path)


def test_a_diverged_model_does_not_replace_a_good_one(folder, model):
    before = values(model)
    model.blocks[1].norm_1.bias.write()[2] = math.nan
    with pytest.raises(NonFiniteError, match=r"transformer.h.1.ln_1.bias has values that are NaN"):
        save_pretrained(model, folder)
    assert_same(from_pretrained(folder), before)


# ---- names in use


def test_names_without_prefix_and_masks_of_old_files_are_understood(folder, model):
    def edit(arrays):
        made = {name.removeprefix("transformer."): array for name, array in arrays.items()}
        for i in range(2):
            made[f"h.{i}.attn.bias"] = np.tril(np.ones((1, 1, 7, 7), "uint8"))
            made[f"h.{i}.attn.masked_bias"] = np.array(-1e4, "float32")
        return made

    edit_weights(folder, edit)
    loaded = load(folder)
    assert_same(loaded.model, values(model))
    assert loaded.report.complete
    assert sorted(loaded.report.ignored) == [
        *("h.0.attn.bias", "h.0.attn.masked_bias", "h.1.attn.bias", "h.1.attn.masked_bias")
    ]


@pytest.mark.parametrize("flag", [True, False])
def test_an_equal_output_layer_is_tied_whatever_the_flag(folder, model, flag):
    edit_config(folder, tie_word_embeddings=flag)

    def edit(arrays):
        arrays["lm_head.weight"] = arrays["transformer.wte.weight"].copy()

    edit_weights(folder, edit)
    read = from_pretrained(folder)
    assert read.config.tied
    assert_same(read, values(model))


@pytest.mark.parametrize("flag", [True, False])
def test_another_output_layer_is_kept_apart_whatever_the_flag(folder, model, flag):
    edit_config(folder, tie_word_embeddings=flag)

    def edit(arrays):
        arrays["lm_head.weight"] = arrays["transformer.wte.weight"] + 1

    edit_weights(folder, edit)
    read = from_pretrained(folder)
    assert not read.config.tied
    expected = values(model)
    assert_same(read, expected | {"head.weight": expected["token_embedding.weight"] + 1})


def test_an_output_layer_alone_is_the_embedding_too(folder, model):
    def edit(arrays):
        arrays["lm_head.weight"] = arrays.pop("transformer.wte.weight")

    edit_weights(folder, edit)
    assert_same(from_pretrained(folder), values(model))


def test_an_untied_model_without_its_output_layer_is_refused(folder):
    edit_config(folder, tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"lacks 1 of 29 weights: head.weight"):
        load(folder)


def test_aliases_of_settings_are_understood(folder, model):
    edit_config(
        folder,
        *("n_embd", "n_layer", "n_head", "n_positions"),
        hidden_size=6,
        num_hidden_layers=2,
        num_attention_heads=3,
        max_position_embeddings=7,
        torch_dtype="float32",
    )
    assert from_pretrained(folder).config == model.config
    edit_config(folder, n_layer=2)
    assert from_pretrained(folder).config == model.config
    edit_config(folder, n_layer=3)
    with pytest.raises(ConfigError, match="n_layer=3 and num_hidden_layers=2, two names of one"):
        load(folder)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        *(("gelu_new", "gelu_tanh"), ("gelu_pytorch_tanh", "gelu_tanh"), ("gelu", "gelu")),
        *(("gelu_fast", "gelu_tanh"), ("relu", "relu"), ("silu", "silu"), ("swish", "silu")),
        ("tanh", "tanh"),
    ],
)
def test_activations_are_understood(folder, theirs, ours):
    edit_config(folder, activation_function=theirs)
    assert from_pretrained(folder).config.activation == ours


def test_missing_settings_have_the_defaults_of_transformers(folder):
    edit_config(
        folder,
        *("activation_function", "layer_norm_epsilon", "scale_attn_weights", "resid_pdrop"),
        *("embd_pdrop", "attn_pdrop", "scale_attn_by_inverse_layer_idx", "tie_word_embeddings"),
        *("initializer_range", "dtype", "architectures", "bos_token_id"),
    )
    config = from_pretrained(folder).config
    assert (config.activation, config.eps, config.scaled) == ("gelu_tanh", 1e-5, True)
    assert (config.dropout, config.embedding_dropout, config.attention_dropout) == (0.1, 0.1, 0.1)
    assert (config.scaled_by_depth, config.tied, config.init_std) == (False, True, 0.02)


def test_weights_of_something_else_are_reported_as_unused(folder, model):
    def edit(arrays):
        arrays["score.weight"] = np.ones((2, 6), "float32")

    edit_weights(folder, edit)
    with pytest.warns(TinyplmWarning, match=r"unused +1  score.weight"):
        loaded = load(folder)
    assert loaded.report.unused == ("score.weight",)
    assert_same(loaded.model, values(model))


# ---- hostile and damaged folders


@pytest.fixture
def never_built(monkeypatch):
    def refuse(*_):
        raise AssertionError("a model was built")

    monkeypatch.setattr(tinyplm.hub.gpt2, "build", refuse)


BAD_SETTINGS = [
    ({"n_layer": 10**9}, "n_layer=1,000,000,000, but the file has the weights of 2"),
    ({"n_layer": 1}, "n_layer=1, but the file has the weights of 2"),
    ({"n_layer": 3}, "n_layer=3, but the file has the weights of 2"),
    ({"n_layer": -1}, "n_layer=-1; expected a whole number"),
    ({"n_layer": 0}, "n_layer=0; expected"),
    ({"n_layer": 2.0}, "n_layer=2; expected a whole number"),
    ({"n_layer": True}, "n_layer=true; expected"),
    ({"n_layer": "2"}, "n_layer='2'; expected"),
    ({"n_layer": None}, "n_layer=null; expected"),
    ({"n_layer": [2]}, "a value of type list; expected"),
    ({"n_layer": 10**400}, "expected a whole number"),
    ({"n_embd": 10**9, "n_head": 10**9}, "hidden_size is 1000000000"),
    ({"n_embd": 5}, "hidden_size|model"),
    ({"n_embd": -6}, "n_embd=-6"),
    ({"n_head": 4}, "heads"),
    ({"n_head": 0}, "n_head=0"),
    ({"n_head": 10**9}, "heads"),
    ({"n_inner": 11}, r"expand.weight: file \(6, 10\), model \(6, 11\)"),
    ({"n_inner": None}, r"expand.weight: file \(6, 10\), model \(6, 24\)"),
    ({"n_inner": 0}, "n_inner=0"),
    ({"vocab_size": 14}, r"token_embedding.weight: file \(13, 6\), model \(14, 6\)"),
    ({"vocab_size": 2**31 - 1}, r"token_embedding.weight: file \(13, 6\), model \(2147483647, 6\)"),
    ({"vocab_size": 2**31}, "vocab_size=2147483648; expected"),
    ({"n_positions": 8}, r"position_embedding.weight: file \(7, 6\), model \(8, 6\)"),
    ({"layer_norm_epsilon": -1e-5}, "layer_norm_epsilon=-1e-05; expected a number above 0"),
    ({"layer_norm_epsilon": 0}, "layer_norm_epsilon=0; expected"),
    ({"layer_norm_epsilon": 2.0}, "layer_norm_epsilon=2; expected"),
    ({"layer_norm_epsilon": "1e-5"}, "layer_norm_epsilon='1e-5'; expected"),
    ({"layer_norm_epsilon": True}, "layer_norm_epsilon=true; expected"),
    ({"resid_pdrop": 1.0}, "resid_pdrop=1; expected"),
    ({"attn_pdrop": -0.1}, "attn_pdrop=-0.1; expected"),
    ({"embd_pdrop": None}, "embd_pdrop=null; expected"),
    ({"initializer_range": -1}, "initializer_range=-1; expected"),
    ({"scale_attn_weights": 1}, "scale_attn_weights=1; expected true or false"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings='yes'; expected true or false"),
    ({"activation_function": "gelu_nwe"}, "did you mean 'gelu_new'"),
    ({"activation_function": None}, "activation_function=null; expected"),
    ({"activation_function": ["gelu"]}, "activation_function=a value of type list"),
    ({"add_cross_attention": True}, "add_cross_attention=true; this GPT-2 has no encoder"),
    ({"pruned_heads": {"0": [1]}}, "heads cannot be pruned"),
    ({"is_encoder_decoder": True}, "a decoder alone"),
    ({"quantization_config": {"bits": 4}}, "quantized weights are not read"),
    ({"model_type": "gtp2"}, "model_type 'gtp2'. Did you mean 'gpt2'"),
    ({"model_type": "bert-of-tomorrow"}, "model_type 'bert-of-tomorrow'. Known: .*gpt2"),
    ({"model_type": None}, "has no model_type"),
    ({"model_type": 2}, "Known: .*gpt2"),
    ({"model_type": "../gpt2"}, "Known: .*gpt2"),
]


@pytest.mark.parametrize(("changes", "reason"), BAD_SETTINGS, ids=str)
def test_settings_that_cannot_be_are_refused_before_anything_is_built(
    folder, never_built, changes, reason
):
    edit_config(folder, **changes)
    with pytest.raises((ConfigError, CheckpointError), match=reason):
        load(folder)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999"])
def test_an_epsilon_that_is_no_number_is_refused(folder, never_built, text):
    path = folder / "config.json"
    path.write_text(path.read_text(encoding="utf-8").replace("1e-05", text), encoding="utf-8")
    with pytest.raises(CheckpointError, match="not a JSON number"):
        load(folder)


def put(name, array):
    def edit(arrays):
        arrays[name] = array

    return edit


def drop(name):
    def edit(arrays):
        del arrays[name]

    return edit


def block(values_of, number):
    """All weights of block 1 again, under another number."""

    def edit(arrays):
        for name in [name for name in arrays if ".h.1." in name]:
            arrays[name.replace(".h.1.", f".h.{number}.")] = values_of(arrays[name])

    return edit


SIX = np.ones(6, "float32")
BAD_WEIGHTS = {
    "missing": (drop("transformer.ln_f.bias"), "lacks 1 of 28 weights: norm.bias"),
    "missing in a block": (drop("transformer.h.1.mlp.c_fc.bias"), "blocks.1.feed_forward.expand"),
    "transposed": (
        put("transformer.h.0.mlp.c_fc.weight", np.ones((10, 6), "float32")),
        r"blocks.0.feed_forward.expand.weight: file \(10, 6\), model \(6, 10\)",
    ),
    "scalar": (put("transformer.ln_f.bias", np.array(1, "float32")), r"norm.bias: file \(\)"),
    "whole numbers": (put("transformer.ln_f.bias", np.ones(6, "int32")), "dtype int32"),
    "complex": (put("transformer.ln_f.bias", np.ones(6, "complex64")), "dtype complex64"),
    "NaN": (put("transformer.ln_f.bias", SIX * np.nan), r"norm.bias .* holds nan at \[0\], 6 of 6"),
    "infinite": (put("transformer.ln_f.bias", SIX * np.inf), "norm.bias .* holds inf"),
    "two names": (put("ln_f.bias", SIX), "two names of one weight"),
    "one more block": (block(np.copy, 2), "n_layer=2, but the file has the weights of 3"),
    "a block far away": (block(np.copy, 999_999_999), "numbered up to 999999999"),
    "a block with zeros before": (block(np.copy, "01"), "does not compute with: .*h.01."),
    "a block with a sign": (block(np.copy, "-1"), "does not compute with"),
    "a block of many digits": (block(np.copy, "9" * 5000), "does not compute with"),
    "adapter": (put("transformer.h.0.attn.c_attn.lora_A", SIX), "does not compute with"),
    "adapter without prefix": (put("h.0.attn.c_attn.lora_A", SIX), "does not compute with"),
    "cross-attention": (put("transformer.h.0.crossattention.c_proj.bias", SIX), "cross-attention"),
    "output bias": (put("lm_head.bias", np.ones(13, "float32")), "does not compute with: lm_head"),
    "unknown within": (put("transformer.extra", SIX), "does not compute with: transformer.extra"),
    "output of another size": (
        put("lm_head.weight", np.ones((14, 6), "float32")),
        r"head.weight: file \(14, 6\), model \(13, 6\)",
    ),
}


@pytest.mark.parametrize("case", BAD_WEIGHTS, ids=str)
def test_weights_that_do_not_fit_are_refused(folder, case):
    edit, reason = BAD_WEIGHTS[case]
    edit_weights(folder, edit)
    with pytest.raises(CheckpointError, match=reason):
        load(folder)


def test_no_weights_at_all_are_refused(folder):
    edit_weights(folder, dict.clear)
    with pytest.raises(CheckpointError, match="n_layer=2, but the file has the weights of none"):
        load(folder)


def test_what_does_not_fit_can_be_allowed(folder, rng):
    edit_config(folder, vocab_size=15)
    with pytest.raises(ConfigError, match="pass rng"):
        load(folder, ignore_mismatched_sizes=True)
    with pytest.warns(TinyplmWarning, match="reshaped"):
        loaded = load(folder, ignore_mismatched_sizes=True, rng=rng)
    assert loaded.report.reshaped == ("token_embedding.weight",)
    assert loaded.model.token_embedding.weight.shape == (15, 6)
    edit_config(folder, vocab_size=13)
    edit_weights(folder, drop("transformer.ln_f.bias"))
    with pytest.warns(TinyplmWarning, match=r"new +1  norm.bias"):
        assert load(folder, allow_new=True, rng=rng).report.new == ("norm.bias",)
    edit_weights(folder, put("transformer.ln_f.bias", SIX * np.nan))
    assert np.isnan(load(folder, allow_nonfinite=True).model.norm.bias.array).all()


def test_one_of_two_shards_of_another_save_is_noticed(tmp_path, rng):
    model = make(rng)
    save_pretrained(model, tmp_path, max_shard_size=2000)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) == 2 or len(shards) > 2
    shards[0].write_bytes(shards[1].read_bytes())
    with pytest.raises(CheckpointError, match="but it does not"):
        load(tmp_path)
    shards[0].unlink()
    with pytest.raises(MissingFileError, match="interrupted"):
        load(tmp_path)


def test_any_byte_of_the_folder_may_change_without_another_error(folder, model, rng):
    expected = values(model)
    whole = {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors")}
    header = 8 + int.from_bytes(whole["model.safetensors"][:8], "little")
    for _ in range(400):
        name = ("config.json", "model.safetensors")[rng.integers(2)]
        changed = bytearray(whole[name])
        limit = header if name == "model.safetensors" else len(changed)
        changed[rng.integers(limit)] = rng.integers(256)
        (folder / name).write_bytes(changed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TinyplmWarning)
            try:
                read = from_pretrained(folder)
            except (CheckpointError, ConfigError):
                pass
            else:
                if name == "model.safetensors":  # what was read had its right name and shape
                    assert_same(read, expected)
        (folder / name).write_bytes(whole[name])


def test_entries_are_sorted_without_reading_them(tmp_path):
    def refuse():
        raise AssertionError("read")

    entry = TensorEntry("wte.weight", (2, 3), np.dtype("float32"), tmp_path, refuse)
    found = tinyplm.hub.gpt2.sort({"wte.weight": entry, "score.weight": entry})
    assert found.entries == {"token_embedding.weight": entry}
    assert found.unused == ("score.weight",)
