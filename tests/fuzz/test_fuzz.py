"""Mutated messages and images: no crash, no hang, no `internal`.

100 000 in process and 3 000 over a socket; ``VISIONAI_FUZZ=10`` does ten times as many, from other seeds. A failure
names the input as base64.
"""

from __future__ import annotations

import asyncio
import base64
import os
import random
import urllib.request
from collections.abc import Callable, Iterable, Sequence

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from service.batching.predictor import Predictor
from service.engine import Engine
from service.errors import ERROR_CODES, RequestError
from service.faces import FaceDetector
from service.images.decode import ImageDecoder
from service.modelfile import resolve_detectors
from service.protocol.requests import Options
from service.settings import Settings
from service.store.records import PredictionRecord
from tests.fuzz import targets
from tests.fuzz.corpus import images, messages, mutants
from tests.service.harness import MODEL, TIMEOUT, ServiceProcess, StartProcess, ask, predict_message, read

pytestmark = pytest.mark.endurance

TIMES = int(os.environ.get("VISIONAI_FUZZ", "1"))
MESSAGES, IMAGES, PREDICTIONS, FRAMES = 60_000 * TIMES, 35_000 * TIMES, 5_000 * TIMES, 3_000 * TIMES
SEED = 20 + TIMES


def throw(target: Callable[[bytes], None], inputs: Iterable[bytes]) -> None:
    """Fail with the input that the target fails on."""
    for data in inputs:
        try:
            target(data)
        except Exception as exc:
            raise AssertionError(f"{type(exc).__name__} for {base64.b64encode(data).decode()}") from exc


def test_mutated_messages() -> None:
    """Every frame is a request, or the error of the one who sent it."""
    throw(targets.parse, messages())
    throw(targets.parse, mutants(messages(), MESSAGES, SEED))


def test_mutated_images() -> None:
    """Every file is an image, or the error of the one who sent it."""
    throw(targets.decode, images())
    throw(targets.decode, mutants(images(), IMAGES, SEED))


def test_mutated_images_are_predicted_or_refused() -> None:
    """With the search for faces and the model behind it, no image is answered `internal`."""

    class Nowhere:
        def record(self, records: Sequence[PredictionRecord]) -> bool:
            return bool(records)

    engine = Engine(MODEL)
    detector = FaceDetector(*resolve_detectors(MODEL))
    decoder = ImageDecoder(engine.card.shape, Settings().max_image_pixels)
    predictor = Predictor(engine, decoder, Nowhere(), detector)
    buffer = predictor.make_buffer(4)
    for number, data in enumerate(mutants(images(), PREDICTIONS, SEED + 1)):
        throw(lambda data, number=number: targets.predict(predictor, buffer, data, number), [data])  # type: ignore[misc]


@given(
    st.dictionaries(
        st.sampled_from(Options.__slots__) | st.text(max_size=20),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.sampled_from(["auto", "never", ""])
        | st.text()
        | st.lists(st.integers(), max_size=2)
        | st.dictionaries(st.text(), st.none(), max_size=2),
    )
)
def test_any_options(changes: dict[str, object]) -> None:
    """Options are changed as a whole or refused, and what is in force has its types."""
    before = Options()
    try:
        after = before.changed(changes)
    except RequestError:
        return
    assert after.detect in ("auto", "always", "never")
    assert 1 <= after.max_faces <= 64
    assert isinstance(after.ordered, bool)
    assert isinstance(after.stream, bool)
    assert after.deadline_ms is None or after.deadline_ms > 0


# Frames that are sent before their replies are read.
BURST = 25


async def opened(service: ServiceProcess) -> ClientConnection:
    """A client that has read its welcome."""
    websocket = await connect(service.url, max_size=None, open_timeout=TIMEOUT)
    assert (await read(websocket))["type"] == "welcome"
    return websocket


async def test_mutated_frames_over_a_socket(start_process: StartProcess) -> None:
    """Each frame gets exactly one reply, text or binary, whole or in fragments; the worker survives them all."""
    # Errors are logged: what is logged at all is a fault of ours.
    service = start_process(WORKERS="1", LOG_LEVEL="ERROR", MAX_WAIT_MS="1e6")
    (worker,) = service.workers
    chance = random.Random(SEED)
    inputs = list(mutants(messages() + images(), FRAMES, SEED + 2))
    websocket = await opened(service)
    codes = set()
    for start in range(0, len(inputs), BURST):
        burst = inputs[start : start + BURST]
        for data in burst:
            frame = targets.as_frame(data)
            cut = chance.randrange(len(frame) + 1)
            await websocket.send([frame[:cut], frame[cut:]] if chance.random() < 0.2 else frame)
        for _ in burst:
            reply = await read(websocket)
            if reply["type"] == "error":
                codes.add(reply["code"])
                assert reply["code"] in ERROR_CODES
                assert reply["code"] != "internal", [base64.b64encode(data).decode() for data in burst]
        # A pong, and not one more reply to what went before.
        assert (await ask(websocket, '{"command": "ping", "id": "end"}'))["id"] == "end"
        await websocket.close()
        websocket = await opened(service)
    assert (await ask(websocket, predict_message()))["emotion_name"] == "happy"
    await websocket.close()
    assert {"invalid_json", "invalid_request", "invalid_image", "invalid_base64", "unknown_command"} <= codes

    url = service.url.replace("ws:", "http:") + "/metrics"
    with await asyncio.to_thread(urllib.request.urlopen, url, None, TIMEOUT) as response:
        assert b'visionai_errors_total{code="internal"} 0.0' in response.read()
    assert worker.is_running()
    service.process.terminate()
    assert await asyncio.to_thread(service.process.wait, TIMEOUT) == 0


async def test_garbage_instead_of_frames(start_process: StartProcess) -> None:
    """Bytes that are no frames end their connection only."""
    service = start_process(WORKERS="1", LOG_LEVEL="ERROR")
    chance = random.Random(SEED)
    for _ in range(200):
        websocket = await opened(service)
        websocket.transport.write(chance.randbytes(chance.randint(1, 200)))
        websocket.transport.write_eof()
        try:
            while True:
                orjson.loads(await asyncio.wait_for(websocket.recv(), TIMEOUT))
        except ConnectionClosed:
            pass
    async with await opened(service) as websocket:
        assert (await ask(websocket, predict_message()))["emotion_name"] == "happy"
    service.process.terminate()
    assert await asyncio.to_thread(service.process.wait, TIMEOUT) == 0
    assert service.process.stderr is not None
    assert service.process.stderr.read() == ""
