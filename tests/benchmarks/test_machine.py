"""A report says with what settings it was measured."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from benchmarks.commands import app
from benchmarks.machine import describe_machine, describe_service
from service.errors import StartupError
from service.settings import DEFAULT_MODEL, Settings


@pytest.fixture(autouse=True)
def _nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by who runs the tests nor in the checkout."""
    monkeypatch.setattr("benchmarks.machine.ROOT", tmp_path)
    for setting in fields(Settings):
        monkeypatch.delenv(setting.name.upper(), raising=False)


def test_settings_of_the_service_are_told_and_secrets_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment before `.env`, as the service has it; not what the benchmark sets itself."""
    (tmp_path / ".env").write_text("MAX_BATCH=4\nWORKERS=3\nDATABASE_URL=sqlite:///mine.db\n")
    monkeypatch.setenv("MAX_BATCH", "16")
    monkeypatch.setenv("JWT_SECRET", "0123456789abcdef0123456789abcdef")
    monkeypatch.setenv("PORT", "8123")
    found = describe_service()
    assert found == {
        "PROVIDER": "cpu",
        "MAX_BATCH": "16",
        "WORKERS": "3",
        "JWT_SECRET": "(not shown)",
    }
    monkeypatch.setenv("PROVIDER", "openvino")
    assert describe_service()["PROVIDER"] == "openvino"


def test_settings_that_cannot_be_read_are_an_error_that_names_the_file(tmp_path: Path) -> None:
    """As at the start of the service."""
    (tmp_path / ".env").write_bytes(b"JWT_ISSUER=\xff\xfe\n")
    with pytest.raises(StartupError, match=r"\.env cannot be read"):
        describe_service()


def test_versions_are_of_what_is_installed() -> None:
    """One of the two onnxruntimes; what is not there has none."""
    packages = describe_machine(DEFAULT_MODEL)["packages"]
    assert ("onnxruntime" in packages) != ("onnxruntime-gpu" in packages)
    assert all(packages.values())


def test_the_report_says_how_it_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The seconds of each part, which are not the same, the patience, and the service's settings."""
    nothing = SimpleNamespace(parts=list, to_json=dict)
    monkeypatch.setattr("benchmarks.suite.run_suite", lambda *_: nothing)
    monkeypatch.setenv("MAX_BATCH", "2")
    ended = CliRunner().invoke(app, ["--seconds", "3", "--patience", "7", "--out", str(tmp_path)])
    assert ended.exit_code == 0, ended.output
    report = (tmp_path / "report.html").read_text()
    for told in (
        "PROVIDER cpu, MAX_BATCH 2",
        "limit 1.0, against the limit 3.0",
        "sweep 1.5",
        "<dd>7.0</dd>",
    ):
        assert told in report
