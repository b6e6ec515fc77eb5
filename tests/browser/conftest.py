"""One browser and one server for all tests of the page, which each begin with an empty one."""

import os
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.support.browser import FluxPage, missing_browser, open_browser, serve_tiny


# Not of the session: while Playwright runs, no other test can run a loop of events.
@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    missing = missing_browser()
    if missing and os.environ.get("FLUX_EXT_BROWSER") != "required":
        pytest.skip(missing)
    assert not missing, f"FLUX_EXT_BROWSER=required, but {missing}"
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="package")
def server(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve_tiny(tmp_path_factory.mktemp("server")) as address:
        yield address


@pytest.fixture(scope="package")
def context(browser: Any, server: str) -> Iterator[Any]:
    viewport = {"width": 1440, "height": 900}
    context = browser.new_context(viewport=viewport, accept_downloads=True, reduced_motion="reduce")
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=server)
    yield context
    context.close()


@pytest.fixture
def flux(context: Any, server: str) -> Iterator[FluxPage]:
    """A page that nobody has used yet; whatever it asks of others, or fails at, fails the test."""
    page = context.new_page()
    page.goto(f"{server}/api/health")
    page.evaluate("localStorage.clear(); indexedDB.deleteDatabase('flux-ext')")
    asked, failed = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.on(
        "console", lambda message: failed.append(message.text) if "Content Security Policy" in message.text else None
    )
    yield FluxPage(page, server).open()
    page.close()
    assert [url for url in asked if not url.startswith((f"{server}/", f"blob:{server}/", "data:"))] == []
    assert failed == []
