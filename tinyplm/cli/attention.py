"""`tinyplm attention`: which tokens a model looks at, as a page to click through or as a picture."""

import argparse
from pathlib import Path
from typing import Any

from .console import Console, size
from .parser import UsageError, add_device


def add(verbs: Any) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "attention",
        help="draw which tokens a model looks at",
        description="All layers and heads of a model on one text: a page to click through, or a picture.",
        example='tinyplm attention runs/gpt2 "The list is empty" --output attention.html',
    )
    parser.add_argument(
        "dir", metavar="DIR", help="folder of a model, or of a run, finished or not"
    )
    parser.add_argument("text", metavar="TEXT", help="in quotes")
    parser.add_argument("--pair", metavar="TEXT", help="a second text, for models that read pairs")
    parser.add_argument(
        "--target",
        metavar="TEXT",
        help="what a model of two parts is to write (default: what it writes by itself)",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        default="attention.html",
        help="a page if it ends in .html, a picture if in .png (default: attention.html)",
    )
    add_device(parser)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.set_defaults(run=attention, parser=parser)


def attention(args: argparse.Namespace, console: Console) -> int:
    """Draw the attention of a model on a text."""
    from ..analysis.attention_maps import attention_maps, attention_page, attention_picture
    from ..recipes.trained import open_trained

    output = Path(args.output)
    if output.suffix.lower() not in (".html", ".htm", ".png"):
        raise UsageError(f"--output {args.output}: expected a name that ends in .html or .png.")
    trained = open_trained(args.dir, device=args.device)
    if trained.unfinished:
        console.say(f"This run has not ended; its newest checkpoint is used: {trained.unfinished}.")
    maps = attention_maps(
        trained.model, trained.tokenizer, args.text, pair=args.pair, target=args.target
    )
    title = Path(args.dir).absolute().name
    if output.suffix.lower() == ".png":
        attention_picture(maps, output, title=title)
    else:
        shown = "\n".join(text for text in (args.text, args.pair, args.target) if text is not None)
        page = attention_page(maps, title=title, text=shown).encode("utf-8")
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes(page)
    written = output.stat().st_size
    found = [
        {
            "name": each.name,
            "layers": each.weights.shape[0],
            "heads": each.weights.shape[1],
            "queries": each.queries,
            "keys": each.keys,
        }
        for each in maps
    ]
    for each in maps:
        layers, heads, T, S = each.weights.shape
        console.result(
            f"{each.name}: {_count(layers, 'layer')} of {_count(heads, 'head')}, {T} x {S} tokens"
        )
    what = "a picture" if output.suffix.lower() == ".png" else "a page that needs nothing else"
    console.result(f"{output} ({size(written)}), {what}")
    console.value({"output": str(output), "bytes": written, "maps": found})
    return 0


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
