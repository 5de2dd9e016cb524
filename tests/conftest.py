"""What every test runs under."""

import os

import pytest


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Calibrations and runs go to folders of this run, never to the user's; workers share what is calibrated."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVVIZ_CACHE", str(shared / "cache"))
        patch.setenv("KVVIZ_RUNS", str(tmp_path_factory.mktemp("runs")))
        yield
