"""Attention of all layers and heads on one text: as arrays, as a page to click through, as a picture.

Vaswani et al., 2017, arXiv:1706.03762, draw attention as lines between tokens, and Vig, 2019, arXiv:1906.05714, all
heads at once; the page does both. It is one file that needs nothing else, not even a network: open it anywhere.

A weight w is stored as round(255 sqrt(w)) in one byte, so it is read back to within sqrt(w) / 255 + 1 / 255^2, finest
where weights are small, as they are in a long text. Of a map in which nothing looks ahead only the lower triangle is
kept.

Shape letters: L layers, H heads, T queries, S keys.
"""

import base64
import html
import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..autograd import no_grad
from ..errors import ConfigError, DataError, MissingExtraError
from ..generate import generate
from ..nn import Inspection
from ..text import Tokenizer
from ..types import Array
from .reading import label, read, translates

LARGEST_PAGE = 64_000_000
"""Bytes of weights that a page holds at most; a browser stays quick with that."""

LARGEST_PICTURE = 2_000
"""Maps that a picture has at most."""


@dataclass(frozen=True)
class AttentionMap:
    """Who looks at whom, in every layer and head.

    Attributes:
        name: "self", or for models of two parts "encoder", "decoder" and "cross".
        queries: tokens that look, T of them, as short labels.
        keys: tokens that are looked at, S of them.
        weights: (L, H, T, S) float32; each row of T sums to one.
    """

    name: str
    queries: list[str]
    keys: list[str]
    weights: Array

    @property
    def causal(self) -> bool:
        """Whether nothing looks ahead."""
        T, S = self.weights.shape[2:]
        return T == S and not self.weights[:, :, *np.triu_indices(T, 1)].any()


def attention_maps(
    model: Any,
    tokenizer: Tokenizer,
    text: str,
    *,
    pair: str | None = None,
    target: str | None = None,
) -> list[AttentionMap]:
    """Run a model on a text, and keep all of its attention.

    Args:
        model: any that has attention.
        tokenizer: its own.
        text: what it reads.
        pair: a second text, for models that read pairs.
        target: what a model of two parts is made to write; what it writes by itself when None.

    Raises:
        ConfigError: the model has no attention, or reads no pair or writes no target.
        DataError: an empty text, or one with characters that the tokenizer does not know.
        ShapeError: the text is longer than the model's positions.
    """
    batch = read(model, tokenizer, text, pair)
    inspection = Inspection()
    names = [label(tokenizer, int(i)) for i in batch["input_ids"][0]]
    if not translates(model):
        if target is not None:
            raise ConfigError(
                f"A {type(model).__name__} has one part, so there is no target; leave it out, or add it to the text."
            )
        with no_grad():
            model(**batch, inspection=inspection)
        found = [("self", names, names, inspection.attentions)]
    else:
        ids = _target_ids(model, tokenizer, batch, target)
        with no_grad():
            model(**batch, decoder_input_ids=ids[None], inspection=inspection)
        written = [label(tokenizer, int(i)) for i in ids]
        found = [
            ("encoder", names, names, inspection.encoder_attentions),
            ("decoder", written, written, inspection.attentions),
            ("cross", written, names, inspection.cross_attentions),
        ]
    maps = [
        AttentionMap(name, queries, keys, _stacked(weights))
        for name, queries, keys, weights in found
        if weights
    ]
    if not maps:
        raise ConfigError(
            f"A {type(model).__name__} has no attention: it is recurrent, and hands on one state from token to token. "
            "Take a Transformer, or a Seq2Seq with attention."
        )
    return maps


def _target_ids(model: Any, tokenizer: Tokenizer, batch: Any, target: str | None) -> Array:
    """What the decoder reads: its start, then what it is to write, or what it writes by itself."""
    end = tokenizer.end_of_text
    if target is None:
        room = min(model.config.positions or LONGEST_ANSWER, LONGEST_ANSWER)
        written = generate(
            model,
            batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=room,
            eos_token_id=end,
        )[0]
        return written[:-1] if len(written) > 1 and written[-1] == end else written
    start = model.config.decoder_start
    return np.concatenate([[start], tokenizer.encode(target)]).astype(np.int64)


LONGEST_ANSWER = 64
"""Tokens that a model writes by itself for its own picture."""


def _stacked(weights: Sequence[Any]) -> Array:
    """(L, H, T, S) of each layer's (1, H, T, S), or (1, T, S) where there is one head."""
    layers = [np.asarray(each.numpy()[0], np.float32) for each in weights]
    return np.stack([layer if layer.ndim == 3 else layer[None] for layer in layers])


# The page


def attention_page(maps: Sequence[AttentionMap], *, title: str, text: str) -> str:
    """One HTML file, whole in itself, in which every layer and head can be looked at.

    Args:
        maps: at least one.
        title: of the page, such as the model's name.
        text: that the model read, to be shown.

    Raises:
        DataError: the weights are too many for a page.
    """
    stored = sum(_stored(each) for each in maps)
    if stored > LARGEST_PAGE:
        longest = max(len(each.keys) for each in maps)
        fitting = int(longest * (LARGEST_PAGE / stored) ** 0.5)
        raise DataError(
            f"{longest:,} tokens make {stored / 1e6:,.0f} MB of attention weights, and a page holds "
            f"{LARGEST_PAGE / 1e6:.0f} MB. Shorten the text to about {fitting:,} tokens."
        )
    data = {
        "maps": [
            {
                "name": each.name,
                "queries": each.queries,
                "keys": each.keys,
                "layers": each.weights.shape[0],
                "heads": each.weights.shape[1],
                "causal": each.causal,
                "weights": base64.b64encode(quantised(each).tobytes()).decode("ascii"),
            }
            for each in maps
        ]
    }
    page = Path(__file__).with_name("attention_page.html").read_text(encoding="utf-8")
    filled = {
        "title": html.escape(title),
        "text": html.escape(text),
        "data": _within_script(json.dumps(data, ensure_ascii=False, separators=(",", ":"))),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda place: filled[place[1]], page)


def quantised(each: AttentionMap) -> Array:
    """The weights as the page keeps them: bytes, of a causal map the lower triangles only, row after row."""
    stored = np.rint(255 * np.sqrt(each.weights)).astype(np.uint8)
    if each.causal:
        stored = stored[:, :, *np.tril_indices(len(each.queries))]
    return stored.reshape(-1)


def _stored(each: AttentionMap) -> int:
    """Bytes of the page that the weights take: four for every three."""
    size = each.weights.size
    if each.causal:
        size = size // len(each.keys) * (len(each.keys) + 1) // 2
    return size * 4 // 3


def _within_script(text: str) -> str:
    """JSON that stands in a script element whatever is in it: no tag or comment can begin there."""
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


# The picture


def attention_picture(maps: Sequence[AttentionMap], output: Path, *, title: str) -> None:
    """A PNG file with all layers (down) and heads (across); the parts of a model of two stand side by side.

    Raises:
        MissingExtraError: matplotlib is not installed.
        DataError: there are too many heads for one picture.
    """
    count = sum(each.weights.shape[0] * each.weights.shape[1] for each in maps)
    if count > LARGEST_PICTURE:
        raise DataError(
            f"{count:,} heads do not fit a picture of at most {LARGEST_PICTURE:,}; write a page instead, to a name "
            "that ends in .html."
        )
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError(
            'A picture of attention needs matplotlib: pip install "tinyplm[plot]". Without it, write a page: --output '
            "attention.html."
        ) from None
    across = sum(each.weights.shape[1] for each in maps)
    down = max(each.weights.shape[0] for each in maps)
    figure = Figure(
        figsize=(1.0 + 0.5 * len(maps) + 0.85 * across, 1.3 + 0.85 * down),
        dpi=110,
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    ratios = [each.weights.shape[1] for each in maps]
    row = figure.subplots(1, len(maps), squeeze=False, width_ratios=ratios)[0]
    for axes, each in zip(row, maps, strict=True):
        L, H, T, S = each.weights.shape
        # The root, as in the page, so that weights spread over a long text can be seen.
        axes.imshow(
            _tiled(np.sqrt(each.weights)),
            vmin=0,
            vmax=1,
            cmap="Blues",
            aspect="auto",
            interpolation="antialiased",
            extent=(0.5, H + 0.5, L + 0.5, 0.5),
        )
        axes.set_xticks(range(1, H + 1))
        axes.set_yticks(range(1, L + 1))
        axes.tick_params(length=0, labelsize=8, top=True, labeltop=True, labelbottom=False)
        axes.set_xlabel(f"{each.name}: {T} x {S} tokens", fontsize=9)
        for side in axes.spines.values():
            side.set_visible(False)
    row[0].set_ylabel("layer", fontsize=9)
    heading = figure.suptitle(title, fontsize=10)
    heading.set_parse_math(False)  # a dollar sign in the name of a folder is a dollar sign
    output.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # A letter that no installed font has becomes an empty box in the title.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(output, format="png")


def _tiled(weights: Array) -> Array:
    """All (L, H, T, S) maps as one picture, with gaps of nothing between them."""
    L, H, T, S = weights.shape
    tall, wide = -(-T // 12), -(-S // 12)
    tiles = np.full((L, H, T + 2 * tall, S + 2 * wide), np.nan, np.float32)
    tiles[:, :, tall : tall + T, wide : wide + S] = weights
    return tiles.transpose(0, 2, 1, 3).reshape(L * (T + 2 * tall), H * (S + 2 * wide))
