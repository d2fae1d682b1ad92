"""Which words of a source a decoder looked at while it wrote each word of a target, as a picture or as text.

After figure 3 of Bahdanau et al., 2014, arXiv:1409.0473: a row for each target token, a column for each source token,
the lighter the more weight.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..autograd import no_grad
from ..errors import ConfigError, DataError, TinyplmWarning
from ..nn import Inspection
from ..types import Array

MISSING = 'Plotting needs matplotlib: pip install "tinyplm[plot]". (A text plot follows.)'
SHADES = " .:-=+*#%@"


def alignment(
    model: Any,
    input_ids: Any,
    decoder_input_ids: Any,
    *,
    attention_mask: Any = None,
    layer: int = -1,
    head: int = 0,
) -> Array:
    """The weights (B, T, S) of one layer and head over the source, for each token that the decoder read.

    Raises:
        ConfigError: the model has no attention over a source, or no such layer or head.
    """
    look = Inspection()
    with no_grad():
        model(
            input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            inspection=look,
        )
    found = look.cross_attentions
    if not found:
        raise ConfigError(
            f"This {type(model).__name__} has no attention over a source, so there is no alignment. Build it with one, "
            "such as Seq2SeqConfig(attention='additive')."
        )
    if not -len(found) <= layer < len(found) or not 0 <= head < found[layer].shape[1]:
        raise ConfigError(
            f"layer={layer} and head={head}, but there are {len(found)} layers of {found[0].shape[1]} heads."
        )
    return found[layer].numpy()[:, head]


def plot_alignment(
    weights: Array,
    source: Sequence[str],
    target: Sequence[str],
    output: str | Path | None = None,
    *,
    title: str = "",
) -> str:
    """Draw weights into the PNG or SVG file `output`; the text to show the reader.

    With `output=None`, or without matplotlib, the text is the plot itself.

    Args:
        weights: (T, S), a row for each target token.
        source: S tokens.
        target: T tokens, those that were written.
        output: the file.
        title: above the picture.

    Raises:
        DataError: the weights are not (T, S), or not from 0 to 1.
    """
    weights = np.asarray(weights)
    if weights.shape != (len(target), len(source)) or not weights.size:
        raise DataError(
            f"weights have shape {weights.shape}, but there are {len(target)} target and {len(source)} source tokens; "
            "expected a row for each target token, such as alignment(...)[0]."
        )
    if not (weights >= 0).all() or not (weights <= 1 + 1e-6).all():
        raise DataError(
            f"weights range from {weights.min():g} to {weights.max():g}; expected shares from 0 to 1. Are these scores "
            "before the softmax?"
        )
    if output is not None:
        try:
            _picture(weights, source, target, Path(output), title)
            return f"The alignment is drawn in {output}"
        except ImportError:
            warnings.warn(MISSING, TinyplmWarning, stacklevel=2)
    return _text(weights, source, target)


def _text(weights: Array, source: Sequence[str], target: Sequence[str]) -> str:
    """A character for each weight, and the source below, numbered by its columns."""
    width = max(map(len, target))
    steps = np.minimum((weights * len(SHADES)).astype(int), len(SHADES) - 1)
    lines = [
        f"{word:>{width}} |{''.join(SHADES[step] for step in row)}|"
        for word, row in zip(target, steps, strict=True)
    ]
    lines.append(f"{'':>{width}}  {''.join(str(i % 10) for i in range(len(source)))}")
    words = "  ".join(f"{i} {word}" for i, word in enumerate(source))
    shades = "  ".join(
        f"{shade!r} {100 * i // len(SHADES)}+" for i, shade in enumerate(SHADES) if i
    )
    return "\n".join([*lines, f"source: {words}", f"weight in %: {shades}"])


def _picture(
    weights: Array, source: Sequence[str], target: Sequence[str], output: Path, title: str
) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    T, S = weights.shape
    size = 1.4 + 0.26 * S, 1.2 + 0.26 * T
    figure = Figure(figsize=(min(size[0], 40), min(size[1], 40)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(weights, cmap="gray", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.xaxis.tick_top()
    axes.set_xticks(range(S), [_plain(word) for word in source], rotation=90, fontsize=8)
    axes.set_yticks(range(T), [_plain(word) for word in target], fontsize=8)
    if title:
        axes.set_title(_plain(title), fontsize=9, loc="left")
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output)


def _plain(word: str) -> str:
    """A word that matplotlib does not take for a formula."""
    return word.replace("$", r"\$")
