"""The Segments page under AppTest: every method runs, sliders and edits reach view and address, bad ones change nothing."""

import json
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from tests.app.browsing import charts, specs

MAIN = Path(__file__).parents[2] / "app" / "main.py"
MODES = [
    {},
    {"time_method": "linear"},
    {"time_method": "area"},
    {"student_reads": "brief"},
    {"student_reads": "brief", "time_method": "area"},
    {"student_reads": "own", "student_text": "Just this. שלום 🙂 <b>not bold</b>"},
    {"target_length": "40"},
    {"target_length": "1", "student_reads": "brief"},
    {"target_length": "8192", "time_method": "area"},
    {"source": "own", "text": "<script>alert(1)</script>\n**x** `y` 🙂 שלום\n#### 3"},
    {"source": "own", "text": "\n\n".join(f"Line {n} of many." for n in range(32))},
]


def segments_page(**query: str) -> AppTest:
    app = AppTest.from_file(MAIN, default_timeout=300)
    for name, value in query.items():
        app.query_params[name] = value
    return app.switch_page("../pages/segments.py").run()


def address(app: AppTest, name: str) -> str:
    """A field of the address bar; a list before the app has written it, a string after."""
    value = app.query_params[name]
    return value[0] if isinstance(value, list) else value


def ribbons(app: AppTest) -> dict:
    return json.loads(specs(app)[0])


def named(widgets, label: str):
    return next(widget for widget in widgets if widget.label == label)


def alignment(app: AppTest):
    return app.session_state["view"].alignment


@pytest.mark.parametrize("query", MODES, ids=[str(number) for number in range(len(MODES))])
def test_every_mode(query):
    app = segments_page(**query)
    assert not app.exception
    assert not app.error
    assert not app.warning
    assert charts(app) >= 1


def test_alpha_is_dead_under_the_text_method_and_says_how_to_wake_it():
    app = segments_page()
    assert named(app.slider, "Alpha: 0 nearest … 1 linear").disabled
    named(app.button, "Use the linear method").click().run()
    assert alignment(app).time_method == "linear"
    before = ribbons(app)
    named(app.slider, "Alpha: 0 nearest … 1 linear").set_value(0.0).run()
    assert not app.exception
    assert alignment(app).alpha_map == ((0, 0.0),)
    assert address(app, "alpha_map") == "0:0"
    assert ribbons(app) != before
    named(app.slider, "Alpha: 0 nearest … 1 linear").set_value(1.0).run()
    assert alignment(app).alpha_map == (), "the default is not kept"


def test_another_length_is_imagined_and_ratios_share_it_out():
    app = segments_page(segment="1")
    assert named(app.slider, "Ratio: share of the target length").disabled
    own = ribbons(app)
    named(app.toggle, "What-if length").set_value(True).run()
    named(app.slider, "Target length T_s, positions").set_value(40).run()
    assert alignment(app).target_length == 40
    assert address(app, "target_length") == "40"
    assert any("Only this page" in info.value for info in app.info)
    evenly = app.dataframe[0].value
    assert evenly["student positions"].sum() == 40
    named(app.slider, "Ratio: share of the target length").set_value(3.0).run()
    assert alignment(app).ratio_map == ((1, 3.0),)
    tripled = app.dataframe[0].value
    assert tripled["student positions"].sum() == 40
    assert tripled["student positions"][1] > evenly["student positions"][1]
    named(app.toggle, "What-if length").set_value(False).run()
    assert alignment(app).target_length is None
    assert ribbons(app) == own, "the student's own tokens come back"


def test_ratios_that_leave_nothing_are_said_and_the_page_lives():
    app = segments_page(target_length="20", ratio_map="0:0,1:0,2:0,3:0,4:0,5:0,6:0,7:0,8:0")
    assert not app.exception
    assert "No target length can be shared out" in app.warning[0].value
    assert charts(app) == 2


def test_rename_move_add_merge_and_back():
    app = segments_page(segment="1")
    first = app.session_state["view"]
    assert first.segments == ""
    named(app.text_input, "Name").set_value("<b>schön</b> שלום").run()
    assert not app.exception
    assert "%3Cb%3Esch%C3%B6n%3C%2Fb%3E" in address(app, "segments")
    assert named(app.text_input, "Name").value == "<b>schön</b> שלום"

    begin = named(app.slider, "Begins at token")
    moved_to = begin.value + 2
    begin.set_value(moved_to).run()
    assert named(app.slider, "Begins at token").value == moved_to

    count = len(named(app.selectbox, "Segment").options)
    named(app.button, "Add segment").click().run()
    assert len(named(app.selectbox, "Segment").options) == count + 1
    assert app.session_state["view"].segment == 2
    named(app.button, "Merge with next").click().run()
    assert len(named(app.selectbox, "Segment").options) == count
    named(app.button, "Back to found").click().run()
    assert app.session_state["view"].segments == ""
    assert "segments" not in app.query_params
    assert not app.exception


def test_numbers_stay_with_their_text_when_segments_before_them_are_cut():
    app = segments_page(time_method="linear", alpha_map="2:0.5", segment="0")
    named(app.button, "Add segment").click().run()
    assert alignment(app).alpha_map == ((3, 0.5),)
    assert app.session_state["view"].segment == 1
    app.session_state["view"] = app.session_state["view"].model_copy(update={"segment": 0})
    app.run()
    named(app.button, "Merge with next").click().run()
    assert alignment(app).alpha_map == ((2, 0.5),)


def test_an_empty_name_changes_nothing_and_says_so():
    app = segments_page(segment="1")
    before = app.session_state["view"]
    named(app.text_input, "Name").set_value("   ").run()
    assert app.session_state["view"] == before
    assert "Nothing was changed" in app.warning[0].value
    app.run()
    assert not app.warning, "said once"


def test_the_student_s_own_text_has_segments_of_its_own():
    app = segments_page(student_reads="brief", segment_side="student", segment="1")
    named(app.text_input, "Name").set_value("short step").run()
    view = app.session_state["view"]
    assert view.segments == ""
    assert "short%20step" in view.student_segments
    assert len(app.dataframe) >= 1


def test_another_text_forgets_the_segments_drawn_on_this_one():
    app = segments_page(segment="1")
    named(app.text_input, "Name").set_value("mine").run()
    assert app.session_state["view"].segments
    named(app.selectbox, "Held-out problem").set_value(3).run()
    assert app.session_state["view"].segments == ""
    assert not app.warning


def test_nonsense_in_the_address_is_named_and_the_page_works():
    app = segments_page(
        segments="prompt:5;x",
        segment="-1",
        segment_side="left",
        alpha_map="0:7",
        ratio_map="nonsense",
        target_length="0",
        time_method="<i>",
    )
    assert not app.exception
    assert not app.error
    said = "\n".join(warning.value for warning in app.warning).replace("\\", "")
    for field in (
        "segments",
        "segment:",
        "segment_side:",
        "alpha_map:",
        "ratio_map:",
        "target_length:",
        "time_method:",
    ):
        assert field in said
    assert charts(app) == 2


def test_numbers_out_of_range_are_clamped():
    app = segments_page(segment="99", target_length="8192", ratio_map="0:100")
    assert not app.exception
    length = named(app.slider, "Target length T_s, positions")
    assert length.value == length.max


def test_the_segment_at_hand_is_framed_on_the_ribbons():
    def frames(**query: str) -> list[float]:
        shapes = ribbons(segments_page(**query))["layout"]["shapes"]
        return [shape["x0"] for shape in shapes if shape["type"] == "rect"]

    first, second = frames(), frames(segment="1")
    assert len(first) == len(second) == 2
    assert first == [0, 0]
    assert all(0 < x < 1 for x in second)
