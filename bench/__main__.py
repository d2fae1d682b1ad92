"""The command line of the benchmarks: JSON lines on standard output, tables for people on standard error."""

import argparse
import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

BENCHMARKS = {
    "op-overhead": "a chain of 1000 additions of one-element tensors, forward and backward",
    "kernels": "each variant of a kernel beside its definition and a copy",
    "training-step": "an AdamW step of a GPT beside PyTorch, and the matrix products alone",
    "decoding": "greedy decoding with a cache beside transformers",
    "shakespeare": "a whole pretraining run beside PyTorch; minutes, needs --data, runs only when named",
}
ONLY_WHEN_NAMED = {"shakespeare"}
THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmarks that were named, or all but the long ones."""
    parser = _parser()
    asked = parser.parse_args(arguments)
    if asked.list:
        for name, about in BENCHMARKS.items():
            print(f"{name:<15} {about}")
        return 0
    for name in asked.names:
        if name not in BENCHMARKS:
            parser.error(f"no benchmark '{name}'; known: {', '.join(BENCHMARKS)}")
    earlier = _read(parser, asked.compare) if asked.compare else []
    threads = _set_threads(parser, asked.threads)

    # Only now: NumPy reads the number of threads when it is loaded.
    from tinyplm.errors import TinyplmError

    from .measure import Options, WrongResultError, note, table

    options = Options(
        quick=asked.quick,
        threads=threads,
        peers=not asked.ours_only,
        gpt2_small=asked.gpt2_small,
        data=asked.data,
        config=asked.config,
        steps=asked.steps,
    )
    records = []
    for name in asked.names or [name for name in BENCHMARKS if name not in ONLY_WHEN_NAMED]:
        found = []
        try:
            for record in import_module(f"bench.{name.replace('-', '_')}").run(options):
                print(json.dumps(record), flush=True)
                found.append(record)
                if asked.json:
                    asked.json.parent.mkdir(parents=True, exist_ok=True)
                    with asked.json.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(record) + "\n")
        except (WrongResultError, TinyplmError) as error:
            note(f"{name}: {error}")
            return 1
        except KeyboardInterrupt:
            note(f"{name}: stopped")
            return 130
        note(table(found))
        records += found
    if asked.compare:
        note(_compared(earlier, records))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=sys.modules["bench"].__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("names", metavar="NAME", nargs="*", help="which to run; all but the long one by default")
    add("--list", action="store_true", help="what there is")
    add("--quick", action="store_true", help="leave out what is large, repeat less")
    add("--json", metavar="FILE", type=Path, help="append the records to a file")
    add("--compare", metavar="FILE", type=Path, help="an earlier file: ratios then and now")
    add("--threads", metavar="N", type=int, help="for every library; all cores by default")
    add("--ours-only", action="store_true", help="no other framework, even if installed")
    add("--gpt2-small", action="store_true", help="decoding: the 124M model; 2 GB of memory")
    add("--data", metavar="FILE", type=Path, help="shakespeare: the text")
    add("--config", metavar="FILE", type=Path, help="shakespeare: other settings of the run")
    add("--steps", metavar="N", type=int, help="shakespeare: fewer updates")
    return parser


def _set_threads(parser: argparse.ArgumentParser, asked: int | None) -> int:
    """Set the threads of every library by the environment; how many they are."""
    if asked is None:
        said = next((os.environ[name] for name in THREAD_VARIABLES if name in os.environ), "")
        asked = int(said) if said.isdigit() and int(said) else _cores()
    elif asked < 1:
        parser.error(f"--threads is {asked}; expected at least 1")
    elif "numpy" in sys.modules:
        parser.error("--threads has no effect once NumPy is loaded; run python -m bench")
    for name in THREAD_VARIABLES:
        os.environ[name] = str(asked)
    return asked


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _read(parser: argparse.ArgumentParser, path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        parser.error(f"--compare {path}: {error}. Expected a file that --json wrote")


def _key(record: dict[str, Any]) -> tuple[Any, ...]:
    names = ("benchmark", "what", "shapes", "dtype", "library", "variant", "threads")
    return tuple(record[name] for name in names)


def _compared(earlier: list[dict[str, Any]], now: list[dict[str, Any]]) -> str:
    """Ratios then and now. Times are shown too, but only ratios within one run can be trusted."""
    then = {_key(record): record for record in earlier}
    lines = ["", f"{'ratio then':>10} {'now':>7} {'time then':>11} {'now':>11}"]
    for record in now:
        old = then.get(_key(record))
        before = f"{old['ratio']:10.2f}" if old else f"{'-':>10}"
        time_before = f"{old['median'] * 1e3:8.3f} ms" if old else f"{'-':>11}"
        lines.append(
            f"{before} {record['ratio']:7.2f} {time_before} {record['median'] * 1e3:8.3f} ms  "
            f"{record['what']} {record['shapes']}: {record['library']} {record['variant']}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
