"""The rules of the house that a machine can keep: who imports whom, what is cited, how text is opened."""

import ast
import functools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import tinyplm

PACKAGE = Path(tinyplm.__file__).parent
ROOT = PACKAGE.parent
FILES = sorted(PACKAGE.rglob("*.py"))
LAYERS = [
    {"cli"},
    {"recipes"},
    {"analysis"},
    {"train", "generate", "hub"},
    {"models", "objectives", "optim"},
    {"nn"},
    {"autograd"},
    {"kernels"},
    {"backend"},
    {"errors", "types"},
]
FRAMEWORKS = {"torch", "jax", "tensorflow", "transformers", "flax", "keras"}
COMPILED = {"numba", "cupy", "cupyx"}
LATE = {*COMPILED, "matplotlib", "tokenizers", "huggingface_hub", "torch", "tqdm", "safetensors"}


def name_of(path):
    return path.relative_to(PACKAGE).as_posix()


@functools.cache
def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(path, nodes=None):
    """Every module that a file imports, by its full name, wherever the import stands."""
    package = ("tinyplm", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(tree_of(path)) if nodes is None else nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*start, *([node.module] if node.module else [])])
            yield base
            if base == "tinyplm":  # from .. import autograd
                yield from (f"tinyplm.{alias.name}" for alias in node.names)


def part_of(module):
    parts = module.split(".")
    return parts[1] if parts[0] == "tinyplm" and len(parts) > 1 else None


def level_of(part):
    return next((i for i, layer in enumerate(LAYERS) if part in layer), None)


def own_part(path):
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def test_every_part_of_the_package_has_its_place_in_the_layers():
    known = set().union(*LAYERS) | {"text", "__init__", "__main__"}
    assert {own_part(path) for path in FILES} <= known


def test_the_layers_are_those_that_import_linter_keeps():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contract = next(
        c for c in settings["tool"]["importlinter"]["contracts"] if c["name"] == "layers"
    )
    listed = [
        {name.strip(" ()").removeprefix("tinyplm.") for name in layer.split("|")}
        for layer in contract["layers"]
    ]
    assert listed == LAYERS


def test_imports_go_down_only():
    wrong = []
    for path in FILES:
        own = own_part(path)
        level = level_of(own)
        for module in imports_of(path):
            below = level_of(part_of(module))
            if None not in (level, below) and part_of(module) != own and below <= level:
                wrong.append(f"{name_of(path)} imports {module}")
    assert not wrong


def test_text_stands_alone():
    for path in FILES:
        if own_part(path) == "text":
            parts = {part_of(module) for module in imports_of(path)}
            assert parts <= {None, "text", "errors", "types"}, name_of(path)


def test_no_framework_is_imported_and_compiled_libraries_stay_low():
    for path in FILES:
        roots = {module.split(".")[0] for module in imports_of(path)}
        assert not roots & FRAMEWORKS, name_of(path)
        # Recipes may ask which versions there are.
        if own_part(path) not in ("kernels", "backend", "recipes"):
            assert not roots & COMPILED, name_of(path)


def at_import(tree):
    """Statements that run when a file is imported: not those in functions or for type checkers."""
    waiting = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        waiting.extend(child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt))


def test_what_is_dear_to_import_is_imported_inside_functions():
    for path in FILES:
        if name_of(path) == "kernels/team.py" or path.parent.name == "numba_cuda":
            continue  # all of it is Numba's, so it is itself imported inside functions
        modules = imports_of(path, at_import(tree_of(path)))
        assert not {module.split(".")[0] for module in modules} & LATE, name_of(path)


def in_a_new_process(code):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True, text=True, encoding="utf-8", cwd=ROOT, check=True,
    ).stdout  # fmt: skip


def test_importing_the_package_loads_nothing_dear_and_prints_nothing():
    code = (
        "import sys, tinyplm; loaded = {name.split('.')[0] for name in sys.modules}; "
        f"print(sorted(loaded & {LATE!r}))"
    )
    assert in_a_new_process(code) == "[]\n"


def test_every_public_name_is_there_though_it_may_come_late():
    code = (
        "import tinyplm; "
        "print([n for n in dir(tinyplm) if not n.startswith('_') and getattr(tinyplm, n) is None])"
    )
    assert in_a_new_process(code) == "[]\n"
    with pytest.raises(AttributeError, match="no attribute 'tensor'"):
        _ = tinyplm.tensor


def test_every_file_says_what_it_is():
    assert [name_of(path) for path in FILES if not ast.get_docstring(tree_of(path))] == []


PAPERS = [
    path
    for folder in ("models", "objectives")
    for path in sorted((PACKAGE / folder).glob("*.py"))
    if path.stem not in ("__init__", "objective")
]


@pytest.mark.parametrize("path", PAPERS, ids=name_of)
def test_models_and_objectives_open_with_a_citation(path):
    text = ast.get_docstring(tree_of(path)) or ""
    assert re.search(r"\b(19|20)\d\d\b", text), "no year"
    assert re.search(r"arXiv:\d{4}\.\d{4,5}|[Nn]o arXiv number", text), "no arXiv number"
    first = text[:400]
    assert re.search(r"[A-Z][a-z]+ (et al\.|and [A-Z])", first), "no authors"


def opens_text(call):
    """Whether a call opens a file as text."""
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if name in ("read_text", "write_text") and isinstance(function, ast.Attribute):
        return True
    if name != "open":
        return False
    modes = [k.value for k in call.keywords if k.arg == "mode"]
    if isinstance(function, ast.Attribute):
        owner = ast.unparse(function.value)
        if owner in ("os", "cls", "zipfile", "webbrowser") or owner.split(".")[-1][:1].isupper():
            return False
        modes += call.args[:1]
    else:
        modes += call.args[1:2]
    return not any(isinstance(m, ast.Constant) and "b" in str(m.value) for m in modes)


def is_text_process(call):
    return any(k.arg in ("text", "universal_newlines") for k in call.keywords) and ast.unparse(
        call.func
    ).startswith("subprocess.")


def test_text_is_opened_with_an_encoding():
    wrong = [
        f"{name_of(path)}, line {node.lineno}: {ast.unparse(node)}"
        for path in FILES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call)
        and (opens_text(node) or is_text_process(node))
        and not any(k.arg == "encoding" for k in node.keywords)
    ]
    assert not wrong


def test_the_check_of_encodings_sees_what_it_should():
    for code, found in {
        "open(p)": True,
        "open(p, 'w')": True,
        "p.open()": True,
        "p.read_text()": True,
        "open(p, 'rb')": False,
        "p.open(mode='wb')": False,
        "TokenFile.open(p)": False,
        "os.open(p, 0)": False,
    }.items():
        assert opens_text(ast.parse(code).body[0].value) == found, code


def test_only_the_command_line_prints_and_nothing_unpickles():
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.Call):
                continue
            name, where = ast.unparse(node.func), f"{name_of(path)}, line {node.lineno}"
            somewhere = any(k.arg == "file" for k in node.keywords)
            assert own_part(path) == "cli" or name != "print" or somewhere, where
            if (name_of(path), name) == ("kernels/compiled.py", "exec"):
                continue  # a function of as many arguments as the body has, made of their names
            assert name not in ("eval", "exec", "pickle.load", "pickle.loads"), where


def test_import_linter_agrees():
    pytest.importorskip("importlinter", reason="comes with the extra 'dev'")
    code = "from importlinter.cli import lint_imports_command as check; check()"
    result = subprocess.run(
        [sys.executable, "-c", code, "--no-cache", "--no-logo"],
        capture_output=True, text=True, encoding="utf-8", cwd=ROOT,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
