"""`python -m app [--server.port 8501]`: the server, with the engine imported while it starts.

The same app as `python -m streamlit run app/main.py`, a few seconds sooner: the script first runs when a visitor comes,
and importing torch and transformers then would be most of what they wait for.
"""

from __future__ import annotations

import importlib
import sys
import threading
from pathlib import Path

from streamlit.web import cli

from kvviz.importing import uncollected


def main() -> None:
    """Start the import, then the server."""
    threading.Thread(target=_import_engine, daemon=True).start()
    cli.main(["run", str(Path(__file__).with_name("main.py")), *sys.argv[1:]])


def _import_engine() -> None:
    with uncollected():
        importlib.import_module("kvviz.inspection")


if __name__ == "__main__":
    main()
