"""The hot path, counted: microseconds of the server's CPU per request, by stage.

One worker is loaded twice: as it is, for the total by the operating system's account, and with its stages timed (see
`stages`) for the shares. A third server does nothing but answer frames of the same size, with the same event loop: what
it spends is the floor for anything that speaks over a socket.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import orjson

from benchmarks.load import LoadPlan, answered, load
from benchmarks.stages import MINIMUM_REQUESTS
from benchmarks.target import of_ours, started_service
from benchmarks.workload import Workload

# Told apart from the rest: the work itself, which the bare loop does too.
WORK = ("base64", "decode", "run")

_WHAT = {
    "websocket": "reading frames, unmasking",
    "connection": "our dispatch, order, flow control",
    "write": "frame header, hand-over to the transport",
    "json": "parsing the request, without base64",
    "queue": "admission, cost model, taking a batch",
    "deliver": "from batch to connections",
    "predictor": "times, ids, records, rounding",
    "base64": "the image's base64 (work)",
    "decode": "JPEG and scaling (work)",
    "run": "ONNX Runtime (work)",
    "persist": "encoding for the store, in the loop",
    "reply": "the reply's JSON",
    "metrics": "counters and histograms",
    "event loop and sockets": "uvloop, recv and send in the kernel",
    "store's writer": "the thread that writes to the database",
}


@dataclass(frozen=True, slots=True)
class Profile:
    """Microseconds of CPU per request. `stages` add up to `total`, which is with timing taken off.

    `plain_total` is of the worker without timing, `echo` of the server that does nothing, `kernel` the part of `total`
    that was spent in the kernel, `overhead` what the timing cost.
    """

    size: str
    framing: str
    clients: int
    requests: int
    stages: dict[str, float]
    total: float
    plain_total: float
    echo: float
    kernel: float
    overhead: float

    @property
    def work(self) -> float:
        """What the bare loop does too, and base64."""
        return sum(self.stages[stage] for stage in WORK)

    def describe(self, stage: str) -> str:
        """What belongs to a stage."""
        return _WHAT[stage]


def profile(model: Path, workload: Workload, clients: int = 64, seconds: float = 3.0) -> Profile:
    """Load the worker and the server that does nothing, and break down the CPU time.

    Raises:
        RuntimeError: too few requests were answered to tell, or a server has ended.
        Unanswered: none was.
    """
    plan = LoadPlan(clients=clients, seconds=seconds, warmup=0.5)
    one = {"WORKERS": "1", "EXECUTORS": "0"}
    with started_service(model, one) as target:
        found_plain = answered(load(target, workload, plan))
    plain = of_ours(found_plain.server_cpu_per_request_us)
    # Timing slows the worker, and a busy machine is slower still: for as long as it takes, at half the pace.
    timed = replace(plan, seconds=max(seconds, 2 * MINIMUM_REQUESTS / max(found_plain.throughput, 1.0)))
    with tempfile.TemporaryDirectory(prefix="visionai-bench-") as folder:
        file = Path(folder) / "stages.json"
        with started_service(model, one, ("-m", "benchmarks.variants", "profiled", str(file))) as target:
            of_ours(answered(load(target, workload, timed)).server)
        found: dict[str, Any] = orjson.loads(file.read_bytes())
    if "error" in found:
        raise RuntimeError(f"no profile: {found['error']}")
    # The server that only echoes counts bytes: it gets requests of one size.
    same = replace(workload, requests=workload.requests[:1])
    frame_bytes = str(len(same.requests[0].frame))
    with started_service(None, {}, ("-m", "benchmarks.profile", frame_bytes)) as target:
        echo = of_ours(answered(load(target, same, plan)).server_cpu_per_request_us)
    return Profile(
        size=workload.size,
        framing=workload.framing,
        clients=clients,
        requests=found["requests"],
        stages={
            **found["stages"],
            "event loop and sockets": found["loop"],
            "store's writer": found["writer"],
        },
        total=found["total"],
        plain_total=plain,
        echo=echo,
        kernel=found["kernel"],
        overhead=found["overhead"],
    )


# About as long as a prediction's reply, which the generator takes for one.
_REPLY = b'{"status":"success","emotion_name":"happy","padding":"' + b"x" * 500 + b'"}'
_FRAME = b"\x81\x7e" + len(_REPLY).to_bytes(2, "big") + _REPLY
_SHAKE = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"


class _Echo(asyncio.Protocol):
    """Shakes hands with anybody, then answers whenever a request's number of bytes has come in."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._received = -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        if self._received < 0:
            self._received = 0
            self._transport.write(_SHAKE + _FRAME)
            return
        self._received += len(data)
        while self._received >= self._size:
            self._received -= self._size
            self._transport.write(_FRAME)


async def _serve_echo(size: int) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: _Echo(size), "127.0.0.1", 0, backlog=1024)
    print(f"ready on ws://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    import uvloop

    uvloop.run(_serve_echo(int(sys.argv[1])))
