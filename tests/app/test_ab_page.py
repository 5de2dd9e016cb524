"""The A/B matrix page without a browser: its form, its grid, its tables, and what it says when things go wrong."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from kvviz.distill import launch
from kvviz.distill.arms import ARMS
from kvviz.distill.matrix import list_matrices
from kvviz.distill.status import write_state
from tests.app.browsing import notes, open_at
from tests.distill.conftest import until
from tests.matrices import PROBLEMS, cell_of, ended, made_cell, made_matrix

EXPECTED = ("65%", "67%", "70%", "71%")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A folder of runs of its own; a queue that is started does nothing."""
    monkeypatch.setenv("KVVIZ_RUNS", str(tmp_path))
    monkeypatch.delenv("KVVIZ_RUNS_AT_ONCE", raising=False)
    monkeypatch.setattr(launch, "PROGRAM", ("/bin/true",))
    return tmp_path


def tables(app) -> list[list[list[str]]]:
    """The tables of the page: rows of cells, without their markup."""
    found = []
    for element in app.get("html"):
        body = element.proto.body
        if "<table" in body:
            rows = re.findall(r"<tr.*?</tr>", body, re.S)
            cells = [re.findall(r"<t[hd].*?</t[hd]>", row, re.S) for row in rows]
            found.append([[re.sub(r"<[^>]*>", " ", cell).strip() for cell in row] for row in cells])
    return found


def drawn(app, key) -> tuple[dict, list[dict]]:
    """A chart's specification and rows."""
    (chart,) = (one for one in app.get("vega_lite_chart") if key in one.proto.id)
    return json.loads(chart.proto.spec), chart


def page(**address):
    app = open_at("ab", **address)
    assert not app.exception
    return app


def full(root, **base):
    matrix = made_matrix(root, **base)
    for cell in matrix.cells():
        made_cell(matrix, cell.arm, cell.seed)
    ended(matrix)
    return matrix


def test_an_empty_page_says_what_it_is_for_and_what_to_press(root):
    app = page()
    assert "Launch matrix" in app.info[0].value
    assert "structured map beat a flat one" in app.info[0].value
    assert app.button(key="ab.launch").disabled is False
    assert "**6 arms × 3 seeds = 18 runs** of 300 steps, seeds 0, 1, 2" in notes(app)
    assert not tables(app)


def test_the_form_counts_what_it_would_make_and_the_address_keeps_it(root):
    app = page(arms="flat/none", seeds="2", **{"distill.steps": "40", "distill.seed": "5"})
    assert "**2 arms × 2 seeds = 4 runs** of 40 steps, seeds 5, 6" in notes(app)
    app.number_input(key="control.seeds").set_value(1).run()
    app.pills(key="control.arms").set_value(["none"]).run()
    assert "**1 arm × 1 seed = 1 run** of 40 steps, seeds 5;" in notes(app)
    assert app.query_params["arms"] == "none"
    assert app.query_params["seeds"] == "1"
    app.pills(key="control.arms").set_value([]).run()
    assert app.pills(key="control.arms").value == ["none"], "one stays"
    app.pills(key="control.arms").set_value(list(ARMS)).run()
    assert "arms" not in app.query_params


def test_the_arms_decide_the_projectors_whatever_the_sidebar_says(root):
    sidebar = {"kv_projection_mode": "identity", "share_dim_proj": "false", "time_method": "linear"}
    app = page(**sidebar)
    app.button(key="ab.launch").click().run()
    assert not app.exception
    (matrix,) = list_matrices(root)
    base = matrix.config.base
    assert (base.kv_projection_mode, base.share_dim_proj, base.time_method) == ("structured", True, "linear")
    assert matrix.config.config("per-head", 1).share_dim_proj is False
    assert matrix.config.config("uniform", 1).share_dim_proj is True


def test_what_cannot_be_run_is_named_and_not_launched(root):
    app = page(**{"distill.alpha_ce": "0"})
    assert "every weight is 0" in notes(app)
    assert app.button(key="ab.launch").disabled
    app = page(**{"distill.alpha_k": "0", "distill.alpha_v": "0", "distill.alpha_attn": "0"})
    assert "every arm would be the same" in notes(app)
    app = page(**{"distill.data": "/no/such/file.jsonl"})
    app.button(key="ab.launch").click().run()
    assert "/no/such/file.jsonl" in re.sub(r"\\", "", notes(app))
    assert list_matrices(root) == []


def test_launch_starts_one_queue_and_shows_it(root, monkeypatch):
    monkeypatch.setattr(launch, "PROGRAM", ("/bin/sh", "-c", 'echo "$@" >&2; exec sleep 60', "kvviz"))
    app = page(arms="flat", seeds="1")
    app.button(key="ab.launch").click().run()
    (matrix,) = list_matrices(root)
    process = matrix.state().process.find()
    assert process is not None
    try:
        assert matrix.config.arms == ("flat",)
        assert app.query_params["matrix"] == matrix.name
        assert "0 of 1 runs finished" in app.get("progress")[0].proto.text
        until(lambda: f"ab {matrix.folder}" in matrix.process.log_tail())
        app.button(key="ab.stop").click().run()
        assert matrix.process.stop_requested()
        assert app.button(key="ab.stop").disabled
    finally:
        process.kill()


def test_the_grid_names_every_run_with_its_status_and_the_way_to_it(root):
    matrix = made_matrix(root, arms=("flat", "none"), seeds=(0, 1))
    made_cell(matrix, "flat", 0)
    made_cell(matrix, "none", 0, "failed", step=7, message="The disk is <b>full</b>.\nNothing *fits*.")
    made_cell(matrix, "flat", 1, "stopped", step=5)
    ended(matrix, "stopped")
    app = page()
    links = {link.proto.label: link.proto for link in app.get("page_link")}
    assert {"finished", "failed 7 / 20", "stopped 5 / 20"} <= set(links)
    assert "run=ab-flat-seed1" in links["stopped 5 / 20"].query_string
    assert [one.value for one in app.caption if one.value == "not begun"] == ["not begun"]
    progress = app.get("progress")[0].proto
    assert "1 of 4 runs finished, 1 failed" in progress.text
    assert progress.value == round(100 * (1 + 7 / 20 + 5 / 20) / 4)
    error = app.error[0].value
    assert "ab\\-none\\-seed0" in error
    assert "\\<b\\>full" in error, "a message is no markup"
    assert "the others go on" in error
    assert app.button(key="ab.resume").disabled is False


def test_the_table_fills_while_runs_end(root):
    matrix = made_matrix(root)
    app = page()
    assert "The table fills while runs end" in notes(app)
    accuracy, cache = tables(app)
    assert len(accuracy) == len(cache) == 7
    assert {row[1] for row in accuracy[1:]} == {"none yet"}
    made_cell(matrix, "flat", 0)
    made_cell(matrix, "fitted", 0)
    app.run()
    accuracy, cache = tables(app)
    assert [row[1] for row in accuracy[1:]] == ["0", "none yet", "none yet", "none yet", "0", "none yet"]
    assert re.match(r"\d\d\.\d%\s+\d\d\.\d% to", accuracy[1][2])
    assert re.match(r"[+-]\d+\.\d\s+[+-]\d+\.\d to [+-]", accuracy[5][3])
    assert cache[1][2] == "0.200"
    assert "fitted and frozen against flat" in notes(app)
    assert "solved 25\\.0% of the same problems" in notes(app)


def test_expected_figures_stand_in_a_column_of_their_own(root, monkeypatch):
    full(root)
    app = page()
    accuracy, cache = tables(app)
    assert accuracy[0][-1] == "expected by the v4.0 report, not measured"
    assert tuple(row[-1] for row in accuracy[1:5]) == EXPECTED
    assert [row[-1] for row in accuracy[5:]] == ["–", "–"]
    before = [row[:-1] for row in accuracy], cache, notes(app)
    for name in ARMS:
        monkeypatch.setitem(ARMS, name, replace(ARMS[name], expected=0.123))
    ended(list_matrices(root)[0])
    from app import matrix_watching

    matrix_watching._table.clear()
    app = page()
    accuracy, cache = tables(app)
    assert {row[-1] for row in accuracy[1:]} == {"12%"}
    assert ([row[:-1] for row in accuracy], cache, notes(app)) == before


def test_arms_of_which_the_report_says_nothing_have_no_such_column(root):
    matrix = made_matrix(root, arms=("fitted", "none"), seeds=(0,))
    made_cell(matrix, "none", 0)
    accuracy, _ = tables(page())
    assert accuracy[0][-1] == "against no KV loss, points"


def test_the_verdict_is_said_as_it_comes_out(root):
    matrix = made_matrix(root, arms=("flat", "uniform", "none"), seeds=(0,))
    half = np.arange(PROBLEMS) % 2 == 0
    made_cell(matrix, "flat", 0, right=half)
    made_cell(matrix, "uniform", 0, right=half & (np.arange(PROBLEMS) > 20))
    made_cell(matrix, "none", 0, right=half)
    ended(matrix)
    said = re.sub(r"\\", "", notes(page()))
    assert "structured, uniform start, trained along against flat, trained along: -27.5 points" in said
    assert ", worse." in said
    assert "flat, trained along against no KV loss: +0.0 points" in said
    assert "no difference that this matrix can tell from chance" in said


def test_downloads_hold_what_the_page_shows(root):
    full(root)
    app = page()
    labels = [one.proto.label for one in app.get("download_button")]
    assert labels[-2:] == ["Markdown", "JSON"]


def test_a_queue_that_is_gone_is_lost_and_can_be_resumed(root):
    matrix = made_matrix(root, arms=("flat",), seeds=(0, 1))
    made_cell(matrix, "flat", 0)
    state = matrix.state()
    write_state(matrix.folder, replace(state, status="running", pid=2**22 + 1, pid_started=1.0, host=_host()))
    app = page()
    assert "gone without a word" in app.get("progress")[0].proto.text
    assert app.button(key="ab.resume").disabled is False
    assert "ab.stop" not in [one.key for one in app.button]


def test_a_second_start_is_refused_in_words(root):
    matrix = made_matrix(root, arms=("flat",), seeds=(0,))
    ended(matrix, "stopped")
    app = page()
    matrix.process.write_status("running")  # by this process, which lives: another browser was faster
    app.button(key="ab.resume").click().run()
    assert "Cannot start ab" in app.error[0].value
    assert "lives, and is running" in app.error[0].value
    ended(matrix, "stopped")


def test_a_finished_matrix_offers_neither_stop_nor_resume(root):
    full(root)
    keys = {one.key for one in page().button}
    assert not keys & {"ab.stop", "ab.resume"}


def test_a_matrix_of_the_address_is_shown_and_one_that_is_gone_is_named(root):
    made_matrix(root, "one", arms=("flat",), seeds=(0,))
    made_matrix(root, "two", arms=("none",), seeds=(0,))
    app = page()
    assert app.selectbox(key="control.matrix").value == "two", "the newest"
    app.selectbox(key="control.matrix").set_value("one").run()
    assert app.query_params["matrix"] == "one"
    assert tables(app)[0][1][0] == ARMS["flat"].title
    app = page(matrix="three")
    assert "The matrix three is gone" in app.error[0].value
    assert app.selectbox(key="control.matrix").value == "two"


@pytest.mark.parametrize("nonsense", ["../../etc", "a/b", "<script>", "x" * 500, "none/none/flat", "\0"])
def test_nonsense_in_the_address_does_no_harm(root, nonsense):
    full(root)
    app = page(matrix=nonsense, arms=nonsense, seeds=nonsense)
    assert tables(app)


def test_what_is_broken_or_deleted_is_named_and_the_rest_goes_on(root):
    matrix = full(root)
    (cell_of(matrix, "flat", 0).run.folder / "metrics.jsonl").write_text("no metrics\n")
    shutil.rmtree(cell_of(matrix, "none", 1).run.folder)
    accuracy, _ = tables(page())
    assert accuracy[1][1] == "1, 2"
    assert accuracy[6][1] == "0, 2"
    (matrix.folder / "matrix.yaml").write_text("armz: [flat]\n")
    made_matrix(root, "other", arms=("none",), seeds=(0,))
    app = page(matrix="ab")
    assert "cannot be read" in app.error[0].value
    assert "armz" in app.error[0].value
    app.selectbox(key="control.matrix").set_value("other").run()
    assert not app.exception
    assert not app.error


def _host():
    import socket

    return socket.gethostname()
