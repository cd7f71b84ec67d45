"""Tokens that take the place of others while a client is in use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

import pytest

from client import AsyncClient, ConnectionLost, InvalidRequest, Retry, Unauthorized
from tests.client.harness import QUICK, connect
from tests.client.peer import Peer, image

EXPIRED = image(first=[{"expire": "old", "error": "unauthorized"}])
EXPIRED_AND_CUT = image(first=[{"expire": "old", "drop": True}])


@pytest.fixture
async def guarded() -> AsyncIterator[Peer]:
    """A peer that asks for a token, in the handshake or in a message."""
    async with Peer(authentication="required").running() as running:
        yield running


async def with_old(peer: Peer, how: str, retry: Retry = QUICK) -> AsyncClient:
    """A client that has the token "old", as its argument or by `configure`."""
    if how == "argument":
        return connect(peer, token="old", retry=retry)
    client = connect(peer, retry=retry)
    await client.configure(token="old")
    return client


async def ask_everything(client: AsyncClient) -> None:
    """What brings the token itself, and what goes by the connection's."""
    assert (await client.predict(image("sad"))).emotion_name == "sad"
    await client.history()
    await client.stats()
    assert len(await client.emotions()) == 7


@pytest.mark.parametrize("how", ["argument", "configure"])
async def test_a_token_takes_the_place_of_one_that_has_expired(guarded: Peer, how: str) -> None:
    """On the open connection and on those after it, for every request."""
    client = await with_old(guarded, how)
    with pytest.raises(Unauthorized):
        await client.predict(EXPIRED)
    await client.configure(token=" fresh\n", detect="always")
    await ask_everything(client)
    assert guarded.connections == 1
    await client.predict(image(first=[{"drop": True}]))
    await ask_everything(client)
    await client.aclose()
    assert guarded.handshakes[-1].headers["Authorization"] == "Bearer fresh"
    (introduction, *_) = (request.message for request in guarded.received if request.connection == 2)
    assert (introduction["token"], introduction["detect"]) == ("fresh", "always")


@pytest.mark.parametrize("how", ["argument", "configure"])
async def test_a_token_opens_the_connection_that_the_expired_one_cannot(guarded: Peer, how: str) -> None:
    """As where the connection was lost in between: no attempt to connect brings the old one first."""
    client = await with_old(guarded, how)
    with pytest.raises(Unauthorized, match="HTTP 401"):
        await client.predict(EXPIRED_AND_CUT)
    refused = len(guarded.handshakes)
    await client.configure(token="fresh")
    await ask_everything(client)
    await client.aclose()
    assert len(guarded.handshakes) == refused + 1


async def test_a_token_is_not_refused_for_an_attempt_that_was_made_with_the_old_one(guarded: Peer) -> None:
    """A task that connects meanwhile shares its attempt: it goes on with the token that was brought."""
    client = connect(guarded, token="old")
    with pytest.raises(Unauthorized):
        await client.predict(EXPIRED_AND_CUT)
    refused = len(guarded.handshakes)
    other = asyncio.create_task(client.predict(image("sad")))
    while len(guarded.handshakes) == refused:
        await asyncio.sleep(0)
    await client.configure(token="fresh")
    assert (await other).emotion_name == "sad"
    await client.aclose()


@pytest.mark.parametrize("how", ["argument", "configure"])
async def test_a_token_that_is_refused_takes_no_place(guarded: Peer, how: str) -> None:
    """On an open connection and on one that has to be opened: the client goes on with the one it has."""
    client = await with_old(guarded, how, Retry(attempts=1))
    await client.connect()
    with pytest.raises(Unauthorized):
        await client.configure(token="wrong")
    await ask_everything(client)
    with pytest.raises(ConnectionLost):
        await client.predict(image(first=[{"drop": True}]))
    with pytest.raises(Unauthorized, match="HTTP 401"):
        await client.configure(token="wrong")
    await ask_everything(client)
    await client.aclose()


@pytest.mark.parametrize("options", [{"token": "wrong"}, {"token": "fresh", "colour": "red"}])
async def test_a_connection_that_was_open_stays_where_a_token_is_refused(
    guarded: Peer, options: dict[str, str]
) -> None:
    """Refused for itself or for another option, it has changed nothing of it."""
    async with connect(guarded, token="old") as client:
        with pytest.raises((Unauthorized, InvalidRequest)):
            await client.configure(**options)
        await ask_everything(client)
    assert guarded.connections == 1


async def test_a_connection_that_was_opened_for_a_refused_request_is_left(peer: Peer) -> None:
    """Its token was accepted, but the request changes nothing: the next one is nobody's, as before."""
    peer.authentication = "optional"
    async with connect(peer, retry=Retry(attempts=1)) as client:
        with pytest.raises(ConnectionLost):
            await client.predict(image(first=[{"drop": True}]))
        with pytest.raises(InvalidRequest, match="colour"):
            await client.configure(token="fresh", colour="red")
        await client.predict(image("sad"))
    assert "Authorization" not in peer.handshakes[-1].headers
    assert peer.predictions_received[-1].connection == peer.connections


async def until(condition: Callable[[], bool]) -> None:
    """Return once it holds."""
    while not condition():
        await asyncio.sleep(0)


async def test_connections_that_are_left_are_closed(peer: Peer) -> None:
    """Once what is in flight on them is answered, and not before."""
    peer.authentication = "optional"
    async with connect(peer, retry=Retry(attempts=1)) as client:
        for number in range(3):
            with pytest.raises(ConnectionLost):
                await client.predict(image(first=[{"drop": True}], salt=number))
            with pytest.raises(InvalidRequest, match="colour"):
                await client.configure(token="fresh", colour="red")
        await client.connect()
        await until(lambda: peer.open == {peer.connections})
        in_flight = asyncio.create_task(client.predict(image("sad", gated=True)))
        await until(lambda: len(peer.predictions_received) == 4)
        configuring = asyncio.create_task(client.configure(token="fresh"))
        await until(lambda: peer.tokens[peer.connections] == "fresh")
        configuring.cancel()
        with pytest.raises(asyncio.CancelledError):
            await configuring
        await client.predict(image("fear"))
        assert peer.open == {peer.connections - 1, peer.connections}
        peer.gate.set()
        assert (await in_flight).emotion_name == "sad"
        await until(lambda: peer.open == {peer.connections})


async def test_what_is_no_token_is_refused_before_it_is_sent(guarded: Peer) -> None:
    """As by the constructor: it could go into no header."""
    async with connect(guarded, token="old") as client:
        with pytest.raises(ValueError, match="the whole token"):
            await client.configure(token="fr esh")
        await ask_everything(client)


@pytest.mark.parametrize("moment", ["handshake", "answer"])
async def test_a_token_that_was_given_up_is_nobodys(peer: Peer, moment: str) -> None:
    """Whether the connection was still opening or already had it: what a client without token sends is no user's."""
    peer.authentication = "optional"
    async with aclosing(connect(peer)) as client:
        if moment == "answer":
            await client.connect()
        configuring = asyncio.create_task(client.configure(token="fresh"))
        while not (peer.handshakes if moment == "handshake" else "fresh" in peer.tokens.values()):
            await asyncio.sleep(0)
        configuring.cancel()
        with pytest.raises(asyncio.CancelledError):
            await configuring
        await client.predict(image("sad"))
    (prediction,) = peer.predictions_received
    assert peer.tokens[prediction.connection] is None
    assert "token" not in prediction.message


async def test_a_token_is_not_configured_where_nobody_asks_for_one(peer: Peer) -> None:
    """A server without users may take it for an option that it does not have, and refuse it."""
    async with connect(peer, token="mine") as client:
        assert (await client.predict(image("sad"))).emotion_name == "sad"
