"""Pictures of the page for the documentation: `python -m tests.web.screenshots` writes them into docs/images."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, Page, expect

from tests.client.harness import ServiceProcess
from tests.web.browser import ASTRONAUT, ROOT, launch

IMAGES = ROOT / "docs/images"
TIMEOUT_MS = 120_000
_SESSION_SECONDS = 20  # so that the timeline shows something


async def _open(browser: Browser, origin: str, **options: Any) -> Page:
    defaults: dict[str, Any] = {
        "locale": "en-GB",
        "permissions": ["camera"],
        "viewport": {"width": 1180, "height": 900},
    }
    context = await browser.new_context(**defaults | options)
    context.set_default_timeout(TIMEOUT_MS)
    page = await context.new_page()
    await page.goto(origin)
    await expect(page.locator("#status")).to_have_attribute("data-state", "ready")
    return page


async def _live(page: Page, seconds: float) -> None:
    await page.click("#start")
    await expect(page.locator("#rate")).to_contain_text("/s")
    await asyncio.sleep(seconds)
    await expect(page.locator("#faces h3")).to_contain_text("%")


async def _save(page: Page, name: str) -> None:
    await page.mouse.move(1, 1)
    await page.evaluate("document.activeElement.blur()")
    path = IMAGES / f"page-{name}.jpg"
    await page.screenshot(path=path, type="jpeg", quality=82, full_page=True)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size // 1000} kB")
    await page.context.close()


async def _take(origin: str, folder: Path) -> None:
    expect.set_options(timeout=TIMEOUT_MS)
    async with launch(folder) as browser:
        page = await _open(browser, origin)
        await _live(page, _SESSION_SECONDS)
        await _save(page, "live")

        page = await _open(browser, origin, color_scheme="dark")
        await _live(page, _SESSION_SECONDS / 2)
        await _save(page, "dark")

        phone = {"width": 360, "height": 740}
        page = await _open(browser, origin, locale="es-MX", viewport=phone, device_scale_factor=1.5)
        await _live(page, _SESSION_SECONDS / 2)
        await _save(page, "phone")

        page = await _open(browser, origin)
        await page.click("#tab-photos")
        await page.set_input_files("#files", [ASTRONAUT, ASTRONAUT.with_name("astronaut_face.jpg")])
        await expect(page.locator(".photo h3")).to_have_count(2)
        await _save(page, "photos")


def main() -> None:
    """Start the service and a browser, and take the pictures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        service = ServiceProcess(folder)
        service.start()
        try:
            origin = service.url.replace("ws://", "http://").removesuffix("/ws")
            asyncio.run(_take(origin, folder))
        finally:
            service.stop()


if __name__ == "__main__":
    main()
