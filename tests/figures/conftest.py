"""Every figure test that asks for a theme runs on both."""

from __future__ import annotations

import pytest

from kvviz.figures.theme import DARK, LIGHT, Theme


@pytest.fixture(params=[LIGHT, DARK], ids=["light", "dark"])
def theme(request) -> Theme:
    return request.param
