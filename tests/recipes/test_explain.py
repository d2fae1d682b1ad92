"""What an explanation shows is what the objective does."""

import numpy as np
import pytest

from tinyplm.autograd import no_grad
from tinyplm.errors import DataError
from tinyplm.models.gpt2 import Gpt2, Gpt2Config
from tinyplm.objectives import OBJECTIVES, CausalLM
from tinyplm.recipes.explain import EXPLAINERS, explain, shown_token, words
from tinyplm.text import Tokenizer


def test_every_objective_is_explained():
    assert set(EXPLAINERS) == set(OBJECTIVES)


def test_each_word_is_a_token_when_no_tokenizer_is_given():
    found = explain("causal-lm", "The cat sat on the mat")
    assert found.inputs == ["'The'", "' cat'", "' sat'", "' on'", "' the'", "' mat'"]
    assert found.targets == ["' cat'", "' sat'", "' on'", "' the'", "' mat'", "<|endoftext|>"]
    assert found.labels == 6
    assert np.array_equal(found.visible, np.tri(6, dtype=bool))
    assert found.losses is None
    assert found.mean_loss is None


def test_the_mean_of_the_losses_shown_is_the_loss_of_the_objective():
    tokenizer = words("to be or not to be")
    config = Gpt2Config(vocab_size=len(tokenizer), hidden_size=8, layers=1, heads=2, positions=16)
    model = Gpt2(config, rng=np.random.default_rng(0))
    found = explain("causal-lm", "to be or not to be", tokenizer, model)
    ids = [*tokenizer.encode("to be or not to be"), tokenizer.end_of_text]
    objective = CausalLM()
    batch = objective.prepare({"input_ids": np.array([ids])}, rng=np.random.default_rng(0))
    with no_grad():
        assert found.mean_loss == pytest.approx(objective.loss(model, batch).item(), rel=1e-6)
    assert len(found.losses) == found.labels


def test_parts_of_a_character_are_shown_as_bytes_and_letters_as_they_are():
    tokenizer = Tokenizer.train("bytes", [])
    assert [shown_token(tokenizer, i) for i in "é\n".encode()] == [r"'\xc3'", r"'\xa9'", r"'\n'"]
    assert shown_token(words("고양이"), int(words("고양이").encode("고양이")[0])) == "'고양이'"


@pytest.mark.parametrize("text", ["a", ""])
def test_a_text_with_nothing_to_predict_is_refused(text):
    tokenizer = Tokenizer.train("chars", ["ab"], special_tokens=())
    with pytest.raises(DataError, match="at least 2"):
        explain("causal-lm", text, tokenizer)
