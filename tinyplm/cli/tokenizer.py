"""`tinyplm tokenizer train` and `tinyplm tokenizer show`."""

import argparse
from typing import Any

from .console import Console, table
from .parser import Parser, UsageError, count


def add(verbs: Any) -> None:
    """Add the verb with its two verbs."""
    parser = verbs.add_parser(
        "tokenizer",
        help="train a tokenizer on a text, or see what one does",
        description="Train a tokenizer on a text, or see what one does to a text.",
        example="tinyplm tokenizer train --data corpus.txt --vocab-size 8000 --output tokenizers/corpus",
    )
    inner = parser.add_subparsers(metavar="VERB", dest="tokenizer_verb", parser_class=Parser)

    def missing(args: argparse.Namespace, console: Console) -> int:
        raise UsageError(
            "tinyplm tokenizer train, or tinyplm tokenizer show? See: tinyplm tokenizer --help"
        )

    parser.set_defaults(run=missing, parser=parser)

    parser = inner.add_parser(
        "train",
        help="train one on a text",
        description="Train a tokenizer on a text and save it in a folder.",
        example="tinyplm tokenizer train --data corpus.txt --vocab-size 8000 --output tokenizers/corpus",
    )
    parser.add_argument(
        "--data", metavar="PATH", help="a file or folder of text (default: Python's documentation)"
    )
    parser.add_argument(
        "--kind",
        choices=("bpe", "chars", "bytes", "wordpiece", "unigram"),
        default="bpe",
        help="bpe is byte-level, as GPT-2's (default: bpe)",
    )
    parser.add_argument(
        "--vocab-size", metavar="N", type=count, default=8_000, help="tokens (default: 8000)"
    )
    parser.add_argument("--output", metavar="DIR", required=True, help="where it is saved")
    parser.add_argument(
        "--encoding", metavar="NAME", default="utf-8", help="of the text (default: utf-8)"
    )
    parser.add_argument("--text-column", metavar="NAME", help="of .csv, .tsv and .jsonl files")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.set_defaults(run=train, parser=parser)

    parser = inner.add_parser(
        "show",
        help="show the tokens of a text",
        description="The tokens and ids of a text.",
        example='tinyplm tokenizer show runs/gpt2 "The cat sat on the mat."',
    )
    parser.add_argument(
        "dir", metavar="DIR", help="folder or file of a tokenizer, or of a model or run with one"
    )
    parser.add_argument("text", metavar="TEXT", help="in quotes")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.set_defaults(run=show, parser=parser)


def train(args: argparse.Namespace, console: Console) -> int:
    """Train a tokenizer and say what came of it."""
    from ..recipes.tokenizer import train_tokenizer

    made = train_tokenizer(
        args.data,
        args.kind,
        args.output,
        vocab_size=args.vocab_size,
        encoding=args.encoding,
        text_column=args.text_column,
    )
    console.say(f"text       {made.text}")
    console.result(
        f"{made.tokenizer.description}, {made.bytes_per_token:.2f} bytes of this text each; saved in {made.output}\n"
        f'Try next:\n  tinyplm tokenizer show {made.output} "some text"\n'
        f"  tinyplm pretrain gpt2 --tokenizer {made.output}{f' --data {args.data}' if args.data else ''}"
    )
    console.value(
        {
            "output": str(made.output),
            "kind": made.tokenizer.kind,
            "vocab_size": made.tokenizer.vocab_size,
            "bytes_per_token": made.bytes_per_token,
        }
    )
    return 0


def show(args: argparse.Namespace, console: Console) -> int:
    """Print the tokens and ids of a text."""
    from ..analysis.reading import shown_token
    from ..text import Tokenizer

    tokenizer = Tokenizer.load(args.dir)
    ids = tokenizer.encode(args.text).tolist()
    tokens = [shown_token(tokenizer, token) for token in ids]
    console.say(tokenizer.description)
    console.result(table(("id", "token"), [list(pair) for pair in zip(ids, tokens, strict=True)]))
    console.result(f"{len(ids):,} tokens, {len(args.text):,} characters")
    if tokenizer.unknown is not None and tokenizer.unknown in ids:
        console.result(f"{ids.count(tokenizer.unknown):,} of them unknown")
    console.value({"ids": ids, "tokens": tokens, "text": tokenizer.decode(ids)})
    return 0
