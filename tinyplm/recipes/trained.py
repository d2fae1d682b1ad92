"""A trained model with its tokenizer, from whatever folder holds one."""

from pathlib import Path
from typing import Any, NamedTuple

from ..backend import library
from ..errors import CheckpointError, ConfigError, MissingFileError
from ..hub import load
from ..hub.entry import dtype_named
from ..optim import masters
from ..text import Tokenizer
from ..train import checkpoint
from .models import MODELS
from .run import read_saved


class Trained(NamedTuple):
    """A model and its tokenizer.

    Attributes:
        model: ready to use.
        tokenizer: the one it was trained with.
        unfinished: what is known of a run that has not ended, such as "step 200 of 400"; None otherwise.
    """

    model: Any
    tokenizer: Tokenizer
    unfinished: str | None


def open_trained(path: str | Path, *, device: str = "cpu", precision: str = "float32") -> Trained:
    """The model in a model folder, in the folder of a run, finished or not, or in one checkpoint of a run.

    Args:
        path: the folder.
        device: where the model shall compute, "cpu" or "cuda".
        precision: that it shall compute in; on a card parameters are held in it, on the CPU it is for
            `tinyplm.precision`.

    Raises:
        MissingFileError: no such folder, or no model or tokenizer in it.
        CheckpointError, ConfigError: a file is damaged or of another kind, or a precision that the device has not.
        MissingExtraError, DeviceMemoryError: there is no such device, or no room on it.
    """
    dtype = parameter_dtype(device, precision)
    library(device)  # refuses a device that is not there, before anything is read
    trained = _opened(path)
    return trained._replace(model=trained.model.to(device, dtype))


def parameter_dtype(device: str, precision: str) -> Any:
    """What parameters are held as, so that a model computes in this precision on a device; None to leave them.

    Raises:
        ConfigError: the device does not have this precision.
    """
    if device == "cpu" or precision == "float32":
        return None
    if precision != "bfloat16":
        raise ConfigError(
            f"--precision {precision} is for the CPU, where bfloat16 products stand in for float32 ones. With --device "
            "cuda use float32, or bfloat16 for speed."
        )
    return dtype_named(precision)


def _opened(path: str | Path) -> Trained:
    folder = Path(path)
    if (folder / "manifest.json").is_file() and (folder.parent / "run.json").is_file():
        return _from_checkpoint(folder.parent, checkpoint.load(folder))
    if (folder / "run.json").is_file() and not (folder / "config.json").is_file():
        saved = checkpoint.load_latest(folder)
        if saved is None:
            raise MissingFileError(
                f"The run in {folder} was stopped before its first checkpoint, so there is no model yet. "
                f"Go on with: tinyplm pretrain --resume --output {folder}"
            )
        return _from_checkpoint(folder, saved)
    return Trained(load(folder).model, Tokenizer.load(folder), None)


def _from_checkpoint(folder: Path, saved: checkpoint.Checkpoint) -> Trained:
    run, tokenizer = read_saved(folder), Tokenizer.load(folder)
    entry = MODELS[run.model]
    model = entry.build(entry.config_for(run, tokenizer), rng=None)
    if "model" not in saved.arrays:
        raise CheckpointError(f"{saved.path} holds no model, so it is no checkpoint of a run.")
    model.load(saved.arrays["model"] | masters(saved.arrays.get("optimizer", {})))
    unfinished = f"step {saved.step:,} of {run.steps:,}" if saved.step < run.steps else None
    return Trained(model, tokenizer, unfinished)
