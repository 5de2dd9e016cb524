"""A matrix in a browser: launched from the page, its table fills, and each of its runs is a click away."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from kvviz.distill.matrix import list_matrices
from kvviz.distill.status import read_state

# As small as real runs can be: two steps, four short answers, projectors fitted on a few texts.
SMALL = {
    "arms": "flat/none",
    "seeds": 1,
    "distill.steps": 2,
    "distill.batch_size": 2,
    "distill.log_every": 1,
    "distill.eval_every": 2,
    "distill.eval_examples": 4,
    "distill.max_new_tokens": 8,
    "distill.calibration_examples": 10,
}
PATIENCE = 240_000


@pytest.fixture
def matrices():
    """Those of the server under test; a queue that is still alive at the end is killed, and so is its run."""
    root = Path(os.environ["KVVIZ_RUNS"])
    yield lambda: list_matrices(root)
    for matrix in list_matrices(root):
        for folder in (matrix.folder, *(cell.run.folder for cell in matrix.cells() if cell.state)):
            process = read_state(folder).process
            if process is not None and (alive := process.find()) is not None:
                alive.kill()


def cells(visitor, row: int) -> list[str]:
    """What a row of the table of exact match says; row 0 is its head."""
    table = visitor.page.locator("table").first
    return [
        re.sub(r"\s+", " ", text) for text in table.locator("tr").nth(row).locator("th, td").all_inner_texts()
    ]


def test_a_matrix_is_launched_and_its_table_fills(visitor, matrices):
    page = visitor.open("ab", **SMALL)
    assert "2 arms × 1 seed = 2 runs of 2 steps" in visitor.text()
    page.get_by_role("button", name="Launch matrix").click()
    page.get_by_role("button", name="Stop matrix").wait_for()
    (matrix,) = matrices()
    page.wait_for_url(f"**matrix={matrix.name}*")
    page.locator("table").first.wait_for()
    assert cells(visitor, 0)[-1] == "expected by the v4.0 report, not measured"
    assert cells(visitor, 1)[:2] == ["flat, trained along", "none yet"]
    page.get_by_text("1 of 2 runs finished").wait_for(timeout=PATIENCE)
    page.locator("table").first.locator("tr").nth(1).get_by_text("%").first.wait_for()
    assert cells(visitor, 2)[:3] == ["no KV loss", "none yet", "–"]
    page.get_by_text("2 of 2 runs finished").wait_for(timeout=PATIENCE)
    page.locator("table").first.locator("tr").nth(2).get_by_text("%").first.wait_for()
    visitor.ready()
    flat, none = cells(visitor, 1), cells(visitor, 2)
    assert flat[1] == none[1] == "0"
    assert re.fullmatch(r"\d+\.\d% \d+\.\d% to \d+\.\d%", flat[2])
    assert re.fullmatch(r"[+-]\d+\.\d [+-]\d+\.\d to [+-]\d+\.\d", flat[4])
    assert (flat[-1], none[-1]) == ("65%", "–")
    assert "flat, trained along against no KV loss" in visitor.text()
    page.get_by_role("button", name="Stop matrix").wait_for(state="detached")
    assert page.get_by_role("button", name="Resume matrix").count() == 0
    with page.expect_download() as download:
        page.get_by_role("button", name="Markdown").click()
    assert "| flat, trained along | 0 |" in Path(download.value.path()).read_text()
    # Another tab, another time: the address is enough.
    page.reload()
    page.locator("table").first.locator("tr").nth(2).wait_for()
    assert cells(visitor, 1) == flat
    visitor.keyed("matrix").get_by_role("link", name="finished").nth(1).click()
    page.get_by_role("heading", name="Runs", level=1).wait_for()
    visitor.ready()
    assert visitor.query()["run"] == f"{matrix.name}-none-seed0"
    assert visitor.query()["matrix"] == matrix.name
