"""`history` and `stats` over WebSocket."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
import orjson
import pytest
from websockets.asyncio.client import ClientConnection

from service.network.connection import MAX_LOOKUPS
from service.store.queries import THREADS, Queries
from tests.service.harness import FACE, TIMEOUT, Running, Serve, ask, predict_message, read

SECRET = "a secret of the tests, of at least 32 bytes"


async def query(websocket: ClientConnection, command: str, **fields: Any) -> dict[str, Any]:
    """One reply."""
    return await ask(websocket, orjson.dumps({"command": command, **fields}).decode())


async def stored(websocket: ClientConnection, **fields: Any) -> list[dict[str, Any]]:
    """This client's history once nothing of this service waits to be written."""
    async with asyncio.timeout(TIMEOUT):
        while (reply := await query(websocket, "history", **fields))["pending"]:
            await asyncio.sleep(0.01)
    predictions: list[dict[str, Any]] = reply["predictions"]
    return predictions


@pytest.fixture
async def guarded(serve: Serve) -> AsyncIterator[Running]:
    """A service whose clients may say who they are."""
    async with serve(auth="optional", jwt_secret=SECRET) as started:
        yield started


def token_of(user: str) -> str:
    """What says who they are."""
    return jwt.encode({"sub": user, "exp": time.time() + 600}, SECRET, "HS256")


async def identify(websocket: ClientConnection, user: str) -> None:
    """Make a client a user."""
    assert (await query(websocket, "configure", token=token_of(user)))["status"] == "success"


async def test_a_connection_sees_what_it_made_and_nothing_else(running: Running) -> None:
    """Newest first, with the ids of the replies; another connection sees nothing of it."""
    async with running.client() as websocket, running.client() as other:
        replies = [await ask(websocket, predict_message(id=number)) for number in range(3)]
        rows = await stored(websocket)
        assert [row["prediction_id"] for row in rows] == [
            reply["prediction_id"] for reply in reversed(replies)
        ]
        assert [row["request_id"] for row in rows] == ["2", "1", "0"]
        assert rows[0]["emotion_name"] == replies[2]["emotion_name"]
        assert rows[0]["timestamp"] == replies[2]["timestamp"]
        assert await stored(other) == []


async def test_a_history_is_paged(running: Running) -> None:
    """Each page names the next, and the last one none."""
    async with running.client() as websocket:
        made = [(await ask(websocket, predict_message()))["prediction_id"] for _ in range(5)]
        assert len(await stored(websocket)) == 5
        pages, cursor = [], None
        while True:
            page = await query(websocket, "history", limit=2, **({"cursor": cursor} if cursor else {}))
            pages.append([row["prediction_id"] for row in page["predictions"]])
            if (cursor := page["next"]) is None:
                break
        assert pages == [[made[4], made[3]], [made[2], made[1]], [made[0]]]


async def test_a_user_sees_their_own_from_every_connection(guarded: Running) -> None:
    """What one connection of a user made another one of theirs sees, and nobody else does."""
    async with guarded.client() as websocket:
        await identify(websocket, "ana")
        await ask(websocket, predict_message())
    async with guarded.client() as websocket:
        await identify(websocket, "eva")
        assert await stored(websocket) == []
        assert (await query(websocket, "stats"))["count"] == 0
    async with guarded.client() as websocket:
        await identify(websocket, "ana")
        assert len(await stored(websocket)) == 1
        stats = await query(websocket, "stats")
        assert (stats["scope"], stats["count"]) == ("user", 1)
        # A user's other connections may do what this one did not.
        assert (await query(websocket, "stats", scope="connection"))["count"] == 0


async def test_users_of_one_connection_see_only_their_own(guarded: Running) -> None:
    """A gateway asks for several users over one connection: neither sees the other, nor who has no name either."""
    async with guarded.client() as websocket:
        who: list[tuple[dict[str, Any], int]] = [
            ({"token": token_of("ana")}, 2),
            ({"token": token_of("eva")}, 1),
            ({}, 3),
        ]
        for fields, times in who:
            for _ in range(times):
                await ask(websocket, predict_message(**fields))
            assert len(await stored(websocket, **fields)) == times
            stats = await query(websocket, "stats", scope="connection", **fields)
            assert (stats["scope"], stats["count"]) == ("connection", times)


async def test_stats_of_anonymous_clients_leave_users_out(guarded: Running) -> None:
    """Everybody without a name sees the sum of those without a name."""
    async with guarded.client() as websocket:
        await identify(websocket, "ana")
        await ask(websocket, predict_message())
    async with guarded.client() as websocket:
        await ask(websocket, predict_message())
        await ask(websocket, predict_message())
        await stored(websocket)
    async with guarded.client() as websocket:
        stats = await query(websocket, "stats", window_s=600, buckets=3)
    assert (stats["scope"], stats["window_s"], stats["count"]) == ("anonymous", 600, 2)
    assert stats["emotions"]["happy"]["count"] == 2
    assert 0 < stats["mean_confidence"] <= 1
    assert 0 < stats["latency_ms"]["p50"] <= stats["latency_ms"]["p99"]
    assert (stats["bucket_s"], stats["buckets"]) == (200, [{}, {}, {"happy": 2}])


async def test_lookups_keep_their_place_among_the_replies(running: Running) -> None:
    """Pipelined with predictions and questions, replies come in the order of the requests."""
    async with running.client() as websocket:
        sent = []
        for number in range(4):
            for command in ("predict", "history", "ping", "emotions"):
                sent.append(f"{command}{number}")
                message = orjson.dumps({"id": sent[-1], "command": command}).decode()
                await websocket.send(predict_message(id=sent[-1]) if command == "predict" else message)
        assert [(await read(websocket))["id"] for _ in sent] == sent


async def test_a_lookup_may_be_overtaken_where_order_does_not_matter(
    running: Running, release: asyncio.Event
) -> None:
    """With ordered off, a question that takes long holds up nothing."""
    async with running.client() as websocket:
        await query(websocket, "configure", ordered=False)
        await websocket.send('{"command": "history", "id": "slow"}')
        assert (await ask(websocket, predict_message(id="quick")))["id"] == "quick"
        release.set()
        assert (await read(websocket))["id"] == "slow"


@dataclass
class HeldQuestions:
    """Questions that the database takes long for: until `release` is set. `run` has the ids of those it began with."""

    release: threading.Event = field(default_factory=threading.Event)
    run: list[Any] = field(default_factory=list)


@pytest.fixture
def held_questions(monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldQuestions]:
    """Released at the end, whatever happened."""
    held_questions, submit = HeldQuestions(), Queries.submit

    def slow(self: Queries, read: Any, request_id: Any) -> Any:
        def run(connection: Any) -> Any:
            held_questions.run.append(request_id)
            held_questions.release.wait(TIMEOUT)
            return read(connection)

        return submit(self, run, request_id)

    monkeypatch.setattr(Queries, "submit", slow)
    yield held_questions
    held_questions.release.set()


async def _ask_all(client: ClientConnection) -> None:
    for number in range(MAX_LOOKUPS):
        await client.send(orjson.dumps({"command": "stats", "id": number}).decode())


async def test_a_question_that_nobody_waits_for_any_longer_is_not_run(
    running: Running, held_questions: HeldQuestions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that waited for slow ones until they were answered without the database hold up no others."""
    monkeypatch.setattr("service.commands.questions.PATIENCE_S", 0.1)
    async with running.client() as websocket, running.client() as other:
        for client in (websocket, other):
            await _ask_all(client)
        for client in (websocket, other):
            for _ in range(MAX_LOOKUPS):
                assert (await read(client))["code"] == "deadline_exceeded"
        monkeypatch.setattr("service.commands.questions.PATIENCE_S", TIMEOUT)
        held_questions.release.set()
        assert (await query(websocket, "stats", id="later"))["type"] == "stats"
    assert len(held_questions.run) <= THREADS + 1


async def test_the_questions_of_a_client_that_has_gone_are_not_run(
    running: Running, held_questions: HeldQuestions
) -> None:
    """Those that the database has not begun with are dropped and counted, and hold up no others."""
    metrics = running.service._metrics
    async with running.client() as websocket:
        await _ask_all(websocket)
        async with asyncio.timeout(TIMEOUT):
            while len(held_questions.run) < THREADS:
                await asyncio.sleep(0.01)
    async with running.client() as other:
        async with asyncio.timeout(TIMEOUT):
            while b"requests_abandoned_total 2.0" not in metrics.exposition():
                await asyncio.sleep(0.01)
        held_questions.release.set()
        assert (await query(other, "stats", id="later"))["type"] == "stats"
    assert set(held_questions.run) == {0, 1, "later"}
    assert b'errors_total{code="shutting_down"} 0.0' in metrics.exposition()


async def test_so_many_questions_may_be_unanswered(running: Running, release: asyncio.Event) -> None:
    """Four of a connection, sixteen of a worker: one more is told to come again, and the others are answered."""
    async with AsyncExitStack() as stack:
        *clients, late = [await stack.enter_async_context(running.client()) for _ in range(5)]
        for client in clients:
            await query(client, "configure", ordered=False)
            await _ask_all(client)
            reply = await query(client, "stats", id="one more")
            assert (reply["id"], reply["code"]) == ("one more", "overloaded")
            assert reply["retry_after_ms"] > 0
        assert (await query(late, "stats"))["code"] == "overloaded"
        release.set()
        for client in clients:
            replies = [await read(client) for _ in range(4)]
            assert {(reply["type"], reply["id"]) for reply in replies} == {("stats", i) for i in range(4)}
        assert (await query(late, "stats"))["type"] == "stats"


@pytest.mark.parametrize(
    ("command", "field", "value"),
    [
        ("history", "limit", 0),
        ("history", "limit", 1001),
        ("history", "limit", True),
        ("history", "cursor", 7),
        ("history", "cursor", "nonsense"),
        ("history", "cursor", "2026-11-22T10:30:45~1"),
        ("history", "cursor", "00000000000000000000000000000000~" + "9" * 30),
        ("stats", "window_s", 0),
        ("stats", "window_s", "1h"),
        ("stats", "window_s", 1e12),
        ("stats", "window_s", 1e-6),
        ("stats", "buckets", 501),
        ("stats", "scope", "everybody"),
    ],
)
async def test_impossible_fields_are_named(running: Running, command: str, field: str, value: Any) -> None:
    """`invalid_request`, with the field's name."""
    async with running.client() as websocket:
        reply = await query(websocket, command, **{field: value, "id": 1})
        assert (reply["code"], reply["id"]) == ("invalid_request", 1)
        assert f"'{field}'" in reply["message"]
        assert (await ask(websocket, predict_message()))["status"] == "success"


async def test_buckets_that_are_too_short_are_refused(running: Running) -> None:
    """Each is a millisecond long at least, whatever the window."""
    async with running.client() as websocket:
        reply = await query(websocket, "stats", window_s=0.4, buckets=500)
        assert (reply["code"], "'window_s'" in reply["message"]) == ("invalid_request", True)
        assert (await query(websocket, "stats", window_s=0.5, buckets=500))["status"] == "success"
        # 0.071 / 71 is a little less than 0.001.
        assert (await query(websocket, "stats", window_s=0.071, buckets=71))["status"] == "success"


@pytest.mark.parametrize("cursor", ["0001-01-01T00:00:00+23:59~1", "9999-12-31T23:59:59-23:59~1"])
async def test_a_time_that_utc_does_not_reach_is_no_cursor(guarded: Running, cursor: str) -> None:
    """A user's cursor is a time, with any offset."""
    async with guarded.client() as websocket:
        await identify(websocket, "ana")
        reply = await query(websocket, "history", cursor=cursor)
        assert (reply["code"], "'cursor'" in reply["message"]) == ("invalid_request", True)


async def test_a_database_that_fails_is_an_error_reply(
    serve: Serve, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    """History fails as `internal`, without what the database said, and predictions go on; the log names the request."""
    async with serve() as running, running.client() as websocket:
        path = Path(database.removeprefix("sqlite:///"))
        with closing(sqlite3.connect(path)) as other:
            other.execute("ALTER TABLE predictions_log RENAME TO elsewhere")
            reply = await query(websocket, "history", id="seven")
            assert (reply["code"], reply["message"]) == ("internal", "stored predictions cannot be read now")
            (logged,) = [record for record in caplog.records if hasattr(record, "request_ids")]
            assert (logged.levelname, logged.request_ids) == ("WARNING", ["seven"])
            assert (await ask(websocket, FACE))["status"] == "success"
            other.execute("ALTER TABLE elsewhere RENAME TO predictions_log")


async def test_questions_that_fail_are_counted_as_errors(serve: Serve, database: str) -> None:
    """Of both kinds, as predictions that fail are: an alarm that looks at them sees a database that cannot be read."""
    async with serve() as running, running.client() as websocket:
        path = Path(database.removeprefix("sqlite:///"))
        with closing(sqlite3.connect(path)) as other:
            other.execute("ALTER TABLE predictions_log RENAME TO elsewhere")
            questions: list[dict[str, Any]] = [
                {"command": "history"},
                {"command": "stats", "scope": "connection"},
            ]
            for number, question in enumerate(questions, 1):
                assert (await query(websocket, **question))["code"] == "internal"
                counted = f'visionai_errors_total{{code="internal"}} {number}.0\n'
                assert counted.encode() in running.service._exposition()
            other.execute("ALTER TABLE elsewhere RENAME TO predictions_log")
