"""A text's cost, against one that is computed token by token, and per byte that it really has."""

import math

import numpy as np
import pytest

from tinyplm.errors import ConfigError, MissingFileError
from tinyplm.models.gpt2 import Gpt2, Gpt2Config
from tinyplm.nn import quantize
from tinyplm.recipes.evaluate import evaluate
from tinyplm.recipes.trained import Trained
from tinyplm.text import Tokenizer

TEXT = "고양이 앉았다. the cat sat on the mat\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return str(path)


def trained_with(tokenizer, positions=6):
    config = Gpt2Config(
        vocab_size=len(tokenizer), hidden_size=8, layers=1, heads=2, positions=positions
    )
    return Trained(Gpt2(config, rng=np.random.default_rng(0)), tokenizer, None)


def cost(model, context, token):
    """Nats of a token behind its context."""
    position_ids = np.arange(len(context))[None]
    logits = model.next_logits(np.array([context]), position_ids=position_ids)[0].astype(float)
    return float(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[token])


def test_with_a_stride_of_one_each_token_is_predicted_from_a_full_window(file):
    tokenizer = Tokenizer.train("bytes", [])
    trained = trained_with(tokenizer)
    found = evaluate(trained, file, stride=1)
    ids = [256, *TEXT.encode(), 256]
    costs = [cost(trained.model, ids[max(0, t - 6) : t], ids[t]) for t in range(1, len(ids))]
    assert found.score.tokens == len(costs)
    assert found.score.nats == pytest.approx(sum(costs) / len(costs), rel=1e-6)


def test_with_windows_side_by_side_each_token_is_predicted_from_its_window(file):
    tokenizer = Tokenizer.train("bytes", [])
    trained = trained_with(tokenizer)
    found = evaluate(trained, file, stride=6)
    ids = [256, *TEXT.encode(), 256]
    costs = [cost(trained.model, ids[(t - 1) // 6 * 6 : t], ids[t]) for t in range(1, len(ids))]
    assert found.score.nats == pytest.approx(sum(costs) / len(costs), rel=1e-6)


def test_bits_per_byte_count_the_bytes_of_the_text(file):
    found = evaluate(trained_with(Tokenizer.train("bytes", [])), file)
    score = found.score
    assert score.bytes == len(TEXT.encode())
    total = score.nats * score.tokens / math.log(2)
    assert score.bits_per_byte == pytest.approx(total / len(TEXT.encode()))


def test_without_an_end_of_text_the_first_token_and_its_bytes_do_not_count(file):
    tokenizer = Tokenizer.train("chars", [TEXT], special_tokens=())
    found = evaluate(trained_with(tokenizer), file)
    assert found.score.tokens == len(TEXT) - 1
    assert found.score.bytes == len(TEXT.encode()) - len("고".encode())


def test_progress_ends_with_every_token_predicted(file):
    seen, begun = [], []
    found = evaluate(
        trained_with(Tokenizer.train("bytes", [])),
        file,
        on_start=lambda *start: begun.append(start),
        on_progress=seen.append,
    )
    assert seen[-1] == found.score.tokens == begun[0][1]
    assert seen == sorted(seen)


@pytest.mark.parametrize("stride", [0, 7, -1])
def test_a_stride_that_leaves_tokens_out_is_refused(file, stride):
    with pytest.raises(ConfigError, match=f"stride is {stride}, expected 1 to 6"):
        evaluate(trained_with(Tokenizer.train("bytes", [])), file, stride=stride)


def test_without_a_text_a_run_is_needed(tmp_path):
    with pytest.raises(MissingFileError, match="--data"):
        evaluate(trained_with(Tokenizer.train("bytes", [])), None, held_out_of=tmp_path)


def test_a_model_that_is_not_causal_is_refused(file):
    with pytest.raises(ConfigError, match="left to right"):
        evaluate(Trained(object(), Tokenizer.train("bytes", []), None), file)


@pytest.mark.parametrize("kind", ["int8", "bfloat16"])
def test_quantised_weights_are_scored_beside_those_they_were_made_of(file, kind):
    trained = trained_with(Tokenizer.train("bytes", []))
    told = []
    found = evaluate(trained, file, quantized=kind, on_progress=told.append)
    assert found.float32 == evaluate(trained, file).score
    assert (
        found.score == evaluate(trained._replace(model=quantize(trained.model, kind)), file).score
    )
    assert found.score.perplexity == pytest.approx(found.float32.perplexity, rel=0.01)
    assert told == sorted(told)
    assert told[-1] == 2 * found.score.tokens
