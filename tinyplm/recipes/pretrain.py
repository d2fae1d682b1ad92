"""Pretraining from a text to a model folder, as an iterator of what happened.

A run's folder holds, while it runs and after: run.json (its settings), tokenizer.json, tokens.bin, metrics.jsonl,
checkpoint-NNNNNN folders, and at the end the model as a folder that transformers opens too.
"""

import contextlib
import itertools
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from ..analysis.reading import translates
from ..backend import free_memory, library, on_device, to_numpy
from ..errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DeviceMemoryError,
    MissingFileError,
    NonFiniteError,
    TinyplmWarning,
)
from ..hub import save_pretrained
from ..kernels.precision import fixed_weights, precision
from ..objectives import Objective, objective_named
from ..optim import OPTIMIZERS, masters
from ..text import Tokenizer
from ..train import checkpoint
from ..train.checkpoint import replace_file
from ..train.evaluate import Score, count_labels, examine
from ..train.loop import Step, train
from ..train.progress import MetricsLog
from .doctor import memory
from .material import Material
from .models import MODELS
from .output import free_folder, left_as_found, refuse_taken
from .run import Run, read_saved
from .sample import sample
from .trained import parameter_dtype

LABELS_COUNTED = 200
"""Batches of examples whose labels are counted, for the baseline that knows only how common each label is."""


@dataclass(frozen=True)
class Prepared:
    """Everything is ready to train."""

    run: Run
    output: Path
    corpus: str
    tokenizer: Tokenizer
    objective: Objective
    training: Any
    held_out: Any
    batches: Any
    held_out_batches: Any
    counted: dict[str, Any]
    text_bytes: int
    model: Any
    resumed: int
    first_batch: Any
    seconds: float

    @property
    def train_tokens(self) -> int:
        """Tokens, or pairs of texts, to train on."""
        return len(self.training)

    @property
    def validation_tokens(self) -> int:
        """Tokens, or pairs of texts, that are held out."""
        return len(self.held_out)

    @property
    def memory(self) -> int:
        """Bytes that training takes, estimated: weights, gradients, two moments, activations, logits."""
        c, r = self.model.config, self.run
        each, weights = _sizes(r, self.model.parameter_count)
        tokens = r.batch * r.positions
        wide = 14 * c.hidden_size + 2 * (getattr(c, "ffn_size", 0) or 0)
        layers = c.layers * (2 if translates(self.model) else 1)  # of two parts
        activations = each * tokens * layers * wide
        scores = each * r.batch * getattr(c, "heads", 0) * r.positions**2 * layers
        return int(weights + activations + scores + 2 * 4 * tokens * c.vocab_size)


@dataclass(frozen=True)
class Evaluated:
    """The validation loss after an update."""

    step: int
    score: Score
    whole: bool


@dataclass(frozen=True)
class Saved:
    """A checkpoint was written."""

    step: int
    path: Path
    interrupted: bool = False


@dataclass(frozen=True)
class Finished:
    """The run is over and the model saved."""

    output: Path
    score: Score
    sample: str
    seconds: float


def prepare(run: Run, output: Path, *, resumed: int = 0) -> Prepared:
    """Text, tokenizer, tokens and a new model in the folder; nothing is trained.

    A folder that held nothing is left as it was found if anything goes wrong. A run that is resumed reads the tokens
    it began with, whatever has become of the text since.

    Raises:
        ConfigError: settings that do not fit each other, or no such tokenizer.
        MissingFileError: no such text.
        DataError: text that cannot be read, or too little of it.
        CheckpointError: the folder cannot be written.
        MissingExtraError, DeviceMemoryError: there is no such device, or no room on it.
    """
    began = time.perf_counter()
    entry = MODELS[run.model]
    entry.config(run, run.vocab_size)  # refused before anything is written
    dtype = parameter_dtype(run.device, run.precision)
    library(run.device)
    material = Material(run, output, resumed=bool(resumed))
    with left_as_found(output):
        try:
            output.mkdir(parents=True, exist_ok=True)
            replace_file(output / "run.json", replace(run, output=str(output)).as_json().encode())
        except OSError as error:
            raise CheckpointError(
                f"{output} cannot be written: {error.strerror or error}. Choose another folder with --output."
            ) from None
        tokenizer = material.tokenizer()
        objective = objective_named(run.objective_name, tokenizer)
        tokens = material.tokens(tokenizer)
        training, held_out = material.split(tokens)
        config = entry.config_for(run, tokenizer)
        _check_memory(run, entry.build(config, rng=None).parameter_count)

        def batches(text: Any, length: int) -> Any:
            return objective.batches(text, length=length, batch=run.batch, seed=run.seed)

        source, held_out_batches = (
            batches(training, run.positions),
            batches(held_out, material.window(held_out)),
        )
        counted = count_labels(
            objective,
            itertools.islice(batches(training, run.positions), LABELS_COUNTED),
            classes=config.vocab_size,
            rng=np.random.default_rng([run.seed, 2]),
        )
        model = entry.build(config, rng=np.random.default_rng(run.seed)).to(run.device, dtype)
        return Prepared(
            run=run,
            output=output,
            corpus=material.description,
            tokenizer=tokenizer,
            objective=objective,
            training=training,
            held_out=held_out,
            batches=source,
            held_out_batches=held_out_batches,
            counted=counted,
            text_bytes=tokens.text_bytes,
            model=model,
            resumed=resumed,
            first_batch=next(batches(training, run.positions))["input_ids"],
            seconds=time.perf_counter() - began,
        )


def pretrain(
    run: Run, *, resume: bool = False
) -> Iterator[Prepared | Step | Evaluated | Saved | Finished]:
    """Train a model on a text from the beginning, or go on where an interrupted run stood.

    The first Ctrl-C ends the update at hand, writes a checkpoint, yields it with interrupted=True and stops.

    Args:
        run: the settings; when resuming, those that were saved.
        resume: go on from the newest checkpoint of the folder `run.output`, bit for bit as if never interrupted.

    Raises:
        NonFiniteError: the loss or its gradient is not finite; the last checkpoint is intact.
        DeviceMemoryError: the card has no room; the last checkpoint is intact.
        ConfigError, DataError, CheckpointError: what the message says.
    """
    began = time.perf_counter()
    output = Path(run.output) if run.output else free_folder(Path("runs"), run.model)
    if not resume:
        refuse_taken(output)
    saved = checkpoint.load_latest(output) if resume else None
    ready = prepare(run, output, resumed=saved.step if saved else 0)
    yield ready

    model, tokenizer, objective, windows = (
        ready.model,
        ready.tokenizer,
        ready.objective,
        ready.batches,
    )
    text = Material(run, output, resumed=True).digest()
    kind, settings = OPTIMIZERS[run.optimizer]
    optimizer = kind(model.named_parameters(), **{name: getattr(run, name) for name in settings})
    carrying: Any = objective if hasattr(objective, "arrays") else None  # from step to step
    rng = np.random.default_rng([run.seed, 1])
    if saved:
        if saved.state["text"] != text:
            raise DataError(
                f"{output / 'tokens.bin'} is not what this run began with, so going on would not give "
                "the same model. Restore the text and the tokenizer, or start a new run with another --output."
            )
        model.load(_on_device(saved.arrays["model"], run.device))
        optimizer.restore(saved.arrays["optimizer"], saved.state["optimizer"])
        windows.restore(saved.state["windows"])
        if carrying:
            carrying.restore(_on_device(saved.arrays["objective"], run.device))
        rng.bit_generator.state = saved.state["rng"]

    def save(step: int) -> Path:
        return checkpoint.save(
            output,
            step,
            arrays={
                "model": {name: to_numpy(a) for name, a in model.arrays().items()},
                "optimizer": {name: to_numpy(a) for name, a in optimizer.arrays().items()},
            }
            | ({"objective": carrying.arrays()} if carrying else {}),
            state={
                "optimizer": optimizer.state(),
                "windows": windows.state(),
                "text": text,
                "rng": rng.bit_generator.state,
            },
        )

    last = saved.step if saved else 0
    score = None
    waiting: deque[Step] = deque()  # for their numbers; a look or a checkpoint waits for all
    with MetricsLog(output / "metrics.jsonl", resumed=last) as log, _Interrupts() as interrupts:
        records = _in_precision(
            run.products,
            train(
                model,
                objective,
                windows,
                optimizer,
                run.rate,
                rng=rng,
                start=last,
                steps=run.steps,
                accumulate=run.accumulate,
                clip=run.clip or None,
                graph=run.graph,
            ),
        )
        try:
            for step in records:
                waiting.append(step)
                whole = step.number == run.steps
                looks = whole or step.number % run.evaluation_interval == 0
                due = whole or step.number % run.checkpoint_interval == 0
                while waiting and (looks or due or interrupts.asked or waiting[0].known):
                    told = waiting.popleft()
                    record = _record(told)
                    yield told
                    score = None
                    if told is step and looks:
                        score = _validate(ready, whole=whole)
                        record |= _recorded(score)
                    log.write(record)
                    if score:
                        yield Evaluated(step.number, score, whole)
                if not waiting and (due or interrupts.asked):
                    log.sync()
                    path = save(step.number)
                    last = step.number
                    stopping = interrupts.asked and step.number < run.steps
                    yield Saved(step.number, path, interrupted=stopping)
                    if stopping:
                        return
        except NonFiniteError as error:
            intact = f"Checkpoint {last} is intact. " if last else "There is no checkpoint yet. "
            raise NonFiniteError(str(error).replace("Try ", intact + "Try ", 1)) from None
        except DeviceMemoryError as error:
            intact = f"Checkpoint {last} is intact." if last else "There is no checkpoint yet."
            raise DeviceMemoryError(f"{error} {intact}") from error

    if score is None:  # resumed at the very end
        score = _validate(ready, whole=True)
    if full := masters(optimizer.arrays()):
        model.load(model.arrays() | full)
    save_pretrained(model, output, tokenizer=tokenizer)
    yield Finished(
        output=output,
        score=score,
        sample=sample(ready),
        seconds=time.perf_counter() - began,
    )


def _record(step: Step) -> dict[str, Any]:
    """What the log says of an update."""
    return {
        "step": step.number,
        "loss": step.loss,
        "gradient_norm": step.gradient_norm,
        "learning_rate": step.learning_rate,
        "tokens": step.tokens,
        "seconds": round(step.seconds, 6),
    }


def _recorded(score: Score) -> dict[str, float]:
    """What the log says of a look at the held-out text."""
    record = {"validation_loss": score.nats}
    for name, term in score.terms.items():
        record[f"validation_{name}_nats"] = term.nats
        record[f"validation_{name}_accuracy"] = term.accuracy
    return record


def _in_precision(name: str, steps: Iterator[Step]) -> Iterator[Step]:
    """The steps, each computed in a precision; what is done between them is not."""
    while True:
        with precision(name):
            step = next(steps, None)
        if step is None:
            return
        yield step


def saved_run(output: str | None, model: str | None = None) -> Run:
    """The settings of the run in a folder, or of the newest (of that model) under runs/."""
    if output:
        folder = Path(output)
    else:
        folders = [path.parent for path in Path("runs").glob(f"{model or ''}*/run.json")]
        if not folders:
            raise MissingFileError(
                f"--resume found no run{f' of {model}' if model else ''} under runs/. Name its folder with --output, "
                "or start one without --resume."
            )
        folder = max(folders, key=lambda folder: (folder / "run.json").stat().st_mtime)
    return replace(read_saved(folder), output=str(folder))  # the folder may have been moved


def _on_device(arrays: dict[str, Any], device: str) -> dict[str, Any]:
    return {name: on_device(array, device) for name, array in arrays.items()}


def _sizes(run: Run, parameters: int) -> tuple[int, int]:
    """Bytes of a value between layers, and of all parameters with gradients, two moments and masters."""
    if run.device == "cuda" and run.precision == "bfloat16":
        return 2, (2 + 4 + 8 + 4) * parameters
    return 4, (4 + 4 + 8) * parameters


def _check_memory(run: Run, parameters: int) -> None:
    """Refuse a model that cannot be trained in this memory: its weights, gradients and two moments."""
    _, needed = _sizes(run, parameters)
    there = memory() if run.device == "cpu" else free_memory()
    if there is not None and needed > there:
        where = (
            "this machine has" if run.device == "cpu" else "free on the card for this program are"
        )
        raise ConfigError(
            f"{parameters:,} parameters take {needed / 1e9:,.1f} GB to train, and {where} {there / 1e9:,.1f} GB. "
            "Lower --layers, --hidden-size or --vocab-size."
        )


def _validate(ready: Prepared, *, whole: bool) -> Score:
    """What the model loses on the held-out text, all of it or its beginning."""
    run = ready.run
    batches = ready.held_out_batches.in_order()
    if not whole:
        batches = itertools.islice(batches, max(1, -(-run.evaluation_windows // run.batch)))
    with precision(run.products), fixed_weights():
        terms = examine(
            ready.model,
            ready.objective,
            batches,
            rng=np.random.default_rng(run.seed),
            counted=ready.counted,
        )
    nats = sum(term.nats for term in terms.values())
    return Score(nats, len(ready.held_out), ready.held_out.text_bytes, terms)


class _Interrupts(contextlib.AbstractContextManager["_Interrupts"]):
    """Turns the first Ctrl-C, or request to end, into a wish granted after the update; the second ends at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        warnings.warn(
            "Stopping after this update; a checkpoint follows.", TinyplmWarning, stacklevel=2
        )

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
