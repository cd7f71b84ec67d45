"""The web page's files over plain HTTP."""

from __future__ import annotations

import re

from tests.service.harness import ROOT, Running, get

WEB = ROOT / "service/web"


async def test_the_root_is_the_page(running: Running) -> None:
    """A browser that opens the address gets the page, whatever the query string."""
    status, headers, body = await get(running, "/?from=browser")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert body == (WEB / "index.html").read_bytes()


async def test_every_file_that_the_page_names_is_served(running: Running) -> None:
    """Scripts, modules that they import, styles and the icon, each with its content type."""
    types = {"js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8", "svg": "image/svg+xml"}
    named = set(re.findall(r'(?:href|src)="(web/[^"]+)"', (WEB / "index.html").read_text()))
    for module in WEB.glob("*.js"):
        named |= {f"web/{name}" for name in re.findall(r'from "\./([^"]+)"', module.read_text())}
    assert {"web/app.js", "web/style.css", "web/icon.svg", "web/camera.js"} <= named
    for path in sorted(named | {"visionai.js"}):
        status, headers, _ = await get(running, f"/{path}")
        assert (status, headers["Content-Type"]) == (200, types[path.rsplit(".")[-1]]), path


async def test_the_client_is_the_one_of_the_repository(running: Running) -> None:
    """/visionai.js and its types are what a bundler would take, and other sites may import them."""
    for name in ("visionai.js", "visionai.d.ts"):
        _, headers, body = await get(running, f"/{name}")
        assert body == (ROOT / "client/js" / name).read_bytes()
        assert headers["Access-Control-Allow-Origin"] == "*"


async def test_a_browser_that_has_a_file_is_told_so(running: Running) -> None:
    """The ETag that was sent, alone or in a list, is answered 304 without a body; another gets the file."""
    _, headers, _ = await get(running, "/web/app.js")
    etag = headers["ETag"]
    assert headers["Cache-Control"] == "no-cache"
    for known in (etag, f'"other", W/{etag}', "*"):
        status, headers, body = await get(running, "/web/app.js", **{"If-None-Match": known})
        assert (status, headers["ETag"], body) == (304, etag, b"")
    assert (await get(running, "/web/app.js", **{"If-None-Match": '"other"'}))[0] == 200


async def test_the_page_may_load_and_run_its_own_files_only(running: Running) -> None:
    """The policy allows nothing inline, nothing from elsewhere, and no frame around the page."""
    _, headers, _ = await get(running, "/")
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'"
    for kind in ("script-src", "style-src", "img-src", "connect-src"):
        assert policy[kind] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Permissions-Policy"] == "camera=(self), microphone=(), geolocation=()"


async def test_only_the_page_s_files_are_served(running: Running) -> None:
    """No path leads out of the folder, and none lists it."""
    for path in ("/web/", "/web/../page.py", "/web/%2e%2e/page.py", "/web/none.js", "/index.html"):
        assert (await get(running, path))[0] == 404, path


async def test_an_upgrade_of_the_root_is_the_websocket(running: Running) -> None:
    """The same address with an Upgrade header is the WebSocket, as it always was."""
    async with running.client():
        pass
