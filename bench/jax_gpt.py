"""The same GPT-2 in JAX, compiled as one function whose weights and moments are donated.

Imported only where JAX is installed. Weights are a dictionary by our names.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from tinyplm.models.gpt2 import Gpt2Config

Weights = Mapping[str, Any]


def block(w: Weights, at: str, x: Any, *, heads: int, eps: float, causal: bool, tanh: bool) -> Any:
    """Attention and feed-forward with norms before them; the weights' names begin with `at`."""
    B, T, D = x.shape
    qkv = linear(w, f"{at}.attention.project_in", norm(w, f"{at}.norm_1", x, eps))
    q, k, v = jnp.moveaxis(qkv.reshape(B, T, 3, heads, D // heads), 2, 0)
    y = jax.nn.dot_product_attention(q, k, v, is_causal=causal).reshape(B, T, D)
    x = x + linear(w, f"{at}.attention.project_out", y)
    y = linear(w, f"{at}.feed_forward.expand", norm(w, f"{at}.norm_2", x, eps))
    return x + linear(w, f"{at}.feed_forward.contract", jax.nn.gelu(y, approximate=tanh))


def linear(w: Weights, at: str, x: Any) -> Any:
    """X W + b."""
    return x @ w[f"{at}.weight"] + w[f"{at}.bias"]


def norm(w: Weights, at: str, x: Any, eps: float) -> Any:
    """Layer norm."""
    x = x - x.mean(-1, keepdims=True)
    scale = jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + eps)
    return x * scale * w[f"{at}.gain"] + w[f"{at}.bias"]


def loss(w: Weights, ids: Any, labels: Any, c: Gpt2Config) -> Any:
    """Mean nats per token."""
    x = w["token_embedding.weight"][ids] + w["position_embedding.weight"][: ids.shape[1]]
    for i in range(c.layers):
        x = block(w, f"blocks.{i}", x, heads=c.heads, eps=c.eps, causal=True, tanh=True)
    logits = norm(w, "norm", x, c.eps) @ w["token_embedding.weight"].T
    at_label = jnp.take_along_axis(logits, labels[..., None], -1)[..., 0]
    return (jax.nn.logsumexp(logits, -1) - at_label).mean()


class JaxTraining:
    """Updates by AdamW with clipping, as ours: matrices decay, all else does not."""

    def __init__(
        self,
        config: Gpt2Config,
        arrays: Weights,
        *,
        beta_1: float,
        beta_2: float,
        weight_decay: float,
        clip: float,
    ) -> None:
        self.config, self.clip, self.decay = config, clip, weight_decay
        self.betas = beta_1, beta_2
        weights = {name: jnp.array(array) for name, array in arrays.items()}
        zeros = [{name: jnp.zeros_like(p) for name, p in weights.items()} for _ in range(2)]
        self.state = (weights, *zeros, jnp.zeros((), jnp.int32))
        self.update = jax.jit(self._update, donate_argnums=0)

    def step(self, ids: Any, labels: Any, rate: float) -> tuple[float, float]:
        """One update; the loss and the gradient norm before it."""
        self.state, found, length = self.update(self.state, ids, labels, rate)
        jax.block_until_ready(self.state)
        return float(found), float(length)

    def _update(self, state: Any, ids: Any, labels: Any, rate: Any) -> Any:
        weights, mean, square, count = state
        found, g = jax.value_and_grad(partial(loss, c=self.config))(weights, ids, labels)
        length = jnp.sqrt(sum(jnp.vdot(x, x) for x in g.values()))
        factor = jnp.minimum(1, self.clip / (length + 1e-6))
        (b1, b2), count = self.betas, count + 1
        m = {name: b1 * mean[name] + (1 - b1) * factor * x for name, x in g.items()}
        v = {name: b2 * square[name] + (1 - b2) * (factor * x) ** 2 for name, x in g.items()}
        step, root = rate / (1 - b1**count), jnp.sqrt(1 - b2**count)
        new = {
            name: p * (1 - rate * self.decay * (p.ndim >= 2))
            - step * m[name] / (jnp.sqrt(v[name]) / root + 1e-8)
            for name, p in weights.items()
        }
        return (new, m, v, count), found, length
