"""The same GPT-2 in PyTorch, written as one would for speed: fused attention, fused layer norm, fused AdamW.

Imported only where PyTorch is installed. Attributes have the names of `tinyplm.models.gpt2`, so weights carry over.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from tinyplm.models.gpt2 import Gpt2Config

Past = tuple[torch.Tensor, torch.Tensor, int]
"""Room for keys and for values of one layer, and how much of it is filled."""


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.project_in = nn.Linear(width, 3 * width)
        self.project_out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, past: Past | None = None) -> torch.Tensor:
        B, T, D = x.shape
        q, k, v = (
            part.view(B, T, self.heads, -1).transpose(1, 2)
            for part in self.project_in(x).split(D, 2)
        )
        causal = self.causal
        if past:
            keys, values, start = past
            keys[:, :, start : start + T], values[:, :, start : start + T] = k, v
            k, v = keys[:, :, : start + T], values[:, :, : start + T]
            causal = start == 0
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.project_out(y.transpose(1, 2).reshape(B, T, D))


class _FeedForward(nn.Module):
    def __init__(self, width: int, ffn_size: int, gelu: str) -> None:
        super().__init__()
        self.gelu = gelu
        self.expand = nn.Linear(width, ffn_size)
        self.contract = nn.Linear(ffn_size, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.contract(functional.gelu(self.expand(x), approximate=self.gelu))


class Block(nn.Module):
    """Attention and feed-forward with norms before them."""

    def __init__(
        self,
        width: int,
        heads: int,
        ffn_size: int,
        *,
        eps: float = 1e-5,
        causal: bool = True,
        gelu: str = "tanh",
    ) -> None:
        super().__init__()
        self.attention = _Attention(width, heads, causal)
        self.feed_forward = _FeedForward(width, ffn_size, gelu)
        self.norm_1 = nn.LayerNorm(width, eps=eps)
        self.norm_2 = nn.LayerNorm(width, eps=eps)

    def forward(self, x: torch.Tensor, past: Past | None = None) -> torch.Tensor:
        """From (B, T, D) to the same."""
        x = x + self.attention(self.norm_1(x), past)
        return x + self.feed_forward(self.norm_2(x))


def load(module: nn.Module, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Give a module the weights of one of ours; a matrix of ours is stored the other way around."""
    state = {}
    for name, array in arrays.items():
        turned = array.ndim == 2 and "embedding" not in name
        values = torch.from_numpy((array.T if turned else array).copy())
        state[name.replace(".gain", ".weight")] = values
    module.load_state_dict(state)


class TorchGpt(nn.Module):
    """GPT-2 with tied embeddings and without dropout; calling it gives logits."""

    def __init__(self, config: Gpt2Config, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
        """Take the weights of a model of ours, by our names."""
        super().__init__()
        c = config
        self.token_embedding = nn.Embedding(c.vocab_size, c.hidden_size)
        self.position_embedding = nn.Embedding(c.positions, c.hidden_size)
        self.blocks = nn.ModuleList(
            Block(c.hidden_size, c.heads, c.ffn_size or 4 * c.hidden_size, eps=c.eps)
            for _ in range(c.layers)
        )
        self.norm = nn.LayerNorm(c.hidden_size, eps=c.eps)
        self.head = nn.Linear(c.hidden_size, c.vocab_size, bias=False)
        self.head.weight = self.token_embedding.weight
        load(self, arrays | {"head.weight": arrays["token_embedding.weight"].T})

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits (B, T, V)."""
        x = self.token_embedding(ids) + self.position_embedding(
            torch.arange(ids.shape[1], device=ids.device)
        )
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    def greedy(self, ids: torch.Tensor, new: int) -> torch.Tensor:
        """Ids with so many of the most probable tokens behind them; keys and values are kept in place."""
        B, T = ids.shape
        attention, dtype = self.blocks[0].attention, self.token_embedding.weight.dtype
        width = self.token_embedding.embedding_dim
        shape = (len(self.blocks), 2, B, attention.heads, T + new, width // attention.heads)
        room, start, text = torch.empty(shape, dtype=dtype), 0, [ids]
        for _ in range(new):
            places = torch.arange(start, start + text[-1].shape[1])
            x = self.token_embedding(text[-1]) + self.position_embedding(places)
            for block, (keys, values) in zip(self.blocks, room, strict=True):
                x = block(x, (keys, values, start))
            start += x.shape[1]
            text.append(self.head(self.norm(x[:, -1:])).argmax(-1))
        return torch.cat(text, 1)


class TorchTraining:
    """Updates of a TorchGpt by AdamW with clipping, as ours: matrices decay, all else does not."""

    def __init__(
        self,
        config: Gpt2Config,
        arrays: dict[str, np.ndarray[Any, Any]],
        *,
        beta_1: float,
        beta_2: float,
        weight_decay: float,
        clip: float | None,
        bf16: bool = False,
        compiled: str = "",
    ) -> None:
        self.model = TorchGpt(config, arrays)
        self.clip, self.bf16 = clip, bf16
        self.loss = torch.compile(self._loss) if compiled == "whole" else self._loss
        for block in self.model.blocks if compiled == "blocks" else ():
            block.compile()
        parameters = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
                {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=0.0,
            betas=(beta_1, beta_2),
            eps=1e-8,
            fused=True,
        )

    def _loss(self, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean nats per token."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            logits = self.model(ids)
            return functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

    def step(
        self, ids: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], rate: float
    ) -> tuple[float, float]:
        """One update; the loss and the gradient norm before it."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(torch.from_numpy(ids), torch.from_numpy(labels))
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip or float("inf"))
        self.optimizer.step()
        return loss.item(), norm.item()
