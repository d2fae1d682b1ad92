"""What a pretraining run is made of: one flat table of settings, from flags, a TOML file, or saved beside a run."""

import dataclasses
import difflib
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from ..errors import CheckpointError, ConfigError, MissingFileError
from ..kernels.precision import PRECISIONS
from ..models.seq2seq import ATTENTIONS
from ..objectives import OBJECTIVES
from ..optim import OPTIMIZERS, SCHEDULES
from .models import MODELS


@dataclass(frozen=True, kw_only=True)
class Run:
    """Settings of a pretraining run; each is a flag of the command line and a key of the TOML file.

    Attributes:
        model: what to pretrain; `tinyplm models` lists them.
        objective: what it learns from; the model's own when None.
        data: a file or folder of text; Python's own documentation when None.
        encoding: of the text.
        text_column: of .csv, .tsv and .jsonl files; found by itself when None.
        validation: share of the text, its end, that is held out.
        tokenizer: "chars", "bytes", "bpe" (byte-level), "wordpiece", or a path to a trained one; the model's own kind
            when None.
        vocab_size: of a tokenizer trained here.
        layers: blocks.
        heads: per layer.
        hidden_size: width.
        positions: tokens of a window, and the longest context.
        dropout: everywhere the paper has it.
        attention: of seq2seq, "none", "additive", "dot", "general" or "concat"; "general" when None.
        steps: updates.
        batch: windows in a batch.
        accumulate: batches of an update.
        optimizer: "adamw", "adafactor" or "sgd".
        lr: peak of the learning rate.
        min_lr: where the schedule ends; a tenth of lr when None.
        warmup: updates until the peak; a tenth of the steps, at most 1000, when None.
        schedule: "cosine", "linear", "constant" or "inverse-square-root".
        weight_decay: of matrices, per update times the learning rate.
        beta_1: memory of Adam's mean.
        beta_2: memory of Adam's mean square.
        clip: longest gradient norm; 0 for no clipping.
        seed: of everything drawn.
        evaluate_every: updates between looks at the validation loss; ten looks in all when None.
        evaluation_windows: windows of validation text read at each look but the last, which reads all.
        checkpoint_every: updates between checkpoints; as often as evaluated when None.
        sample_tokens: length of the sample printed at the end.
        device: "cpu" or "cuda".
        precision: "float32", "bfloat16" or "bfloat16x3": on the CPU of products of float32 matrices, with weights that
            stay float32; with device "cuda" of everything between layers, "float32" or "bfloat16", with weights that
            are learned in float32.
        graph: record steps that come again and repeat them as a whole, with device "cuda"; yes when None.
        output: folder of the run; a new one under runs/ when None.
    """

    model: str = "gpt2"
    objective: str | None = None
    data: str | None = None
    encoding: str = "utf-8"
    text_column: str | None = None
    validation: float = 0.1
    tokenizer: str | None = None
    vocab_size: int = 4_096
    layers: int = 2
    heads: int = 4
    hidden_size: int = 128
    positions: int = 64
    dropout: float = 0.0
    attention: str | None = None
    steps: int = 240
    batch: int = 16
    accumulate: int = 1
    optimizer: str = "adamw"
    lr: float = 4e-3
    min_lr: float | None = None
    warmup: int | None = None
    schedule: str = "cosine"
    weight_decay: float = 0.1
    beta_1: float = 0.9
    beta_2: float = 0.95
    clip: float = 1.0
    seed: int = 0
    evaluate_every: int | None = None
    evaluation_windows: int = 64
    checkpoint_every: int | None = None
    sample_tokens: int = 80
    device: str = "cpu"
    precision: str = "float32"
    graph: bool | None = None
    output: str | None = None

    def __post_init__(self) -> None:
        kinds = get_type_hints(Run)
        for field in dataclasses.fields(self):
            value, kind = getattr(self, field.name), kinds[field.name]
            if kind is float and type(value) is int:
                object.__setattr__(self, field.name, float(value))
            elif not isinstance(value, kind) or (isinstance(value, bool) and kind != bool | None):
                raise ConfigError(f"{field.name} is {value!r}, expected {_said(kind)}.")
        for name in ("layers", "heads", "hidden_size", "positions", "steps", "batch", "accumulate"):
            self._at_least(name, 1)
        for name in ("warmup", "seed", "sample_tokens"):
            self._at_least(name, 0)
        for name in ("evaluate_every", "checkpoint_every", "evaluation_windows"):
            self._at_least(name, 1)
        self._at_least("vocab_size", 2)
        for name in ("lr", "min_lr", "weight_decay", "clip"):
            self._at_least(name, 0.0)
        for name in ("dropout", "beta_1", "beta_2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}, expected at least 0 and below 1."
                )
        if self.min_lr is not None and self.min_lr > self.lr:
            raise ConfigError(f"min_lr is {self.min_lr}, above the peak lr={self.lr}; lower it.")
        if not 0 < self.validation < 1:
            raise ConfigError(
                f"validation is {self.validation}, expected a share of the text between 0 and 1, such as 0.1."
            )
        _known("model", self.model, MODELS)
        _known("schedule", self.schedule, SCHEDULES)
        if self.attention is not None:
            if self.model != "seq2seq":
                raise ConfigError(
                    f"attention is a setting of seq2seq, and the model is {self.model}. Leave it out."
                )
            _known("attention", self.attention, ("none", *filter(None, ATTENTIONS)))
        _known("optimizer", self.optimizer, OPTIMIZERS)
        _known("device", self.device, ("cpu", "cuda"))
        _known("precision", self.precision, PRECISIONS)
        if self.device == "cuda" and self.precision == "bfloat16x3":
            raise ConfigError(
                "precision is bfloat16x3, which stands in for float32 on CPUs. With device cuda use float32, or "
                "bfloat16 for speed."
            )
        if self.objective is not None:
            for part in self.objective.split("+"):
                _known("objective", part, OBJECTIVES)
            entry = MODELS[self.model]
            if not entry.fits(self.objective):
                raise ConfigError(
                    f"Objective '{self.objective}' does not fit {self.model}, which can learn from: "
                    f"{', '.join(entry.objectives)}."
                )

    def _at_least(self, name: str, least: float) -> None:
        value = getattr(self, name)
        if value is not None and not least <= value < math.inf:
            raise ConfigError(f"{name} is {value}, expected a finite number of at least {least}.")

    @property
    def objective_name(self) -> str:
        """What the model learns from: what was asked for, else its own objective."""
        return self.objective or MODELS[self.model].objectives[0]

    def rate(self, step: int) -> float:
        """Learning rate of an update, counted from 0."""
        warmup = min(1_000, self.steps // 10) if self.warmup is None else self.warmup
        floor = self.lr / 10 if self.min_lr is None else self.min_lr
        return SCHEDULES[self.schedule](
            step, peak=self.lr, warmup=warmup, total=self.steps, floor=floor
        )

    @property
    def products(self) -> str:
        """The precision of products on the CPU; on a card that of parameters decides."""
        return self.precision if self.device == "cpu" else "float32"

    @property
    def evaluation_interval(self) -> int:
        """Updates between looks at the validation loss."""
        return self.evaluate_every or max(1, self.steps // 10)

    @property
    def checkpoint_interval(self) -> int:
        """Updates between checkpoints."""
        return self.checkpoint_every or self.evaluation_interval

    def as_json(self) -> str:
        """All settings as one JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"


def from_settings(settings: Mapping[str, Any], where: str = "") -> Run:
    """A run from settings by name, with the model's own defaults; a name that does not exist suggests the nearest.

    Args:
        settings: by the names of the attributes of `Run`.
        where: they come from, which messages begin with.
    """
    fields = {field.name for field in dataclasses.fields(Run)}
    for name in settings:
        _known("setting", name, fields, where)
    entry = MODELS.get(settings.get("model", Run.model))
    try:
        return Run(**(dict(entry.defaults if entry else {}) | dict(settings)))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}" if where else str(error)) from None


def read_toml(path: Path) -> dict[str, Any]:
    """Settings of a TOML file, by name with underscores or dashes; relative paths of data count from the file.

    Raises:
        MissingFileError: no such file.
        ConfigError: it is not TOML, or has tables.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise MissingFileError(f"No file {path}. --config names a TOML file of settings.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    try:
        settings = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"{path} is not TOML: {error}. Expected lines such as: layers = 4"
        ) from None
    for name, value in settings.items():
        if isinstance(value, dict | list):
            raise ConfigError(
                f"{path}: {name} is a table or list; settings are plain lines, such as: layers = 4"
            )
    settings = {name.replace("-", "_"): value for name, value in settings.items()}
    if isinstance(settings.get("data"), str):
        settings["data"] = str(path.parent / settings["data"])
    return settings


def read_saved(folder: Path) -> Run:
    """The settings saved in a run's folder.

    Raises:
        MissingFileError: the folder holds no run.
        CheckpointError: the file is damaged.
    """
    path = folder / "run.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingFileError(
            f"No run in {folder}: there is no run.json. Start one without --resume, or name its folder with --output."
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}); start the run anew in another folder."
        ) from None
    return from_settings(settings, str(path))


def _known(what: str, name: str, known: Any, where: str = "") -> None:
    if name in known:
        return
    near = difflib.get_close_matches(name, list(known), n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    before = f"{where}: no" if where else "No"
    raise ConfigError(f"{before} {what} '{name}'.{hint} Known: {', '.join(sorted(known))}.")


def _said(kind: Any) -> str:
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return words.get(kind) or " or nothing, ".join(
        words[k] for k in kind.__args__ if k is not type(None)
    )
