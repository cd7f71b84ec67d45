"""Counting the CPUs that may be used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service import cpus
from service.errors import StartupError
from service.settings import Settings


@pytest.fixture
def quota(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A stand-in for the cgroup's file, on a machine with 8 CPUs."""
    path = tmp_path / "cpu.max"
    monkeypatch.setattr(cpus, "_CGROUP_V2", path)
    monkeypatch.setattr(cpus, "_CGROUP_V1_QUOTA", tmp_path / "none")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("50000 100000", 1),
        ("9900000 100000", 8),
    ],
)
def test_a_quota_bounds_the_count(quota: Path, text: str, expected: int) -> None:
    """A container's share counts, rounded up, and never more than the affinity mask."""
    quota.write_text(text)
    assert cpus.available_cpus() == expected


def test_without_a_quota_the_affinity_mask_counts(quota: Path) -> None:
    """No cgroup file: what the scheduler allows."""
    assert not quota.exists()
    assert cpus.available_cpus() == 8


@pytest.mark.parametrize("layout", [(5000, 0, 1), (1, 5000, 1), (1, 0, 5000), (16, 17, 1)])
def test_more_threads_than_a_machine_bears_are_refused(quota: Path, layout: tuple[int, int, int]) -> None:
    """Before one is started: thousands of workers take the machine down. What a user may want to try is not refused."""
    cpus.check_layout(Settings(workers=8, executors=4, threads=8))
    workers, executors, threads = layout
    with pytest.raises(StartupError, match="and 256 are the most for the CPUs of this machine"):
        cpus.check_layout(Settings(workers=workers, executors=executors, threads=threads))
