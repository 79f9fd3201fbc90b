import beartype  # noqa: F401  (line 1: nnsight mounts .save on `object`, after which importing beartype crashes)

# isort: split
import os

# The hub client reads this once, when it is first imported: so it stands before everything below.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # as interp.cli.main does where stderr is no terminal

import gc
import importlib.util
import logging
import random
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

# Without a GPU the kernels of Triton are interpreted; read once, when it is first imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Until all is imported and collected: none of it is garbage, and looking through it takes nine seconds.
gc.disable()

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


@pytest.fixture(scope="session")
def fork():
    """Function that runs code in a fork of this process, in which our packages have yet to be imported.

    As a process of its own would, but torch and transformers are there: importing them takes seconds of each.
    """

    def call(code, folder):
        with tempfile.TemporaryDirectory() as kept:
            out, err = (Path(kept) / name for name in ("out", "err"))
            sys.stdout.flush()
            sys.stderr.flush()
            child = os.fork()
            if not child:
                _become(code, folder, out, err)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            texts = (path.read_text(encoding="utf-8") for path in (out, err))
            return subprocess.CompletedProcess(code, status, *texts)

    return call


def _become(code, folder, out, err):
    """Run the code and end the process, which is a fork; what it prints goes to the files."""
    status = 1
    try:
        for name in [n for n in sys.modules if n.partition(".")[0] in ("interp", "circuits", "probes")]:
            del sys.modules[name]
        sys.path.insert(0, str(folder))
        importlib.invalidate_caches()
        os.chdir(folder)
        sys.stdout, sys.stderr = (path.open("w", encoding="utf-8") for path in (out, err))
        logging.root.handlers.clear()  # pytest's: without any, warnings are printed on stderr
        try:
            exec(compile(code, "<fork>", "exec"), {"__name__": "__main__"})
            status = 0
        except SystemExit as stopped:
            status = int(stopped.code or 0)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def pytest_sessionstart():
    """Make what tests share importable by name; --import-mode=importlib would not find it.

    Not earlier: what it imports must be imported after a hook of jaxtyping (tests/shape_check.py) is in place.
    """
    for name, path in (
        ("tiny_models", "models.py"),
        ("tolerance", "tolerance.py"),
        ("probe_cases", "probes/cases.py"),
        ("hub_server", "loading/hub_server.py"),
        ("malformed_inputs", "cli/malformed/__init__.py"),
        ("edited_models", "edits/edited_models.py"),
        ("dictionaries_made", "dictionaries/made.py"),
        ("mlp_written", "probes/mlp/written.py"),
    ):
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)


def pytest_collection_finish():
    """Garbage is collected from here on, but for what stays to the end."""
    gc.enable()
    gc.freeze()


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
