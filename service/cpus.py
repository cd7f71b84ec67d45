"""How many CPUs this process may use: the affinity mask and the container's quota, not the host's count. And how much
may be asked of them."""

from __future__ import annotations

import math
import os
from pathlib import Path

from service.errors import StartupError
from service.settings import Settings

# Threads for each CPU, of all workers together. More only wait for each other, and thousands take the machine down.
_MOST_THREADS = 32

_CGROUP_V2 = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_V1_QUOTA = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
_CGROUP_V1_PERIOD = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")


def available_cpus() -> int:
    """CPUs that work may be spread over, at least 1. A quota of 1.5 CPUs counts as 2."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return max(1, allowed if quota is None else min(allowed, math.ceil(quota)))


def check_layout(settings: Settings) -> None:
    """Refuse more processes and threads than this machine could do anything with.

    Raises:
        StartupError: they are too many; says which settings make them.
    """
    threads = settings.workers * max(1, settings.executors) * settings.threads
    if threads > (most := _MOST_THREADS * available_cpus()):
        raise StartupError(
            f"WORKERS={settings.workers}, EXECUTORS={settings.executors} and THREADS={settings.threads} make {threads} "
            f"threads, and {most} are the most for the CPUs of this machine: leave them unset, or set less"
        )


def _quota() -> float | None:
    """The cgroup's CPU quota in CPUs; None where there is none."""
    try:
        maximum, period = _CGROUP_V2.read_text().split()
    except (OSError, ValueError):
        try:
            maximum, period = _CGROUP_V1_QUOTA.read_text().strip(), _CGROUP_V1_PERIOD.read_text().strip()
        except OSError:
            return None
    if maximum == "max" or int(maximum) < 0:
        return None
    return int(maximum) / int(period)
