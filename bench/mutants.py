"""How good are the gradient checks? Ops are changed at random by cosmic-ray, and the tests should notice.

    python -m bench.mutants --count 200          (needs: pip install cosmic-ray, and the extra "test")

The tree is copied to a temporary folder and only the copy is changed. Mutants are drawn with a fixed seed, from each
file in proportion to how many it has, and shuffled, so that a run that is stopped early is still a fair sample.
"""

import argparse
import ast
import json
import math
import os
import random
import shlex
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OPS = Path("tinyplm") / "autograd" / "ops"
UNSHRUNK = """
from hypothesis import Phase

settings.register_profile("unshrunk", settings(), phases=[Phase.explicit, Phase.generate])
settings.load_profile("unshrunk")
"""
"""For the tests in the copy: a failure found is enough, it need not be made small."""
TESTS = "tests/autograd/test_ops.py", "tests/autograd/test_engine.py"
NORMAL = 1.96
"""Standard deviations in a 95 % interval."""


def main(arguments: list[str] | None = None) -> int:
    """Draw, change, test, and print the score and what was not noticed."""
    parser = argparse.ArgumentParser(prog="python -m bench.mutants", description="mutation run")
    parser.add_argument("--count", type=int, default=200, help="how many mutants are drawn")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no mutant after")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of mutants to run again")
    parser.add_argument("--list", action="store_true", help="draw only")
    parser.add_argument("--json", type=Path, help="append a line per mutant to a file")
    asked = parser.parse_args(arguments)
    file = asked.json.absolute() if asked.json else None
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        left_out = shutil.ignore_patterns(".*", "__pycache__", "*.so", "dist", "build")
        shutil.copytree(ROOT, tree, ignore=left_out)
        with (tree / "tests" / "conftest.py").open("a", encoding="utf-8") as conftest:
            conftest.write(UNSHRUNK)
        os.chdir(tree)
        try:
            return _run(asked, file)
        finally:
            os.chdir(ROOT)


def _run(asked: argparse.Namespace, file: Path | None) -> int:
    os.environ |= {"PYTHONPATH": os.getcwd(), "OPENBLAS_NUM_THREADS": "1", "TINYPLM_THREADS": "1"}
    from cosmic_ray.mutating import mutate_and_test
    from cosmic_ray.testing import run_tests

    drawn = _draw(asked.count, random.Random(asked.seed))
    if asked.list:
        return 0
    unchanged, output = run_tests(_command(OPS / "broadcasting.py", 1), timeout=600)
    if unchanged.value != "survived":
        print(output[-2000:], "The tests must pass before anything is changed.", sep="\n")
        return 1
    outcomes: Counter[str] = Counter()
    start = time.monotonic()
    for number, spec in enumerate(drawn):
        if asked.only is not None and number not in asked.only:
            continue
        if time.monotonic() - start > 60 * asked.minutes:
            print(f"stopped after {asked.minutes:g} minutes")
            break
        result = mutate_and_test([spec], _command(spec.module_path, spec.start_pos[0]), timeout=180)
        noticed = "noticed" if result.is_killed else "survived"
        outcome = "timeout" if result.output == "timeout" else noticed
        if result.worker_outcome.value != "normal":
            outcome = "failed to run"
        outcomes[outcome] += 1
        print(number, outcome, spec.module_path.name, spec.start_pos[0], spec.operator_name)
        if outcome != "noticed":
            print(result.diff or result.output, flush=True)
        if file:
            record = {"number": number, "outcome": outcome, "file": spec.module_path.name}
            record |= {"line": spec.start_pos[0], "operator": spec.operator_name}
            record |= {"diff": result.diff, "end": (result.output or "")[-300:]}
            with file.open("a", encoding="utf-8") as opened:
                opened.write(json.dumps(record) + "\n")
    _report(outcomes, time.monotonic() - start)
    return 0


def _draw(count: int, rng: random.Random) -> list[Any]:
    """Mutants from each file in proportion to its share, in random order."""
    from cosmic_ray.commands import init
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator
    from cosmic_ray.work_db import use_db

    possible: dict[Path, list[Any]] = {}
    excluded: Counter[str] = Counter()
    for path in sorted(OPS.glob("[!_]*.py")):
        text = path.read_text(encoding="utf-8")
        spans, gaps = _untested_spans(ast.parse(text)), _operations(ast.parse(text))
        possible[path] = []
        with use_db(f"../{path.stem}.sqlite") as session:
            init([path], session, {})
            specs = [item.mutations[0] for item in session.work_items]
        for spec in sorted(specs, key=lambda s: (s.operator_name, s.occurrence)):
            why = next((why for why, a, b in spans if a <= spec.start_pos < b), None)
            if why is None and _may_break(spec, gaps):
                operator = get_operator(spec.operator_name)(**spec.operator_args)
                why = _no_mutant(mutate_code(text, operator, spec.occurrence))
            if why is None:
                possible[path].append(spec)
            else:
                excluded[why] += 1
    total = sum(map(len, possible.values()))
    drawn = []
    for path, specs in possible.items():
        share = min(len(specs), round(count * len(specs) / total))
        drawn += rng.sample(specs, share)
        print(f"{path.name}: {share} of {len(specs)}")
    print(f"{len(drawn)} of {total} mutants; excluded: {dict(excluded)}", flush=True)
    rng.shuffle(drawn)
    return drawn


Position = tuple[int, int]


def _untested_spans(tree: ast.Module) -> list[tuple[str, Position, Position]]:
    """Where a change does nothing to what an op computes: types, and what an error says."""
    found: list[tuple[str, ast.AST | None]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign):
            found.append(("annotation", node.annotation))
        elif isinstance(node, ast.FunctionDef):
            found.append(("annotation", node.returns))
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            found += [("error message", argument) for argument in node.exc.args]
    for node in tree.body:  # Axis = int | None
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(target, ast.Name) and target.id[0].isupper() and not target.id.isupper():
            found.append(("type alias", node.value))
    return [
        (why, (n.lineno, n.col_offset), (n.end_lineno, n.end_col_offset))
        for why, n in found
        if n is not None
    ]


def _may_break(spec: Any, gaps: list[tuple[Position, Position]]) -> bool:
    """Whether a change may leave no Python: f(-x), f(/x) for f(*x), or a * not b. To look at each takes minutes."""
    if "BinaryOperator" in spec.operator_name:
        return not any(a <= spec.start_pos < b for a, b in gaps)
    return "Unary" in spec.operator_name


def _operations(tree: ast.Module) -> list[tuple[Position, Position]]:
    """Where the signs of binary operations stand: between their two sides."""
    sides = [(n.left, n.right) for n in ast.walk(tree) if isinstance(n, ast.BinOp)]
    sides += [(n.target, n.value) for n in ast.walk(tree) if isinstance(n, ast.AugAssign)]
    return [((a.end_lineno, a.end_col_offset), (b.lineno, b.col_offset)) for a, b in sides]


def _no_mutant(after: str | None) -> str | None:
    """Why a change makes no mutant, if so."""
    try:
        ast.parse(after or "")
    except SyntaxError:
        return "not Python any more"
    return None


def _command(path: Path, line: int) -> str:
    """The tests of the op at a line; of all ops of the file, or of all, for what they share."""
    names, here = [], []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        decorators = getattr(node, "decorator_list", [])
        if any(isinstance(d, ast.Name) and d.id == "op" for d in decorators):
            names.append(node.name.lstrip("_"))
            if decorators[0].lineno <= line <= node.end_lineno:
                here = names[-1:]
    names = here or names
    chosen = ["-k", " or ".join([*names, "test_engine"])] if names else []
    options = ["-x", "-q", "-p", "no:cacheprovider"]
    return shlex.join([sys.executable, "-m", "pytest", *options, *TESTS, *chosen])


def _report(outcomes: Counter[str], seconds: float) -> None:
    run = outcomes.total() - outcomes["failed to run"]
    if not run:
        return
    share = 1 - outcomes["survived"] / run
    low, high = _interval(share, run)
    print(
        f"{dict(outcomes)} in {seconds:.0f} s: {share:.1%} noticed, 95 % interval {low:.1%} to {high:.1%}"
    )


def _interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's interval of a share."""
    extra = NORMAL**2 / count
    middle = (share + extra / 2) / (1 + extra)
    half = NORMAL / (1 + extra) * math.sqrt(share * (1 - share) / count + extra / 4 / count)
    return middle - half, middle + half


if __name__ == "__main__":
    sys.exit(main())
