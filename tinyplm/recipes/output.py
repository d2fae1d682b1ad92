"""The folder of a run: found, and never taken from another."""

import contextlib
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..errors import ConfigError


def free_folder(parent: Path, name: str) -> Path:
    """parent/name, or the first of name-2, name-3 and so on that holds nothing."""
    for number in itertools.count(1):
        path = parent / (name if number == 1 else f"{name}-{number}")
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            return path
    raise AssertionError("unreachable")


def refuse_taken(output: Path) -> None:
    """Never write over a run, or over a model that is not from here."""
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output {output} is a file; name a new or an empty folder.")
    if any(output.glob("checkpoint-*")):
        raise ConfigError(
            f"{output} already holds a run. --resume goes on with it; another --output starts a new one."
        )
    if (output / "config.json").exists() or any(output.glob("*.safetensors")):
        raise ConfigError(
            f"{output} already holds a model. Name a new or an empty folder with --output."
        )


@contextlib.contextmanager
def left_as_found(output: Path) -> Iterator[None]:
    """If the block fails, remove what it wrote, provided that there was nothing before."""
    made = [path for path in (output, *output.parents) if not path.exists()]
    empty = output in made or not any(output.iterdir())
    try:
        yield
    except BaseException:  # Ctrl-C too
        if empty:
            shutil.rmtree(output, ignore_errors=True)
            for path in made:
                with contextlib.suppress(OSError):
                    path.rmdir()
            if output not in made:
                output.mkdir(exist_ok=True)
        raise
