"""One of several cameras: asked for, chosen, paused and stopped, while the browser gives one or is still about to."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
from playwright.async_api import Page, WebSocketRoute, expect

from tests.web.browser import launch
from tests.web.conftest import TIMEOUT_MS, Message, OpenPage, between, until, until_true
from tests.web.test_live import count_replies

pytestmark = pytest.mark.asyncio(loop_scope="session")
expect.set_options(timeout=TIMEOUT_MS)

# Two cameras, "one" and "two", each a wall. What is named in `window.holding` is not given at once, but once the
# function is called that `window.held` has of it then: a camera ("camera"), its first frame ("frame"), the list of all
# ("list"). All cameras that were given are in `window.streams`.
_TWO_CAMERAS = """
  window.holding = [];
  window.held = [];
  window.streams = [];
  const wait = (what) =>
    new Promise((resolve) => (window.holding.includes(what) ? window.held.push(resolve) : resolve()));
  navigator.mediaDevices.getUserMedia = async ({ video }) => {
    const canvas = document.createElement("canvas");
    Object.assign(canvas, { width: 320, height: 240 });
    const draw = () => canvas.getContext("2d").fillRect(0, 0, 320, 240);
    canvas.getContext("2d");
    const stream = canvas.captureStream();
    const [track] = stream.getVideoTracks();
    const deviceId = video.deviceId?.exact ?? "one";
    track.getSettings = () => ({ deviceId });
    window.streams.push(stream);
    await wait("camera");
    wait("frame").then(() => setInterval(draw, 50));
    return stream;
  };
  navigator.mediaDevices.enumerateDevices = async () => {
    await wait("list");
    return ["one", "two"].map((deviceId) => ({ kind: "videoinput", deviceId, label: deviceId }));
  };
"""

_RUNNING = "window.streams.filter((stream) => stream.active)"


async def two_cameras(page: Page) -> None:
    """The page has two cameras, whose giving the test may hold."""
    await page.add_init_script(_TWO_CAMERAS)


async def hold(page: Page, what: str) -> None:
    """What is so called is given from now on when the test says so."""
    await page.evaluate(f"window.holding = ['{what}']")


async def give(page: Page) -> None:
    """Give what is held; what follows from that at once has happened then."""
    await page.evaluate("window.holding = []")
    await page.evaluate("window.held.splice(0).forEach((give) => give())")
    await page.evaluate("new Promise((resolve) => setTimeout(resolve))")


async def asked_for_another(open_page: OpenPage, what: str) -> Page:
    """A page with two cameras: one runs, the other was chosen, and `what` the browser has to give for it is held."""
    page = (await open_page(before=two_cameras)).page
    await page.click("#start")
    await expect(page.locator("#cameras option")).to_have_count(2)
    await hold(page, what)
    await page.select_option("#cameras", "two")
    await until(page, "window.held.length === 1")
    return page


def with_a_face(reply: Message) -> Message:
    """A frame's answer, whatever the camera shows: a happy face in the middle."""
    if reply.get("code") != "no_face":
        return reply
    face = {"emotion_name": "happy", "confidence": 0.9, "box": [100, 60, 120, 120]}
    return {"type": "prediction", "id": reply["id"], "faces": [face], **face}


# How much of the canvas over the picture is drawn on.
_BOXES = """() => {
  const canvas = document.getElementById("boxes");
  if (!canvas.width) return 0;
  return canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.filter(Boolean).length;
}"""


@pytest.mark.parametrize("what", ["camera", "frame", "list"])
async def test_who_pauses_while_another_camera_is_asked_for_has_it_paused(
    what: str, open_page: OpenPage
) -> None:
    """Whatever the browser has still to give: it does not go on by itself, nor is the pause taken for a fault."""
    page = await asked_for_another(open_page, what)
    await page.click("#pause")
    await give(page)
    await until(page, f"{_RUNNING}.length === 1")
    await expect(page.locator("#hint")).to_have_text("Paused")
    await expect(page.locator("#pause")).to_have_text("Resume")
    assert await page.evaluate("document.getElementById('video').paused")
    await expect(page.locator("#notice")).to_be_hidden()
    await page.click("#pause")
    await until(page, "!document.getElementById('video').paused")


async def test_who_stops_while_another_camera_is_asked_for_can_start_at_once(open_page: OpenPage) -> None:
    """The start button has the keyboard and can be pressed, though the browser has not answered yet."""
    page = await asked_for_another(open_page, "camera")
    await page.focus("#stop")
    await page.keyboard.press("Enter")
    await expect(page.locator("#start")).to_be_focused()
    await page.keyboard.press("Enter")
    await until(page, "window.held.length === 2")
    await give(page)
    await until(page, f"{_RUNNING}.length === 1")
    await expect(page.locator("#pause")).to_be_focused()


async def test_who_has_gone_on_while_the_camera_comes_keeps_the_keyboard(open_page: OpenPage) -> None:
    """Only who waits for it at the start button is brought to the pause."""
    page = (await open_page(before=two_cameras)).page
    await hold(page, "camera")
    await page.click("#start")
    await until(page, "window.held.length === 1")
    await page.focus("#language")
    await give(page)
    await expect(page.locator("#pause")).to_be_visible()
    await expect(page.locator("#language")).to_be_focused()


@pytest.mark.parametrize("paused", [False, True])
async def test_what_one_camera_saw_is_not_drawn_on_another(paused: bool, open_page: OpenPage) -> None:
    """Neither what was found before the other was chosen, paused or not, nor what is answered only then."""
    frames: list[tuple[WebSocketRoute, str]] = []
    holding = False

    def request(route: WebSocketRoute, request: Message) -> bool:
        if holding and request["command"] == "predict":
            frames.append((route, request["id"]))
            return False
        return True

    async def before(page: Page) -> None:
        await two_cameras(page)
        await between(request=request, reply=with_a_face)(page)

    page = (await open_page(before=before)).page
    await page.click("#start")
    await expect(page.locator("#faces h3")).to_contain_text("Happy")
    if paused:
        await page.click("#pause")
    holding = True
    if not paused:
        await until_true(lambda: len(frames) == 2)
    await hold(page, "camera")
    await page.select_option("#cameras", "two")
    await until(page, "window.held.length === 1")
    await expect(page.locator("#faces h3")).to_have_count(0)
    assert await page.evaluate(_BOXES) == 0
    await give(page)
    if not paused:
        # Once the picture goes on: an answer that comes before is not looked at in any case.
        await until(page, "document.getElementById('video').currentTime > 0")
        for route, id_ in frames:
            route.send(orjson.dumps(with_a_face({"code": "no_face", "id": id_})).decode())
        await until_true(lambda: len(frames) == 4)  # two of the other camera: the page has the answers
        # At once: the frames of the other camera that are not answered in time would take it away.
        assert await page.locator("#faces h3").count() == 0
        assert await page.evaluate(_BOXES) == 0


async def test_a_camera_that_comes_too_late_is_switched_off(open_page: OpenPage) -> None:
    """Stopped, or another one chosen, before the browser has given it: it does not run on unseen."""
    page = (await open_page(before=two_cameras)).page
    await page.click("#start")
    await expect(page.locator("#cameras option")).to_have_count(2)
    await hold(page, "camera")
    for device in ("two", "one"):
        await page.select_option("#cameras", device)
    await until(page, "window.held.length === 2")
    await give(page)
    await until(page, f"{_RUNNING}.length === 1")
    shown = "document.getElementById('video').srcObject"
    await until(page, f"{shown} === {_RUNNING}[0]")
    assert await page.evaluate(f"{shown}.getVideoTracks()[0].getSettings().deviceId") == "one"
    await hold(page, "camera")
    await page.select_option("#cameras", "two")
    await until(page, "window.held.length === 1")
    await page.click("#stop")
    await give(page)
    await until(page, f"{_RUNNING}.length === 0")
    await expect(page.locator("#start")).to_be_visible()
    await expect(page.locator("#notice")).to_be_hidden()


async def test_the_controls_stay_while_another_camera_is_asked_for(open_page: OpenPage) -> None:
    """Though the one before was still being listed: what it has to say comes too late to take them away."""
    page = await asked_for_another(open_page, "list")
    await page.evaluate("window.lists = window.held.splice(0)")
    await hold(page, "camera")
    await page.select_option("#cameras", "one")
    await until(page, "window.held.length === 1")
    await page.evaluate("window.lists.forEach((give) => give())")
    await page.evaluate("new Promise((resolve) => setTimeout(resolve))")  # all that follows the list is done
    assert await page.input_value("#cameras") == "one"
    await page.click("#stop")
    await expect(page.locator("#start")).to_be_focused()


async def test_one_of_several_cameras_can_be_chosen(open_page: OpenPage, tmp_path: Path) -> None:
    """Each is offered by its name; the other one runs once it is chosen, and its frames are answered too."""
    async with launch(tmp_path, cameras=2) as browser:
        page = (await open_page(browser=browser, before=count_replies)).page
        running = "document.querySelector('#video').srcObject?.getVideoTracks()[0].label"
        await page.click("#start")
        await expect(page.locator("#cameras option")).to_have_count(2)
        names = await page.locator("#cameras option").all_text_contents()
        assert len(set(names)) == 2
        first = await page.evaluate(running)
        (other,) = set(names) - {first}
        await page.select_option("#cameras", label=other)
        await until(page, f"{running} === {other!r}")
        await expect(page.locator("#cameras option:checked")).to_have_text(other)
        await page.evaluate("window.replies = {}")
        await until(page, "Object.keys(window.replies).length > 0")
        await page.context.close()


async def test_a_choice_that_fails_gives_the_keyboard_back(open_page: OpenPage, tmp_path: Path) -> None:
    """The list that the camera was chosen from goes: the start button has the keyboard then."""
    async with launch(tmp_path, cameras=2) as browser:
        page = (await open_page(browser=browser)).page
        await page.click("#start")
        await expect(page.locator("#pause")).to_be_focused()
        busy = "async () => { throw new DOMException('taken', 'NotReadableError'); }"
        await page.evaluate(f"() => {{ navigator.mediaDevices.getUserMedia = {busy}; }}")
        await page.focus("#cameras")
        await page.select_option("#cameras", index=0)
        await expect(page.locator("#start")).to_be_focused()
        await page.context.close()


async def test_a_single_camera_is_no_choice(open_page: OpenPage) -> None:
    """There is nothing to choose, and nothing is offered."""
    page = (await open_page()).page
    await page.click("#start")
    await expect(page.locator("#stop")).to_be_visible()
    await expect(page.locator("#cameras")).to_be_hidden()
