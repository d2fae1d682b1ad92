"""Turning a random sequence around, with attention and without it: accuracy against length.

The experiment behind figure 2 of Bahdanau et al., 2014, arXiv:1409.0473, on a task that needs nothing but memory: a
decoder that is handed one vector forgets what a long source said, one that may look back does not. Both models have the
same number of parameters and learn from the same batches. Takes minutes, so it runs only when named:

    python -m bench reversal --plot reversal.png
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinyplm.generate import generate
from tinyplm.models.seq2seq import Seq2Seq, Seq2SeqConfig
from tinyplm.objectives import SequenceToSequence
from tinyplm.optim import AdamW
from tinyplm.train.loop import train
from tinyplm.types import Batch, Generator

from .measure import Contestant, Options, Record, Samples, describe, note

PADDING, END, SYMBOLS = 0, 1, 20
SHORTEST, LONGEST = 5, 30
BATCH, STEPS, PEAK, WARMUP = 64, 1_500, 4e-3, 100
TRIED = 200
"""Sequences of each length that are written at the end."""

_COMMON: dict[str, Any] = {
    "cell": "lstm",
    "vocab_size": 2 + SYMBOLS,
    "embedding_size": 32,
    "layers": 1,
    "decoder_start": END,
}
CONFIGS = {
    "with attention": Seq2SeqConfig(
        hidden_size=96, bidirectional=True, attention="general", **_COMMON
    ),
    "without": Seq2SeqConfig(hidden_size=144, **_COMMON),
}
"""Of 207,542 and 208,502 parameters; only the width differs beside the attention and what it looks at."""


def run(options: Options) -> Iterator[Record]:
    """Both models to their end, and what they write for sequences of every length."""
    steps = options.steps or (20 if options.quick else STEPS)
    lengths = range(SHORTEST, LONGEST + 1, 5 if options.quick else 1)
    objective = SequenceToSequence(end_id=END, padding_id=PADDING)
    samples, found = [], {}
    for name, config in CONFIGS.items():
        model = Seq2Seq(config, rng=np.random.default_rng(0))
        note(f"{name}: {model.parameter_count:,} parameters, {steps} updates")
        seconds = []
        for step in train(
            model,
            objective,
            batches(np.random.default_rng(1)),
            AdamW(model.named_parameters(), weight_decay=0.0, beta_2=0.98),
            lambda i: PEAK * min(1, (i + 1) / WARMUP) * max(0.05, 1 - i / steps),
            rng=np.random.default_rng(2),
            steps=steps,
        ):
            seconds.append(step.seconds)
            if step.number % 250 == 0:
                note(f"  step {step.number}: loss {step.loss:.4f}, {sum(seconds):.0f} s")
        samples.append(Samples([seconds]))
        tried = 20 if options.quick else TRIED
        found[name] = {n: accuracy(model, objective, n, tried) for n in lengths}
    note(shown(found))
    records = describe(
        [Contestant(library="ours", variant=name, run=lambda: None) for name in CONFIGS],
        samples,
        benchmark="reversal",
        what=f"{steps} updates of a Seq2Seq; seconds of one",
        shapes=f"{BATCH} sequences of {SHORTEST} to {LONGEST} of {SYMBOLS} symbols",
        options=options,
    )
    for record, by_length in zip(records, found.values(), strict=True):
        yield record | {"accuracy_by_length": {str(n): pair for n, pair in by_length.items()}}


def batches(
    rng: Generator, *, shortest: int = SHORTEST, longest: int = LONGEST, batch: int = BATCH
) -> Iterator[Batch]:
    """Random sequences, and as targets the same from their end, without end."""
    while True:
        lengths = rng.integers(shortest, longest + 1, size=batch)
        place = np.arange(lengths.max())
        mask = (place < lengths[:, None]).astype(np.int64)
        source = np.where(mask == 1, rng.integers(2, 2 + SYMBOLS, size=mask.shape), PADDING)
        turned = np.take_along_axis(source, np.maximum(lengths[:, None] - 1 - place, 0), axis=1)
        yield {
            "input_ids": source,
            "attention_mask": mask,
            "target_ids": np.where(mask == 1, turned, PADDING),
            "target_mask": mask,
        }


def accuracy(
    model: Seq2Seq, objective: SequenceToSequence, length: int, tried: int
) -> tuple[float, float]:
    """Shares of tokens, ends included, and of whole sequences that greedy search writes as they should be."""
    rng = np.random.default_rng([3, length])  # sequences that training has not drawn
    source = batches(rng, shortest=length, longest=length, batch=tried)
    made = objective.prepare(next(source), rng=rng)
    written = generate(
        model,
        made["input_ids"],
        attention_mask=made["attention_mask"],
        max_new_tokens=length + 1,
        eos_token_id=END,
        pad_token_id=PADDING,
    )[:, 1:]
    right = np.zeros(made["labels"].shape, bool)
    right[:, : written.shape[1]] = written == made["labels"][:, : written.shape[1]]
    return float(right.mean()), float(right.all(axis=1).mean())


def shown(found: dict[str, dict[int, tuple[float, float]]]) -> str:
    """The accuracies as a table."""
    lines = [
        "",
        f"{'length':>6}" + "".join(f"  {name + ': tokens':>22}  sequences" for name in found),
    ]
    lengths = list(next(iter(found.values())))
    for n in lengths:
        if n % 5 == 0:
            pairs = [found[name][n] for name in found]
            lines.append(
                f"{n:6}" + "".join(f"  {100 * a:20.1f} %  {100 * b:7.1f} %" for a, b in pairs)
            )
    return "\n".join(lines)


def draw(records: Sequence[Record], output: Path) -> None:
    """Both accuracies of each model against length, as PNG or SVG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    colours = ("#0072B2", "#D55E00")  # told apart by readers with any colour vision
    for place, title in enumerate(("tokens", "whole sequences")):
        axes = figure.add_subplot(1, 2, place + 1)
        for record, colour in zip(records, colours, strict=False):
            points = {int(n): pair for n, pair in record["accuracy_by_length"].items()}
            values = [100 * pair[place] for pair in points.values()]
            axes.plot(list(points), values, color=colour, label=record["variant"])
        axes.set_title(f"{title} right, %", loc="left", fontsize=9)
        axes.set_xlabel("length")
        axes.set_ylim(-3, 103)
        axes.grid(color="0.88", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output)
