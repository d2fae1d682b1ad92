"""What every model does, whatever its paper."""

import math
import time
import tracemalloc

import numpy as np
import pytest
from model_cases import CASES

import tinyplm
from tinyplm import no_grad
from tinyplm.errors import ConfigError, DtypeError, GraphError, ShapeError
from tinyplm.nn import Inspection
from tinyplm.objectives import OBJECTIVES, Sum
from tinyplm.recipes.models import MODELS

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(params=sorted(CASES))
def name(request):
    return request.param


@pytest.fixture
def case(name):
    return CASES[name]


@pytest.fixture
def causal(case):
    if not case.causal:
        pytest.skip("sees both sides")
    return case


def objective_of(name):
    return CASES[name].objective


def prepared(name, case, *, batch=3, time=10):
    return objective_of(name).prepare(case.batch(batch, time), rng=np.random.default_rng(0))


def test_the_objective_of_every_case_is_the_models_own():
    for name, entry in MODELS.items():
        objective = objective_of(name)
        parts = objective.parts if isinstance(objective, Sum) else [objective]
        assert [OBJECTIVES[own] for own in entry.objectives[0].split("+")] == [*map(type, parts)]


def test_every_model_has_a_case_and_every_size_a_count():
    assert set(CASES) == set(MODELS), "a model without a case, or a case without a model"
    for name, entry in MODELS.items():
        assert set(CASES[name].counts) == set(entry.sizes), name


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_hidden_states_and_logits_have_their_shape_and_dtype(case, dtype):
    model = case.model(dtype=dtype)
    for shape in [(1, 1), (3, 5), (2, case.longest)]:
        hidden = case.read(model, case.ids(*shape))
        assert hidden.shape == (*shape, case.config.hidden_size)
        assert hidden.dtype == dtype
        assert model.head(hidden).shape == (*shape, case.config.vocab_size)
        assert model.head(hidden).dtype == dtype
        assert np.isfinite(hidden.array).all()


def test_ids_may_be_lists_arrays_of_any_integer_dtype_or_tensors(case):
    model = case.model()
    ids = case.ids(2, 5)
    expected = case.read(model, ids).array
    for same in (ids.tolist(), ids.astype("int8"), ids.astype("uint16"), tinyplm.Tensor(ids)):
        np.testing.assert_array_equal(case.read(model, same).array, expected)
    np.testing.assert_array_equal(case.read(model, np.asfortranarray(ids)).array, expected)


def test_parameters_have_unique_names_and_are_found_once(case):
    parameters = case.model().named_parameters()
    assert len({id(p) for p in parameters.values()}) == len(parameters)
    assert all(p.requires_grad for p in parameters.values())
    assert sum(p.size for p in parameters.values()) == case.model().parameter_count


def test_the_same_seed_builds_the_same_model_and_another_another(case):
    def built(seed):
        return case.build(case.config, rng=np.random.default_rng(seed)).arrays()

    for name, array in built(5).items():
        np.testing.assert_array_equal(array, built(5)[name])
    assert any(not np.array_equal(a, built(6)[name]) for name, a in built(5).items())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_saving_and_loading_gives_the_same_bits(case, tmp_path, dtype):
    model = case.model(dropout=0.25, dtype=dtype)
    tinyplm.save_pretrained(model, tmp_path)
    loaded = tinyplm.from_pretrained(tmp_path, dtype=dtype)
    assert loaded.config == model.config
    assert list(loaded.arrays()) == list(model.arrays())
    for name, array in model.arrays().items():
        assert loaded.arrays()[name].dtype == dtype
        np.testing.assert_array_equal(loaded.arrays()[name], array)
    ids = case.ids(2, 7)
    np.testing.assert_array_equal(case.read(loaded, ids).array, case.read(model, ids).array)


def test_every_parameter_receives_a_gradient_of_its_shape_and_dtype(name, case):
    model = case.model(dropout=0.1)
    objective_of(name).loss(model, prepared(name, case), rng=np.random.default_rng(0)).backward()
    for path, parameter in model.named_parameters().items():
        assert parameter.grad is not None, path
        assert parameter.grad.shape == parameter.shape, path
        assert parameter.grad.dtype == parameter.dtype, path
        assert np.isfinite(parameter.grad).all(), path
        assert parameter.grad.any(), path


def test_the_gradient_of_the_whole_model_is_its_derivative(name, case):
    model = case.model(dtype="float64")
    batch = prepared(name, case)
    objective = objective_of(name)
    found = tinyplm.check_grad(lambda: objective.loss(model, batch), wrt=model.parameters())
    assert found.derivatives >= 4


def test_the_gradient_with_dropout_is_the_derivative_too(name, case):
    model = case.model(dropout=0.3, dtype="float64")
    batch = prepared(name, case)
    objective = objective_of(name)
    tinyplm.check_grad(
        lambda: objective.loss(model, batch, rng=np.random.default_rng(3)), wrt=model.parameters()
    )


def test_the_gradient_with_padding_is_the_derivative_too(name, case):
    model = case.model(dtype="float64")
    mask = np.arange(10) < np.array([[10], [4], [7]])
    batch = objective_of(name).prepare(
        case.batch(3, 10) | {"attention_mask": mask.astype(int)}, rng=np.random.default_rng(0)
    )
    tinyplm.check_grad(lambda: objective_of(name).loss(model, batch), wrt=model.parameters())


def test_without_a_generator_nothing_is_random(case):
    model = case.model(dropout=0.5)
    ids = case.ids(2, 8)
    np.testing.assert_array_equal(case.read(model, ids).array, case.read(model, ids).array)
    np.testing.assert_array_equal(
        case.read(model, ids).array, case.read(case.model(dropout=0.0), ids).array
    )


def test_with_a_generator_dropout_follows_its_seed(case):
    model = case.model(dropout=0.5)
    ids = case.ids(2, 8)

    def run(seed):
        return case.read(model, ids, rng=np.random.default_rng(seed)).array

    np.testing.assert_array_equal(run(1), run(1))
    assert not np.array_equal(run(1), run(2))
    assert not np.array_equal(run(1), case.read(model, ids).array)


def test_a_generator_without_dropout_changes_nothing(case):
    model, ids = case.model(), case.ids(2, 8)
    np.testing.assert_array_equal(
        case.read(model, ids, rng=np.random.default_rng(1)).array, case.read(model, ids).array
    )


def test_calling_a_model_changes_no_input_and_no_parameter(name, case):
    model = case.model()
    before = {path: array.copy() for path, array in model.arrays().items()}
    batch = prepared(name, case)
    kept = {key: np.array(value) for key, value in batch.items()}
    objective_of(name).loss(model, batch).backward()
    for path, array in model.arrays().items():
        np.testing.assert_array_equal(array, before[path])
    for key, value in kept.items():
        np.testing.assert_array_equal(batch[key], value)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_and_batch_mates_change_no_real_position(case, side):
    model = case.model()
    T = 11
    lengths = [11, 1, 6, 4]
    texts = [case.ids(1, n, seed=n)[0] for n in lengths]
    garbage = case.ids(len(texts), T, seed=99)  # padding may be anything
    ids, mask, positions = garbage.copy(), np.zeros((4, T), int), np.zeros((4, T), int)
    where = [slice(0, n) if side == "right" else slice(T - n, T) for n in lengths]
    for row, (text, place) in enumerate(zip(texts, where, strict=True)):
        ids[row, place], mask[row, place] = text, 1
        positions[row, place] = np.arange(len(text))
    together = case.read(model, ids, attention_mask=mask, **case.at(positions)).array
    for row, (text, place) in enumerate(zip(texts, where, strict=True)):
        alone = case.read(model, text[None]).array[0]
        np.testing.assert_allclose(together[row, place], alone, rtol=0, atol=1e-5)
    # Another filling, the same bits.
    ids[mask == 0] = (ids[mask == 0] + 1) % case.config.vocab_size
    again = case.read(model, ids, attention_mask=mask, **case.at(positions)).array
    np.testing.assert_array_equal(again[mask == 1], together[mask == 1])


def test_a_mask_of_ones_and_default_positions_say_nothing_new(case):
    model, ids = case.model(), case.ids(2, 6)
    explicit = case.read(
        model, ids, attention_mask=np.ones((2, 6)), **case.at(np.tile(np.arange(6), (2, 1)))
    )
    np.testing.assert_array_equal(explicit.array, case.read(model, ids).array)
    once = case.read(
        model, ids, attention_mask=np.ones((2, 6), bool), **case.at(np.arange(6)[None])
    )
    np.testing.assert_array_equal(once.array, case.read(model, ids).array)


def test_the_order_of_tokens_matters(case):
    model, ids = case.model(), np.array([[3, 1, 4, 1, 5]])
    swapped = np.array([[1, 3, 4, 1, 5]])
    assert not np.allclose(
        case.read(model, ids).array[0, -1], case.read(model, swapped).array[0, -1], atol=1e-3
    )


def test_the_future_never_changes_the_past(causal):
    model = causal.model()
    ids = causal.ids(2, 12)
    for cut in range(1, 12):
        changed = ids.copy()
        changed[:, cut:] = (changed[:, cut:] + 7) % causal.config.vocab_size
        before, after = model(ids).array, model(changed).array
        np.testing.assert_array_equal(before[:, :cut], after[:, :cut])
        assert (before[:, cut:] != after[:, cut:]).any(axis=-1).all()


def test_every_token_changes_every_position_of_a_model_that_sees_both_sides(case):
    if case.causal:
        pytest.skip("sees one side")
    model = case.model()
    ids = case.ids(2, 12)
    for place in range(12):
        changed = ids.copy()
        changed[:, place] = case.first_id + (changed[:, place] + 7) % (31 - case.first_id)
        assert (case.read(model, ids).array != case.read(model, changed).array).any(axis=-1).all()


def test_the_past_changes_every_later_position(causal):
    model = causal.model()
    ids = causal.ids(2, 12)
    for place in range(12):
        changed = ids.copy()
        changed[:, place] = (changed[:, place] + 7) % causal.config.vocab_size
        differs = (model(ids).array != model(changed).array).any(axis=-1)
        assert differs[:, place:].all()
        assert not differs[:, :place].any()


def test_no_gradient_flows_from_the_past_to_the_future(causal):
    model = causal.model()
    ids = np.arange(12)[None] % causal.config.vocab_size  # every token once
    model(ids)[:, 5].sum().backward()
    rows = model.token_embedding.weight.grad.any(axis=1)
    assert rows[:6].all()
    assert not rows[6:].any()


@pytest.mark.parametrize("pieces", [[1] * 11, [5, 1, 5], [10, 1], [11], [2, 3, 6]], ids=str)
def test_reading_through_a_cache_equals_reading_at_once(causal, pieces):
    model = causal.model(dtype="float64")
    ids = causal.ids(3, 11)
    expected = model(ids).array
    cache = model.new_cache(3, 11)
    start = 0
    with no_grad():
        for count in pieces:
            here = slice(start, start + count)
            np.testing.assert_allclose(
                model(ids[:, here], cache=cache).array, expected[:, here], rtol=0, atol=1e-12
            )
            start += count
            assert cache.length == start


def test_a_cache_with_padding_on_the_left_equals_no_cache(causal):
    model = causal.model(dtype="float64")
    ids = causal.ids(2, 9)
    mask = np.ones((2, 9), int)
    mask[1, :4] = 0
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
    expected = model(ids, attention_mask=mask, **causal.at(positions)).array
    cache = model.new_cache(2, 9)
    with no_grad():
        for here in (slice(0, 6), slice(6, 7), slice(7, 9)):
            got = model(
                ids[:, here],
                attention_mask=mask[:, : here.stop],
                cache=cache,
                **causal.at(positions[:, here]),
            ).array
            np.testing.assert_allclose(
                got[mask[:, here] == 1],
                expected[:, here][mask[:, here] == 1],
                rtol=0,
                atol=1e-12,
            )


@pytest.mark.parametrize("rows", [[2, 0, 1], [1, 1, 1], [0], [2, 2, 0, 1, 1]], ids=str)
def test_a_reordered_cache_goes_on_from_the_rows_named(causal, rows):
    model = causal.model(dtype="float64")
    ids = causal.ids(3, 9)
    cache = model.new_cache(3, 9)
    with no_grad():
        model(ids[:, :5], cache=cache)
        cache.reorder(np.array(rows))
        got = model(ids[rows, 5:], cache=cache).array
    np.testing.assert_allclose(got, model(ids[rows]).array[:, 5:], rtol=0, atol=1e-12)


def test_a_full_cache_refuses_more(causal):
    if not causal.has_positions:
        pytest.skip("its state has the same size for any number of tokens")
    model = causal.model()
    cache = model.new_cache(1, 4)
    with no_grad():
        model(causal.ids(1, 3), cache=cache)
        with pytest.raises(ShapeError, match="room for 4 positions, 3 are filled and 2 more"):
            model(causal.ids(1, 2), cache=cache)
        assert cache.length == 3


def test_a_cache_while_gradients_are_recorded_is_refused(causal):
    model = causal.model()
    with pytest.raises(GraphError, match="no_grad"):
        model(causal.ids(1, 3), cache=model.new_cache(1, 4))


def test_next_logits_are_those_of_the_last_position(causal):
    model, ids = causal.model(dtype="float64"), causal.ids(2, 6)
    expected = model.head(model(ids)).array[:, -1]
    got = model.next_logits(ids)
    assert type(got) is np.ndarray
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


def test_an_inspection_shows_what_each_layer_says(case):
    model, look = case.model(), Inspection()
    hidden = case.read(model, case.ids(2, 7), inspection=look)
    assert len(look.hidden_states) == case.config.layers + 1
    assert all(state.shape[:2] == (2, 7) for state in look.hidden_states)
    np.testing.assert_array_equal(look.hidden_states[-1].array, hidden.array)
    np.testing.assert_array_equal(hidden.array, case.read(model, case.ids(2, 7)).array)


def test_an_inspection_shows_attention_that_adds_up_to_one(case):
    if "heads" not in vars(case.config):
        pytest.skip("has no attention")
    model = case.model()
    ids = case.ids(2, 7)
    mask = np.ones((2, 7), int)
    mask[0, 5:] = 0
    look = Inspection()
    hidden = case.read(model, ids, attention_mask=mask, inspection=look)
    assert len(look.attentions) == case.config.layers
    assert len(look.hidden_states) == case.config.layers + 1
    np.testing.assert_array_equal(look.hidden_states[-1].array, hidden.array)
    np.testing.assert_array_equal(
        hidden.array[mask == 1], case.read(model, ids, attention_mask=mask).array[mask == 1]
    )
    for attention in look.attentions:
        p = attention.array
        assert p.shape == (2, case.config.heads, 7, 7)
        assert (p >= 0).all()
        np.testing.assert_allclose(p.sum(axis=-1), 1, rtol=0, atol=1e-6)
        assert not p[0, :, :, 5:].any()
        if case.causal:
            assert not np.triu(p, 1).any()
    for state in look.hidden_states:
        assert state.shape == (2, 7, case.config.hidden_size)


def test_published_sizes_have_their_counts_without_taking_memory(name, case):
    tracemalloc.start()
    began = time.process_time()  # what others run beside the tests does not count
    counts = {
        size: MODELS[name].build(config, rng=None).parameter_count
        for size, config in MODELS[name].sizes.items()
    }
    seconds = time.process_time() - began
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert counts == case.counts
    assert seconds < 0.5
    assert peak < 10_000_000


BAD_IDS = {
    "too large": (np.array([[0, 1, 31]]), ShapeError, r"contains 31 at \[0, 2\].*vocab_size=31"),
    "negative": (np.array([[0, -1]]), ShapeError, r"contains -1 at \[0, 1\]"),
    "floats": (np.array([[0.0, 1.0]]), DtypeError, "dtype float64, expected integers"),
    "booleans": (np.array([[True, False]]), DtypeError, "dtype bool, expected integers"),
    "words": ([["a", "b"]], DtypeError, "expected integers"),
    "nothing": (None, DtypeError, "expected integers"),
    "empty": (np.zeros((1, 0), int), ShapeError, r"empty \(shape \(1, 0\)\)"),
    "no rows": (np.zeros((0, 3), int), ShapeError, "empty"),
    "one axis": (
        np.array([1, 2]),
        ShapeError,
        r"shape \(2,\), expected \(batch, time\).*ids\[None\]",
    ),
    "three axes": (np.ones((1, 2, 3), int), ShapeError, r"shape \(1, 2, 3\)"),
    "a number": (3, ShapeError, r"shape \(\)"),
    "ragged": ([[1, 2], [3]], ShapeError, "different lengths"),
    "too long": (np.zeros((1, 17), int), ShapeError, "17 tokens.*16 positions"),
    "huge unsigned": (
        np.array([[2**64 - 1]], np.uint64),
        ShapeError,
        "contains 18446744073709551615",
    ),
}


@pytest.mark.parametrize("kind", BAD_IDS)
def test_bad_ids_are_refused_in_words(case, kind):
    ids, error, message = BAD_IDS[kind]
    if kind == "too long" and not case.has_positions:
        pytest.skip("no text is too long")
    with pytest.raises(error, match=f"(?s){message}"):
        case.read(case.model(), ids)


BAD_MASKS = {
    "short": (np.ones((2, 4), int), ShapeError, r"shape \(2, 4\), expected \(2, 5\)"),
    "one axis": (np.ones(5, int), ShapeError, r"shape \(5,\)"),
    "four axes": (np.ones((2, 1, 5, 5), int), ShapeError, "expected"),
    "a two": (np.full((2, 5), 2), ShapeError, "contains 2; expected 1"),
    "additive": (np.full((2, 5), -1e4), ShapeError, "contains -10000"),
    "nan": (np.full((2, 5), np.nan), ShapeError, "contains nan"),
    "ragged": ([[1] * 5, [1]], ShapeError, "different lengths"),
}


@pytest.mark.parametrize("kind", BAD_MASKS)
def test_bad_masks_are_refused_in_words(case, kind):
    mask, error, message = BAD_MASKS[kind]
    with pytest.raises(error, match=f"attention_mask.*{message}"):
        case.read(case.model(), case.ids(2, 5), attention_mask=mask)


BAD_POSITIONS = {
    "too large": (np.full((2, 5), 16), ShapeError, "contains 16.*positions=16"),
    "negative": (np.full((2, 5), -1), ShapeError, "contains -1"),
    "floats": (np.zeros((2, 5)), DtypeError, "expected integers"),
    "more rows": (np.zeros((3, 5), int), ShapeError, r"shape \(3, 5\), expected .*\(2, 5\)"),
    "one column": (np.zeros((2, 1), int), ShapeError, r"shape \(2, 1\), expected .*\(2, 5\)"),
    "one axis": (np.arange(5), ShapeError, r"shape \(5,\)"),
}


@pytest.mark.parametrize("kind", BAD_POSITIONS)
def test_bad_positions_are_refused_in_words(case, kind):
    positions, error, message = BAD_POSITIONS[kind]
    if not case.has_positions:
        pytest.skip("has no positions")
    with pytest.raises(error, match=f"position_ids.*{message}"):
        case.read(case.model(), case.ids(2, 5), position_ids=positions)


SIZES = ("vocab_size", "hidden_size", "layers", "heads", "positions")
HEADS = [("heads", 5), ("heads", 13)]
BAD_SETTINGS = [
    *((size, value) for size in SIZES for value in (0, -1, 2.0, "3", True, None, math.nan, 10**12, [])),
    *(("ffn_size", value) for value in (0, -4, 8.0, "8", True, 10**12)),
    *(("embedding_size", value) for value in (0, -4, 8.0, "8", True, 10**12)),
    *(("cell", value) for value in ("lstmm", "", None, 3, [])),
    *HEADS,
    *(("eps", value) for value in (0, -1e-5, math.nan, math.inf, 1, "1e-5", True, None)),
    *(("init_std", value) for value in (0, -0.02, math.nan, math.inf, "0.02", True)),
    *(
        (rate, value)
        for rate in ("dropout", "embedding_dropout", "attention_dropout")
        for value in (-0.1, 1, 1.5, math.nan, "0.1", True, None)
    ),
    *(("activation", value) for value in ("geluu", "", None, 3, [], np.tanh)),
    *((flag, value) for flag in ("tied", "scaled", "scaled_by_depth") for value in (1, 0, "yes", None)),
]  # fmt: skip


def settings_of(config, setting, value):
    """Whether the config has the setting, and the value cannot be: heads of a width of their own need no divisor."""
    fields = vars(config)
    return setting in fields and not ("head_size" in fields and (setting, value) in HEADS)


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        (name, setting, value)
        for name in sorted(CASES)
        for setting, value in BAD_SETTINGS
        if settings_of(CASES[name].config, setting, value)
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused_by_name(name, setting, value):
    config = CASES[name].config
    with pytest.raises(ConfigError, match=setting):
        type(config)(**(vars(config) | {setting: value}))


def test_a_load_that_does_not_fit_changes_nothing(case):
    model = case.model()
    before = {path: array.copy() for path, array in model.arrays().items()}
    first = next(iter(before))
    for wrong, message in (
        ({k: v for k, v in before.items() if k != first}, f"no values for {first}"),
        (before | {"extra.weight": before[first]}, r"no parameter extra\.weight"),
        (before | {first: before[first][:-1]}, f"{first}: values"),
    ):
        with pytest.raises(ShapeError, match=message):
            model.load({k: v + 1 for k, v in wrong.items()})
        for path, array in model.arrays().items():
            np.testing.assert_array_equal(array, before[path])
