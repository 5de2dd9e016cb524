"""What every test runs under."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Calibrations and runs go to folders of this run, never to the user's."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("cache", "runs"):
            patch.setenv(f"KVVIZ_{name.upper()}", str(tmp_path_factory.mktemp(name)))
        yield
