"""Compiles every kernel of attention that a plan can ask for, and tells which take more than budgets.py allows.

    python tests/gpu/every_instance.py [sm_90a]        many minutes; needs no card

The tests do so for those that models use most (`budgets.INSTANCES`).
"""

import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import machine_code as codes
from budgets import faults

from tinyplm.kernels import attention_plan as plan
from tinyplm.kernels import compilers, cuda


def kinds():
    """All that `attention_plan` knows: a bias is dense or by difference, and dense for heads up to 128."""
    for type_, widest in (("bfloat16", 256), ("float16", 256), ("float", 128)):
        for size in (s for s in plan.SIZES if s <= widest):
            for extras in range(2 * plan.SCALED):
                dense, differs = extras & plan.DENSE, extras & plan.BY_DIFFERENCE
                if not dense or (not differs and size <= 128):
                    yield plan.Kind(type_, size, extras)


def files():
    """Names of them, each once."""
    for kind in kinds():
        for launch in (
            *(plan.forward(kind, T) for T in (64, 65)),
            plan.keys(kind),
            plan.queries(kind),
        ):
            yield launch.file


def main(arch="sm_90a"):
    """Print each fault as it is found; the exit status says whether there was one."""
    by, names = compilers.best(), list(dict.fromkeys(files()))
    print(f"{len(names)} instances for {arch}, by {by.name}", flush=True)
    found = 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:

        def faults_of(name):
            made = codes.compile_file(name, cuda.source(name), arch, Path(folder), by)
            return name, [f for kernel in made.kernels.values() for f in faults(kernel, name, arch)]

        for name, said in pool.map(faults_of, names):
            if said:
                found += 1
                print(f"{name}: {'; '.join(said)}", flush=True)
    print(f"{found} of {len(names)} take more than they may")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
