"""Compiles every kernel that a plan can ask for, and tells which keep anything in memory of a thread's own.

    python tests/gpu/every_instance.py [sm_90a [matmul]]        those of files that begin so; half an hour for all

It needs no card. The tests do so for those that models use most (`budgets.INSTANCES`).
"""

import itertools
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import machine_code as codes
from budgets import CARDS, kept_aside, launches

from tinyplm.kernels import attention_plan, compilers, cuda, matmul_plan
from tinyplm.kernels import matmul as _  # noqa: F401 - offers plans

SIZES = [
    (8192, 8192, 8192),
    (300, 200, 100),
    (64, 64, 4096),
    *((M, 768, 768) for M in (1, 2, 3, 4, 5, 8)),
]
"""Rows, columns and terms that together meet every kind of plan."""


def of_attention():
    """A bias is dense or by difference, and dense for heads up to 128."""
    for type_, widest in (("bfloat16", 256), ("float16", 256), ("float", 128)):
        for size in (s for s in attention_plan.SIZES if s <= widest):
            for extras in range(2 * attention_plan.SCALED):
                dense, differs = (
                    extras & attention_plan.DENSE,
                    extras & attention_plan.BY_DIFFERENCE,
                )
                if not dense or (not differs and size <= 128):
                    for launch in launches(attention_plan.Kind(type_, size, extras)):
                        yield launch.file


def of_products(card):
    """Of every type, layout, alignment and ending."""
    types = "bfloat16", "float16", "float32"
    lasts = "plain", "gelu", "gelu_tanh", "slope", "slope_tanh"
    either = False, True
    for size, type_, last, *flags in itertools.product(SIZES, types, lasts, *[either] * 5):
        single, *rest = flags
        out = "float32" if single else type_
        problem = matmul_plan.Problem(1, *size, type_, out, *rest, last)
        for tier in matmul_plan.TIERS.values():
            for plan in tier.plans(problem, card, None):
                yield plan.file


def main(arch="sm_90a", begins=""):
    """Print each fault as it is found; the exit status says whether there was one."""
    by = compilers.best()
    every = dict.fromkeys([*of_attention(), *of_products(CARDS[arch])])
    names = [name for name in every if name.startswith(begins)]
    print(f"{len(names)} instances for {arch}, by {by.name}", flush=True)
    found = 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:

        def faults_of(name):
            made = codes.compile_file(name, cuda.source(name), arch, Path(folder), by)
            return name, [said for kernel in made.kernels.values() for said in kept_aside(kernel)]

        for name, said in pool.map(faults_of, names):
            if said:
                found += 1
                print(f"{name}: {'; '.join(said)}", flush=True)
    print(f"{found} of {len(names)} keep something in a thread's memory")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
