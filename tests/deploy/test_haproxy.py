"""HAProxy as deploy/ configures it, before a real service: what it keeps from clients."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.harness import ROOT, TIMEOUT, ServiceProcess


def answer(port: int, target: str, version: str = "1.1") -> str:
    """All that is answered to a GET of whatever this is; nothing where nobody listens."""
    try:
        with socket.create_connection(("127.0.0.1", port), TIMEOUT) as connection:
            connection.sendall(
                f"GET {target} HTTP/{version}\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
            )
            with connection.makefile("rb") as stream:
                return stream.read().decode()
    except ConnectionRefusedError:
        return ""


@pytest.fixture(scope="module")
def port(service_process: ServiceProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Where HAProxy listens before it."""
    program = shutil.which("haproxy")
    assert program, "haproxy is missing: `make tools` installs it"
    folder: Path = tmp_path_factory.mktemp("haproxy")
    with socket.create_server(("127.0.0.1", 0)) as bound:
        yield from _haproxy(program, folder, bound, service_process.port)


def _haproxy(program: str, folder: Path, bound: socket.socket, service: int) -> Iterator[int]:
    """Run it on a socket that is bound already: a port that was let go might be another's by then."""
    port = bound.getsockname()[1]
    text = (ROOT / "deploy/haproxy/haproxy.cfg").read_text()
    for there, here in (
        (r"bind :8000$", f"bind fd@{bound.fileno()}"),
        (r"bind :8405$", f"bind {folder}/statistics.sock"),
        (r"server-template .*$", f"server replica 127.0.0.1:{service}"),
    ):
        text, count = re.subn(there, here, text, flags=re.MULTILINE)
        assert count == 1
    configuration = folder / "haproxy.cfg"
    configuration.write_text(text)
    with subprocess.Popen(
        [program, "-f", str(configuration)], stdout=subprocess.DEVNULL, pass_fds=[bound.fileno()]
    ) as process:
        try:
            deadline = time.monotonic() + TIMEOUT
            while " 200 " not in answer(port, "/readyz"):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield port
        finally:
            process.kill()


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize(
    "target",
    [
        "/metrics",
        "/metrics?x",
        "http://x/metrics",
        "http:///metrics",
        "*://x/metrics",
        "*a://x/metrics",
        "://x/metrics",
        "1://x/metrics",
        "a_b://x/metrics",
        "?/metrics",
        "//metrics",
        "*",
    ],
)
def test_metrics_are_out_of_reach_however_they_are_asked_for(port: int, target: str, version: str) -> None:
    """HAProxy and the service agree on what the path is, or one of them refuses."""
    head, _, body = answer(port, target, version).partition("\r\n\r\n")
    assert re.match(r"HTTP/1\.. 40[04] ", head)
    assert "visionai_" not in body


@pytest.mark.parametrize("target", ["/healthz", "http://x/healthz?y"])
def test_what_is_served_is_served_through_it(port: int, target: str) -> None:
    """The same service, and the same rules."""
    assert " 200 " in answer(port, target).partition("\r\n")[0]
