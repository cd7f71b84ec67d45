"""What comes, or is refused, after the person at the page has gone on: it takes nothing of what that has brought."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
import pytest
from playwright.async_api import FilePayload, Page, WebSocketRoute, expect

from tests.web.browser import ASTRONAUT
from tests.web.conftest import TIMEOUT_MS, Message, OpenPage, between, until, until_true
from tests.web.test_history import stored
from tests.web.test_live import count_replies
from tests.web.test_photos import wall

pytestmark = pytest.mark.asyncio(loop_scope="session")
expect.set_options(timeout=TIMEOUT_MS)

LATE: Message = {"type": "error", "code": "deadline_exceeded", "message": "late"}


class Held:
    """Requests that nobody answers until the test does, of those that `holds` is true of; others get what `instead`
    has for them, or go to the server."""

    def __init__(
        self,
        holds: Callable[[Message], bool],
        instead: Callable[[Message], Message | None] = lambda _: None,
    ) -> None:
        self.holds = holds
        self._instead = instead
        self._requests: list[tuple[WebSocketRoute, Message]] = []

    def __call__(self, route: WebSocketRoute, request: Message) -> bool:
        """Whether the server gets it, for `between`."""
        if self.holds(request):
            self._requests.append((route, request))
            return False
        reply = self._instead(request)
        if reply is not None:
            route.send(orjson.dumps({"id": request["id"]} | reply).decode())
        return reply is None

    async def wait(self, count: int = 1) -> None:
        """Until so many are held."""
        await until_true(lambda: len(self._requests) >= count)

    def answer(self, reply: Message) -> None:
        """The oldest of them."""
        route, request = self._requests.pop(0)
        route.send(orjson.dumps({"id": request["id"]} | reply).decode())


def by_window(request: Message) -> Message | None:
    """What is stored; statistics count as many as their window has seconds, which says whose they are."""
    reply = stored(request)
    if reply is not None and request["command"] == "stats":
        reply["count"] = request["window_s"]
    return reply


async def seen_to(page: Page, code: str) -> None:
    """Until the page, which counts its replies, has done all that follows from its first error of this code."""
    await until(page, f"window.replies.{code} === 1")
    await page.evaluate("new Promise((resolve) => setTimeout(resolve))")


async def test_an_answer_that_was_overtaken_changes_nothing(open_page: OpenPage) -> None:
    """Neither the failure of a window that is no longer chosen, nor statistics that are older than what is shown."""
    held = Held(lambda request: request.get("window_s") == 604_800, by_window)

    async def before(page: Page) -> None:
        await between(request=held)(page)
        await count_replies(page)

    page = (await open_page(before=before)).page
    await page.click("#tab-history")
    await expect(page.locator("#stats-count")).to_have_text("3,600")
    await page.check("#window input[value='604800']")
    await held.wait()
    await page.check("#window input[value='600']")
    await expect(page.locator("#stats-count")).to_have_text("600")
    held.answer(LATE)
    await seen_to(page, "deadline_exceeded")
    await expect(page.locator("#history-empty")).to_be_hidden()
    await expect(page.locator("#history-content")).to_be_visible()
    held.holds = lambda request: request["command"] == "stats"
    await page.click("#refresh")
    await held.wait()
    held.holds = lambda _: False
    await page.evaluate("window.replies = {}")
    await page.click("#refresh")
    await until(page, "window.replies.history === 1")
    older = by_window({"command": "stats", "window_s": 600})
    assert older is not None
    held.answer(older | {"count": 7})
    await until(page, "window.replies.stats === 2")
    await page.evaluate("new Promise((resolve) => setTimeout(resolve))")
    await page.select_option("#language", "es")  # which shows all that is known
    await expect(page.locator("#stats-count")).to_have_text("600")


async def test_more_of_a_list_that_was_asked_for_anew_stands_in_nobody_s_way(open_page: OpenPage) -> None:
    """The new list's own button works at once, and the failure of what was asked for before is not the new list's."""
    held = Held(lambda request: "cursor" in request, stored)

    async def before(page: Page) -> None:
        await between(request=held)(page)
        await count_replies(page)

    page = (await open_page(before=before)).page
    await page.click("#tab-history")
    await expect(page.locator("#latest tr")).to_have_count(20)
    await page.click("#more")
    await held.wait()
    await page.click("#refresh")
    await until(page, "window.replies.history === 2")
    await page.click("#more")
    await held.wait(2)
    held.answer(LATE)
    await seen_to(page, "deadline_exceeded")
    await expect(page.locator("#history-content")).to_be_visible()
    following = stored({"command": "history", "cursor": "20", "limit": 20})
    assert following is not None
    held.answer(following)
    await expect(page.locator("#latest tr")).to_have_count(40)


async def test_who_asks_for_more_and_is_refused_keeps_the_keyboard(open_page: OpenPage) -> None:
    """The table goes for the error's text, and the button with it."""
    held = Held(lambda request: "cursor" in request, stored)
    page = (await open_page(before=between(request=held))).page
    await page.click("#tab-history")
    await expect(page.locator("#more")).to_be_visible()
    await page.focus("#more")
    await page.keyboard.press("Enter")
    await held.wait()
    held.answer(LATE)
    await expect(page.locator("#history-empty")).to_have_text("The server took too long to answer.")
    await expect(page.locator("#refresh")).to_be_focused()


async def test_who_reads_on_is_not_brought_back(open_page: OpenPage) -> None:
    """What is still on its way into the database is looked for again by itself only while nobody asks for more."""
    asked: list[str] = []

    def pending(request: Message) -> Message | None:
        asked.append(request["command"])
        reply = stored(request)
        return reply and reply | {"pending": 1}

    async def before(page: Page) -> None:
        await page.clock.install(time=0)
        await between(request=Held(lambda _: False, pending))(page)

    page = (await open_page(before=before)).page
    await page.clock.pause_at(10_000)
    await page.click("#tab-history")
    await expect(page.locator("#latest tr")).to_have_count(20)
    await page.click("#more")
    await expect(page.locator("#latest tr")).to_have_count(40)
    await page.clock.run_for(1_000)
    await page.click("#refresh")
    await expect(page.locator("#latest tr")).to_have_count(20)
    assert asked.count("stats") == 2
    await page.clock.run_for(1_000)
    await until_true(lambda: asked.count("stats") >= 3)


async def test_photos_that_are_looked_at_are_not_taken_away(open_page: OpenPage) -> None:
    """As little as those that wait: there is room for others once they are done, and the oldest of these go first."""
    portrait = ASTRONAUT.with_name("astronaut_face.jpg").read_bytes()

    def photos(count: int, name: str) -> list[FilePayload]:
        return [
            {"name": f"{name}_{number:02}.jpg", "mimeType": "image/jpeg", "buffer": portrait}
            for number in range(count)
        ]

    held = Held(lambda request: request["command"] == "predict")
    page = (await open_page(before=between(request=held))).page
    await page.click("#tab-photos")
    await page.set_input_files("#files", photos(60, "first"))
    await held.wait(4)
    await page.set_input_files("#files", photos(4, "later"))
    await expect(page.locator("#notice-text")).to_contain_text("from later_00.jpg on")
    names = await page.locator(".photo .name").all_text_contents()
    assert names == [f"first_{number:02}.jpg" for number in reversed(range(60))]
    held.answer(LATE)
    await held.wait(4)
    done = await page.locator(".photo", has=page.locator(".problem")).locator(".name").text_content()
    await page.set_input_files("#files", photos(2, "next"))
    await expect(page.locator("#notice-text")).to_contain_text("from next_01.jpg on")
    now = await page.locator(".photo .name").all_text_contents()
    assert now == ["next_00.jpg", *(name for name in names if name != done)]


async def test_a_photo_that_is_asked_for_again_is_asked_for_as_before(open_page: OpenPage) -> None:
    """Where the whole photo was to be taken as a face, and a token was wanted first, so it is with the token."""

    def guarded(request: Message) -> Message | None:
        if request.get("detect") == "never" and request.get("token") != "secret":
            return {"type": "error", "code": "unauthorized", "message": "no token"}
        return None

    page = (await open_page(before=between(request=Held(lambda _: False, guarded)))).page
    await page.click("#tab-photos")
    await page.set_input_files("#files", [wall()])
    await page.get_by_role("button", name="Take the whole photo as one face").click()
    await expect(page.locator("#token-input")).to_be_focused()
    await page.keyboard.type("secret")
    await page.keyboard.press("Enter")
    await expect(page.locator(".photo")).to_contain_text("the whole photo, taken as one face")


async def test_another_width_takes_the_keyboard_from_no_photo(open_page: OpenPage) -> None:
    """As of a phone that is turned, or of a page that has got a scroll bar: the photo is drawn anew, and no more."""
    page = (await open_page()).page
    await page.click("#tab-photos")
    await page.set_input_files("#files", [wall()])
    button = page.get_by_role("button", name="Take the whole photo as one face")
    await button.focus()
    await page.set_viewport_size({"width": 340, "height": 700})
    canvas = "document.querySelector('.photo canvas')"
    await until(page, f"{canvas}.clientWidth < 330 && {canvas}.width === {canvas}.clientWidth")
    await expect(button).to_be_focused()


@pytest.mark.parametrize("away", [False, True])
async def test_a_connection_that_did_not_become_a_camera_s_is_asked_again(
    away: bool, open_page: OpenPage
) -> None:
    """By itself; and what is found is shown, also where the live view was left and come back to meanwhile."""
    held = Held(lambda request: request.get("stream") is True)
    page = (await open_page(before=between(request=held))).page
    await page.click("#start")
    await held.wait()
    held.holds = lambda _: False
    if away:
        await page.click("#tab-photos")
        await page.click("#tab-live")
    held.answer(LATE)
    await expect(page.locator("#faces h3")).to_contain_text("Happy")


async def test_a_connection_that_may_be_a_camera_s_is_made_one_for_photos(open_page: OpenPage) -> None:
    """Where the server agreed to the camera too late, it has all the same: of photos only the newest would count."""
    sent: list[str] = []
    agreed: set[Any] = set()

    def note(_: WebSocketRoute, request: Message) -> bool:
        if request.get("stream") is True:
            agreed.add(request["id"])
        if request.get("stream") is False or "detect" in request:
            sent.append(request["command"])
        return True

    def late(reply: Message) -> Message:
        return {"id": reply["id"]} | LATE if reply.get("id") in agreed else reply

    async def before(page: Page) -> None:
        await between(request=note, reply=late)(page)
        await count_replies(page)

    page = (await open_page(before=before)).page
    await page.click("#start")
    await until(page, "window.replies.deadline_exceeded === 1")
    sent.clear()
    await page.click("#tab-photos")
    await page.set_input_files("#files", [ASTRONAUT])
    await expect(page.locator(".photo h3")).to_contain_text("Happy")
    assert sent[-2:] == ["configure", "predict"]
