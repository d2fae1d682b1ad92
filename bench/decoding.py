"""Greedy decoding of GPT-2 with a cache, one text: tokens per second. The floor is reading the weights once a token.

In float32 and, where this package offers weights in fewer bytes, in bfloat16 and int8. Logits are compared over the
text that ours wrote rather than the tokens: with random weights the best two tokens nearly tie now and then.
"""

import tempfile
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

import tinyplm
from tinyplm import no_grad
from tinyplm.generate import generate
from tinyplm.hub import save_pretrained
from tinyplm.models.gpt2 import SIZES, Gpt2, Gpt2Config

from . import floors
from .measure import BenchError, Options, Record, measure, note, require_close
from .workers import Entry, Worker, crew

PROMPT = 32
KINDS = {"float32": (4, 1e-4), "bfloat16": (2, 0.05), "int8": (1, 0.1)}
"""Bytes of a weight, and how far logits may be apart, as a share of the largest."""


def run(options: Options) -> Iterator[Record]:
    """GPT-2 of 124 million parameters, or a tiny one."""
    if options.quick:
        c = Gpt2Config(vocab_size=1000, hidden_size=64, layers=2, heads=2, positions=128)
    else:
        c = SIZES["small"]
    new = 16 if options.quick else 48
    weights = Gpt2(c, rng=None).parameter_count - c.positions * c.hidden_size
    for kind, (size, tolerance) in KINDS.items():
        if kind != "float32" and not hasattr(tinyplm, "quantize"):
            note(f"decoding: this version of tinyplm has no weights in {kind}; not timed.")
            continue
        with crew(_entries(c, new, kind, options)) as workers:
            _agree(workers, tolerance)
            read = floors.read_rate(size * weights, options.threads)
            yield from measure(
                workers,
                benchmark="decoding",
                what=f"GPT-2 {c.layers} layers, {c.hidden_size} wide: greedy with cache",
                shapes=f"1x{PROMPT}, {new} new tokens, vocabulary {c.vocab_size}",
                dtype=kind,
                options=options,
                rounds=3,
                repeats=2,
                work={"tokens": new},
                floor=(
                    new * size * weights / read,
                    f"{size * weights / 1e6:.0f} MB of weights a token, read at {read / 1e9:.1f} GB/s",
                ),
            )


def _agree(workers: list[Worker], tolerance: float) -> None:
    text = workers[0].run()
    right = workers[0].ask(_logits, text)
    for worker in workers[1:]:
        require_close(f"logits of {worker.variant}", right, worker.ask(_logits, text), tolerance)
        if worker.run().shape != text.shape:
            raise BenchError(f"{worker.variant} wrote another number of tokens than {text.shape}.")


def _logits(built: Any, ids: Any) -> Any:
    return built.logits(ids)


def _entries(c: Gpt2Config, new: int, kind: str, options: Options) -> list[Entry]:
    found: list[Entry] = [("ours", f"generate {kind}", partial(Ours, c, new, kind))]
    for peer in dict.fromkeys((kind, "float32")) if options.has("torch") else ():
        # Not everywhere are fewer bytes faster for a peer: its best way may be float32.
        found.append(("torch", f"loop, cache in place, {peer}", partial(Torch, c, new, peer)))
    if kind != "int8" and options.has("torch", "transformers"):
        found.append(("transformers", f"loop {kind}", partial(Transformers, c, new, kind)))
    return found


class Ours:
    """This package's."""

    def __init__(self, c: Gpt2Config, new: int, kind: str) -> None:
        self.model, self.new = _model(c), new
        self.prompt = np.random.default_rng(1).integers(0, c.vocab_size, (1, PROMPT))
        if kind != "float32":
            self.model = tinyplm.quantize(self.model, kind)

    def __call__(self) -> Any:
        return generate(self.model, self.prompt, max_new_tokens=self.new)

    def logits(self, ids: Any) -> Any:
        """Over a text."""
        with no_grad():
            return self.model.head(self.model(ids)).numpy()


class Torch:
    """PyTorch's, written by hand: transformers does more at each token than greedy decoding needs."""

    def __init__(self, c: Gpt2Config, new: int, kind: str) -> None:
        import torch

        from .torch_gpt import TorchGpt

        model = TorchGpt(c, _model(c).arrays()).eval()
        if kind == "bfloat16":
            model = model.bfloat16()
        if kind == "int8":
            parts = {torch.nn.Linear}
            model = torch.ao.quantization.quantize_dynamic(model, parts, dtype=torch.qint8)
        prompt = np.random.default_rng(1).integers(0, c.vocab_size, (1, PROMPT))
        self.model, self.new, self.prompt = model, new, torch.from_numpy(prompt)

    def __call__(self) -> Any:
        import torch

        with torch.inference_mode():
            return self.model.greedy(self.prompt, self.new).numpy()

    def logits(self, ids: Any) -> Any:
        """Over a text."""
        import torch

        with torch.inference_mode():
            return self.model(torch.from_numpy(ids)).float().numpy()


class Transformers:
    """The transformers library's, by a plain loop around its model: its `generate` does more and takes longer."""

    def __init__(self, c: Gpt2Config, new: int, kind: str) -> None:
        import torch
        from transformers import GPT2LMHeadModel
        from transformers.utils import logging

        logging.disable_progress_bar()
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            save_pretrained(_model(c), folder)
            model = GPT2LMHeadModel.from_pretrained(
                folder, attn_implementation="sdpa", dtype=getattr(torch, kind)
            ).eval()
        prompt = np.random.default_rng(1).integers(0, c.vocab_size, (1, PROMPT))
        self.model, self.new, self.prompt = model, new, torch.from_numpy(prompt)

    def __call__(self) -> Any:
        import torch

        with torch.inference_mode():
            return self._loop(torch).numpy()

    def _loop(self, torch: Any) -> Any:
        given, past, found = self.prompt, None, [self.prompt]
        for _ in range(self.new):
            out = self.model(given, past_key_values=past, use_cache=True, logits_to_keep=1)
            past, given = out.past_key_values, out.logits[:, -1].argmax(-1, keepdim=True)
            found.append(given)
        return torch.cat(found, 1)

    def logits(self, ids: Any) -> Any:
        """Over a text."""
        import torch

        with torch.inference_mode():
            return self.model(torch.from_numpy(ids)).logits.float().numpy()


def _model(c: Gpt2Config) -> Gpt2:
    return Gpt2(c, rng=np.random.default_rng(0))
