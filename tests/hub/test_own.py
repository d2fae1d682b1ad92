"""Models under our own names: settings and weights come back, and what does not fit is refused."""

import json

import numpy as np
import pytest

import tinyplm
from tinyplm.errors import CheckpointError, ConfigError, TinyplmWarning
from tinyplm.generate import generate
from tinyplm.hub.safetensors_file import write_safetensors
from tinyplm.models.recurrent_lm import RecurrentConfig, RecurrentLM
from tinyplm.models.seq2seq import Seq2Seq, Seq2SeqConfig

MODELS = {
    "lstm": RecurrentLM(
        RecurrentConfig(
            cell="lstm", vocab_size=11, embedding_size=3, hidden_size=4, layers=2, dropout=0.25
        ),
        rng=np.random.default_rng(0),
    ),
    "gru, tied": RecurrentLM(
        RecurrentConfig(cell="gru", vocab_size=11, embedding_size=3, hidden_size=4, tied=True),
        rng=np.random.default_rng(0),
    ),
    "seq2seq": Seq2Seq(
        Seq2SeqConfig(vocab_size=11, source_vocab_size=7, hidden_size=4, layers=1, reversed=True),
        rng=np.random.default_rng(0),
    ),
    "with attention": Seq2Seq(
        Seq2SeqConfig(
            cell="gru", vocab_size=11, hidden_size=4, layers=2, attention="concat",
            input_feeding=True, bidirectional=True, decoder_start=2,
        ),
        rng=np.random.default_rng(0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_settings_and_weights_come_back_and_write_the_same(tmp_path, name):
    model = MODELS[name]
    tinyplm.save_pretrained(model, tmp_path)
    loaded = tinyplm.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    for key, array in model.arrays().items():
        np.testing.assert_array_equal(loaded.arrays()[key], array)
    prompt = np.array([[1, 2, 3]])
    expected = generate(model, prompt, max_new_tokens=5)
    np.testing.assert_array_equal(generate(loaded, prompt, max_new_tokens=5), expected)


def test_config_json_holds_our_own_names(tmp_path):
    tinyplm.save_pretrained(MODELS["with attention"], tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "tinyplm-seq2seq"
    assert config["architectures"] == ["Seq2Seq"]
    assert config["attention"] == "concat"
    assert config["decoder_start"] == 2


@pytest.fixture
def saved(tmp_path):
    tinyplm.save_pretrained(MODELS["lstm"], tmp_path)
    return tmp_path


def change(folder, **settings):
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | settings
    path.write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cell": "lstmm"}, "cell is 'lstmm'; known: rnn, lstm, gru"),
        ({"layers": 0}, "layers is 0"),
        ({"hidden_size": "4"}, "hidden_size is '4'"),
        ({"tied": "no"}, "tied is 'no'"),
    ],
)
def test_settings_that_cannot_be_are_refused(saved, settings, message):
    change(saved, **settings)
    with pytest.raises(ConfigError, match=message):
        tinyplm.from_pretrained(saved)


@pytest.mark.parametrize("settings", [{"layers": 3}, {"hidden_size": 5}, {"cell": "gru"}])
def test_settings_of_another_model_are_refused(saved, settings):
    change(saved, **settings)
    with pytest.raises(CheckpointError):
        tinyplm.from_pretrained(saved)


def test_a_weight_too_many_is_told(saved):
    arrays = MODELS["lstm"].arrays() | {"extra": np.zeros(3, np.float32)}
    with (saved / "model.safetensors").open("wb") as stream:
        write_safetensors(stream, arrays)
    with pytest.warns(TinyplmWarning, match="extra"):
        loaded = tinyplm.from_pretrained(saved)
    assert "extra" not in loaded.arrays()


def test_a_head_that_there_is_not_is_refused(saved):
    with pytest.raises(ConfigError, match="head='masked-lm', but a RecurrentLM has one head"):
        tinyplm.from_pretrained(saved, head="masked-lm")
