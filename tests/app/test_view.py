"""The view and the address bar: what is written reads back, nonsense is named and does no harm."""

from __future__ import annotations

import pytest
import streamlit as st
from hypothesis import given
from hypothesis import strategies as some

from app.view import SPELLED_LIMIT, View, current, synchronise, update
from kvviz.config import AlignmentConfig

WORDS = some.text(some.characters(exclude_categories=("Cs",)), max_size=60)
NUMBERS = some.integers(0, 10**12)
ALIGNMENTS = some.builds(
    AlignmentConfig,
    kv_projection_mode=some.sampled_from(["structured", "flat", "identity"]),
    init=some.sampled_from(["fitted", "uniform", "random"]),
    share_layers=some.booleans(),
    time_method=some.sampled_from(["auto", "text", "linear", "area"]),
    alpha_map=some.dictionaries(some.integers(0, 40), some.floats(0, 1), max_size=3),
    ratio_map=some.dictionaries(some.integers(0, 40), some.floats(0, 100), max_size=3),
    target_length=some.none() | some.integers(1, 8192),
    seed=some.integers(0, 2**31 - 1),
)
VIEWS = some.builds(
    View,
    teacher=WORDS,
    teacher_revision=WORDS,
    teacher_dtype=some.sampled_from(["auto", "float32", "bfloat16", "float16"]),
    student=WORDS,
    source=some.sampled_from(["example", "own"]),
    example=some.integers(0, 23),
    text=WORDS,
    student_reads=some.sampled_from(["same", "brief", "own"]),
    student_text=WORDS,
    segments=WORDS,
    part=some.sampled_from(["q", "k", "v"]),
    layer=NUMBERS,
    head=some.none() | NUMBERS,
    token=some.none() | NUMBERS,
    metric=some.sampled_from(["relative_error", "cosine", "r2", "norm_ratio"]),
    baseline=some.booleans(),
    bend=some.sampled_from(["linear", "sqrt", "log"]),
    alignment=ALIGNMENTS,
)
FIELDS = sorted(
    (set(View.model_fields) | set(AlignmentConfig.model_fields)) - {"alignment", "distill", "loss_config"}
)
# Free text may hold anything; what it means is found out where it is used.
TEXTS = {"teacher", "teacher_revision", "student", "student_revision", "text", "student_text"}
TEXTS |= {"segments", "student_segments"}
# Names of runs: whether there is such a run is found out where it is opened.
TEXTS |= {"run", "runs", "matrix"}
NONSENSE = ["", " ", "nonsense", "-1", "1e999", "nan", "None", "true;", "9" * 5000, "0:0:0", "[1,2", "{}"]
NONSENSE += ["<script>alert(1)</script>", "שלום", "\0", "💥", "../../etc/passwd", "0x10", "1,2;3"]


@given(VIEWS)
def test_what_the_address_holds_reads_back(view):
    query = view.to_query()
    assert all(isinstance(value, str) for value in query.values())
    again, ignored = View.from_query(query)
    assert again == view
    assert ignored == []


def test_the_default_view_has_an_empty_address():
    assert View().to_query() == {}


@pytest.mark.parametrize("field", FIELDS)
def test_nonsense_in_one_field_costs_no_other(field):
    others = {"layer": "2", "source": "own", "share_layers": "true"}
    for value in NONSENSE:
        view, ignored = View.from_query(others | {field: value})
        kept = {"layer": view.layer == 2, "source": view.source == "own"}
        kept["share_layers"] = view.alignment.share_layers
        assert all(right or name == field for name, right in kept.items())
        assert len(ignored) <= 1
        assert all(message.startswith(field) and len(message) < 600 for message in ignored)
        if value == "nonsense":
            assert bool(ignored) == (field not in TEXTS), "what is ignored is said"
        if not view.unspelled():
            assert View.from_query(view.to_query())[0] == view


@given(some.dictionaries(some.sampled_from([*FIELDS, "loss.alpha_k", "loss.x", "x", "alignment"]), WORDS))
def test_any_address_gives_a_view(query):
    view, _ = View.from_query(query)
    assert isinstance(view, View)


def test_an_unknown_field_is_named():
    view, ignored = View.from_query({"heads": "3"})
    assert view == View()
    assert ignored == ["heads: unknown"]


def test_long_texts_stay_out_of_the_address_and_are_told_of():
    view = View(source="own", text="a" * (SPELLED_LIMIT + 1), student_text="b" * SPELLED_LIMIT)
    assert set(view.to_query()) == {"source", "student_text"}
    assert view.unspelled() == ["text"]


class Address(dict):
    """What `st.query_params` does, in memory."""

    def to_dict(self):
        return dict(self)

    def from_dict(self, values):
        self.clear()
        self.update(values)


@pytest.fixture
def session(monkeypatch):
    """A session without a browser: its state and its address bar."""
    monkeypatch.setattr(st, "session_state", {})
    monkeypatch.setattr(st, "query_params", Address())
    return st


def test_a_new_session_reads_the_address(session):
    session.query_params.update(layer="3", head="1", metric="cosine")
    assert synchronise() == []
    assert (current().layer, current().head, current().metric) == (3, 1, "cosine")


def test_a_change_is_written_and_a_page_switch_keeps_it(session):
    synchronise()
    update(layer=2, kv_projection_mode="flat")
    synchronise()
    assert session.query_params == {"layer": "2", "kv_projection_mode": "flat"}
    session.query_params.clear()  # Streamlit opens another page with an empty address.
    synchronise()
    assert session.query_params == {"layer": "2", "kv_projection_mode": "flat"}


def test_an_edited_address_wins_over_the_session(session):
    synchronise()
    update(layer=2)
    synchronise()
    session.query_params.from_dict({"layer": "1", "part": "v"})
    synchronise()
    assert (current().layer, current().part) == (1, "v")


def test_going_back_does_not_lose_a_text_no_address_can_hold(session):
    synchronise()
    update(source="own", text="long " * SPELLED_LIMIT)
    synchronise()
    session.query_params.from_dict({"layer": "1", "source": "own"})
    synchronise()
    assert current().text == "long " * SPELLED_LIMIT


def test_a_contradiction_is_not_made_and_is_said(session):
    synchronise()
    update(kv_projection_mode="flat", flat_kind="elastic")
    before = current()
    update(attention_target="mixed")
    assert current() == before
    assert "elastic" in synchronise()[0]
    update(layer=1)
    assert synchronise() == []


def test_ignored_fields_leave_the_address(session):
    session.query_params.update(layer="-4", head="1")
    assert "layer" in synchronise()[0]
    assert session.query_params == {"head": "1"}
