"""The hub against torch and transformers: what either side writes, the other reads."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tinyplm.hub import from_pretrained, load, save_pretrained  # noqa: E402
from tinyplm.hub.folder import read_folder  # noqa: E402
from tinyplm.hub.torch_file import read_torch  # noqa: E402

pytestmark = pytest.mark.parity

DTYPES = [
    *("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8"),
    *("bool", "complex64", "complex128"),
]
NEW_DTYPES = ["uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2"]


def same_bits(ours, theirs):
    theirs = theirs.detach().contiguous()
    assert ours.shape == tuple(theirs.shape)
    assert str(ours.dtype) == str(theirs.dtype).removeprefix("torch.")
    assert ours.tobytes() == bytes(theirs.reshape(-1).view(torch.uint8).numpy())


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", DTYPES + NEW_DTYPES)
def test_every_dtype_that_torch_saves_is_read(tmp_path, zipped, name):
    torch.manual_seed(0)
    values = (torch.randn(5, 7) * 3).to(getattr(torch, name))
    path = tmp_path / "pytorch_model.bin"
    torch.save({"w": values}, path, _use_new_zipfile_serialization=zipped)
    same_bits(read_torch(path)["w"].read(), values)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_views_parameters_and_module_states_are_read(tmp_path, zipped, protocol):
    torch.manual_seed(0)
    base = torch.randn(6, 8)
    state = torch.nn.LSTM(3, 4).state_dict()  # an OrderedDict that carries _metadata
    state |= {
        "transposed": base.t(),
        "slice": base[1:5:2, 3:],
        "scalar": base[2, 3],
        "empty": base[:0],
        "parameter": torch.nn.Parameter(base[1]),
        "expanded once": base[:1],
        "tied": base,
    }
    path = tmp_path / "pytorch_model.bin"
    torch.save(state, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    read = read_torch(path)
    assert list(read) == list(state)
    for name, values in state.items():
        same_bits(read[name].read(), values)


def test_what_torch_saves_besides_tensors_is_refused(tmp_path):
    from tinyplm.errors import CheckpointError

    path = tmp_path / "pytorch_model.bin"
    for value in (torch.nn.Linear(2, 2), {"optimizer": {}}, {"sparse": torch.eye(2).to_sparse()}):
        torch.save(value, path)
        with pytest.raises(CheckpointError):
            read_torch(path)


@pytest.fixture
def theirs():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=37, n_positions=11, n_embd=20, n_layer=3, n_head=5, n_inner=23,
        initializer_range=0.3, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and gains too: nothing is 0 or 1
            parameter.normal_(0, 0.3)
    return model


@pytest.mark.parametrize("shard", ["5GB", "5KB"])
def test_a_folder_of_transformers_is_read_value_by_value(tmp_path, theirs, shard):
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    read = read_folder(tmp_path)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "5KB")
    state = theirs.state_dict()
    state.pop("lm_head.weight")
    assert read.tensors.keys() == state.keys()
    for name, values in state.items():
        same_bits(read.tensors[name].read(), values)
    np.testing.assert_equal(read.config["n_embd"], 20)


def logits_of(model, ids):
    return model.head(model(ids)).array


def their_logits(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(ids)).logits.numpy()


def assert_as_close_as_rounding(ours, theirs, exact):
    """Ours may be at most twice as far from the float64 result as theirs, or a few roundings."""
    scale = np.abs(exact).max() * np.finfo(ours.dtype).eps
    error = np.abs(ours.astype("float64") - exact).max()
    their_error = np.abs(theirs.astype("float64") - exact).max()
    assert error <= max(2 * their_error, 8 * scale)


IDS = np.array([[1, 36, 7, 7, 0, 2, 19, 30, 5, 11, 4], [2, 2, 3, 35, 9, 1, 0, 8, 8, 21, 17]])
VARIANTS = [
    {},
    {"activation_function": "gelu"},
    {"activation_function": "relu", "n_inner": None},
    {"activation_function": "silu", "scale_attn_weights": False},
    {"activation_function": "tanh", "scale_attn_by_inverse_layer_idx": True},
    {"activation_function": "gelu_pytorch_tanh", "tie_word_embeddings": False},
    {"layer_norm_epsilon": 0.1, "reorder_and_upcast_attn": True},
]


def variant(theirs, changes):
    config = transformers.GPT2Config(**(theirs.config.to_dict() | changes))
    model = transformers.GPT2LMHeadModel(config).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_a_folder_of_transformers_gives_the_same_logits_here(tmp_path, theirs, changes):
    theirs = variant(theirs, changes)
    theirs.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert loaded.report.complete
    assert loaded.model.parameter_count == theirs.num_parameters()
    exact = their_logits(theirs.double(), IDS)
    ours = logits_of(from_pretrained(tmp_path, dtype="float64"), IDS)
    assert np.abs(ours - exact).max() <= 1e-12 * np.abs(exact).max()
    assert_as_close_as_rounding(
        logits_of(loaded.model, IDS), their_logits(theirs.float(), IDS), exact
    )


@pytest.mark.parametrize("shard", ["5GB", "5KB"])
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_a_folder_written_here_gives_the_same_logits_there(tmp_path, theirs, changes, shard):
    variant(theirs, changes).save_pretrained(tmp_path / "theirs")
    ours = from_pretrained(tmp_path / "theirs", dtype="float64")
    save_pretrained(ours, tmp_path / "ours", max_shard_size=shard)
    there, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert there.dtype == torch.float64
    exact = their_logits(there.eval(), IDS)
    assert np.abs(logits_of(ours, IDS) - exact).max() <= 1e-12 * np.abs(exact).max()
    # Settings that say what is computed are all there, whatever the defaults of a version are.
    for key in (
        *("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner", "resid_pdrop"),
        *("embd_pdrop", "attn_pdrop", "layer_norm_epsilon", "initializer_range"),
        *("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "tie_word_embeddings"),
    ):
        assert getattr(there.config, key) == variant(theirs, changes).config.to_dict()[key], key


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_every_dtype_goes_both_ways_with_the_same_bits(tmp_path, theirs, dtype):
    theirs.to(getattr(torch, dtype)).save_pretrained(tmp_path / "theirs")
    ours = from_pretrained(tmp_path / "theirs", dtype=dtype)
    save_pretrained(ours, tmp_path / "ours")
    there = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert there.dtype == getattr(torch, dtype)
    for name, values in theirs.state_dict().items():
        assert torch.equal(there.state_dict()[name], values), name


@pytest.mark.parametrize("zipped", [True, False])
def test_an_old_bin_file_gives_the_same_logits(tmp_path, theirs, zipped):
    theirs.config.save_pretrained(tmp_path)
    state = theirs.state_dict()  # holds lm_head.weight too, sharing the embedding's storage
    for i in range(3):
        state[f"transformer.h.{i}.attn.bias"] = torch.ones(1, 1, 11, 11, dtype=torch.uint8).tril()
        state[f"transformer.h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    loaded = load(tmp_path, dtype="float64")
    assert len(loaded.report.ignored) == 6
    assert loaded.model.config.tied
    exact = their_logits(theirs.double(), IDS)
    assert np.abs(logits_of(loaded.model, IDS) - exact).max() <= 1e-12 * np.abs(exact).max()


def test_the_base_model_without_prefix_and_with_it_are_one(tmp_path, theirs):
    theirs.transformer.save_pretrained(tmp_path / "base")
    assert "wte.weight" in read_folder(tmp_path / "base").tensors
    theirs.save_pretrained(tmp_path / "full")
    base, full = from_pretrained(tmp_path / "base"), from_pretrained(tmp_path / "full")
    for name, parameter in full.named_parameters().items():
        np.testing.assert_array_equal(base.named_parameters()[name].array, parameter.array)


def test_another_head_is_left_out_and_said(tmp_path, theirs):
    from tinyplm.errors import TinyplmWarning

    config = transformers.GPT2Config(**(theirs.config.to_dict() | {"num_labels": 3}))
    transformers.GPT2ForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.warns(TinyplmWarning, match=r"unused +1  score.weight"):
        assert load(tmp_path).report.unused == ("score.weight",)


def test_generation_there_stops_at_the_token_named_here(tmp_path, theirs):
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = load(tmp_path / "theirs")
    ids = {key: loaded.config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    save_pretrained(loaded.model, tmp_path / "ours", extra_config=ids)
    there = transformers.GenerationConfig.from_pretrained(tmp_path / "ours")
    assert (there.bos_token_id, there.eos_token_id) == (1, 2)
