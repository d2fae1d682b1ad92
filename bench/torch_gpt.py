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


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project_in = nn.Linear(width, 3 * width)
        self.project_out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, D = x.shape
        q, k, v = (
            part.view(B, T, self.heads, -1).transpose(1, 2)
            for part in self.project_in(x).split(D, 2)
        )
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.project_out(y.transpose(1, 2).reshape(B, T, D))


class _FeedForward(nn.Module):
    def __init__(self, width: int, ffn_size: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, ffn_size)
        self.contract = nn.Linear(ffn_size, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.contract(functional.gelu(self.expand(x), approximate="tanh"))


class _Block(nn.Module):
    def __init__(self, c: Gpt2Config) -> None:
        super().__init__()
        self.attention = _Attention(c.hidden_size, c.heads)
        self.feed_forward = _FeedForward(c.hidden_size, c.ffn_size or 4 * c.hidden_size)
        self.norm_1 = nn.LayerNorm(c.hidden_size, eps=c.eps)
        self.norm_2 = nn.LayerNorm(c.hidden_size, eps=c.eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm_1(x))
        return x + self.feed_forward(self.norm_2(x))


class TorchGpt(nn.Module):
    """GPT-2 with tied embeddings and without dropout; calling it gives logits."""

    def __init__(self, config: Gpt2Config, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Take the weights of a model of ours, by our names."""
        super().__init__()
        c = config
        self.token_embedding = nn.Embedding(c.vocab_size, c.hidden_size)
        self.position_embedding = nn.Embedding(c.positions, c.hidden_size)
        self.blocks = nn.ModuleList(_Block(c) for _ in range(c.layers))
        self.norm = nn.LayerNorm(c.hidden_size, eps=c.eps)
        state = {}
        for name, array in arrays.items():
            stored_in_out = array.ndim == 2 and "embedding" not in name
            values = torch.from_numpy((array.T if stored_in_out else array).copy())
            state[name.replace(".gain", ".weight")] = values
        self.load_state_dict(state)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits (B, T, V)."""
        x = self.token_embedding(ids) + self.position_embedding(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return functional.linear(self.norm(x), self.token_embedding.weight)


class TorchTraining:
    """Updates of a TorchGpt by AdamW with clipping, as ours: matrices decay, all else does not."""

    def __init__(
        self,
        config: Gpt2Config,
        arrays: Mapping[str, np.ndarray[Any, Any]],
        *,
        beta_1: float,
        beta_2: float,
        weight_decay: float,
        clip: float | None,
        fused: bool,
    ) -> None:
        self.model = TorchGpt(config, arrays)
        self.clip = clip
        parameters = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
                {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=0.0,
            betas=(beta_1, beta_2),
            eps=1e-8,
            fused=fused,
            foreach=not fused,
        )

    def loss(self, ids: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> torch.Tensor:
        """Mean nats per token."""
        logits = self.model(torch.from_numpy(ids))
        return functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(labels).flatten())

    def step(
        self, ids: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], rate: float
    ) -> tuple[float, float]:
        """One update; the loss and the gradient norm before it."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(ids, labels)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip or float("inf"))
        self.optimizer.step()
        return loss.item(), norm.item()
