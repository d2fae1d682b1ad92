"""GPT-2 against transformers, weights loaded in both directions: everything computed, and every gradient."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tinyplm  # noqa: E402
from tinyplm.hub.gpt2 import write_arrays  # noqa: E402
from tinyplm.models.gpt2 import Gpt2, Gpt2Config  # noqa: E402
from tinyplm.nn import Inspection  # noqa: E402
from tinyplm.objectives import CausalLM  # noqa: E402

pytestmark = pytest.mark.parity

BOUNDS = {"float64": 1e-9, "float32": 1e-4}  # of the largest value
ODD = {
    "vocab_size": 37,
    "n_positions": 11,
    "n_embd": 21,
    "n_layer": 3,
    "n_head": 3,
    "n_inner": 23,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VARIANTS = [
    {},
    {"n_inner": None, "n_head": 1},
    {"n_head": 21},
    {"tie_word_embeddings": False},
    {"scale_attn_by_inverse_layer_idx": True},
    {"scale_attn_weights": False},
    {"layer_norm_epsilon": 0.03},
    *({"activation_function": name} for name in ("gelu", "relu", "silu", "tanh", "gelu_pytorch_tanh")),
    {"n_layer": 1, "vocab_size": 2, "n_positions": 11},
]  # fmt: skip


def build_theirs(changes, dtype):
    torch.set_num_threads(1)
    config = transformers.GPT2Config(**(ODD | changes))
    config._attn_implementation = "eager"
    model = transformers.GPT2LMHeadModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # gains and biases too: none is 0 or 1
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.to(getattr(torch, dtype))


def batch_of(vocab, padding):
    """Rows of 11, 4, 1 and 7 tokens; the filling is anything."""
    rng = np.random.default_rng(1)
    ids = rng.integers(vocab, size=(4, 11))
    if padding is None:
        return {"input_ids": ids}, np.ones((4, 11), int), None
    lengths = np.array([[11], [4], [1], [7]])
    columns = np.arange(11)
    mask = (columns < lengths if padding == "right" else columns >= 11 - lengths) * 1
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
    return {"input_ids": ids, "attention_mask": mask}, mask, positions


def assert_close(ours, theirs, dtype, name):
    theirs = theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else theirs
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape, name
    gap, size = np.abs(ours - theirs).max(), np.abs(theirs).max()
    assert gap <= BOUNDS[dtype] * size, f"{name}: off by {gap:.2e} where values reach {size:.2e}"


class WithPositions:
    """Our model as the objective calls it, with positions of its own."""

    def __init__(self, model, positions):
        self.model, self.head, self.positions = model, model.head, positions

    def __call__(self, ids, **options):
        return self.model(ids, position_ids=self.positions, **options)


def compare(ours, theirs, dtype, padding):
    batch, mask, positions = batch_of(ours.config.vocab_size, padding)
    real = mask == 1
    ids = torch.from_numpy(batch["input_ids"])
    options = {}
    if padding:
        options = {
            "attention_mask": torch.from_numpy(mask),
            "position_ids": torch.from_numpy(positions),
        }
    there = theirs(ids, output_hidden_states=True, output_attentions=True, **options)
    look = Inspection()
    hidden = ours(
        batch["input_ids"],
        attention_mask=batch.get("attention_mask"),
        position_ids=positions,
        inspection=look,
    )
    logits = ours.head(hidden).array
    assert logits.dtype == dtype
    assert_close(logits[real], there.logits.detach().numpy()[real], dtype, "logits")
    assert len(look.hidden_states) == len(there.hidden_states)
    for layer, (a, b) in enumerate(zip(look.hidden_states, there.hidden_states, strict=True)):
        assert_close(a.array[real], b.detach().numpy()[real], dtype, f"hidden states {layer}")
    for layer, (a, b) in enumerate(zip(look.attentions, there.attentions, strict=True)):
        rows = real[:, None].repeat(a.shape[1], axis=1)
        assert_close(a.array[rows], b.detach().numpy()[rows], dtype, f"attentions {layer}")

    # Their own loss is computed in float32, so torch's definition is asked.
    objective = CausalLM()
    prepared = objective.prepare(batch, rng=np.random.default_rng(0))
    loss = objective.loss(
        WithPositions(ours, None if positions is None else positions[:, :-1]), prepared
    )
    loss.backward()
    used = torch.from_numpy((mask[:, 1:] & mask[:, :-1]).astype(bool))
    their_loss = torch.nn.functional.cross_entropy(there.logits[:, :-1][used], ids[:, 1:][used])
    theirs.zero_grad()
    their_loss.backward()
    assert_close(loss.array, their_loss, dtype, "loss")
    their_parameters = dict(theirs.named_parameters())
    gradients = {name: p.grad for name, p in ours.named_parameters().items()}
    assert all(gradient.dtype == dtype for gradient in gradients.values())
    named = write_arrays(ours.config, gradients)
    assert set(named) == set(their_parameters)
    for name, gradient in named.items():
        assert_close(gradient, their_parameters[name].grad, dtype, f"gradient of {name}")


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_a_model_from_there_computes_the_same_here(tmp_path, changes, dtype):
    theirs = build_theirs(changes, dtype)
    theirs.save_pretrained(tmp_path)
    ours = tinyplm.from_pretrained(tmp_path, dtype=dtype)
    for padding in (None, "right", "left"):
        ours.clear_gradients()
        compare(ours, theirs, dtype, padding)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tied": False, "ffn_size": 13, "heads": 6},
        {"scaled_by_depth": True, "activation": "relu", "eps": 0.01},
    ],
    ids=str,
)
def test_a_model_from_here_computes_the_same_there(tmp_path, settings, dtype):
    config = {"vocab_size": 29, "hidden_size": 18, "layers": 2, "heads": 3, "positions": 11}
    rates = {"dropout": 0.0, "embedding_dropout": 0.0, "attention_dropout": 0.0}
    ours = Gpt2(Gpt2Config(**(config | rates | settings)), rng=np.random.default_rng(0))
    rng = np.random.default_rng(1)
    ours.load(
        {n: (0.3 * rng.standard_normal(a.shape)).astype(dtype) for n, a in ours.arrays().items()}
    )
    tinyplm.save_pretrained(ours, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager", dtype=getattr(torch, dtype)
    ).eval()
    for padding in (None, "right", "left"):
        ours.clear_gradients()
        compare(ours, theirs, dtype, padding)
