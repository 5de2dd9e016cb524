"""The lab in a browser: launch, watch, reload, stop, resume, look inside; a table that keeps its selection; pictures."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from kvviz.distill.run import Run
from tests.browser.test_pictures import ARTIFACTS, looks_right
from tests.labruns import made_run

# As small as a real run can be: no calibration, two texts a step, four short answers an evaluation.
SMALL = {
    "init": "uniform",
    "distill.steps": 400,
    "distill.batch_size": 2,
    "distill.log_every": 1,
    "distill.eval_every": 200,
    "distill.eval_examples": 4,
    "distill.max_new_tokens": 8,
}
WORDS = "[data-testid=stMarkdownContainer], [data-testid=stCaptionContainer]"
# Notes each chart that is taken out of the page, and each shift of what was drawn.
WATCH = """() => {
    window.lost = 0; window.shifted = 0;
    const charts = [...document.querySelectorAll('[data-testid=stVegaLiteChart]')];
    charts.flatMap(chart => [...chart.querySelectorAll('svg, canvas')]).forEach(node => node.watched = true);
    new MutationObserver(records => records.forEach(record => record.removedNodes.forEach(node => {
        const inside = node.querySelectorAll ? [node, ...node.querySelectorAll('svg, canvas')] : [];
        window.lost += inside.filter(one => one.watched).length;
    }))).observe(document.body, {childList: true, subtree: true});
    new PerformanceObserver(list => list.getEntries().forEach(entry => window.shifted += entry.value))
        .observe({type: 'layout-shift'});
    return charts.length;
}"""


@pytest.fixture
def folder():
    """Where the server under test keeps its runs; whatever still trains there at the end is killed."""
    root = Path(os.environ["KVVIZ_RUNS"])
    yield root
    for path in root.iterdir():
        process = Run(path).state().process
        if (path / "status.json").exists() and process is not None and (alive := process.find()):
            alive.kill()


def says(visitor, words: str) -> None:
    visitor.page.locator(WORDS, has_text=words).first.wait_for(timeout=120_000)


def dots(visitor) -> int:
    """Points drawn in the chart of the total loss."""
    return visitor.keyed("curve.loss").locator(".mark-symbol path").count()


def until(visitor, condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        visitor.page.wait_for_timeout(100)  # Unlike a sleep, it hears what happens in the page.


def test_a_run_from_its_launch_to_the_inspector(visitor, folder):
    page = visitor.open("distil", **SMALL)
    page.get_by_role("button", name="Launch").click()
    page.wait_for_url("**run=*")
    run = Run(folder / visitor.query()["run"])
    says(visitor, "running")
    visitor.rest()
    until(visitor, lambda: dots(visitor) > 4)
    assert page.evaluate(WATCH) == 9
    before, written = dots(visitor), len(run.metrics())
    until(visitor, lambda: dots(visitor) > before and len(run.metrics()) > written + 3)
    assert page.evaluate("window.lost") == 0, "charts keep their place while points arrive"
    assert page.evaluate("window.shifted") == 0, "nothing jumps"

    page.reload()
    says(visitor, "running")
    assert visitor.query()["run"] == run.name
    assert visitor.query()["distill.steps"] == "400"

    page.get_by_role("button", name="Stop run").click()
    says(visitor, "Stopped as asked")
    stopped = run.state().step
    assert run.checkpoints()[-1] == stopped < 400
    page.get_by_role("button", name="Resume").click()
    says(visitor, "running")
    until(visitor, lambda: run.metrics()[-1]["step"] > stopped)
    page.get_by_role("button", name="Stop run").click()
    says(visitor, "Stopped as asked")

    page.get_by_role("button", name="Open in inspector").click()
    says(visitor, f"Inside run {run.name}, step {run.checkpoints()[-1]}")
    visitor.ready()
    assert visitor.query()["checkpoint"] == str(run.checkpoints()[-1])
    inside = visitor.metrics()
    visitor.keyed("looking.Previous").get_by_role("button").click()
    says(visitor, f"Inside run {run.name}, step {stopped}")
    visitor.switch("K/V errors")
    says(visitor, f"Inside run {run.name}, step {stopped}")
    visitor.keyed("looking.back").get_by_role("button").click()
    visitor.ready()
    assert "checkpoint" not in visitor.query()
    visitor.switch("Overview")
    assert visitor.metrics() != inside


def test_the_table_keeps_its_selection_while_it_is_refreshed(visitor, folder):
    now = time.time()
    for age, name in enumerate(("third", "second", "first")):
        made_run(folder, name, created=now - 100_000 * (age + 1), init="uniform", seed=age)
    page = visitor.open("runs", runs="first/second")
    legend = visitor.keyed("runs.overlay").locator(".role-legend-label")
    until(visitor, lambda: legend.all_text_contents() == ["first", "second"])
    Run(folder / "first").append({"step": 20, "accuracy": 0.99, "accuracy_low": 0.9, "accuracy_high": 1.0})
    made_run(folder, "newest", init="uniform", step=0)
    page.wait_for_timeout(5000)  # More than one tick.
    visitor.ready()
    assert visitor.query()["runs"] == "first/second"
    assert legend.all_text_contents() == ["first", "second"]
    # The last row of the table, by its box, is the oldest run: taking it out leaves the other.
    table = page.get_by_test_id("stDataFrame").first.bounding_box()
    page.mouse.click(table["x"] + 18, table["y"] + table["height"] - 18)
    visitor.rest()
    until(visitor, lambda: visitor.query().get("runs") == "second")
    until(visitor, lambda: legend.all_text_contents() == ["second"])


PAGES = {
    "distil": {"run": "drawn"},
    "runs": {"run": "drawn", "runs": "drawn/other", "moment": 40},
    "errors": {"run": "drawn", "checkpoint": 40},
}


@pytest.mark.parametrize("name", PAGES)
def test_pictures_in_both_themes_and_widths(visitor, folder, name):
    ARTIFACTS.mkdir(exist_ok=True)
    if not (folder / "drawn").exists():
        made_run(folder, "drawn", steps=100, step=80, status="stopped", init="uniform", aligner="trained")
        made_run(folder, "other", steps=100, step=100, seed=2, kv_projection_mode="flat", init="random")
    for scheme in ("light", "dark"):
        visitor.page.emulate_media(color_scheme=scheme)
        visitor.page.set_viewport_size({"width": 1280, "height": 900})
        visitor.open(name, **PAGES[name])
        for width in (1280, 1920):
            visitor.page.set_viewport_size({"width": width, "height": 900})
            visitor.ready()
            visitor.whole_page()
            visitor.page.screenshot(path=ARTIFACTS / f"lab-{name}-{width}-{scheme}.png")
            looks_right(visitor)
