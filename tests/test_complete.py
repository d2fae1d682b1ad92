"""What is forgotten is noticed here: every op and every kernel has its case."""

from kernel_cases import KERNEL_CASES

import tinyplm.autograd.ops as ops
from tinyplm.autograd import OPS
from tinyplm.autograd.cases import CASES
from tinyplm.kernels.registry import KERNELS


def test_every_op_has_a_case_and_every_case_an_op():
    own = {name for name, op in OPS.items() if op.on_arrays.__module__.startswith("tinyplm.")}
    assert own == set(CASES), "an op without a case, or a case without an op"


def test_every_op_has_a_hard_input_and_a_docstring():
    assert [name for name, case in CASES.items() if not case.hard and name != "negate"] == []
    assert [name for name in CASES if not OPS[name].__doc__] == []


def test_every_op_is_exported():
    assert [name for name in CASES if not callable(getattr(ops, name, None))] == []


def test_every_kernel_has_a_case_and_every_case_a_kernel():
    assert set(KERNELS) == set(KERNEL_CASES), "a kernel without a case, or a case without a kernel"
