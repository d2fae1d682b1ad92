"""The training steps with operands of matrix products in bfloat16: our precision setting beside PyTorch's autocast.

Which numbers are rounded differs, so losses may differ by a hundredth and norms by a twentieth. The floor is that of
float32: more than 100 % of it is what bfloat16 is for.
"""

from collections.abc import Iterator

from . import steps, training_step
from .measure import Options, Record, cpu_information, note


def run(options: Options) -> Iterator[Record]:
    """The sizes of training-step."""
    if not {"amx_bf16", "avx512_bf16"} & set(cpu_information("flags").split()):
        note(
            "bf16: this processor has no instructions for bfloat16 (AMX, AVX-512), so nothing is timed."
        )
        return
    try:
        with steps.precision("bfloat16"):
            pass
    except ImportError:
        note("bf16: this version of tinyplm has no setting for bfloat16, so nothing is timed.")
        return
    yield from training_step.run(options, bf16=True)
