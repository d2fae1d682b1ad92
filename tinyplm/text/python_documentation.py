"""Text that is on every machine: Python's own documentation.

Nothing is imported for it but the topics of `help()`, which are text.
"""

import ast
import inspect
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

_NOT_DOCUMENTED = {
    *("test", "tests", "idlelib", "idle_test", "lib2to3", "turtledemo", "ensurepip", "encodings"),
    *("distutils", "pydoc_data", "site-packages", "__pycache__", "__phello__"),
}


def topics() -> list[str]:
    """The topics of `help()` in the order of their names; none if this Python has none."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return []
    return [text for _, text in sorted(topics.items())]


def docstrings() -> list[str]:
    """One text per module that has docstrings, read from the sources; nothing is imported."""
    root = Path(sysconfig.get_path("stdlib"))
    texts = []
    for name in sorted(sys.stdlib_module_names - _NOT_DOCUMENTED):
        single, package = root / f"{name}.py", root / name
        files = [single] if single.is_file() else sorted(package.rglob("*.py"))
        for file in files:
            if not _NOT_DOCUMENTED.isdisjoint(file.relative_to(root).parts):
                continue
            try:
                source = file.read_text(encoding="utf-8")
                with warnings.catch_warnings():
                    # Old sources have escapes that newer versions frown upon.
                    warnings.simplefilter("ignore")
                    tree = ast.parse(source)
            except (OSError, ValueError, SyntaxError):
                continue
            if found := [inspect.cleandoc(text) for text in _docstrings_of(tree)]:
                texts.append("\n\n".join(found) + "\n")
    return texts


def _docstrings_of(tree: ast.Module) -> Iterator[str]:
    """Docstrings in the order of the source. Only statements are visited, which saves a third."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            # A docstring may hold a lone surrogate to show one; it is not text.
            if text and not re.search("[\ud800-\udfff]", text):
                yield text
        inner: Iterable[ast.AST] = chain.from_iterable(
            getattr(node, field, ()) for field in ("body", "handlers", "orelse", "finalbody")
        )
        waiting.extend(reversed(list(inner)))
