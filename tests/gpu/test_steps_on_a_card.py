"""One whole forward and backward pass of each kind of model on the stand-in for CuPy, its kernels emulated."""

import ml_dtypes
import numpy as np
import pytest

from tinyplm.errors import ShapeError
from tinyplm.models.bert import Bert, BertConfig
from tinyplm.models.gpt2 import Gpt2, Gpt2Config
from tinyplm.models.t5 import T5, T5Config
from tinyplm.objectives import CausalLM, MaskedLM, NextSentence, SpanCorruption, Sum

pytestmark = pytest.mark.device
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
V, B, T = 37, 3, 12


def _ids(rng, width=T):
    return rng.integers(5, V, (B, width))


def _gpt2():
    config = Gpt2Config(vocab_size=V, hidden_size=16, layers=2, heads=2, positions=T)
    rng = np.random.default_rng(0)
    return Gpt2(config, rng=rng), CausalLM(), {"input_ids": _ids(rng, T + 1)}


def _bert():
    config = BertConfig(vocab_size=V, hidden_size=16, layers=2, heads=2, positions=T)
    rng = np.random.default_rng(0)
    batch = {
        "input_ids": _ids(rng),
        "attention_mask": np.arange(T) < np.array([[T], [T - 2], [T - 5]]),
        "token_type_ids": (np.arange(T) > 5).astype(np.int64) * np.ones((B, 1), np.int64),
        "next_sentence_labels": np.array([0, 1, 0]),
    }
    words = MaskedLM(mask=1, vocab_size=V, special=frozenset({0, 1}), rate=0.3)
    marks = {"classifier": 2, "separator": 3, "padding": 0, "end_of_text": 4}
    pairs = NextSentence(**marks, ends=np.zeros(V, bool))
    return Bert(config, rng=rng), Sum(words, pairs), batch


def _t5(**more):
    sizes = {"hidden_size": 16, "head_size": 8, "ffn_size": 24, "layers": 2, "heads": 2}
    config = T5Config(vocab_size=V, buckets=8, max_distance=16, **sizes, **more)
    rng = np.random.default_rng(0)
    objective = SpanCorruption(sentinels=(33, 34, 35, 36), end=1)
    return T5(config, rng=rng), objective, {"input_ids": _ids(rng, 2 * T)}


def _gated():
    return _t5(gated=True, activation="gelu_tanh", tied=False, scaled_output=False)


MODELS = {"gpt2": _gpt2, "bert": _bert, "t5": _t5, "t5 v1.1": _gated}
EACH = pytest.mark.parametrize("name", MODELS)


def prepared(name):
    model, objective, batch = MODELS[name]()
    batch = objective.prepare(batch, rng=np.random.default_rng(1))
    return model, objective, batch, objective.counts(batch)


def step(model, objective, batch, counts):
    """The loss and the gradient of every parameter, with dropout."""
    for parameter in model.parameters():
        parameter.grad = None
    loss = objective.loss(model, batch, counts=counts, rng=np.random.default_rng(2))
    loss.backward()
    return loss, {path: p.grad for path, p in model.named_parameters().items()}


def on_host(name, dtype, rounded=False):
    """The same by NumPy, of parameters that were rounded to bfloat16 or not."""
    model, *rest = prepared(name)
    arrays = {
        path: a.astype(BFLOAT16 if rounded else a.dtype) for path, a in model.arrays().items()
    }
    model.load({path: a.astype(dtype) for path, a in arrays.items()})
    loss, gradients = step(model, *rest)
    return loss.item(), gradients


def there(card, batch):
    return {name: card.cupy.asarray(a) for name, a in batch.items()}


@EACH
def test_a_step_in_float32_is_that_of_the_cpu(card, name):
    """Four times the error of NumPy in float32 is allowed, and a hundred roundings of the largest gradient."""
    exact, exact_gradients = on_host(name, np.float64)
    plain, plain_gradients = on_host(name, np.float32)
    model, *rest = prepared(name)
    loss, gradients = step(model.to("cuda"), *rest)
    assert abs(loss.item() - exact) <= 4 * abs(plain - exact) + 100 * 2.0**-24 * exact
    for path, e in exact_gradients.items():
        found = gradients[path]
        assert type(found) is card.cupy.ndarray
        assert (found.dtype, found.shape) == (np.float32, e.shape)
        error, own = (np.abs(g - e).max() for g in (found.get(), plain_gradients[path]))
        allowed = 4 * own + 100 * 2.0**-24 * np.abs(e).max()
        assert error <= allowed, f"{path}: {error:.2e}, allowed {allowed:.2e}"


ROUNDED = 60**0.5 * 2.0**-9
"""About sixty results lie behind one another from an embedding to its gradient, each rounded by 2^-9 of it at most and
independently of the others: what they come to."""


@EACH
def test_a_step_in_bfloat16_is_near_that_in_float32(card, name):
    """Of the same parameters: within four times what roundings come to.

    A rounding that turns the sign of what a ReLU sees turns its slope on or off. The share of them that do is what
    values differ by, relatively; so gradients differ by the root of it, of which twice as much is allowed.
    """
    band = 2 * ROUNDED**0.5 if name == "t5" else 4 * ROUNDED
    expected, expected_gradients = on_host(name, np.float32, rounded=True)
    model, *rest = prepared(name)
    loss, gradients = step(model.to("cuda", BFLOAT16), *rest)
    assert loss.dtype == np.float32
    assert abs(loss.item() - expected) <= 4 * ROUNDED * expected
    for path, e in expected_gradients.items():
        found = gradients[path]
        assert found.dtype == np.float32, path  # all are sums over tokens
        error = np.linalg.norm(found.get() - e) / np.linalg.norm(e)
        assert error <= band, f"{path}: {error:.2e}, allowed {band:.2e}"


@EACH
def test_a_step_in_bfloat16_makes_no_wide_copies(card, monkeypatch, name):
    """But of single rows and tables: the pooled tokens, T5's biases, and what its head multiplies."""
    model, objective, batch, counts = prepared(name)
    model.to("cuda", BFLOAT16)
    on_card, seen, astype = there(card, batch), [], card.cupy.ndarray.astype

    def noted(self, dtype, *arguments, **options):
        if self.dtype == BFLOAT16 and np.dtype(dtype) == np.float32:
            seen.append(self.shape)
        return astype(self, dtype, *arguments, **options)

    monkeypatch.setattr(card.cupy.ndarray, "astype", noted)
    step(model, objective, on_card, counts)
    widest = [shape for shape in seen if len(shape) == 3]
    head = {"t5": 2}.get(name, 0)  # there and back
    assert len(widest) == head, widest


@EACH
@pytest.mark.parametrize("dtype", [np.dtype(np.float32), BFLOAT16], ids=str)
def test_a_step_waits_for_nothing_and_sends_nothing(card, name, dtype):
    """From the batch on the card to the last gradient; indices that do not change go up once."""
    model, objective, batch, counts = prepared(name)
    model.to("cuda", dtype)
    expected, before = step(model, objective, batch, counts)
    on_card = there(card, batch)
    with card.without("reads", "uploads"):
        loss, gradients = step(model, objective, on_card, counts)
    # The same sums but where rows without a label, which the host leaves out, take part in them.
    near = 1000 * 2.0**-24 if dtype == np.float32 else 4 * ROUNDED
    assert loss.item() == pytest.approx(expected.item(), rel=near)
    for path, g in before.items():
        e = g.get().astype(np.float64)
        assert np.linalg.norm(gradients[path].get() - e) <= near * np.linalg.norm(e), path


@EACH
def test_a_batch_of_the_host_is_checked_there_and_nothing_is_read_back(card, name):
    model, objective, batch, counts = prepared(name)
    model.to("cuda")
    with card.without("reads"):
        step(model, objective, batch, counts)
    wrong = batch | {"input_ids": batch["input_ids"] + V}
    with pytest.raises(ShapeError, match="vocab_size"):
        step(model, objective, wrong, counts)


@EACH
def test_without_kernels_of_ours_halves_are_widened(plain_card, name):
    """An old card, or no compiler: gradients of all are bfloat16 where they are no sums of several."""
    band = 2 * ROUNDED**0.5 if name == "t5" else 4 * ROUNDED
    expected, expected_gradients = on_host(name, np.float32, rounded=True)
    model, *rest = prepared(name)
    loss, gradients = step(model.to("cuda", BFLOAT16), *rest)
    assert not plain_card.launched
    assert abs(loss.item() - expected) <= 4 * ROUNDED * expected
    for path, e in expected_gradients.items():
        error = np.linalg.norm(gradients[path].get().astype(np.float64) - e)
        assert error <= band * np.linalg.norm(e), path
