"""BERT and RoBERTa folders: both ways, old names and new, and with heads that are chosen."""

import json
import warnings
from itertools import combinations

import numpy as np
import pytest

from tinyplm.errors import CheckpointError, ConfigError, TinyplmWarning
from tinyplm.hub import from_pretrained, load, save_pretrained
from tinyplm.hub.safetensors_file import read_safetensors, write_safetensors
from tinyplm.models.bert import HEADS, Bert, BertConfig
from tinyplm.models.roberta import Roberta, RobertaConfig

SIZES = {
    "vocab_size": 13,
    "hidden_size": 6,
    "layers": 2,
    "heads": 3,
    "ffn_size": 10,
    "positions": 7,
}
CARRIED = [
    ("masked-lm", "next-sentence"),
    ("masked-lm",),
    ("masked-lm", "pooler"),
    ("next-sentence",),
    ("sequence-classification",),
    ("token-classification",),
    ("question-answering",),
    ("pooler",),
    (),
]
CLASSIFIERS = {"sequence-classification", "token-classification"}


def knows(kind, carries):
    """Whether there is such a model: a RoBERTa has no next sentences."""
    return kind is Bert or "next-sentence" not in carries


EVERY = [  # set of heads that a config accepts
    (kind, carries)
    for kind in (Bert, Roberta)
    for count in range(len(HEADS) + 1)
    for carries in combinations(HEADS, count)
    if knows(kind, carries) and not CLASSIFIERS.issubset(carries)
]


def make(*carries, kind=Bert, **changes):
    """A model of odd sizes in which no value is like another."""
    config = {Bert: BertConfig, Roberta: RobertaConfig}[kind]
    rng = np.random.default_rng(0)
    model = kind(config(**(SIZES | changes), carries=carries), rng=rng)
    for parameter in model.named_parameters().values():
        parameter.replace(rng.normal(size=parameter.shape).astype(parameter.dtype))
    return model


def assert_same(model, other):
    found, expected = model.arrays(), other.arrays()
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def weights_of(folder):
    return {n: entry.read() for n, entry in read_safetensors(folder / "model.safetensors").items()}


def rewrite(folder, arrays):
    with open(folder / "model.safetensors", "wb") as stream:
        write_safetensors(stream, arrays)


def edit_config(folder, *removed, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if k not in removed}), "utf-8")


@pytest.fixture
def folder(tmp_path):
    """The full model of pretraining."""
    save_pretrained(make("masked-lm", "next-sentence"), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("kind", "carries"),
    [(kind, carries) for kind in (Bert, Roberta) for carries in CARRIED if knows(kind, carries)],
    ids=str,
)
@pytest.mark.parametrize("promised", [True, False])
def test_a_model_comes_back_as_it_was(tmp_path, kind, carries, promised):
    changes = {"activation": "silu", "eps": 0.5, "classifier_dropout": 0.25, "segments": 3}
    model = make(*carries, kind=kind, labels=5, **changes)
    save_pretrained(model, tmp_path)
    if not promised:  # as old folders have it: what the file has says what the model carries
        edit_config(tmp_path, "architectures", "tinyplm_carries")
    loaded = load(tmp_path)
    assert type(loaded.model) is kind
    assert loaded.model.config == model.config
    assert loaded.report.complete
    assert_same(loaded.model, model)


@pytest.mark.parametrize(("kind", "carries"), EVERY, ids=str)
def test_every_set_of_heads_comes_back(tmp_path, kind, carries):
    model = make(*carries, kind=kind, labels=5)
    save_pretrained(model, tmp_path)
    loaded = load(tmp_path)
    assert loaded.model.config == model.config
    assert loaded.report.complete
    assert_same(loaded.model, model)
    edit_config(tmp_path, "tinyplm_carries")
    load(tmp_path)  # the class that is named needs nothing that the file lacks


@pytest.mark.parametrize(
    ("carries", "architecture", "prefixed"),
    [
        (("masked-lm", "next-sentence"), "BertForPreTraining", True),
        (("masked-lm",), "BertForMaskedLM", True),
        (("masked-lm", "pooler"), "BertForMaskedLM", True),
        (("next-sentence",), "BertForNextSentencePrediction", True),
        (("sequence-classification",), "BertForSequenceClassification", True),
        (("token-classification",), "BertForTokenClassification", True),
        (("question-answering",), "BertForQuestionAnswering", True),
        (("pooler",), "BertModel", False),
        ((), "BertModel", False),
        (("masked-lm", "sequence-classification"), "BertForMaskedLM", True),
        (("masked-lm", "next-sentence", "token-classification"), "BertForPreTraining", True),
        (("next-sentence", "question-answering"), "BertForNextSentencePrediction", True),
    ],
    ids=str,
)
def test_the_class_to_load_with_is_named(tmp_path, carries, architecture, prefixed):
    save_pretrained(make(*carries), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == [architecture]
    name = "embeddings.word_embeddings.weight"
    assert (f"bert.{name}" if prefixed else name) in weights_of(tmp_path)


def test_only_mixtures_are_written_by_name(tmp_path):
    for kind, carries in EVERY:
        folder = tmp_path / f"{kind.__name__} {len(carries)}"
        model = make(*carries, kind=kind)
        save_pretrained(model, folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        exact = len(carries) < 2 or model.config.carries in (
            ("masked-lm", "next-sentence"),
            ("next-sentence",),
            ("sequence-classification",),
        )
        said = None if exact else list(model.config.carries)
        assert config.get("tinyplm_carries") == said


@pytest.mark.parametrize(
    "said", ["masked-lm", ["masked-ml"], [["masked-lm"]], None, {"masked-lm": 1}], ids=str
)
def test_names_of_heads_that_cannot_be_followed_are_refused(folder, said):
    edit_config(folder, tinyplm_carries=said)
    with pytest.raises(ConfigError, match=r"tinyplm_carries=.*expected a list of .*masked-lm"):
        load(folder)
    with pytest.warns(TinyplmWarning, match=r"unused.*cls\.predictions"):
        assert from_pretrained(folder, head="pooler").config.carries == ("pooler",)


def test_two_classifiers_at_once_and_heads_of_another_family_are_refused(tmp_path):
    save_pretrained(make("masked-lm", kind=Roberta), tmp_path)
    edit_config(tmp_path, tinyplm_carries=sorted(CLASSIFIERS))
    with pytest.raises(ConfigError, match="at most one"):
        load(tmp_path)
    edit_config(tmp_path, tinyplm_carries=["next-sentence"])
    with pytest.raises(ConfigError, match=r"tinyplm_carries=\['next-sentence'\]"):
        load(tmp_path)


def test_names_of_heads_that_transformers_copied_from_an_older_folder_are_not_believed(tmp_path):
    model = make("token-classification")
    save_pretrained(model, tmp_path)
    edit_config(tmp_path, tinyplm_carries=["masked-lm", "pooler"], transformers_version="5.0.0")
    loaded = load(tmp_path)
    assert loaded.model.config == model.config
    assert loaded.report.complete


def test_queries_keys_and_values_are_three_layers_turned_in_the_file(folder):
    model, arrays = from_pretrained(folder), weights_of(folder)
    weight = model.blocks[1].attention.project_in.weight.array
    bias = model.blocks[1].attention.project_in.bias.array
    for number, part in enumerate(("query", "key", "value")):
        name = f"bert.encoder.layer.1.attention.self.{part}"
        columns = slice(6 * number, 6 * number + 6)
        np.testing.assert_array_equal(arrays[f"{name}.weight"], weight[:, columns].T)
        np.testing.assert_array_equal(arrays[f"{name}.bias"], bias[columns])
    assert "cls.predictions.decoder.weight" not in arrays  # tied


def test_positions_of_roberta_are_two_fewer_than_rows(tmp_path):
    save_pretrained(make("masked-lm", kind=Roberta), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["max_position_embeddings"] == 9
    assert config["pad_token_id"] == 1
    assert from_pretrained(tmp_path).config.positions == 7
    edit_config(tmp_path, pad_token_id=8)
    with pytest.raises(ConfigError, match=r"pad_token_id=8 and max_position_embeddings=9"):
        load(tmp_path)


def test_names_of_old_files_are_read(folder):
    model = from_pretrained(folder)
    old = {}
    for name, array in weights_of(folder).items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        old[name.replace("LayerNorm.bias", "LayerNorm.beta")] = array
    old["bert.embeddings.position_ids"] = np.arange(7)[None]
    rewrite(folder, old)
    loaded = load(folder)
    assert_same(loaded.model, model)
    assert loaded.report.complete
    assert loaded.report.ignored == ("bert.embeddings.position_ids",)


@pytest.mark.parametrize("name", ["bert.embeddings.LayerNorm.gamma", "embeddings.LayerNorm.weight"])
def test_one_weight_under_two_names_is_refused(folder, name):
    arrays = weights_of(folder)
    rewrite(folder, arrays | {name: arrays["bert.embeddings.LayerNorm.weight"]})
    with pytest.raises(CheckpointError, match="two names of one weight"):
        load(folder)


@pytest.mark.parametrize("kind", [Bert, Roberta])
@pytest.mark.parametrize("which", ["both", "second"])
def test_the_output_layer_may_be_there_under_either_name_or_both(tmp_path, kind, which):
    model = make("masked-lm", kind=kind)
    save_pretrained(model, tmp_path)
    arrays = weights_of(tmp_path)
    pairs = {
        Bert: (
            ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
            ("cls.predictions.bias", "cls.predictions.decoder.bias"),
        ),
        Roberta: (
            ("roberta.embeddings.word_embeddings.weight", "lm_head.decoder.weight"),
            ("lm_head.bias", "lm_head.decoder.bias"),
        ),
    }[kind]
    for first, second in pairs:
        arrays[second] = arrays[first] if which == "both" else arrays.pop(first)
    rewrite(tmp_path, arrays)
    loaded = load(tmp_path)
    assert_same(loaded.model, model)
    assert loaded.report.complete
    rewrite(tmp_path, arrays | {pairs[0][0]: model.arrays()["token_embedding.weight"] + 1})
    with pytest.raises(CheckpointError, match=r"decoder\.weight differs from .*word_embeddings"):
        load(tmp_path)


def test_a_head_that_is_asked_for_begins_anew_on_the_weights_of_the_rest(folder):
    with pytest.raises(CheckpointError, match=r"lacks 2 of 33 weights: classifier\.weight"):
        load(folder, head="sequence-classification")
    with pytest.warns(TinyplmWarning, match="not everything fits"):
        loaded = load(
            folder,
            head="sequence-classification",
            allow_new=True,
            rng=np.random.default_rng(0),
        )
    assert loaded.model.config.carries == ("sequence-classification",)
    assert loaded.report.new == ("classifier.weight", "classifier.bias")
    assert "cls.predictions.bias" in loaded.report.unused
    np.testing.assert_array_equal(
        loaded.model.pooler.weight.array, from_pretrained(folder).pooler.weight.array
    )
    with pytest.raises(ConfigError, match=r"No head 'masked-ml'. Did you mean 'masked-lm'"):
        load(folder, head="masked-ml")


def test_every_head_can_be_asked_for(folder):
    for head, attribute in HEADS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TinyplmWarning)
            loaded = load(folder, head=head, allow_new=True, rng=np.random.default_rng(0))
        assert hasattr(loaded.model, attribute)
        assert loaded.model(np.array([[1, 2, 3]])).shape == (1, 3, 6)


def test_a_head_that_is_promised_and_missing_is_missed(tmp_path):
    save_pretrained(make(), tmp_path)
    edit_config(tmp_path, architectures=["BertForMaskedLM"])
    with pytest.raises(CheckpointError, match=r"lacks 5 of .*head\.before"):
        load(tmp_path)


def test_the_name_classifier_stands_for_either_kind(tmp_path):
    save_pretrained(make("sequence-classification"), tmp_path)
    edit_config(tmp_path, architectures=["BertForTokenClassification"])
    with pytest.warns(TinyplmWarning):
        model = from_pretrained(tmp_path, head="token-classification")
    assert model.config.carries == ("token-classification",)
    assert from_pretrained(tmp_path).config.carries == ("token-classification", "pooler")


def test_an_untrained_pooler_beside_robertas_classifier_is_not_read(tmp_path):
    model = make("sequence-classification", kind=Roberta)
    save_pretrained(model, tmp_path)
    arrays = weights_of(tmp_path)
    arrays["roberta.pooler.dense.weight"] = np.ones((6, 6), np.float32)
    arrays["roberta.pooler.dense.bias"] = np.ones(6, np.float32)
    rewrite(tmp_path, arrays)
    with pytest.warns(TinyplmWarning, match=r"roberta\.pooler\.dense"):
        loaded = load(tmp_path)
    assert_same(loaded.model, model)


def test_the_number_of_classes_is_read_in_either_form(tmp_path):
    save_pretrained(make("token-classification", labels=3), tmp_path)
    edit_config(tmp_path, "num_labels", id2label={"0": "O", "1": "B", "2": "I"})
    assert from_pretrained(tmp_path).config.labels == 3
    edit_config(tmp_path, id2label={"0": "O"})
    with pytest.raises(CheckpointError, match=r"classifier\.weight: file \(3, 6\), model \(1, 6\)"):
        load(tmp_path)


def test_weights_of_a_changed_encoder_are_refused(folder):
    arrays = weights_of(folder)
    name = "bert.encoder.layer.0.output.adapters.down.weight"
    rewrite(folder, arrays | {name: np.ones((2, 6), np.float32)})
    with pytest.raises(CheckpointError, match=r"does not compute with.*adapters"):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"is_decoder": True}, ConfigError, "is_decoder=true"),
        ({"add_cross_attention": True}, ConfigError, "add_cross_attention=true"),
        ({"position_embedding_type": "relative_key"}, ConfigError, "expected one of absolute"),
        ({"hidden_act": "mish"}, ConfigError, "hidden_act='mish'"),
        ({"num_hidden_layers": 3}, CheckpointError, "num_hidden_layers=3.*2, numbered up to 1"),
        ({"num_hidden_layers": 10**9}, CheckpointError, "Settings and weights"),
        ({"type_vocab_size": 5}, CheckpointError, r"segment_embedding\.weight: file \(2, 6\)"),
        ({"vocab_size": "13"}, ConfigError, "vocab_size='13'"),
        ({"architectures": 7, "num_labels": 0}, ConfigError, "num_labels=0"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_followed_are_refused(folder, changes, error, message):
    edit_config(folder, **changes)
    with pytest.raises(error, match=message):
        load(folder)
