"""What RoBERTa does otherwise than BERT."""

import numpy as np
import pytest

from tinyplm import Tensor
from tinyplm.errors import ConfigError, ShapeError
from tinyplm.models.bert import Bert, BertConfig
from tinyplm.models.roberta import SIZES, Roberta, RobertaConfig

SMALL = {"vocab_size": 31, "hidden_size": 12, "layers": 2, "heads": 3, "positions": 16}


def count(size, *carries, **changes):
    config = RobertaConfig(**(vars(SIZES[size]) | changes | {"carries": carries}))
    return Roberta(config, rng=None).parameter_count


def test_published_models_have_their_counts():
    assert count("base", "pooler") == 124_645_632
    assert count("base", "sequence-classification") == 124_647_170
    assert count("large", "pooler") == 355_359_744
    assert count("large", "sequence-classification") == 355_361_794
    assert count("base", "pooler", layers=6) == 82_118_400  # DistilRoBERTa
    assert count("base", "masked-lm", layers=6) == 82_170_201


def test_512_positions_take_514_rows():
    model = Roberta(SIZES["base"], rng=None)
    assert model.position_embedding.weight.shape == (514, 768)
    small = Roberta(RobertaConfig(**SMALL), rng=np.random.default_rng(0))
    small(np.full((1, 16), 5))
    with pytest.raises(ShapeError, match="17 tokens, but this RoBERTa has 16 positions"):
        small(np.full((1, 17), 5))


def test_positions_count_tokens_and_padding_stays_where_it_is():
    model = Roberta(RobertaConfig(**SMALL), rng=None)
    rows = model._places(np.array([[0, 5, 6, 2, 1, 1], [1, 1, 0, 7, 1, 2]]), None)
    assert rows.tolist() == [[2, 3, 4, 5, 1, 1], [1, 1, 2, 3, 1, 4]]
    assert model._places(np.zeros((1, 3), int), np.array([[0, 1, 7]])).tolist() == [[2, 3, 9]]


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_needs_no_positions_of_its_own(side):
    model = Roberta(RobertaConfig(**SMALL), rng=np.random.default_rng(0))
    ids = np.array([[1, 1, 1, 8, 9, 4]]) if side == "left" else np.array([[8, 9, 4, 1, 1, 1]])
    there = ids[0] != 1
    found = model(ids, attention_mask=(ids != 1).astype(int)).array[0, there]
    np.testing.assert_allclose(found, model(ids[:, there]).array[0], rtol=0, atol=1e-5)


def test_rows_of_padding_begin_at_0_and_the_others_are_not_cut():
    arrays = Roberta(RobertaConfig(**SMALL, padding=3), rng=np.random.default_rng(0)).arrays()
    for name in ("token_embedding.weight", "position_embedding.weight"):
        assert not arrays[name][3].any()
        assert (arrays[name] == 0).sum() == 12
    assert max(abs(array).max() for array in arrays.values() if array.ndim == 2) > 0.05


def test_the_transform_before_the_vocabulary_bends_by_the_exact_gelu():
    hidden = np.random.default_rng(1).standard_normal((2, 3, 12), dtype=np.float32)
    found = []
    for activation in ("gelu", "relu"):
        config = RobertaConfig(**SMALL, activation=activation)
        model = Roberta(config, rng=np.random.default_rng(0))
        found.append(model.head(Tensor(hidden)).array)
    np.testing.assert_array_equal(*found)


def test_a_classifier_drops_before_its_dense_layer_too():
    config = RobertaConfig(**SMALL, carries=("sequence-classification",), dropout=0.5)
    model = Roberta(config, rng=np.random.default_rng(0))
    hidden = model(np.array([[5, 6, 7]]))
    np.testing.assert_array_equal(model.features(hidden).array, model.pooled(hidden).array)
    dropped = model.features(hidden, rng=np.random.default_rng(0)).array
    left = dropped != 0
    assert left.any()
    # Twice what is kept, if only the second dropout were there.
    assert not np.allclose(dropped[left], 2 * model.pooled(hidden).array[left], rtol=1e-3)


def test_apart_from_positions_it_computes_what_bert_computes():
    roberta = Roberta(RobertaConfig(**SMALL), rng=np.random.default_rng(0))
    bert = Bert(BertConfig(**SMALL, segments=1, eps=1e-5, carries=("masked-lm",)), rng=None)
    arrays = roberta.arrays()
    arrays["position_embedding.weight"] = arrays["position_embedding.weight"][2:]
    bert.load(arrays)
    ids = np.array([[0, 5, 6, 2]])
    np.testing.assert_array_equal(roberta(ids).array, bert(ids).array)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="not trained on next sentences"):
        RobertaConfig(carries=("masked-lm", "next-sentence"))
    with pytest.raises(ConfigError, match=r"padding is 31.*vocab_size=31"):
        RobertaConfig(**SMALL, padding=31)
    for value in (-1, 1.0, None, True):
        with pytest.raises(ConfigError, match="padding"):
            RobertaConfig(padding=value)
