"""Schedules against their closed forms and values worked out by hand."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyplm.optim import SCHEDULES
from tinyplm.optim.schedule import constant, cosine, inverse_square_root, linear

FALLING = {"linear": linear, "cosine": cosine}


def test_the_names_are_those_of_the_functions():
    assert {
        "constant": constant,
        "linear": linear,
        "cosine": cosine,
        "inverse-square-root": inverse_square_root,
    } == SCHEDULES


@pytest.mark.parametrize("name", SCHEDULES)
def test_warm_up_rises_in_equal_parts_from_above_zero_to_the_peak(name):
    rates = [SCHEDULES[name](s, peak=1.0, warmup=4, total=100) for s in range(5)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0], abs=1e-15)


@pytest.mark.parametrize("name", SCHEDULES)
def test_without_warm_up_the_first_update_has_the_peak(name):
    assert SCHEDULES[name](0, peak=0.7, warmup=0, total=10) == 0.7


def test_values_by_hand():
    settings = {"peak": 1.0, "warmup": 2, "total": 10}
    assert linear(6, **settings) == 0.5
    assert linear(4, **settings, floor=0.2) == pytest.approx(0.8, abs=1e-15)
    assert cosine(6, **settings) == pytest.approx(0.5, abs=1e-15)
    assert cosine(4, **settings) == pytest.approx((2 + math.sqrt(2)) / 4, abs=1e-15)
    assert cosine(8, **settings, floor=0.5) == pytest.approx(
        0.5 + 0.5 * (2 - math.sqrt(2)) / 4, abs=1e-15
    )
    assert inverse_square_root(8, peak=1.0, warmup=2) == 0.5
    assert inverse_square_root(200, peak=1.0, warmup=2) == 0.1
    assert inverse_square_root(3, peak=1.0, warmup=0) == 0.5
    assert constant(5, peak=0.3, warmup=2) == 0.3


@pytest.mark.parametrize("name", FALLING)
def test_the_floor_is_reached_at_the_end_and_kept(name):
    for step in (10, 11, 1000):
        assert FALLING[name](step, peak=1.0, warmup=2, total=10, floor=0.1) == pytest.approx(
            0.1, abs=1e-15
        )


def test_the_inverse_square_root_does_not_fall_below_its_floor():
    assert inverse_square_root(10**6, peak=1.0, warmup=4, floor=0.1) == 0.1


@given(
    name=st.sampled_from(sorted(SCHEDULES)),
    peak=st.floats(1e-6, 10),
    warmup=st.integers(0, 30),
    after=st.integers(1, 60),
    share=st.floats(0, 1),
)
def test_rates_rise_to_the_peak_then_never_rise_and_stay_between_floor_and_peak(
    name, peak, warmup, after, share
):
    floor, total = share * peak, warmup + after
    rates = [
        SCHEDULES[name](s, peak=peak, warmup=warmup, total=total, floor=floor)
        for s in range(total + 5)
    ]
    assert all(0 < r <= peak * (1 + 1e-12) for r in rates[:total])
    up, down = rates[: warmup + 1], rates[warmup:]
    assert all(a < b for a, b in itertools.pairwise(up))
    assert all(a >= b * (1 - 1e-12) for a, b in itertools.pairwise(down))
    assert rates[warmup] == pytest.approx(peak, rel=1e-12)
    assert min(down) >= floor * (1 - 1e-12)


def test_a_run_shorter_than_its_warm_up_is_all_warm_up():
    assert [cosine(s, peak=1.0, warmup=9, total=3) for s in range(3)] == pytest.approx(
        [0.1, 0.2, 0.3]
    )
