"""What can go wrong, as types: each fits a Python built-in and derives from TinyplmError too.

A message says what was seen, what was expected, the likely cause and what to do next.
"""


class TinyplmError(Exception):
    """Base of every error that tinyplm raises on purpose."""


class ShapeError(TinyplmError, ValueError):
    """A shape, a length or an id that does not fit."""


class DtypeError(TinyplmError, TypeError):
    """A dtype or a type that does not fit."""


class ConfigError(TinyplmError, ValueError):
    """A setting that cannot be: of a model, a run or an objective."""


class DataError(TinyplmError, ValueError):
    """Text or tokens that cannot be read or used."""


class CheckpointError(TinyplmError, ValueError):
    """A checkpoint or model file that is damaged, unsafe or of another shape."""


class MissingFileError(TinyplmError, FileNotFoundError):
    """A file or folder that is not there."""


class MissingExtraError(TinyplmError, ImportError):
    """An optional dependency that is not installed; the message names the extra."""


class GraphError(TinyplmError, RuntimeError):
    """A backward pass that cannot be: freed graph, data changed meanwhile, no gradient wanted."""


class NonFiniteError(TinyplmError, FloatingPointError):
    """A NaN or an infinity where none may be."""


class DeviceError(TinyplmError, RuntimeError):
    """A graphics card or its compiler that cannot do what is asked of it."""


class DeviceMemoryError(TinyplmError, MemoryError):
    """No room on a graphics card."""


class TinyplmWarning(UserWarning):
    """Something a user should know that does not stop the work."""
