"""What the tests of Distil and Runs share: a folder of runs of their own, and widgets by key."""

from __future__ import annotations

import pytest

from tests.distill.conftest import FAKE, HOME


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """An empty folder of runs; what is launched or resumed only counts, and is gone when the test is."""
    from kvviz.distill import launch
    from kvviz.distill.run import list_runs

    folder = tmp_path / "runs"
    folder.mkdir()
    monkeypatch.setenv("KVVIZ_RUNS", str(folder))
    monkeypatch.setenv("FAKE_PACE", "0.05")
    monkeypatch.chdir(HOME)
    monkeypatch.setattr(launch, "PROGRAM", FAKE)
    yield folder
    for run in list_runs(folder):
        process = run.state().process
        if process is not None and (alive := process.find()) is not None:
            alive.kill()


def widget(app, kind: str, key: str):
    """The widget of a kind with that key."""
    return next(one for one in app.get(kind) if one.key == key)


def curves(app) -> int:
    """How many Vega-Lite charts the page shows."""

    def below(node) -> int:
        inner = getattr(node, "children", {}).values()
        return (getattr(node, "type", "") == "vega_lite_chart") + sum(below(child) for child in inner)

    return below(app.main)
