"""T5 beside transformers' T5ForConditionalGeneration: results, gradients, folders, and what it writes.

Transformers computes norms and softmaxes of T5 in float32 whatever the weights are; for the comparison in float64 these
two are made to compute in it too.
"""

import numpy as np
import pytest

import tinyplm
from tinyplm.generate import beam_search, generate
from tinyplm.nn import Inspection
from tinyplm.nn.position import buckets_of
from tinyplm.objectives import Objective

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
modeling = pytest.importorskip("transformers.models.t5.modeling_t5")

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:Using the model-agnostic default"),
]

V = 37
SHAPE = {
    "vocab_size": V, "d_model": 24, "d_kv": 5, "d_ff": 32, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4,
    "dropout_rate": 0.0, "decoder_start_token_id": 0, "pad_token_id": 3, "eos_token_id": 1,
}  # fmt: skip
KINDS = {
    "v1.0": {"feed_forward_proj": "relu"},
    "v1.1": {"feed_forward_proj": "gated-gelu", "scale_decoder_outputs": False},
    "few buckets": {"relative_attention_num_buckets": 6, "relative_attention_max_distance": 9},
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def built(kind, seed=0, spread=0.3, dtype=torch.float64):
    torch.manual_seed(seed)
    config = transformers.T5Config(**SHAPE, **KINDS[kind])
    config._attn_implementation = "eager"
    model = transformers.T5ForConditionalGeneration(config).eval()
    if kind == "v1.1":
        model.lm_head.weight = torch.nn.Parameter(torch.zeros(V, 24))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * spread)
    return model.to(dtype)


@pytest.fixture
def in_float64(monkeypatch):
    def norm(self, x):
        return (
            self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        )

    monkeypatch.setattr(modeling.T5LayerNorm, "forward", norm)
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)


def read(model, folder, dtype):
    model.save_pretrained(folder)
    return tinyplm.from_pretrained(folder, dtype=dtype)


def batch(seed=0):
    rng = np.random.default_rng(seed)
    ids, labels = rng.integers(V, size=(3, 150)), rng.integers(V, size=(3, 140))
    mask = np.ones_like(ids)
    mask[1, 90:], mask[2, :30] = 0, 0  # padding on the right, and on the left
    labels[1, 60:] = -100
    decoder = np.concatenate([np.zeros((3, 1), int), np.maximum(labels[:, :-1], 0)], axis=1)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "decoder_input_ids": decoder,
        "labels": labels,
    }


def near(ours, theirs, tolerance):
    theirs = theirs.detach().numpy()
    assert np.abs(ours - theirs).max() <= tolerance * max(1e-30, np.abs(theirs).max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-4)])
def test_logits_states_loss_and_all_gradients_agree(kind, dtype, tolerance, tmp_path, request):
    if dtype == "float64":
        request.getfixturevalue("in_float64")
    theirs = built(kind, dtype=getattr(torch, dtype))
    ours, given = read(theirs, tmp_path, dtype), batch()
    there = theirs(
        **{k: torch.tensor(v) for k, v in given.items()},
        output_hidden_states=True,
        output_attentions=True,
    )
    look = Inspection()
    hidden = Objective().read(ours, given)
    again = ours(
        given["input_ids"],
        attention_mask=given["attention_mask"],
        decoder_input_ids=given["decoder_input_ids"],
        inspection=look,
    )
    near(again.array, there.decoder_hidden_states[-1], tolerance)
    near(ours.head(hidden).array, there.logits, tolerance)
    pairs = (
        (look.encoder_hidden_states, there.encoder_hidden_states),
        (look.hidden_states, there.decoder_hidden_states),
        (look.encoder_attentions, there.encoder_attentions),
        (look.attentions, there.decoder_attentions),
        (look.cross_attentions, there.cross_attentions),
    )
    real = given["attention_mask"].astype(bool)
    for mine, his in pairs:
        assert len(mine) == len(his)
        for a, b in zip(mine, his, strict=True):
            if a.shape[1:] == (150, 24):  # padding may be anything
                near(a.array[real], b[torch.tensor(real)], tolerance)
            elif a.shape[2] == 150:
                rows = a.array.swapaxes(1, 2)[real], b.transpose(1, 2)[torch.tensor(real)]
                near(rows[0], rows[1], tolerance)
            else:
                near(a.array, b, tolerance)
    loss = Objective().loss(ours, given)
    assert abs(loss.item() - there.loss.item()) <= tolerance * there.loss.item()
    loss.backward()
    there.loss.backward()
    gradients = {name: p.grad for name, p in ours.named_parameters().items()}
    from tinyplm.hub import t5

    found = t5.write_arrays(ours.config, gradients)
    expected = {name: p.grad for name, p in theirs.named_parameters()}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        near(gradient, expected[name], tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_we_write_is_the_same_model_there(kind, tmp_path):
    theirs, given = built(kind), batch()
    ours = read(theirs, tmp_path / "theirs", "float64")
    tinyplm.save_pretrained(ours, tmp_path / "ours")
    again = transformers.T5ForConditionalGeneration.from_pretrained(
        tmp_path / "ours", dtype=torch.float64, attn_implementation="eager"
    )
    torch_batch = {k: torch.tensor(v) for k, v in given.items()}
    assert torch.equal(again(**torch_batch).logits, theirs(**torch_batch).logits)
    # And a folder written there after being read from ours, which says more of tied weights.
    again.save_pretrained(tmp_path / "again")
    back = tinyplm.from_pretrained(tmp_path / "again", dtype="float64")
    for name, array in ours.arrays().items():
        np.testing.assert_array_equal(back.arrays()[name], array)
    assert back.config == ours.config


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "far"), [(32, 128), (6, 9), (64, 500), (8, 128), (16, 17)])
def test_buckets_are_those_of_transformers(bidirectional, buckets, far):
    difference = np.arange(-3_000, 3_001)
    theirs = modeling.T5Attention._relative_position_bucket(
        torch.tensor(difference), bidirectional, buckets, far
    )
    ours = buckets_of(difference, buckets=buckets, max_distance=far, bidirectional=bidirectional)
    np.testing.assert_array_equal(ours, theirs.numpy())


WRITING = {
    "greedy": {},
    "greedy, least length": {"min_length": 6},
    "penalties": {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
    "beams": {"num_beams": 4},
    "beams, early": {"num_beams": 3, "early_stopping": True, "num_return_sequences": 2},
    "beams, never, longer": {"num_beams": 3, "early_stopping": "never", "length_penalty": 2.0},
    "beams, shorter": {"num_beams": 2, "length_penalty": -1.0, "max_length": 9},
}


@pytest.mark.parametrize("cached", [True, False], ids=["cache", "no cache"])
@pytest.mark.parametrize("settings", WRITING.values(), ids=WRITING)
@pytest.mark.parametrize("kind", ["v1.0", "v1.1"])
def test_it_writes_the_same_tokens(kind, settings, cached, tmp_path):
    for seed in range(2 if cached else 1):
        theirs = built(kind, seed=seed, spread=0.6)
        ours = read(theirs, tmp_path / str(seed), "float64")
        rng = np.random.default_rng(seed)
        ids = rng.integers(4, V, size=(4, 9))
        mask = np.ones_like(ids)
        mask[1, 5:], mask[2, :3], mask[3, 1:] = 0, 0, 0
        ids[mask == 0] = 3
        expected = theirs.generate(
            torch.tensor(ids), attention_mask=torch.tensor(mask), do_sample=False, **settings
        ).numpy()
        ends = {"eos_token_id": 1, "pad_token_id": 3}  # transformers takes 0 for no padding
        found = generate(ours, ids, attention_mask=mask, use_cache=cached, **ends, **settings)
        np.testing.assert_array_equal(found, expected)
        guessed = generate(ours, ids, use_cache=cached, **ends, **settings)
        np.testing.assert_array_equal(guessed, expected)


def test_beams_have_the_same_scores(tmp_path):
    theirs = built("v1.0", spread=0.6)
    ours = read(theirs, tmp_path, "float64")
    ids = np.random.default_rng(0).integers(2, V, size=(2, 8))
    there = theirs.generate(
        torch.tensor(ids), attention_mask=torch.ones(2, 8), num_beams=3, num_return_sequences=3,
        do_sample=False, return_dict_in_generate=True, output_scores=True, max_new_tokens=6,
    )  # fmt: skip
    here = beam_search(
        ours, ids, num_beams=3, num_return_sequences=3, max_new_tokens=6, eos_token_id=1
    )
    np.testing.assert_allclose(here.scores, there.sequences_scores.numpy(), rtol=1e-5)
