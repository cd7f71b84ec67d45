"""The asynchronous client: what it asks, what it gives, over real sockets. Faults are the subject of its neighbours."""

from __future__ import annotations

import asyncio
import base64
import math

import pytest

from client import AsyncClient
from tests.client.harness import connect
from tests.client.peer import V1_COMMANDS, Peer, image


async def test_a_prediction_is_typed(any_peer: Peer) -> None:
    """Both protocol versions give a prediction; the second also its faces."""
    async with connect(any_peer) as client:
        found = await client.predict(image("sad"))
    assert (found.emotion_name, found.confidence, found.model_version_tag) == ("sad", 0.94, "peer-1")
    assert len(found.faces) == (any_peer.protocol == 2)


async def test_images_go_as_the_server_takes_them(any_peer: Peer) -> None:
    """A v2 server gets a binary frame, a v1 server JSON, and both the same bytes."""
    async with connect(any_peer) as client:
        await client.predict(image("sad"))
    (request,) = any_peer.predictions_received
    assert request.binary == (any_peer.protocol == 2)
    assert request.image == image("sad")


async def test_the_server_describes_itself(any_peer: Peer) -> None:
    """Emotions, model and health are typed."""
    async with connect(any_peer) as client:
        emotions = await client.emotions()
        info = await client.model_info()
        health = await client.health()
        models = await client.models() if any_peer.protocol >= 2 else ()
        seconds = await client.ping() if any_peer.protocol >= 2 else 1.0
    assert [(model.version_tag, model.active, len(model.labels)) for model in models] in (
        [],
        [("peer-1", True, 7)],
    )
    assert seconds > 0
    assert [entry.name for entry in emotions][:2] == ["angry", "disgust"]
    assert (info.status, info.input_shape, info.num_classes) == ("loaded", (None, 64, 64, 1), 7)
    assert (health.status, health.clients_connected) == ("healthy", 1)


async def test_requests_are_in_flight_together_and_answered_out_of_order(peer: Peer) -> None:
    """A request that is answered last does not hold the others, and each task gets its own answer."""
    async with connect(peer) as client:
        late = asyncio.create_task(client.predict(image("angry", after=2)))
        first, second = await asyncio.gather(client.predict(image("happy")), client.predict(image("sad")))
        assert (first.emotion_name, second.emotion_name) == ("happy", "sad")
        assert (await late).emotion_name == "angry"
    assert peer.connections == 1


async def test_one_connection_serves_many_tasks(any_peer: Peer) -> None:
    """Fifty tasks share a connection; every one gets the answer to its own image."""
    emotions = [["happy", "sad", "fear"][number % 3] for number in range(50)]
    async with connect(any_peer) as client:
        found = await asyncio.gather(*(client.predict(image(emotion)) for emotion in emotions))
    assert [prediction.emotion_name for prediction in found] == emotions
    assert any_peer.connections == 1


async def test_the_server_is_told_how_long_the_client_waits(peer: Peer) -> None:
    """deadline_ms is what is left of the request's timeout, so that nobody computes what nobody reads."""
    async with connect(peer, timeout=700) as client:
        await client.predict(image())
        await client.predict(image(), timeout=300)
    first, second = (request.message["deadline_ms"] for request in peer.predictions_received)
    assert 600_000 < first <= 700_000
    assert 200_000 < second <= 300_000


async def test_a_configured_deadline_is_not_loosened_by_a_longer_timeout(peer: Peer) -> None:
    """Of the two the shorter is sent, as the server's own deadline would be overruled."""
    async with connect(peer, timeout=700) as client:
        await client.configure(deadline_ms=250)
        await client.predict(image())
        await client.predict(image(), timeout=math.inf)
        await client.configure(deadline_ms=650_000)
        await client.predict(image(), timeout=300)
        await client.configure(deadline_ms=None)
        await client.predict(image())
    first, endless, shorter, without = (
        request.message["deadline_ms"] for request in peer.predictions_received
    )
    assert first == endless == 250
    assert 200_000 < shorter <= 300_000
    assert 600_000 < without <= 700_000


async def test_the_token_goes_with_the_handshake_and_the_request(peer: Peer) -> None:
    """Servers that check the upgrade and servers that check the message both find it."""
    async with connect(peer, token="secret") as client:
        await client.predict(image())
    assert peer.handshakes[0].headers["Authorization"] == "Bearer secret"
    assert peer.predictions_received[0].message["token"] == "secret"


async def test_a_token_is_taken_without_the_space_around_it(peer: Peer) -> None:
    """A file that holds one ends with a newline, which no header may."""
    async with connect(peer, token="secret\n") as client:
        await client.predict(image())
    assert peer.handshakes[0].headers["Authorization"] == "Bearer secret"
    assert peer.predictions_received[0].message["token"] == "secret"


@pytest.mark.parametrize("token", ["sec\nret", "sec ret", "sec\x7fret", "sécret"])
def test_what_is_no_token_is_refused_without_being_shown(token: str) -> None:
    """It is a ValueError of the constructor, which may end up in a log."""
    with pytest.raises(ValueError, match="the whole token") as caught:
        AsyncClient(token=token)
    assert "ret" not in str(caught.value)


async def test_the_token_goes_only_where_it_matters(peer: Peer) -> None:
    """History is the user's own; configure would take the token for an unknown option."""
    async with connect(peer, token="secret") as client:
        await client.history()
        await client.configure(detect="never")
    tokens = {request.message["command"]: request.message.get("token") for request in peer.received}
    assert tokens == {"configure": None, "history": "secret"}


async def test_options_of_a_prediction_are_sent_only_when_given(peer: Peer) -> None:
    """Defaults are the server's business."""
    async with connect(peer) as client:
        await client.predict(image())
        await client.predict(image(), detect="never", max_faces=2, priority="low")
    plain, chosen = (request.message for request in peer.predictions_received)
    assert not {"detect", "max_faces", "priority"} & set(plain)
    assert (chosen["detect"], chosen["max_faces"], chosen["priority"]) == ("never", 2, "low")


async def test_history_is_read_page_by_page(peer: Peer) -> None:
    """`next` of a page is the cursor of the one after it, and None on the last."""
    async with connect(peer) as client:
        first = await client.history(limit=3)
        second = await client.history(limit=3, cursor=first.next)
    assert [row.emotion_name for row in first.predictions] == ["happy", "sad", "happy"]
    assert [row.emotion_name for row in second.predictions] == ["sad", "happy"]
    assert second.next is None


async def test_stats_are_typed(peer: Peer) -> None:
    """Counts, confidence and percentiles of the asked window."""
    async with connect(peer) as client:
        stats = await client.stats(window_s=60)
    assert (stats.window_s, stats.count, stats.mean_confidence) == (60, 4, 0.8)
    assert stats.emotions["happy"].count == 3
    assert stats.latency_ms == {"p50": 1.2, "p99": 3.4}


async def test_any_command_can_be_asked(peer: Peer) -> None:
    """Commands without a method of their own give the reply as it came."""
    async with connect(peer) as client:
        assert (await client.request("ping"))["status"] == "success"


async def test_base64_is_what_v1_servers_decode() -> None:
    """The text frame of a v1 image is plain standard base64."""
    async with Peer(1, V1_COMMANDS).running() as peer, connect(peer) as client:
        await client.predict(image("sad"))
    assert base64.b64decode(peer.received[0].message["image"], validate=True) == image("sad")
