"""wss:// addresses, with real TLS: what a user is told where the handshake fails."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme
from websockets.asyncio.server import ServerConnection, serve

from client import AsyncClient, CannotConnect
from client.cli.exit_codes import ExitCode
from tests.client.harness import VisionAI, proxy_to
from tests.client.peer import Peer


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """An authority that nobody trusts by itself."""
    return trustme.CA()


@pytest.fixture
async def secure_url(authority: trustme.CA) -> AsyncIterator[str]:
    """A server with a certificate of `authority` for this machine's address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)

    async def greet(websocket: ServerConnection) -> None:
        await websocket.send('{"type": "welcome", "protocol": 2, "commands": {"ping": ""}}')
        await websocket.wait_closed()

    async with serve(greet, "127.0.0.1", 0, ssl=context) as server:
        yield f"wss://127.0.0.1:{server.sockets[0].getsockname()[1]}/ws"


async def test_a_certificate_that_is_not_trusted_is_told(secure_url: str, visionai: VisionAI) -> None:
    """The reason is OpenSSL's, not the system's error of the same number, and the remedy is named."""
    done = await visionai("emotions", "--url", secure_url)
    assert (done.code, done.err.count("\n")) == (ExitCode.CANNOT_CONNECT, 1)
    assert "its certificate is not trusted (certificate verify failed: unable to get local issuer" in done.err
    assert "SSL_CERT_FILE" in done.err


async def test_a_certificate_that_is_not_trusted_is_told_behind_a_proxy(
    secure_url: str, visionai: VisionAI
) -> None:
    """As of a proxy that shows one of its own: one line, without a traceback of the library's before it."""
    port = secure_url.split(":")[2].removesuffix("/ws")
    async with proxy_to(int(port)) as (proxy, _):
        environment = {"wss_proxy": proxy, "no_proxy": ""}
        done = await visionai("emotions", "--url", f"wss://vision.invalid:{port}/ws", environment=environment)
    assert (done.code, done.err.count("\n")) == (ExitCode.CANNOT_CONNECT, 1), done.err
    assert "its certificate is not trusted" in done.err


async def test_the_remedy_works(
    secure_url: str, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the authority in SSL_CERT_FILE the connection opens."""
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    async with AsyncClient(secure_url) as client:
        assert (await client.connect()).protocol == 2


async def test_a_websocket_server_without_tls_is_told(peer: Peer) -> None:
    """It hangs up on the handshake, without a word of the system's."""
    with pytest.raises(CannotConnect, match=r"does not speak TLS: try ws://"):
        await AsyncClient(peer.url.replace("ws://", "wss://")).connect()


async def test_an_http_server_without_tls_is_told() -> None:
    """It answers the handshake with what is no TLS."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        url = f"wss://127.0.0.1:{server.sockets[0].getsockname()[1]}/ws"
        with pytest.raises(CannotConnect, match=r"does not speak TLS: try ws://"):
            await AsyncClient(url).connect()
