"""The load generator looks at answers, charges stalls to the server, and speaks to peers."""

from __future__ import annotations

import asyncio
import itertools
import math
import resource
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import numpy as np
import pytest
from websockets.asyncio.server import ServerConnection, serve

from benchmarks.arrivals import OpenLoop, dues
from benchmarks.load import LoadPlan, LoadResult, allow_open_files, run_load
from benchmarks.target import Target
from benchmarks.workload import SIZES, make_workload
from tests.benchmarks.harness import RIGHT, SHORT


async def _load_against(reply: str, plan: LoadPlan = SHORT, size: str = "64x64-sure") -> LoadResult:
    """A load on a server that gives one fixed reply."""

    async def handle(websocket: ServerConnection) -> None:
        await websocket.send('{"type": "welcome"}')
        async for _ in websocket:
            await websocket.send(reply)

    async with serve(handle, "127.0.0.1", 0, max_size=None, compression=None) as server:
        port = server.sockets[0].getsockname()[1]
        return await run_load(Target(f"ws://127.0.0.1:{port}"), make_workload(size, "json"), plan)


async def test_errors_are_counted_by_code_and_not_as_successes() -> None:
    """A server that refuses everything has no throughput."""
    result = await _load_against('{"status": "error", "code": "overloaded"}')
    assert result.errors["overloaded"] > 0
    assert result.succeeded == 0
    assert result.goodput == 0


async def test_a_wrong_emotion_is_counted() -> None:
    """A server that answers fast but wrongly is found out, and its answers are no goodput."""
    result = await _load_against('{"status": "success", "emotion_name": "sad"}')
    assert result.wrong >= result.succeeded > 0
    assert result.goodput == 0


async def test_mixed_faces_take_turns_and_each_answer_is_held_against_its_own_face() -> None:
    """Of a server that calls all of them sad two of three answers are wrong: of the third face any is right."""
    sad = '{"status": "success", "emotion_name": "sad"}'
    result = await _load_against(sad, replace(SHORT, clients=3, depth=2, seconds=1.0), "64x64")
    assert result.succeeded > 100
    assert result.wrong / result.succeeded == pytest.approx(2 / 3, abs=0.1)


async def test_a_polling_client_does_not_sleep_until_its_answer_comes() -> None:
    """It works all the while, where another has nothing to do."""

    async def handle(websocket: ServerConnection) -> None:
        await websocket.send('{"type": "welcome"}')
        async for _ in websocket:
            await asyncio.sleep(0.05)
            await websocket.send(RIGHT)

    async with serve(handle, "127.0.0.1", 0, max_size=None, compression=None) as server:
        target = Target(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        sleeping, polling = [
            await run_load(target, make_workload("64x64"), replace(SHORT, clients=1, polling=each))
            for each in (False, True)
        ]
    assert polling.succeeded > 0
    assert polling.generator_cpu_seconds > 3 * sleeping.generator_cpu_seconds


async def test_answers_after_the_deadline_are_no_goodput() -> None:
    """They count as throughput only."""
    plan = LoadPlan(clients=2, seconds=0.3, warmup=0.1, deadline_ms=1e-6)
    result = await _load_against('{"status": "success", "emotion_name": "happy"}', plan)
    assert result.throughput > 0
    assert result.goodput == 0


async def test_a_starved_client_shows() -> None:
    """A server that stops answering one of its clients has a slowest client with a small share."""
    turn = 0

    async def handle(websocket: ServerConnection) -> None:
        nonlocal turn
        starved = turn == 0
        turn += 1
        await websocket.send('{"type": "welcome"}')
        async for _ in websocket:
            if not starved:
                await websocket.send('{"status": "success", "emotion_name": "happy"}')

    async with serve(handle, "127.0.0.1", 0, max_size=None, compression=None) as server:
        port = server.sockets[0].getsockname()[1]
        result = await run_load(Target(f"ws://127.0.0.1:{port}"), make_workload("64x64"), SHORT)
    assert result.slowest_client_share == 0


async def test_a_stall_is_charged_to_all_that_were_due_meanwhile() -> None:
    """In an open loop latency counts from when a request was due: a pause of 0.3 s shows in many latencies."""

    async def handle(websocket: ServerConnection) -> None:
        await websocket.send('{"type": "welcome"}')
        count = 0
        async for _ in websocket:
            count += 1
            if count == 20:
                await asyncio.sleep(0.3)
            await websocket.send('{"status": "success", "emotion_name": "happy"}')

    async with serve(handle, "127.0.0.1", 0, max_size=None, compression=None, max_queue=4) as server:
        port = server.sockets[0].getsockname()[1]
        plan = LoadPlan(clients=1, rate=200, seconds=1.0, warmup=0.0)
        result = await run_load(Target(f"ws://127.0.0.1:{port}"), make_workload("64x64", "json"), plan)
    assert result.latency.worst >= 290
    assert result.latency.p90 >= 100


async def test_nobody_waits_while_the_servers_cpu_time_is_looked_up() -> None:
    """Requests go on meanwhile: what the generator does for itself is in no latency."""
    further = threading.Event()
    in_time: list[bool] = []

    class SlowToTell(Target):
        def cpu_seconds(self) -> float:
            """Until a further request has come in."""
            further.clear()
            in_time.append(further.wait(5))
            return float(len(in_time))

    async def handle(websocket: ServerConnection) -> None:
        await websocket.send('{"type": "welcome"}')
        async for _ in websocket:
            further.set()
            await websocket.send('{"status": "success", "emotion_name": "happy"}')

    async with serve(handle, "127.0.0.1", 0, max_size=None, compression=None) as server:
        target = SlowToTell(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        result = await run_load(target, make_workload("64x64"), SHORT)
    assert in_time == [True, True]
    assert result.server_cpu_seconds == 1


class Silence:
    """A server that answers what comes before the measured interval, and the first 20 requests in it.

    What it is asked then it answers with `then`, 0.4 s after the interval, or never. `answered` are those at once.
    """

    def __init__(self, then: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
        self._then = then
        self._looks = self.answered = self.unanswered = 0
        self._most = math.inf
        self._ended = asyncio.Event()
        self._speaks_at = 0.0
        monkeypatch.setattr("benchmarks.load.busy_seconds", self._look)

    def _look(self) -> float:
        """The generator looks at the processors when the interval begins, and when it ends."""
        self._looks += 1
        if self._looks == 1:
            self._most = self.answered + 20
        if self._looks == 2:
            self._speaks_at = time.perf_counter() + 0.4
            self._ended.set()
        return 0.0

    async def handle(self, websocket: ServerConnection) -> None:
        """Answer one client."""
        await websocket.send('{"type": "welcome"}')
        async for _ in websocket:
            if self.answered < self._most:
                self.answered += 1
                await websocket.send(RIGHT)
            elif self._then is None:
                self.unanswered += 1
            else:
                await self._ended.wait()
                await asyncio.sleep(max(0.0, self._speaks_at - time.perf_counter()))
                await websocket.send(self._then)


FallingSilent = Callable[[LoadPlan, str | None], Awaitable[tuple[LoadResult, Silence]]]


@pytest.fixture
def falling_silent(monkeypatch: pytest.MonkeyPatch) -> FallingSilent:
    """Load a server that falls silent: the result, and what the server did."""

    async def load(plan: LoadPlan, then: str | None) -> tuple[LoadResult, Silence]:
        silence = Silence(then, monkeypatch)
        async with serve(silence.handle, "127.0.0.1", 0, max_size=None, compression=None) as server:
            target = Target(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            result = await run_load(target, make_workload("64x64-sure"), plan)
        return result, silence

    return load


@pytest.mark.parametrize("rate", [None, 100.0], ids=["closed loop", "open loop"])
async def test_what_is_never_answered_is_an_error(falling_silent: FallingSilent, rate: float | None) -> None:
    """A server that falls silent in the middle has all that waited in vain counted against it."""
    plan = LoadPlan(clients=4, rate=rate, seconds=0.6, warmup=0.0, grace=0.2)
    result, server = await falling_silent(plan, None)
    assert result.succeeded > 0
    assert result.errors == {"unanswered": server.unanswered}
    assert result.failed == 4 if rate is None else result.failed >= 20


async def test_what_is_answered_after_the_interval_is_charged_in_an_open_loop(
    falling_silent: FallingSilent,
) -> None:
    """A stall at the end shows in the latencies of what was due in it, and is neither throughput nor an error."""
    result, server = await falling_silent(LoadPlan(clients=4, rate=100, seconds=0.6, warmup=0.0), RIGHT)
    assert result.errors == {}
    assert 0 < result.succeeded <= server.answered
    assert result.latency.p90 >= 400


@pytest.mark.parametrize("rate", [None, 100.0], ids=["closed loop", "open loop"])
@pytest.mark.parametrize(
    ("then", "errors", "wrong"),
    [
        ('{"status": "error", "code": "overloaded"}', ["overloaded"], False),
        ('{"status": "success", "emotion_name": "sad"}', [], True),
    ],
    ids=["an error", "a wrong answer"],
)
async def test_what_fails_after_the_interval_is_told(
    falling_silent: FallingSilent, rate: float | None, then: str, errors: list[str], wrong: bool
) -> None:
    """A server that stalls, and has no right answer after it, does not get away with the end of the interval."""
    result, _ = await falling_silent(LoadPlan(clients=4, rate=rate, seconds=0.6, warmup=0.0), then)
    assert list(result.errors) == errors
    assert bool(result.wrong) == wrong
    assert result.failed == 4 if rate is None else result.failed >= 20
    assert result.goodput == result.throughput > 0


async def test_what_is_due_on_a_lost_connection_is_an_error() -> None:
    """It is not waited for, and not sent into nothing."""

    async def handle(websocket: ServerConnection) -> None:
        await websocket.send('{"type": "welcome"}')
        async for _ in websocket:
            await websocket.close()

    async with serve(handle, "127.0.0.1", 0, max_size=None, compression=None) as server:
        port = server.sockets[0].getsockname()[1]
        plan = LoadPlan(clients=4, rate=100, seconds=0.5, warmup=0.0)
        result = await run_load(Target(f"ws://127.0.0.1:{port}"), make_workload("64x64"), plan)
    assert result.succeeded == 0
    assert result.errors == {"connection_lost": result.failed}
    assert result.failed >= 40


def test_paced_arrivals_spread_the_clients_over_the_round() -> None:
    """Four clients at 40 requests per second ask every 25 ms, in turn."""
    first = list(itertools.islice(dues("paced", 40, 4), 5))
    assert [client for _, client in first] == [0, 1, 2, 3, 0]
    assert [due for due, _ in first] == pytest.approx([0, 0.025, 0.05, 0.075, 0.1])


def test_bursts_have_all_clients_due_at_the_same_instant() -> None:
    """Four clients at 40 requests per second ask together, every 100 ms."""
    first = list(itertools.islice(dues("burst", 40, 4), 8))
    assert [client for _, client in first] == [0, 1, 2, 3] * 2
    assert [due for due, _ in first] == pytest.approx([0] * 4 + [0.1] * 4)


def test_poisson_arrivals_keep_the_rate() -> None:
    """In the long run as many as the rate says, and distances that vary as much as they are long."""
    times = [due for due, _ in itertools.islice(dues("poisson", 1000, 4), 10_001)]
    gaps = np.diff(times)
    assert times[-1] == pytest.approx(10, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)


async def test_an_open_loop_sends_each_request_that_is_due_and_none_before() -> None:
    """Each is sent once, in order, with the time that it was due; after a stop none."""
    sent: list[tuple[float, float, int]] = []
    senders = [
        lambda due, client=client: sent.append((time.perf_counter(), due, client)) for client in range(4)
    ]
    loop = OpenLoop("paced", 1000, senders, asyncio.get_running_loop())
    loop.start()
    while len(sent) < 100:
        await asyncio.sleep(0.001)
    loop.stop()
    count = len(sent)
    await asyncio.sleep(0.02)
    assert len(sent) == count
    assert [client for *_, client in sent] == [number % 4 for number in range(count)]
    assert [due - sent[0][1] for _, due, _ in sent] == pytest.approx(
        [number / 1000 for number in range(count)]
    )
    assert all(when >= due for when, due, _ in sent)


def stand_still(seconds: float) -> None:
    """What a busy event loop does."""
    time.sleep(seconds)


async def test_what_an_open_loop_missed_is_counted_from_when_it_was_due() -> None:
    """While the event loop stands still nothing is sent; then all of it is, with the times in between."""
    sent: list[float] = []
    loop = OpenLoop("paced", 1000, [sent.append], asyncio.get_running_loop())
    loop.start()
    await asyncio.sleep(0)
    before = len(sent)
    stand_still(0.05)
    resumed = time.perf_counter()
    while len(sent) < before + 50:
        await asyncio.sleep(0.001)
    loop.stop()
    late = [due for due in sent[before:] if due < resumed]
    assert len(late) >= 45


def test_the_limit_on_open_files_is_raised_as_far_as_allowed() -> None:
    """The soft limit goes up to the hard one; what is beyond that is an error that names both."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        allow_open_files(1000)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 1000
        with pytest.raises(RuntimeError, match="hard limit"):
            allow_open_files(hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_every_size_has_a_frame() -> None:
    """Binary frames are smaller than base64 in JSON, of the same image."""
    for size in SIZES:
        plain, binary = make_workload(size, "json").requests, make_workload(size, "binary").requests
        for one, other in zip(plain, binary, strict=True):
            assert one.image == other.image
            assert len(other.frame) < len(one.frame)


def test_a_deadline_travels_with_the_request() -> None:
    """The service is told by when an answer is wanted."""
    assert b'"deadline_ms":50' in make_workload("64x64", "json", deadline_ms=50).requests[0].frame
    assert b"deadline_ms" not in make_workload("64x64", "json").requests[0].frame
