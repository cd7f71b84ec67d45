"""Counting the CPUs that may be used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service import cpus


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
