"""How busy the machine is with something else, and waiting until it is not.

A benchmark that shares its machine measures the others too. Each measurement says how many cores were busy with neither
the server nor the generator (time stolen by a hypervisor's other guests counts, where the system tells), and may wait
for a quiet moment.
"""

from __future__ import annotations

import time

import psutil

_LOOK_SECONDS = 0.5

# Cores; an idle system's own housekeeping stays below.
_QUIET = 0.1


def busy_seconds() -> float:
    """CPU seconds that all cores together have not been idle, since the system started."""
    times = psutil.cpu_times()
    # Guests' time is in `user` already; waiting for a disk leaves a core free.
    idle = times.idle + getattr(times, "iowait", 0.0)
    counted = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return float(counted - idle)


def wait_until_quiet(patience: float) -> bool:
    """Wait until the machine does nothing for half a second, at most `patience` seconds; whether it did."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        before, begun = busy_seconds(), time.monotonic()
        time.sleep(_LOOK_SECONDS)
        if (busy_seconds() - before) / (time.monotonic() - begun) < _QUIET:
            return True
    return False
