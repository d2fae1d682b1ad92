"""`tinyplm gradcheck` and `tinyplm doctor`: is everything right, here and on this machine."""

import argparse
import dataclasses
from typing import Any

from .console import Console, size, table
from .parser import add_device, count, natural


def add(verbs: Any) -> None:
    """Add the verbs."""
    parser = verbs.add_parser(
        "gradcheck",
        help="hold every gradient against differences of values",
        description="Check ops on inputs drawn at random: values against an oracle, gradients against differences.",
        example="tinyplm gradcheck softmax --cases 200",
    )
    parser.add_argument("op", metavar="OP", nargs="?", help="one op; all when not given")
    parser.add_argument(
        "--cases", metavar="N", type=count, default=20, help="of each op (default: 20)"
    )
    parser.add_argument(
        "--seed", metavar="N", type=natural, default=0, help="of the inputs (default: 0)"
    )
    add_device(parser)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.set_defaults(run=gradcheck, parser=parser)

    parser = verbs.add_parser(
        "doctor",
        help="say what this machine has and how fast it is",
        description="Versions, linear algebra, memory, graphics card, and two measured speeds.",
        example="tinyplm doctor",
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.set_defaults(run=doctor, parser=parser)


def gradcheck(args: argparse.Namespace, console: Console) -> int:
    """Check gradients; print a line for each op as it is done."""
    from ..autograd.gradcheck import run

    records = []
    form = "{:<28} {:>6} {:>9} {:>15} {:>12} {:>9}"
    checks = run(
        [args.op] if args.op else None, cases=args.cases, seed=args.seed, device=args.device
    )
    console.result(
        form.format("op", "cases", "redrawn", "gradient error", "value error", "seconds")
    )
    for record in checks:
        records.append(record)
        console.result(
            form.format(
                record.op,
                record.cases,
                record.redrawn,
                f"{record.gradient_error:.1e}",
                f"{record.value_error:.1e}",
                f"{record.seconds:.2f}",
            )
        )
        if record.failure:
            console.result(f"  FAILED: {record.failure}")
    failed = [record.op for record in records if record.failure]
    cases = sum(record.cases for record in records)
    derivatives = sum(record.derivatives for record in records)
    worst = max(record.gradient_error for record in records)
    console.result(
        f"\n{len(records)} ops, {cases:,} cases, {derivatives:,} derivatives; largest relative error {worst:.1e}. "
        + (f"{len(failed)} FAILED: {', '.join(failed)}." if failed else "All agree.")
    )
    console.value(
        {
            "ops": [dataclasses.asdict(record) for record in records],
            "cases": cases,
            "derivatives": derivatives,
            "largest_error": worst,
            "failed": failed,
        }
    )
    return 1 if failed else 0


def doctor(args: argparse.Namespace, console: Console) -> int:
    """Print what there is to know about this machine."""
    from ..recipes.doctor import EXTRAS
    from ..recipes.doctor import doctor as recipe

    found = recipe()
    console.value(found)
    blas, cuda = found["blas"], found["cuda"]
    threads = "threads unknown" if blas["threads"] is None else f"{blas['threads']} threads"
    memory = found["memory_bytes"]
    rows = [
        ("python", f"{found['python']} on {found['platform']}"),
        *((name, version or "not installed") for name, version in found["versions"].items()),
        *(
            (name, version or f"not installed: {_install(EXTRAS[name])}")
            for name, version in found["extras"].items()
        ),
        ("driver", f"CUDA {cuda['driver']}: {_cards(cuda)}" if cuda["driver"] else "none"),
        (
            "device code",
            f"compiled by {found['compilers'][0]}" if found["compilers"] else "no compiler",
        ),
        ("--device cuda", "; ".join(found["in_the_way_of_cuda"]) or "all that it needs is here"),
        ("cores", str(found["cores"])),
        ("memory", size(memory) if memory else "unknown"),
        ("BLAS", f"{blas['name']} {blas['version']}, {threads}"),
        ("vectors", " ".join(found["cpu_features"]) or "unknown"),
        ("kernels", _kernels(found["kernels"])),
        ("AMX", "yes" if found["amx"] else "no"),
        ("mkl", _mkl(found["mkl"])),
        *found["precision"].items(),
        ("matmul", f"{found['matmul_gflops']:,.0f} GFLOP/s (1024 x 1024, float32)"),
        ("copy", f"{found['copy_gigabytes_per_second']:,.1f} GB/s (read and written)"),
    ]
    console.result(table(("", ""), rows).strip("\n"))
    return 0


def _kernels(found: dict[str, Any]) -> str:
    if not found["compiled"]:
        return 'plain NumPy, and its threads; pip install "tinyplm[fast]" for compiled ones'
    threads = f"{found['threads']} thread{'s' if found['threads'] != 1 else ''} of our own"
    return f"compiled, {threads}; products by {found['products'] or 'NumPy, and its threads'}"


def _mkl(found: dict[str, Any]) -> str:
    if found["version"] is None:
        return f"not used: {found['reason']}"
    speed = f"{found['gflops_of_one_thread']:,.0f} GFLOP/s (1024 x 1024, bfloat16, one thread)"
    return f"{found['version']}, {speed}"


def _install(extras: str) -> str:
    return " or ".join(f'pip install "tinyplm[{extra}]"' for extra in extras.split(" or "))


def _cards(cuda: dict[str, Any]) -> str:
    pairs = zip(cuda["cards"], cuda["capabilities"], strict=True)
    return ", ".join(f"{name} ({capability})" for name, capability in pairs) or "no card"
