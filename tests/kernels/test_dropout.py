"""Random bits that are a function of seed and place: even, independent, and the same wherever they are made."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyplm.kernels.dropout import (
    dropout_forward,
    dropout_pullback,
    kept,
    mixed,
    random32,
    scale,
    threshold,
)

SEEDS = [0, 1, 2, 1 << 31, 1 << 32, 1 << 62, (1 << 63) - 1, 0x0123456789ABCDEF]
N = 1 << 15
FAR = 6  # standard deviations
seeds = pytest.mark.parametrize("seed", SEEDS)
few = pytest.mark.parametrize("seed", SEEDS[::4])
whole = st.integers(0, (1 << 63) - 1)


def bits_of(numbers):
    return (numbers[..., None] >> np.arange(32)) & 1


def drawn(seed, start=0, step=1):
    return random32(seed, start + step * np.arange(N, dtype=np.int64))


def assert_even(counts, total, options):
    """The chi-square of counts over equally likely options is within six standard deviations of its mean."""
    expected = total / options
    square = ((counts - expected) ** 2).sum(axis=-1) / expected
    free = options - 1
    assert (np.abs(square - free) <= FAR * np.sqrt(2 * free) + FAR).all(), square


def assert_uncorrelated(a, b):
    """Every bit of a against every bit of b: agreements beyond half are within six standard deviations."""
    a, b = ((2 * bits_of(x) - 1).astype(np.float32) for x in (a, b))
    assert np.abs(a.T @ b).max() <= FAR * np.sqrt(N)


@seeds
@pytest.mark.parametrize(("start", "step"), [(0, 1), (1 << 40, 1), (5, 64), (0, 1 << 32)])
def test_bits_and_bytes_are_even(seed, start, step):
    numbers = drawn(seed, start, step)
    ones = bits_of(numbers).sum(axis=0)
    assert (np.abs(ones - N / 2) <= FAR * np.sqrt(N) / 2).all()
    for shift in (0, 8, 16, 24):
        assert_even(np.bincount((numbers >> shift) & 255, minlength=256), N, 256)
    for a, b in ((0, 28), (12, 20), (12, 16)):  # nibbles at two places of one number
        pair = ((numbers >> a) & 15) * 16 + ((numbers >> b) & 15)
        assert_even(np.bincount(pair, minlength=256), N, 256)


@few
@pytest.mark.parametrize("apart", [1, 2, 3, 16, 64, 768, 1 << 16, 1 << 31, 1 << 32, 1 << 40])
def test_neighbouring_places_are_independent(seed, apart):
    here, there = drawn(seed), drawn(seed, apart)
    assert_uncorrelated(here, there)
    pair = (here >> 28) * 16 + (there >> 28)
    assert_even(np.bincount(pair, minlength=256), N, 256)


@few
@pytest.mark.parametrize("other", [1 << i for i in (0, 1, 15, 16, 31, 32, 33, 47, 62)])
def test_neighbouring_seeds_are_independent(seed, other):
    assert_uncorrelated(drawn(seed), drawn(seed ^ other))


@given(whole, whole, st.integers(0, 62))
def test_streams_of_related_seeds_are_not_the_same_in_another_order(seed, start, bit):
    """A seed that only moved the places would give both seeds the same set of numbers in aligned blocks."""
    places = (start & ~0xFFFF) + np.arange(1 << 12)
    one, other = (set(random32(s, places).tolist()) for s in (seed, seed ^ (1 << bit)))
    assert len(one & other) < 8  # 2^24 pairs agree by chance 0.004 times


@given(whole, whole)
def test_one_bit_of_the_place_turns_half_of_the_bits(seed, place):
    places = place ^ (1 << np.arange(62))
    turned = bits_of(random32(seed, places) ^ random32(seed, place)).sum()
    assert abs(turned - 62 * 16) <= FAR * np.sqrt(62 * 32) / 2


@given(whole, whole)
def test_a_number_an_array_and_words_give_the_same_bits(seed, place):
    alone = random32(seed, place)
    assert 0 <= alone < 1 << 32
    assert random32(seed, np.array([place])).tolist() == [alone]
    low = (1 << 32) - 1
    assert mixed(seed & low, seed >> 32, place & low, place >> 32) == alone


@pytest.fixture(scope="module")
def compiled():
    numba = pytest.importorskip("numba")
    from tinyplm.kernels import team  # noqa: F401

    @numba.njit
    def run(seed, places, bar):
        bits, stays = np.empty(places.size, np.uint32), np.empty(places.size, np.bool_)
        for i in range(places.size):
            bits[i] = random32(seed, places[i])
            stays[i] = kept(seed, places[i], bar)
        return bits, stays

    return run


@given(whole, st.lists(whole, min_size=1, max_size=40), st.floats(0, 1))
def test_compiled_code_gives_the_same_bits(compiled, seed, places, rate):
    places, bar = np.array(places), threshold(rate)
    bits, stays = compiled(seed, places, bar)
    assert bits.tolist() == random32(seed, places).tolist()
    assert stays.tolist() == kept(seed, places, bar).tolist()


@seeds
@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_the_share_that_is_dropped_is_the_rate(seed, rate):
    dropped = (dropout_forward(np.ones(N, np.float32), rate, seed) == 0).sum()
    assert abs(dropped - rate * N) <= FAR * np.sqrt(N * rate * (1 - rate))


@given(whole, st.floats(0, 1))
def test_the_threshold_is_the_rate_to_32_bits(seed, rate):
    assert abs(threshold(rate) / 2**32 - rate) <= 2**-32
    assert 0 <= threshold(rate) < 1 << 32


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("way", ["reference", "numba"])
def test_what_is_dropped_is_zero_even_if_it_was_not_finite(dtype, way):
    x = np.full(64, np.nan, dtype)
    with dropout_forward.using(way):
        y = dropout_forward(x, 0.5, 3)
        assert y.dtype == dtype
        stays = kept(3, np.arange(64), threshold(0.5))
        assert np.isnan(y[stays]).all()
        assert (y[~stays] == 0).all()
        assert not dropout_forward(x, 1.0, 3).any()
        np.testing.assert_array_equal(dropout_forward(x, 0.0, 3), x)


@given(
    whole,
    st.floats(0.01, 0.99),
    st.lists(st.integers(0, 9), max_size=3),
    st.sampled_from(["float32", "float64"]),
    st.booleans(),
)
def test_compiled_and_defined_drop_the_same_to_the_last_bit(seed, rate, shape, dtype, turned):
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    x = x.T if turned else x
    for kernel in (dropout_forward, dropout_pullback):
        y, defined = kernel(x, rate, seed), kernel.definition(x, rate, seed)
        assert y.dtype == defined.dtype == dtype
        np.testing.assert_array_equal(y, defined)


def test_the_parts_of_a_large_array_agree_with_the_whole():
    x = np.ones((517, 301), np.float32)
    y = dropout_forward(x, 0.3, 11)
    np.testing.assert_array_equal(y, dropout_forward.definition(x, 0.3, 11))
    assert set(np.unique(y)) == {np.float32(0), np.float32(scale(0.3))}
