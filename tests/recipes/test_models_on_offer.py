"""Which objectives a model on offer learns from, and what its tokenizer must have."""

import numpy as np
import pytest

from tinyplm.errors import ConfigError
from tinyplm.objectives import CausalLM, objective_named
from tinyplm.recipes.models import MODELS
from tinyplm.recipes.run import Run, from_settings
from tinyplm.text import Tokenizer


@pytest.mark.parametrize(
    ("model", "objective", "fits"),
    [
        ("bert", "mlm+nsp", True),
        ("bert", "nsp+mlm", True),
        ("bert", "nsp", True),
        ("bert", "mlm+mlm", False),
        ("lstm", "tbptt+causal-lm", False),
        ("t5", "span-corruption+prefix-lm", False),
        ("gpt2", "mlm", False),
    ],
)
def test_a_sum_fits_if_it_is_part_of_one_that_is_listed(model, objective, fits):
    assert MODELS[model].fits(objective) == fits


def test_every_model_fits_its_own_objectives_and_its_defaults():
    for name, entry in MODELS.items():
        assert all(entry.fits(objective) for objective in entry.objectives)
        run = from_settings({"model": name})
        assert {key: getattr(run, key) for key in entry.defaults} == dict(entry.defaults)


def test_a_model_that_counts_positions_by_padding_needs_a_padding_token():
    run = from_settings({"model": "roberta"})
    with pytest.raises(ConfigError, match=r"counts positions by its padding token.*bytes"):
        MODELS["roberta"].config_for(run, Tokenizer.train("bytes", []))
    named = Tokenizer.train("bytes", [], special_tokens=("<s>", "<pad>", "</s>", "<unk>", "<mask>"))
    assert MODELS["roberta"].config_for(run, named).padding == named.padding


def test_too_many_heads_are_said_in_the_terms_of_the_run():
    with pytest.raises(ConfigError, match="heads is 32, more than hidden_size=16"):
        MODELS["t5"].config(Run(model="t5", heads=32, hidden_size=16), 300)


def test_an_unknown_objective_is_refused_in_words():
    with pytest.raises(ConfigError, match=r"No objective 'mlx'\. Did you mean 'mlm'"):
        objective_named("mlx", Tokenizer.train("bytes", []))


def test_a_batch_may_be_lists():
    prepared = CausalLM().prepare({"input_ids": [[7, 8, 9]]}, rng=np.random.default_rng(0))
    assert prepared["labels"].tolist() == [[8, 9]]
