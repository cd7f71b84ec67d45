"""The token prompt, in a real browser."""

from __future__ import annotations

import time
from pathlib import Path

import jwt
import pytest
from playwright.async_api import FilePayload, expect

from service.security.api_keys import create
from tests.service.harness import StartProcess
from tests.web.browser import ASTRONAUT
from tests.web.conftest import TIMEOUT_MS, Message, OpenPage
from tests.web.test_history import answering, predict_and_look

pytestmark = pytest.mark.asyncio(loop_scope="session")
expect.set_options(timeout=TIMEOUT_MS)


def guarded(request: Message) -> Message | None:
    """Photos and frames are looked at with the token "secret" only."""
    if request["command"] == "predict" and request.get("token") != "secret":
        return {"type": "error", "code": "unauthorized", "message": "no token"}
    return None


async def test_a_server_that_wants_a_token_is_given_one(open_page: OpenPage) -> None:
    """The page asks for it, and sends it with what follows; a photo then gets its answer, and the keyboard is there."""

    page = (await open_page(before=answering(guarded))).page
    await page.click("#tab-photos")
    await page.set_input_files("#files", [ASTRONAUT])
    await expect(page.locator(".problem")).to_have_text("The server asks for a token or an API key.")
    await expect(page.locator("#token-input")).to_be_focused()
    await page.keyboard.type("secret")
    await page.keyboard.press("Enter")
    await expect(page.locator("#status")).to_have_attribute("data-state", "ready")
    await expect(page.locator("#token")).to_be_hidden()
    await expect(page.locator("#main")).to_be_focused()
    await page.set_input_files("#files", [ASTRONAUT])
    await expect(page.locator(".photo").first.locator("h3")).to_contain_text("Happy")


async def test_photos_that_wait_for_a_token_are_kept(open_page: OpenPage) -> None:
    """Others take the place of none of them; with the token they are looked at, and then there is room."""
    photo = ASTRONAUT.with_name("astronaut_face.jpg").read_bytes()

    def photos(count: int, name: str) -> list[FilePayload]:
        return [{"name": f"{name}.jpg", "mimeType": "image/jpeg", "buffer": photo}] * count

    page = (await open_page(before=answering(guarded))).page
    await page.click("#tab-photos")
    await page.set_input_files("#files", photos(60, "first"))
    await expect(page.locator(".problem")).to_have_count(60)
    await page.set_input_files("#files", photos(1, "later"))
    await expect(page.locator("#notice-text")).to_contain_text("from later.jpg on")
    await page.fill("#token-input", "secret")
    await page.keyboard.press("Enter")
    await expect(page.locator(".photo h3")).to_have_count(60)
    await page.set_input_files("#files", photos(1, "later"))
    await expect(page.locator(".photo").first).to_contain_text("later.jpg")
    await expect(page.locator(".photo h3")).to_have_count(60)


async def test_a_service_with_required_tokens_is_used_from_the_page(
    open_page: OpenPage, start_process: StartProcess
) -> None:
    """Spaces are no token, a wrong one is said to be wrong; with a right one, photos are answered and the user's
    history is shown."""
    secret = "a secret of the tests, of at least 32 bytes"
    service = start_process(AUTH="required", JWT_SECRET=secret)
    page = (await open_page(service=service.url)).page
    await expect(page.locator("#token-input")).to_be_focused()
    await page.keyboard.type("   ")
    await page.keyboard.press("Enter")
    await expect(page.locator("#token-input")).to_be_focused()
    await expect(page.locator("#notice")).to_be_hidden()
    await page.keyboard.type("wrong")
    await page.keyboard.press("Enter")
    await expect(page.locator("#notice-text")).to_have_text(
        "The server did not accept the token or API key. It may be mistyped, or have expired."
    )
    await page.fill("#token-input", jwt.encode({"sub": "ana", "exp": time.time() + 600}, secret, "HS256"))
    await page.keyboard.press("Enter")
    await expect(page.locator("#status")).to_have_attribute("data-state", "ready")
    await expect(page.locator("#token")).to_be_hidden()
    await expect(page.locator("#notice")).to_be_hidden()
    await predict_and_look(page)
    await expect(page.locator("#stats-count")).to_have_text("1")
    await expect(page.locator("#latest tr")).to_have_count(1)
    await page.context.close()  # before its service goes


async def test_an_api_key_is_asked_for_and_taken(
    open_page: OpenPage, start_process: StartProcess, tmp_path: Path
) -> None:
    """Where the service knows keys and no tokens, the page's words lead to it, in both languages."""
    keys = tmp_path / "keys"
    key = create(keys, "ana")
    page = (await open_page(service=start_process(AUTH="required", API_KEYS_FILE=str(keys)).url)).page
    await expect(page.get_by_label("This server asks for a token or an API key")).to_be_focused()
    await page.select_option("#language", "es")
    await page.get_by_label("Este servidor pide un token o una clave de API").fill(key)
    await page.keyboard.press("Enter")
    await expect(page.locator("#status")).to_have_attribute("data-state", "ready")
    await page.context.close()  # before its service goes


async def test_what_waited_for_a_token_is_asked_again_with_it(
    open_page: OpenPage, start_process: StartProcess
) -> None:
    """Photos and history of before say that a token is wanted, and are there once it is given."""
    secret = "a secret of the tests, of at least 32 bytes"
    service = start_process(AUTH="required", JWT_SECRET=secret)
    page = (await open_page(service=service.url)).page
    await expect(page.locator("#token")).to_be_visible()
    await page.click("#tab-photos")
    await page.set_input_files("#files", [ASTRONAUT])
    await expect(page.locator(".problem")).to_have_text("The server asks for a token or an API key.")
    await page.click("#tab-history")
    await expect(page.locator("#history-empty")).to_have_text("The server asks for a token or an API key.")
    await page.fill("#token-input", jwt.encode({"sub": "ana", "exp": time.time() + 600}, secret, "HS256"))
    await page.keyboard.press("Enter")
    await expect(page.locator("#status")).to_have_attribute("data-state", "ready")
    await expect(page.locator("#history-empty")).not_to_contain_text(
        "The server asks for a token or an API key."
    )
    await page.click("#tab-photos")
    await expect(page.locator(".photo h3")).to_contain_text("Happy")
    await page.context.close()  # before its service goes
