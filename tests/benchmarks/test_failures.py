"""What goes wrong with a load is counted, and is no success of the command."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import websockets.asyncio.server
import websockets.sync.server

from benchmarks import idle, profile, scenarios
from benchmarks.arrivals import OpenLoop
from benchmarks.commands import main
from benchmarks.load import LoadPlan, run_load
from benchmarks.persistence import StoringResult
from benchmarks.tables import storing_grid
from benchmarks.target import Target
from benchmarks.workload import make_workload
from client import CannotConnect, InternalError, VisionAIError
from tests.benchmarks.harness import LOAD, RIGHT, ROOT, SHORT, benchmark

WRONG = '{"status": "success", "emotion_name": "sad"}'
WELCOME = '{"type": "welcome"}'


@asynccontextmanager
async def answering(*messages: str) -> AsyncIterator[Target]:
    """A server that answers each request with these messages, and hangs up instead where there are none."""

    async def handle(websocket: websockets.asyncio.server.ServerConnection) -> None:
        await websocket.send(WELCOME)
        async for _ in websocket:
            if not messages:
                await websocket.close()
            for message in messages:
                await websocket.send(message)

    async with websockets.asyncio.server.serve(handle, "127.0.0.1", 0, compression=None) as server:
        yield Target(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}")


@contextmanager
def started(answer: Callable[[websockets.sync.server.ServerConnection, int], None]) -> Iterator[str]:
    """The address of a server in a thread; `answer` is called with the number of each request."""

    def handle(websocket: websockets.sync.server.ServerConnection) -> None:
        websocket.send(WELCOME)
        for number, _ in enumerate(websocket):
            answer(websocket, number)

    with websockets.sync.server.serve(handle, "127.0.0.1", 0, compression=None) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
        serving.join()


async def test_clients_that_were_lost_before_the_interval_are_errors() -> None:
    """In a closed loop nobody asks for them any more: a server that is gone would have no errors."""
    async with answering() as target:
        result = await run_load(target, make_workload("64x64"), SHORT)
    assert result.errors == {"connection_lost": 4}


@pytest.mark.parametrize("reply", ["hello", "[1]", '{"status": "success"}'])
async def test_a_reply_that_is_none_is_an_error_of_its_own(reply: str) -> None:
    """A server that speaks something else is no lost connection, and is asked on."""
    async with answering(reply) as target:
        result = await run_load(target, make_workload("64x64"), SHORT)
    assert list(result.errors) == ["unreadable"]
    assert result.errors["unreadable"] > SHORT.clients
    assert result.succeeded == 0


async def test_a_message_that_answers_nothing_takes_no_replys_place() -> None:
    """It is told, and each answer is still held against its own request."""
    async with answering(RIGHT, '{"type": "notice"}') as target:
        result = await run_load(target, make_workload("64x64-sure"), SHORT)
    assert list(result.errors) == ["unasked"]
    assert result.succeeded > SHORT.clients
    assert result.wrong == 0


async def test_a_second_reply_to_one_request_is_an_error() -> None:
    """Of a client that asked nothing else it is not taken for the next one's."""
    async with answering(RIGHT, RIGHT) as target:
        plan = LoadPlan(clients=1, rate=20, arrivals="paced", seconds=0.5, warmup=0.1, grace=0.2)
        result = await run_load(target, make_workload("64x64-sure"), plan)
    assert list(result.errors) == ["unasked"]


async def test_wrong_answers_are_no_throughput() -> None:
    """What a server gets wrong it may as well not answer."""
    async with answering(WRONG) as target:
        result = await run_load(target, make_workload("64x64-sure"), SHORT)
    assert result.succeeded > 0
    assert result.throughput == 0


def test_a_load_without_an_answer_is_exit_1_whatever_was_asked_for() -> None:
    """A server that ends in the warm-up has no errors left to meet an objective with."""
    with started(lambda websocket, _: websocket.close()) as url:
        ended = benchmark(
            *("load", "--clients", "2", "--seconds", "0.2", "--slo", "errors=2,rps=0", "--url", url)
        )
    assert ended.returncode == 1
    assert ended.stderr == "benchmarks: no request was answered: connection_lost\n"


def test_wrong_answers_are_exit_1_whatever_was_asked_for() -> None:
    """Objectives that are met do not make them right."""
    with started(lambda websocket, number: websocket.send(WRONG if number % 2 else RIGHT)) as url:
        ended = benchmark(
            *("load", "--size", "64x64-sure", "--clients", "1", "--seconds", "0.3", "--url", url),
            *("--slo", "rps=1,p50=60s"),
        )
    assert ended.returncode == 1, ended.stderr
    assert "NO" not in ended.stdout


async def test_a_rate_that_the_generator_cannot_keep_is_told_and_leaves_the_event_loop_its_turns() -> None:
    """What was due and never sent is an error; replies are read meanwhile, and the load ends when it should."""
    async with answering(RIGHT) as target:
        plan = LoadPlan(clients=4, rate=1e7, seconds=0.1, warmup=0.05, grace=0.1)
        result = await asyncio.wait_for(run_load(target, make_workload("64x64-sure"), plan), 30)
    assert result.errors["unsent"] > 1e5


async def test_a_rate_that_is_kept_leaves_nothing_unsent() -> None:
    """What is due when the interval ends is sent, with all that waited for it to be sent together."""
    sent: list[float] = []
    loop = OpenLoop("paced", 20_000, [sent.append], asyncio.get_running_loop())
    loop.start()
    await asyncio.sleep(0.01)
    assert loop.stop() == 0
    assert len(sent) > 100


@pytest.mark.parametrize(
    "command",
    [
        ("storing", "--clients", "2", "--repeats", "1", "--seconds", "0.2"),
        ("profile", "--clients", "2", "--seconds", "0.2"),
        ("idle", "--connections", "1", "--seconds", "0.2"),
        ("misbehave", "--offences", "garbage", "--repeats", "1", "--seconds", "0.2"),
        ("--repeats", "1", "--seconds", "0.2"),
    ],
    ids=["storing", "profile", "idle", "misbehave", "short set"],
)
def test_a_service_that_answers_nobody_is_not_measured(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a setting that has it refuse everything: one line says so, instead of a table of nothing."""
    monkeypatch.setenv("AUTH", "required")
    monkeypatch.setenv("JWT_SECRET", "0123456789abcdef0123456789abcdef")
    out = ("--out", str(tmp_path)) if command[0] == "--repeats" else ()
    ended = benchmark(*command, *out)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.splitlines()[-1] == "benchmarks: no request was answered: unauthorized"
    assert "Traceback" not in ended.stderr


def code_of(command: str, monkeypatch: pytest.MonkeyPatch) -> object:
    """The exit code of a command that ends with one, run in this process, whose signals stay as they are."""
    monkeypatch.setattr(sys, "argv", ["benchmarks", command])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


@pytest.fixture
def ended_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that is killed amid each load, which had answers before."""

    @contextmanager
    def started(*_: object) -> Iterator[Target]:
        with subprocess.Popen([sys.executable, "-c", ""]) as process:
            process.wait()
        yield Target("ws://127.0.0.1:1", process.pid)

    killed = replace(LOAD, errors={"connection_lost": 64}, server_cpu_per_request_us=None, server=None)
    for module in (idle, profile):
        monkeypatch.setattr(module, "started_service", started)
        monkeypatch.setattr(module, "load", lambda *_: killed)
    monkeypatch.setattr(idle, "measure_apart", lambda *_, **__: None)


@pytest.mark.usefixtures("ended_service")
@pytest.mark.parametrize("command", ["idle", "profile"])
def test_a_service_that_ends_amid_a_measurement_is_one_line(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As one that cannot be reached is; what it would have told is not missed with a traceback."""
    assert code_of(command, monkeypatch) == 3
    assert capsys.readouterr().err == "benchmarks: the server has ended\n"


@pytest.mark.parametrize(
    ("error", "code"), [(CannotConnect("it is gone"), 3), (InternalError("it is broken"), 1)]
)
def test_what_the_client_is_told_is_one_line(
    error: VisionAIError, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Questions to the database are asked with the library's client, whose errors are of its own kind."""

    def measure(*_: object) -> None:
        raise error

    monkeypatch.setattr(scenarios, "measure_history", measure)
    assert code_of("history", monkeypatch) == code
    assert capsys.readouterr().err.strip() == f"benchmarks: {error}"


def test_what_fails_while_storing_is_shown() -> None:
    """Refusals of all repeats are one figure."""
    refused = StoringResult("dropped", replace(LOAD, errors={"overloaded": 2}))
    grid = storing_grid([refused, refused])
    assert (grid.columns[-1], grid.rows[0][-1]) == ("errors", "4")


def test_a_sweep_is_written_whatever_the_locales_encoding_is(tmp_path: Path) -> None:
    """Latencies below a millisecond have a minus sign in the plot, which few encodings know."""
    script = """
import sys
from dataclasses import replace
from pathlib import Path
from benchmarks import commands
from benchmarks.percentiles import Latency
from tests.benchmarks.harness import LOAD
commands.OUT = Path(sys.argv[1])
quick = replace(LOAD, rate=100.0, latency=Latency(0.05, 0.1, 20.0, 30.0, 40.0))
commands.sweep_clients = commands.sweep_rates = lambda *_: [quick]
commands.app(["sweep", "--json", "--url", "ws://127.0.0.1:1"])
"""
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    ended = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, **plain},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "\N{MINUS SIGN}" in (tmp_path / "sweep-64x64.svg").read_text(encoding="utf-8")
