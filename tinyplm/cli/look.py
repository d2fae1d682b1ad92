"""`tinyplm models`, `objectives`, `explain` and `plot`: what there is, and what it does."""

import argparse
import inspect
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .console import Console, shows, table
from .parser import UsageError, add_device, natural

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
        description="What goes in, what is hidden, what has to be predicted, and what each position may look at.",
        example='tinyplm explain mlm "The cat sat on the mat"',
    )
    parser.add_argument(
        "objective", metavar="OBJECTIVE", help="see: tinyplm objectives; several are joined by +"
    )
    parser.add_argument(
        "text", metavar="TEXT", help="in quotes; for pairs of texts 'source => target'"
    )
    parser.add_argument("--target", metavar="TEXT", help="of a pair, if it is not in TEXT")
    parser.add_argument(
        "--tokenizer",
        metavar="NAME",
        help="chars, bytes, or the path of a tokenizer (default: that of --model, or each word a token)",
    )
    parser.add_argument("--model", metavar="DIR", help="also show what each label costs this model")
    parser.add_argument(
        "--seed",
        metavar="N",
        type=natural,
        default=0,
        help="another hides other tokens (default: 0)",
    )
    add_device(parser)
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
                    # A recurrent model has no heads, and no longest text.
                    **{
                        name: getattr(config, name, None)
                        for name in ("layers", "heads", "hidden_size", "positions", "vocab_size")
                    },
                }
                for size, config in entry.sizes.items()
            },
        }
        for name, entry in sorted(MODELS.items())
    }
    for name, entry in found.items():
        console.result(f"{name}: {entry['paper']}\nlearns from: {', '.join(entry['objectives'])}\n")
        header = ("size", "parameters", "layers", "heads", "width", "positions", "vocabulary")
        rows = [[size, *facts.values()] for size, facts in entry["sizes"].items()]
        console.result(f"{table(header, rows)}\n" if rows else "no published sizes\n")
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
    from ..objectives import check_objective
    from ..recipes.explain import explain as recipe
    from ..recipes.explain import special_tokens
    from ..recipes.trained import open_trained
    from ..text import Tokenizer

    check_objective(args.objective)
    if args.device != "cpu" and not args.model:
        raise UsageError(f"--device {args.device} is for the model of --model, and none is given.")
    trained = open_trained(args.model, device=args.device) if args.model else None
    if args.tokenizer in ("chars", "bytes"):
        tokenizer: Tokenizer | None = Tokenizer.train(
            args.tokenizer,
            [args.text, *([args.target] if args.target else [])],
            special_tokens=special_tokens(args.objective) or (),
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
    found = recipe(
        args.objective,
        args.text,
        tokenizer,
        trained.model if trained else None,
        target=args.target,
        seed=args.seed,
    )
    for number, part in enumerate(found.parts):
        _show_part(console, found, number, alone=len(found.parts) == 1)
        _show_sight(console, part)
    for note in found.notes:
        console.result(f"\n{note}")
    console.result()
    for term in found.terms:
        named = f"{term.name}: " if len(found.terms) > 1 else ""
        if len(found.parts) > 1 and term.part is not None and len(found.terms) > 1:
            named = f"{found.parts[term.part].name}, {named}"
        what = "" if term.part is not None else f" ({term.targets[0]})"
        mean = f", {term.mean:.4f} nats each on average" if term.mean is not None else ""
        console.result(f"{named}{term.labels} label{'' if term.labels == 1 else 's'}{what}{mean}")
    if found.loss is not None and len(found.terms) > 1:
        console.result(f"loss: {found.loss:.4f} nats")
    console.value(
        {
            "objective": args.objective,
            "parts": [
                {
                    "name": part.name,
                    "positions": [
                        {"token": token, "was": was}
                        | ({} if part.segments is None else {"segment": part.segments[i]})
                        | ({} if part.visible is None else {"sees": _places(part.visible[i])})
                        | (
                            {}
                            if part.encoder is None
                            else {"sees_encoder": _places(part.encoder[i])}
                        )
                        for i, (token, was) in enumerate(zip(part.tokens, part.was, strict=True))
                    ],
                }
                for part in found.parts
            ],
            "terms": [
                {
                    "name": term.name,
                    "part": None if term.part is None else found.parts[term.part].name,
                    "targets": term.targets,
                    "losses": term.losses,
                    "labels": term.labels,
                    "mean_loss": term.mean,
                }
                for term in found.terms
            ],
            "notes": found.notes,
            "labels": found.labels,
            "loss": found.loss,
        }
    )
    return 0


def _show_part(console: Console, found: Any, number: int, *, alone: bool) -> None:
    """Print a row for each position of what a model reads."""
    part = found.parts[number]
    if not alone:
        console.result(f"{chr(10) if number else ''}{part.name}\n")
    columns: dict[str, list[Any]] = {
        "position": list(range(len(part.tokens))),
        "input": part.tokens,
    }
    if any(part.was):
        columns["was"] = [was or "" for was in part.was]
    if part.segments is not None:
        columns["segment"] = part.segments
    for term in (term for term in found.terms if term.part == number):
        columns["target"] = [target or "" for target in term.targets]
        if term.losses:
            columns["loss (nats)"] = term.losses
    for name, sight in (("may see", part.visible), ("in the encoder", part.encoder)):
        if sight is not None:
            columns[name] = [_ranges(_places(row)) for row in sight]
    console.result(table(list(columns), list(zip(*columns.values(), strict=True))))


def _show_sight(console: Console, part: Any) -> None:
    """Draw what each position may look at, where there is room and something to tell."""
    yes, no = ("■", "·") if shows("■·") else ("x", ".")
    for where, sight in (("", part.visible), (" in the encoder", part.encoder)):
        if sight is None or max(len(sight), len(sight[0])) > LARGEST_PICTURE:
            continue
        if all(map(all, sight)):
            console.result(f"\nEach position may see all{where}.")
            continue
        console.result(f"\nWhat each position (down) may see (across){where}:\n")
        for i, row in enumerate(sight):
            console.result(f"{i:8}  " + " ".join(yes if visible else no for visible in row))


def _places(row: list[bool]) -> list[int]:
    """Where a row is true."""
    return [place for place, visible in enumerate(row) if visible]


def _ranges(places: list[int]) -> str:
    """Numbers in words, such as 0 to 3, 6."""
    runs: list[list[int]] = []
    for place in places:
        if runs and runs[-1][-1] == place - 1:
            runs[-1] = [runs[-1][0], place]
        else:
            runs.append([place])
    return ", ".join(" to ".join(map(str, run)) for run in runs) or "nothing"


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
