"""Distil: a run's fields live in the address, what does not go together is named in place, a launch is watched."""

from __future__ import annotations

import json
import sys
import time

import pytest

from app import estimating
from app.recipe import LOSSES, OWN, Recipe, config_of
from app.view import View
from kvviz.config import ConfigError
from kvviz.distill.config import DistillConfig
from kvviz.distill.run import list_runs
from tests.app.browsing import notes, open_at
from tests.app.lab import curves, runs, widget  # noqa: F401
from tests.distill.conftest import until
from tests.labruns import made_run

CHANGED = {
    "distill.steps": "100",
    "distill.learning_rate": "0.0005",
    "distill.alpha_kd": "1.5",
    "distill.aligner": "trained",
    "distill.data": "some/where.jsonl",
    "distill.trainer": "bf16: true, fsdp: full_shard",
}


# --- the fields -------------------------------------------------------------------------------------


def test_the_default_page_is_the_default_run():
    assert config_of(View()) == DistillConfig()
    assert Recipe().to_query() == {}


def test_the_address_reads_back_and_makes_the_run():
    view, ignored = View.from_query(
        CHANGED | {"kv_projection_mode": "flat", "seed": "7", "target_length": "30"}
    )
    assert ignored == []
    assert view.to_query() == CHANGED | {"kv_projection_mode": "flat", "seed": "7", "target_length": "30"}
    config = config_of(view)
    assert (config.steps, config.loss_config.alpha_kd, config.kv_projection_mode) == (100, 1.5, "flat")
    assert dict(config.trainer) == {"bf16": True, "fsdp": "full_shard"}
    assert config.seed == 0, "the sidebar's seed is of the view's starts, not of the run"
    assert config.target_length is None


@pytest.mark.parametrize("name", sorted((OWN - {"loss_config"}) | LOSSES))
def test_nonsense_in_one_field_costs_no_other(name):
    view, ignored = View.from_query({"distill.steps": "7", "distill.alpha_k": "3", f"distill.{name}": "{"})
    if name not in ("data", "data_config", "report_to"):
        assert len(ignored) == 1
        assert name in ignored[0]
    assert view.distill.steps == 7 or name == "steps"
    assert view.distill.loss_config.alpha_k == 3 or name == "alpha_k"


def test_an_unknown_field_is_named():
    view, ignored = View.from_query({"distill.stepz": "1"})
    assert ignored == ["distill.stepz: unknown"]
    assert view == View()


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ({f"distill.alpha_{name}": "0" for name in ("ce", "k", "v", "attn")}, "loss_config"),
        ({"distill.aligner": "trained", "kv_projection_mode": "identity"}, "aligner"),
        ({"distill.alpha_kd": "1", "distill.student_reads": "brief"}, "loss_config"),
        ({"kv_projection_mode": "flat", "flat_kind": "elastic"}, "init"),
    ],
)
def test_what_does_not_go_together_is_kept_and_named(query, named):
    view, ignored = View.from_query(query)
    assert ignored == []
    assert view.to_query() == query
    with pytest.raises(ConfigError, match=named):
        config_of(view)


# --- the page ---------------------------------------------------------------------------------------


def test_before_the_first_run_the_page_says_what_to_do(runs):  # noqa: F811
    app = open_at("distil")
    assert not app.exception
    assert "Launch a run" in notes(app)
    assert curves(app) == 0
    assert not widget(app, "button", "distil.launch").disabled


def test_a_field_moved_is_in_the_address(runs):  # noqa: F811
    app = open_at("distil", layer=2)
    widget(app, "number_input", "distill.steps").set_value(40).run()
    widget(app, "number_input", "distill.alpha_attn").set_value(0.25).run()
    widget(app, "text_input", "distill.report_to").set_value("tensorboard").run()
    assert app.query_params == {
        "layer": "2",
        "distill.steps": "40",
        "distill.alpha_attn": "0.25",
        "distill.report_to": "tensorboard",
    }


def test_a_contradiction_is_named_at_its_field_and_nothing_is_lost(runs):  # noqa: F811
    app = open_at("distil", **{"distill.steps": "40", "kv_projection_mode": "identity"})
    group = widget(app, "button_group", "distill.aligner")
    group.set_value("trained").run()
    assert not app.exception
    assert "identity has no parameters to train" in notes(app)
    assert widget(app, "button", "distil.launch").disabled
    assert widget(app, "number_input", "distill.steps").value == 40
    widget(app, "button_group", "distill.aligner").set_value("frozen").run()
    assert not widget(app, "button", "distil.launch").disabled


def test_what_the_sidebar_contradicts_is_said_above_the_button(runs):  # noqa: F811
    app = open_at("distil", kv_projection_mode="flat", flat_kind="elastic")
    assert "Change it in the sidebar" in notes(app)
    assert widget(app, "button", "distil.launch").disabled


def test_trainer_arguments_that_are_none_are_refused_in_words(runs):  # noqa: F811
    app = open_at("distil")
    widget(app, "text_input", "distill.trainer").set_value("nonsense: [").run()
    assert not app.exception
    assert "Ignored" in notes(app)
    assert "distill.trainer" not in app.query_params


def test_data_that_are_not_there_start_nothing(runs):  # noqa: F811
    app = open_at("distil", **{"distill.data": "/no/such/file.jsonl"})
    widget(app, "button", "distil.launch").click().run()
    assert not app.exception
    assert "/no/such/file" in notes(app).replace("\\", "")
    assert list_runs(runs) == []


def test_a_launch_is_watched_and_survives_a_reload(runs):  # noqa: F811
    app = open_at("distil", **{"distill.steps": "30"})
    widget(app, "button", "distil.launch").click().run()
    assert not app.exception
    (run,) = list_runs(runs)
    assert app.query_params["run"] == run.name
    assert run.config == DistillConfig(steps=30)
    until(lambda: run.metrics())
    again = open_at("distil", **{name: app.query_params[name] for name in app.query_params})
    assert not again.exception
    assert run.name in notes(again).replace("\\", "")
    assert curves(again) == 9
    widget(again, "button", f"{run.name}.stop").click().run()
    until(lambda: run.state().status == "stopped")
    stopped = open_at("distil", run=run.name)
    assert "stopped" in notes(stopped)
    widget(stopped, "button", f"{run.name}.resume").click().run()
    assert not stopped.exception
    until(lambda: run.state().status == "finished")


def test_a_finished_run_shows_its_curves_and_a_warning_where_it_collapsed(runs):  # noqa: F811
    made_run(runs, "done", steps=20, init="uniform")
    app = open_at("distil", run="done")
    assert not app.exception
    assert curves(app) == 9
    assert "spread of the student's keys fell" in notes(app)
    values = {metric.label: metric.value for metric in app.metric}
    assert values["Seconds a step"] == "2"
    assert values["Tokens a second"] == "1,350"
    assert values["Time left"] == "–"


def test_logit_kd_has_a_chart_where_it_is_used(runs):  # noqa: F811
    made_run(runs, "kd", init="uniform", loss_config={"alpha_kd": 1.0})
    assert curves(open_at("distil", run="kd")) == 10


@pytest.mark.parametrize("status", ["failed", "lost"])
def test_a_run_that_broke_says_how_and_offers_to_go_on(runs, status):  # noqa: F811
    run = made_run(runs, "broke", status=status, message="It <b>broke</b>.\nBecause *so*.", init="uniform")
    run.log_path.write_text("the last line")
    app = open_at("distil", run="broke")
    assert not app.exception
    assert "It \\<b\\>broke\\</b\\>\\." in notes(app)
    assert any("the last line" in code.value for code in app.code)
    assert widget(app, "button", "broke.resume")


def test_a_run_that_is_gone_is_said(runs):  # noqa: F811
    app = open_at("distil", run="nobody")
    assert not app.exception
    assert "is gone" in notes(app)


# --- the estimate -----------------------------------------------------------------------------------

FOUND = {
    "seconds_ready": 5.0,
    "seconds_step": 0.25,
    "seconds_evaluation": 4.0,
    "seconds_total": 130.0,
    "peak_bytes": 2**30,
    "parameters_trained": 430_944,
    "device": "cpu",
}


def trial(monkeypatch, code: str) -> None:
    monkeypatch.setattr(estimating, "PROGRAM", (sys.executable, "-c", code))


def ended(app):
    """Run the page again until its trial has ended."""
    for _ in range(200):
        if not app.session_state["estimate"].running():
            return app.run()
        time.sleep(0.05)
    raise AssertionError("the trial did not end")


def test_an_estimate_says_time_and_memory(runs, monkeypatch):  # noqa: F811
    trial(monkeypatch, f"print('loading'); print({json.dumps(FOUND)!r})")
    app = open_at("distil")
    widget(app, "button", "distil.estimate").click().run()
    ended(app)
    assert not app.exception
    values = {metric.label: metric.value for metric in app.metric}
    assert values["Estimated time"] == "2 min 10 s"
    assert values["Peak memory"] == "1.00 GiB"
    widget(app, "number_input", "distill.steps").set_value(40).run()
    assert "before the last change" in notes(app)


def test_a_trial_that_fails_says_why(runs, monkeypatch):  # noqa: F811
    trial(monkeypatch, "import sys; sys.exit('no model <i>here</i>')")
    app = open_at("distil")
    widget(app, "button", "distil.estimate").click().run()
    ended(app)
    assert "no model \\<i\\>here" in notes(app)


def test_a_trial_can_be_cancelled(runs, monkeypatch):  # noqa: F811
    trial(monkeypatch, "import time; time.sleep(600)")
    app = open_at("distil")
    widget(app, "button", "distil.estimate").click().run()
    process = app.session_state["estimate"].process
    assert process.poll() is None
    widget(app, "button", "estimate.cancel").click().run()
    assert process.poll() is not None
    assert "estimate" not in app.session_state
