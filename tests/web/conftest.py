"""The real service, a real browser, and pages that may not break the page's own rules."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
import pytest_asyncio
from playwright.async_api import Browser, ConsoleMessage, Page, WebSocketRoute

from tests.client.harness import ServiceProcess
from tests.web.browser import launch

# A page is ready in a fraction of a second. This is what separates slow from stuck, on the slowest machine.
TIMEOUT_MS = 60_000


@dataclass
class Visit:
    """A page that is open, and what it may not do: fail, load from elsewhere, break its security policy."""

    page: Page
    origin: str
    problems: list[str] = field(default_factory=list)

    def watch(self) -> None:
        """Note each problem from now on."""
        self.page.on("pageerror", lambda error: self.problems.append(f"uncaught: {error}"))
        self.page.on("console", self._read)
        self.page.on("request", lambda request: self._check(request.url))
        self.page.on("websocket", lambda socket: self._check(socket.url.replace("ws://", "http://")))

    def forgive_failed_attempts(self) -> None:
        """Where the server was stopped: the browser itself writes each attempt to connect to the console, whether it
        found nobody or, a moment before, a server that drains and answers with 503."""
        failed = ("net::ERR_CONNECTION_REFUSED", "Unexpected response code: 503")
        self.problems[:] = [problem for problem in self.problems if not any(why in problem for why in failed)]

    def _read(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.problems.append(f"console: {message.text}")

    def _check(self, url: str) -> None:
        if not url.startswith(self.origin):
            self.problems.append(f"external request: {url}")


async def until(page: Page, expression: str) -> None:
    """Wait until a JavaScript expression is true. (`wait_for_function` needs eval, which the page's policy forbids.)"""
    async with asyncio.timeout(TIMEOUT_MS / 1000):
        while not await page.evaluate(expression):
            await asyncio.sleep(0.05)


async def until_true(condition: Callable[[], bool]) -> None:
    """Wait until the page has done what the test sees on the wire."""
    async with asyncio.timeout(TIMEOUT_MS / 1000):
        while not condition():
            await asyncio.sleep(0.05)


Message = dict[str, Any]


def between(
    *,
    request: Callable[[WebSocketRoute, Message], bool] = lambda _route, _request: True,
    reply: Callable[[Message], Message] = lambda reply: reply,
) -> Callable[[Page], Coroutine[Any, Any, None]]:
    """Stand between a page and its server, from `before` on.

    `request` sees what the page sends, and says whether the server gets it; what `reply` makes of a message of the
    server's is what the page gets.
    """

    async def before(page: Page) -> None:
        def intercept(route: WebSocketRoute) -> None:
            server = route.connect_to_server()

            def to_server(message: str | bytes) -> None:
                line = message if isinstance(message, str) else message.split(b"\n", 1)[0]
                if request(route, orjson.loads(line)):
                    server.send(message)

            route.on_message(to_server)
            server.on_message(lambda message: route.send(orjson.dumps(reply(orjson.loads(message))).decode()))

        await page.route_web_socket("**/ws", intercept)

    return before


OpenPage = Callable[..., Coroutine[Any, Any, Visit]]


@pytest.fixture(scope="session")
def web_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """The service that the pages talk to."""
    process = ServiceProcess(tmp_path_factory.mktemp("web_service"))
    process.start()
    yield process
    process.stop()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def chromium(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Browser]:
    """The browser; each test opens contexts of its own in it."""
    async with launch(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="session")
async def open_page(chromium: Browser, web_service: ServiceProcess) -> AsyncIterator[OpenPage]:
    """Open the page in a new context, with its options; at the end no page may have had a problem.

    By itself that of `web_service` in `chromium`.
    """
    visits: list[Visit] = []

    async def open_(
        *,
        before: Callable[[Page], Coroutine[Any, Any, None]] | None = None,
        browser: Browser = chromium,
        service: str = web_service.url,
        **options: Any,
    ) -> Visit:
        origin = service.replace("ws://", "http://").removesuffix("/ws")
        defaults = {
            "locale": "en-GB",
            "permissions": ["camera"],
            "viewport": {"width": 960, "height": 700},
            "reduced_motion": "reduce",
        }
        context = await browser.new_context(**defaults | options)
        context.set_default_timeout(TIMEOUT_MS)
        visit = Visit(await context.new_page(), origin)
        visit.watch()
        visits.append(visit)
        if before is not None:
            await before(visit.page)
        await visit.page.goto(origin)
        return visit

    yield open_
    for visit in visits:
        await visit.page.context.close()
    assert [problem for visit in visits for problem in visit.problems] == []
