"""What makes it BERT."""

import math

import numpy as np
import pytest

from tinyplm.errors import ConfigError, ShapeError
from tinyplm.models.bert import SIZES, Bert, BertConfig

SMALL = {"vocab_size": 31, "hidden_size": 12, "layers": 2, "heads": 3, "positions": 16}
STILL = {"dropout": 0.0, "attention_dropout": 0.0}

# Parameters of the encoder with its pooler, with the masked language model alone, and with both heads of pretraining.
PUBLISHED = {
    "base uncased": ("base", 30_522, 109_482_240, 109_514_298, 110_106_428),
    "large uncased": ("large", 30_522, 335_141_888, 335_174_458, 336_226_108),
    "base cased": ("base", 28_996, 108_310_272, 108_340_804, 108_932_934),
    "large cased": ("large", 28_996, 333_579_264, 333_610_308, 334_661_958),
    "base multilingual cased": ("base", 119_547, 177_853_440, 177_974_523, 178_566_653),
    "base multilingual uncased": ("base", 105_879, 167_356_416, None, 168_055_961),
    "base Chinese": ("base", 21_128, 102_267_648, 102_290_312, 102_882_442),
    "tiny": ("tiny", 30_522, 4_385_920, 4_416_698, 4_433_468),
    "mini": ("mini", 30_522, 11_170_560, None, 11_267_900),
    "small": ("small", 30_522, 28_763_648, None, 29_058_876),
    "medium": ("medium", 30_522, 41_373_184, None, 41_668_412),
}


def count(size, *carries, **changes):
    config = BertConfig(**(vars(SIZES[size]) | changes | {"carries": carries}))
    return Bert(config, rng=None).parameter_count


def random_model(*carries, dtype="float64", **changes):
    config = BertConfig(**(SMALL | STILL | {"carries": carries} | changes))
    model = Bert(config, rng=np.random.default_rng(0))
    rng = np.random.default_rng(1)
    arrays = model.arrays().items()
    model.load({name: 0.4 * rng.standard_normal(a.shape).astype(dtype) for name, a in arrays})
    return model


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_their_counts(name):
    size, vocab, encoder, masked, pretraining = PUBLISHED[name]
    assert count(size, "pooler", vocab_size=vocab) == encoder
    assert masked is None or count(size, "masked-lm", vocab_size=vocab) == masked
    assert count(size, "masked-lm", "next-sentence", vocab_size=vocab) == pretraining


def test_heads_of_tasks_have_their_counts():
    assert count("base") == 108_891_648
    assert count("base", "sequence-classification") == 109_483_778
    assert count("base", "token-classification") == count("base", "question-answering")
    assert count("base", "question-answering") == 108_893_186
    assert count("large", "sequence-classification") == 335_143_938
    assert count("large", "question-answering") == 334_094_338


def normalised(x, gain, bias, eps=1e-12):
    mean = x.mean(axis=-1, keepdims=True)
    return gain * (x - mean) / np.sqrt(((x - mean) ** 2).mean(axis=-1, keepdims=True) + eps) + bias


def test_hidden_states_follow_the_equations_of_the_paper():
    model = random_model("masked-lm", "next-sentence")
    w = model.arrays()
    ids, types = np.array([3, 1, 4, 1, 5]), np.array([0, 0, 0, 1, 1])

    def norm(name, x):
        return normalised(x, w[f"{name}.gain"], w[f"{name}.bias"])

    def linear(name, x):
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    def gelu(x):
        return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2

    words, places = w["token_embedding.weight"][ids], w["position_embedding.weight"][:5]
    x = norm("norm", words + places + w["segment_embedding.weight"][types])
    for block in ("blocks.0", "blocks.1"):
        qkv = linear(f"{block}.attention.project_in", x).reshape(5, 3, 3, 4)
        mixed = np.zeros((5, 3, 4))
        for head in range(3):
            q, k, v = qkv[:, 0, head], qkv[:, 1, head], qkv[:, 2, head]
            scores = np.exp(q @ k.T / 2)  # a head is 4 wide
            mixed[:, head] = scores / scores.sum(axis=1, keepdims=True) @ v
        y = linear(f"{block}.attention.project_out", mixed.reshape(5, 12))
        x = norm(f"{block}.norm_1", x + y)
        inner = gelu(linear(f"{block}.feed_forward.expand", x))
        x = norm(f"{block}.norm_2", x + linear(f"{block}.feed_forward.contract", inner))
    hidden = model(ids[None], token_type_ids=types[None])
    np.testing.assert_allclose(hidden.array[0], x, rtol=0, atol=1e-12)

    logits = norm("head.before.norm", gelu(linear("head.before.dense", x)))
    logits = logits @ w["token_embedding.weight"].T + w["head.bias"]
    np.testing.assert_allclose(model.head(hidden).array[0], logits, rtol=0, atol=1e-11)
    pooled = np.tanh(linear("pooler", x[0]))
    np.testing.assert_allclose(model.pooled(hidden).array[0], pooled, rtol=0, atol=1e-12)
    relation = pooled @ w["next_sentence.weight"].T + w["next_sentence.bias"]
    found = model.next_sentence(model.pooled(hidden)).array[0]
    np.testing.assert_allclose(found, relation, rtol=0, atol=1e-12)


def test_the_output_layer_is_the_token_embedding_with_a_bias_of_its_own():
    model = random_model("masked-lm")
    assert model.head.weight is model.token_embedding.weight
    assert "head.weight" not in model.named_parameters()
    assert model.head.bias.shape == (31,)


def test_new_weights_are_normal_and_cut_at_two_standard_deviations():
    arrays = Bert(SIZES["tiny"], rng=np.random.default_rng(0)).arrays()
    table = arrays["token_embedding.weight"]  # 3.9 million values
    assert abs(table).max() <= 0.04
    assert abs(table).max() > 0.0399
    # Of a normal distribution cut at 2: sqrt(1 - 4 phi(2) / (2 Phi(2) - 1)) = 0.8796.
    assert abs(table.std() - 0.02 * 0.8796) < 1e-5
    for name, array in arrays.items():
        if array.ndim == 1:
            assert (array == (1 if name.endswith("gain") else 0)).all(), name
        else:
            assert 0.01 < array.std() < 0.02, name


def test_the_segment_of_a_token_matters_and_is_0_by_default():
    model = random_model()
    ids = np.array([[3, 1, 4, 1, 5]])
    zeros, ones = np.zeros((1, 5), int), np.ones((1, 5), int)
    left_out = model(ids).array
    np.testing.assert_allclose(model(ids, token_type_ids=zeros).array, left_out, atol=1e-12)
    assert abs(model(ids, token_type_ids=ones).array - left_out).max() > 1e-3


@pytest.mark.parametrize("shape", [(1, 5), (2, 4), (2, 5, 1), (5,)])
def test_segments_of_another_shape_are_refused(shape):
    with pytest.raises(ShapeError, match="token_type_ids has shape"):
        random_model()(np.zeros((2, 5), int), token_type_ids=np.zeros(shape, int))


def test_segments_that_there_are_not_are_refused_in_words():
    types = np.array([[0, 0, 1, 2]])
    with pytest.raises(ShapeError, match=r"contains 2 at \[0, 3\].*segments=2.*1 for the second"):
        random_model()(np.zeros((1, 4), int), token_type_ids=types)


def test_a_row_of_padding_alone_gives_numbers_and_disturbs_no_other():
    model = random_model("masked-lm", "next-sentence")
    ids = np.arange(12).reshape(2, 6)
    mask = np.array([[1] * 6, [0] * 6])
    hidden = model(ids, attention_mask=mask)
    assert np.isfinite(hidden.array).all()
    assert np.isfinite(model.pooled(hidden, mask).array).all()
    np.testing.assert_allclose(hidden.array[0], model(ids[:1]).array[0], rtol=0, atol=1e-12)


def test_the_pooled_vector_is_that_of_the_first_token_behind_padding():
    model = random_model("next-sentence")
    text = np.array([[3, 1, 4, 1]])
    expected = model.pooled(model(text)).array
    ids = np.array([[9, 9, 3, 1, 4, 1]])
    mask, positions = np.array([[0, 0, 1, 1, 1, 1]]), np.array([[0, 0, 0, 1, 2, 3]])
    hidden = model(ids, attention_mask=mask, position_ids=positions)
    np.testing.assert_allclose(model.pooled(hidden, mask).array, expected, rtol=0, atol=1e-12)
    assert abs(model.pooled(hidden).array - expected).max() > 1e-3


def test_classifiers_read_inputs_or_tokens_and_drop_before():
    ids = np.array([[3, 1, 4], [1, 5, 9]])
    whole = random_model("sequence-classification", labels=5, dropout=0.5)
    hidden = whole(ids)
    assert whole.classifier(whole.features(hidden)).shape == (2, 5)
    np.testing.assert_array_equal(whole.features(hidden).array, whole.pooled(hidden).array)
    dropped = whole.features(hidden, rng=np.random.default_rng(0)).array
    assert 0.1 < (dropped == 0).mean() < 0.9
    kept = random_model("sequence-classification", dropout=0.5, classifier_dropout=0.0)
    assert kept.features(hidden, rng=np.random.default_rng(0)).array.all()
    tokens = random_model("token-classification", labels=4)
    assert tokens.classifier(tokens.features(hidden)).shape == (2, 3, 4)
    assert not hasattr(tokens, "pooler")
    spans = random_model("question-answering")
    assert spans.span(spans(ids)).shape == (2, 3, 2)


def test_what_a_model_carries_is_kept_in_one_order_and_once():
    def kept(*carries):
        return BertConfig(carries=carries).carries

    assert kept("next-sentence", "masked-lm") == ("masked-lm", "next-sentence")
    assert kept("pooler", "next-sentence") == ("next-sentence",)
    assert kept("pooler", "masked-lm") == ("masked-lm", "pooler")


@pytest.mark.parametrize(
    "carries",
    [
        ("masked",),
        ["masked-lm"],
        "masked-lm",
        None,
        ("masked-lm", "masked-lm"),
        ("sequence-classification", "token-classification"),
    ],
    ids=str,
)
def test_heads_that_cannot_be_are_refused_by_name(carries):
    with pytest.raises(ConfigError, match=r"carries.*masked-lm, next-sentence"):
        BertConfig(carries=carries)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *((name, value) for name in ("segments", "labels") for value in (0, -1, 2.0, True, None)),
        *(("classifier_dropout", value) for value in (-0.1, 1, "0.1", True, math.nan)),
    ],
    ids=str,
)
def test_settings_that_only_bert_has_are_checked(setting, value):
    with pytest.raises(ConfigError, match=setting):
        BertConfig(**{setting: value})
