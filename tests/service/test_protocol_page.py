"""docs/protocol.md: its examples are run, and its tables are true."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import orjson

from service.errors import ERROR_CODES
from service.protocol.requests import COMMANDS
from tests.contract import description
from tests.service.examples import examples, node, run_example
from tests.service.harness import FACE, ROOT, Running
from tests.web.browser import launch

PAGE = (ROOT / "docs/protocol.md").read_text()


def table(first_column: str) -> set[str]:
    """What the rows of the table that begins with this heading are about."""
    start = PAGE.index(f"| {first_column} ")
    rows = PAGE[start : PAGE.index("\n\n", start)].splitlines()[2:]
    return {name for row in rows for name in re.findall(r"`?([a-z_0-9]+)`?", row.split("|")[1])}


async def test_the_python_example_runs(running: Running, tmp_path: Path) -> None:
    """It sends a header and bytes, and prints the id and the emotion."""
    (code,) = examples(PAGE, "python")
    assert (await run_example(running, tmp_path, "session.py", code, sys.executable)).startswith(
        "first happy"
    )


async def test_the_javascript_example_runs(running: Running, tmp_path: Path) -> None:
    """It sends the bytes of a file, and prints the emotion."""
    (code,) = examples(PAGE, "js")
    output = await run_example(running, tmp_path, "session.mjs", code, node(), "--experimental-websocket")
    assert re.match(r"happy (0\.9|1$)", output), output


async def test_the_html_example_runs(running: Running, tmp_path: Path) -> None:
    """A file that is chosen in a browser is answered in the page."""
    (code,) = examples(PAGE, "html")
    page_file = tmp_path / "session.html"
    page_file.write_text(code.replace("ws://127.0.0.1:8000/ws", f"{running.url}ws"))
    (tmp_path / "face.jpg").write_bytes(FACE)
    async with launch(tmp_path) as browser:
        page = await browser.new_page()
        await page.goto(page_file.as_uri())
        await page.wait_for_function("document.querySelector('output').textContent !== ''")
        await page.set_input_files("input", tmp_path / "face.jpg")
        await page.wait_for_function("document.querySelector('output').textContent === 'happy'")


def test_the_tables_are_complete() -> None:
    """Every command, error code and close code is there, and no other."""
    assert table("command") == set(COMMANDS)
    codes = set(description()["components"]["schemas"]["Error"]["properties"]["code"]["enum"])
    assert table("code") == codes
    assert set(ERROR_CODES) <= codes
    close_codes = set(re.findall(r"\b(10\d\d)\b", description()["info"]["description"]))
    assert table("close code") == close_codes


def test_the_json_examples_have_the_documented_fields() -> None:
    """The replies that are shown name exactly the required fields, and those that may be there."""
    for block in examples(PAGE, "json"):
        reply = orjson.loads(block)
        schema = {"prediction": "Prediction", "history": "HistoryPage", "stats": "Figures"}[reply["type"]]
        described = description()["components"]["schemas"][schema]
        assert set(described["required"]) <= set(reply) <= set(described["properties"])
