"""Recurrent layers beside PyTorch's: states, outputs and every gradient, in layers and both directions."""

import numpy as np
import pytest
from accuracy import assert_near

from tinyplm import Tensor
from tinyplm.nn import Recurrent

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

THEIRS = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}
NEAR = {"float64": 1e-10, "float32": 2e-5}
SETTINGS = pytest.mark.parametrize("layers", [1, 3])


def pair(cell, layers, both, dtype):
    """Our layers and theirs with the same weights; theirs have a second bias, which is ours for n of a GRU."""
    rng = np.random.default_rng(0)
    ours = Recurrent(cell, 6, 5, layers=layers, direction="both" if both else "forward", rng=rng)
    ours.load({k: rng.uniform(-0.6, 0.6, a.shape).astype(dtype) for k, a in ours.arrays().items()})
    theirs = THEIRS[cell](6, 5, layers, bidirectional=both, batch_first=True)
    theirs = theirs.to(getattr(torch, dtype))
    with torch.no_grad():
        for suffix, cells in (("", ours.cells), ("_reverse", ours.backward_cells)):
            for i, own in enumerate(cells):
                get = lambda name, i=i, suffix=suffix: getattr(theirs, f"{name}_l{i}{suffix}")  # noqa: E731
                get("weight_ih").copy_(torch.tensor(own.weight_in.array.T))
                get("weight_hh").copy_(torch.tensor(own.weight.array.T))
                get("bias_ih").copy_(torch.tensor(own.bias.array))
                get("bias_hh").zero_()
                if cell == "gru":
                    get("bias_hh")[10:] = torch.tensor(own.bias_reset.array)
    return ours, theirs


def states(ours, rng, dtype):
    """States to begin with, as ours and as theirs."""
    drawn = [
        [rng.uniform(-1, 1, (3, 5)).astype(dtype) for _ in range(cell.states)]
        for cell in ours.columns
    ]
    own = [tuple(Tensor(part, requires_grad=True) for part in state) for state in drawn]
    stacked = [torch.tensor(np.stack(parts)).requires_grad_() for parts in zip(*drawn, strict=True)]
    return own, stacked


@SETTINGS
@pytest.mark.parametrize("both", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("cell", THEIRS)
def test_outputs_states_and_every_gradient_agree(cell, layers, both, dtype):
    rng, near = np.random.default_rng(1), NEAR[dtype]
    ours, theirs = pair(cell, layers, both, dtype)
    x = rng.uniform(-1, 1, (3, 7, 6)).astype(dtype)
    own_x, their_x = Tensor(x, requires_grad=True), torch.tensor(x).requires_grad_()
    before, their_before = states(ours, rng, dtype)
    y, after = ours(own_x, before)
    their_y, their_after = theirs(
        their_x, tuple(their_before) if cell == "lstm" else their_before[0]
    )
    their_after = their_after if cell == "lstm" else (their_after,)
    assert_near(y.array, their_y.detach().numpy(), near, "output")
    for i, state in enumerate(after):
        for part, expected in zip(state, their_after, strict=True):
            assert_near(part.array, expected[i].detach().numpy(), near, f"state {i}")
    w = rng.uniform(0.5, 1.5, y.shape).astype(dtype)
    total, their_total = (y * w).sum(), (their_y * torch.tensor(w)).sum()
    for i, state in enumerate(after):
        for part, expected in zip(state, their_after, strict=True):
            total, their_total = total + (part * part).sum(), their_total + (expected[i] ** 2).sum()
    total.backward()
    their_total.backward()
    assert_near(own_x.grad, their_x.grad.numpy(), near, "gradient of x")
    for i, state in enumerate(before):
        for part, expected in zip(state, their_before, strict=True):
            assert_near(part.grad, expected.grad[i].numpy(), near, f"gradient of state {i}")
    for suffix, cells in (("", ours.cells), ("_reverse", ours.backward_cells)):
        for i, own in enumerate(cells):
            expected = {
                name: getattr(theirs, f"{name}_l{i}{suffix}").grad.numpy()
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            }
            assert_near(own.weight_in.grad, expected["weight_ih"].T, near, f"weight_in {i}{suffix}")
            assert_near(own.weight.grad, expected["weight_hh"].T, near, f"weight {i}{suffix}")
            assert_near(own.bias.grad, expected["bias_ih"], near, f"bias {i}{suffix}")
            if cell == "gru":
                assert_near(own.bias_reset.grad, expected["bias_hh"][10:], near, f"reset {i}")


@SETTINGS
@pytest.mark.parametrize("cell", THEIRS)
def test_padded_texts_are_their_packed_sequences(cell, layers):
    rng, lengths = np.random.default_rng(2), np.array([7, 2, 4])
    ours, theirs = pair(cell, layers, True, "float64")
    x = rng.uniform(-1, 1, (3, 7, 6))
    real = np.arange(7) < lengths[:, None]
    y, after = ours(Tensor(x), real=real)
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        torch.tensor(x), torch.tensor(lengths), batch_first=True, enforce_sorted=False
    )
    their_y, their_after = theirs(packed)
    their_y, _ = torch.nn.utils.rnn.pad_packed_sequence(their_y, batch_first=True)
    assert_near(y.array[real], their_y.detach().numpy()[real], 1e-10)
    their_after = their_after if cell == "lstm" else (their_after,)
    for i, state in enumerate(after):
        for part, expected in zip(state, their_after, strict=True):
            assert_near(part.array, expected[i].detach().numpy(), 1e-10)


def test_additive_attention_over_packed_sources_is_theirs_by_hand():
    """Bahdanau's scores, weights and context, written out in PyTorch."""
    from tinyplm.models.seq2seq import Seq2Seq, Seq2SeqConfig
    from tinyplm.nn import Inspection

    config = Seq2SeqConfig(
        cell="gru", vocab_size=11, embedding_size=4, hidden_size=6, layers=1, bidirectional=True,
        attention="additive", init_std=0.5,
    )  # fmt: skip
    model = Seq2Seq(config, rng=np.random.default_rng(0))
    model.load({k: a.astype("float64") for k, a in model.arrays().items()})
    arrays = {k: torch.tensor(np.array(a)) for k, a in model.arrays().items()}
    rng = np.random.default_rng(3)
    source, target = rng.integers(11, size=(2, 5)), rng.integers(11, size=(2, 3))
    mask = np.array([[1] * 5, [1, 1, 1, 0, 0]])
    look = Inspection()
    hidden = model(source, attention_mask=mask, decoder_input_ids=target, inspection=look)
    memory = model.encode(source, attention_mask=mask)
    e, s = torch.tensor(memory.annotations.numpy()), torch.tensor(memory.states[0][0].numpy())
    a = arrays
    for t in range(3):
        scores = torch.tanh((s @ a["score.project_query"])[:, None] + e @ a["score.project_key"])
        scores = (scores @ a["score.weight"]).masked_fill(torch.tensor(mask == 0), -torch.inf)
        weights = torch.softmax(scores, -1)
        context = (weights[..., None] * e).sum(1)
        assert_near(look.cross_attentions[0].array[:, 0, t], weights.numpy(), 1e-12)
        y = a["target_embedding.weight"][target[:, t]]
        told = torch.cat([s, y, context], -1) @ a["output.weight"] + a["output.bias"]
        assert_near(hidden.array[:, t], told.reshape(2, 6, 2).amax(-1).numpy(), 1e-12)
        x = torch.cat([y, context], -1)
        r, z, n = (x @ a["decoder.cells.0.weight_in"] + a["decoder.cells.0.bias"]).chunk(3, -1)
        v, w, u = (s @ a["decoder.cells.0.weight"]).chunk(3, -1)
        r, z = torch.sigmoid(r + v), torch.sigmoid(z + w)
        n = torch.tanh(n + r * (u + a["decoder.cells.0.bias_reset"]))
        s = (1 - z) * n + z * s
