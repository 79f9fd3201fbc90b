import beartype  # noqa: F401  (line 1: nnsight mounts .save on `object`, after which importing beartype crashes)

# isort: split
import os

# The hub client reads this once, when it is first imported: so it stands before everything below.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # as interp.cli.main does where stderr is no terminal

import importlib.util
import random
import sys
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

# One, unless asked: more would share the cores with the other workers of pytest-xdist.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

# The same examples in every run; no deadline, because the first call of anything in torch is slow.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def seed():
    """Start every test from the same random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (libraries still draw from the global state; our own code uses generators)
    torch.manual_seed(0)


@pytest.fixture
def run(capsys, monkeypatch):
    """Run a command in this process: (exit code, stdout, stderr)."""
    from interp.cli import main as cli

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["interp", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        return stopped.value.code, out, err

    return call


def pytest_sessionstart():
    """Make what tests share importable by name; --import-mode=importlib would not find it.

    Not earlier: what it imports must be imported after a hook of jaxtyping (tests/shape_check.py) is in place.
    """
    for name, path in (
        ("tiny_models", "models.py"),
        ("tolerance", "tolerance.py"),
        ("probe_cases", "probes/cases.py"),
        ("hub_server", "loading/hub_server.py"),
        ("edited_models", "edits/edited_models.py"),
        ("dictionaries_made", "dictionaries/made.py"),
    ):
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)


def pytest_collection_modifyitems(items):
    """Skip what this machine cannot run; nothing else is ever skipped by default."""
    # A minute in a process of its own: begun last it would keep one worker busy while the others have nothing to do.
    items.sort(key=lambda item: item.path.name != "test_shapes.py")
    missing = {}
    if not torch.cuda.is_available():
        missing["gpu"] = "needs a CUDA device"
    if os.environ["HF_HUB_OFFLINE"].upper() in {"1", "ON", "YES", "TRUE"}:
        missing["network"] = "needs the hub: HF_HUB_OFFLINE=0"
    for item in items:
        for marker, reason in missing.items():
            if marker in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))
