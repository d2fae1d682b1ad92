"""The check of all ops, as the command runs it."""

import pytest

from tinyplm.autograd import OPS
from tinyplm.autograd.cases import CASES, NumpyDraw
from tinyplm.autograd.cases.case import Case, Sample
from tinyplm.autograd.gradcheck import run
from tinyplm.errors import ConfigError


def replaced(monkeypatch, name, function):
    """Another function behind an op, on tensors and on arrays."""
    from tinyplm.autograd import op

    function.__name__ = name
    before = OPS[name]
    made = op(function)  # registers itself
    OPS[name] = before
    monkeypatch.setitem(OPS, name, made)


def test_all_ops_agree_over_a_few_cases():
    records = list(run(cases=2))
    assert [r.op for r in records] == sorted(CASES)
    for r in records:
        assert r.failure is None
        assert r.cases == 2
        assert r.gradient_error < 1e-6
        assert r.value_error < 1e-12


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others():
    def numbers(seed, *ops):
        return [
            (r.op, r.derivatives, r.gradient_error, r.value_error)
            for r in run(ops, cases=5, seed=seed)
        ]

    assert numbers(1, "softmax", "exp") == numbers(1, "softmax", "exp")
    assert numbers(1, "exp") == numbers(1, "softmax", "exp")[1:]
    assert numbers(1, "exp") != numbers(2, "exp")


def test_a_broken_pullback_is_reported_with_its_case(monkeypatch):
    def tanh(x):
        import numpy as np

        y = np.tanh(x)
        return y, lambda g: g * (1 + y * y)

    replaced(monkeypatch, "tanh", tanh)
    (record,) = run(["tanh"], cases=5)
    assert "tanh(float64" in record.failure
    assert "relative error" in record.failure
    assert record.cases < 5


def test_a_broken_value_is_reported(monkeypatch):
    def negate(x):
        return -x + 1e-9, lambda g: -g

    replaced(monkeypatch, "negate", negate)
    (record,) = run(["negate"], cases=5)
    assert "the result is" in record.failure


def test_an_op_that_breaks_is_reported_and_the_next_is_checked(monkeypatch):
    def exp(x):
        raise ZeroDivisionError("broken on purpose")

    replaced(monkeypatch, "exp", exp)
    broken, fine = run(["exp", "log"], cases=2)
    assert "ZeroDivisionError: broken on purpose" in broken.failure
    assert fine.failure is None


def test_cases_without_a_derivative_are_drawn_again_and_counted(monkeypatch):
    import numpy as np

    def draw(d):
        return Sample((np.array([0.0 if d.boolean() else 1.0]),))

    plain = CASES["abs"]
    monkeypatch.setitem(CASES, "abs", Case(draw, plain.oracle, plain.keeps))
    (record,) = run(["abs"], cases=20)
    assert record.failure is None
    assert record.cases == 20
    assert 5 < record.redrawn < 60


def test_an_op_that_never_has_a_derivative_is_given_up(monkeypatch):
    import numpy as np

    plain = CASES["abs"]
    monkeypatch.setitem(
        CASES, "abs", Case(lambda d: Sample((np.zeros(1),)), plain.oracle, plain.keeps)
    )
    (record,) = run(["abs"], cases=3)
    assert "31 of 31 cases have no derivative" in record.failure


def test_an_unknown_op_is_refused_with_near_names():
    with pytest.raises(ConfigError, match=r"no op 'sofmax'.*softmax"):
        run(["sofmax"])


def test_no_cases_are_refused():
    with pytest.raises(ConfigError, match="at least one"):
        run(["exp"], cases=0)


def test_drawing_needs_neither_hypothesis_nor_the_tests():
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['hypothesis'] = None; sys.modules['pytest'] = None\n"
        "from tinyplm.autograd.gradcheck import run\n"
        "print(next(run(['exp'], cases=1)).failure)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "None"


def test_draws_cover_every_kind_of_array():
    """0-d, one value, empty, strided, negative strides, broadcast: all turn up among the inputs of an op."""
    import numpy as np

    draw, seen = NumpyDraw(np.random.default_rng(0)), set()
    for _ in range(300):
        (x,) = CASES["exp"].draw(draw).inputs
        seen |= {"0-d"} if x.ndim == 0 else set()
        seen |= {"empty"} if x.size == 0 else set()
        seen |= {"one"} if x.shape == (1,) else set()
        seen |= {"long"} if x.size > 48 else set()
        seen |= {"negative"} if any(s < 0 for s in x.strides) else set()
        seen |= {"broadcast"} if x.size > 1 and 0 in x.strides else set()
        seen |= {"plain"} if x.flags.c_contiguous else {"strided"}
        seen |= {"transposed"} if x.flags.f_contiguous and not x.flags.c_contiguous else set()
    assert seen == {
        "0-d",
        "empty",
        "one",
        "long",
        "negative",
        "broadcast",
        "plain",
        "strided",
        "transposed",
    }
