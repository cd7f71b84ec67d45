"""`python -m service.healthcheck`, which containers run."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from service.healthcheck import check
from tests.service.harness import ROOT, StartProcess


def healthcheck(folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it in a folder, with these settings."""
    return subprocess.run(
        [sys.executable, "-m", "service.healthcheck"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_service_that_answers_is_healthy(start_process: StartProcess) -> None:
    """Wherever it listens: a host that means all addresses is asked at loopback."""
    started = start_process(HOST="0.0.0.0", WORKERS="1")
    done = healthcheck(HOST="0.0.0.0", PORT=str(started.port))
    assert (done.returncode, done.stderr) == (0, "")


def test_a_port_where_nobody_answers_is_not() -> None:
    """The exit code is 1, which Docker takes for unhealthy, and the reason goes into its log."""
    with socket.socket() as bound:  # nobody else gets the port, and nobody listens on it
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        done = healthcheck(PORT=str(port))
    assert done.returncode == 1
    assert f"127.0.0.1:{port} does not answer" in done.stderr


@pytest.mark.parametrize("host", ["127.0.0.1", "", "0.0.0.0"])
def test_another_answer_than_the_service_s_is_not_healthy(host: str) -> None:
    """As of another program that has the port."""
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other:
        thread = threading.Thread(target=other.handle_request)
        thread.start()
        assert check(host, other.server_port) == "/healthz answers 501"
        thread.join()


@pytest.mark.parametrize(
    "line",
    ["MAX_WAIT_MS=fast", "AUTH:required", "TLS_KEY=gone.key", "TLS_CERTIFICATE=gone.crt\nTLS_KEY=gone.key"],
)
def test_a_service_is_healthy_while_its_settings_are_edited(
    start_process: StartProcess, tmp_path: Path, line: str
) -> None:
    """A mistake, and what the next reload takes up, is no fault of the service that runs."""
    started = start_process(WORKERS="1")
    (tmp_path / ".env").write_text(f"PORT={started.port}\n{line}\n")
    assert healthcheck(tmp_path).returncode == 0


def test_a_wrong_port_is_told() -> None:
    """The exit code stays 1: Docker reserves 2."""
    done = healthcheck(PORT="web")
    assert done.returncode == 1
    assert "PORT" in done.stderr
