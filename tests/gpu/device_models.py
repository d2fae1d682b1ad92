"""What models are held to on a device, which may be a stand-in: losses, gradients and texts of the CPU."""

import sys
from pathlib import Path

import numpy as np

from tinyplm.backend import to_numpy
from tinyplm.generate import generate
from tinyplm.models.gpt2 import Gpt2, Gpt2Config
from tinyplm.objectives import CausalLM
from tinyplm.optim import AdamW
from tinyplm.train.loop import train

sys.path.append(
    str(Path(__file__).parents[1] / "models")
)  # whose cases are the conformance suite's
from model_cases import CASES

WRITERS = [name for name in CASES if name in ("gpt2", "rnn", "lstm", "gru", "t5", "seq2seq")]
UNIT = 2.0**-24
"""The most that rounding to float32 changes, relatively."""


def learned(name, device, dtype):
    """The loss of a batch, and the gradient of every parameter, as float64."""
    case = CASES[name]
    model = case.model(dtype=dtype).to(device)
    batch = case.objective.prepare(case.batch(3, 10), rng=np.random.default_rng(0))
    loss = case.objective.loss(model, batch)
    loss.backward()
    gradients = {path: to_numpy(p.grad) for path, p in model.named_parameters().items()}
    assert {g.dtype for g in gradients.values()} == {np.dtype(dtype)}
    return loss.item(), {path: g.astype(np.float64) for path, g in gradients.items()}


def assert_learns_as_the_cpu(name):
    """Loss and gradients in float32 err at most four times as much as NumPy's do, and a hundred roundings more."""
    exact, exact_gradients = learned(name, "cpu", "float64")
    plain, plain_gradients = learned(name, "cpu", "float32")
    loss, gradients = learned(name, "cuda", "float32")
    assert abs(loss - exact) <= 4 * abs(plain - exact) + 100 * UNIT * abs(exact)
    assert gradients.keys() == exact_gradients.keys()
    for path, e in exact_gradients.items():
        error, own = (np.abs(g[path] - e).max() for g in (gradients, plain_gradients))
        allowed = 4 * own + 100 * UNIT * np.abs(e).max()
        assert error <= allowed, f"{path}: {error:.2e}, allowed {allowed:.2e}"


def assert_writes_as_the_cpu(name, **settings):
    """The same tokens: greedy ones, and those of a beam search, from prompts of two lengths."""
    case = CASES[name]
    here, there = case.model(), case.model().to("cuda")
    ids, mask = case.ids(2, 5), np.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    given = {"attention_mask": mask, "max_new_tokens": 7, "pad_token_id": 0}
    for more in ({}, {"num_beams": 2}):
        expected = generate(here, ids, **given, **more)
        np.testing.assert_array_equal(generate(there, ids, **given, **more), expected)


STEPS = 200


def losses(device, dtype=None, *, steps=STEPS, rows=8, moved=0.0, graph=None):
    """Of a small GPT-2 that learns a text with a rule: each token follows from the one before, but for one in ten.

    moved: the share of itself by which each weight is moved at random at first. graph: as of `train`.
    """
    config = Gpt2Config(vocab_size=29, hidden_size=64, layers=2, heads=4, positions=48)
    model = Gpt2(config, rng=np.random.default_rng(0))
    rng = np.random.default_rng(1)
    moves = {k: a * (1 + moved * rng.uniform(-1, 1, a.shape)) for k, a in model.arrays().items()}
    model.load({k: a.astype(np.float32) for k, a in moves.items()})
    model.to(device, dtype)
    optimizer = AdamW(model.named_parameters())
    found = train(
        model, CausalLM(), _batches(rows), optimizer, lambda n: 1e-3 * min(1, (n + 1) / 20),
        rng=np.random.default_rng(2), steps=steps, graph=graph,
    )  # fmt: skip
    return np.array([step.loss for step in found])


def _batches(rows):
    rng = np.random.default_rng(3)
    while True:
        ids = rng.integers(29, size=(rows, 49))
        free = rng.random(ids.shape) < 0.1
        for t in range(1, 49):
            ids[:, t] = np.where(free[:, t], ids[:, t], (7 * ids[:, t - 1] + 3) % 29)
        yield {"input_ids": ids}


def assert_float32_learns_alike(graph=None, **size):
    """The curve of the CPU: off by no more than ten times what a last bit of each weight does to it until then.

    Roundings of a step are like such a move, and one after another they are magnified alike. Where that is nothing yet,
    a hundred roundings of the loss are allowed.
    """
    here, moved = losses("cpu", **size), losses("cpu", moved=2 * UNIT, **size)
    there = losses("cuda", graph=graph, **size)
    magnified = np.maximum.accumulate(np.abs(moved - here))
    allowed = 10 * magnified + 100 * UNIT * here
    off = np.abs(there - here)
    assert (off <= allowed).all(), f"step {np.argmax(off / allowed) + 1}: {off.max():.2e}"


def assert_bfloat16_learns_alike(graph=None, **size):
    """In bands of up to twenty steps the mean is that of the CPU in float32, within 1 %.

    A weight and an activation are off by 2^-9 of themselves at most, each otherwise than the next: logits, some sixty
    roundings behind, by 1.5 %, half of them up and half down.
    """
    here, there = losses("cpu", **size), losses("cuda", "bfloat16", graph=graph, **size)
    width = min(20, len(here))
    bands = [x.reshape(-1, width).mean(axis=1) for x in (there, here)]
    np.testing.assert_allclose(*bands, rtol=0.01)
