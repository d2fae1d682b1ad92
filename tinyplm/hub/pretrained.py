"""From a model folder to a model and back."""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..backend import library, to_numpy
from ..errors import ConfigError, TinyplmWarning
from ..types import Generator
from .entry import dtype_named
from .family import family_named, model_type_of
from .folder import read_folder
from .report import LoadReport, fill, match
from .save import as_json, save_folder

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
DTYPES = ("float32", "float64", "float16", "bfloat16")


class Loaded(NamedTuple):
    """A model, what became of each name in its folder, and the settings as they stand there."""

    model: Any
    report: LoadReport
    config: dict[str, Any]


def from_pretrained(
    path: str | Path, *, dtype: str = "float32", device: str = "cpu", **options: Any
) -> Any:
    """The model in a folder on disk, ready to use. `load` says more and lists the options."""
    return load(path, dtype=dtype, device=device, **options).model


def load(
    path: str | Path,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    head: str | None = None,
    rng: Generator | None = None,
    allow_new: bool = False,
    ignore_mismatched_sizes: bool = False,
    allow_nonfinite: bool = False,
) -> Loaded:
    """The model in a folder on disk, with a report.

    Nothing is downloaded and nothing in the folder is executed. Every name, shape and value is
    checked before a model is returned.

    Args:
        path: a folder with config.json and weights, as save_pretrained writes it.
        dtype: of the parameters, whatever the file has.
        device: where they are put, "cpu" or "cuda", which is where the model computes.
        head: what the model is for, such as "sequence-classification"; what config.json says by default.
        rng: draws the values of parameters that the file lacks.
        allow_new: parameters that are not in the file start anew.
        ignore_mismatched_sizes: parameters of another shape in the file start anew.
        allow_nonfinite: NaN and infinity are let in.

    Raises:
        MissingFileError: no such folder, or no config.json or weights in it.
        CheckpointError: a file is damaged, unsafe, or of another model than config.json.
        ConfigError: config.json has a setting that cannot be followed.
        MissingExtraError, DeviceMemoryError: there is no such device, or no room on it.
    """
    library(device)  # refuses a device that is not there, before anything is read
    if dtype not in DTYPES:
        raise ConfigError(f"dtype={dtype!r}; expected one of {', '.join(DTYPES)}.")
    if (allow_new or ignore_mismatched_sizes) and rng is None:
        raise ConfigError(
            "allow_new and ignore_mismatched_sizes start parameters anew, which draws numbers: "
            "pass rng=numpy.random.default_rng(seed)."
        )
    folder = read_folder(path)
    family = family_named(folder.config.get("model_type"))
    config, found = family.read_config(folder.config, family.sort(folder.tensors), head)
    match(
        family.shapes(config),
        found.entries,
        allow_new=allow_new,
        ignore_mismatched_sizes=ignore_mismatched_sizes,
    )
    model = family.build(config, rng if allow_new or ignore_mismatched_sizes else None)
    report = fill(
        model.named_parameters(),
        found.entries,
        dtype=dtype_named(dtype),
        unused=found.unused,
        ignored=found.ignored,
        allow_new=allow_new,
        ignore_mismatched_sizes=ignore_mismatched_sizes,
        allow_nonfinite=allow_nonfinite,
    )
    if not report.complete:
        warnings.warn(f"{path}: not everything fits.\n{report}", TinyplmWarning, stacklevel=2)
    return Loaded(model.to(device), report, folder.config)


def save_pretrained(
    model: Any,
    path: str | Path,
    *,
    dtype: str | None = None,
    max_shard_size: int | str = "5GB",
    tokenizer: Any = None,
    extra_config: Mapping[str, Any] | None = None,
) -> None:
    """Write a model as a folder that this library and transformers open.

    A model that is in the folder stays whole until the new one is (see `save`).

    Args:
        model: a model of a known family.
        path: the folder; made if it is not there.
        dtype: of the file; by default that of the parameters.
        max_shard_size: in bytes, or such as "500MB"; larger models are split into several files.
        tokenizer: saved beside the model, and its end of text named in config.json.
        extra_config: further keys for config.json, such as eos_token_id; what the model itself
            says cannot be changed by them.

    Raises:
        ConfigError: an argument is wrong, or the tokenizer has more tokens than the model.
        NonFiniteError: a parameter is not finite; the folder stays as it was.
        CheckpointError: the folder cannot be written.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"dtype={dtype!r}; expected one of {', '.join(DTYPES)}.")
    model_type = model_type_of(model)
    family = family_named(model_type)
    end_of_text = None
    files: dict[str, bytes] = {}
    if tokenizer is not None:
        if len(tokenizer) > model.config.vocab_size:
            raise ConfigError(
                f"The tokenizer has {len(tokenizer):,} tokens, the model vocab_size="
                f"{model.config.vocab_size:,}: some ids would have no embedding. Save the "
                "tokenizer that the model was trained with."
            )
        end_of_text = tokenizer.end_of_text
        files |= _files_of(tokenizer)
    arrays = family.write_arrays(
        model.config,
        {ours: to_numpy(parameter.array) for ours, parameter in model.named_parameters().items()},
    )
    own = family.write_config(model.config, end_of_text) | {
        "model_type": model_type,
        "dtype": dtype or next(iter(arrays.values())).dtype.name,
    }
    extra = dict(extra_config or {})
    clash = [key for key in extra if key in own and own[key] != extra[key] and key not in TOKEN_IDS]
    if clash:
        raise ConfigError(f"extra_config may not change {', '.join(clash)}; the model says these.")
    config = own | extra
    ids = {key: config.get(key) for key in TOKEN_IDS}
    try:
        files["config.json"] = as_json(config)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"extra_config cannot be written as JSON: {error}.") from None
    files["generation_config.json"] = as_json(ids | {"_from_model_config": True})
    save_folder(
        path,
        files,
        arrays,
        dtype=None if dtype is None else dtype_named(dtype),
        shard_bytes=_bytes(max_shard_size),
    )


def _files_of(tokenizer: Any) -> dict[str, bytes]:
    """What a tokenizer writes, so that it can be put in place together with the model."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        return {item.name: item.read_bytes() for item in Path(folder).iterdir()}


def _bytes(size: int | str) -> int:
    """A number of bytes from 500_000_000, "500MB" or "1GiB"."""
    units = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}
    match_ = re.fullmatch(r"\s*([0-9]+)\s*([KMG]I?)?B?\s*", str(size).upper(), re.ASCII)
    count = int(match_[1]) * units[match_[2] or ""] if match_ else 0
    if count < 1 or isinstance(size, bool):
        raise ConfigError(f'max_shard_size={size!r}; expected bytes, or such as "500MB" or "5GB".')
    return count
