import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.fixture
def checkpoint(tmp_path):
    """Function that saves a variant, options changed: (folder, options, state)."""
    from hooked_checkpoints import options_of, random_state, save

    def make(variant="LN", **changes):
        options = {**options_of(variant), **changes}
        state = random_state(options)
        return save(tmp_path / "checkpoint", options, state), options, state

    return make


def pytest_collectstart():
    """Make hooked_checkpoints.py importable under that name; --import-mode=importlib would not find it."""
    if "hooked_checkpoints" in sys.modules:
        return
    path = Path(__file__).with_name("hooked_checkpoints.py")
    spec = importlib.util.spec_from_file_location("hooked_checkpoints", path)
    sys.modules["hooked_checkpoints"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
