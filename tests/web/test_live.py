"""The live view, in a real browser whose camera plays a face, against the real service."""

from __future__ import annotations

import asyncio
import re

import orjson
import pytest
from playwright.async_api import Page, WebSocketRoute, expect

from tests.client.harness import ServiceProcess
from tests.web.browser import BLANK_CAMERA
from tests.web.conftest import TIMEOUT_MS, Message, OpenPage, between, until, until_true

pytestmark = pytest.mark.asyncio(loop_scope="session")
expect.set_options(timeout=TIMEOUT_MS)

# Counts pixels of the happy box's colour (#ccbb44), and says where they are, in shares of the canvas.
_HAPPY_PIXELS = """() => {
  const canvas = document.getElementById("boxes");
  const { width, height } = canvas;
  const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
  const found = { count: 0, left: 1, right: 0, top: 1, bottom: 0 };
  for (let at = 0; at < data.length; at += 4) {
    if (Math.hypot(data[at] - 204, data[at + 1] - 187, data[at + 2] - 68) > 12 || data[at + 3] < 250) continue;
    const x = ((at / 4) % width) / width, y = Math.floor(at / 4 / width) / height;
    found.count++;
    found.left = Math.min(found.left, x);
    found.right = Math.max(found.right, x);
    found.top = Math.min(found.top, y);
    found.bottom = Math.max(found.bottom, y);
  }
  return found;
}"""


# Counts what comes over the page's WebSocket, by the reply's type, in `window.replies`.
_COUNT_REPLIES = """
  window.replies = {};
  const Native = WebSocket;
  window.WebSocket = class extends Native {
    constructor(...given) {
      super(...given);
      this.addEventListener("message", ({ data }) => {
        const { type, code } = JSON.parse(data);
        window.replies[code ?? type] = (window.replies[code ?? type] ?? 0) + 1;
      });
    }
  };
"""


async def count_replies(page: Page) -> None:
    """From its start on, the page counts its replies in `window.replies`."""
    await page.add_init_script(_COUNT_REPLIES)


async def test_the_camera_s_face_is_framed_and_its_emotion_shown(open_page: OpenPage) -> None:
    """The box lies round the face; bars, read-outs and the session's timeline are filled."""
    page = (await open_page()).page
    await expect(page.locator("#status")).to_contain_text("Connected · ")
    await page.click("#start")
    await expect(page.locator("#faces h3")).to_contain_text("Happy")
    await expect(page.locator("#face-count")).to_have_text("1")
    await expect(page.locator("#faces .bars .number")).to_have_count(7)
    for readout, unit in (("#round-trip", " ms"), ("#server-time", " ms"), ("#rate", "/s")):
        await expect(page.locator(readout)).to_contain_text(unit)
    await expect(page.locator("#timeline")).to_have_attribute("aria-label", re.compile("Happy"))
    found = await page.evaluate(_HAPPY_PIXELS)
    assert found["count"] > 300
    # Mirrored, the face is right of the middle, in the upper half.
    assert 0.4 < found["left"] < found["right"] < 0.8
    assert found["bottom"] < 0.6


async def test_a_pause_stops_the_frames_and_a_stop_the_camera(open_page: OpenPage) -> None:
    """Paused, nothing more is sent; resumed, it goes on; stopped, the page is as at the start."""
    page = (await open_page(before=count_replies)).page
    await page.click("#start")
    await until(page, "window.replies.prediction > 1")
    await page.click("#pause")
    await expect(page.locator("#hint")).to_have_text("Paused")
    await expect(page.locator("#rate")).not_to_contain_text("/s")  # two seconds without an answer
    assert (await page.evaluate(_HAPPY_PIXELS))["count"] > 0  # of the picture that is still there
    answered = await page.evaluate("window.replies.prediction")
    await expect(page.locator("#pause")).to_have_text("Resume")
    await page.click("#pause")
    await until(page, f"window.replies.prediction > {answered}")
    await page.click("#stop")
    await expect(page.locator("#start")).to_be_focused()
    assert await page.evaluate("document.getElementById('video').srcObject") is None
    assert (await page.evaluate(_HAPPY_PIXELS))["count"] == 0


async def test_a_paused_picture_speaks_the_language_that_is_switched_to(open_page: OpenPage) -> None:
    """The faces' names and the labels on the boxes change with it, also where the switch was on another tab."""
    page = (await open_page()).page
    await page.click("#start")
    await expect(page.locator("#faces h3")).to_contain_text("Happy")
    await page.click("#pause")
    await expect(page.locator("#rate")).not_to_contain_text("/s")  # the last answer has come
    drawn = "document.getElementById('boxes').toDataURL()"
    english = await page.evaluate(drawn)
    await page.select_option("#language", "es")
    await expect(page.locator("#faces h3")).to_contain_text("Alegría")
    spanish = await page.evaluate(drawn)
    assert spanish != english
    await page.click("#tab-photos")
    await page.select_option("#language", "en")
    await page.click("#tab-live")
    await expect(page.locator("#faces h3")).to_contain_text("Happy")
    assert await page.evaluate(drawn) == english
    await expect(page.locator("#hint")).to_have_text("Paused")


async def test_a_page_that_nobody_looks_at_sends_nothing(open_page: OpenPage) -> None:
    """On another tab of the page the frames stop; back on the live view they go on."""
    page = (await open_page(before=count_replies)).page
    await page.click("#start")
    await until(page, "window.replies.prediction > 1")
    await page.click("#tab-history")
    await until(page, "window.replies.stats > 0")
    answered = await page.evaluate("window.replies.prediction")
    for _ in range(6):  # each as long as a frame and its answer, but for two that may have been on their way
        asked = await page.evaluate("window.replies.stats")
        await page.click("#refresh")
        await until(page, f"window.replies.stats > {asked}")
    assert await page.evaluate("window.replies.prediction") <= answered + 2
    await page.click("#tab-live")
    await until(page, f"window.replies.prediction > {answered + 2}")


async def test_a_phone_that_is_turned_has_its_whole_width(open_page: OpenPage) -> None:
    """The picture that was wide, and is high now, is not shown as a strip in the middle of a wide stage."""
    turning = """
      navigator.mediaDevices.getUserMedia = async () => {
        const canvas = document.createElement("canvas");
        window.turn = (width, height) => Object.assign(canvas, { width, height });
        window.turn(640, 360);
        setInterval(() => canvas.getContext("2d").fillRect(0, 0, canvas.width, canvas.height), 50);
        return canvas.captureStream(20);
      };
    """

    async def before(page: Page) -> None:
        await page.add_init_script(turning)

    page = (await open_page(before=before, viewport={"width": 360, "height": 740})).page
    await page.click("#start")
    stage = page.locator("#stage")
    await expect(stage).to_have_css("aspect-ratio", "640 / 360")
    await page.evaluate("window.turn(360, 640)")
    await expect(stage).to_have_css("aspect-ratio", "360 / 640")
    await page.click("#stop")
    await expect(stage).to_have_css("aspect-ratio", "4 / 3")


async def test_a_view_without_a_face_says_so(open_page: OpenPage) -> None:
    """The hint is over the picture, and no face is listed."""

    async def blank(page: Page) -> None:
        await page.add_init_script(BLANK_CAMERA)

    page = (await open_page(before=blank)).page
    await page.click("#start")
    await expect(page.locator("#hint")).to_have_text("No face in view")
    await expect(page.locator("#face-count")).to_have_text("0")


async def test_a_refused_camera_is_explained(open_page: OpenPage) -> None:
    """Without permission the page says how to give it, until the camera runs; the keyboard can start it again."""
    page = (await open_page(permissions=[])).page
    await page.focus("#start")
    await page.keyboard.press("Enter")
    await expect(page.locator("#notice")).to_contain_text("The camera was refused.")
    await expect(page.locator("#start")).to_be_focused()
    await page.context.grant_permissions(["camera"])
    await page.keyboard.press("Enter")
    await expect(page.locator("#faces h3")).to_contain_text("Happy")
    await expect(page.locator("#notice")).to_be_hidden()


async def test_a_camera_that_goes_away_takes_the_keyboard_from_nowhere(open_page: OpenPage) -> None:
    """Its loss is explained. The start button has the keyboard then only where the controls that go had it."""
    page = (await open_page()).page
    for before, after in (("language", "language"), ("pause", "start")):
        await page.context.grant_permissions(["camera"])
        await page.click("#start")
        await expect(page.locator("#pause")).to_be_focused()
        await page.focus(f"#{before}")
        await page.context.clear_permissions()
        await expect(page.locator("#notice")).to_contain_text("The camera was disconnected.")
        await expect(page.locator("#start")).to_be_visible()
        await expect(page.locator(f"#{after}")).to_be_focused()


async def test_the_page_outlives_a_restart_of_the_server(
    open_page: OpenPage, web_service: ServiceProcess
) -> None:
    """It says that the server is gone, comes back by itself, and the live view goes on."""
    visit = await open_page(before=count_replies)
    page = visit.page
    await page.click("#start")
    await until(page, "window.replies.prediction > 1")
    web_service.stop()
    await expect(page.locator("#status")).to_have_attribute("data-state", re.compile("reconnecting|gone"))
    answered = await page.evaluate("window.replies.prediction")
    web_service.start()
    await expect(page.locator("#status")).to_have_attribute("data-state", "ready")
    await until(page, f"window.replies.prediction > {answered}")
    visit.forgive_failed_attempts()


async def test_a_server_that_leaves_is_not_said_to_be_connected(open_page: OpenPage) -> None:
    """It says that it shuts down, and takes no connections until its successor is there: then the view goes on."""
    leaving = here = False

    async def leave(route: WebSocketRoute) -> None:
        if leaving and not here:
            await route.close(code=1013)
            return
        server = route.connect_to_server()

        def to_page(message: str | bytes) -> None:
            reply = orjson.loads(message)
            if leaving and not here and reply["type"] == "prediction":
                error = {"type": "error", "code": "shutting_down", "message": "bye", "id": reply["id"]}
                message = orjson.dumps(error).decode()
            route.send(message)

        server.on_message(to_page)

    async def before(page: Page) -> None:
        await page.route_web_socket("**/ws", leave)

    page = (await open_page(before=before)).page
    await page.click("#start")
    await expect(page.locator("#rate")).to_contain_text("/s")
    leaving = True
    await expect(page.locator("#status")).to_have_attribute("data-state", re.compile("reconnecting|gone"))
    await expect(page.locator("#rate")).not_to_contain_text("/s")
    assert (await page.evaluate(_HAPPY_PIXELS))["count"] == 0  # of a face that may have moved on
    await expect(page.locator("#faces h3")).to_have_count(0)
    here = True
    await expect(page.locator("#status")).to_have_attribute("data-state", "ready")
    await expect(page.locator("#rate")).to_contain_text("/s")


async def test_a_fault_of_every_frame_is_said_once_and_not_asked_for_without_a_pause(
    open_page: OpenPage,
) -> None:
    """Not with each of them; after one, or two that were on their way together, the server has a second's rest."""
    failed: list[float] = []

    def fail(reply: Message) -> Message:
        if reply["type"] != "prediction":
            return reply
        failed.append(asyncio.get_running_loop().time())
        return {"type": "error", "code": "internal", "message": "a fault", "id": reply["id"]}

    page = (await open_page(before=between(reply=fail))).page
    await page.evaluate(
        """() => {
          window.said = 0;
          new MutationObserver(() => window.said++)
            .observe(document.getElementById("notice-text"), { childList: true });
        }"""
    )
    await page.click("#start")
    await expect(page.locator("#notice-text")).to_have_text("That did not work: a fault")
    await until_true(lambda: len(failed) >= 5)
    assert await page.evaluate("window.said") == 1
    assert failed[4] - failed[0] > 1.5


async def test_an_overloaded_server_is_given_the_time_it_asks_for(open_page: OpenPage) -> None:
    """The page says that the server is busy, waits, and goes on by itself."""
    busy = True
    refused: list[float] = []

    def overloaded(reply: Message) -> Message:
        if reply["type"] != "prediction" or not busy:
            return reply
        refused.append(asyncio.get_running_loop().time())
        error = {"type": "error", "code": "overloaded", "message": "busy", "retry_after_ms": 4000}
        return error | {"id": reply["id"]}

    page = (await open_page(before=between(reply=overloaded))).page
    await page.click("#start")
    await expect(page.locator("#hint")).to_contain_text("The server is busy.")
    await until_true(lambda: len(refused) >= 3)
    busy = False
    await expect(page.locator("#faces h3")).to_contain_text("Happy")
    assert refused[2] - refused[0] > 3.9  # two may have been on their way together


async def test_a_second_frame_that_fails_makes_the_wait_no_shorter(open_page: OpenPage) -> None:
    """Of two that were on their way together the server, overloaded, may fail the second for another reason."""
    frames: list[tuple[int, float]] = []

    def request(route: WebSocketRoute, request: Message) -> bool:
        if request["command"] != "predict":
            return True
        frames.append((request["id"], asyncio.get_running_loop().time()))
        if len(frames) == 2:
            wait: Message = {"type": "error", "code": "overloaded", "message": "busy", "retry_after_ms": 4000}
            fault: Message = {"type": "error", "code": "internal", "message": "a fault"}
            for (id_, _), error in zip(frames, (wait, fault), strict=True):
                route.send(orjson.dumps(error | {"id": id_}).decode())
        return len(frames) > 2

    page = (await open_page(before=between(request=request))).page
    await page.click("#start")
    await expect(page.locator("#notice-text")).to_have_text("That did not work: a fault")
    await expect(page.locator("#hint")).to_contain_text("The server is busy.")
    await expect(page.locator("#faces h3")).to_contain_text("Happy")
    assert frames[2][1] - frames[1][1] > 3.9
