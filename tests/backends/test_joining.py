"""A backend in somebody's own package joins by its metadata; a broken one leaves the others."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from interp.backends import Backend
from interp.errors import ModelLoadError

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "own-backend.md"
TOY = '''
from interp.backends import Backend

class Music:
    """What the toy's own library calls a model."""
    def __init__(self, module):
        self.module = module

def make(checkpoint, *, ours):
    from interp.backends.hf.model import HFModel

    class ToyModel(HFModel):
        backend = "toy"

    model = ToyModel(checkpoint)
    model.ours = ours
    return model

def adopt(source, *, remote):
    from interp.backends import Checkpoint
    return make(Checkpoint(f"adopted, remote={remote}", source.module, None), ours=False)

BACKEND = Backend("toy", make, packages=("toy_backend",), adopt=adopt, remote="toy_backend.Music(module)")
'''


@pytest.fixture
def installed(tmp_path, fork):
    """Function that runs code in a process where a package with these entry points stands first on the path."""
    (tmp_path / "toy_backend.py").write_text(TOY, encoding="utf-8")
    metadata = tmp_path / "toy_backend-0.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-backend\nVersion: 0.1\n", encoding="utf-8")

    def run(code, **entries):
        lines = [f"{name} = {where}" for name, where in entries.items()]
        (metadata / "entry_points.txt").write_text("\n".join(["[interp.backends]", *lines]), encoding="utf-8")
        done = fork(textwrap.dedent(code), tmp_path)
        assert done.returncode == 0, done.stderr
        return done

    return run


def test_it_is_loaded_by_name_and_adopts_its_own(installed):
    code = """
    import interp, toy_backend
    model = interp.load("zoo:planted-induction", backend="toy")
    assert (model.backend, model.ours) == ("toy", True)
    module = model.torch_module
    assert not interp.load(module, backend="toy").ours
    for remote in (False, "there"):
        assert interp.load(toy_backend.Music(module), remote=remote).info.name == f"adopted, remote={remote}"
    assert interp.analyze(model, "previous_token", seed=1).provenance["backend"] == "toy"
    try:
        interp.load("zoo:planted-induction", remote=True)
    except interp.InterpError as error:
        message = str(error)
    assert "models that toy or nnsight runs elsewhere" in message and "toy_backend.Music(module)" in message, message
    try:
        interp.load(module, backend="toi")
    except interp.InterpError as error:
        assert "unknown backend 'toi'; did you mean 'toy'" in str(error)
    """
    assert "left out" not in installed(code, toy="toy_backend:BACKEND").stderr


def test_the_one_of_the_how_to_joins_as_its_page_says(installed, tmp_path):
    text = PAGE.read_text(encoding="utf-8")
    module, adopting, check = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert "check_backend" in check  # which tests/test_page_code.py runs
    (tmp_path / "double_backend.py").write_text(module + adopting, encoding="utf-8")
    entry = re.search(r'```toml\n\[project.entry-points."interp.backends"\]\n(\w+) = "([\w:]+)"', text)
    code = """
    import double_backend, interp
    model = interp.load("zoo:planted-induction", backend="double")
    assert (model.backend, model.info.dtype) == ("double", "float64")
    module = interp.load("zoo:planted-induction").torch_module
    taken = interp.load(double_backend.Wrapped(module))
    assert (taken.backend, taken.info.name) == ("double", "a wrapped model")
    assert next(module.parameters()).itemsize == 4, "somebody else's module was changed"
    """
    assert "left out" not in installed(code, **{entry[1]: entry[2]}).stderr


def test_what_is_broken_is_left_out_with_a_warning(installed):
    code = """
    import interp
    from interp.loading.choose import backends
    assert set(backends()) == {"toy", "hf", "lens", "nnsight"}, backends()
    assert interp.load("zoo:planted-induction").backend == "hf"
    """
    broken = {"absent": "no_such_package:BACKEND", "nothing": "toy_backend:NOTHING", "odd": "toy_backend:make"}
    found = installed(code, toy="toy_backend:BACKEND", **broken, twice="toy_backend:BACKEND").stderr
    for line in (
        "backend absent is left out: ModuleNotFoundError: No module named 'no_such_package'",
        "backend nothing is left out: AttributeError: module 'toy_backend' has no attribute 'NOTHING'",
        "backend odd is left out: toy_backend:make is no interp.backends.Backend",
        "backend toy_backend:BACKEND is left out: there is another of the name 'toy'",
    ):
        assert line in found


def test_packages_and_a_way_to_adopt_come_together():
    with pytest.raises(ModelLoadError, match="backend 'toy': `packages` and `adopt` come together"):
        Backend("toy", lambda checkpoint, *, ours: None, packages=("toy",))
