"""What the tests of device code share."""

import emulator as emulation
import pytest


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The device code as plain C++, each file compiled when it is first wanted."""
    if emulation.COMPILER is None:
        pytest.skip("needs g++")
    return emulation.Emulator(tmp_path_factory.mktemp("emulated"))
