"""The Layers page under AppTest: every strategy and mode runs, an edited weight reaches view, address and figures."""

import json
from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from kvviz.align.layers import layer_map, with_weight
from tests.app.browsing import specs

MAIN = Path(__file__).parents[2] / "app" / "main.py"


def layers_page(**query: str) -> AppTest:
    app = AppTest.from_file(MAIN, default_timeout=300)
    for name, value in query.items():
        app.query_params[name] = value
    return app.switch_page("../pages/layers.py").run()


def address(app: AppTest, name: str) -> str:
    """A field of the address bar; a list before the app has written it, a string after."""
    value = app.query_params[name]
    return value[0] if isinstance(value, list) else value


def figures(app: AppTest) -> list[dict]:
    return list(map(json.loads, specs(app)))


def texts(app: AppTest) -> str:
    return "\n".join(element.value for element in (*app.caption, *app.warning, *app.error, *app.info))


def slider(app: AppTest, label: str):
    return next(widget for widget in app.slider if widget.label == label)


@pytest.mark.parametrize("strategy", ["uniform", "ratio", "skip", "cka"])
def test_every_strategy(strategy):
    app = layers_page(layer_mapping_strategy=strategy)
    assert not app.exception
    assert not app.error
    assert len(figures(app)) == 4


@pytest.mark.parametrize(
    "query",
    [
        {"kv_projection_mode": "identity"},
        {"kv_projection_mode": "flat"},
        {"kv_projection_mode": "flat", "flat_kind": "elastic", "init": "random"},
        {"init": "uniform", "share_layers": "true"},
        {"init": "random", "share_dim_proj": "false", "key_space": "post_rope"},
        {"student_reads": "brief"},
    ],
)
def test_every_mode(query):
    app = layers_page(**query)
    assert not app.exception
    assert not app.error
    assert len(figures(app)) == 4


def test_an_edited_weight_reaches_the_view_the_address_and_the_figures():
    app = layers_page(layer="1", teacher_layer="2")
    before = figures(app)
    view = app.session_state["view"]
    assert (view.layer, view.teacher_layer) == (1, 2)
    slider(app, "Weight").set_value(0.25).run()
    assert not app.exception
    alignment = app.session_state["view"].alignment
    assert alignment.layer_mapping_strategy == "custom"
    edited = np.array(alignment.layer_matrix)
    start = layer_map(*edited.shape)
    np.testing.assert_allclose(edited, with_weight(start, 1, 2, 0.25).numpy(), atol=1e-6)
    np.testing.assert_allclose(edited.sum(axis=1), 1, atol=1e-6)
    assert address(app, "layer_mapping_strategy") == "custom"
    assert address(app, "layer_matrix").count(";") == len(edited) - 1
    after = figures(app)
    assert after[0] != before[0], "the map itself"
    assert after[1] != before[1], "the errors under it"

    next(button for button in app.button if button.label == "Reset to uniform").click().run()
    assert app.session_state["view"].alignment.layer_matrix is None
    assert "layer_matrix" not in app.query_params
    assert figures(app)[0] == before[0]


def test_unread_and_overloaded_layers_are_named():
    app = layers_page(layer_mapping_strategy="skip")
    assert "No student layer reads teacher layer" in texts(app)
    assert "Every teacher layer is read" in texts(layers_page())


def test_the_layer_can_be_chosen_without_a_click():
    app = layers_page()
    next(box for box in app.selectbox if box.label == "Teacher layer").set_value(3).run()
    assert app.session_state["view"].teacher_layer == 3
    assert address(app, "teacher_layer") == "3"


def test_a_map_of_another_pair_is_explained_and_can_be_reset():
    app = layers_page(layer_mapping_strategy="custom", layer_matrix="1,0;0,1")
    assert not app.exception
    assert "layer map must be" in app.error[0].value.replace("\\", "")
    next(button for button in app.button if button.label.startswith("Reset")).click().run()
    assert not app.exception
    assert not app.error
    assert len(figures(app)) == 4


def test_nonsense_in_the_address_is_named_and_the_page_works():
    app = layers_page(
        layer="-3", teacher_layer="x", layer_mapping_strategy="sideways", layer_matrix="1,a;<b>", layre="2"
    )
    assert not app.exception
    assert not app.error
    named = texts(app).replace("\\", "")
    for field in ("layer:", "teacher_layer:", "layer_mapping_strategy:", "layer_matrix:", "layre:"):
        assert field in named
    assert len(figures(app)) == 4


def test_layers_beyond_the_pair_are_clamped():
    app = layers_page(layer="99", teacher_layer="99")
    assert not app.exception
    assert next(box for box in app.selectbox if box.label == "Student layer").value < 99
