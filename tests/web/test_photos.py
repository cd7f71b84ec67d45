"""Photos that are chosen, dropped and pasted, in a real browser against the real service."""

from __future__ import annotations

import asyncio
import base64
import re
from pathlib import Path

import cv2
import numpy as np
import orjson
import pytest
from playwright.async_api import FilePayload, Page, WebSocketRoute, expect

from tests.client.harness import ServiceProcess
from tests.web.browser import ASTRONAUT
from tests.web.conftest import TIMEOUT_MS, Message, OpenPage, between, until, until_true
from tests.web.test_live import count_replies

pytestmark = pytest.mark.asyncio(loop_scope="session")
expect.set_options(timeout=TIMEOUT_MS)

# Fires an event that carries a file, as dropping or pasting one does.
_BRING = """([type, name, content]) => {
  const transfer = new DataTransfer();
  const bytes = Uint8Array.from(atob(content), (letter) => letter.codePointAt(0));
  transfer.items.add(new File([bytes], name, { type: "image/jpeg" }));
  const event = type === "paste"
    ? new ClipboardEvent("paste", { clipboardData: transfer })
    : new DragEvent("drop", { dataTransfer: transfer, cancelable: true });
  document.dispatchEvent(event);
}"""


def wall() -> FilePayload:
    """A photo without a face."""
    gray = np.full((300, 400), 128, np.uint8)
    return {"name": "wall.png", "mimeType": "image/png", "buffer": cv2.imencode(".png", gray)[1].tobytes()}


async def test_chosen_photos_show_their_emotions(open_page: OpenPage) -> None:
    """Several at once; each has its face framed, its bars, and the time that it took."""
    page = (await open_page()).page
    await page.click("#tab-photos")
    await page.set_input_files("#files", [ASTRONAUT, ASTRONAUT.with_name("astronaut_face.jpg")])
    photos = page.locator(".photo")
    await expect(photos).to_have_count(2)
    for photo in await photos.all():
        await expect(photo.locator("h3")).to_contain_text("Happy")
        await expect(photo.locator(".title")).to_contain_text(" ms")
        await expect(photo.locator(".bars .number")).to_have_count(7)
    portrait = page.get_by_role("img", name="astronaut.jpg: Happy")
    has_box = """(canvas) => {
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      let count = 0;
      for (let at = 0; at < data.length; at += 4) {
        if (Math.hypot(data[at] - 204, data[at + 1] - 187, data[at + 2] - 68) < 8) count++;
      }
      return count > 200;
    }"""
    assert await portrait.evaluate(has_box)


async def test_a_file_s_long_name_hides_no_figures(open_page: OpenPage) -> None:
    """It is cut short; the time and the percentages are within the card, which on a phone is filled by the photo."""
    page = (await open_page(viewport={"width": 390, "height": 740})).page
    await page.click("#tab-photos")
    portrait: FilePayload = {
        "name": f"{'long' * 20}.jpg",
        "mimeType": "image/jpeg",
        "buffer": ASTRONAUT.read_bytes(),
    }
    await page.set_input_files("#files", [portrait])
    await expect(page.locator(".photo .bars .number")).to_have_count(7)
    edges = "(part) => { const { left, right } = part.getBoundingClientRect(); return [left, right]; }"
    left, right = await page.locator(".photo").evaluate(edges)
    for figure in await page.locator(".photo .number, .photo .title .muted").all():
        assert (await figure.evaluate(edges))[1] < right, await figure.text_content()
        assert await figure.evaluate("(part) => part.offsetHeight") < 30  # one line
    assert await page.locator(".photo canvas").evaluate(edges) == [left + 1, right - 1]  # the border


@pytest.mark.parametrize("way", ["drop", "paste"])
async def test_a_photo_can_be_brought_from_anywhere(way: str, open_page: OpenPage) -> None:
    """Dropped or pasted while the live view is open, it is shown among the photos."""
    page = (await open_page()).page
    content = base64.b64encode(ASTRONAUT.read_bytes()).decode()
    await page.evaluate(_BRING, [way, "brought.jpg", content])
    await expect(page.locator("#tab-photos")).to_have_attribute("aria-selected", "true")
    await expect(page.locator(".photo h3")).to_contain_text("Happy")


async def test_a_photo_is_seen_while_its_answer_is_waited_for(open_page: OpenPage) -> None:
    """Over a slow line that is long, and a name alone does not say which one it is."""
    page = (await open_page(before=between(request=lambda _, request: request["command"] != "predict"))).page
    await page.click("#tab-photos")
    await page.set_input_files("#files", [ASTRONAUT])
    await expect(page.get_by_role("img", name="astronaut.jpg: Looking…")).to_be_visible()
    await expect(page.locator(".photo figcaption")).to_contain_text("Looking…")


async def test_a_photo_without_a_face_can_be_taken_whole(open_page: OpenPage) -> None:
    """The error is beside the photo, with a button that takes the whole image as a face; both outcomes are read out."""
    page = (await open_page()).page
    await page.click("#tab-photos")
    await page.set_input_files("#files", [wall()])
    await expect(page.locator(".problem")).to_have_text("No face was found in this photo.")
    await expect(page.locator("#announcer")).to_have_text("wall.png: No face was found in this photo.")
    await page.get_by_role("button", name="Take the whole photo as one face").click()
    await expect(page.locator(".photo")).to_contain_text("the whole photo, taken as one face")
    await expect(page.locator("#announcer")).to_have_text(re.compile(r"^wall\.png: \w+, \d+%$"))
    await expect(page.locator(".photo .bars .number")).to_have_count(7)


async def test_the_keyboard_stays_at_its_photo(open_page: OpenPage) -> None:
    """Neither another photo's answer nor the use of a photo's button takes the focus away from it."""
    page = (await open_page()).page
    await page.click("#tab-photos")
    await page.set_input_files("#files", [wall()])
    button = page.get_by_role("button", name="Take the whole photo as one face")
    await button.focus()
    await page.set_input_files("#files", [ASTRONAUT])
    await expect(page.locator(".photo h3")).to_contain_text("Happy")
    await expect(button).to_be_focused()
    await page.keyboard.press("Enter")
    photo = page.locator(".photo", has_text="wall.png")
    await expect(photo).to_contain_text("the whole photo, taken as one face")
    await expect(photo.locator(":focus")).to_contain_text("the whole photo, taken as one face")


async def test_a_file_that_is_no_image_is_explained(open_page: OpenPage) -> None:
    """It does not disturb the photo beside it; a JPEG that was cut off is not told to be a JPEG."""
    page = (await open_page()).page
    await page.click("#tab-photos")
    cut: FilePayload = {
        "name": "cut.jpg",
        "mimeType": "image/jpeg",
        "buffer": ASTRONAUT.read_bytes()[:20_000],
    }
    text: FilePayload = {"name": "notes.jpg", "mimeType": "image/jpeg", "buffer": b"not an image"}
    portrait: FilePayload = {
        "name": "astronaut.jpg",
        "mimeType": "image/jpeg",
        "buffer": ASTRONAUT.read_bytes(),
    }
    await page.set_input_files("#files", [text, cut, portrait])
    problem = "This image cannot be read: it is cut off, damaged or tiny, or neither JPEG"
    await expect(page.locator(".problem")).to_contain_text([problem, problem])
    await expect(page.locator(".photo h3")).to_contain_text("Happy")


async def test_a_folder_that_is_dropped_is_explained(open_page: OpenPage, tmp_path: Path) -> None:
    """In the page's words: the browser's own say that a file or directory could not be found."""
    (tmp_path / "holidays").mkdir()
    page = (await open_page()).page
    devtools = await page.context.new_cdp_session(page)
    dragged = {"items": [], "files": [str(tmp_path / "holidays")], "dragOperationsMask": 1}
    for event in ("dragEnter", "dragOver", "drop"):
        await devtools.send("Input.dispatchDragEvent", {"type": event, "x": 300, "y": 300, "data": dragged})
    await expect(page.locator(".photo .name")).to_have_text("holidays")
    await expect(page.locator(".problem")).to_contain_text("of a folder, choose the photos in it")


async def test_of_more_photos_than_are_shown_the_rest_is_named(open_page: OpenPage) -> None:
    """None is looked at and not shown, and the next ones take the first ones' places, and the notice's."""
    portrait = ASTRONAUT.with_name("astronaut_face.jpg").read_bytes()
    photos: list[FilePayload] = [
        {"name": f"IMG_{number:03}.jpg", "mimeType": "image/jpeg", "buffer": portrait} for number in range(70)
    ]
    page = (await open_page()).page
    await page.click("#tab-photos")
    await page.set_input_files("#files", photos)
    await expect(page.locator("#notice-text")).to_have_text(
        "The page shows 60 photos. Add the others once these are done, from IMG_060.jpg on."
    )
    await expect(page.locator(".photo h3")).to_have_count(60)
    assert set(await page.locator(".photo .name").all_text_contents()) == {
        photo["name"] for photo in photos[:60]
    }
    await page.set_input_files("#files", photos[60:])
    await expect(page.locator("#notice")).to_be_hidden()
    await expect(page.locator(".photo .name").first).to_have_text("IMG_069.jpg")
    await expect(page.locator(".photo")).to_have_count(60)


async def test_large_photos_are_not_kept_in_memory(open_page: OpenPage) -> None:
    """Of twelve megapixels only what is drawn is kept; the face is framed where it is."""
    keep = """
      window.images = [];
      const decode = createImageBitmap;
      window.createImageBitmap = async (...given) => {
        const image = await decode(...given);
        window.images.push(image);
        return image;
      };
    """

    async def before(page: Page) -> None:
        await page.add_init_script(keep)

    portrait = cv2.imread(str(ASTRONAUT))
    assert portrait is not None
    content = cv2.imencode(".jpg", cv2.resize(portrait, (3500, 3500)))[1].tobytes()
    large: FilePayload = {"name": "large.jpg", "mimeType": "image/jpeg", "buffer": content}
    page = (await open_page(before=before)).page
    await page.click("#tab-photos")
    await page.set_input_files("#files", [large])
    await expect(page.locator(".photo h3")).to_contain_text("Happy")
    # One that is closed is of no size.
    kept = await page.evaluate("window.images.map(({ width, height }) => width * height)")
    assert 0 < sum(kept) <= 1024 * 1024
    middle = await page.locator(".photo canvas").evaluate(
        """(canvas) => {
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          let [sum, count] = [0, 0];
          for (let at = 0; at < data.length; at += 4) {
            if (Math.hypot(data[at] - 204, data[at + 1] - 187, data[at + 2] - 68) > 8) continue;
            sum += Math.floor(at / 4 / canvas.width) / canvas.height;
            count++;
          }
          return sum / count;
        }"""
    )
    assert 0.1 < middle < 0.4


async def test_photos_are_done_before_the_camera_goes_on(open_page: OpenPage) -> None:
    """Back on the live view while photos wait: no frame goes between them, and then the connection is a camera's."""
    sent: list[str] = []
    last: list[tuple[WebSocketRoute, Message]] = []  # the photo that waits until the test has seen the hint

    def note(route: WebSocketRoute, request: Message) -> bool:
        if request["command"] == "configure":
            sent.append("camera" if request.get("stream") else "photos")
        elif request["command"] == "predict":
            sent.append("photo" if "detect" in request else "frame")
        if sent.count("photo") == 20 and not last:
            last.append((route, request))
            return False
        return True

    page = (await open_page(before=between(request=note))).page
    await page.click("#start")
    await expect(page.locator("#faces h3")).to_contain_text("Happy")
    await page.click("#tab-photos")
    await page.set_input_files("#files", [ASTRONAUT] * 20)
    await page.click("#tab-live")
    await expect(page.locator("#hint")).to_have_text("The photos first. The picture goes on in a moment.")
    await until_true(lambda: bool(last))
    [(route, request)] = last
    route.send(orjson.dumps({"type": "error", "code": "no_face", "id": request["id"]}).decode())
    await expect(page.locator("#hint")).to_be_hidden()
    frames = sent.count("frame")
    await until_true(lambda: sent.count("frame") > frames)
    assert sent.count("photo") == 20
    first = sent.index("photo")
    assert sent[first : first + 21] == ["photo"] * 20 + ["camera"]


async def test_photos_may_be_long_on_their_way(open_page: OpenPage) -> None:
    """Each has two minutes, of which its request tells: four of a phone's photos over a slow line take half of one.

    It has them also where the connection was a camera's, and the server is long in agreeing that it is one for photos.
    """
    deadlines: list[float] = []
    silent: asyncio.Future[tuple[WebSocketRoute, Message]] = asyncio.get_running_loop().create_future()

    def note(route: WebSocketRoute, request: Message) -> bool:
        if "detect" in request and request["command"] == "predict":
            deadlines.append(request["deadline_ms"])
        if request.get("stream") is False:
            silent.set_result((route, request))
            return False
        return True

    async def before(page: Page) -> None:
        await page.clock.install()
        await between(request=note)(page)
        await count_replies(page)

    page = (await open_page(before=before)).page
    await page.click("#tab-photos")
    await page.set_input_files("#files", [ASTRONAUT])
    await expect(page.locator(".photo h3")).to_contain_text("Happy")
    await page.click("#tab-live")
    await page.click("#start")
    await expect(page.locator("#faces h3")).to_contain_text("Happy")
    await page.set_input_files("#files", [ASTRONAUT])
    async with asyncio.timeout(TIMEOUT_MS / 1000):
        route, request = await silent
    await page.evaluate("window.replies.pong = 0")
    for pongs in range(6):  # 21 seconds, in which the server shows that it is there
        await page.clock.fast_forward(3_500)
        await until(page, f"window.replies.pong > {pongs}")
    route.send(orjson.dumps({"type": "configured", "configuration": {}, "id": request["id"]}).decode())
    await expect(page.locator(".photo h3")).to_contain_text(["Happy", "Happy"])
    assert len(deadlines) == 2
    assert min(deadlines) > 60_000


async def test_a_photo_that_found_no_server_is_looked_at_once_there_is_one(
    open_page: OpenPage, web_service: ServiceProcess
) -> None:
    """It says that the page tries again, and so it does: nobody has to bring the photo once more."""
    visit = await open_page()
    page = visit.page
    await page.click("#tab-photos")
    web_service.stop()
    await expect(page.locator("#status")).to_have_attribute("data-state", "gone")
    await page.set_input_files("#files", [ASTRONAUT])
    await expect(page.locator(".problem")).to_have_text(
        "The server cannot be reached. The page tries again by itself."
    )
    web_service.start()
    await expect(page.locator(".photo h3")).to_contain_text("Happy")
    visit.forgive_failed_attempts()
