"""The JavaScript client, tested by `node --test` against peers and against the real service."""

from __future__ import annotations

import re
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.client.harness import FACE, ROOT, ServiceProcess, run_command
from tests.client.peer import V1_COMMANDS, Peer
from tests.service.examples import node

TESTS = ROOT / "tests/client/js"


async def run_node(file: str, folder: Path, environment: dict[str, str]) -> None:
    """Run one file of JavaScript tests; all of them must run, and pass."""
    done = await run_command(
        [node(), "--experimental-websocket", "--test", TESTS / file], folder=folder, environment=environment
    )
    assert done.code == 0, done.out + done.err
    expected = len(re.findall(r"^\s*test\(", (TESTS / file).read_text(), re.MULTILINE))
    passed = re.search(r"^# pass (\d+)$", done.out, re.MULTILINE)
    assert passed is not None, done.out
    assert int(passed[1]) >= expected > 0


async def test_the_javascript_client_survives_every_fault(tmp_path: Path, unused_url: str) -> None:
    """The same faults as for the Python client: lost connections, refusals, nonsense, silence, old servers."""
    async with AsyncExitStack() as peers:
        peer = await peers.enter_async_context(Peer().running())
        v1 = await peers.enter_async_context(Peer(1, V1_COMMANDS).running())
        large = await peers.enter_async_context(Peer(max_size=2**25).running())
        small = await peers.enter_async_context(Peer(max_size=4096).running())
        chat = await peers.enter_async_context(Peer(bad_welcome='{"type":"chat"}').running())
        leaving = await peers.enter_async_context(Peer(leaving=2).running())
        required = await peers.enter_async_context(Peer(authentication="required").running())
        optional = await peers.enter_async_context(Peer(authentication="optional").running())
        addresses = {
            "PEER": peer.url,
            "PEER_LEAVING": leaving.url,
            "PEER_V1": v1.url,
            "PEER_LARGE": large.url,
            "PEER_SMALL": small.url,
            "PEER_CHAT": chat.url,
            "PEER_REQUIRED": required.url,
            "PEER_OPTIONAL": optional.url,
        }
        await run_node("peer.test.mjs", tmp_path, addresses | {"NOBODY": unused_url})
        await run_node("silence.test.mjs", tmp_path, addresses)
        await run_node("many.test.mjs", tmp_path, addresses)
        await run_node("tokens.test.mjs", tmp_path, addresses)
    assert {optional.tokens[request.connection] for request in optional.predictions_received} == {None}
    assert all(request.binary for request in peer.predictions_received)
    assert not any(request.binary for request in v1.predictions_received)
    assert {request.message.get("token") for request in peer.predictions_received} == {None, "secret"}


async def test_the_javascript_client_works_on_the_real_service(
    service: ServiceProcess, tmp_path: Path
) -> None:
    """Binary frames, many images, a stream, and the queries."""
    await run_node("service.test.mjs", tmp_path, {"SERVICE": service.url, "FACE": str(FACE)})


async def test_the_javascript_module_is_right_without_a_server(tmp_path: Path) -> None:
    """Addresses are checked, errors keep their names in a bundle, and the types declare what there is."""
    await run_node("module.test.mjs", tmp_path, {})


async def test_node_need_not_guess_that_the_client_is_a_module(tmp_path: Path) -> None:
    """It loads where Node.js takes a .js file for what package.json says alone, as before 20.19 and 22.7."""
    code = f"import {{ VisionAI }} from {(ROOT / 'client/js/visionai.js').as_uri()!r}; console.log(VisionAI.name);"
    done = await run_command(
        [node(), "--no-experimental-detect-module", "--input-type=module", "--eval", code], folder=tmp_path
    )
    assert (done.code, done.out) == (0, "VisionAI\n"), done.err


async def test_without_node_the_failure_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without Node.js fails these tests with what to install; it does not skip them."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AssertionError, match="Node"):
        await run_node("peer.test.mjs", tmp_path, {})
