"""Choosing among the variants of a kernel."""

import numpy as np
import pytest

from tinyplm.kernels.registry import KERNELS, Kernel


@pytest.fixture
def kernel():
    @Kernel
    def doubled_for_this_test(x):
        """Twice x."""
        return "definition", 2 * x

    yield doubled_for_this_test
    del KERNELS["doubled_for_this_test"]


def test_without_variants_the_definition_computes(kernel):
    assert kernel(np.ones(1))[0] == "definition"
    assert kernel.__doc__ == "Twice x."
    assert KERNELS["doubled_for_this_test"] is kernel


def test_the_first_variant_that_applies_computes(kernel):
    kernel.variant("long", library="numpy", when=lambda x: x.size > 3)(
        lambda: lambda x: ("long", x)
    )
    kernel.variant("any", library="numpy")(lambda: lambda x: ("any", x))
    assert kernel(np.ones(4))[0] == "long"
    assert kernel(np.ones(1))[0] == "any"


def test_a_variant_of_another_library_is_passed_over(kernel):
    kernel.variant("gpu", library="cupy")(lambda: lambda x: ("gpu", x))
    assert kernel(np.ones(1))[0] == "definition"


def test_a_variant_that_cannot_be_built_is_passed_over(kernel):
    kernel.variant("absent", library="numpy")(lambda: None)
    assert kernel(np.ones(1))[0] == "definition"


def test_a_variant_is_built_once_and_only_when_it_applies(kernel):
    built = []

    def build():
        built.append(1)
        return lambda x: ("fast", x)

    kernel.variant("fast", library="numpy", when=lambda x: x.size > 1)(build)
    kernel(np.ones(1))
    assert built == []
    kernel(np.ones(2))
    kernel(np.ones(2))
    assert built == [1]


def test_the_definition_or_a_variant_can_be_forced(kernel):
    kernel.variant("first", library="numpy")(lambda: lambda x: ("first", x))
    kernel.variant("second", library="numpy")(lambda: lambda x: ("second", x))
    with kernel.using("second"):
        assert kernel(np.ones(1))[0] == "second"
        with kernel.using("reference"):
            assert kernel(np.ones(1))[0] == "definition"
        assert kernel(np.ones(1))[0] == "second"
    assert kernel(np.ones(1))[0] == "first"


def test_a_variant_by_name_computes_only_where_it_is_asked_for(kernel):
    kernel.variant("named", library="numpy", by_name=True)(lambda: lambda x: ("named", x))
    assert kernel(np.ones(1))[0] == "definition"
    with kernel.using("named"):
        assert kernel(np.ones(1))[0] == "named"


def test_forcing_ends_with_an_error(kernel):
    kernel.variant("first", library="numpy")(lambda: lambda x: ("first", x))
    with pytest.raises(KeyError), kernel.using("reference"):
        raise KeyError
    assert kernel(np.ones(1))[0] == "first"
