"""Greedy decoding with a cache: ours beside transformers, from the same random weights, one prompt."""

import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from tinyplm import no_grad
from tinyplm.generate import generate
from tinyplm.hub import save_pretrained
from tinyplm.models.gpt2 import SIZES, Gpt2, Gpt2Config

from .measure import Contestant, Options, Record, WrongResultError, measure, torch_or_none

PROMPT = 32


def run(options: Options) -> Iterator[Record]:
    """A third of GPT-2 small by default; small itself, whose weights are 0.5 GB, when asked for."""
    if options.gpt2_small:
        c = SIZES["small"]
    elif options.quick:
        c = Gpt2Config(vocab_size=1000, hidden_size=64, layers=2, heads=2, positions=128)
    else:
        c = Gpt2Config(hidden_size=384, layers=6, heads=6)
    new = 16 if options.quick else 64
    rng = np.random.default_rng(0)
    model = Gpt2(c, rng=rng)
    prompt = rng.integers(0, c.vocab_size, (1, PROMPT))

    def ours() -> Any:
        return generate(model, prompt, max_new_tokens=new)

    contestants = [Contestant(library="ours", variant="generate", run=ours)]
    if torch := torch_or_none(options, "transformers"):
        contestants += _transformers(torch, model, prompt, new, ours())
    yield from measure(
        contestants,
        benchmark="decoding",
        what=f"GPT-2 {c.layers} layers, {c.hidden_size} wide: greedy with cache",
        shapes=f"1x{PROMPT}, {new} new tokens, vocabulary {c.vocab_size}",
        options=options,
        rounds=2 if options.quick else 4,
        repeats=2,
        work={"tokens": new},
    )


def _transformers(torch: Any, model: Gpt2, prompt: Any, new: int, ours: Any) -> list[Contestant]:
    from transformers import GPT2LMHeadModel
    from transformers.utils import logging

    logging.disable_progress_bar()

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        save_pretrained(model, folder)
        peer = GPT2LMHeadModel.from_pretrained(folder, attn_implementation="sdpa").eval()
    peer.generation_config.eos_token_id = None  # random weights may choose it, and would stop early
    peer.generation_config.pad_token_id = 0
    ids = torch.from_numpy(prompt)

    def theirs() -> Any:
        with torch.inference_mode():
            return peer.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                do_sample=False,
                use_cache=True,
            )

    def loop() -> Any:
        """Their model without their `generate`, which does more at each token than a greedy loop needs."""
        with torch.inference_mode():
            given, past, found = ids, None, [ids]
            for _ in range(new):
                out = peer(given, past_key_values=past, use_cache=True, logits_to_keep=1)
                past, given = out.past_key_values, out.logits[:, -1].argmax(-1, keepdim=True)
                found.append(given)
            return torch.cat(found, 1)

    # Equal logits over the text that ours wrote, rather than equal tokens: random weights nearly tie now and then.
    with torch.inference_mode(), no_grad():
        right = peer(torch.from_numpy(ours)).logits.numpy()
        found = model.head(model(ours)).numpy()
    error = abs(found - right).max() / abs(right).max()
    if not error <= 1e-4:
        raise WrongResultError(f"logits of ours and of transformers differ by {error:.1e}.")
    for name, text in (("generate", theirs()), ("loop", loop())):
        if text.shape != ours.shape:
            raise WrongResultError(f"{name} wrote {text.shape}, ours {ours.shape}.")
    return [
        Contestant(library="transformers", variant="generate", run=theirs),
        Contestant(library="transformers", variant="plain greedy loop", run=loop),
    ]
