"""History and statistics, in a real browser; the replies are those of docs/client.md's types."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from playwright.async_api import Page, WebSocketRoute, expect

from tests.client.harness import ServiceProcess
from tests.web.browser import ASTRONAUT
from tests.web.conftest import TIMEOUT_MS, Message, OpenPage, between, until_true

pytestmark = pytest.mark.asyncio(loop_scope="session")
expect.set_options(timeout=TIMEOUT_MS)

Answer = Callable[[Message], Message | None]


async def predict_and_look(page: Page) -> None:
    """Have a photo answered, and open the history."""
    await page.click("#tab-photos")
    await page.set_input_files("#files", [ASTRONAUT])
    await expect(page.locator(".photo").first.locator("h3")).to_contain_text("Happy")
    await page.click("#tab-history")


def answering(answer: Answer) -> Callable[[Page], Any]:
    """Answer the page's requests in the server's place; those for which `answer` gives None go to the server."""

    def request(route: WebSocketRoute, request: Message) -> bool:
        reply = answer(request)
        if reply is not None:
            route.send(orjson.dumps({"id": request["id"]} | reply).decode())
        return reply is None

    def reply(reply: Message) -> Message:
        if reply["type"] == "welcome":
            reply["commands"] |= {"history": "", "stats": ""}
        return reply

    return between(request=request, reply=reply)


def stored(request: dict[str, Any]) -> dict[str, Any] | None:
    """Stored predictions: 30 happy ones, a minute apart, then 10 sad ones."""
    now = datetime.now(UTC).replace(tzinfo=None)
    match request["command"]:
        case "stats":
            emotions = {
                "happy": {"count": 30, "mean_confidence": 0.9},
                "sad": {"count": 10, "mean_confidence": 0.6},
            }
            return {
                "type": "stats",
                "window_s": request["window_s"],
                "count": 40,
                "mean_confidence": 0.825,
                "emotions": emotions,
                "latency_ms": {"p50": 1.5, "p99": 12.0},
                "buckets": [{}, {"sad": 10}, {"happy": 30}],
            }
        case "history":
            start = int(request.get("cursor") or 0)
            stop = min(40, start + request["limit"])
            rows = [
                {
                    "prediction_id": f"{number}",
                    "timestamp": (now - timedelta(minutes=number)).isoformat(),
                    "emotion_name": "happy" if number < 30 else "sad",
                    "confidence": 0.9,
                }
                for number in range(start, stop)
            ]
            return {"type": "history", "predictions": rows, "next": str(stop) if stop < 40 else None}
    return None


async def test_history_and_statistics_are_shown(open_page: OpenPage) -> None:
    """Counts, mean confidence and latency as figures, shares as bars and over time, the latest predictions in pages;
    the button for more goes with the last of these, and the keyboard is at what that has brought."""
    page = (await open_page(before=answering(stored))).page
    await page.click("#tab-history")
    for id_, text in (("count", "40"), ("confidence", "83%"), ("p50", "1.5 ms"), ("p99", "12 ms")):
        await expect(page.locator(f"#stats-{id_}")).to_have_text(text)
    rows = page.locator("#shares tr")
    await expect(rows.nth(0)).to_contain_text("Happy")
    await expect(rows.nth(0)).to_contain_text("75%")
    await expect(rows.nth(1)).to_contain_text("Sad")
    for shown in (".swatch", ".bar"):
        box = await rows.nth(0).locator(shown).bounding_box()
        assert box is not None
        assert box["width"] > 8
        assert box["height"] > 8
    colours = await page.locator("#over-time").evaluate(
        """(canvas) => {
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          const seen = new Set();
          for (let at = 0; at < data.length; at += 4) if (data[at + 3] === 255) {
            seen.add([data[at], data[at + 1], data[at + 2]].join());
          }
          return [...seen];
        }"""
    )
    assert {"204,187,68", "68,119,170"} <= set(colours)
    await expect(page.locator("#latest tr")).to_have_count(20)
    await page.focus("#more")
    await page.keyboard.press("Enter")
    await expect(page.locator("#latest tr")).to_have_count(40)
    await expect(page.locator("#more")).to_be_hidden()
    await expect(page.locator("#latest tr").nth(20)).to_be_focused()


async def test_more_that_is_pressed_twice_is_one_page(open_page: OpenPage) -> None:
    """A double click asks for the page that follows once, and shows nothing twice."""
    cursors: list[str | None] = []

    def in_small_pages(request: dict[str, Any]) -> dict[str, Any] | None:
        if request["command"] == "history":
            cursors.append(request.get("cursor"))
            request["limit"] = 8
        return stored(request)

    page = (await open_page(before=answering(in_small_pages))).page
    await page.click("#tab-history")
    await expect(page.locator("#latest tr")).to_have_count(8)
    await page.locator("#more").evaluate("(button) => { button.click(); button.click(); }")
    await expect(page.locator("#latest tr")).to_have_count(16)
    await page.click("#more")
    await expect(page.locator("#latest tr")).to_have_count(24)
    assert cursors == [None, "8", "16"]


@pytest.mark.parametrize(("refreshes", "follows"), [(1, True), (1, False), (2, True)])
async def test_more_that_is_pressed_during_a_refresh_is_brought_after_it(
    open_page: OpenPage, refreshes: int, follows: bool
) -> None:
    """It is what follows the list that is refreshed last, and nothing where nothing follows that any more."""
    cursors: list[str | None] = []
    held: list[tuple[WebSocketRoute, Message]] = []

    def request(route: WebSocketRoute, request: Message) -> bool:
        if request["command"] == "history":
            cursors.append(request.get("cursor"))
            if 1 < len(cursors) <= 1 + refreshes:
                held.append((route, request))
                return False
        return answer(route, request)

    def answer(route: WebSocketRoute, request: Message, **fields: Any) -> bool:
        reply = stored(request)
        if reply is not None:
            route.send(orjson.dumps({"id": request["id"]} | reply | fields).decode())
        return reply is None

    async def refresh() -> None:
        before = len(held)
        await page.click("#refresh")
        await until_true(lambda: len(held) > before)

    page = (await open_page(before=between(request=request))).page
    await page.click("#tab-history")
    await page.click("#more", trial=True)
    await refresh()
    await page.click("#more")
    for _ in range(1, refreshes):
        await refresh()
    last: dict[str, Any] = {"next": None}
    for each in held:
        answer(*each, **({} if follows else last))
    await expect(page.locator("#more")).to_be_hidden()
    await expect(page.locator("#latest tr")).to_have_count(40 if follows else 20)
    assert cursors == [None, *[None] * refreshes, *(["20"] if follows else [])]


async def test_the_axis_is_the_window_that_is_drawn(open_page: OpenPage) -> None:
    """It begins when the server says, which may be a full minute, and not by the page's clock; its label, too."""

    def aligned(request: dict[str, Any]) -> dict[str, Any] | None:
        reply = stored(request)
        if reply is not None and request["command"] == "stats":
            reply["since"] = "2026-03-01T11:05:00"
        return reply

    page = (await open_page(before=answering(aligned), timezone_id="Asia/Tokyo")).page
    await page.click("#tab-history")
    await expect(page.locator("#over-time-from")).to_have_text("20:05:00")
    await expect(page.locator("#over-time-to")).to_have_text("21:05:00")
    label = re.compile(r"20:05:00 .*21:05:00")
    await expect(page.locator("#over-time")).to_have_attribute("aria-label", label)


async def test_a_row_that_an_older_server_left_incomplete_says_so(open_page: OpenPage) -> None:
    """Without an emotion and a confidence it has a dash for each, and no emotion called null with 0 %."""

    def incomplete(request: dict[str, Any]) -> dict[str, Any] | None:
        reply = stored(request)
        if reply is not None and request["command"] == "history":
            reply["predictions"][0] |= {"emotion_name": None, "confidence": None}
        return reply

    page = (await open_page(before=answering(incomplete))).page
    await page.click("#tab-history")
    await expect(page.locator("#latest tr").nth(0).locator("td").nth(1)).to_have_text("\N{EN DASH}")
    await expect(page.locator("#latest tr").nth(0).locator("td").nth(2)).to_have_text("\N{EN DASH}")
    await expect(page.locator("#latest tr").nth(1)).to_contain_text("90%")


async def test_the_window_that_is_marked_is_the_one_that_is_shown(open_page: OpenPage) -> None:
    """Also after one has left the page and come back: the one that was chosen last."""
    windows: list[int] = []

    def note(request: dict[str, Any]) -> dict[str, Any] | None:
        if request["command"] == "stats":
            windows.append(request["window_s"])
        return stored(request)

    page = (await open_page(before=answering(note))).page
    await page.click("#tab-history")
    await page.check("#window input[value='604800']")
    await expect(page.locator("#stats-count")).to_have_text("40")
    await page.goto("about:blank")
    windows.clear()
    await page.go_back()
    await page.click("#tab-history")
    await expect(page.locator("#stats-count")).to_have_text("40")
    assert windows == [604_800]
    await expect(page.locator("#window input:checked")).to_have_value("604800")


async def test_an_empty_history_says_what_to_do(open_page: OpenPage) -> None:
    """Where nothing was stored there is a sentence instead of empty tables."""

    def nothing(request: dict[str, Any]) -> dict[str, Any] | None:
        reply = stored(request)
        if reply is None or reply["type"] == "history":
            return reply
        return reply | {"count": 0, "emotions": {}, "mean_confidence": None, "latency_ms": {}}

    page = (await open_page(before=answering(nothing))).page
    await page.click("#tab-history")
    await expect(page.locator("#history-empty")).to_contain_text("Nothing was stored in this time.")


async def test_what_was_just_predicted_is_in_the_history(open_page: OpenPage) -> None:
    """Of the real service: predictions that are still on their way into the database appear by themselves."""
    page = (await open_page()).page
    await predict_and_look(page)
    await expect(page.locator("#latest tr")).to_have_count(1)
    await expect(page.locator("#latest")).to_contain_text("Happy")
    for window in ("600", "86400", "604800"):
        await page.check(f"#window input[value='{window}']")
        await expect(page.locator("#stats-count")).to_have_text(re.compile(r"^\d"))
        await expect(page.locator("#history-content")).to_be_visible()


async def test_what_is_stored_between_statistics_and_list_is_counted_by_itself(open_page: OpenPage) -> None:
    """The list has it already, and nothing more is pending: the statistics are asked for again all the same."""
    behind = iter([{"count": 0, "emotions": {}, "pending": 1}])

    def reply(message: Message) -> Message:
        if message["type"] == "history":
            return message | {"pending": 0}
        return message | next(behind, {}) if message["type"] == "stats" else message

    page = (await open_page(before=between(reply=reply))).page
    await predict_and_look(page)
    await expect(page.locator("#stats-count")).to_have_text(re.compile("^[1-9]"))


async def test_a_list_that_is_empty_beside_counts_says_why(open_page: OpenPage) -> None:
    """Loaded anew, the page still counts what it made before, and says who is shown a list of it."""
    page = (await open_page()).page
    await predict_and_look(page)
    await expect(page.locator("#latest tr")).to_have_count(1)
    await expect(page.locator("#latest-empty")).to_be_hidden()
    await page.reload()
    await page.click("#tab-history")
    await expect(page.locator("#stats-count")).to_have_text(re.compile(r"^\d"))
    await expect(page.locator("#latest-empty")).to_contain_text("None since this page connected.")
    await expect(page.locator("#latest-table")).to_be_hidden()


async def test_a_list_of_a_connection_that_was_lost_is_asked_for_anew(
    open_page: OpenPage, web_service: ServiceProcess
) -> None:
    """Without a token it is the connection's: what the one before has made, and its button for more, go with a word."""
    visit = await open_page()
    page = visit.page
    await page.click("#tab-photos")
    await page.set_input_files("#files", [ASTRONAUT] * 21)
    await expect(page.locator(".photo h3")).to_have_count(21)
    await page.click("#tab-history")
    await expect(page.locator("#latest tr")).to_have_count(20)
    await expect(page.locator("#more")).to_be_visible()
    await page.focus("#more")
    web_service.stop()
    web_service.start()
    await expect(page.locator("#latest-empty")).to_be_visible()
    await expect(page.locator("#latest-empty")).to_contain_text("None since this page connected.")
    await expect(page.locator("#more")).to_be_hidden()
    await expect(page.locator("#refresh")).to_be_focused()
    visit.forgive_failed_attempts()


async def test_the_pure_parts_count_right(open_page: OpenPage) -> None:
    """A median and a rate over a span, shares per column of time and of the last two minutes, order and names of labels
    of another model."""
    page = (await open_page()).page
    result = await page.evaluate(
        """async () => {
          const { Meter } = await import("/web/meters.js");
          const { toShares } = await import("/web/history.js");
          const { Session } = await import("/web/timeline.js");
          const { inOrder } = await import("/web/emotions.js");
          const { emotionName } = await import("/web/i18n.js");
          const meter = new Meter(2000);
          for (const [value, now] of [[1, 0], [9, 1000], [30, 1900], [4, 2000], [12, 2100]]) meter.add(value, now);
          const session = new Session();
          session.add([{ emotion_name: "sad" }], 100.9);
          session.add([{ emotion_name: "happy" }], 101);
          const seen = new Session();
          seen.add([{ emotion_name: "sad" }], 100.9);
          seen.add([{ probabilities: { sad: 0.5, happy: 0.5 } }, { probabilities: { sad: 0, happy: 1 } }], 219.5);
          return {
            session: [219.9, 220, 221].map((time) => session.shares(time)),
            columns: Object.entries(seen.columns(219.9)).filter(([, shares]) => shares),
            over: seen.shares(219.9),
            rate: meter.rate(2100), medians: [2100, 3000, 9000].map((now) => meter.median(now)),
            shares: toShares([{ sad: 1, happy: 1 }, {}, { sad: 4 }]), order: inOrder(["zeal", "sad", "awe", "happy"]),
            names: ["happy", "working", "face", "constructor"].map(emotionName),
          };
        }"""
    )
    assert result == {
        "rate": 2,
        "medians": [10.5, 12, None],
        "columns": [["0", {"sad": 1}], ["119", {"sad": 0.25, "happy": 0.75}]],
        "over": {"sad": 0.5, "happy": 0.5},
        "session": [{"sad": 0.5, "happy": 0.5}, {"happy": 1}, None],
        "shares": [{"sad": 0.5, "happy": 0.5}, None, {"sad": 1}],
        "order": ["happy", "sad", "awe", "zeal"],
        "names": ["Happy", "working", "face", "constructor"],
    }
