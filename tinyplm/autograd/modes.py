"""What a thread does while it computes: record or not, watch for NaN or not."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager


class _Mode(threading.local):
    recording = True
    anomaly = False


mode = _Mode()
in_use = (
    0  # blocks of no_grad and detect_anomaly open in any thread; at 0 nobody need look at the mode
)
_lock = threading.Lock()


@contextmanager
def _set(**flags: bool) -> Iterator[None]:
    global in_use
    before = {flag: getattr(mode, flag) for flag in flags}
    with _lock:
        in_use += 1
    vars(mode).update(flags)
    try:
        yield
    finally:
        vars(mode).update(before)
        with _lock:
            in_use -= 1


def no_grad() -> AbstractContextManager[None]:
    """Compute without recording within a block: nothing is kept for a backward pass."""
    return _set(recording=False)


def detect_anomaly() -> AbstractContextManager[None]:
    """Stop, within a block, at the op in which the first NaN or infinity appears, forward or backward."""
    return _set(anomaly=True)


def recording() -> bool:
    """Whether ops called now are recorded if a gradient is wanted."""
    return mode.recording
