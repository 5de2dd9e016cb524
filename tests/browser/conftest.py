"""A real server and a real Chromium. Screenshots of the pages are kept in tests/artifacts."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest
from playwright.sync_api import BrowserContext, Locator, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
ARTIFACTS = ROOT / "tests" / "artifacts"
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
# The script has run, and every figure it sent is drawn: those out of sight follow when the page has come to rest.
READY = """document.querySelector('[data-testid=stApp]')?.dataset.testScriptState === 'notRunning'
    && !document.querySelector('.kvviz-figure .plot[data-state=waiting]')"""
# Streamlit looks for its health endpoint under the page's own path first; a deep link gets a harmless 404 for it.
HARMLESS = ("_stcore/health", "_stcore/host-config")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Browser tests wait for a server: give each what a slow machine needs."""
    for item in items:
        if "tests/browser" in item.path.as_posix():
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server started for this session."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("server")
    log = folder / "log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "app", "--server.port", str(port)],
            cwd=ROOT,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
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
        """Open a page by its name and the view's fields, and wait until it is drawn."""
        path = "" if path == "overview" else path  # The first page has no path of its own.
        return self.follow(f"{self.base}/{path}" + (f"?{urlencode(query)}" if query else ""))

    def follow(self, link: str) -> Page:
        """Open an address as it is."""
        self.page.bring_to_front()  # a tab behind another draws once a second
        self.page.goto(link)
        return self.ready()

    def switch(self, title: str) -> Page:
        """Go to another page by its link in the sidebar, as a person does."""
        self.page.get_by_test_id("stSidebarNav").get_by_role("link", name=title).click()
        self.page.get_by_role("heading", name=title, level=1).wait_for()
        return self.ready()

    def ready(self) -> Page:
        """Wait until the script has run, and that no message of an unexpected error is shown."""
        self.page.wait_for_selector("[data-testid=stApp]")
        # A run begins a moment after a click: only a state that lasts counts as ready.
        for _ in range(3):
            self.page.wait_for_function(READY, timeout=240_000)
            self.page.wait_for_timeout(200)
        self.page.wait_for_function(READY, timeout=240_000)
        assert self.page.get_by_text("This app has encountered an error").count() == 0
        assert self.page.get_by_test_id("stException").count() == 0
        return self.page

    def query(self) -> dict[str, str]:
        """The fields in the address bar."""
        return dict(parse_qsl(urlsplit(self.page.url).query))

    def text(self) -> str:
        """What the page says, without the sidebar."""
        return self.page.get_by_test_id("stMain").inner_text()

    def metrics(self) -> list[str]:
        """The figures in boxes, in reading order."""
        return self.page.get_by_test_id("stMetricValue").all_inner_texts()

    def keyed(self, key: str) -> Locator:
        """The element a page gave a key."""
        return self.page.locator(".st-key-" + re.sub(r"[^a-zA-Z0-9_-]", "-", key)).first

    def plot(self, key: str) -> Locator:
        """A figure, once plotly has drawn it."""
        chart = self.keyed(key).locator(".js-plotly-plot").first
        chart.scroll_into_view_if_needed()
        self.page.wait_for_function("plot => plot.dataset.state === 'drawn'", arg=chart.element_handle())
        return chart

    def drawn(self, key: str) -> str:
        """The data behind a figure, to compare one picture with another."""
        return self.plot(key).evaluate(
            "plot => JSON.stringify(plot._fullData.map(t => [t.name, t.x, t.y, t.z, t.text]))"
        )

    def frames(self, key: str) -> list:
        """The shapes drawn over a figure's data."""
        return self.plot(key).evaluate("plot => plot.layout.shapes ?? []")

    def point(self, key: str, x: float, y: float, axes: int = 1) -> tuple[float, float]:
        """Where a data point of a figure's first (second, …) pair of axes is on the screen."""
        return tuple(
            self.plot(key).evaluate(
                """(plot, [x, y, axes]) => {
                    const box = plot.getBoundingClientRect();
                    const [xaxis, yaxis] = ['x', 'y'].map(which => plot._fullLayout[`${which}axis${axes}`]);
                    return [box.x + xaxis._offset + xaxis.d2p(x), box.y + yaxis._offset + yaxis.d2p(y)];
                }""",
                [x, y, "" if axes == 1 else axes],
            )
        )

    def click(self, key: str, x: float, y: float, axes: int = 1) -> None:
        """Click a data point of a figure."""
        place = self.point(key, x, y, axes)
        self.page.mouse.move(*place)
        self.page.wait_for_timeout(150)
        self.page.mouse.click(*place)
        self.rest()
        self.ready()

    def click_cell(self, key: str, row: int, col: int) -> None:
        """Click the middle of a heatmap's cell."""
        self.click(key, col, row)

    def hover(self, key: str, x: float, y: float) -> str:
        """What a figure says about a data point under the mouse."""
        self.page.mouse.move(*self.point(key, x, y))
        label = self.plot(key).locator(".hoverlayer .hovertext").first
        label.wait_for()
        words = label.text_content() or ""
        self.rest()
        return words

    def rest(self) -> None:
        """Move the mouse away: chart toolbars intercept clicks where it rests."""
        self.page.mouse.move(5, 5)

    def slide(self, key: str, steps: int) -> None:
        """Move a slider by the arrow keys."""
        self.keyed(key).get_by_role("slider").focus()
        for _ in range(abs(steps)):
            self.page.keyboard.press("ArrowRight" if steps > 0 else "ArrowLeft")
            # A value is sent a moment after the last key; the picture of one step is waited for before the next.
            self.page.wait_for_timeout(350)
            self.ready()

    def whole_page(self) -> None:
        """Make the window as tall as the page, so that a screenshot shows all of it."""
        tall = self.page.get_by_test_id("stMain").evaluate("main => main.scrollHeight")
        width = self.page.viewport_size["width"]
        self.page.set_viewport_size({"width": width, "height": min(int(tall) + 20, 6000)})
        self.page.wait_for_timeout(300)
        self.page.wait_for_function(READY)


@pytest.fixture
def visitor(chromium: BrowserContext, address: str) -> Iterator[Visitor]:
    """A fresh tab; at the end nothing may have gone wrong in it."""
    with tab(chromium, address) as visitor:
        yield visitor


@pytest.fixture
def other_visitor(chromium: BrowserContext, address: str) -> Iterator[Visitor]:
    """A second tab, which shares nothing with the first."""
    with tab(chromium, address) as visitor:
        yield visitor


@contextmanager
def tab(chromium: BrowserContext, address: str) -> Iterator[Visitor]:
    """A tab of its own; its errors are asserted once the test is through."""
    page = chromium.new_page()
    visitor = Visitor(page, address)
    try:
        yield visitor
    finally:
        page.close()
    assert visitor.errors == []
