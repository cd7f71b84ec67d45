"""Peers and the service under the same load in turns, and the ratios between them.

Each peer has an environment of its own, ``benchmarks/peers/.env-NAME``, made on demand from its pinned requirements.
Every server is started before the first is loaded and stays idle meanwhile; the rounds go over all of them, so that
what disturbs the machine disturbs each.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load import LoadPlan, LoadResult, answered, load
from benchmarks.quiet import wait_until_quiet
from benchmarks.spread import spread
from benchmarks.tables import Grid
from benchmarks.target import ROOT, Target, running, started_service
from benchmarks.wire import ConnectionLost
from benchmarks.workload import Framing, make_workload
from service.engine import Engine
from service.processes.cpus import available_cpus

_HERE = Path(__file__).parent
_START_SECONDS = 60
_INSTALL_SECONDS = 900


@dataclass(frozen=True, slots=True)
class Peer:
    """A server: how it is started, and how it is spoken to.

    `decode` is ``scaled`` for the service's own decoder, ``full`` for OpenCV's, as the peer's documentation has it;
    `environment` names its requirements, where these are not its own.
    """

    name: str
    arguments: Sequence[str]
    framing: Framing
    decode: str = "scaled"
    environment: str = ""


PEERS = {
    peer.name: peer
    for peer in (
        Peer("mosec", ("-m", "benchmarks.peers.mosec_server", "--address", "127.0.0.1", "--port"), "http"),
        Peer(
            "mosec-full",
            ("-m", "benchmarks.peers.mosec_server", "--address", "127.0.0.1", "--port"),
            "http",
            decode="full",
            environment="mosec",
        ),
        Peer("fastapi", ("-m", "benchmarks.peers.fastapi_server"), "json"),
        Peer("litserve", ("-m", "benchmarks.peers.litserve_server"), "http"),
        Peer(
            "bentoml", ("-m", "bentoml", "serve", "benchmarks.peers.bentoml_server:Emotion", "--port"), "http"
        ),
        Peer("keras", ("-m", "benchmarks.peers.keras_server"), "json"),
    )
}
OURS = "visionai"


@dataclass(frozen=True, slots=True)
class PeerResult:
    """One load of one server."""

    name: str
    load: LoadResult


def environment_of(name: str, say: Callable[[str], None]) -> Path:
    """The peer's Python, installed if it is not there.

    Raises:
        RuntimeError: it could not be installed.
    """
    folder = _HERE / f".env-{name}"
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    requirements = _HERE / f"{name}.txt"
    stamp = folder / "installed.txt"
    # The peers run on the interpreter that the service runs on: one may be half as fast again as another.
    wanted = f"# {sys.version}\n{requirements.read_text()}"
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    say(f"installing {name} into {folder.relative_to(ROOT)}")
    try:
        subprocess.run(
            [sys.executable, "-m", "venv", "--clear", str(folder)], check=True, capture_output=True, text=True
        )
        subprocess.run(
            [
                str(python),
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "-r",
                str(requirements),
            ],
            check=True,
            capture_output=True,
            text=True,
            timeout=_INSTALL_SECONDS,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as exc:
        raise RuntimeError(f"{name} cannot be installed: {str(exc.stderr or exc).strip()[-300:]}") from None
    stamp.write_text(wanted)  # last, so that an interrupted install is done again
    return python


@contextmanager
def started_peer(peer: Peer, python: Path, model: Path) -> Iterator[Target]:
    """Run a peer on a free port.

    Raises:
        RuntimeError: it does not answer in time; holds the end of what it printed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = [*peer.arguments]
    if arguments[-1] == "--port":
        arguments.append(str(port))
    environment = {
        **os.environ,
        "PORT": str(port),
        "CPUS": str(available_cpus()),
        "DECODE": peer.decode,
        "MODEL_PATH": str(model.resolve()),
        "KERAS_MODEL": str(_keras_file(model)),
        "PYTHONPATH": str(ROOT),
        "OPENBLAS_NUM_THREADS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "BENTOML_DO_NOT_TRACK": "true",
    }
    with tempfile.TemporaryDirectory(prefix="visionai-peer-") as folder:
        log = Path(folder) / "log"
        with (
            log.open("w") as output,
            running(
                [str(python), *arguments],
                cwd=folder,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            ) as process,
        ):
            scheme = "http" if peer.framing == "http" else "ws"
            target = Target(f"{scheme}://127.0.0.1:{port}", process.pid)
            if not _answers(target, peer, process):
                raise RuntimeError(f"{peer.name} does not answer: {log.read_text().strip()[-500:]}")
            yield target


def _keras_file(model: Path) -> Path:
    source = Engine(model).card.source
    for folder in (ROOT / "models", ROOT / "models/build/sources"):
        if (folder / source).is_file():
            return folder / source
    return ROOT / "models" / source


def _answers(target: Target, peer: Peer, process: subprocess.Popen[str]) -> bool:
    """Wait until a peer answers rightly; false if it ends, or does not in time."""
    workload = make_workload("64x64", peer.framing)
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            result = load(target, workload, LoadPlan(clients=1, seconds=0.3, warmup=0.1))
        except ConnectionLost:
            pass
        else:
            if result.succeeded and not result.failed:
                return True
        time.sleep(0.2)
    return False


def compare_peers(
    names: Sequence[str],
    model: Path,
    size: str,
    plans: Sequence[LoadPlan],
    repeats: int,
    patience: float,
    say: Callable[[str], None],
) -> tuple[list[PeerResult], dict[str, str]]:
    """Load the service and these peers in turns. Returns the results, and why a peer is missing from them.

    Raises:
        Unanswered: the service had no right answer, so that there is nothing to compare.
    """
    results: list[PeerResult] = []
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        targets: list[tuple[str, Framing, Target]] = [
            (OURS, "json", stack.enter_context(started_service(model)))
        ]
        for name in names:
            peer = PEERS[name]
            try:
                python = environment_of(peer.environment or name, say)
                target = stack.enter_context(started_peer(peer, python, model))
            except RuntimeError as exc:
                missing[name] = str(exc)
                say(str(exc))
            else:
                targets.append((name, peer.framing, target))
        for plan in plans:
            for repeat in range(repeats):
                say("waiting for a quiet moment")
                wait_until_quiet(patience)
                for name, framing, target in targets:
                    say(f"{name}, {plan.clients} clients, {repeat + 1} of {repeats}")
                    result = load(target, make_workload(size, framing), plan)
                    results.append(PeerResult(name, answered(result) if name == OURS else result))
    return results, missing


def peers_grid(results: Sequence[PeerResult]) -> Grid:
    """Each server by number of clients, and the service's rate over it, round by round."""
    grid = Grid(
        "the same job in other servers, taken in turns",
        ["server", "clients", "req/s", "ours / theirs", "p50 ms", "p99 ms", "errors", "CPU µs/req", "PSS MB"],
        note="The service stores every prediction; the peers store nothing.",
    )
    for clients in sorted({result.load.clients for result in results}):
        ours = [r.load for r in results if r.name == OURS and r.load.clients == clients]
        for name in dict.fromkeys(result.name for result in results):
            loads = [r.load for r in results if r.name == name and r.load.clients == clients]
            ratios = [
                mine.throughput / theirs.throughput
                for mine, theirs in zip(ours, loads, strict=True)
                if theirs.throughput
            ]
            cpu = [used for each in loads if (used := each.server_cpu_per_request_us) is not None]
            memory = [each.server.pss_mb for each in loads if each.server is not None]
            grid.rows.append(
                [
                    name,
                    str(clients),
                    f"{spread([each.throughput for each in loads]):,.0f}",
                    f"{spread(ratios):.2f}" if ratios else "-",
                    f"{spread([each.latency.p50 for each in loads]):.2f}",
                    f"{spread([each.latency.p99 for each in loads]):.2f}",
                    str(sum(each.failed for each in loads)),
                    f"{spread(cpu):.0f}" if cpu else "-",
                    f"{spread(memory).median:.0f}" if memory else "-",
                ]
            )
    return grid
