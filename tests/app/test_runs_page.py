"""Runs: every run has its row, some are overlaid, one is looked at; and the way into the inspection pages and back."""

from __future__ import annotations

import shutil
import time

import pytest

from app import runs_table
from kvviz.distill.run import list_runs
from tests.app.browsing import charts, notes, open_at, specs
from tests.app.lab import curves, runs, widget  # noqa: F401
from tests.labruns import made_run

INSPECTION = ["overview", "layers", "segments", "heads", "errors", "attention"]


@pytest.fixture
def three(runs):  # noqa: F811
    """A finished run, one with trained flat maps, and one nobody can read."""
    now = time.time()
    made_run(runs, "first", created=now - 7200, init="uniform")
    made_run(
        runs,
        "second",
        created=now - 60,
        kv_projection_mode="flat",
        init="random",
        aligner="trained",
        seed=1,
        status="stopped",
        steps=40,
        message="Stopped as asked.",
    )
    broken = runs / "broken"
    broken.mkdir()
    (broken / "config.yaml").write_text("stepz: 3")
    (broken / "status.json").write_text("{")
    return runs


def table(app):
    return app.dataframe[0].value


def test_without_runs_the_page_says_what_to_do(runs):  # noqa: F811
    app = open_at("runs")
    assert not app.exception
    assert "There are no runs" in notes(app)
    assert widget(app, "button", "runs.distil")


def test_each_run_has_its_row_and_an_unreadable_one_says_so(three):
    app = open_at("runs")
    assert not app.exception
    rows = {row["Run"]: row for row in table(app).to_dict("records")}
    assert set(rows) == {"first", "second", "broken"}
    assert rows["first"]["Status"].endswith("finished")
    assert rows["first"]["Step"] == "20 / 20"
    assert rows["first"]["Age"] == "2 h"
    assert "%" in rows["first"]["Exact match"]
    assert "kv_projection_mode=flat" in rows["second"]["Differs from the default in"]
    assert "seed=1" in rows["second"]["Differs from the default in"]
    assert rows["broken"]["Status"].endswith("failed")
    assert rows["broken"]["Note"]


def test_nested_differences_are_spelled_flat():
    assert (
        runs_table.spelled({"steps": 3, "loss_config": {"alpha_k": 0.0}}) == "steps=3 loss_config.alpha_k=0.0"
    )


def test_the_selection_in_the_address_is_overlaid(three):
    app = open_at("runs", runs="first/second", compare="eval_loss")
    assert not app.exception
    assert curves(app) == 1
    assert app.query_params == {"runs": "first/second", "compare": "eval_loss"}
    assert curves(open_at("runs")) == 0
    widget(app, "selectbox", "control.compare").set_value("k_spread").run()
    assert app.query_params["compare"] == "k_spread"


def test_a_selection_of_runs_that_are_gone_does_no_harm(three):
    app = open_at("runs", runs="first/nobody", run="nobody")
    assert not app.exception
    assert curves(app) == 1
    assert "is gone" in notes(app)


@pytest.mark.parametrize("name", ["first", "second"])
def test_the_timeline_moves_by_step_and_is_in_the_address(three, name):
    app = open_at("runs", run=name)
    assert not app.exception
    assert charts(app) == 4
    assert ("The aligner is frozen" in notes(app)) == (name == "first")
    before = specs(app)
    widget(app, "select_slider", "timeline.step").set_value(5).run()
    assert app.query_params["moment"] == "5"
    after = specs(app)
    assert before[1:] != after[1:]
    assert (before[0] != after[0]) == (name == "second"), "frozen projectors stay"
    widget(app, "button_group", "control.timeline.part").set_value("q").run()
    assert not app.exception
    assert charts(app) == 4


def test_a_run_that_cannot_be_read_leaves_the_page_alive(three):
    app = open_at("runs", run="broken", runs="first")
    assert not app.exception
    assert curves(app) == 1
    assert "stepz" in notes(app)
    assert "no checkpoint to look inside" in notes(app)


def test_deleting_asks_first_and_the_others_stay(three):
    app = open_at("runs", run="second", runs="first/second")
    widget(app, "button", "second.delete").click().run()
    assert not app.exception
    assert {run.name for run in list_runs(three)} == {"first", "broken"}
    assert app.query_params == {"runs": "first"}


# --- inside a run -----------------------------------------------------------------------------------


def test_open_in_inspector_goes_to_the_inspection_pages(three):
    app = open_at("runs", run="second")
    widget(app, "selectbox", "runs.checkpoint").set_value(10).run()
    widget(app, "button", "runs.inspect").click().run()
    assert not app.exception
    view = app.session_state["view"]
    assert (view.run, view.checkpoint) == ("second", 10)
    assert view.alignment.kv_projection_mode == "flat"
    assert app.query_params == {"run": "second", "checkpoint": "10"}


@pytest.mark.parametrize("page", INSPECTION)
@pytest.mark.parametrize(("name", "step"), [("first", 0), ("second", 10)])
def test_every_inspection_page_says_where_it_looks(three, page, name, step):
    app = open_at(page, run=name, checkpoint=step, part="k", head=0)
    assert not app.exception
    assert not app.error
    assert f"Inside run {name}" in notes(app)
    assert charts(app) >= 1
    view = app.session_state["view"]
    assert view.spec("student").path == (
        "bundled:student" if step == 0 else str(three / "second" / "checkpoints" / "checkpoint-10")
    )
    assert widget(app.sidebar, "button_group", "control.kv_projection_mode").disabled


def test_before_and_after_by_one_button_and_back_to_the_plain_pair(three):
    app = open_at("errors", run="second", checkpoint=10)
    inside = specs(app)
    widget(app, "button", "looking.Previous").click().run()
    assert app.query_params == {"run": "second", "checkpoint": "0"}
    assert specs(app) != inside
    widget(app, "select_slider", "looking.step").set_value(20).run()
    assert app.query_params["checkpoint"] == "20"
    widget(app, "button", "looking.back").click().run()
    assert "checkpoint" not in app.query_params
    assert app.query_params["kv_projection_mode"] == "flat", "the same map, fitted or started anew"
    assert "Inside run" not in notes(app)
    assert not widget(app.sidebar, "button_group", "control.kv_projection_mode").disabled


def test_a_page_that_would_change_the_projectors_is_told_no(three):
    app = open_at("layers", run="first", checkpoint=10)
    widget(app, "slider", "layers.weight").set_value(0.3).run()
    assert not app.exception
    assert "decided by run first" in notes(app)
    assert app.session_state["view"].alignment.layer_mapping_strategy == "uniform"


@pytest.mark.parametrize("address", [{"run": "nobody", "checkpoint": 10}, {"run": "first", "checkpoint": 7}])
def test_what_is_not_there_is_explained_with_the_way_back(three, address):
    app = open_at("heads", **address)
    assert not app.exception
    assert len(app.error) == 1
    assert charts(app) == 0
    widget(app, "button", "looking.back").click().run()
    assert not app.error
    assert charts(app) == 6


def test_a_run_deleted_while_it_is_looked_at(three):
    app = open_at("heads", run="second", checkpoint=10)
    shutil.rmtree(three / "second")
    app.run()
    assert not app.exception
    assert "is gone" in notes(app)


@pytest.mark.parametrize("name", ["../../etc", "..", ".hidden", "a/b", "a\\b", "\0", "x" * 300])
def test_a_name_that_leads_elsewhere_is_no_run(name):
    from app.view import View

    view, ignored = View.from_query({"run": name, "checkpoint": "1"})
    assert view.run == ""
    assert not view.inspects
    assert len(ignored) == 1
