"""Filling a model's parameters from a file, all of them or none, and saying what happened."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..backend import namespace
from ..errors import CheckpointError
from ..types import Array
from .entry import TensorEntry, listed


class Parameter(Protocol):
    """What filling needs of a parameter; a leaf Tensor has it."""

    @property
    def array(self) -> Array:
        """Its values, or a placeholder of its shape."""

    def replace(self, array: Array) -> None:
        """Take another array of the same shape."""


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """Which names were found, and what became of them.

    `loaded`, `new` and `reshaped` are names of the model, `unused` and `ignored` names of the file.
    """

    loaded: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    values: int = 0

    @property
    def complete(self) -> bool:
        """Whether every parameter came from the file and no weight of the file was left over."""
        return not (self.new or self.unused or self.reshaped)

    def __str__(self) -> str:
        lines = [f"loaded    {len(self.loaded):>5}  ({self.values:,} values)"]
        for title, names, meaning in (
            ("new", self.new, "not in the file, kept as they were made"),
            ("reshaped", self.reshaped, "of another shape in the file, kept as they were made"),
            ("unused", self.unused, "in the file, not in the model"),
            ("ignored", self.ignored, "computed by the model itself"),
        ):
            if names:
                lines.append(f"{title:<9} {len(names):>5}  {listed(list(names))} ({meaning})")
        return "\n".join(lines)


def fill(
    parameters: Mapping[str, Parameter],
    entries: Mapping[str, TensorEntry],
    *,
    dtype: Any = None,
    unused: tuple[str, ...] = (),
    ignored: tuple[str, ...] = (),
    allow_new: bool = False,
    ignore_mismatched_sizes: bool = False,
    allow_nonfinite: bool = False,
) -> LoadReport:
    """Give each parameter the values of the entry of its name.

    With a dtype every parameter has it afterwards; without one each keeps its own. Every name,
    shape, dtype and value is checked before the first parameter changes: after an error all
    parameters are as they were. `unused` and `ignored` go into the report as they come.

    Raises:
        CheckpointError: a name is missing, a shape differs, an entry has no matching parameter, is
            not of real floating-point numbers, or holds NaN or infinity.
    """
    stray = [name for name in entries if name not in parameters]
    if stray:
        raise CheckpointError(f"The file has {listed(stray)}, the model has no such parameter.")
    arrays = {name: parameter.array for name, parameter in parameters.items()}
    shapes = {name: array.shape for name, array in arrays.items()}
    wanted, new, reshaped = match(
        shapes,
        entries,
        allow_new=allow_new,
        ignore_mismatched_sizes=ignore_mismatched_sizes,
    )
    staged: dict[str, Array] = {}
    for name in wanted:
        made = _converted(name, entries[name], dtype or arrays[name].dtype, allow_nonfinite)
        staged[name] = namespace(arrays[name]).asarray(made)
    for name in [*new, *reshaped]:
        if dtype is not None and arrays[name].dtype != dtype:
            staged[name] = arrays[name].astype(dtype)
    for name, array in staged.items():
        parameters[name].replace(array)
    return LoadReport(
        loaded=tuple(wanted),
        new=tuple(new),
        unused=unused,
        reshaped=tuple(reshaped),
        ignored=ignored,
        values=sum(staged[name].size for name in wanted),
    )


def match(
    shapes: Mapping[str, tuple[int, ...]],
    entries: Mapping[str, TensorEntry],
    *,
    allow_new: bool = False,
    ignore_mismatched_sizes: bool = False,
) -> tuple[list[str], list[str], list[str]]:
    """Which names can be loaded, are new, are of another shape; nothing is read.

    Raises:
        CheckpointError: a name is missing or a shape differs, and that was not allowed; or an
            entry is not of real floating-point numbers.
    """
    new = [name for name in shapes if name not in entries]
    if new and not allow_new:
        raise CheckpointError(
            f"The file lacks {len(new):,} of {len(shapes):,} weights: {listed(new)}. It may be of "
            "another model, or incomplete. To start these anew pass allow_new=True."
        )
    found = [name for name in shapes if name in entries]
    reshaped = [name for name in found if entries[name].shape != shapes[name]]
    if reshaped and not ignore_mismatched_sizes:
        lines = [
            f"{name}: file {entries[name].shape}, model {shapes[name]}." for name in reshaped[:6]
        ]
        more = f" {len(reshaped) - 6:,} more differ." if len(reshaped) > 6 else ""
        raise CheckpointError(
            " ".join(lines) + f"{more} Is config.json of another model than the weights? To start "
            "a new head pass ignore_mismatched_sizes=True."
        )
    for name in found:
        dtype = entries[name].dtype
        if dtype.kind != "f" and dtype.name not in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
            raise CheckpointError(
                f"{name} ({entries[name].name} in {entries[name].file.name}) has dtype {dtype}; "
                "a weight must be of real floating-point numbers. A quantized model? Load the "
                "original."
            )
    return [name for name in found if name not in reshaped], new, reshaped


def _converted(name: str, entry: TensorEntry, dtype: Any, allow_nonfinite: bool) -> Array:
    """An entry's values in dtype, finite unless that is allowed."""
    values = entry.read()
    with np.errstate(over="ignore", invalid="ignore"):
        made = values.astype(dtype, copy=False)
    if not allow_nonfinite and not all_finite(made):
        if all_finite(values):
            raise CheckpointError(
                f"{name}: values up to {np.abs(values).max():.3g} do not fit {made.dtype}. Load "
                "with a wider dtype."
            )
        bad = np.argwhere(~np.isfinite(made))
        raise CheckpointError(
            f"{name} ({entry.name} in {entry.file.name}) holds {made[tuple(bad[0])]} at "
            f"{bad[0].tolist()}, {len(bad):,} of {made.size:,} values are not finite. The training "
            "that wrote it had diverged, or the file is damaged. Pass allow_nonfinite=True to look "
            "at it all the same."
        )
    return made


def all_finite(array: Array) -> bool:
    """Whether no value is NaN or infinite."""
    return bool(np.isfinite(array).all())
