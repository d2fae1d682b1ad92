"""`tinyplm models`, `objectives`, `explain` and `plot`: what there is, and what it does."""

import argparse
import inspect
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .console import Console, shows, table
from .parser import UsageError, known_name

LARGEST_PICTURE = 24
"""Positions up to which the picture of what may be seen is drawn."""


def add(verbs: Any) -> None:
    """Add the verbs."""
    parser = verbs.add_parser(
        "models",
        help="list the models and their sizes",
        description="Every model: its published sizes, the objectives that fit, the paper.",
        example="tinyplm models",
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.set_defaults(run=models, parser=parser)

    parser = verbs.add_parser(
        "objectives",
        help="list what models can learn from",
        description="Every pretraining objective.",
        example="tinyplm objectives",
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.set_defaults(run=objectives, parser=parser)

    parser = verbs.add_parser(
        "explain",
        help="show what an objective makes of a text",
        description="What goes in, what has to be predicted, and what each position may look at.",
        example='tinyplm explain causal-lm "The cat sat on the mat"',
    )
    parser.add_argument("objective", metavar="OBJECTIVE", help="see: tinyplm objectives")
    parser.add_argument("text", metavar="TEXT", help="in quotes")
    parser.add_argument(
        "--tokenizer",
        metavar="NAME",
        help="chars, bytes, or the path of a tokenizer (default: that of --model, or each word a token)",
    )
    parser.add_argument("--model", metavar="DIR", help="also show what each label costs this model")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.set_defaults(run=explain, parser=parser)

    parser = verbs.add_parser(
        "plot",
        help="draw the losses of runs",
        description="Losses of one or more runs, in a PNG file or on the terminal.",
        example="tinyplm plot runs/gpt2 runs/gpt2-2 --output loss.png",
    )
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", help="folder of a run, or its metrics.jsonl"
    )
    parser.add_argument(
        "--output", metavar="FILE.png", help="where to draw; as text when not given"
    )
    parser.set_defaults(run=plot, parser=parser)


def models(args: argparse.Namespace, console: Console) -> int:
    """Print every model with its sizes; parameters are counted without taking memory for them."""
    from ..recipes.models import MODELS

    found: dict[str, dict[str, Any]] = {
        name: {
            "paper": entry.paper,
            "objectives": list(entry.objectives),
            "sizes": {
                size: {
                    "parameters": entry.build(config, rng=None).parameter_count,
                    "layers": config.layers,
                    "heads": config.heads,
                    "hidden_size": config.hidden_size,
                    "positions": config.positions,
                    "vocab_size": config.vocab_size,
                }
                for size, config in entry.sizes.items()
            },
        }
        for name, entry in sorted(MODELS.items())
    }
    for name, entry in found.items():
        console.result(f"{name}: {entry['paper']}\nlearns from: {', '.join(entry['objectives'])}\n")
        header = ("size", "parameters", "layers", "heads", "width", "positions", "vocabulary")
        console.result(
            table(header, [[size, *facts.values()] for size, facts in entry["sizes"].items()])
        )
    console.value({"models": found})
    return 0


def objectives(args: argparse.Namespace, console: Console) -> int:
    """Print every objective with the models that it fits."""
    from ..objectives import OBJECTIVES
    from ..recipes.models import MODELS

    found = {
        name: {
            "what": (inspect.getdoc(kind) or "").split("\n")[0],
            "models": sorted(model for model, entry in MODELS.items() if name in entry.objectives),
        }
        for name, kind in sorted(OBJECTIVES.items())
    }
    rows = [[name, facts["what"], ", ".join(facts["models"])] for name, facts in found.items()]
    console.result(table(("objective", "what it does", "models"), rows))
    console.value({"objectives": found})
    return 0


def explain(args: argparse.Namespace, console: Console) -> int:
    """Print what an objective makes of a text."""
    from ..objectives import OBJECTIVES
    from ..recipes.explain import EXPLAINERS
    from ..recipes.explain import explain as recipe
    from ..recipes.trained import open_trained
    from ..text import Tokenizer

    name = known_name("objective", args.objective, OBJECTIVES)
    if name not in EXPLAINERS:
        raise UsageError(
            f"Objective '{name}' has no explanation yet. Known: {', '.join(EXPLAINERS)}."
        )
    trained = open_trained(args.model) if args.model else None
    if args.tokenizer in ("chars", "bytes"):
        tokenizer: Tokenizer | None = Tokenizer.train(
            args.tokenizer, [args.text], special_tokens=()
        )
    elif args.tokenizer:
        tokenizer = Tokenizer.load(args.tokenizer)
    else:
        tokenizer = trained.tokenizer if trained else None
    if trained and tokenizer is not None and len(tokenizer) > trained.model.config.vocab_size:
        raise ConfigError(
            f"The tokenizer has {len(tokenizer):,} tokens, but the model in {args.model} has vocab_size="
            f"{trained.model.config.vocab_size:,}. Leave --tokenizer out to use the model's own."
        )
    if tokenizer is None:
        console.say(
            "Each word is a token here; --tokenizer or --model cut the text as a model would.\n"
        )
    found = recipe(name, args.text, tokenizer, trained.model if trained else None)

    rows: list[list[Any]] = []
    for i, (given, target, seen) in enumerate(
        zip(found.inputs, found.targets, found.visible, strict=True)
    ):
        places = [j for j, visible in enumerate(seen) if visible]
        row = [
            i,
            given,
            target or "",
            f"{places[0]} to {places[-1]}" if len(places) > 1 else str(places[0]),
        ]
        rows.append(row + ([found.losses[i]] if found.losses else []))
    header = ["position", "input", "target", "may see"] + (["loss (nats)"] if found.losses else [])
    console.result(table(header, rows))
    if len(rows) <= LARGEST_PICTURE:
        yes, no = ("■", "·") if shows("■·") else ("x", ".")
        console.result("\nWhat each position (down) may see (across):\n")
        for i, seen in enumerate(found.visible):
            console.result(f"{i:8}  " + " ".join(yes if visible else no for visible in seen))
    mean = f", {found.mean_loss:.4f} nats each on average" if found.mean_loss is not None else ""
    console.result(f"\n{found.labels} label{'' if found.labels == 1 else 's'}{mean}")
    console.value(
        {
            "objective": name,
            "positions": [
                {
                    "input": given,
                    "target": target,
                    "sees": [j for j, visible in enumerate(seen) if visible],
                }
                | ({"loss": found.losses[i]} if found.losses else {})
                for i, (given, target, seen) in enumerate(
                    zip(found.inputs, found.targets, found.visible, strict=True)
                )
            ],
            "labels": found.labels,
            "mean_loss": found.mean_loss,
        }
    )
    return 0


def plot(args: argparse.Namespace, console: Console) -> int:
    """Draw the losses of runs."""
    from ..train.plot import plot_losses
    from ..train.progress import read_metrics

    if args.output and Path(args.output).suffix.lower() != ".png":
        raise UsageError(f"--output {args.output}: expected a name that ends in .png.")
    paths = [Path(run) for run in args.runs]
    files = [path / "metrics.jsonl" if path.is_dir() else path for path in paths]
    names = [file.absolute().parent.name for file in files]
    if len(set(names)) < len(names):
        names = list(map(str, paths))
    records = {name: read_metrics(file) for name, file in zip(names, files, strict=True)}
    console.result(plot_losses(records, Path(args.output) if args.output else None))
    return 0
