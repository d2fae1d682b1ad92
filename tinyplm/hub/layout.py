"""Where each of our parameters lies in another library's file: under which names, transposed or not, in how many parts.

A family writes one table of slots; reading, writing and the shapes of all parameters follow from it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..errors import CheckpointError
from ..types import Array
from .entry import TensorEntry, listed, shown


@dataclass(frozen=True)
class Slot:
    """One parameter, or one of each layer: {layers} in the names stands for the layer's number.

    Attributes:
        ours: our name.
        theirs: the name or names in the file; several are joined along our last axis.
        axes: a letter for each of our axes, whose sizes the family knows; for several names, "3D" is three times D.
        turned: theirs are our matrix transposed, (out, in) as `Linear` elsewhere has it.
    """

    ours: str
    theirs: str | tuple[str, ...]
    axes: str
    turned: bool = False

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All names in the file."""
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs

    @cached_property
    def counted(self) -> str | None:
        """What the number in the names counts, such as "layers"; None without a number."""
        found = re.search(r"\{(\w+)\}", self.ours)
        return found[1] if found else None

    def numbered(self, name: str, number: int) -> str:
        """A name of this slot for one layer."""
        return name.replace(f"{{{self.counted}}}", str(number)) if self.counted else name

    def read(self, ours: str, parts: Sequence[TensorEntry]) -> TensorEntry:
        """The parameter that these parts make together.

        Raises:
            CheckpointError: the parts do not fit each other.
        """
        if len(parts) == 1 and not self.turned:
            return parts[0]
        shapes = [part.shape[::-1] if self.turned else part.shape for part in parts]
        if len({shape[:-1] for shape in shapes}) > 1 or len({part.dtype for part in parts}) > 1:
            raise CheckpointError(
                f"{ours} is made of {', '.join(f'{part.name} {part.shape} {part.dtype}' for part in parts)}, which do "
                "not fit each other. The file is damaged, or of a changed model."
            )

        def read() -> Array:
            arrays = [part.read().T if self.turned else part.read() for part in parts]
            return np.ascontiguousarray(np.concatenate(arrays, axis=-1) if parts[1:] else arrays[0])

        shape = (*shapes[0][:-1], sum(shape[-1] for shape in shapes)) if shapes[0] else ()
        return TensorEntry(parts[0].name, shape, parts[0].dtype, parts[0].file, read)

    def write(self, array: Array) -> list[Array]:
        """The parts of our parameter, in the order of their names."""
        parts = np.split(array, len(self.names), axis=-1)
        return [np.ascontiguousarray(part.T if self.turned else part) for part in parts]


def sort_by(
    slots: Sequence[Slot], entries: Mapping[str, TensorEntry]
) -> tuple[dict[str, TensorEntry], list[str]]:
    """Entries under our names, and the names that are in no slot.

    Args:
        slots: the table.
        entries: by their names as the table has them, prefixes and old spellings removed.

    Raises:
        CheckpointError: a parameter is there in part only.
    """
    fixed = {name: (slot, i) for slot in slots for i, name in enumerate(slot.names)}
    parts: dict[str, dict[int, TensorEntry]] = {}
    found: dict[str, Slot] = {}
    rest = []
    for name, entry in entries.items():
        # The first number in a name is the layer's.
        number = re.search(r"(?<=\.)(0|[1-9][0-9]{0,8})(?=\.)", name)
        place = fixed.get(name)
        if place is None and number:
            for counted in {slot.counted for slot in slots if slot.counted}:
                pattern = f"{name[: number.start()]}{{{counted}}}{name[number.end() :]}"
                place = place or fixed.get(pattern)
        if place is None:
            rest.append(name)
            continue
        slot, i = place
        ours = slot.numbered(slot.ours, int(number[0])) if number and slot.counted else slot.ours
        parts.setdefault(ours, {})[i] = entry
        found[ours] = slot
    ours_to_entry = {}
    for ours, some in parts.items():
        slot = found[ours]
        if len(some) < len(slot.names):
            there = listed([entry.name for entry in some.values()])
            raise CheckpointError(
                f"The file has {there}, but not all {len(slot.names)} parts of {ours}. It is incomplete."
            )
        ours_to_entry[ours] = slot.read(ours, [some[i] for i in range(len(slot.names))])
    return ours_to_entry, rest


def shapes_of(
    slots: Iterable[Slot], sizes: Mapping[str, int], counts: Mapping[str, int]
) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter by our name.

    Args:
        slots: those that the model has.
        sizes: of each letter of the axes.
        counts: how many of what is numbered, such as layers.
    """
    shapes = {}
    for slot in slots:
        shape = tuple(
            int(times or 1) * sizes[axis] for times, axis in re.findall(r"(\d*)(\D)", slot.axes)
        )
        for number in range(counts[slot.counted] if slot.counted else 1):
            shapes[slot.numbered(slot.ours, number)] = shape
    return shapes


def their_arrays(
    slots: Iterable[Slot], arrays: Mapping[str, Array], counts: Mapping[str, int]
) -> dict[str, Array]:
    """Our parameters under their names and in their layout.

    Args:
        slots: those that the model has.
        arrays: by our names.
        counts: how many of what is numbered, such as layers.
    """
    made = {}
    for slot in slots:
        for number in range(counts[slot.counted] if slot.counted else 1):
            parts = slot.write(arrays[slot.numbered(slot.ours, number)])
            for name, part in zip(slot.names, parts, strict=True):
                made[slot.numbered(name, number)] = part
    return made


def check_depth(key: str, layers: int, names: Iterable[str], prefix: str) -> None:
    """Refuse a depth in config.json that is not that of the weights, before anything is built.

    Args:
        key: of config.json.
        layers: what it says.
        names: of our parameters that the file has.
        prefix: of those that are numbered, such as "blocks.".

    Raises:
        CheckpointError: the file has more layers, fewer, or gaps.
    """
    numbers = {int(name[len(prefix) :].split(".")[0]) for name in names if name.startswith(prefix)}
    if len(numbers) != layers or max(numbers, default=-1) != layers - 1:
        blocks = f"{len(numbers):,}, numbered up to {max(numbers)}" if numbers else "none"
        raise CheckpointError(
            f"config.json says {key}={layers:,}, but the file has the weights of {blocks}. "
            "Settings and weights are of different models, or the file is incomplete."
        )


def twice(name: str, other: str) -> CheckpointError:
    """The error for one weight under two names."""
    return CheckpointError(
        f"The file has both {shown(name)} and {shown(other)}, two names of one "
        "weight; which one counts is not known. Remove one."
    )


def same_values(a: TensorEntry, b: TensorEntry) -> bool:
    """Whether two entries hold the same: then they are one weight under two names."""
    return (a.shape, a.dtype) == (b.shape, b.dtype) and np.array_equal(
        a.read(), b.read(), equal_nan=True
    )
