"""The page for everyone: keyboard, screen readers, languages, light and dark, narrow screens."""

from __future__ import annotations

import re
from typing import Any

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import FilePayload, Page, expect

from tests.web.browser import ASTRONAUT, BLANK_CAMERA, ROOT
from tests.web.conftest import TIMEOUT_MS, OpenPage, between, until

pytestmark = pytest.mark.asyncio(loop_scope="session")
expect.set_options(timeout=TIMEOUT_MS)


async def show_everything(page: Page) -> None:
    """Bring live view and photos to life."""
    await page.click("#start")
    await expect(page.locator("#faces h3")).to_contain_text("%")
    await page.click("#tab-photos")
    await page.set_input_files("#files", [ASTRONAUT, ROOT / "pyproject.toml"])
    await expect(page.locator(".photo h3")).to_contain_text("%")
    await expect(page.locator(".problem")).to_be_visible()


async def test_axe_finds_no_serious_fault(open_page: OpenPage) -> None:
    """Names, roles, landmarks and contrast (WCAG 2.2 AA) in every view, light and dark."""
    page = (await open_page()).page
    faults: list[Any] = []

    async def check(view: str, **options: Any) -> None:
        result = await Axe().run(page, options=options)
        faults.extend(
            (view, fault["id"], [node["html"] for node in fault["nodes"]])
            for fault in result.response["violations"]
            if fault["impact"] in ("serious", "critical")
        )

    await check("start")
    await show_everything(page)
    for view in ("photos", "history", "live"):
        await page.click(f"#tab-{view}")
        await page.select_option("#theme", "light")
        await check(view)
        await page.select_option("#theme", "dark")
        await check(f"{view}, dark", runOnly=["color-contrast"])
    assert faults == []


async def test_the_keyboard_alone_is_enough(open_page: OpenPage) -> None:
    """Skip link, switches, tabs by arrow keys, start, pause and stop: reached in order, with a visible focus.
    Arrows with Alt, say, which is the way back, are the browser's."""
    page = (await open_page()).page
    press, focused = page.keyboard.press, page.locator(":focus")
    await press("Tab")
    await expect(focused).to_have_text("Skip to the content")
    for expected in ("language", "theme", "tab-live"):
        await press("Tab")
        await expect(focused).to_have_id(expected)
    outline = await focused.evaluate("(element) => getComputedStyle(element).outlineStyle")
    assert outline == "solid"
    for modifier in ("Alt", "Control", "Meta", "Shift"):
        await press(f"{modifier}+End")
    await press("ArrowRight")
    await expect(page.locator("#photos")).to_be_visible()
    await press("End")
    await expect(page.locator("#history")).to_be_visible()
    await press("ArrowRight")
    await expect(page.locator("#live")).to_be_visible()
    await press("Tab")
    await expect(focused).to_have_id("start")
    await press("Enter")
    await expect(focused).to_have_id("pause")
    await press("Space")
    await expect(page.locator("#pause")).to_have_text("Resume")
    await press("Tab")
    await press("Enter")
    await expect(focused).to_have_id("start")


async def note_what_is_said(page: Page) -> None:
    """From its start on, the page notes in `window.said` what a screen reader is given to say."""
    await page.add_init_script(
        """
        window.said = [];
        document.addEventListener("DOMContentLoaded", () => {
          const region = document.getElementById("announcer");
          const note = () => region.textContent && window.said.push(region.textContent);
          new MutationObserver(note).observe(region, { childList: true });
        });
        """
    )


async def test_a_screen_reader_hears_what_lasts(open_page: OpenPage) -> None:
    """The emotion is said once, not with each frame; and again of a camera that was stopped and started."""
    page = (await open_page(before=note_what_is_said)).page
    await page.click("#start")
    await until(page, "window.said.length > 0")
    shown = await page.locator("#faces h3").evaluate("(heading) => heading.textContent")
    assert "Happy" in shown
    said = await page.evaluate("window.said")
    assert len(said) == 1
    assert said[0].startswith("Happy, ")
    await page.click("#stop")
    await page.click("#start")
    await until(page, "window.said.length > 1")
    assert (await page.evaluate("window.said[1]")).startswith("Happy, ")


async def test_a_screen_reader_hears_that_there_is_no_face(open_page: OpenPage) -> None:
    """Also where the camera has seen none since it was started."""

    async def before(page: Page) -> None:
        await note_what_is_said(page)
        await page.add_init_script(BLANK_CAMERA)

    page = (await open_page(before=before)).page
    await page.click("#start")
    await until(page, "window.said.length > 0")
    assert await page.evaluate("window.said") == ["No face in view"]


async def test_the_pause_is_not_a_switch_and_a_command_at_once(open_page: OpenPage) -> None:
    """Its name says what it does next; "Resume, pressed" would say that it goes on already."""
    page = (await open_page()).page
    await page.click("#start")
    for name in ("Pause", "Resume", "Pause"):
        button = page.get_by_role("button", name=name, exact=True)
        assert await button.get_attribute("aria-pressed") is None
        await button.click()


async def test_the_browser_s_language_is_spoken_and_can_be_switched(open_page: OpenPage) -> None:
    """Spanish where the browser asks for it; the switch changes everything, and is kept."""
    page = (await open_page(locale="es-MX")).page
    await expect(page.locator("html")).to_have_attribute("lang", "es")
    await expect(page.locator("#status")).to_contain_text("Conectado")
    await page.click("#start")
    await expect(page.locator("#faces h3")).to_contain_text("Alegría")
    await page.select_option("#language", "en")
    await expect(page.locator("html")).to_have_attribute("lang", "en")
    await expect(page.locator("#faces h3")).to_contain_text("Happy")
    await page.reload()
    await expect(page.get_by_role("tab", name="Photos")).to_be_visible()


@pytest.mark.parametrize(
    ("locale", "times", "decimals"),
    [
        ("en-GB", r"\d\d:\d\d:\d\d", "."),
        ("en-US", r"\d\d:\d\d:\d\d [AP]M", "."),
        ("es-ES", r"\d\d?:\d\d:\d\d", ","),
        ("es-MX", r".+", "."),
    ],
)
async def test_numbers_and_times_are_those_of_the_person_s_country(
    open_page: OpenPage, locale: str, times: str, decimals: str
) -> None:
    """One language is not one way to write them: 24 hours in London, and in Mexico a decimal point."""
    page = (await open_page(locale=locale)).page
    await page.click("#start")
    await expect(page.locator("#rate")).to_have_text(re.compile(rf"^\d+\{decimals}\d/s$"))
    await page.click("#tab-history")
    await expect(page.locator("#over-time-from")).to_have_text(re.compile(rf"^{times}$"))
    other = "es" if locale.startswith("en") else "en"
    await page.select_option("#language", other)
    await expect(page.locator("#over-time-from")).to_have_text(re.compile(r"^\d\d?:\d\d:\d\d"))


async def test_both_languages_have_every_text() -> None:
    """What the page and its modules name is there in English and in Spanish."""
    web = ROOT / "service/web"
    source = (web / "i18n.js").read_text()
    english, spanish = (
        set(re.findall(r"^  (\w+):", block, re.MULTILINE))
        for block in re.findall(r"^const E[NS] = \{\n(.*?)^\};", source, re.MULTILINE | re.DOTALL)
    )
    assert english == spanish
    named = set(re.findall(r'data-i18n(?:-label)?="(\w+)"', (web / "index.html").read_text()))
    for module in web.glob("*.js"):
        named |= set(re.findall(r'\bt\("(\w+)"', module.read_text()))
    assert named <= english


async def test_without_javascript_the_page_says_what_it_needs(open_page: OpenPage) -> None:
    """In both languages, and it does not seem to connect; its other texts are those that it has with JavaScript."""
    page = (await open_page(java_script_enabled=False)).page
    notice = page.locator("noscript .notice")
    await expect(notice).to_be_visible()
    await expect(notice).to_contain_text("This page needs JavaScript.")
    await expect(notice.locator("[lang=es]")).to_contain_text("Esta página necesita JavaScript.")
    await expect(page.locator("#status")).to_have_text("")
    texts = {
        element: await page.locator(element).text_content() for element in ("#live .empty p", "footer p")
    }
    page = (await open_page()).page
    for element, text in texts.items():
        assert await page.locator(element).text_content() == text


async def test_colours_follow_the_system_until_somebody_chooses(open_page: OpenPage) -> None:
    """Dark with a dark system, light after the switch, and still so after a reload."""
    page = (await open_page(color_scheme="dark")).page
    await expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    await page.emulate_media(color_scheme="light")
    await expect(page.locator("html")).to_have_attribute("data-theme", "light")
    await page.select_option("#theme", "dark")
    await page.reload()
    await expect(page.locator("html")).to_have_attribute("data-theme", "dark")


async def test_colours_that_the_system_forces_leave_the_emotions_theirs(open_page: OpenPage) -> None:
    """In Windows' contrast themes, say: what the charts' colours mean, bars, and the tab that is chosen are seen."""
    page = (await open_page(forced_colors="active")).page
    await page.click("#start")
    await expect(page.locator("#faces h3")).to_contain_text("Happy")
    # Looked up where it is read: the legend's are others twice a second.
    colour = "([shown, pseudo]) => getComputedStyle(document.querySelector(shown), pseudo).backgroundColor"
    for shown, pseudo in (
        (".face-name .swatch", None),
        ("#session-legend .swatch", None),
        (".bar", "::before"),
    ):
        await expect(page.locator(shown).first).to_be_visible()
        assert await page.evaluate(colour, [shown, pseudo]) == "rgb(204, 187, 68)", shown
    line = "(tab) => getComputedStyle(tab).borderBottomWidth"
    assert [await tab.evaluate(line) for tab in await page.get_by_role("tab").all()] == ["2px", "0px", "0px"]


async def test_a_phone_needs_no_scrolling_sideways(open_page: OpenPage) -> None:
    """At 320 pixels of width every view fits, in both languages, and what is touched is large enough."""
    page = (await open_page(viewport={"width": 320, "height": 740}, has_touch=True)).page
    for language in ("es", "en"):
        await page.select_option("#language", language)
        stage, start = [await page.locator(part).bounding_box() for part in ("#stage", "#start")]
        assert stage is not None
        assert start is not None
        assert start["y"] + start["height"] <= stage["y"] + stage["height"], language
        assert await page.evaluate("document.documentElement.scrollWidth") <= 320, language
    await show_everything(page)
    # A notice with a word that is wider than the page: more photos than are shown, from one of this name on.
    portrait = ASTRONAUT.with_name("astronaut_face.jpg").read_bytes()
    named: FilePayload = {"name": f"{'long' * 30}.jpg", "mimeType": "image/jpeg", "buffer": portrait}
    await page.set_input_files("#files", [named] * 61)
    await expect(page.locator("#notice-text")).to_contain_text("longlong")
    await page.click("#tab-history")
    await expect(page.locator("#shares tr").first).to_be_visible()
    room = """(table) =>
      table.closest(".card").getBoundingClientRect().right - table.getBoundingClientRect().right"""
    for language in ("es", "en"):
        await page.select_option("#language", language)
        for view in ("history", "photos", "live"):
            await page.click(f"#tab-{view}")
            assert await page.evaluate("document.documentElement.scrollWidth") <= 320, (language, view)
            for table in await page.locator("table:visible").all():
                assert await table.evaluate(room) >= 16, language
    for button in await page.locator("button:visible").all():
        box = await button.bounding_box()
        assert box is not None
        assert 40 <= box["height"] < 60, await button.text_content()  # one line, beside the notice, too


async def test_the_long_labels_of_another_model_fit(open_page: OpenPage) -> None:
    """Broken in lists and tables, and narrower on a picture: what stands beside them is seen on a phone, too."""
    label = "contempt_or_another_word_of_this_length"

    def renamed(part: Any) -> Any:
        if isinstance(part, dict):
            return {renamed(name): renamed(value) for name, value in part.items()}
        if isinstance(part, list):
            return [renamed(value) for value in part]
        return label if part == "happy" else part

    async def before(page: Page) -> None:
        await between(reply=renamed)(page)
        await page.add_init_script("""
          window.written = [];
          const fillText = CanvasRenderingContext2D.prototype.fillText;
          CanvasRenderingContext2D.prototype.fillText = function (text, x, y, most = Infinity) {
            const to = x + Math.min(this.measureText(text).width, most);
            window.written.push([text, to, this.canvas.clientWidth]);
            fillText.call(this, text, x, y, most);
          };
        """)

    page = (await open_page(before=before, viewport={"width": 320, "height": 740})).page
    await show_everything(page)
    await page.click("#tab-history")
    await expect(page.locator("#latest")).to_contain_text(label)
    for view in ("history", "photos", "live"):
        await page.click(f"#tab-{view}")
        for part in await page.locator(f"#{view} :is(.number, td, #session-legend li):visible").all():
            right = await part.evaluate("(part) => part.getBoundingClientRect().right")
            assert right <= 320 - 16, (view, await part.text_content())
    written = await page.evaluate("window.written")
    assert any(text.startswith(label) for text, _, _ in written)
    assert [to for _, to, width in written if to > width] == []
