"""Attention's device code on the CPU, against the definition in float64."""

import itertools

import attention_cases as cases
import numpy as np
import pytest
import twins_attention as twins
from accuracy import wide
from attention_cases import BFLOAT16, FLOAT16, FLOAT32, drawn, heads, padding

from tinyplm.kernels import attention_plan as plan
from tinyplm.kernels import cuda
from tinyplm.kernels.attention import Kept, Rules, attention_forward, attention_pullback

pytestmark = pytest.mark.device


@pytest.fixture
def device(built, monkeypatch):
    built.install(monkeypatch)
    yield built
    built.check()


def check(device, q, k, v, bias, rules):
    """Result and gradients, into NaN between guards."""
    found = cases.computed(q, k, v, bias, rules, device.empty)
    cases.assert_right(q, k, v, bias, rules, found)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("T", "dtype"), [(1, FLOAT32), *((T, BFLOAT16) for T in (1, 7, 64, 65, 100, 130))]
)
def test_lengths(device, T, dtype, causal):
    check(device, *heads(2, T, T, 2, 64, dtype), None, Rules(causal, None, 0.125))


@pytest.mark.parametrize("name", cases.RULES)
@pytest.mark.parametrize(("T", "S"), [(100, 100), (65, 130), (130, 70)])
def test_rules(device, name, T, S):
    B = 4 if "padding" in name or name == "everything" else 2
    check(device, *heads(B, T, S, 2, 32, BFLOAT16), None, cases.rules_of(name, B, T, S))


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("name", cases.BIASES)
@pytest.mark.parametrize(("T", "S"), [(100, 100), (65, 130)])
def test_biases(device, name, T, S, plain):
    bias = drawn(cases.BIASES[name](3, 2, T, S), BFLOAT16, 4)
    check(device, *heads(3, T, S, 2, 32, BFLOAT16), bias, cases.biased(3, S, plain))


@pytest.mark.parametrize("blocks", [1, 8])
def test_a_block_adds_up_the_gradient_of_a_bias_over_batch_rows(device, monkeypatch, blocks):
    """All three, or two and one: of each row a head has two tiles."""
    monkeypatch.setattr(plan, "ENOUGH", blocks)
    bias = drawn((1, 2, 100, 100), BFLOAT16, 4)
    check(device, *heads(3, 100, 100, 2, 32, BFLOAT16), bias, cases.biased(3, 100, False))


@pytest.mark.parametrize("K", [1, 5, 16, 40, 80, 96, 128, 136, 256])
def test_head_sizes(device, K):
    check(device, *heads(1, 70, 70, 1, K, FLOAT16), None, Rules(True, None, K**-0.5))


def test_wide_heads_with_dropout(device):
    check(
        device,
        *heads(1, 70, 70, 1, 256, FLOAT16),
        None,
        Rules(True, None, 1 / 16, rate=0.2, seed=3),
    )


def test_rows_may_begin_anywhere(device):
    q, k, v = (a[..., 3:19] for a in heads(2, 70, 70, 2, 32, BFLOAT16))
    check(device, q, k, v, None, Rules(False, None, 0.25))


@pytest.mark.parametrize("T", [7, 64, 130])
def test_floats(device, T):
    check(device, *heads(2, T, T, 2, 40, FLOAT32), None, Rules(True, None, 0.125))


def test_wide_heads_of_floats(device):
    """Two blocks share the columns of a tile of keys."""
    check(
        device, *heads(1, 70, 70, 1, 100, FLOAT32), None, Rules(True, None, 0.1, rate=0.2, seed=3)
    )


def test_floats_differ_from_a_twin_by_some_roundings(device):
    """Which goes the same way in NumPy: an error of theirs that is larger is one of the device's."""
    q, k, v = heads(2, 70, 100, 2, 32, FLOAT32)
    g = drawn((2, 70, 2, 32), FLOAT32, 9).swapaxes(1, 2)
    rules = Rules(True, padding(2, 100), 0.25, rate=0.2, seed=3, window=60)
    twin = twins.forward(q, k, v, None, rules, 128, 32)
    given = q, k, v, None, rules, False
    found = cases.variant(attention_forward, *given)(*given)
    assert cases.error(found.y, twin.y) <= 1e-6
    np.testing.assert_allclose(found.log_sum, twin.log_sum, rtol=1e-6, atol=1e-6)
    into = tuple(device.empty(a, a.shape) for a in (q, k, v))
    given = g, None, q, k, v, None, rules, twin, into
    cases.variant(attention_pullback, *given)(*given)
    expected = twins.pullback(g, q, k, v, None, rules, twin, 64, 32)
    for a, b in zip(into, expected[:3], strict=True):
        assert cases.error(a, b) <= 1e-6


@pytest.mark.parametrize("name", ["by difference", "of pairs"])
def test_floats_with_everything(device, name):
    bias = drawn(cases.BIASES[name](3, 2, 70, 100), FLOAT32, 4)
    check(device, *heads(3, 70, 100, 2, 37, FLOAT32), bias, cases.biased(3, 100, False))


@pytest.mark.parametrize("name", cases.FEW)
def test_few_queries_of_many_keys(device, name):
    """Keys are shared out between blocks; a batch row sees none of them."""
    (T, S, K), dtype, bias, rules = cases.few_of(name)
    check(device, *heads(4, T, S, 2, K, dtype), bias, rules)


def test_tiles_of_hidden_keys_are_left_out(device):
    q, k, v, rules = cases.hidden_tiles()
    y, gq, *_ = cases.computed(q, k, v, None, rules, device.empty)
    assert np.isfinite(wide(y)).all()
    assert np.isfinite(wide(gq)).all()


@pytest.mark.parametrize("more", [{}, {"rate": 0.1, "seed": 1}, {"scale": -3.0}])
def test_scores_far_apart(device, more):
    """Later tiles of keys have far larger scores than earlier ones, or far smaller ones."""
    q, k, v = heads(2, 70, 200, 1, 32, FLOAT16)
    k[0] *= np.linspace(0.1, 3, 200)[:, None].astype(FLOAT16)
    k[1] *= np.linspace(3, 0.1, 200)[:, None].astype(FLOAT16)
    given = q, k, v, None, Rules(**{"causal": False, "mask": None, "scale": 3.0, **more}), False
    found = cases.variant(attention_forward, *given)(*given)
    exact = attention_forward.definition(*map(wide, (q, k, v)), *given[3:5], True)
    assert cases.error(found.y, exact.y) <= cases.LIMIT[FLOAT16]


def test_a_card_with_little_shared_memory_leaves_wide_heads_to_the_definition(device, monkeypatch):
    monkeypatch.setattr(cuda, "card", lambda: cuda.Card(86, 82, 99 * 1024))
    (forward,) = (x for x in attention_forward.variants if x.name == "cuda")
    (back,) = (x for x in attention_pullback.variants if x.name == "cuda")
    rules, fits = Rules(True, None, 0.2), {}
    for dtype, width in itertools.product((BFLOAT16, FLOAT32), (64, 72, 128, 200)):
        for queries in (1, 8):
            q, k, v = heads(1, queries, 9, 2, width, dtype)
            found = Kept(q, None, np.zeros(2 * queries, np.float32))
            fits[dtype.name, width, queries] = (
                forward.when(q, k, v, None, rules, False),
                back.when(q, None, q, k, v, None, rules, found, (q, k, v)),
            )
    assert all(all(found) for (_, width, _), found in fits.items() if width == 64)
    assert fits["bfloat16", 200, 8] == (True, False)
    assert fits["float32", 72, 8] == (True, False)
    assert fits["float32", 128, 1] == (True, False)
    assert fits["float32", 128, 8] == (False, False)


def test_what_is_left_to_the_definition(device):
    """Probabilities that are asked for, or have a gradient; values of another width; heads that are too wide."""
    (q, k, v), rules = heads(1, 8, 9, 2, 32, BFLOAT16), Rules(True, None, 0.2)
    (there,) = (x for x in attention_forward.variants if x.name == "cuda")
    wide_heads = heads(1, 8, 9, 2, 288, BFLOAT16)
    assert there.when(q, k, v, None, rules, False)
    for given in (
        (q, k, v, None, rules, True),
        (q, k, v[..., :16], None, rules, False),
        (q, k, v.astype(np.float16), None, rules, False),
        (q, k, v, drawn((1, 1, 8, 9), FLOAT32), rules, False),
        (*wide_heads, None, rules, False),
        (q[:, :, :0], k, v, None, rules, False),
        (q, k[..., ::-1], v, None, rules, False),
    ):
        assert not there.when(*given)
    (back,) = (x for x in attention_pullback.variants if x.name == "cuda")
    found = Kept(q, None, np.zeros(16, np.float32))
    assert back.when(q, None, q, k, v, None, rules, found, (q, k, v))
    p = drawn((1, 2, 8, 9), BFLOAT16)
    assert not back.when(q, p, q, k, v, None, rules, found, (q, k, v))
    assert not back.when(q, None, q, k, v, None, rules, Kept(q, p, None), (q, k, v))


def test_a_seed_may_lie_on_the_device(device):
    q, k, v = heads(1, 70, 70, 2, 32, BFLOAT16)
    seed = (1 << 62) + 77
    results = [
        cases.computed(q, k, v, None, Rules(True, None, 0.2, rate=0.3, seed=s), device.empty)
        for s in (seed, np.array([seed]))
    ]
    for a, b in zip(results[0][:4], results[1][:4], strict=True):
        assert a.tobytes() == b.tobytes()
