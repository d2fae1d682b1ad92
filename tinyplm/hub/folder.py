"""A model folder in the layout of Hugging Face: settings and named arrays, nothing executed.

    config.json                           what the model is
    model.safetensors                     all weights; or
    model.safetensors.index.json          which shard holds which weight; or
    pytorch_model.bin                     the old form, or its .index.json

The first weights file present, in this order, is the one that counts. Only folders on disk are
read: no socket is ever opened.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..errors import CheckpointError, MissingFileError
from .entry import TensorEntry, listed, shown
from .regular_file import inside, read_json
from .safetensors_file import read_safetensors

CONFIG_BYTES = 16_000_000
INDEX_BYTES = 100_000_000

WEIGHTS = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class ModelFolder:
    """What a model folder holds; tensors are read when asked for."""

    path: Path
    config: dict[str, Any]
    tensors: Mapping[str, TensorEntry]


def read_folder(path: str | Path) -> ModelFolder:
    """Look into a model folder on disk; check everything, read no weights yet.

    Raises:
        MissingFileError: there is no such folder, or it lacks config.json or weights.
        CheckpointError: a file in it is damaged, unsafe or contradicts another.
    """
    folder = Path(path)
    _demand_folder(folder)
    names = sorted(item.name for item in folder.iterdir())
    if "config.json" not in names:
        interrupted = "config.json.previous" in names
        raise MissingFileError(
            f"{folder} has no config.json, so the model's kind and sizes are unknown. "
            + (
                "A save into this folder was interrupted; save the model again, or rename "
                "config.json.previous to config.json if the weights are still the old ones."
                if interrupted
                else f"It holds: {listed(names) or 'nothing'}. Is this the folder that "
                "save_pretrained wrote?"
            )
        )
    config = read_json(inside(folder, "config.json"), limit=CONFIG_BYTES)
    for name in WEIGHTS:
        if name in names:
            entries = _reader(name)(inside(folder, name))
        elif f"{name}.index.json" in names:
            entries = _read_shards(folder, f"{name}.index.json", _reader(name))
        else:
            continue
        return ModelFolder(folder, config, MappingProxyType(entries))
    raise MissingFileError(
        f"{folder} has no weights: expected {' or '.join(WEIGHTS)} or an index of shards. It "
        f"holds: {listed(names)}. Weights of other frameworks (.h5, .msgpack, .gguf) are not read."
    )


def _reader(name: str) -> Callable[[Path], dict[str, TensorEntry]]:
    if name.endswith(".safetensors"):
        return read_safetensors
    from .torch_file import read_torch  # rarely needed, and slower to import than all the rest

    return read_torch


def _demand_folder(folder: Path) -> None:
    """Say helpfully that there is no such folder."""
    if folder.is_dir():
        return
    if folder.exists():
        raise CheckpointError(f"{folder} is a file. Give the folder that holds config.json.")
    parent = folder.parent
    siblings = [item.name for item in parent.iterdir() if item.is_dir()] if parent.is_dir() else []
    near = get_close_matches(folder.name, siblings, n=3, cutoff=0.6)
    hint = f" Did you mean {' or '.join(str(parent / name) for name in near)}?" if near else ""
    text = folder.as_posix()
    if not near and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", text) and not text.startswith("."):
        hint = (
            " If this is a name on the Hugging Face hub: only folders on disk are read now, "
            f"nothing is downloaded. Fetch it once with `hf download {text} --local-dir {text}`, "
            "then give that folder."
        )
    raise MissingFileError(f"There is no folder {folder} on this disk.{hint}")


def _read_shards(
    folder: Path, index_name: str, reader: Callable[[Path], dict[str, TensorEntry]]
) -> dict[str, TensorEntry]:
    """The tensors of all shards, as the index distributes them."""
    index = read_json(inside(folder, index_name), limit=INDEX_BYTES)
    where = f"{folder / index_name}"
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{where}: expected weight_map, tensor names with their files.")
    by_shard: dict[str, list[str]] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str):
            raise CheckpointError(f"{where}: the file of {shown(name)} must be a text.")
        by_shard.setdefault(shard, []).append(name)
    # All names are looked at before any file is opened.
    paths = {shard: inside(folder, shard) for shard in by_shard}
    entries: dict[str, TensorEntry] = {}
    for shard, names in by_shard.items():
        held = reader(paths[shard])
        missing = [name for name in names if name not in held]
        if missing:
            raise CheckpointError(
                f"{where} says that {shown(shard)} holds {listed(missing)}, but it does not. The "
                "index and the shards are not of one save; download or save all of them again."
            )
        entries |= {name: held[name] for name in names}
    return entries
