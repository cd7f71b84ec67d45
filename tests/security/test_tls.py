"""TLS with a real client, and a certificate that is replaced while the service runs."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import socket
import ssl
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
import trustme
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedOK

from client import AsyncClient
from service.errors import StartupError
from service.healthcheck import check
from service.security.tls import Certificate
from tests.security.conftest import write_certificate
from tests.service.harness import (
    FACE,
    TIMEOUT,
    Serve,
    ServiceProcess,
    StartProcess,
    ask,
    predict_message,
    read,
)
from tests.service.raw_peer import TEXT, Peer, frame


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    """A client's context that knows the authority."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def what_is_logged(service: ServiceProcess, authority: trustme.CA) -> str:
    """All of a service's log, after it has answered another client and ended."""
    async with connect(service.url, ssl=trusting(authority)) as websocket:
        await read(websocket)
        assert (await ask(websocket, FACE))["status"] == "success"
    service.process.terminate()
    _, log = await asyncio.to_thread(service.process.communicate, timeout=TIMEOUT)
    return str(log)


async def serial(port: int, context: ssl.SSLContext) -> str:
    """The serial number of the certificate that is shown."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        return str(writer.get_extra_info("peercert")["serialNumber"])
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):  # a server that stops may have dropped it by now
            await writer.wait_closed()


async def test_wss_and_a_certificate_that_is_replaced_in_every_worker(
    start_process: StartProcess, authority: trustme.CA, certificate: tuple[Path, Path]
) -> None:
    """Both workers show the new certificate to new clients without a restart, and open connections go on."""
    chain, key = certificate
    context = trusting(authority)
    service = start_process(TLS_CERTIFICATE=str(chain), TLS_KEY=str(key), WORKERS="2")
    assert service.url.startswith("wss://")
    async with connect(service.url, ssl=context) as websocket:
        await read(websocket)
        assert (await ask(websocket, predict_message()))["status"] == "success"
        before = await serial(service.port, context)
        write_certificate(authority, chain.parent)
        async with asyncio.timeout(TIMEOUT):
            shown = {before}
            while before in shown:
                # Each worker has more sockets than the other in turn: of eight, each takes some.
                shown = set(await asyncio.gather(*(serial(service.port, context) for _ in range(8))))
        assert len(shown) == 1
        assert (await ask(websocket, predict_message()))["status"] == "success"


async def test_a_client_that_leaves_amid_its_answers_leaves_no_line_in_the_log(
    start_process: StartProcess, authority: trustme.CA, certificate: tuple[Path, Path]
) -> None:
    """Thousands of its questions have been read by then: their answers are written to nobody."""
    chain, key = certificate
    service = start_process(TLS_CERTIFICATE=str(chain), TLS_KEY=str(key), WORKERS="1")
    for _ in range(10):
        async with connect(service.url, ssl=trusting(authority)) as websocket:
            await read(websocket)
            for _ in range(3000):
                await websocket.send('{"command": "emotions"}')
            websocket.transport.close()
    assert await what_is_logged(service, authority) == ""


async def test_a_client_that_dies_amid_its_answers_leaves_no_line_in_the_log(
    start_process: StartProcess, authority: trustme.CA, certificate: tuple[Path, Path]
) -> None:
    """Its connection ends without a word of TLS, which the event loop knows before the service is told."""
    chain, key = certificate
    service = start_process(TLS_CERTIFICATE=str(chain), TLS_KEY=str(key), WORKERS="1")
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", service.port, ssl=trusting(authority), server_hostname="localhost"
    )
    peer = Peer(reader, writer)
    await peer.shake_hands()
    peer.send(frame(TEXT, b'{"command": "emotions"}') * 3000)
    writer.get_extra_info("socket").shutdown(socket.SHUT_WR)
    assert await what_is_logged(service, authority) == ""
    writer.transport.abort()


async def test_nor_does_one_that_breaks_off_with_the_event_loop_of_windows(
    serve: Serve, authority: trustme.CA, certificate: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """asyncio's own, which tells in other words of each write to a connection that has broken."""
    chain, key = certificate
    async with serve(tls_certificate=chain, tls_key=key) as running, asyncio.timeout(TIMEOUT):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", running.port, ssl=trusting(authority), server_hostname="localhost"
        )
        peer = Peer(reader, writer)
        await peer.shake_hands()
        (connection,) = running.service._connections
        peer.send(frame(TEXT, b'{"command": "emotions"}') * 3000)
        while not connection._waiting:
            await asyncio.sleep(0)
        at_once = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        writer.transport.abort()
        await connection.wait_closed()
    assert caplog.text == ""


async def test_a_reload_swaps_the_certificate_under_load_without_a_failed_request(
    start_process: StartProcess,
    authority: trustme.CA,
    certificate: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SIGHUP after .env names other files: the library's clients go on, and new ones are shown the new certificate."""
    chain, key = certificate
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))  # what OpenSSL trusts by itself
    dotenv = tmp_path / ".env"
    dotenv.write_text(f"TLS_CERTIFICATE={chain}\nTLS_KEY={key}\n")
    service = start_process(WORKERS="2")
    context = trusting(authority)
    before = await serial(service.port, context)
    stopped, answered = asyncio.Event(), 0

    async def predict_until_stopped() -> None:
        nonlocal answered
        async with AsyncClient(service.url) as client:
            while not stopped.is_set():
                prediction = await client.predict(FACE, detect="never")
                assert prediction.prediction_id is not None
                answered += 1

    async with asyncio.timeout(TIMEOUT), asyncio.TaskGroup() as clients:
        for _ in range(3):
            clients.create_task(predict_until_stopped())
        while answered < 20:
            await asyncio.sleep(0.01)
        other = tmp_path / "other"
        other.mkdir()
        chain, key = write_certificate(authority, other)
        dotenv.write_text(f"TLS_CERTIFICATE={chain}\nTLS_KEY={key}\n")
        service.process.send_signal(signal.SIGHUP)
        shown = {before}
        while before in shown:
            shown = set(await asyncio.gather(*(serial(service.port, context) for _ in range(8))))
        assert len(shown) == 1
        count = answered
        while answered < count + 20:
            await asyncio.sleep(0.01)
        stopped.set()
    service.process.terminate()
    assert await asyncio.to_thread(service.process.wait, TIMEOUT) == 0
    assert service.process.stderr is not None
    assert "ERROR" not in service.process.stderr.read()


async def test_tls_is_1_2_or_newer_and_plain_connections_get_nothing(
    serve: Serve, authority: trustme.CA, certificate: tuple[Path, Path]
) -> None:
    """An old version fails in the handshake; a client without TLS is not answered."""
    chain, key = certificate
    async with serve(tls_certificate=chain, tls_key=key) as running:
        context = trusting(authority)
        assert await serial(running.port, context)
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(TIMEOUT):
            assert b"HTTP" not in await reader.read()
        writer.close()
        await writer.wait_closed()
    assert Certificate(chain, key).context.current.minimum_version is ssl.TLSVersion.TLSv1_2


async def fail_handshakes(port: int) -> None:
    """Come without TLS, and go: a client that says nothing, and one that asks over plain HTTP."""
    for hello in (b"", b"GET / HTTP/1.1\r\n\r\n"):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(hello)
        writer.write_eof()
        async with asyncio.timeout(TIMEOUT):
            await reader.read()
        writer.close()


async def test_a_failed_tls_handshake_leaves_nothing_behind(
    serve: Serve, certificate: tuple[Path, Path]
) -> None:
    """No connection that a shutdown would wait for."""
    chain, key = certificate
    async with serve(tls_certificate=chain, tls_key=key) as running:
        await fail_handshakes(running.port)
        assert not running.service._handshakes._under_way


_PATIENT = "import service.network.handshakes; service.network.handshakes._SECONDS = 600.0"


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_connection_that_was_accepted_is_greeted_before_it_is_closed(
    start_process: StartProcess, authority: trustme.CA, certificate: tuple[Path, Path], workers: str
) -> None:
    """Its TLS handshake begins when the service is shutting down: as without TLS, the close says what it is."""
    chain, key = certificate
    context = trusting(authority)
    service = start_process(
        faults=_PATIENT, TLS_CERTIFICATE=str(chain), TLS_KEY=str(key), WORKERS=workers, DRAIN_SECONDS="600"
    )
    async with asyncio.timeout(TIMEOUT), contextlib.AsyncExitStack() as stack:
        early = await asyncio.to_thread(socket.create_connection, ("127.0.0.1", service.port))
        early.setblocking(False)
        # Connections are accepted in turn: these after that one, and one of them by the same worker.
        clients = [await stack.enter_async_context(connect(service.url, ssl=context)) for _ in range(3)]
        for client in clients:
            await read(client)
        service.process.terminate()
        for client in clients:
            with contextlib.suppress(ConnectionClosedOK):  # by a worker that has nobody to wait for
                while (await ask(client, '{"command": "health"}'))["status"] != "unhealthy":
                    await asyncio.sleep(0)
        async with connect(service.url, ssl=context, sock=early) as late:
            assert (await read(late))["type"] == "welcome"
            with pytest.raises(ConnectionClosedOK) as closed:
                await read(late)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1001
    assert await asyncio.to_thread(service.process.wait, TIMEOUT) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_tls_handshake_that_has_failed_is_not_waited_for(
    start_process: StartProcess, certificate: tuple[Path, Path], workers: str
) -> None:
    """Nobody tells that it failed, and a shutdown knows it all the same. Nor is it logged: health checks begin so."""
    chain, key = certificate
    service = start_process(faults=_PATIENT, TLS_CERTIFICATE=str(chain), TLS_KEY=str(key), WORKERS=workers)
    await fail_handshakes(service.port)
    service.process.terminate()
    _, log = await asyncio.to_thread(service.process.communicate, timeout=TIMEOUT)
    assert (service.process.returncode, log) == (0, "")


async def test_the_health_check_of_a_container_speaks_tls_where_the_service_does(
    serve: Serve, certificate: tuple[Path, Path]
) -> None:
    """Whatever name the certificate is for, and whatever the settings say by now."""
    chain, key = certificate
    async with serve(tls_certificate=chain, tls_key=key) as running:
        assert await asyncio.to_thread(check, "127.0.0.1", running.port) is None


def test_a_pair_that_does_not_belong_together_stays_aside(
    authority: trustme.CA, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    """While only one file is replaced, the old certificate is shown; the log says why; then the new one is."""
    chain, key = certificate
    loaded = Certificate(chain, key)
    other = tmp_path / "other"
    other.mkdir()
    new_chain, new_key = write_certificate(authority, other)
    shown = handshake(loaded, authority)
    new_chain.replace(chain)
    loaded.refresh()
    assert handshake(loaded, authority) == shown
    new_key.replace(key)
    loaded.refresh()
    assert handshake(loaded, authority) != shown


@pytest.mark.parametrize("new", [trustme.KeyType.RSA, trustme.KeyType.ECDSA])
def test_a_certificate_of_another_kind_of_key_takes_the_place_of_the_old_one(
    tmp_path: Path, authority: trustme.CA, new: trustme.KeyType
) -> None:
    """RSA after an elliptic curve, and the other way round, for clients that take both and those that take one."""
    (old,) = set(trustme.KeyType) - {new}
    loaded = Certificate(*write_certificate(authority, tmp_path, old))
    before = handshake(loaded, authority)
    write_certificate(authority, tmp_path, new)
    loaded.refresh()
    shown = handshake(loaded, authority)
    assert shown != before
    kind = {trustme.KeyType.RSA: "aRSA", trustme.KeyType.ECDSA: "aECDSA"}
    assert handshake(loaded, authority, kind[new]) == shown
    with pytest.raises(ssl.SSLError):
        handshake(loaded, authority, kind[old])


def handshake(certificate: Certificate, authority: trustme.CA, ciphers: str | None = None) -> Any:
    """The serial number that a client sees in a handshake without a network; `ciphers` are those of TLS 1.2."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = certificate.context.wrap_bio(to_server, to_client, server_side=True)
    context = trusting(authority)
    if ciphers is not None:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(ciphers)
    client = context.wrap_bio(to_client, to_server, server_hostname="localhost")
    for _ in range(4):
        for side in (client, server):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    shown = client.getpeercert()
    assert shown is not None
    return shown["serialNumber"]


def test_files_that_cannot_be_used_are_told_at_the_start(
    certificate: tuple[Path, Path], tmp_path: Path, authority: trustme.CA
) -> None:
    """Missing, not PEM, or another certificate's key: each names the settings."""
    chain, key = certificate
    other = tmp_path / "other"
    other.mkdir()
    _, wrong = write_certificate(authority, other)
    shutil.copy(chain, tmp_path / "text")
    (tmp_path / "text").write_text("hello")
    for pair in ((chain, wrong), (tmp_path / "missing", key), (tmp_path / "text", key)):
        with pytest.raises(StartupError, match="TLS_CERTIFICATE"):
            Certificate(*pair)
