"""Every op over drawn cases: value, gradient, manners, precision, memory; then its hard inputs."""

import ml_dtypes
import numpy as np
import pytest
from accuracy import assert_near, assert_same_bits, wide
from hypothesis import given, reject
from hypothesis import strategies as st
from strategies import samples

from tinyplm.autograd import OPS, KinkError, Tensor, guard, no_grad, ops
from tinyplm.autograd.cases import CASES, Sample
from tinyplm.autograd.cases.case import is_float_array
from tinyplm.autograd.gradcheck import check_gradient, check_value
from tinyplm.errors import ConfigError, DataError, DtypeError, GraphError, ShapeError

HALVES = [np.dtype("float16"), np.dtype(ml_dtypes.bfloat16)]
DTYPES = [np.dtype("float64"), np.dtype("float32"), *HALVES]
FLOAT32_RATIO = 16.0
"""How much more float32 may err than the result moves when each input is rounded once, or one unit in the last place of
the largest number around."""


def over_cases(test):
    """The test for every op, over samples drawn for it."""

    @pytest.mark.parametrize("name", sorted(CASES))
    @given(data=st.data())
    def run(name, data):
        test(name, data.draw(samples(name), label=name))

    run.__name__ = test.__name__
    return run


def forward(name, sample):
    return OPS[name].on_arrays(*sample.inputs, **sample.keywords())


def parts_of(result):
    return result if isinstance(result, tuple) else (result,)


def incoming(result, dtype=None):
    """Some gradient of a result, the same for the same shapes."""
    rng = np.random.default_rng(1)
    made = tuple(
        np.asarray(rng.uniform(0.5, 1.5, np.shape(r))).astype(dtype or r.dtype)
        for r in parts_of(result)
    )
    return made if isinstance(result, tuple) else made[0]


def outgoing(pullback, g):
    """The gradients of the inputs, with those made that were put off."""
    with np.errstate(all="ignore"):
        given = parts_of(pullback(g))
        return [x() if callable(x) else x for x in given]


def on_tensors(name, sample):
    """Leaf tensors, result and backward pass by the engine."""
    inputs = [Tensor(x, requires_grad=True) if is_float_array(x) else x for x in sample.inputs]
    result = OPS[name](*inputs, **sample.keywords())
    return inputs, result


def go_back(result, g):
    """Run the backward pass of one result or several."""
    if isinstance(result, tuple):
        total = sum(((r * x).sum() for r, x in zip(result, g, strict=True)), start=0.0)
        total.backward()
    else:
        result.backward(g)


@over_cases
def test_the_value_is_the_oracles(name, sample):
    check_value(name, sample)


@over_cases
def test_the_gradient_is_the_derivative(name, sample):
    try:
        check_gradient(name, sample)
    except KinkError:
        reject()


@over_cases
def test_nothing_given_is_changed_and_the_pullback_gives_the_same_bits_again(name, sample):
    arrays = [x for x in sample.inputs if isinstance(x, np.ndarray)]
    arrays += list(guard.kept(list(sample.attributes.values())))
    before = [x.tobytes() for x in arrays]
    result, pullback = forward(name, sample)
    g = incoming(result)
    g_before = [x.tobytes() for x in parts_of(g)]
    first = [None if x is None else np.array(x) for x in outgoing(pullback, g)]
    second = outgoing(pullback, g)
    for a, b in zip(first, second, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.tobytes() == np.asarray(b).tobytes()
    assert [x.tobytes() for x in arrays] == before
    assert [x.tobytes() for x in parts_of(g)] == g_before


@over_cases
def test_results_and_gradients_keep_the_dtype_and_half_precision_is_rounded_once(name, sample):
    for dtype in DTYPES:
        narrow = sample.astype(dtype)
        result, pullback = forward(name, narrow)
        assert all(r.dtype == dtype for r in parts_of(result))
        g = incoming(result)
        gradients = outgoing(pullback, g)
        for x, gx in zip(narrow.inputs, gradients, strict=False):
            if is_float_array(x):
                assert gx.shape == x.shape
                assert gx.dtype == dtype
        if dtype in HALVES:
            result_32, pullback_32 = forward(name, narrow.astype(np.float32))
            for r, r_32 in zip(parts_of(result), parts_of(result_32), strict=True):
                assert_same_bits(r, r_32.astype(dtype), f"{dtype} result")
            g_32 = tuple(x.astype(np.float32) for x in parts_of(g))
            wider = outgoing(pullback_32, g_32 if isinstance(g, tuple) else g_32[0])
            for gx, gx_32 in zip(gradients, wider, strict=False):
                if gx is not None:
                    with np.errstate(over="ignore"):  # a half overflows earlier
                        assert_same_bits(gx, gx_32.astype(dtype), f"{dtype} gradient")


@over_cases
def test_each_leaf_owns_its_gradient(name, sample):
    inputs, result = on_tensors(name, sample)
    g = incoming(result)
    go_back(result, g)
    leaves = [x for x in inputs if isinstance(x, Tensor)]
    others = [x.array for x in leaves] + [r.array for r in parts_of(result)] + list(parts_of(g))
    others += [x for x in inputs if isinstance(x, np.ndarray)]
    for i, leaf in enumerate(leaves):
        assert leaf.grad.flags.writeable
        assert leaf.grad.shape == leaf.shape
        rest = others + [x.grad for x in leaves[:i]]
        assert not any(np.may_share_memory(leaf.grad, x) for x in rest)


def spaced(x, kind):
    """The same values in another arrangement: Fortran's, every second one, backwards, or all of these."""
    if not isinstance(x, np.ndarray) or not x.ndim:
        return x
    if kind == "fortran":
        return np.asfortranarray(x)
    if kind == "steps":
        return np.repeat(x, 2, axis=-1)[..., ::2]
    if kind == "backwards":
        return np.flip(np.flip(x).copy())
    return np.flip(np.asfortranarray(np.repeat(np.flip(x, 0), 2, axis=0)), 0)[1::2]


@over_cases
def test_strides_do_not_matter(name, sample):
    for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 1e-5)):
        plain = sample.astype(dtype).contiguous()
        right, right_pullback = forward(name, plain)
        g = incoming(right)
        gradients = outgoing(right_pullback, g)
        for kind in ("as drawn", "fortran", "steps", "backwards", "all"):
            strided = sample.astype(dtype)
            if kind != "as drawn":
                strided = plain.map(lambda x, kind=kind: spaced(x, kind))
            result, pullback = forward(name, strided)
            for a, b in zip(parts_of(result), parts_of(right), strict=True):
                assert_near(a, b, tolerance, kind)
            strided_g = tuple(spaced(x, kind) for x in parts_of(g))
            given = outgoing(pullback, strided_g if isinstance(g, tuple) else strided_g[0])
            for a, b in zip(given, gradients, strict=True):
                if b is not None:
                    assert_near(a, b, tolerance, kind)


@over_cases
def test_float32_errs_little_more_than_rounding_its_inputs_does(name, sample):
    single = sample.astype(np.float32)
    result, pullback = forward(name, single)
    g = incoming(result)
    found = [*parts_of(result), *outgoing(pullback, g)]

    def exact(noise=None):
        def moved(x):
            x = wide(x)
            return (
                x
                if noise is None
                else x * (1 + np.finfo(np.float32).eps * noise.uniform(-1, 1, x.shape))
            )

        changed = single.map(lambda x: moved(x) if is_float_array(x) else x)
        r, back = forward(name, changed)
        given = tuple(moved(x) for x in parts_of(g))
        return [*parts_of(r), *outgoing(back, given if isinstance(g, tuple) else given[0])]

    given = [x for x in [*single.inputs, *found, *parts_of(g)] if is_float_array(x)]
    around = max(np.abs(wide(x)[np.isfinite(x)]).max(initial=0) for x in given)
    truth = exact()
    rng = np.random.default_rng(2)
    others = [exact(rng) for _ in range(4)]
    for i, (x, t) in enumerate(zip(found, truth, strict=True)):
        if x is None or not t.size:
            continue
        t = np.asarray(t)
        finite = np.isfinite(t)
        assert_same_bits(np.isfinite(x), finite)
        moves = max(np.abs(np.asarray(o[i])[finite] - t[finite]).max(initial=0) for o in others)
        rounding = moves + np.finfo(np.float32).eps * around
        error = np.abs(wide(x)[finite] - t[finite]).max(initial=0)
        assert error <= FLOAT32_RATIO * rounding, f"error {error:.1e}, rounding {rounding:.1e}"


def altered(array):
    """Change an array in place as a careless user might; whether anything changed."""
    before = array.copy()
    if array.dtype == bool:
        array[...] = ~array
    elif array.dtype.kind in "iu":
        array[...] = np.roll(array.ravel(), 1).reshape(array.shape)
    else:
        array += 0.25
    return not np.array_equal(before, array)


def refusal(result, g):
    """What the backward pass says against a change, if it notices one."""
    try:
        go_back(result, g)
    except GraphError as error:
        return str(error)
    return None


def after_changes_in_place(name, sample):
    """For each argument, changed between the passes: what backward said, and the gradients it left otherwise."""
    for place in range(len(sample.inputs) + len(sample.attributes)):
        for early in (True, False):  # whether the array was at hand before the forward pass
            own = sample.contiguous()
            thing = [*own.inputs, *own.attributes.values()][place]
            inputs = [Tensor(x, requires_grad=True) if is_float_array(x) else x for x in own.inputs]
            tensor = inputs[place] if place < len(inputs) else None
            is_leaf = isinstance(tensor, Tensor)
            arrays = [tensor.data] if is_leaf and early else list(guard.kept(thing))
            result = OPS[name](*inputs, **own.keywords())
            arrays = [tensor.data] if is_leaf else arrays
            if sum(map(altered, arrays)):
                said = refusal(result, incoming(result))
                yield place, said, [x.grad for x in inputs if isinstance(x, Tensor)]


@over_cases
def test_a_change_in_place_is_noticed_or_does_no_harm(name, sample):
    inputs, result = on_tensors(name, sample.contiguous())
    go_back(result, incoming(result))
    right = [x.grad for x in inputs if isinstance(x, Tensor)]
    for place, said, left in after_changes_in_place(name, sample):
        if said is None:
            for a, b in zip(left, right, strict=True):
                assert_same_bits(a, b, f"argument {place} changed unnoticed")
        else:
            assert said.startswith(f"{name}: data of ")
            assert left == [None] * len(left)


@over_cases
def test_the_pullback_keeps_what_is_declared(name, sample):
    sample = sample.contiguous()
    _, pullback = forward(name, sample)
    owners = {id(o): o for o in map(guard.owner_of, guard.kept(pullback))}
    kept, declared = sum(o.nbytes for o in owners.values()), CASES[name].keeps(sample)
    if all(getattr(x, "ndim", 1) for x in sample.inputs):
        assert kept == declared
    else:  # a result without axes may be a NumPy number, which is no array
        assert kept <= declared


HARD = [(name, hard) for name, case in CASES.items() for hard in case.hard]


@pytest.mark.parametrize(("dtype", "relative"), [("float64", 1e-12), ("float32", 1e-6)])
@pytest.mark.parametrize(("name", "hard"), HARD, ids=[f"{n}: {h.says}" for n, h in HARD])
def test_hard_inputs_give_what_is_promised(name, hard, dtype, relative):
    sample = Sample(hard.inputs, hard.attributes).astype(dtype)
    inputs, result = on_tensors(name, sample)
    for r, e in zip(parts_of(result), parts_of(hard.value), strict=True):
        assert r.dtype == dtype
        assert_near(r.array, e, relative, "value")
    ones = tuple(np.ones(r.shape) for r in parts_of(result))
    g = ones if isinstance(result, tuple) else ones[0] if hard.incoming is None else hard.incoming
    go_back(result, g)
    for i, (x, e) in enumerate(zip(inputs, hard.gradients, strict=True)):
        if isinstance(x, Tensor):
            assert_near(x.grad, e, relative, f"gradient {i}")
        else:
            assert e is None


@pytest.mark.parametrize("name", ["max", "min"])
@pytest.mark.parametrize("dtype", HALVES)
def test_many_ties_share_the_gradient_in_half_precision(name, dtype):
    x = Tensor(np.zeros(5000, dtype), requires_grad=True)  # more than a half can count one by one
    OPS[name](x).backward()
    assert_same_bits(x.grad, np.full(5000, 1 / 5000, np.float32).astype(dtype))


# What dropout promises beyond single cases.


def six_sigma(rate, count):
    return 6 * (rate * (1 - rate) / count) ** 0.5


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_drops_its_share_and_scales_the_rest(rate):
    x = np.ones((400, 250))
    y = OPS["dropout"](x, rate=rate, rng=np.random.default_rng(0)).array
    assert abs((y == 0).mean() - rate) < six_sigma(rate, x.size)
    np.testing.assert_allclose(y[y != 0], 1 / (1 - rate), rtol=1e-15)


def test_dropout_drops_the_same_for_the_same_seed_and_other_values_for_another():
    x = np.ones(1000)
    first, same, other = (
        OPS["dropout"](x, rate=0.5, rng=np.random.default_rng(seed)).array for seed in (1, 1, 2)
    )
    assert_same_bits(first, same)
    assert not np.array_equal(first, other)


def test_dropout_goes_on_drawing_from_one_generator():
    rng, x = np.random.default_rng(0), np.ones(1000)
    first, second = (OPS["dropout"](x, rate=0.5, rng=rng).array for _ in range(2))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("name", ["dropout", "attention"])
@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan")])
def test_a_rate_that_is_no_probability_is_refused(name, rate):
    x = np.ones((2, 2))
    inputs = (x,) if name == "dropout" else (x, x, x)
    with pytest.raises(ConfigError, match=f"rate is {rate}"):
        OPS[name](*inputs, rate=rate, rng=np.random.default_rng(0))


def attended(**attributes):
    """What is used of equal probabilities of 50 keys, for 2 x 3 x 40 queries."""
    q, k = np.zeros((2, 3, 40, 4)), np.zeros((2, 3, 50, 4))
    units = np.broadcast_to(np.eye(50), (2, 3, 50, 50))
    return OPS["attention"](q, k, units, **attributes).array


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_attention_drops_its_share_of_probabilities_and_scales_the_rest(rate):
    used = attended(rate=rate, rng=np.random.default_rng(0))
    assert abs((used == 0).mean() - rate) < six_sigma(rate, used.size)
    np.testing.assert_allclose(used[used != 0], 1 / 50 / (1 - rate), rtol=1e-14)


def test_attention_drops_the_same_for_the_same_seed_only_and_otherwise_in_each_head():
    first, same, other = (attended(rate=0.5, rng=np.random.default_rng(s)) for s in (1, 1, 2))
    assert_same_bits(first, same)
    assert not np.array_equal(first, other)
    heads = first.reshape(6, 40, 50)
    assert all(not np.array_equal(heads[i], heads[j]) for i in range(6) for j in range(i))


def test_attention_drops_nothing_without_a_generator():
    assert_same_bits(attended(rate=0.5), attended())


def test_attention_gives_the_probabilities_before_dropout():
    q = np.random.default_rng(0).standard_normal((4, 3))
    options = {"return_probabilities": True}
    _, plain = OPS["attention"](q, q, q, **options)
    _, p = OPS["attention"](q, q, q, rate=0.5, rng=np.random.default_rng(0), **options)
    assert_same_bits(p.array, plain.array)
    np.testing.assert_allclose(p.array.sum(axis=-1), 1, rtol=1e-15)


# Numbers that are not finite, or will not be, pass in silence: a warning would be an error here.

INF, NAN = np.inf, np.nan
ROWS = np.array([[INF, -INF, NAN, 2.0], [3e38, -3e38, -1.0, 0.0], [INF, 1e-38, 3e38, INF]])
WILD = {
    **dict.fromkeys(
        ("gelu", "gelu_tanh", "silu", "softmax", "log_softmax", "logsumexp", "log1p"), (ROWS,)
    ),
    **dict.fromkeys(
        ("mean_squared_error", "cosine", "kl_divergence", "binary_cross_entropy"),
        (ROWS, ROWS[::-1]),
    ),
    "attention": (ROWS, ROWS, ROWS),
    "linear_cross_entropy": (ROWS, ROWS, None, np.zeros(3, int)),
    "cross_entropy": (ROWS, np.zeros(3, int)),
    "layer_norm": (ROWS, ROWS[0], ROWS[1]),
    "rms_norm": (ROWS, ROWS[0]),
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", WILD)
def test_what_is_not_finite_passes_in_silence(name, dtype):
    inputs, result = on_tensors(name, Sample(WILD[name]).astype(dtype))
    go_back(result, incoming(result))
    assert not np.isfinite(inputs[0].grad).all()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_residual_that_is_not_finite_is_added_and_normalised_in_silence(dtype):
    x, branch, gain, bias = (a.astype(dtype) for a in (ROWS, ROWS[::-1], ROWS[0], ROWS[1]))
    for result in (
        ops.residual_layer_norm(x, branch, gain, bias),
        ops.residual_rms_norm(x, branch, gain),
    ):
        assert [np.isfinite(part.array).all() for part in result] == [False, False]


# What an option is when it is left out.

X = np.array([[1.0, 2.0], [4.0, 8.0]]) * 1e-9  # small enough to tell one eps from another
LABELS = np.array([1, -100])
LEFT_OUT = {
    **{name: ((X,), {"axis": -1}) for name in ("softmax", "log_softmax", "cumsum")},
    **{name: ((X,), {"axis": None, "keepdims": False}) for name in ("sum", "mean", "max", "min")},
    "var": ((X,), {"axis": None, "keepdims": False, "correction": 0}),
    "logsumexp": ((X,), {"axis": -1, "keepdims": False}),
    "layer_norm": ((X, np.ones(2), np.ones(2)), {"eps": 1e-5}),
    "rms_norm": ((X, np.ones(2)), {"eps": 1e-6}),
    "residual_layer_norm": ((X, X, np.ones(2), np.ones(2)), {"eps": 1e-5}),
    "residual_rms_norm": ((X, X, np.ones(2)), {"eps": 1e-6}),
    "cosine": ((X, X.T), {"axis": -1, "eps": 1e-8}),
    "cross_entropy": (
        (X, LABELS),
        {"ignored": -100, "smoothing": 0.0, "weights": None, "reduction": "mean"},
    ),
    "linear_cross_entropy": (
        (X, X, None, LABELS),
        {"ignored": -100, "smoothing": 0.0, "weights": None, "reduction": "mean", "scale": 1.0},
    ),
    "binary_cross_entropy": ((X, X), {"reduction": "mean"}),
    "mean_squared_error": ((X, X.T), {"reduction": "mean"}),
    "kl_divergence": ((X, X.T), {"reduction": "mean"}),
    "concatenate": (([X, X],), {"axis": 0}),
    "stack": (([X, X],), {"axis": 0}),
    "split": ((X,), {"parts": 2, "axis": -1}),
    "pad": ((X,), {"widths": [(1, 1), (0, 1)], "value": 0.0}),
    "take_along_axis": ((X, np.array([[0, 0]])), {"axis": -1}),
    "scatter_add": ((X, np.array([[0, 0]]), X[:1]), {"axis": 0}),
    "attention": (
        (X * 1e9, X * 1e9, X),
        {"causal": False, "scale": 2**-0.5, "rate": 0.0, "return_probabilities": False},
    ),
}


@pytest.mark.parametrize("name", sorted(LEFT_OUT))
def test_an_option_left_out_is_what_the_documentation_says(name):
    inputs, options = LEFT_OUT[name]
    needed = {k: v for k, v in options.items() if k in ("parts", "widths")}
    function = getattr(ops, name)
    short, full = parts_of(function(*inputs, **needed)), parts_of(function(*inputs, **options))
    for a, b in zip(short, full, strict=True):
        assert_same_bits(a.array, b.array)


# What every op refuses, beyond shapes that NumPy itself cannot broadcast.

F, WHOLE = np.ones, np.zeros(2, int)
YES, PAIR, CUBE = np.ones((2, 2), bool), np.ones((2, 2)), np.ones((2, 2, 2))
REFUSED = [
    *[
        (name, (F(3), F((1, 3))), {}, ShapeError, "one shape")
        for name in ("binary_cross_entropy", "mean_squared_error", "kl_divergence")
    ],
    *[
        (name, (F((2, 3)), F((2, 3))), {"reduction": "men"}, ConfigError, "reduction is 'men'")
        for name in ("binary_cross_entropy", "mean_squared_error", "kl_divergence")
    ],
    ("mean_squared_error", (F((0, 3)), F((0, 3))), {}, DataError, "nothing"),
    ("kl_divergence", (F((0, 3)), F((0, 3))), {}, DataError, "nothing"),
    ("cross_entropy", (F((2, 3)), np.zeros(3, int)), {}, ShapeError, "labels of shape"),
    ("linear_cross_entropy", (PAIR, F(2), None, WHOLE), {}, ShapeError, r"\(V, D\)"),
    ("linear_cross_entropy", (PAIR, F((3, 1)), None, WHOLE), {}, ShapeError, r"\(V, D\)"),
    ("linear_cross_entropy", (PAIR, F((3, 2)), F(2), WHOLE), {}, ShapeError, "bias has shape"),
    ("linear_cross_entropy", (PAIR, F((3, 2)), None, np.zeros(1, int)), {}, ShapeError, "labels"),
    *[
        (name, (PAIR, *more, labels), attributes, error, match)
        for name, more in (("cross_entropy", ()), ("linear_cross_entropy", (PAIR, None)))
        for labels, attributes, error, match in (
            (WHOLE * 0.0, {}, DtypeError, "must be integers"),
            (WHOLE > 0, {}, DtypeError, "must be integers"),
            (WHOLE, {"smoothing": -0.1}, ConfigError, "smoothing is -0.1"),
            (WHOLE, {"smoothing": 1.1}, ConfigError, "smoothing is 1.1"),
            (WHOLE, {"reduction": "men"}, ConfigError, "reduction is 'men'"),
            (WHOLE + 2, {}, IndexError, r"contains 2 at \[0\]"),
            (WHOLE - [0, 1], {}, IndexError, r"contains -1 at \[1\]"),
            (WHOLE - 100, {}, DataError, "none of the 2"),
            (WHOLE - 100, {"ignored": 0}, IndexError, "contains -100"),
            (WHOLE, {"weights": F((2, 1))}, ShapeError, r"weights has shape \(2, 1\)"),
            (WHOLE, {"weights": 0 * F(2)}, DataError, "none of the 2"),
        )
    ],
    ("linear_cross_entropy", (PAIR, PAIR, None, WHOLE), {"reduction": "none"}, ConfigError, "sum"),
    *[
        ("attention", inputs, attributes, error, match)
        for inputs, attributes, error, match in (
            ((F(2), F(2), F(2)), {}, ShapeError, "do not fit"),
            ((F((1,) * 5),) * 3, {}, ShapeError, "do not fit"),
            ((CUBE, CUBE[:1], CUBE[:1]), {}, ShapeError, "do not fit"),
            ((PAIR, PAIR, PAIR[:1]), {}, ShapeError, "do not fit"),
            ((PAIR, F((2, 1)), PAIR), {}, ShapeError, "do not fit"),
            ((PAIR, PAIR, PAIR, F((3, 2))), {}, ShapeError, "bias .* does not broadcast"),
            ((PAIR, PAIR, PAIR), {"mask": F((2, 3), bool)}, ShapeError, "mask .* not broadcast"),
            ((PAIR, PAIR, PAIR), {"mask": PAIR}, DtypeError, "mask has dtype float64"),
            ((CUBE, CUBE, CUBE), {"key_padding": PAIR}, DtypeError, "key_padding has dtype"),
            ((CUBE, CUBE, CUBE), {"key_padding": F((2, 3), bool)}, ShapeError, "key_padding"),
            ((CUBE, CUBE, CUBE), {"key_padding": F((1, 2), bool)}, ShapeError, "key_padding"),
            ((PAIR, PAIR, PAIR), {"key_padding": YES}, ShapeError, "key_padding has shape"),
        )
    ],
    ("linear", (PAIR, F(2)), {}, ShapeError, "last axis"),
    ("linear", (PAIR, CUBE), {}, ShapeError, "last axis"),
    ("linear", (PAIR, F((3, 2))), {}, ShapeError, "last axis"),
    ("linear", (PAIR, F((2, 3)), F(1)), {}, ShapeError, "bias has shape"),
    ("layer_norm", (PAIR, F(1), F(2)), {}, ShapeError, r"shape \(2,\)"),
    ("layer_norm", (PAIR, F(2), F(1)), {}, ShapeError, r"shape \(2,\)"),
    ("rms_norm", (PAIR, F(1)), {}, ShapeError, r"shape \(2,\)"),
    ("residual_layer_norm", (PAIR, PAIR, F(2), F(1)), {}, ShapeError, r"shape \(2,\)"),
    ("residual_layer_norm", (PAIR, F((1, 2)), F(2), F(2)), {}, ShapeError, r"branch \(1, 2\)"),
    ("residual_rms_norm", (PAIR, PAIR, F(1)), {}, ShapeError, r"shape \(2,\)"),
    ("residual_rms_norm", (PAIR, F((1, 2)), F(2)), {}, ShapeError, r"branch \(1, 2\)"),
    ("split", (PAIR,), {"parts": 0}, ShapeError, "0 equal parts"),
    ("split", (F((2, 5)),), {"parts": 2}, ShapeError, "length 5"),
    ("split", (PAIR,), {"parts": (1, 2)}, ShapeError, "do not add up"),
    ("split", (PAIR,), {"parts": (3, -1)}, ShapeError, "do not add up"),
    ("pad", (PAIR,), {"widths": [(1, 1)]}, ShapeError, "1 pairs"),
    ("take_rows", (PAIR, 0.0 * WHOLE), {}, DtypeError, "must be integers"),
    ("take_rows", (PAIR, WHOLE - [0, 1]), {}, IndexError, r"-1 at \[1\]"),
    ("take_rows", (PAIR, WHOLE + np.array([0, 2])), {}, IndexError, r"2 at \[1\]"),
    ("scatter_add", (PAIR, WHOLE[:1], F((2, 3))), {}, ShapeError, "along axis 0"),
    ("scatter_add", (PAIR, WHOLE, F(2)), {}, ShapeError, "along axis 0"),
    ("scatter_add", (PAIR, WHOLE, PAIR.astype("f4")), {}, DtypeError, "one dtype"),
]
REFUSED_IDS = [f"{name} {i}" for i, (name, *_) in enumerate(REFUSED)]


@pytest.mark.parametrize(
    ("name", "inputs", "attributes", "error", "match"), REFUSED, ids=REFUSED_IDS
)
def test_what_does_not_fit_is_refused(name, inputs, attributes, error, match):
    with pytest.raises(error, match=match):
        OPS[name](*inputs, **attributes)


EINSUMS = [
    ("ij", 2, "names 1"),
    ("ijk,ij", 2, "'ijk'"),
    ("i,ij", 2, "'i'"),
    ("ij,...ijk", 2, "fit"),
]


@pytest.mark.parametrize(("equation", "count", "match"), EINSUMS)
def test_an_equation_that_does_not_fit_einsum_is_refused(equation, count, match):
    with pytest.raises(ShapeError, match=match):
        OPS["einsum"](*[PAIR] * count, equation=equation)


def test_linear_cross_entropy_under_no_grad_has_no_gradient():
    with no_grad():
        _, pullback = OPS["linear_cross_entropy"].on_arrays(PAIR, PAIR, None, WHOLE)
    with pytest.raises(RuntimeError, match="no_grad"):
        pullback(F(()))
