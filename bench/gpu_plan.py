"""What a run on a card does, as tasks for its processes: nothing here touches the card."""

from typing import Any

from tinyplm.kernels import cuda

from .gpu_cases import COPY_RATE, PRODUCT_RATE, cases
from .gpu_questions import QUESTIONS
from .gpu_report import micro, short
from .gpu_worker import Task

CEILINGS = ("copy", "fill", "product bfloat16", "product bfloat16 of torch", "product float32")


def here() -> Task:
    """What is there."""
    return Task("here", "here", "bench.gpu_here:here", seconds=3, limit=60)


def tasks(section: str, settings: dict[str, Any]) -> list[Task]:
    """Those of a section, in their order."""
    if section == "questions":
        return [
            Task("questions", name, "bench.gpu_questions:ask", (name,), 3, 40) for name in QUESTIONS
        ]
    if section == "ceilings":
        function = "bench.gpu_here:ceiling"
        return [Task("ceilings", name, function, (name,), 3, 40) for name in CEILINGS]
    if section in ("checks", "readable"):
        from . import gpu_checks

        function = "bench.gpu_checks:check"
        seconds, limit = (4, 60) if section == "checks" else (15, 180)  # Numba compiles each shape
        return [
            Task("checks", f"check {name} {variant}", function, (name, variant), seconds, limit)
            for name, variant in gpu_checks.variants(settings)
            if (variant == "cuda") == (section == "checks")
        ]
    return [
        Task(
            "steps" if c.family == "steps" else "times",
            *(c.name, c.function, (c.name,), c.seconds, c.limit),
        )
        for c in cases(settings)
    ]


def discover() -> Task:
    """Which configurations of templates will be launched."""
    return Task("discover", "discover", "bench.gpu_checks:discover", (), 20, 120)


def compiling(files: list[str], arch: str) -> list[Task]:
    """Every file of kernels, and every configuration of a template that will be launched."""
    function = "bench.gpu_here:compiled"
    return [Task("compile", f"compile {file}", function, (file, arch), 3, 120) for file in files]


def warm(settings: dict[str, Any]) -> list[Task]:
    """What peers compile, so that it lies on the disk when they are timed."""
    if not settings.get("peers", True):
        return []
    return [
        Task("warm", f"warm {c.name}", c.warming, (c.name,), 20, 150)
        for c in cases(settings)
        if c.compiles
    ]


def dry(settings: dict[str, Any]) -> str:
    """The cases, without a card: what each must take at the rates that predictions stand on, and what was predicted."""
    lines = [
        f"{'case':<52}{'GFLOP':>10}{'MB':>10}{'floor us':>11}{'predicted us':>17}  from",
    ]
    for c in cases(settings):
        expected = "-"
        if c.predicted:
            expected = "-".join(dict.fromkeys(micro(s) for s in c.predicted))
        name = f"{c.what} {c.shapes} {short(c.dtype)}"
        lines.append(
            f"{name:<52}{c.flops / 1e9:>10,.4g}{c.moved / 1e6:>10,.4g}{micro(c.floor()):>11}{expected:>17}  {c.source}"
        )
    lines.append(
        f"floors at {PRODUCT_RATE / 1e12:.0f} TFLOP/s and {COPY_RATE / 1e12:.1f} TB/s; "
        f"{len(QUESTIONS)} questions, {len(cuda.FILES)} files to compile, and templates as they are launched"
    )
    return "\n".join(lines)
