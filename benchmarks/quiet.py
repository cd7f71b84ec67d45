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

# A virtual machine may stand still without being told: a loop that only reads the clock finds gaps in the time then.
_PROBE_SECONDS = 0.2
_GAP_SECONDS = 0.001
_STILL = 0.02


def busy_seconds() -> float:
    """CPU seconds that all cores together have not been idle, since the system started."""
    times = psutil.cpu_times()
    # Guests' time is in `user` already; waiting for a disk leaves a core free.
    idle = times.idle + getattr(times, "iowait", 0.0)
    counted = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return float(counted - idle)


def stood_still() -> float:
    """Share of the time that one core stood still just now, 0 to 1. Keeps it busy for a fifth of a second."""
    clock = time.perf_counter
    lost = 0.0
    begun = last = clock()
    while last - begun < _PROBE_SECONDS:
        now = clock()
        if now - last > _GAP_SECONDS:
            lost += now - last
        last = now
    return lost / (last - begun)


def wait_until_quiet(patience: float) -> bool:
    """Wait until the machine does nothing for half a second, and does not stand still; at most `patience` seconds.

    Returns whether it did.
    """
    end = time.monotonic() + patience
    while time.monotonic() < end:
        before, begun = busy_seconds(), time.monotonic()
        time.sleep(_LOOK_SECONDS)
        if (busy_seconds() - before) / (time.monotonic() - begun) < _QUIET and stood_still() < _STILL:
            return True
    return False
