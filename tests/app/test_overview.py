"""Overview: every mode draws, figures stand beside the identity's, the teacher writes."""

from __future__ import annotations

import json

import pytest

from app import writing
from kvviz.errors import PromptError
from tests.app.browsing import FOLDS, MODES, READINGS, charts, notes, open_at, specs


def metric(app, label: str):
    return next(element for element in app.metric if element.label == label)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_draws_in_every_mode(mode):
    app = open_at("overview", **mode)
    assert not app.exception
    assert not app.error
    assert charts(app) == 2
    assert "matches transformers within" in notes(app)


@pytest.mark.parametrize("reading", READINGS, ids=str)
def test_draws_for_every_text(reading):
    app = open_at("overview", **reading)
    assert not app.exception
    assert not app.error
    # A pair that is not calibrated has no held-out comparison, and says how to get one.
    assert charts(app) == (1 if "teacher" in reading else 2)
    assert ("not calibrated" in notes(app)) == ("teacher" in reading)


def test_the_fitted_aligner_beats_the_identity_and_says_by_how_much():
    app = open_at("overview")
    for label in ("K relative error", "V relative error", "Attention KL, nats"):
        found = metric(app, label)
        assert float(found.value) < float(found.delta.removeprefix("identity "))


def test_the_identity_is_its_own_baseline():
    app = open_at("overview", kv_projection_mode="identity")
    found = metric(app, "K relative error")
    assert found.delta == f"identity {found.value}"
    assert metric(app, "Aligner parameters").value == "0"


def test_the_pipeline_names_the_shapes_of_every_stage():
    spec = json.loads(specs(open_at("overview"))[0])
    words = " ".join(note["text"] for note in spec["layout"]["annotations"])
    for name in ("Teacher", "Layers", "Time", "Heads and dims", "Student"):
        assert name in words


def test_the_teacher_writes_and_the_rest_of_the_view_stays(monkeypatch):
    monkeypatch.setattr(writing, "stream_greedy", lambda model, prompt, most, stop: iter(["two ", "lines\n"]))
    app = open_at("overview", example=4, layer=2)
    prompt = app.session_state["view"]
    next(button for button in app.button if button.label.startswith("Let the teacher")).click().run()
    assert not app.exception
    view = app.session_state["view"]
    assert view.source == "own"
    assert view.text.endswith("two lines\n")
    assert (view.layer, view.example) == (prompt.layer, prompt.example) == (2, 4)


def test_a_prompt_that_leaves_no_room_is_explained(monkeypatch):
    def full(*_):
        raise PromptError("There is no room to write.", "The prompt is long.", "Shorten the prompt.")

    monkeypatch.setattr(writing, "stream_greedy", full)
    app = open_at("overview")
    next(button for button in app.button if button.label.startswith("Let the teacher")).click().run()
    assert not app.exception
    assert "no room to write" in notes(app)
    assert charts(app) == 2


def test_what_is_folded_is_not_made_until_it_is_opened():
    app = open_at("overview")
    keys = {"control.key_space", "control.teacher", "control.student_dtype"}
    assert {widget.key for widget in (*app.text_input, *app.selectbox, *app.button_group)} >= keys
    commands = [code.value for code in app.code]
    assert any(command.startswith("kvviz profile") for command in commands)
    for fold in FOLDS:
        app.session_state[fold] = False
    app.run()
    assert not keys & {widget.key for widget in (*app.text_input, *app.selectbox, *app.button_group)}
    assert not app.code
