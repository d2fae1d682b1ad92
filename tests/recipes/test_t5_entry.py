"""A T5 of a run and the tokenizer that is trained for it know the same tokens."""

import pytest

from tinyplm.objectives import objective_named
from tinyplm.recipes.models import MODELS
from tinyplm.recipes.run import Run
from tinyplm.text import Tokenizer


@pytest.mark.parametrize("kind", ["byte-bpe", "bpe"])
@pytest.mark.parametrize("name", ["t5", "t5-v1.1"])
def test_decoders_begin_with_what_the_objective_begins_with(name, kind):
    entry = MODELS[name]
    tokenizer = Tokenizer.train(
        kind,
        ["the cat sat on the mat. " * 20],
        vocab_size=500,
        special_tokens=entry.special_tokens,
        appended_tokens=entry.appended_tokens,
    )
    config = entry.config_for(Run(model=name), tokenizer)
    assert config.vocab_size == tokenizer.vocab_size
    assert config.decoder_start == tokenizer.padding
    for objective in (objective_named(one, tokenizer) for one in entry.objectives):
        assert objective.start == config.decoder_start
        assert objective.end == tokenizer.end_of_text
    sentinels = objective_named("span-corruption", tokenizer).sentinels
    last = tokenizer.vocab_size - 1
    assert sentinels == tuple(range(last, last - 100, -1))
