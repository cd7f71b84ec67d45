"""Options that would only be found wrong after something was measured."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from benchmarks.commands import app
from benchmarks.peers.compare import PeerResult
from tests.benchmarks.harness import LOAD, benchmark


@pytest.mark.parametrize(
    "arguments",
    [
        ("load", "--rate", "inf"),
        ("load", "--deadline", "inf"),
        ("limit", "--seconds", "inf"),
        ("capacity", "--rate", "inf"),
        ("replicas", "--rate", "inf"),
        ("replicas", "--seconds", "inf"),
        ("ratio", "--patience", "inf"),
    ],
)
def test_a_number_without_end_is_a_usage_error(arguments: tuple[str, ...]) -> None:
    """It is exit code 2 before anything is started."""
    ended = benchmark(*arguments)
    assert ended.returncode == 2
    assert "no finite number" in ended.stderr


def test_a_peer_that_is_named_twice_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows could not be held against the service's, of which there are as many as of one."""
    asked: list[list[str]] = []

    def compare(names: list[str], *_: object) -> tuple[list[PeerResult], dict[str, str]]:
        asked.append(names)
        return [PeerResult(name, LOAD) for name in ("visionai", *names)], {}

    monkeypatch.setattr("benchmarks.scenarios.compare_peers", compare)
    ended = CliRunner().invoke(app, ["peers", "--peers", "fastapi,mosec,fastapi"])
    assert ended.exit_code == 0, ended.output
    assert asked == [["fastapi", "mosec"]]
