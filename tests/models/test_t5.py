"""What makes T5 the paper's: unscaled attention, one table of positions a stack, and the whole of it in plain loops."""

import math

import numpy as np
import pytest

import tinyplm
from tinyplm import no_grad
from tinyplm.errors import ConfigError, GraphError, ShapeError
from tinyplm.models.t5 import T5, T5Config
from tinyplm.nn import Inspection

CONFIG = {
    "vocab_size": 19, "hidden_size": 12, "head_size": 5, "ffn_size": 14, "layers": 3, "decoder_layers": 2, "heads": 2,
    "buckets": 8, "max_distance": 9, "dropout": 0.0,
}  # fmt: skip
V1_1 = {"gated": True, "activation": "gelu_tanh", "tied": False, "scaled_output": False}
VERSIONS = pytest.mark.parametrize("version", [{}, V1_1], ids=["v1.0", "v1.1"])


def lively(seed=0, **settings):
    """A float64 model whose parameters are all far from 0."""
    model = T5(T5Config(**(CONFIG | settings)), rng=np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    model.load({k: 0.4 * rng.standard_normal(a.shape) for k, a in model.arrays().items()})
    return model


def texts(seed=0, B=2, S=11, T=6):
    rng = np.random.default_rng(seed)
    return rng.integers(19, size=(B, S)), rng.integers(19, size=(B, T))


def bucket(difference, both):
    """Of a key's position minus its query's, as the paper says in words, for 8 buckets up to distance 9."""
    n = 4 if both else 8
    distance = abs(difference) if both else max(-difference, 0)
    if distance >= n // 2:
        share = math.log(distance / (n // 2)) / math.log(9 / (n // 2))
        distance = min(n - 1, n // 2 + int(share * (n // 2)))
    return distance + (n if both and difference > 0 else 0)


def by_hand(model, source, target):
    """Logits for one pair of texts, token by token, head by head."""
    c, w = model.config, {k: np.array(a) for k, a in model.arrays().items()}
    inner, K = c.heads * c.head_size, c.head_size

    def norm(x, name):
        return x / math.sqrt((x**2).mean() + c.eps) * w[f"{name}.gain"]

    def attend(queries, keys, values, bias, causal):
        made = []
        for t, query in enumerate(queries):
            mixed = np.zeros(inner)
            for h in range(c.heads):
                here = slice(h * K, (h + 1) * K)
                seen = range(t + 1) if causal else range(len(keys))
                e = [math.exp(query[here] @ keys[s][here] + bias(h, s - t)) for s in seen]
                for s, share in zip(seen, e, strict=True):
                    mixed[here] += share / sum(e) * values[s][here]
            made.append(mixed)
        return made

    def bend(x):
        if c.activation == "relu":
            return np.maximum(x, 0)
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
        return 0.5 * x * (1 + np.tanh(inner))

    def stack(x, name, layers, memory):
        table, decoder = w[f"{name}.position.table"], name == "decoder"

        def bias(h, difference):
            return table[bucket(difference, not decoder), h]

        for layer in range(layers):
            b = f"{name}.blocks.{layer}"
            qkv = [norm(one, f"{b}.norm_1") @ w[f"{b}.attention.project_in.weight"] for one in x]
            q, k, v = ([one[i * inner : (i + 1) * inner] for one in qkv] for i in range(3))
            y = attend(q, k, v, bias, decoder)
            x = [a + m @ w[f"{b}.attention.project_out.weight"] for a, m in zip(x, y, strict=True)]
            if decoder:
                cross = f"{b}.cross_attention"
                q = [norm(a, f"{b}.norm_cross") @ w[f"{cross}.project_query.weight"] for a in x]
                kv = [m @ w[f"{cross}.project_memory.weight"] for m in memory]
                y = attend(
                    q, [a[:inner] for a in kv], [a[inner:] for a in kv], lambda *_: 0.0, False
                )
                x = [a + m @ w[f"{cross}.project_out.weight"] for a, m in zip(x, y, strict=True)]
            f = f"{b}.feed_forward"
            for i, one in enumerate(x):
                n = norm(one, f"{b}.norm_2")
                if c.gated:
                    wide = bend(n @ w[f"{f}.gate.weight"]) * (n @ w[f"{f}.expand.weight"])
                else:
                    wide = bend(n @ w[f"{f}.expand.weight"])
                x[i] = one + wide @ w[f"{f}.contract.weight"]
        return [norm(one, f"{name}.norm") for one in x]

    embedding = w["token_embedding.weight"]
    memory = stack([embedding[i] for i in source], "encoder", c.layers, None)
    states = stack([embedding[i] for i in target], "decoder", c.decoder_layers, memory)
    head = embedding if c.tied else w["head.weight"]
    scale = c.hidden_size**-0.5 if c.scaled_output else 1.0
    return np.array([head @ (scale * one) for one in states])


@VERSIONS
def test_logits_are_those_of_plain_loops(version):
    model = lively(**version)
    source, target = texts()
    logits = model.head(model(source, decoder_input_ids=target)).array
    for row in range(2):
        expected = by_hand(model, source[row], target[row])
        np.testing.assert_allclose(logits[row], expected, rtol=1e-10, atol=1e-10)


def test_each_stack_has_one_table_of_positions_for_all_its_layers():
    model = lively()
    tables = [name for name in model.named_parameters() if "position" in name]
    assert tables == ["encoder.position.table", "decoder.position.table"]
    assert model.encoder.position.table.shape == (8, 2)


def test_the_head_is_the_embedding_unless_it_is_untied():
    tied, untied = lively(), lively(**V1_1)
    assert tied.head.weight is tied.token_embedding.weight
    assert untied.head.weight is not untied.token_embedding.weight
    assert tied.head.scale == 12**-0.5
    assert untied.head.scale == 1.0


def test_no_layer_has_a_bias():
    for settings in ({}, V1_1):
        assert not [n for n in lively(**settings).named_parameters() if n.endswith("bias")]


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_new_weights_have_the_deviations_of_the_paper(factor):
    D, K, H, F = 128, 32, 8, 256
    config = T5Config(
        vocab_size=2_000, hidden_size=D, head_size=K, heads=H, ffn_size=F, layers=1, init_factor=factor
    )  # fmt: skip
    model = T5(config, rng=np.random.default_rng(0))
    block = model.decoder.blocks[0]
    inner = H * K
    qkv = block.attention.project_in.weight.array
    expected = [
        (model.token_embedding.weight.array, 1.0),
        (qkv[:, :inner], (D * K) ** -0.5),
        (qkv[:, inner:], D**-0.5),
        (block.attention.project_out.weight.array, inner**-0.5),
        (block.cross_attention.project_query.weight.array, (D * K) ** -0.5),
        (block.cross_attention.project_memory.weight.array, D**-0.5),
        (block.feed_forward.expand.weight.array, D**-0.5),
        (block.feed_forward.contract.weight.array, F**-0.5),
        (model.decoder.position.table.array, D**-0.5),
    ]
    for array, std in expected:
        # Six standard deviations of the deviation of so many normal numbers.
        assert abs(array.std() / (factor * std) - 1) <= 6 / math.sqrt(2 * array.size)
    assert (block.norm_1.gain.array == 1).all()


def test_gradients_reach_the_tables_and_everything_else():
    for settings in ({}, V1_1):
        model = lively(**settings)
        source, target = texts(S=9, T=7)
        mask = np.ones_like(source)
        mask[0, 6:] = 0

        weights = np.random.default_rng(0).standard_normal((2, 7, 19))

        def weighted(model=model, source=source, target=target, mask=mask, weights=weights):
            logits = model.head(model(source, attention_mask=mask, decoder_input_ids=target))
            return (logits * weights).sum()

        tables = [model.encoder.position.table, model.decoder.position.table]
        tinyplm.check_grad(weighted, wrt=tables)
        tinyplm.check_grad(weighted, wrt=model.parameters())
        weighted().backward()
        assert all(table.grad.any() for table in tables)


def test_the_decoder_does_not_see_its_future_and_sees_the_whole_text():
    model = lively()
    source, target = texts()
    before = model(source, decoder_input_ids=target).array
    changed = target.copy()
    changed[:, 3:] = (changed[:, 3:] + 5) % 19
    after = model(source, decoder_input_ids=changed).array
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert (before[:, 3:] != after[:, 3:]).any(axis=-1).all()
    for place in range(source.shape[1]):
        other = source.copy()
        other[:, place] = (other[:, place] + 5) % 19
        assert (model(other, decoder_input_ids=target).array != before).any(axis=-1).all()


def test_the_encoder_sees_both_sides_and_nothing_of_the_decoder():
    model = lively()
    source, _ = texts()
    before = model.encode(source).array
    other = source.copy()
    other[:, 5] = (other[:, 5] + 5) % 19
    assert (model.encode(other).array != before).any(axis=-1).all()


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(side):
    model = lively()
    source, target = texts(B=3)
    lengths = [11, 4, 7]
    mask = np.zeros_like(source)
    for row, n in enumerate(lengths):
        mask[row, slice(0, n) if side == "right" else slice(11 - n, 11)] = 1
    together = model(source, attention_mask=mask, decoder_input_ids=target).array
    for row in range(3):
        alone = model(source[row][mask[row] == 1][None], decoder_input_ids=target[row : row + 1])
        np.testing.assert_allclose(together[row], alone.array[0], rtol=0, atol=1e-12)
    filled = np.where(mask == 1, source, (source + 1) % 19)
    again = model(filled, attention_mask=mask, decoder_input_ids=target).array
    np.testing.assert_array_equal(again, together)


@VERSIONS
@pytest.mark.parametrize("pieces", [[1] * 6, [2, 3, 1], [6]], ids=str)
def test_a_decoder_with_a_cache_equals_one_without(version, pieces):
    model = lively(**version)
    source, target = texts()
    mask = np.ones_like(source)
    mask[1, :4] = 0
    expected = model(source, attention_mask=mask, decoder_input_ids=target).array
    decoder = model.conditioned(source, mask)
    cache = decoder.new_cache(2, 6)
    start = 0
    with no_grad():
        for count in pieces:
            got = model.decode(
                target[:, start : start + count], decoder.memory, attention_mask=mask, cache=cache
            )
            np.testing.assert_allclose(
                got.array, expected[:, start : start + count], rtol=0, atol=1e-12
            )
            start += count
            assert cache.length == start


@pytest.mark.parametrize("rows", [[1, 0], [0, 0], [1], [1, 1, 0, 0, 1]], ids=str)
def test_a_reordered_decoder_goes_on_from_the_texts_named(rows):
    model = lively()
    source, target = texts()
    rows = np.array(rows)
    decoder = model.conditioned(source)
    cache = decoder.new_cache(2, 6)
    decoder.next_logits(target[:, :4], cache=cache)
    cache.reorder(rows)
    chosen = decoder.chosen(rows)
    found = chosen.next_logits(target[rows, 4:], cache=cache)
    expected = model.head(model(source[rows], decoder_input_ids=target[rows])).array[:, -1]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(chosen.next_logits(target[rows]), expected, rtol=0, atol=1e-12)


def test_what_the_encoder_made_is_projected_once():
    model = lively()
    source, target = texts()
    decoder = model.conditioned(source)
    cache = decoder.new_cache(2, 6)
    decoder.next_logits(target[:, :1], cache=cache)
    first = dict(cache.read)
    decoder.next_logits(target[:, 1:2], cache=cache)
    assert all(cache.read[layer] is kv for layer, kv in first.items())
    assert len(first) == 2


def test_an_inspection_shows_both_stacks():
    model, look = lively(), Inspection()
    source, target = texts()
    hidden = model(source, decoder_input_ids=target, inspection=look)
    assert len(look.encoder_hidden_states) == 4
    assert len(look.hidden_states) == 3
    assert [a.shape for a in look.encoder_attentions] == [(2, 2, 11, 11)] * 3
    assert [a.shape for a in look.attentions] == [(2, 2, 6, 6)] * 2
    assert [a.shape for a in look.cross_attentions] == [(2, 2, 6, 11)] * 2
    for p in (*look.encoder_attentions, *look.attentions, *look.cross_attentions):
        np.testing.assert_allclose(p.array.sum(axis=-1), 1, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(look.encoder_hidden_states[-1].array, model.encode(source).array)
    plain = model(source, decoder_input_ids=target).array
    np.testing.assert_allclose(hidden.array, plain, rtol=0, atol=1e-12)


def test_dropout_follows_its_generator():
    model = lively(dropout=0.3)
    source, target = texts()

    def run(seed):
        return model(source, decoder_input_ids=target, rng=np.random.default_rng(seed)).array

    np.testing.assert_array_equal(run(1), run(1))
    assert not np.array_equal(run(1), run(2))


BAD = {
    "no decoder ids": ({"decoder_input_ids": None}, "decoder_input_ids is missing.*generate"),
    "decoder ids too large": (
        {"decoder_input_ids": np.full((2, 3), 19)},
        "decoder_input_ids contains 19.*vocab_size=19",
    ),
    "another batch": (
        {"decoder_input_ids": np.zeros((3, 4), int)},
        "3 rows and input_ids 2; expected as many",
    ),
    "a short mask": ({"attention_mask": np.ones((2, 4))}, r"shape \(2, 4\), expected \(2, 11\)"),
    "a short decoder mask": (
        {"decoder_attention_mask": np.ones((2, 4))},
        r"shape \(2, 4\), expected \(2, 6\)",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_does_not_fit_is_refused_in_words(kind):
    settings, message = BAD[kind]
    source, target = texts()
    with pytest.raises(ShapeError, match=f"(?s){message}"):
        lively()(source, **({"decoder_input_ids": target} | settings))


def test_a_cache_while_gradients_are_recorded_is_refused():
    model = lively()
    source, target = texts()
    decoder = model.conditioned(source)
    with pytest.raises(GraphError, match="no_grad"):
        model.decode(target, decoder.memory, cache=decoder.new_cache(2, 6))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"buckets": 2}, "at least 4 buckets"),
        ({"max_distance": 4}, "max_distance 4"),
        ({"decoder_start": 19}, "below vocab_size=19"),
        ({"decoder_start": -1}, "decoder_start is -1"),
        ({"decoder_layers": 0}, "decoder_layers is 0"),
        ({"head_size": None}, "head_size is None"),
        ({"gated": 1}, "gated is 1"),
        ({"scaled_output": "yes"}, "scaled_output is 'yes'"),
        ({"init_factor": 0}, "init_factor is 0"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        T5Config(**(CONFIG | settings))
