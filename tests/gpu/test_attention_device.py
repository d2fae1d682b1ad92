"""Attention on a card: against the definition, into poisoned memory, and twice."""

import warnings

import attention_cases as cases
import numpy as np
import pytest
from attention_cases import BFLOAT16, FLOAT16, FLOAT32, drawn, heads

from tinyplm.errors import DeviceError, MissingExtraError
from tinyplm.kernels import cuda
from tinyplm.kernels.attention import Rules

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what CuPy says of its surroundings
    cupy = pytest.importorskip("cupy")

pytestmark = pytest.mark.gpu
GUARD = 64
"""Values around each new array, which nobody may write to."""
TYPES = pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16, FLOAT32], ids=lambda d: d.name)


@pytest.fixture(autouse=True, scope="module")
def card():
    try:
        if not cupy.cuda.is_available():
            pytest.skip("no device")
        cuda.architecture()
    except (DeviceError, MissingExtraError) as error:
        pytest.skip(str(error))


@pytest.fixture
def empty(monkeypatch):
    """New arrays hold NaN, and lie between guards that are checked at the end."""
    made = []

    def empty(like, shape, dtype=None, *, zeros=False):
        kind = np.dtype(like.dtype if dtype is None else dtype)
        size = int(np.prod(shape))
        room = cupy.full((size + 2 * GUARD) * kind.itemsize, 0xFF, np.uint8)
        made.append((room, kind))
        inner = room.view(kind)[GUARD : GUARD + size]
        if zeros:
            inner.fill(0)
        return inner.reshape(shape)

    monkeypatch.setattr(cuda, "empty", empty)
    yield empty
    for room, kind in made:
        edge = GUARD * kind.itemsize
        assert bool((room[:edge] == 0xFF).all() & (room[-edge:] == 0xFF).all())


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
def test_lengths(empty, T, causal, dtype):
    check(empty, *there(2, T, T, 2, 64, dtype), None, Rules(causal, None, 0.125))


@TYPES
@pytest.mark.parametrize("name", cases.RULES)
@pytest.mark.parametrize(("T", "S"), [(100, 100), (33, 130), (512, 300), (130, 1030)])
def test_rules(empty, name, T, S, dtype):
    check(empty, *there(4, T, S, 2, 64, dtype), None, cases.rules_of(name, 4, T, S))


@TYPES
@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("name", cases.BIASES)
@pytest.mark.parametrize(("T", "S"), [(100, 100), (33, 130), (512, 300)])
def test_biases(empty, name, T, S, plain, dtype):
    bias = drawn(cases.BIASES[name](4, 2, T, S), dtype, 4)
    check(empty, *there(4, T, S, 2, 64, dtype), bias, cases.biased(4, S, plain))


@TYPES
@pytest.mark.parametrize("K", [1, 5, 16, 32, 40, 64, 80, 96, 128, 136, 256])
def test_head_sizes(empty, K, dtype):
    if dtype == FLOAT32 and K > 128:
        pytest.skip("the definition's")
    for rate in (0.0, 0.1):
        check(empty, *there(1, 300, 300, 1, K, dtype), None, Rules(True, None, K**-0.5, rate, 3))


@TYPES
def test_rows_may_begin_anywhere(empty, dtype):
    q, k, v = (a[..., 3:19] for a in there(2, 70, 70, 2, 32, dtype))
    check(empty, q, k, v, None, Rules(False, None, 0.25))


@pytest.mark.parametrize("name", cases.FEW)
def test_few_queries_of_many_keys(empty, name):
    (T, S, K), dtype, bias, rules = cases.few_of(name)
    check(empty, *there(4, T, S, 2, K, dtype), bias, rules)


def test_tiles_of_hidden_keys_are_left_out(empty):
    q, k, v, rules = cases.hidden_tiles(cupy.asarray)
    y, gq, *_ = cases.computed(q, k, v, None, rules, empty, cupy.asarray)
    assert bool(
        cupy.isfinite(y.astype(np.float32)).all() & cupy.isfinite(gq.astype(np.float32)).all()
    )
