"""How many CPUs this process may use: the affinity mask and the container's quota, not the host's count."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP_V2 = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_V1_QUOTA = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
_CGROUP_V1_PERIOD = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")


def available_cpus() -> int:
    """CPUs that work may be spread over, at least 1. A quota of 1.5 CPUs counts as 2."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return max(1, allowed if quota is None else min(allowed, math.ceil(quota)))


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
