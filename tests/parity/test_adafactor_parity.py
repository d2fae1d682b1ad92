"""Adafactor beside transformers' own."""

import numpy as np
import pytest

from tinyplm import Tensor
from tinyplm.optim import Adafactor

torch = pytest.importorskip("torch")
optimization = pytest.importorskip("transformers.optimization")

pytestmark = pytest.mark.parity

SHAPES = [(5, 7), (7,), (2, 3, 4), (1, 6), ()]
SETTINGS = {
    "paper": ({"relative": True}, {"relative_step": True}),
    "warm": (
        {"relative": True, "warm": True},
        {"relative_step": True, "warmup_init": True},
    ),
    "T5 fine-tuning": ({}, {"relative_step": False, "lr": 0.003}),
    "unscaled, with decay": (
        {"scaled": False, "weight_decay": 0.1, "clip": 0.3, "decay": 0.6},
        {
            "relative_step": False, "lr": 0.003, "scale_parameter": False, "weight_decay": 0.1,
            "clip_threshold": 0.3, "decay_rate": -0.6,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize(("dtype", "near"), [("float64", 1e-9), ("float32", 1e-5)])
@pytest.mark.parametrize("kind", SETTINGS)
def test_ten_steps_are_the_same(kind, dtype, near):
    ours, theirs = SETTINGS[kind]
    rng = np.random.default_rng(0)
    start = [np.asarray(rng.standard_normal(shape), dtype) for shape in SHAPES]
    start[0][0] *= 1e-5  # some rows are far smaller than others
    mine = {str(i): Tensor(a.copy(), requires_grad=True, dtype=dtype) for i, a in enumerate(start)}
    his = [torch.nn.Parameter(torch.tensor(a)) for a in start]
    here = Adafactor(mine, **ours)
    there = optimization.Adafactor(his, **theirs)
    for step in range(10):
        for i, shape in enumerate(SHAPES):
            g = np.asarray(rng.standard_normal(shape) * 10.0 ** (step % 3 - 1), dtype)
            mine[str(i)].grad, his[i].grad = g, torch.tensor(g)
        here.step(1.0 if ours.get("relative") else 0.003)
        there.step()
        for i, p in enumerate(his):
            expected = p.detach().numpy()
            error = np.abs(mine[str(i)].array - expected).max()
            assert error <= near * np.abs(expected).max()
