"""Attention on a card: against the definition, into poisoned memory, and twice."""

import warnings

import attention_cases as cases
import numpy as np
import pytest
from attention_cases import BFLOAT16, FLOAT16, FLOAT32, drawn, heads

from tinyplm.kernels.attention import Rules

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what CuPy says of its surroundings
    cupy = pytest.importorskip("cupy")

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("real_card")]
TYPES = pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16, FLOAT32], ids=lambda d: d.name)


def check(empty, q, k, v, bias, rules):
    """Result and gradients, and the same bits again."""
    put = cupy.asarray
    bias = None if bias is None else put(bias)
    rules = rules._replace(mask=None if rules.mask is None else put(rules.mask))
    found, again = (cases.computed(q, k, v, bias, rules, empty, put) for _ in range(2))
    cupy.cuda.Device().synchronize()
    cases.assert_right(q, k, v, bias, rules, found)
    for a, b in zip(found, again, strict=True):
        assert a is None or a.tobytes() == b.tobytes()


def there(*shape):
    return heads(*shape, put=cupy.asarray)


@TYPES
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("T", [1, 7, 64, 65, 127, 512, 1000, 1024])
def test_lengths(rooms, T, causal, dtype):
    check(rooms, *there(2, T, T, 2, 64, dtype), None, Rules(causal, None, 0.125))


@TYPES
@pytest.mark.parametrize("name", cases.RULES)
@pytest.mark.parametrize(("T", "S"), [(100, 100), (33, 130), (512, 300), (130, 1030)])
def test_rules(rooms, name, T, S, dtype):
    check(rooms, *there(4, T, S, 2, 64, dtype), None, cases.rules_of(name, 4, T, S))


@TYPES
@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("name", cases.BIASES)
@pytest.mark.parametrize(("T", "S"), [(100, 100), (33, 130), (512, 300)])
def test_biases(rooms, name, T, S, plain, dtype):
    bias = drawn(cases.BIASES[name](4, 2, T, S), dtype, 4)
    check(rooms, *there(4, T, S, 2, 64, dtype), bias, cases.biased(4, S, plain))


@TYPES
@pytest.mark.parametrize("K", [1, 5, 16, 32, 40, 64, 80, 96, 128, 136, 256])
def test_head_sizes(rooms, K, dtype):
    if dtype == FLOAT32 and K > 128:
        pytest.skip("the definition's")
    for rate in (0.0, 0.1):
        check(rooms, *there(1, 300, 300, 1, K, dtype), None, Rules(True, None, K**-0.5, rate, 3))


@TYPES
def test_rows_may_begin_anywhere(rooms, dtype):
    q, k, v = (a[..., 3:19] for a in there(2, 70, 70, 2, 32, dtype))
    check(rooms, q, k, v, None, Rules(False, None, 0.25))


@pytest.mark.parametrize("name", cases.FEW)
def test_few_queries_of_many_keys(rooms, name):
    (T, S, K), dtype, bias, rules = cases.few_of(name)
    check(rooms, *there(4, T, S, 2, K, dtype), bias, rules)


def test_tiles_of_hidden_keys_are_left_out(rooms):
    q, k, v, rules = cases.hidden_tiles(cupy.asarray)
    y, gq, *_ = cases.computed(q, k, v, None, rules, rooms, cupy.asarray)
    assert bool(
        cupy.isfinite(y.astype(np.float32)).all() & cupy.isfinite(gq.astype(np.float32)).all()
    )
