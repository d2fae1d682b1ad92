"""Training against PyTorch: the same weights and batches, ten updates, the same losses."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tinyplm  # noqa: E402
from tinyplm.hub.gpt2 import write_arrays  # noqa: E402
from tinyplm.objectives import CausalLM  # noqa: E402
from tinyplm.optim import SGD, AdamW  # noqa: E402
from tinyplm.optim.schedule import cosine  # noqa: E402
from tinyplm.train.loop import train  # noqa: E402

pytestmark = pytest.mark.parity

STEPS, VOCAB, POSITIONS, DECAY = 10, 37, 17, 0.1
CLIP = 0.3  # some updates are clipped, some are not


def schedule(step):
    return cosine(step, peak=1e-2, warmup=3, total=STEPS, floor=1e-3)


@pytest.fixture
def theirs():
    torch.set_num_threads(1)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=VOCAB, n_positions=POSITIONS, n_embd=24, n_layer=3, n_head=3,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1, eos_token_id=2,
        )
    ).double()  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            # Values of float32, so that both precisions begin with the same weights.
            p.copy_((0.2 * torch.randn(p.shape, generator=generator)).float().double())
    return model


def batches():
    """Large batches of unequal texts."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(STEPS):
        lengths = rng.integers(2, POSITIONS + 2, size=(6, 1))
        mask = (np.arange(POSITIONS + 1) < lengths) * 1
        made.append(
            {"input_ids": rng.integers(VOCAB, size=(6, POSITIONS + 1)), "attention_mask": mask}
        )
    return made


def trained_there(model, make):
    """Losses and gradient norms of PyTorch, in float64."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = make(
        [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    )
    losses, norms = [], []
    for step, batch in enumerate(batches()):
        ids, mask = (torch.from_numpy(batch[k]) for k in ("input_ids", "attention_mask"))
        logits = model(ids[:, :-1], attention_mask=mask[:, :-1]).logits
        used = mask[:, 1:].bool()
        loss = torch.nn.functional.cross_entropy(logits[used], ids[:, 1:][used])
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP).item())
        for group in optimizer.param_groups:
            group["lr"] = schedule(step)
        optimizer.step()
        losses.append(loss.item())
    return np.array(losses), np.array(norms)


def trained_here(model, make, accumulate):
    size = 6 // accumulate
    small = (
        {key: value[i : i + size] for key, value in batch.items()}
        for batch in batches()
        for i in range(0, 6, size)
    )
    records = list(
        train(
            model, CausalLM(), small, make(model.named_parameters()), schedule,
            rng=np.random.default_rng(0), steps=STEPS, accumulate=accumulate, clip=CLIP,
        )
    )  # fmt: skip
    return np.array([r.loss for r in records]), np.array([r.gradient_norm for r in records])


def adamw_there(groups):
    return torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95), eps=1e-8)


def adamw_here(named):
    return AdamW(named, beta_2=0.95, weight_decay=DECAY)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_ten_clipped_and_scheduled_updates_equal_those_of_pytorch(tmp_path, theirs, accumulate):
    theirs.save_pretrained(tmp_path)
    ours = tinyplm.from_pretrained(tmp_path, dtype="float64")
    their_losses, their_norms = trained_there(theirs, adamw_there)
    losses, norms = trained_here(ours, adamw_here, accumulate)
    assert (their_norms > CLIP).any()
    assert (their_norms < CLIP).any()
    np.testing.assert_allclose(losses, their_losses, rtol=0, atol=1e-9)
    np.testing.assert_allclose(norms, their_norms, rtol=1e-9)
    parameters = dict(theirs.named_parameters())
    for name, array in write_arrays(ours.config, ours.arrays()).items():
        expected = parameters[name].detach().numpy()
        np.testing.assert_allclose(array, expected, rtol=0, atol=1e-9, err_msg=name)


def test_ten_updates_in_float32_stay_near_those_of_pytorch_in_float64(tmp_path, theirs):
    theirs.save_pretrained(tmp_path)
    ours = tinyplm.from_pretrained(tmp_path, dtype="float32")
    their_losses, _ = trained_there(theirs, adamw_there)
    losses, _ = trained_here(ours, adamw_here, 1)
    gap = np.abs(losses - their_losses).max()
    assert gap <= 1e-4, f"float32 losses differ by {gap:.1e} nats from float64 within ten updates"


def test_momentum_without_decay_equals_that_of_pytorch(tmp_path, theirs):
    # With decay PyTorch adds it to the gradient, before the momentum; here it stays out of it.
    theirs.save_pretrained(tmp_path)
    ours = tinyplm.from_pretrained(tmp_path, dtype="float64")
    their_losses, _ = trained_there(
        theirs,
        lambda groups: torch.optim.SGD(
            [group | {"weight_decay": 0.0} for group in groups], lr=1.0, momentum=0.9
        ),
    )
    losses, _ = trained_here(ours, lambda named: SGD(named, momentum=0.9), 1)
    np.testing.assert_allclose(losses, their_losses, rtol=0, atol=1e-9)
