"""The app as a test opens it: one page, one address, no browser."""

from __future__ import annotations

from pathlib import Path

from streamlit.testing.v1 import AppTest

MAIN = Path(__file__).resolve().parents[2] / "app" / "main.py"
# The bundled pair is calibrated on the first page a test run opens.
TIMEOUT = 300

# What is made only while its expander is open.
FOLDS = ("sidebar.more", "sidebar.teacher", "sidebar.student", "reproduce")

# Alignment fields that each lead to another kind of projector or another space.
MODES: list[dict[str, str]] = [
    {},
    {"share_dim_proj": "false"},
    {"share_layers": "true"},
    {"init": "uniform"},
    {"init": "random"},
    {"kv_projection_mode": "flat"},
    {"kv_projection_mode": "flat", "flat_kind": "elastic", "init": "random"},
    {"kv_projection_mode": "identity"},
    {"key_space": "post_rope"},
]
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)> **b** $x$ [a](b) 👩‍👩‍👧 שלום עולם %{x} &lt;"
LONG = "Ana has 12 apples and buys 7 more at the market. " * 30
# The student's own shorter text, texts of one word, a pair that is not calibrated.
READINGS: list[dict[str, str]] = [
    {"student_reads": "brief"},
    {"source": "own", "text": HOSTILE},
    {"source": "own", "text": "a"},
    {"teacher": "bundled:student", "student": "bundled:teacher"},
    {"teacher": "bundled:teacher", "student": "bundled:teacher"},
]


def open_at(page: str, **address: object) -> AppTest:
    """Run the app on `page` ("heads") with fields of the view in its address, and all that folds unfolded."""
    app = AppTest.from_file(str(MAIN), default_timeout=TIMEOUT)
    for fold in FOLDS:
        app.session_state[fold] = True
    for name, value in address.items():
        app.query_params[name] = str(value)
    app.switch_page(f"../pages/{page}.py")
    return app.run()


def specs(app: AppTest) -> list[str]:
    """The figures of the page as plotly's JSON, in reading order."""
    figures = (one.proto for one in app.get("bidi_component"))
    return [
        one.bytes.decode() for one in figures if one.component_name == "kvviz_plotly_figure" and one.bytes
    ]


def charts(app: AppTest) -> int:
    """How many figures the page shows."""
    return len(specs(app))


def notes(app: AppTest) -> str:
    """The text the page shows outside figures and widgets."""
    kinds = ("markdown", "caption", "info", "warning", "error")
    return "\n".join(str(element.value) for kind in kinds for element in app.get(kind))
