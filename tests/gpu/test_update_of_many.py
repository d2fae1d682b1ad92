"""One launch for all parameters, emulated: as the definition says for each alone, wherever arrays begin and end."""

import math

import ml_dtypes
import numpy as np
import pytest

from tinyplm.kernels import cuda, many, pieces
from tinyplm.kernels.adam import UpdatesOnDevice, adamw_update
from tinyplm.kernels.many import Clipping

pytestmark = pytest.mark.device

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
KINDS = [np.dtype(np.float32), np.dtype(np.float16), BFLOAT16]
RAGGED = [1, 0, 3, 4096, 4097, 8, 12_289, 0, 255, 4095]
NUMBERS = np.array([0.9, 0.8, 0.95, 0.2, 0.05, 0.01, 1.5, 1e-8], np.float32)


@pytest.fixture
def device(built, monkeypatch):
    built.install(monkeypatch)
    yield built
    built.check()


class Drawn:
    """Parameters with their moments, gradients of all types, and copies of some, each away from what it should be."""

    def __init__(self, device, sizes, apart=0):
        rng = np.random.default_rng(len(sizes))

        def placed(values, dtype):
            room = device.empty(NUMBERS, (values.size + apart,), dtype)
            room[apart:] = values
            return room[apart:]

        self.p, self.m = (
            [placed(rng.standard_normal(n), np.float32) for n in sizes] for _ in range(2)
        )
        self.v = [placed(rng.uniform(0, 1, n), np.float32) for n in sizes]
        self.g = [placed(rng.standard_normal(n), KINDS[i % 3]) for i, n in enumerate(sizes)]
        copies = [None, BFLOAT16, np.dtype(np.float16), BFLOAT16]
        self.copies = [
            None if copies[i % 4] is None else placed(np.zeros(n), copies[i % 4])
            for i, n in enumerate(sizes)
        ]
        self.decays = [i % 2 == 0 for i in range(len(sizes))]

    @property
    def arrays(self):
        return [*self.p, *self.m, *self.v, *(c for c in self.copies if c is not None)]

    def updated(self, numbers=NUMBERS, shrink=0.5):
        factor = np.array([shrink, 0], np.float32)
        UpdatesOnDevice(self.p, self.m, self.v, self.decays, self.copies)(self.g, numbers, factor)
        return self

    def by_definition(self, shrink=0.5):
        for p, m, v, g, copy, own in zip(
            self.p, self.m, self.v, self.g, self.copies, self.decays, strict=True
        ):
            decay = float(NUMBERS[0]) if own else 1.0
            given = g.astype(np.float32)
            adamw_update.definition(p, given, m, v, shrink, decay, *map(float, NUMBERS[1:]))
            if copy is not None:
                copy[...] = p
        return self


@pytest.mark.parametrize("apart", [0, 1])
def test_each_is_updated_as_alone_by_its_own_decay_and_copied(device, apart):
    found, right = (
        Drawn(device, RAGGED, apart).updated(),
        Drawn(device, RAGGED, apart).by_definition(),
    )
    for a, b in zip([*found.p, *found.m, *found.v], [*right.p, *right.m, *right.v], strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7)  # six roundings of about 1
    for p, copy in zip(found.p, found.copies, strict=True):
        if copy is not None:
            assert copy.tobytes() == p.astype(copy.dtype).tobytes()


def test_more_arrays_than_a_launch_has_room_for_are_updated_too(device, monkeypatch):
    launched = []
    monkeypatch.setattr(cuda, "launch", lambda *a: launched.append(a[1]) or device.launch(*a))
    sizes = [1 + i % 7 for i in range(pieces.ARRAYS + 3)]
    found, right = Drawn(device, sizes).updated(), Drawn(device, sizes).by_definition()
    assert launched == ["adamw_update_many"] * 2
    for a, b in zip(found.p, right.p, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7)


def test_a_factor_of_nothing_leaves_everything_as_it_was(device):
    drawn = Drawn(device, RAGGED)
    for g in drawn.g:
        g[...] = np.nan
    before = [a.tobytes() for a in drawn.arrays]
    drawn.updated(shrink=0)
    assert [a.tobytes() for a in drawn.arrays] == before


def clipped(gradients, losses=(1.5,), limit=1.0, clipping=None):
    losses = np.array(losses)
    clipping = clipping or Clipping(losses)
    clipping(gradients, losses, limit)
    return clipping


def in_plain_code(monkeypatch, *arguments, **named):
    with monkeypatch.context() as patch:
        patch.setattr(cuda, "usable", lambda: False)
        return clipped(*arguments, **named)


@pytest.mark.parametrize("apart", [0, 1])
@pytest.mark.parametrize("limit", [None, 1.0, 1e6])
def test_the_norm_and_its_factor_are_those_of_the_plain_code(device, monkeypatch, limit, apart):
    g = Drawn(device, RAGGED, apart).g
    found = clipped(g, (1.5, 0.25), limit)
    right = in_plain_code(monkeypatch, g, (1.5, 0.25), limit)
    exact = math.sqrt(math.fsum(float(x) ** 2 for a in g for x in a))
    assert found.found[0] == right.found[0] == 1.75
    assert found.found[1] == pytest.approx(exact, rel=1e-14)
    assert right.found[1] == pytest.approx(exact, rel=1e-14)
    factor = 1.0 if limit is None else min(1.0, limit / (exact + 1e-6))
    assert found.factor.tolist() == right.factor.tolist() == [np.float32(factor), 0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["gradient", "loss"])
@pytest.mark.parametrize("how", ["device", "plain"])
def test_what_is_not_finite_stops_all_updates_from_then_on(device, monkeypatch, bad, where, how):
    run = clipped if how == "device" else lambda *a, **n: in_plain_code(monkeypatch, *a, **n)
    good, wrong = np.ones(5000, np.float32), np.ones(5000, np.float32)
    wrong[4321] = bad
    clipping = run([good])
    assert clipping.factor[1] == 0
    run(
        [wrong if where == "gradient" else good],
        (bad if where == "loss" else 1.0,),
        clipping=clipping,
    )
    assert clipping.factor.tolist() == [0, 1]
    assert not np.isfinite(clipping.found[int(where == "gradient")])
    run([good], clipping=clipping)
    assert clipping.factor.tolist() == [0, 1]
    assert np.isfinite(clipping.found).all()


def test_the_norm_of_nothing_is_zero_and_of_other_arrays_it_is_theirs(device, monkeypatch):
    clipping = clipped([])
    assert clipping.found.tolist() == [1.5, 0]
    for sizes in ([3], [3, 5000], [7]):
        clipped([np.ones(n, np.float32) for n in sizes], clipping=clipping)
        assert clipping.found[1] == math.sqrt(sum(sizes))
    gaps = np.ones((4, 6), np.float32)[:, ::2]
    clipped([gaps], clipping=clipping)
    assert clipping.found[1] == math.sqrt(12)


def test_squares_beyond_float32_are_added_up(device):
    big = np.full(5000, 1e30, np.float32)
    assert clipped([big], limit=1.0).found[1] == pytest.approx(1e30 * math.sqrt(5000), rel=1e-6)
    total = many._cuda()(big)
    assert float(total) == pytest.approx(5000 * 1e60, rel=1e-6)
