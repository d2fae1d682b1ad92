"""What makes GPT-2 the paper's: wiring, starting values, tied weights; and the whole of it in plain loops."""

import math

import numpy as np
import pytest

from tinyplm.models.gpt2 import SIZES, Gpt2, Gpt2Config
from tinyplm.nn import Inspection

CONFIG = {"vocab_size": 19, "hidden_size": 12, "layers": 3, "heads": 2, "positions": 9}


def lively(seed=0, **settings):
    """A float64 model whose parameters are all far from 0."""
    model = Gpt2(Gpt2Config(**(CONFIG | settings)), rng=np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    model.load({k: 0.4 * rng.standard_normal(a.shape) for k, a in model.arrays().items()})
    return model


ACTIVATIONS = {
    "gelu": lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: max(x, 0.0),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "tanh": math.tanh,
}  # fmt: skip


def by_hand(model, ids):
    """Hidden states of one text, token by token, head by head, as the paper's words say."""
    c, w = model.config, {k: np.array(a) for k, a in model.arrays().items()}

    def norm(x, name):
        centred = x - x.mean()
        scale = math.sqrt((centred**2).mean() + c.eps)
        return centred / scale * w[f"{name}.gain"] + w[f"{name}.bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    K = c.hidden_size // c.heads
    x = [
        w["token_embedding.weight"][i] + w["position_embedding.weight"][t]
        for t, i in enumerate(ids)
    ]
    for layer in range(c.layers):
        b = f"blocks.{layer}"
        qkv = [linear(norm(token, f"{b}.norm_1"), f"{b}.attention.project_in") for token in x]
        mixed = []
        for t in range(len(ids)):
            heads = []
            for h in range(c.heads):
                q = qkv[t][h * K : (h + 1) * K]
                scores = []
                for s in range(t + 1):
                    k = qkv[s][c.hidden_size + h * K : c.hidden_size + (h + 1) * K]
                    score = float(q @ k)
                    if c.scaled:
                        score /= math.sqrt(K)
                    if c.scaled_by_depth:
                        score /= layer + 1
                    scores.append(math.exp(score))
                heads.append(
                    sum(
                        p
                        / sum(scores)
                        * qkv[s][2 * c.hidden_size + h * K : 2 * c.hidden_size + (h + 1) * K]
                        for s, p in enumerate(scores)
                    )
                )
            mixed.append(np.concatenate(heads))
        x = [a + linear(m, f"{b}.attention.project_out") for a, m in zip(x, mixed, strict=True)]
        wide = [linear(norm(token, f"{b}.norm_2"), f"{b}.feed_forward.expand") for token in x]
        bend = np.vectorize(ACTIVATIONS[c.activation])
        x = [
            a + linear(bend(m), f"{b}.feed_forward.contract") for a, m in zip(x, wide, strict=True)
        ]
    return np.stack([norm(token, "norm") for token in x])


@pytest.mark.parametrize(
    "settings",
    [
        *({"activation": name} for name in sorted(ACTIVATIONS)),
        {"ffn_size": 7, "heads": 3, "eps": 0.1},
        {"scaled": False},
        {"scaled_by_depth": True, "heads": 12},
        {"layers": 1, "hidden_size": 1, "heads": 1, "ffn_size": 1},
    ],
    ids=str,
)
def test_the_model_equals_itself_written_out_in_loops(settings):
    model = lively(**settings)
    ids = np.array([3, 0, 18, 18, 7, 1, 2, 5, 11])
    np.testing.assert_allclose(model(ids[None]).array[0], by_hand(model, ids), rtol=0, atol=1e-11)


def test_a_branch_that_writes_nothing_leaves_the_embeddings_which_makes_it_residual_and_pre_norm():
    model = lively()
    silent = {
        k: np.zeros_like(a) if "project_out" in k or "contract" in k else np.array(a)
        for k, a in model.arrays().items()
    }
    model.load(silent)
    look = Inspection()
    ids = np.array([[3, 1, 4]])
    hidden = model(ids, inspection=look)
    for state in look.hidden_states[1:-1]:
        np.testing.assert_array_equal(state.array, look.hidden_states[0].array)
    x = look.hidden_states[0].array
    centred = x - x.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(
        hidden.array, expected * silent["norm.gain"] + silent["norm.bias"], atol=1e-12
    )


def test_the_head_is_the_token_embedding_itself_unless_untied():
    tied, untied = lively(), lively(tied=False)
    assert tied.head.weight is tied.token_embedding.weight
    assert "head.weight" not in tied.named_parameters()
    assert untied.head.weight is not untied.token_embedding.weight
    assert untied.parameter_count - tied.parameter_count == 19 * 12
    assert tied.head.bias is None


def test_tied_weights_are_counted_once_and_gather_both_gradients():
    tied, untied = lively(), lively(tied=False)
    untied.load(
        {k: np.array(a) for k, a in tied.arrays().items()}
        | {"head.weight": np.array(tied.token_embedding.weight.array)}
    )
    ids = np.array([[3, 1, 4]])
    for model in (tied, untied):
        model.head(model(ids)).sum().backward()
    both = untied.token_embedding.weight.grad + untied.head.weight.grad
    np.testing.assert_allclose(tied.token_embedding.weight.grad, both, atol=1e-12)


def test_weights_start_with_the_papers_spreads():
    model = Gpt2(
        Gpt2Config(vocab_size=101, hidden_size=96, layers=6, heads=6, positions=60),
        rng=np.random.default_rng(0),
    )
    residual = 0.02 / math.sqrt(2 * 6)
    for name, a in model.arrays().items():
        if name.endswith("gain"):
            assert (a == 1).all(), name
        elif name.endswith("bias"):
            assert (a == 0).all(), name
        else:
            narrow = "project_out" in name or "contract" in name
            std = residual if narrow else 0.02
            # Six standard deviations of the estimate of a standard deviation, and of a mean.
            assert abs(a.std() / std - 1) < 6 / math.sqrt(2 * a.size), name
            assert abs(a.mean()) < 6 * std / math.sqrt(a.size), name
            assert abs(a).max() > 2.5 * std, name


def test_a_new_model_loses_about_as_much_as_guessing():
    model = Gpt2(
        Gpt2Config(vocab_size=211, hidden_size=32, layers=2, heads=4, positions=16),
        rng=np.random.default_rng(0),
    )
    from tinyplm.objectives import CausalLM

    batch = {"input_ids": np.random.default_rng(1).integers(211, size=(8, 17))}
    prepared = CausalLM().prepare(batch, rng=np.random.default_rng(0))
    assert abs(CausalLM().loss(model, prepared).item() - math.log(211)) < 0.1


def test_scores_of_deeper_blocks_are_divided_by_their_depth():
    model = lively(scaled_by_depth=True)
    assert [b.attention.scale for b in model.blocks] == [
        1 / math.sqrt(6) / (i + 1) for i in range(3)
    ]


def test_the_published_settings_are_the_papers():
    shapes = {n: (c.hidden_size, c.layers, c.heads) for n, c in SIZES.items()}
    assert shapes == {
        "small": (768, 12, 12),
        "medium": (1024, 24, 16),
        "large": (1280, 36, 20),
        "xl": (1600, 48, 25),
    }
    for c in SIZES.values():
        assert (c.vocab_size, c.positions, c.ffn_size, c.tied) == (
            50_257,
            1024,
            4 * c.hidden_size,
            True,
        )
        assert (c.activation, c.eps, c.dropout) == ("gelu_tanh", 1e-5, 0.1)


def test_each_dropout_rate_acts_by_itself():
    ids = np.array([[3, 1, 4, 1, 5]])
    for rate in ("dropout", "embedding_dropout", "attention_dropout"):
        off = {"dropout": 0.0, "embedding_dropout": 0.0, "attention_dropout": 0.0}
        model = lively(**(off | {rate: 0.5}))
        plain = model(ids).array
        drawn = [model(ids, rng=np.random.default_rng(s)).array for s in range(3)]
        assert not np.array_equal(drawn[0], plain), rate
        assert not np.array_equal(drawn[0], drawn[1]), rate


def test_embedding_dropout_keeps_the_mean():
    model = lively(embedding_dropout=0.25, dropout=0.0, attention_dropout=0.0)
    ids = np.tile(np.array([[3, 1, 4, 1, 5, 9, 2, 6]]), (400, 1))
    look, plain = Inspection(), Inspection()
    model(ids, rng=np.random.default_rng(0), inspection=look)
    model(ids[:1], inspection=plain)
    x = plain.hidden_states[0].array[0]
    drawn = look.hidden_states[0].array
    assert abs((drawn == 0).mean() - 0.25) < 6 * math.sqrt(0.25 * 0.75 / drawn.size)
    deviation = abs(x) * math.sqrt(0.25 / 0.75 / 400)
    assert (abs(drawn.mean(axis=0) - x) < 6 * deviation).all()
