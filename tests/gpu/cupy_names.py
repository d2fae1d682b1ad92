"""What the real CuPy offers, by name: read from it where it is installed, and kept in cupy_names.json for the stand-in.

    python tests/gpu/cupy_names.py        writes the file again

Importing CuPy needs no card. A test compares the file with the CuPy that is there.
"""

import inspect
import json
import re
from pathlib import Path

KEPT = Path(__file__).with_suffix(".json")
PARTS = (
    *("ndarray", "cuda", "cuda.runtime", "cuda.Stream", "cuda.Event", "cuda.Graph", "cuda.Device"),
    *("cuda.MemoryPool", "cuda.MemoryPointer", "cuda.PinnedMemoryPool", "cuda.function"),
    *("cuda.PinnedMemoryPointer", "cuda.function.Module", "cuda.function.Function", "cuda.memory"),
    *("cuda.pinned_memory", "lib", "lib.stride_tricks", "linalg", "cuda.stream", "cuda.graph"),
)
"""What is listed beside the module itself."""


def read() -> dict:
    """The names of the CuPy that is installed, with the parameters of functions and methods."""
    import cupy
    import cupyx
    import cupyx.scipy.special

    public = [n for n in dir(cupy) if not n.startswith("_")]
    kinds = {n: type(getattr(cupy, n)).__name__ for n in public}
    ufuncs = [n for n in public if kinds[n] == "ufunc"]
    members = {"": public, **{part: _public(_at(cupy, part)) for part in PARTS}}
    members["cupyx"] = _public(cupyx)
    members["cupyx.scipy.special"] = _public(cupyx.scipy.special)
    return {
        "version": cupy.__version__,
        "members": members,
        "functions": {n: _parameters(cupy, n) for n in public if kinds[n] not in ("ufunc", "type")},
        "methods": {n: _parameters(cupy.ndarray, n) for n in _public(cupy.ndarray)},
        "ufuncs": {n: "bfloat16" if _has_bfloat16(cupy, n) else "" for n in ufuncs},
    }


def _at(thing, path):
    for name in path.split("."):
        thing = getattr(thing, name)
    return thing


def _public(thing):
    return [n for n in dir(thing) if not n.startswith("_")]


def _has_bfloat16(cupy, name):
    """Whether a loop for it is there: its letter, E, is not one of NumPy's."""
    return any("E" in loop for loop in getattr(cupy, name).types)


def _parameters(owner, name):
    """Names of what can be passed by name; None where it is not known."""
    member = getattr(owner, name)
    if not callable(member):
        return None
    try:
        given = list(inspect.signature(member).parameters.values())
    except (TypeError, ValueError):
        told = re.match(r"[\w.]*\((.*?)\)(?: ->|\n|$)", member.__doc__ or "")
        if told is None:
            return None
        names = [re.split(r"[=:]", p)[0].strip() for p in told[1].split(",")]
        return [n.split()[-1] for n in names if n and n not in ("self", "*", "/")]
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return [stars.get(p.kind, "") + p.name for p in given if p.name != "self"]


def kept() -> dict:
    """The names in the file."""
    return json.loads(KEPT.read_text(encoding="utf-8"))


def main():
    parts = []
    for name, part in read().items():
        if not isinstance(part, dict):
            parts.append(f"{json.dumps(name)}: {json.dumps(part)}")
            continue
        lines = ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in part.items())
        parts.append(f"{json.dumps(name)}: {{\n{lines}\n}}")
    KEPT.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
