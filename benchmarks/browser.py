"""From a click to the new picture, and from the server's start to the first picture, in a real Chromium.

    .venv/bin/python benchmarks/browser.py [--repeats 15]

For each page a control is moved to and fro. The clock starts in the browser with the event that moves the control and stops at
the last change of a chart: of those in sight at 1280 × 900, and of all on the page. The server runs with a cache of its own: the first start
includes the calibration of the bundled pair, the second finds it on disk. Prints Markdown; medians and 95th percentiles.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page, TimeoutError, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
FLAGS = "--no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync".split()
READY = """document.querySelector('[data-testid=stApp]')?.dataset.testScriptState === 'notRunning'
    && !document.querySelector('.kvviz-figure .plot[data-state=waiting]')"""
# The clock: the last change of any chart or figure since a control was moved.
CLOCK = """() => {
    const app = document.querySelector('[data-testid=stApp]');
    const figures = '.js-plotly-plot, canvas, [data-testid=stMetric]';
    window.last = window.seen = window.pressed = 0; window.ran = false;
    if (window.watching) return;
    window.watching = true;
    for (const kind of ['pointerup', 'keydown']) {
        addEventListener(kind, () => { window.pressed ||= performance.now(); }, {capture: true});
    }
    new MutationObserver(changes => {
        if (app.dataset.testScriptState === 'running') window.ran = true;
        for (const figure of new Set(changes.map(change => change.target.closest?.(figures)))) {
            if (!figure) continue;
            const box = figure.getBoundingClientRect();
            window.last = performance.now();
            if (box.top < innerHeight && box.bottom > 0) window.seen = window.last;
        }
    }).observe(document.body, {subtree: true, childList: true, attributes: true, characterData: true});
}"""
SETTLED = f"window.ran && window.last > 0 && ({READY}) && performance.now() - window.last > 400"


def serve(cache: str) -> tuple[subprocess.Popen, str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "app", "--server.port", str(port)],
        cwd=ROOT,
        env={**os.environ, "KVVIZ_CACHE": cache},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return server, f"http://127.0.0.1:{port}"


def first_picture(page: Page, base: str) -> tuple[float, float]:
    """Seconds until the first chart stands, and until the page is whole, from now on."""
    start = time.perf_counter()
    while True:
        try:
            urllib.request.urlopen(f"{base}/_stcore/health", timeout=1).close()
            break
        except OSError:
            time.sleep(0.05)
    page.goto(base)
    page.wait_for_selector(".js-plotly-plot .main-svg", timeout=300_000)
    first = time.perf_counter() - start
    page.wait_for_function(READY, timeout=300_000)
    return first, time.perf_counter() - start


def timed(page: Page, act: Callable[[], None]) -> tuple[float, float]:
    """Seconds from an action to the last change of the pictures in sight, and of all pictures of the page."""
    page.evaluate(CLOCK)
    act()
    page.wait_for_function(SETTLED, timeout=20_000)
    page.wait_for_timeout(100)
    seen, last = page.evaluate("[window.seen, window.last].map(when => (when - window.pressed) / 1000)")
    return max(seen, 0.0), last


def p95(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=20)[-1]


def press_slider(page: Page, name: str, key: str) -> Callable[[], None]:
    slider = page.locator(f"[data-testid=stMain] input[type=range][aria-label={json.dumps(name)}]")

    def press() -> None:
        slider.focus()
        slider.press(key)

    return press


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=15, help="moves of each control")
    options = parser.parse_args()
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        sys.exit("no Chromium found: apt-get install chromium")
    with (
        tempfile.TemporaryDirectory() as cache,
        tempfile.TemporaryDirectory() as profile,
        sync_playwright() as play,
    ):
        context = play.chromium.launch_persistent_context(
            profile, executable_path=executable, args=FLAGS, viewport={"width": 1280, "height": 900}
        )
        print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
        print("| server start | first picture | whole page |\n|---|---|---|")
        for label in ("first ever (calibrates)", "later"):
            server, base = serve(cache)
            page = context.new_page()
            first, whole = first_picture(page, base)
            print(f"| {label} | {first:.1f} s | {whole:.1f} s |", flush=True)
            if label == "later":
                break
            page.close()
            server.terminate()
            server.wait()
        print(
            "\n| page | control | in sight, median | p95 | whole page, median | p95 |\n|---|---|---|---|---|---|"
        )
        for path in ("overview", "layers", "segments", "heads", "errors", "attention"):
            query = "?layer=1&head=0&time_method=linear" + (
                "&target_length=100" if path == "segments" else ""
            )
            page.goto(f"{base}/{'' if path == 'overview' else path}{query}")
            page.wait_for_selector(".js-plotly-plot .main-svg", timeout=300_000)
            page.wait_for_function(READY, timeout=300_000)
            page.wait_for_timeout(1500)
            controls: dict[str, list[Callable[[], None]]] = {}
            if path != "segments":  # nothing on that page depends on the projectors
                toggle = page.locator("[data-testid=stSidebar] .st-key-control-share_dim_proj label").first
                controls["share the dim projection"] = [toggle.click, toggle.click]
            sliders = page.locator("[data-testid=stMain] input[type=range]:enabled")
            for name, lowest in sliders.evaluate_all("all => all.map(s => [s.ariaLabel, s.value === s.min])"):
                keys = ("ArrowRight", "ArrowLeft") if lowest else ("ArrowLeft", "ArrowRight")
                controls[name] = [press_slider(page, name, key) for key in keys]
            for name, (there, back) in controls.items():
                try:
                    for act in (there, back):
                        timed(page, act)
                except TimeoutError:
                    print(f"| {path} | {name} | changes no picture | | | |", flush=True)
                    continue
                seconds = [timed(page, (there, back)[turn % 2]) for turn in range(options.repeats)]
                seen, whole = ([pair[index] for pair in seconds] for index in (0, 1))
                figures = (statistics.median(seen), p95(seen), statistics.median(whole), p95(whole))
                print(
                    f"| {path} | {name} | " + " | ".join(f"{figure:.2f} s" for figure in figures) + " |",
                    flush=True,
                )
        server.terminate()
        context.close()


if __name__ == "__main__":
    main()
