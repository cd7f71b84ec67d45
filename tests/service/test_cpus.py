"""Counting the CPUs that may be used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.errors import StartupError
from service.processes import cpus
from service.settings import Settings


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Stand-ins for the control groups' files, on a machine with 8 CPUs: a folder of `self`, `v1` and `v2`."""
    monkeypatch.setattr(cpus, "_GROUPS", tmp_path / "self")
    for name in ("v1", "v2"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(cpus, f"_CGROUP_{name.upper()}", tmp_path / name)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    return tmp_path


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
def test_a_quota_bounds_the_count(groups: Path, text: str, expected: int) -> None:
    """A container's share counts, rounded up, and never more than the affinity mask."""
    (groups / "self").write_text("0::/\n")
    (groups / "v2/cpu.max").write_text(text)
    assert cpus.available_cpus() == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1\n", 8), ("300000\n", 3)])
def test_a_quota_of_the_first_version_counts_too(groups: Path, quota: str, expected: int) -> None:
    """Its quota and its period are in files of their own."""
    (groups / "v1/cpu.cfs_quota_us").write_text(quota)
    (groups / "v1/cpu.cfs_period_us").write_text("100000\n")
    assert cpus.available_cpus() == expected


def test_a_systemd_units_quota_counts(groups: Path) -> None:
    """It is in the unit's own group, and the topmost has none; a slice above it may allow less."""
    (groups / "self").write_text("0::/system.slice/visionai.service\n")
    unit = groups / "v2/system.slice/visionai.service"
    unit.mkdir(parents=True)
    (unit / "cpu.max").write_text("400000 100000\n")
    (unit.parent / "cpu.max").write_text("max 100000\n")
    assert cpus.available_cpus() == 4
    (unit.parent / "cpu.max").write_text("200000 100000\n")
    assert cpus.available_cpus() == 2


def test_a_units_quota_of_the_first_version_counts(groups: Path) -> None:
    """Its group is that of the controller for CPUs; others are elsewhere."""
    (groups / "self").write_text("4:memory:/elsewhere\n1:cpu,cpuacct:/visionai\n0::/\n")
    (groups / "v1/visionai").mkdir()
    (groups / "v1/visionai/cpu.cfs_quota_us").write_text("200000\n")
    (groups / "v1/visionai/cpu.cfs_period_us").write_text("100000\n")
    assert cpus.available_cpus() == 2
    (groups / "v1/elsewhere").mkdir()
    (groups / "v1/elsewhere/cpu.cfs_quota_us").write_text("100000\n")
    (groups / "v1/elsewhere/cpu.cfs_period_us").write_text("100000\n")
    assert cpus.available_cpus() == 2


def test_a_group_that_is_not_seen_is_passed_over(groups: Path) -> None:
    """In a container the path may be the host's, while the files of its own group are at the top."""
    (groups / "self").write_text("0::/docker/0123456789ab\n")
    (groups / "v2/cpu.max").write_text("200000 100000")
    assert cpus.available_cpus() == 2


def test_without_a_quota_the_affinity_mask_counts(groups: Path) -> None:
    """No cgroup file: what the scheduler allows."""
    assert not (groups / "self").exists()
    assert cpus.available_cpus() == 8


@pytest.mark.parametrize("layout", [(5000, 0, 1), (1, 5000, 1), (1, 0, 5000), (16, 17, 1)])
def test_more_threads_than_a_machine_bears_are_refused(groups: Path, layout: tuple[int, int, int]) -> None:
    """Before one is started: thousands of workers take the machine down. What a user may want to try is not refused."""
    cpus.check_layout(Settings(workers=8, executors=4, threads=8))
    workers, executors, threads = layout
    with pytest.raises(StartupError, match="and 256 are the most for the CPUs of this machine"):
        cpus.check_layout(Settings(workers=workers, executors=executors, threads=threads))
