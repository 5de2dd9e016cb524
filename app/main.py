"""Entry point: `python -m streamlit run app/main.py`."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # `streamlit run` puts only this folder on the path.
    sys.path.insert(0, str(ROOT))

import streamlit as st  # noqa: E402

from app.components.plotly_figure import prefetch  # noqa: E402

st.set_page_config(page_title="kvviz", page_icon=str(ROOT / "app" / "icon.png"), layout="wide")
prefetch()

# By the name under which the server may be importing it meanwhile: whoever imports transformers while another
# thread is at it gets a module without its names.
import kvviz.inspection  # noqa: E402, F401
from app import sidebar, view  # noqa: E402

PAGES = {
    "Inspect": [
        ("overview", "Overview", ":material/dashboard:"),
        ("layers", "Layers", ":material/layers:"),
        ("segments", "Segments", ":material/segment:"),
        ("heads", "Head mixers", ":material/hub:"),
        ("errors", "K/V errors", ":material/error_med:"),
        ("attention", "Attention KL", ":material/visibility:"),
    ],
    "Lab": [
        ("distil", "Distil", ":material/science:"),
        ("runs", "Runs", ":material/list_alt:"),
        ("ab", "A/B matrix", ":material/grid_on:"),
    ],
}

page = st.navigation(
    {
        group: [
            st.Page(
                ROOT / "pages" / f"{name}.py",
                title=title,
                icon=icon,
                url_path=name,
                default=name == "overview",
            )
            for name, title, icon in pages
        ]
        for group, pages in PAGES.items()
    }
)
view.synchronise()
sidebar.draw()
page.run()
