"""A real server and a real Chromium. Screenshots of the pages are kept in tests/artifacts."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
ARTIFACTS = ROOT / "tests" / "artifacts"
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
READY = "document.querySelector('[data-testid=stApp]')?.dataset.testScriptState === 'notRunning'"
# Streamlit looks for its health endpoint under the page's own path first; a deep link gets a harmless 404 for it.
HARMLESS = ("_stcore/health", "_stcore/host-config")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Browser tests wait for a server: give each what a slow machine needs."""
    for item in items:
        if "tests/browser" in item.path.as_posix():
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server started for this session, with caches of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("server")
    log = folder / "log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "streamlit", "run", "app/main.py", "--server.port", str(port)],
            cwd=ROOT,
            env={**os.environ, "KVVIZ_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    base = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{base}/_stcore/health", timeout=1).close()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"the server did not start:\n{log.read_text()}")
                time.sleep(0.2)
        yield base
    finally:
        server.terminate()
        server.wait(timeout=20)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserContext]:
    """One Chromium for the session."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        pytest.fail(
            "no Chromium found: run 'apt-get install chromium', or 'make test-unit' without a browser"
        )
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(tmp_path_factory.mktemp("chromium")),
            executable_path=executable,
            headless=True,
            args=FLAGS,
            viewport={"width": 1280, "height": 900},
        )
        context.set_default_timeout(60_000)
        yield context
        context.close()


class Visitor:
    """A tab that opens pages, waits for them, and remembers what went wrong in it."""

    def __init__(self, page: Page, base: str) -> None:
        self.page, self.base = page, base
        self.errors: list[str] = []
        page.on(
            "console", lambda message: self._note(message.type, message.text, message.location.get("url", ""))
        )
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("dialog", lambda dialog: (self.errors.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", self._outside)

    def _note(self, kind: str, text: str, url: str) -> None:
        if kind == "error" and not any(harmless in url for harmless in HARMLESS):
            self.errors.append(f"{text} {url}")

    def _outside(self, request) -> None:
        if not request.url.startswith((self.base, self.base.replace("http", "ws"), "data:", "blob:")):
            self.errors.append(f"asked the outside for {request.url}")

    def open(self, path: str = "", **query: object) -> Page:
        """Open a page by its path and the view's fields, and wait until it is drawn."""
        from urllib.parse import urlencode

        self.page.goto(f"{self.base}/{path}" + (f"?{urlencode(query)}" if query else ""))
        return self.ready()

    def ready(self) -> Page:
        """Wait until the script has run, and that no message of an unexpected error is shown."""
        self.page.wait_for_selector("[data-testid=stApp]")
        # A run begins a moment after a click: only a state that lasts counts as ready.
        for _ in range(2):
            self.page.wait_for_function(READY, timeout=240_000)
            self.page.wait_for_timeout(250)
        self.page.wait_for_function(READY, timeout=240_000)
        assert self.page.get_by_text("This app has encountered an error").count() == 0
        return self.page

    def query(self) -> dict[str, str]:
        """The fields in the address bar."""
        from urllib.parse import parse_qsl, urlsplit

        return dict(parse_qsl(urlsplit(self.page.url).query))

    def click_cell(self, key: str, row: int, col: int) -> None:
        """Click a heatmap's cell: the marker of the click layer that stands for it."""
        chart = self.page.locator(f".st-key-{key} .js-plotly-plot").first
        chart.scroll_into_view_if_needed()
        place = chart.evaluate(
            """(plot, [row, col]) => {
                const box = plot.getBoundingClientRect(), {xaxis, yaxis, margin} = plot._fullLayout;
                return [box.x + xaxis._offset + xaxis.d2p(col), box.y + yaxis._offset + yaxis.d2p(row)];
            }""",
            [row, col],
        )
        self.page.mouse.move(*place)
        self.page.wait_for_timeout(150)
        self.page.mouse.click(*place)
        # Chart toolbars intercept clicks where the mouse rests.
        self.page.mouse.move(5, 5)
        self.ready()


@pytest.fixture
def visitor(chromium: BrowserContext, address: str) -> Iterator[Visitor]:
    """A fresh tab; at the end nothing may have gone wrong in it."""
    page = chromium.new_page()
    tab = Visitor(page, address)
    yield tab
    page.close()
    assert tab.errors == []
