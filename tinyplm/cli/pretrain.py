"""`tinyplm pretrain`: from a text to a model."""

import argparse
import contextlib
import dataclasses
import re
import tempfile
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from types import UnionType
from typing import Any, get_type_hints

from ..analysis.reading import translates, writes
from ..errors import ConfigError
from ..recipes.run import Run, from_settings, read_toml
from ..train.progress import Progress, duration
from .console import Console, size
from .parser import UsageError, number, whole

GROUPS = {
    "the text": ("data", "encoding", "text_column", "validation", "tokenizer", "vocab_size"),
    "the model": ("layers", "heads", "hidden_size", "positions", "dropout", "attention"),
    "training": (
        *(
            "objective",
            "steps",
            "batch",
            "accumulate",
            "optimizer",
            "lr",
            "min_lr",
            "warmup",
            "schedule",
        ),
        *("weight_decay", "beta_1", "beta_2", "clip", "seed", "device"),
        *("precision", "graph"),
    ),
    "looking and keeping": (
        *("evaluate_every", "evaluation_windows", "checkpoint_every", "sample_tokens", "output"),
    ),
}
"""Every setting of a run but the model, in the order of the help."""


def add(verbs: Any) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "pretrain",
        help="train a model on a text",
        description="Train a model on a text; without --data on the documentation that comes with Python.",
        usage="tinyplm pretrain MODEL [options]",
        example="tinyplm pretrain gpt2 --data corpus.txt --steps 1000 --output runs/corpus",
    )
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", default=argparse.SUPPRESS, help="see: tinyplm models"
    )
    kinds, words = get_type_hints(Run), _documented()
    defaults = {field.name: field.default for field in dataclasses.fields(Run)}
    for title, names in GROUPS.items():
        group = parser.add_argument_group(title)
        for name in names:
            default = defaults[name]
            group.add_argument(
                flag(name),
                dest=name,
                default=argparse.SUPPRESS,
                help=words.get(name, "").replace("%", "%%")
                + (f" (default: {default})" if default is not None else ""),
                **_taking(name, kinds[name]),
            )
    run = parser.add_argument_group("the run")
    run.add_argument("--config", metavar="RUN.toml", help="settings by name, one a line; flags win")
    run.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --output, or the newest in runs/",
    )
    run.add_argument(
        "--anomaly",
        action="store_true",
        help="stop at the first op that gives NaN or infinity; slow",
    )
    run.add_argument(
        "--dry-run", action="store_true", help="say what would be trained, and write nothing"
    )
    run.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.set_defaults(run=pretrain, parser=parser)


def flag(name: str) -> str:
    """The option of a setting."""
    return f"--{name.replace('_', '-')}"


def pretrain(args: argparse.Namespace, console: Console) -> int:
    """Train, or go on, or only say what would be done."""
    if args.resume and args.dry_run:
        raise UsageError("--resume and --dry-run: give one of them.")
    given = {
        field.name: getattr(args, field.name)
        for field in dataclasses.fields(Run)
        if field.name in args
    }
    config: dict[str, Any] = {}
    if args.config:
        config = read_toml(Path(args.config))
    try:
        run = _resumed(config | given) if args.resume else _new(config | given)
    except ConfigError:
        if args.config:  # is it the file that is wrong?
            named = {"model": given["model"]} if "model" in given else {}
            from_settings(named | config, args.config)
        raise
    if find_spec("numba") is None and not args.dry_run:
        console.say('Without Numba some steps are slower: pip install "tinyplm[fast]"')
    with _anomalies(args.anomaly):
        return _dry_run(run, console) if args.dry_run else _train(run, args.resume, console)


def _new(settings: dict[str, Any]) -> Run:
    if "model" not in settings:
        raise UsageError("Which model? For example: tinyplm pretrain gpt2. See: tinyplm models")
    try:
        return from_settings(settings)
    except ConfigError as error:
        # The message begins with the setting's name; the user typed it as an option.
        name = re.match(r"\w+", str(error))
        if name and any(name[0] in names for names in GROUPS.values()):
            raise UsageError(flag(name[0]) + str(error)[name.end() :]) from None
        raise


def _resumed(settings: dict[str, Any]) -> Run:
    """The settings that were saved, if none that is given contradicts them; a graph makes the same steps as none."""
    from ..recipes.pretrain import saved_run

    run = saved_run(settings.pop("output", None), settings.get("model"))
    for name, value in settings.items():
        saved = getattr(run, name)
        if name == "graph":
            run = dataclasses.replace(run, graph=value)
        elif value != saved and not _same_path(name, value, saved):
            what = "the model" if name == "model" else flag(name)
            raise UsageError(
                f"{what} is {value}, but the run in {run.output} was begun with {saved}. To go on leave it out; to "
                "change it start a new run with another --output, without --resume."
            )
    return run


def _same_path(name: str, value: Any, saved: Any) -> bool:
    paths = name in ("data", "tokenizer") and None not in (value, saved)
    return paths and Path(value).resolve() == Path(saved).resolve()


def _train(run: Run, resume: bool, console: Console) -> int:
    from ..recipes import pretrain as recipe
    from ..train.loop import Step

    ready: recipe.Prepared | None = None
    waiting = (
        ""  # what was said of an evaluation, until it is known whether a checkpoint goes with it
    )
    with closing(recipe.pretrain(run, resume=resume)) as events, contextlib.ExitStack() as stack:  # type: ignore[type-var]
        try:
            for event in events:
                if waiting and not isinstance(event, recipe.Saved):
                    console.say(waiting)
                    waiting = ""
                match event:
                    case recipe.Prepared():
                        ready = event
                        console.say(_introduction(ready))
                        progress = Progress(ready.run.steps, start=ready.resumed)
                        console.progress = stack.enter_context(progress)
                        stack.callback(setattr, console, "progress", None)
                    case Step():
                        progress.update(event.number, loss=event.loss, tokens=event.tokens)
                    case recipe.Evaluated():
                        waiting = f"step {event.step:,}: validation {_score(ready, event.score)}"
                    case recipe.Saved() if event.interrupted:
                        stack.close()
                        return _interrupted(ready, event, console)
                    case recipe.Saved():
                        console.say(
                            f"{waiting or f'step {event.step:,}:'}  [{event.path.name} saved]"
                        )
                        waiting = ""
                    case recipe.Finished():
                        stack.close()
                        _finished(ready, event, console)
        except KeyboardInterrupt:
            stack.close()
            return _interrupted(ready, None, console)
    return 0


def _introduction(ready: Any) -> str:
    run, c = ready.run, ready.model.config
    tokens = ready.train_tokens + ready.validation_tokens
    pairs = ready.objective.reads == "pairs"
    read = run.steps * run.batch * run.accumulate * (1 if pairs else run.positions)
    windows = f"{run.batch * run.accumulate:,} " + (
        "pairs" if pairs else f"windows of {run.positions:,} tokens"
    )
    lines = {
        "text": ready.corpus,
        "tokenizer": ready.tokenizer.description,
        ready.objective.reads.replace(
            "text", "tokens"
        ): f"{tokens:,}, {ready.text_bytes / tokens:.2f} bytes each; "
        f"{ready.train_tokens:,} to train on, {ready.validation_tokens:,} held out",
        "objective": run.objective_name,
        "model": f"{run.model}, {ready.model.parameter_count:,} parameters: {_made_of(c)}",
        "memory": f"about {size(ready.memory)}",
        "training": f"{run.steps:,} steps of {windows}: {read / ready.train_tokens:.2g} times the text",
        "folder": str(ready.output),
    }
    if ready.resumed:
        lines["resumed"] = f"after step {ready.resumed:,}"
    return "\n".join(f"{name:<10} {text}" for name, text in lines.items())


def _made_of(config: Any) -> str:
    """Layers, heads, width and positions, those that the model has."""
    parts = [_counted(config.layers, "layer")]
    if hasattr(config, "heads"):
        parts.append(_counted(config.heads, "head"))
    parts.append(f"{config.hidden_size:,} wide")
    if getattr(config, "positions", None):
        parts.append(_counted(config.positions, "position"))
    return ", ".join(parts)


def _score(ready: Any, score: Any) -> str:
    """What was lost: by bytes where each token is predicted from those before it, else beside the baseline."""
    if writes(ready.model):
        return f"{score.nats:.4f} nats per token, {score.bits_per_byte:.4f} bits per byte"
    return "; ".join(
        f"{term.nats:.4f} nats per label of {name} (unigram {term.unigram:.4f}), "
        f"{100 * term.accuracy:.1f} % right (unigram {100 * term.unigram_accuracy:.1f} %)"
        for name, term in score.terms.items()
    )


def _interrupted(ready: Any, saved: Any, console: Console) -> int:
    if saved is None and ready is not None:
        kept = sorted(ready.output.glob("checkpoint-*"))
        where = f"The newest checkpoint is {kept[-1]}." if kept else "There is no checkpoint yet."
    elif saved is None:
        console.say("Interrupted before training began; nothing was kept.")
        return 130
    else:
        where = f"Step {saved.step:,} of {ready.run.steps:,} is saved in {saved.path}."
    console.say(
        f"Interrupted. {where} Go on with:\n  {_command('pretrain', ready.run.model)} "
        f"--output {_quoted(ready.output)} --resume"
    )
    console.value(
        {
            "interrupted": True,
            "output": str(ready.output),
            "step": saved.step if saved else None,
            "checkpoint": str(saved.path) if saved else None,
        }
    )
    return 130


def _finished(ready: Any, finished: Any, console: Console) -> None:
    output, score = finished.output, finished.score
    plot = _plot(output, console)
    console.result(
        f"Trained in {duration(finished.seconds)}: validation {_score(ready, score)}"
        + (f", perplexity {score.perplexity:.4g}." if writes(ready.model) else ".")
    )
    console.result(f"\nA sample:\n\n{finished.sample.strip()}\n")
    console.result(
        f"{plot}\nThe model is in {output}. Try next:\n"
        + "\n".join(f"  {line}" for line in _next(ready, output))
    )
    console.value(
        {
            "interrupted": False,
            "output": str(output),
            "model": ready.run.model,
            "parameters": ready.model.parameter_count,
            "steps": ready.run.steps,
            "train_tokens": ready.train_tokens,
            "validation_tokens": ready.validation_tokens,
            "validation": {
                "nats_per_token": score.nats if len(score.terms) == 1 else None,
                "perplexity": score.perplexity if writes(ready.model) else None,
                "bits_per_byte": score.bits_per_byte if writes(ready.model) else None,
            },
            "terms": {name: dataclasses.asdict(term) for name, term in score.terms.items()},
            "sample": finished.sample,
            "seconds": finished.seconds,
        }
    )


def _next(ready: Any, output: Path) -> list[str]:
    """Commands to go on with."""
    folder, start = _quoted(output), _beginning(ready)
    if writes(ready.model):
        prompt = f' --prompt "{start}"' if start else ""
        return [_command("generate", folder) + prompt, _command("evaluate", folder)]
    text = f' "{start}"' if start else ' "..."'
    if translates(ready.model):
        lines = [_command("generate", folder) + f" --greedy --prompt{text}"]
        if getattr(ready.model.config, "attention", "") is not None:
            lines.append(_command("attention", folder) + f"{text} --output attention.html")
        return lines
    return [
        _command("attention", folder) + f"{text} --output attention.html",
        _command("explain", ready.run.objective_name) + f"{text} --model {folder}",
    ]


def _plot(output: Path, console: Console) -> str:
    from ..train.plot import plot_losses
    from ..train.progress import read_metrics

    return plot_losses({output.name: read_metrics(output / "metrics.jsonl")}, output / "loss.png")


def _dry_run(run: Run, console: Console) -> int:
    """Do all but train, in a folder that is gone afterwards."""
    from ..recipes.pretrain import prepare

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        ready = prepare(run, Path(folder))
        first = ready.tokenizer.decode(ready.first_batch[0])
        lines = _introduction(ready).splitlines()
        console.result("\n".join(line for line in lines if not line.startswith("folder")))
        console.result(f"\nThe first of {run.batch:,} windows of the first batch:\n\n{first}\n")
        console.result("Nothing was trained or written.")
        console.value(
            {
                "model": run.model,
                "parameters": ready.model.parameter_count,
                "memory_bytes": ready.memory,
                "steps": run.steps,
                "train_tokens": ready.train_tokens,
                "validation_tokens": ready.validation_tokens,
                "vocab_size": ready.tokenizer.vocab_size,
                "first_batch": [ready.tokenizer.decode(row) for row in ready.first_batch],
            }
        )
        del ready  # its tokens are open until then, and Windows deletes no open file
    return 0


def _beginning(ready: Any) -> str:
    """The first words of the text, for a prompt that its tokenizer knows and a shell leaves alone."""
    words = re.findall(
        r"\w[\w ]*\w", ready.tokenizer.decode(ready.first_batch[0], skip_special=True)
    )
    return " ".join(max(words, key=len).split()[:3]) if words else ""


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' if count != 1 else ''}"


def _command(verb: str, what: str) -> str:
    return f"tinyplm {verb} {what}"


def _quoted(path: Any) -> str:
    text = str(path)
    return text if re.fullmatch(r"[\w./\\:-]+", text) else f'"{text}"'


@contextlib.contextmanager
def _anomalies(wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    from ..autograd import detect_anomaly

    with detect_anomaly():
        yield


def _documented() -> dict[str, str]:
    """What the settings are, from the list of attributes in the class's docstring."""
    found = re.findall(r"^ {8}(\w+): (.+(?:\n {12,}.+)*)", Run.__doc__ or "", re.MULTILINE)
    return {
        name: re.sub(r"\s+", " ", text).rstrip(".").replace("when None", "if not given")
        for name, text in found
    }


def _taking(name: str, kind: Any) -> dict[str, Any]:
    """What an option takes: a value, or nothing, as --graph and --no-graph."""
    if kind == bool | None:
        return {"action": argparse.BooleanOptionalAction}
    return {"metavar": _metavar(name, kind), "type": _reader(kind)}


def _metavar(name: str, kind: Any) -> str:
    if name in ("data", "output"):
        return {"data": "PATH", "output": "DIR"}[name]
    kinds = kind.__args__ if isinstance(kind, UnionType) else (kind,)
    return "N" if int in kinds else "X" if float in kinds else "NAME"


def _reader(kind: Any) -> Any:
    kinds = kind.__args__ if isinstance(kind, UnionType) else (kind,)
    return whole if int in kinds else number if float in kinds else str
