"""`tinyplm generate` and `tinyplm evaluate`: what a trained model is good for."""

import argparse
import math
import sys
from typing import Any

from ..kernels.precision import PRECISIONS, fixed_weights, precision
from ..nn.quantized import KINDS
from .console import Console
from .parser import UsageError, add_device, count, natural, not_negative, number


def add(verbs: Any) -> None:
    """Add the verbs."""
    parser = verbs.add_parser(
        "generate",
        help="let a model go on from a prompt",
        description="Go on from a prompt, token by token; without one the model begins a text. A model of two parts, "
        "such as T5, reads the prompt and writes its answer.",
        example='tinyplm generate runs/gpt2 --prompt "The list is" --max-new-tokens 80 --temperature 0.8',
    )
    parser.add_argument(
        "dir", metavar="DIR", help="folder of a model, or of a run, finished or not"
    )
    parser.add_argument("--prompt", metavar="TEXT", default="", help="what to go on from")
    parser.add_argument(
        "--max-new-tokens", metavar="N", type=count, default=100, help="(default: 100)"
    )
    parser.add_argument(
        "--temperature",
        metavar="X",
        type=not_negative,
        default=0.8,
        help="below 1 likelier, above 1 wilder; 0 is --greedy (default: 0.8)",
    )
    parser.add_argument(
        "--top-k",
        metavar="N",
        type=natural,
        default=50,
        help="draw from the N most probable tokens; 0 for all (default: 50)",
    )
    parser.add_argument(
        "--top-p",
        metavar="X",
        type=number,
        default=1.0,
        help="draw from the most probable tokens that hold this share (default: 1)",
    )
    parser.add_argument(
        "--num-beams",
        metavar="N",
        type=count,
        default=1,
        help="search with N beams for the most probable text; nothing is drawn",
    )
    parser.add_argument(
        "--repetition-penalty",
        metavar="X",
        type=number,
        default=1.0,
        help="above 1 makes tokens that came before less likely (default: 1)",
    )
    parser.add_argument(
        "--seed",
        metavar="N",
        type=natural,
        default=0,
        help="another gives another text (default: 0)",
    )
    add_device(parser)
    _add_precision(parser)
    _add_quantize(parser)
    parser.add_argument("--greedy", action="store_true", help="always take the most probable token")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.set_defaults(run=generate, parser=parser)

    parser = verbs.add_parser(
        "evaluate",
        help="measure how well a model predicts a text",
        description="Nats per token, perplexity and bits per byte of a text, read with a window that slides.",
        example="tinyplm evaluate runs/gpt2 --data other.txt",
    )
    parser.add_argument(
        "dir", metavar="DIR", help="folder of a model, or of a run, finished or not"
    )
    parser.add_argument(
        "--data",
        metavar="PATH",
        help="a file or folder of text; for a run, what it held out when not given",
    )
    parser.add_argument(
        "--stride",
        metavar="N",
        type=count,
        help="tokens from one window to the next; fewer is slower and better (default: half the positions)",
    )
    parser.add_argument(
        "--encoding", metavar="NAME", default="utf-8", help="of the text (default: utf-8)"
    )
    parser.add_argument("--text-column", metavar="NAME", help="of .csv, .tsv and .jsonl files")
    add_device(parser)
    _add_precision(parser)
    _add_quantize(parser)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.set_defaults(run=evaluate, parser=parser)


def _add_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        metavar="NAME",
        choices=PRECISIONS,
        default="float32",
        help=f"of products of matrices: {', '.join(PRECISIONS)} (default: float32)",
    )


def _add_quantize(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--quantize",
        metavar="NAME",
        choices=KINDS,
        help=f"keep weights in fewer bits, for quicker writing: {' or '.join(KINDS)}",
    )


def generate(args: argparse.Namespace, console: Console) -> int:
    """Print a prompt and what the model makes of it, as it comes."""
    import numpy as np

    from ..analysis.reading import translates
    from ..nn import quantize
    from ..recipes.generate_text import generate_text

    greedy = args.greedy or args.temperature == 0 or args.num_beams > 1
    if not 0 < args.top_p <= 1:
        raise UsageError(f"--top-p is {args.top_p}, expected above 0 and at most 1.")
    trained = _open(args, console)
    if args.quantize:
        trained = trained._replace(model=quantize(trained.model, args.quantize))
    stream = not console.json and args.num_beams == 1

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    started = False
    echo = "" if translates(trained.model) else args.prompt

    def write_first(text: str) -> None:
        # The prompt is printed with the first piece, so that an error stands alone.
        nonlocal started
        write(text if started else echo + text)
        started = True

    slides: list[tuple[int, int]] = []
    try:
        with precision(args.precision), fixed_weights():
            made = generate_text(
                trained,
                args.prompt,
                max_new_tokens=args.max_new_tokens,
                rng=None if greedy else np.random.default_rng(args.seed),
                num_beams=args.num_beams,
                on_text=write_first if stream else None,
                on_slide=lambda *numbers: slides.append(numbers),
                temperature=args.temperature or 1.0,
                top_k=args.top_k,
                top_p=args.top_p,
                repetition_penalty=args.repetition_penalty,
            )
    finally:
        if started:
            write("\n")
    if not started:
        console.result(echo + made.text)
    for positions, kept in slides:
        console.say(
            f"The text outgrew the model's {positions:,} positions: from there on it was written from the "
            f"last {kept:,} to {positions:,} tokens."
        )
    console.value(
        {
            "prompt": args.prompt,
            "text": made.text,
            "prompt_tokens": made.prompt_tokens,
            "new_tokens": len(made.ids),
            "ids": made.ids,
            "ended": made.ended,
            "slid": made.slid,
        }
    )
    return 0


def evaluate(args: argparse.Namespace, console: Console) -> int:
    """Print how well a model predicts a text."""
    from ..recipes.evaluate import evaluate as recipe

    trained = _open(args, console)
    total = 0

    def start(text: str, tokens: int) -> None:
        nonlocal total
        total = 2 * tokens if args.quantize else tokens
        console.say(f"text       {text}\ntokens     {tokens:,}")

    def progress(done: int) -> None:
        if sys.stderr.isatty():
            end = "\r" if done < total else "\r    \r"
            print(f"{100 * done // total:3} %", end=end, file=sys.stderr, flush=True)

    with precision(args.precision), fixed_weights():
        found = recipe(
            trained,
            args.data,
            held_out_of=args.dir,
            stride=args.stride,
            encoding=args.encoding,
            text_column=args.text_column,
            quantized=args.quantize,
            on_start=start,
            on_progress=progress,
        )
    score, before = found.score, found.float32
    change = ""
    if before is not None:
        percent = 100 * (math.expm1(score.nats - before.nats))
        change = f" (float32 {before.perplexity:,.4g}, {percent:+.2f} %)"
    console.result(
        f"{score.nats:.4f} nats per token, perplexity {score.perplexity:,.4g}{change}, "
        f"{score.bits_per_byte:.4f} bits per byte\n"
        f"{score.tokens:,} tokens, {score.bytes:,} bytes; windows of {found.window:,} tokens, {found.stride:,} apart"
    )
    console.value(
        {
            "nats_per_token": score.nats,
            "perplexity": score.perplexity,
            "bits_per_byte": score.bits_per_byte,
            "tokens": score.tokens,
            "bytes": score.bytes,
            "window": found.window,
            "stride": found.stride,
            "text": found.text,
            "quantized": args.quantize,
            "float32_perplexity": None if before is None else before.perplexity,
        }
    )
    return 0


def _open(args: argparse.Namespace, console: Console) -> Any:
    from ..recipes.trained import open_trained

    if args.quantize and args.device != "cpu":
        raise UsageError(
            f"--quantize {args.quantize} is for the CPU. With --device {args.device} use --precision bfloat16 for "
            "weights of half the size."
        )
    trained = open_trained(args.dir, device=args.device, precision=args.precision)
    if trained.unfinished:
        console.say(f"This run has not ended; its newest checkpoint is used: {trained.unfinished}.")
    return trained
