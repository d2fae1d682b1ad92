"""The entry: reads the arguments, runs the verb, and turns whatever goes wrong into a sentence and an exit code."""

import argparse
import contextlib
import os
import sys
import traceback
import warnings
from collections.abc import Sequence

from .. import __version__
from ..errors import ConfigError, TinyplmError, TinyplmWarning
from . import attention, check, look, pretrain, tokenizer, use
from .console import Console, debugging
from .parser import Parser, UsageError

SUCCESS, FAILURE, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code.

    0 success, 1 failure, 2 wrong usage or a setting that cannot be, 130 interrupted.

    Args:
        arguments: without the program's name; those of the process when None.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    console = Console(json="--json" in arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a letter that a terminal lacks is no reason to stop
            stream.reconfigure(errors="replace" if stream is sys.stdout else "backslashreplace")
    with warnings.catch_warnings():
        warnings.simplefilter("always", TinyplmWarning)
        warnings.showwarning = console.show_warning
        try:
            code = _run(arguments, console)
            sys.stdout.flush()
        except BrokenPipeError:
            # Whoever read has seen enough. Nothing may be flushed into the closed pipe at exit.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return FAILURE
        return code


def _run(arguments: Sequence[str], console: Console) -> int:
    try:
        args = parser().parse_args(arguments)
        code: int = args.run(args, console)
        return code
    except SystemExit as stop:  # --help and --version
        return int(stop.code or 0)
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        console.say("Interrupted.")
        return INTERRUPTED
    except Exception as error:
        if debugging():
            traceback.print_exc()
        text = _sentence(error)
        console.say(f"Error: {text}")
        console.value({"error": {"type": type(error).__name__, "message": text}})
        return WRONG_USAGE if isinstance(error, ConfigError) else FAILURE


def _sentence(error: Exception) -> str:
    """What to tell the user."""
    if isinstance(error, TinyplmError):
        return str(error)
    if isinstance(error, MemoryError):
        return (
            f"Not enough memory ({str(error).rstrip('.') or 'no more could be had'}). Lower --batch, --positions, "
            "--layers, --hidden-size or --vocab-size; --dry-run estimates what a run takes."
        )
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}."
    return (
        f"{type(error).__name__}: {error}. This is a fault in tinyplm, not in what you typed; with "
        "TINYPLM_TRACEBACK=1 in the environment it shows where, for a report."
    )


def parser() -> Parser:
    """Every verb and option."""
    top = Parser(
        prog="tinyplm",
        description="Classic pretrained language models on one small automatic-differentiation engine.",
        example="tinyplm pretrain gpt2",
    )
    top.add_argument("--version", action="version", version=f"tinyplm {__version__}")
    verbs = top.add_subparsers(metavar="VERB", dest="verb", parser_class=Parser)
    for group in (pretrain, use, look, attention, tokenizer, check):
        group.add(verbs)

    def missing(args: argparse.Namespace, console: Console) -> int:
        raise UsageError(
            f"No verb. Known: {', '.join(verbs.choices)}. To begin: tinyplm pretrain gpt2. See: tinyplm --help"
        )

    top.set_defaults(run=missing)
    return top
