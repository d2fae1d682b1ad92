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
    "kernels": "each variant of a kernel beside its definition, PyTorch, JAX and a copy of its bytes",
    "attention": "causal attention, forward and with gradients",
    "training-step": "an AdamW step of GPTs; with --large of GPT-2 at 4x512 too",
    "bert-step": "an AdamW step of BERTs on masked tokens and next sentences; with --large at 4x512 too",
    "t5-step": "an AdamW step of T5s on span corruption; with --large of T5 base too",
    "bf16": "the same steps with products in bfloat16",
    "encoder-forward": "12 blocks of BERT base's size without gradients",
    "decoding": "greedy decoding of GPT-2 with a cache, in float32 and smaller weights",
    "memory": "peak memory and page faults of training steps, in fresh processes",
    "growth": "time and memory against text length, layers, batch, vocabulary; when named",
    "reversal": "a Seq2Seq learns to turn sequences around, with attention and without; when named",
    "shakespeare": "a whole pretraining run beside PyTorch; minutes, needs --data; when named",
    "gpu": "everything on a card, with settings of its own: python -m bench gpu --help; when named",
}
ONLY_WHEN_NAMED = {"growth", "reversal", "shakespeare", "gpu"}
THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmarks that were named, or all but the long ones."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["gpu"]:  # threads are none of its matter
        from . import gpu

        return gpu.main(given[1:])
    parser = _parser()
    asked = parser.parse_args(given)
    if asked.list:
        for name, about in BENCHMARKS.items():
            print(f"{name:<15} {about}")
        return 0
    for name in asked.names:
        if name not in BENCHMARKS:
            parser.error(f"no benchmark '{name}'; known: {', '.join(BENCHMARKS)}")
        if name == "gpu":
            parser.error("gpu comes first and alone, as in: python -m bench gpu --quick")
    earlier = _read(parser, asked.compare) if asked.compare else []
    threads = _set_threads(parser, asked.threads)

    # Only now: NumPy reads the number of threads when it is loaded.
    from tinyplm.errors import TinyplmError

    from .measure import BenchError, Options, machine, note, table

    options = Options(
        quick=asked.quick,
        threads=threads,
        large=asked.large,
        peers=not asked.ours_only,
        data=asked.data,
        config=asked.config,
        steps=asked.steps,
    )
    load = f", load {os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else ""
    note(f"{machine()}; {threads} threads{load}")
    if load and os.getloadavg()[0] > 0.5:
        note("Other programs are running: ratios between contestants suffer, absolute times more.")
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
        except (BenchError, TinyplmError) as error:
            note(f"{name}: {error}")
            return 1
        except KeyboardInterrupt:
            note(f"{name}: stopped")
            return 130
        note(table(found))
        records += found
    if asked.compare:
        note(_compared(earlier, records))
    return _drawn(records, asked.plot) if asked.plot else 0


def _drawn(records: list[dict[str, Any]], output: Path) -> int:
    from .measure import note
    from .plot import plot

    try:
        plot(records, output)
    except ImportError:
        note('--plot needs matplotlib: pip install "tinyplm[plot]"')
        return 1
    except ValueError as error:
        note(f"--plot {output}: {error}")
        return 1
    note(f"drawn in {output}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=sys.modules["bench"].__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("names", metavar="NAME", nargs="*", help="which to run; all but the long one by default")
    add("--list", action="store_true", help="what there is")
    add("--large", action="store_true", help="add what takes minutes and 20 GB")
    add("--quick", action="store_true", help="leave out what is large, repeat less")
    add("--json", metavar="FILE", type=Path, help="append the records to a file")
    add("--compare", metavar="FILE", type=Path, help="an earlier file: ratios then and now")
    add("--plot", metavar="FILE", type=Path, help="draw the comparisons as PNG or SVG")
    add("--threads", metavar="N", type=int, help="for every library; all cores by default")
    add("--ours-only", action="store_true", help="no other framework, even if installed")
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
    if asked < _cores() and "numpy" not in sys.modules and hasattr(os, "sched_setaffinity"):
        # XLA reads no variable: it takes as many threads as there are cores for this process.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:asked])
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
    return tuple(record.get(name) for name in names)


def _compared(earlier: list[dict[str, Any]], now: list[dict[str, Any]]) -> str:
    """Ratios to ours then and now. Times are shown too, but only ratios within one run can be trusted."""
    from .measure import shown

    then = {_key(record): record for record in earlier}
    lines = ["", f"{'times ours then':>15} {'now':>7} {'then':>11} {'now':>10}"]
    for record in now:
        old = then.get(_key(record))
        before = f"{old['ratio']:15.2f}" if old else f"{'-':>15}"
        value_before = shown(old["median"], old.get("unit", "s")) if old else f"{'-':>10}"
        lines.append(
            f"{before} {record['ratio']:7.2f} {value_before:>11} {shown(record['median'], record['unit'])}  "
            f"{record['what']} {record['shapes']}: {record['library']} {record['variant']}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
