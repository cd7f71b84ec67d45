"""Who a client is: by header, by `configure`, by request; required, optional and off."""

from __future__ import annotations

import asyncio
import gc
import math
import shutil
import time
import weakref
from pathlib import Path
from typing import Any

import jwt
import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from service.protocol.requests import Predict
from service.security import guard
from service.security.api_keys import create
from service.security.credentials import Credentials
from service.security.guard import Guard, Rules
from service.security.perimeter import Perimeter
from service.settings import Settings
from tests.security.conftest import SECRET, users
from tests.service.harness import TIMEOUT, Running, Serve, ask, predict_message, read

JWT = {"jwt_secret": SECRET, "jwt_leeway_seconds": 0.0}


def token(user: str = "anna", seconds: float = 60) -> str:
    """A token for a user."""
    return jwt.encode({"sub": user, "exp": time.time() + seconds}, SECRET, "HS256")


async def test_without_a_setting_tokens_are_ignored(serve: Serve, database: str) -> None:
    """A v1 client that sends a token in its requests, or a header, is served by a service that checks none."""
    headers = {"Authorization": "Basic eDp5"}
    async with serve() as running, connect(running.url, additional_headers=headers) as websocket:
        assert "authentication" not in await read(websocket)
        assert (await ask(websocket, predict_message(token="nonsense")))["status"] == "success"
    assert users(database) == [None]


async def test_where_a_token_is_required_there_is_only_welcome_and_health_without_one(serve: Serve) -> None:
    """Each other command is `unauthorized` and the connection goes on; the welcome says so beforehand."""
    async with serve(auth="required", **JWT) as running, connect(running.url) as websocket:
        assert (await read(websocket))["authentication"] == "required"
        assert (await ask(websocket, '{"command": "health"}'))["status"] == "healthy"
        for message in (
            predict_message(id=1),
            '{"command": "emotions", "id": 1}',
            '{"command": "model_info", "id": 1}',
            '{"command": "configure", "ordered": false, "id": 1}',
        ):
            reply = await ask(websocket, message)
            assert (reply["type"], reply["code"], reply["id"]) == ("error", "unauthorized", 1)
        assert (await ask(websocket, predict_message(token=token())))["status"] == "success"


async def test_what_is_wrong_is_told_to_those_that_have_shown_a_token(serve: Serve, database: str) -> None:
    """Where one is required, health without it says that something fails and what, not the error's words."""
    async with serve(auth="required", **JWT) as running, connect(running.url) as websocket:
        await read(websocket)
        file = database.removeprefix("sqlite:///")
        shutil.move(file, f"{file}.moved")
        running.service._metrics.reloads.count("/secret/model.onnx is not what its manifest says")
        assert (await ask(websocket, predict_message(token=token())))["prediction_id"] is not None
        async with asyncio.timeout(TIMEOUT):
            while (health := await ask(websocket, '{"command": "health"}'))["status"] != "degraded":
                await asyncio.sleep(0.01)
        assert health["store"].keys() == {"pending", "written", "failing"}
        assert health["store"]["failing"] == ["database"]
        assert "reload_error" not in health
        for asked in ({"token": token()}, {"command": "configure", "token": token()}, {}):
            reply = await ask(websocket, orjson.dumps({"command": "health", **asked}).decode())
            if reply["type"] == "health":
                assert reply["store"]["error"]
                assert "/secret" in reply["reload_error"]
        shutil.move(f"{file}.moved", file)


async def test_each_way_to_bring_a_token_stores_for_its_user(serve: Serve, database: str) -> None:
    """The header's and configure's user has all requests, except those that bring a token of their own."""
    async with serve(auth="optional", **JWT) as running:
        headers = {"Authorization": f"Bearer {token('header')}"}
        async with connect(running.url, additional_headers=headers) as websocket:
            assert (await read(websocket))["authentication"] == "optional"
            await ask(websocket, predict_message())
            await ask(websocket, predict_message(token=token("request")))
            await ask(websocket, predict_message())
            reply = await ask(websocket, f'{{"command": "configure", "token": "{token("message")}"}}')
            assert reply["user"] == "message"
            assert "token" not in reply["configuration"]
            await ask(websocket, predict_message())
        async with connect(running.url) as websocket:
            await read(websocket)
            await ask(websocket, predict_message())
    assert users(database) == ["header", "request", "header", "message", None]


async def test_a_configure_that_is_refused_takes_no_token(serve: Serve, database: str) -> None:
    """Its token is a good one, an option beside it is not: nothing of it is in force."""
    async with serve(auth="optional", **JWT) as running, running.client() as websocket:
        bad = f'{{"command": "configure", "token": "{token()}", "colour": "red"}}'
        assert "'colour' cannot be configured" in (await ask(websocket, bad))["message"]
        await ask(websocket, predict_message())
    assert users(database) == [None]


@pytest.mark.parametrize("mode", ["optional", "required"])
@pytest.mark.parametrize("value", ["Bearer nonsense", "Bearer", "Basic eDp5", "Bearer a b"])
async def test_a_wrong_header_is_refused_before_the_upgrade(serve: Serve, mode: str, value: str) -> None:
    """With HTTP 401, also where no token would do; and counted."""
    async with serve(auth=mode, **JWT) as running:
        with pytest.raises(InvalidStatus) as caught:
            await connect(running.url, additional_headers={"Authorization": value})
        assert caught.value.response.status_code == 401
        assert caught.value.response.headers["WWW-Authenticate"] == "Bearer"
        assert b'refused_total{reason="unauthorized"} 1.0' in running.service._exposition()


async def test_a_wrong_token_in_a_message_fails_its_request_only(serve: Serve, database: str) -> None:
    """Even where none would do: it is not stored as anybody's."""
    async with serve(auth="optional", **JWT) as running, running.client() as websocket:
        reply = await ask(websocket, predict_message(token=token(seconds=-5), id=9))
        assert (reply["code"], reply["id"]) == ("unauthorized", 9)
        assert "expired" in reply["message"]
        assert (await ask(websocket, predict_message(token=7)))["code"] == "invalid_request"
        for none in (None, ""):  # a form that was left empty
            assert (await ask(websocket, predict_message(token=none)))["status"] == "success"
    assert users(database) == [None, None]


async def test_whoever_guesses_is_closed_with_1008(serve: Serve) -> None:
    """After so many wrong tokens in a row, also where none would do."""
    async with serve(auth="optional", **JWT) as running, running.client() as websocket:
        for _ in range(guard.MAX_WRONG):
            assert (await ask(websocket, predict_message(token="guess")))["code"] == "unauthorized"
        assert await close_code(websocket) == 1008


async def test_a_token_that_expires_ends_what_it_allowed(
    serve: Serve, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection stays open for a new one; until then nothing is stored as anybody's."""
    async with serve(auth="optional", **JWT) as running:
        headers = {"Authorization": f"Bearer {token()}"}
        async with connect(running.url, additional_headers=headers) as websocket:
            await read(websocket)
            assert (await ask(websocket, predict_message()))["status"] == "success"
            now = time.time
            monkeypatch.setattr(time, "time", lambda: now() + 600.0)
            reply = await ask(websocket, predict_message())
            assert reply["code"] == "unauthorized"
            assert "expired" in reply["message"]
            await ask(websocket, f'{{"command": "configure", "token": "{token("anna2")}"}}')
            assert (await ask(websocket, predict_message()))["status"] == "success"
    assert set(users(database)) == {"anna", "anna2"}


async def test_where_one_is_required_a_connection_without_a_token_is_closed(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 1008 after some seconds, without one from the start as with one that has expired."""
    monkeypatch.setattr("service.network.guarded.PATIENCE", 0.2)
    async with serve(auth="required", **JWT) as running:
        async with running.client() as websocket:
            assert await close_code(websocket) == 1008
        # In the handshake: a request's might come too late. JWT's times are whole seconds: it holds for one or two.
        asked = time.time()
        headers = {"Authorization": f"Bearer {token(seconds=2)}"}
        async with connect(running.url, additional_headers=headers) as websocket:
            assert await close_code(websocket) == 1008
        assert time.time() > asked + 1


async def test_an_api_key_is_as_good_as_a_token_until_its_line_is_deleted(
    serve: Serve, database: str, tmp_path: Path
) -> None:
    """The file is read again when it changes, and a wrong one is left aside; connections of a key that is gone end."""
    path = tmp_path / "keys"
    first = create(path, "anna")
    headers = {"Authorization": f"Bearer {first}"}
    async with (
        serve(auth="required", api_keys_file=path) as running,
        connect(running.url, additional_headers=headers) as websocket,
    ):
        await read(websocket)
        await until_accepted(running, create(path, "bruno"))
        path.write_text("nonsense\n")
        assert not running.service._perimeter.refresh()
        assert (await ask(websocket, predict_message()))["status"] == "success"
        path.write_text("# nobody\n")
        async with asyncio.timeout(TIMEOUT):
            while (reply := await ask(websocket, predict_message()))["type"] != "error":
                pass
        assert reply["code"] == "unauthorized"
        assert "API key has expired or was withdrawn" in reply["message"]
    assert set(users(database)) == {"anna"}


async def test_a_key_whose_last_day_is_over_is_nobodys(serve: Serve, tmp_path: Path) -> None:
    """In the handshake's header as in a request."""
    path = tmp_path / "keys"
    key = create(path, "anna")
    path.write_text(f"{path.read_text().split()[0]} anna 2020-01-01 2020-01-02\n")
    async with serve(auth="optional", api_keys_file=path) as running:
        with pytest.raises(InvalidStatus) as caught:
            await connect(running.url, additional_headers={"Authorization": f"Bearer {key}"})
        assert caught.value.response.status_code == 401
        async with running.client() as websocket:
            reply = await ask(websocket, predict_message(token=key))
            assert (reply["code"], reply["message"]) == ("unauthorized", "the API key has expired")


async def test_a_connection_whose_requests_showed_a_key_is_closed_when_that_is_gone(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one is that showed it in the handshake."""
    path = tmp_path / "keys"
    key = create(path, "anna")
    async with serve(auth="required", api_keys_file=path) as running, running.client() as websocket:
        assert (await ask(websocket, predict_message(token=key)))["status"] == "success"
        monkeypatch.setattr("service.network.guarded.PATIENCE", 0.2)
        path.write_text("# nobody\n")
        assert await close_code(websocket) == 1008


async def test_a_connection_that_is_gone_is_not_kept_until_its_token_expires(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients that come and go with tokens of an hour would pile up for as long."""
    monkeypatch.setattr("service.network.guarded.PATIENCE", 0.1)
    headers = {"Authorization": f"Bearer {token(seconds=3600)}"}
    async with serve(auth="required", **JWT) as running:

        def looks_at_it_again() -> float:
            (connection,) = running.service._connections
            assert connection._credential_timer is not None
            return connection._credential_timer.when() - asyncio.get_running_loop().time()

        async with connect(running.url, additional_headers=headers) as websocket:
            await read(websocket)
            while looks_at_it_again() < 1000:
                await asyncio.sleep(0.01)
            gone = weakref.ref(next(iter(running.service._connections)))
        async with asyncio.timeout(TIMEOUT):
            while gone() is not None:
                gc.collect()
                await asyncio.sleep(0.01)


async def test_a_key_that_is_deleted_late_ends_its_connections_too(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key without a last day is asked for once; whoever had it when it was is closed when it is gone."""
    monkeypatch.setattr("service.network.guarded.PATIENCE", 0.1)
    path = tmp_path / "keys"
    headers = {"Authorization": f"Bearer {create(path, 'anna')}"}
    async with (
        serve(auth="required", api_keys_file=path) as running,
        connect(running.url, additional_headers=headers) as websocket,
    ):
        await read(websocket)
        (connection,) = running.service._connections
        timer = connection._credential_timer
        assert timer is not None
        while asyncio.get_running_loop().time() <= timer.when():
            await asyncio.sleep(0.01)
        assert (await ask(websocket, predict_message()))["status"] == "success"
        path.write_text("# nobody\n")
        assert await close_code(websocket) == 1008


async def test_keys_that_are_made_give_a_connection_without_one_no_more_time(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is closed though the file changes again and again meanwhile."""
    monkeypatch.setattr("service.network.guarded.PATIENCE", 1.5)  # some looks at the file
    path = tmp_path / "keys"
    create(path, "anna")
    async with serve(auth="required", api_keys_file=path) as running, running.client() as websocket:

        async def make() -> None:
            while True:
                create(path, "bruno")
                await asyncio.sleep(0.1)

        making = asyncio.create_task(make())
        assert await close_code(websocket) == 1008
        making.cancel()


@pytest.mark.parametrize("line", ["{} anna 2020-01-01 2020-01-02", "{} bruno 2020-01-01"])
async def test_a_key_whose_line_has_changed_ends_on_open_connections(
    serve: Serve, database: str, tmp_path: Path, line: str
) -> None:
    """One whose last day is over now, and one that is another user's, as one that is gone."""
    path = tmp_path / "keys"
    headers = {"Authorization": f"Bearer {create(path, 'anna')}"}
    async with (
        serve(auth="required", api_keys_file=path) as running,
        connect(running.url, additional_headers=headers) as websocket,
    ):
        await read(websocket)
        assert (await ask(websocket, predict_message()))["status"] == "success"
        path.write_text(line.format(path.read_text().split()[0]))
        async with asyncio.timeout(TIMEOUT):
            while (reply := await ask(websocket, predict_message()))["type"] != "error":
                pass
        assert reply["code"] == "unauthorized"
    assert set(users(database)) == {"anna"}


async def test_a_token_that_was_shown_before_is_checked_with_the_keys_that_are_there(
    serve: Serve, tmp_path: Path
) -> None:
    """Of a key that was replaced no request's token is accepted, on open connections too."""
    path = tmp_path / "key"
    old, new = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    signed = jwt.encode({"sub": "anna", "exp": time.time() + 3600}, old, "ES256")
    message = orjson.dumps({"command": "ping", "token": signed}).decode()
    path.write_bytes(old.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    async with serve(auth="required", jwt_key_file=path) as running, running.client() as websocket:
        assert (await ask(websocket, message))["type"] == "pong"
        path.write_bytes(new.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        async with asyncio.timeout(TIMEOUT):
            while (reply := await ask(websocket, message))["type"] == "pong":
                pass
        assert reply["code"] == "unauthorized"


def test_of_the_credentials_that_were_shown_the_one_that_holds_longest_counts(tmp_path: Path) -> None:
    """When one is gone, the other does; then none."""
    path = tmp_path / "keys"
    keys = [create(path, "anna"), create(path, "bruno", days=1)]
    credentials = Credentials(Settings(auth="required", api_keys_file=path))
    watched = Guard(Rules(credentials=credentials), None, 0.0)
    for key in keys:
        watched.user_of(Predict(None, b"", token=key), time.time())
    assert watched.holds_until == math.inf
    left = path.read_text().splitlines()
    for lines, least, most in ((left[1:], time.time(), time.time() + 3 * 86_400), ([], -math.inf, -math.inf)):
        path.write_text("\n".join(lines))
        assert credentials.refresh()
        watched.recheck()
        assert least <= watched.holds_until <= most


async def test_a_worker_that_cannot_read_its_files_again_lives_on(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever fails then, its heartbeats go on, without which the supervisor would kill it."""
    monkeypatch.setattr("service.server._GAUGE_SECONDS", 0.01)
    async with serve() as running:
        monkeypatch.setattr(Perimeter, "refresh", lambda _: 1 / 0)
        heartbeats = running.service._heartbeats
        async with asyncio.timeout(TIMEOUT):
            while running.service._heartbeats < heartbeats + 3:
                await asyncio.sleep(0.01)
    assert "ZeroDivisionError" in caplog.text


async def until_accepted(running: Running, credential: str) -> None:
    """Wait until a credential is known."""
    async with asyncio.timeout(TIMEOUT):
        while True:
            try:
                async with connect(running.url, additional_headers={"Authorization": f"Bearer {credential}"}):
                    return
            except InvalidStatus:
                await asyncio.sleep(0.05)


async def close_code(websocket: Any) -> int | None:
    """The code that the service closes with."""
    with pytest.raises(ConnectionClosed) as caught:
        while True:
            await read(websocket)
    return None if caught.value.rcvd is None else caught.value.rcvd.code
