"""How many CPUs this process may use (the affinity mask and the control group's quota, not the host's count), and how
much may be asked of them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from service.errors import StartupError
from service.settings import Settings

# Threads for each CPU, of all workers together. More only wait for each other, and thousands take the machine down.
_MOST_THREADS = 32

# Which group this process is in: `0::/system.slice/visionai.service` for version 2, `1:cpu,cpuacct:/…` for version 1.
_GROUPS = Path("/proc/self/cgroup")
_CGROUP_V2 = Path("/sys/fs/cgroup")
_CGROUP_V1 = Path("/sys/fs/cgroup/cpu")


def available_cpus() -> int:
    """CPUs that work may be spread over, at least 1. A quota of 1.5 CPUs counts as 2."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *(math.ceil(quota) for quota in _quotas())]))


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


def _quotas() -> Iterator[float]:
    """The CPU quotas of this process' groups and of those above them, in CPUs: each bounds what is below it."""
    for folder in _folders(_CGROUP_V2, ""):
        try:
            maximum, period = (folder / "cpu.max").read_text().split()
        except (OSError, ValueError):
            continue  # it has none, as the topmost of a system, or is not seen from inside a container
        if maximum != "max":
            yield int(maximum) / int(period)
    for folder in _folders(_CGROUP_V1, "cpu"):
        try:
            maximum = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        except OSError:
            continue
        if int(maximum) >= 0:
            yield int(maximum) / int(period)


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process' group, and of all above it. In a container its own group is the root, mostly."""
    yield root
    try:
        lines = _GROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            group = Path(path.lstrip("/"))
            yield from (root / each for each in (group, *group.parents) if each != Path())
