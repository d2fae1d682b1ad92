"""What a model asks of its inputs, at its door.

Of what lies on a card only shape and dtype are asked: to look at values would be to wait for it. Check before it goes
up; an id that is outside gives NaN there.
"""

from typing import Any

import numpy as np

from ..autograd import Tensor
from ..backend import is_array, namespace
from ..errors import DtypeError, ShapeError
from ..types import Array


def _as_array(values: Any, name: str) -> Array:
    if isinstance(values, Tensor):
        values = values.array
    try:
        return values if is_array(values) else np.asarray(values)
    except ValueError:
        raise ShapeError(
            f"{name} has rows of different lengths, expected (batch, time); fill the shorter ones up with "
            "tinyplm.text.batching.pad and pass its attention_mask."
        ) from None


OTHERS = (
    "Do the tokenizer and the model belong together? If tokens were added, resize the embeddings."
)


def checked_ids(ids: Any, most: int, name: str, limit: str, cause: str = OTHERS) -> Array:
    """The ids as an integer array (B, T) in [0, most); the cause is what a message guesses at otherwise."""
    ids = _as_array(ids, name)
    if ids.size == 0:
        raise ShapeError(f"{name} is empty (shape {ids.shape}); a model needs at least one token.")
    if ids.dtype.kind not in "iu":
        raise DtypeError(
            f"{name} has dtype {ids.dtype}, expected integers. Were probabilities or embeddings passed instead of ids?"
        )
    if ids.ndim != 2:
        raise ShapeError(
            f"{name} has shape {ids.shape}, expected (batch, time); for one text pass ids[None]."
        )
    if namespace(ids) is np and (ids.min() < 0 or ids.max() >= most):
        at = np.argwhere((ids < 0) | (ids >= most))[0].tolist()
        raise ShapeError(
            f"{name} contains {ids[tuple(at)]} at {at}, but this model has {limit}={most}. {cause}"
        )
    return ids


def checked_mask(mask: Any, shape: tuple[int, int]) -> Array:
    """The mask as booleans of this shape."""
    mask = _as_array(mask, "attention_mask")
    if mask.shape != shape:
        raise ShapeError(
            f"attention_mask has shape {mask.shape}, expected {shape}: one value per token, cached ones included."
        )
    if namespace(mask) is np and not np.isin(mask, (0, 1)).all():
        raise ShapeError(
            f"attention_mask contains {mask[~np.isin(mask, (0, 1))][0]}; expected 1 for real tokens and 0 for padding."
        )
    return mask.astype(bool)
