"""What every test runs under."""

import os

import pytest


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Calibrations go to a folder of this run, never to the user's cache."""
    before = os.environ.get("KVVIZ_CACHE")
    os.environ["KVVIZ_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["KVVIZ_CACHE"]
    else:
        os.environ["KVVIZ_CACHE"] = before
