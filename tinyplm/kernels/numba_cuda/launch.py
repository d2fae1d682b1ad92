"""Starting a numba.cuda kernel on CuPy's arrays, or on NumPy's in Numba's simulator."""

from typing import Any

import numpy as np
from numba import config, cuda


def launch(kernel: Any, grid: tuple[int, ...], block: tuple[int, ...], *arguments: Any) -> None:
    """Run a kernel on CuPy's current stream; a grid without blocks does nothing."""
    if 0 in grid:
        return
    if config.ENABLE_CUDASIM:
        # Wrapped by us, as the simulator itself takes no array with gaps.
        from numba.cuda.cudadrv.devicearray import FakeCUDAArray

        kernel[grid, block](
            *(FakeCUDAArray(a) if isinstance(a, np.ndarray) else a for a in arguments)
        )
        return
    import cupy

    at = cupy.cuda.get_current_stream().ptr
    stream = cuda.external_stream(at) if at else 0
    kernel[grid, block, stream](*(_for_numba(a) for a in arguments))


def _for_numba(argument: Any) -> Any:
    """An array as Numba knows it, without the wait for CuPy's stream: this is the same stream."""
    if hasattr(argument, "__cuda_array_interface__"):
        return cuda.as_cuda_array(argument, sync=False)
    return argument


def tiles(size: int, tile: int) -> int:
    """How many tiles cover so much."""
    return -(-size // tile)
