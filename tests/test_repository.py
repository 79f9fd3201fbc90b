"""The house rules that a machine can check."""

import ast
import re
import subprocess
import tomllib
from importlib.metadata import version as installed_version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PACKAGES = ("interp", "circuits", "probes")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80
LONG_FILES: dict[str, str] = {}  # path -> why this file is one idea all the same

COMPARISONS = {"allclose", "array_equal", "array_equiv", "equal", "equals", "isclose"}


def package_files():
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def repository_files():
    """Files that git tracks or would track; without git, everything that is not hidden."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        out = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        paths = (path for path in ROOT.rglob("*") if not path.relative_to(ROOT).parts[0].startswith("."))
    else:
        paths = (ROOT / name for name in out.split("\0") if name)
    return sorted(path for path in paths if path.is_file())


def text_of(path):
    data = path.read_bytes()
    return "" if b"\0" in data else data.decode("utf-8", errors="replace")


def relative(path):
    return path.relative_to(ROOT).as_posix()


def discarded_comparisons(source):
    """Lines where a comparison is computed and its result thrown away."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Expr):
            continue
        call = node.value
        if isinstance(call, ast.Compare) or (
            isinstance(call, ast.Call) and getattr(call.func, "attr", getattr(call.func, "id", None)) in COMPARISONS
        ):
            yield node.lineno


def test_datasets_holds_no_python():
    assert [relative(path) for path in (ROOT / "datasets").rglob("*.py*")] == []


def test_files_are_short():
    lines = {relative(path): len(path.read_text().splitlines()) for path in package_files()}
    long = {path for path, count in lines.items() if count > MAX_FILE_LINES}
    assert long == set(LONG_FILES), {path: lines.get(path) for path in long ^ set(LONG_FILES)}


def test_functions_fit_on_a_screen():
    long = {
        f"{relative(path)}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1
        for path in package_files()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    }
    assert long == {}


def test_no_machine_paths():
    # (?<!...): not inside an address such as example.org/home/
    machine_path = re.compile(r"(?<![\w.~-])/(?:" + "|".join(("work", "home", "root", "Users")) + r")/")
    found = [
        f"{relative(path)}:{number}"
        for path in repository_files()
        for number, line in enumerate(text_of(path).splitlines(), start=1)
        if machine_path.search(line)
    ]
    assert found == []


@pytest.mark.parametrize("package", PACKAGES)
def test_package_is_typed(package):
    assert (ROOT / package / "py.typed").is_file()


def test_no_comparison_is_thrown_away():
    found = [
        f"{relative(path)}:{line}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for line in discarded_comparisons(path.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("np.array_equal(a, b)", [1]),
        ("import torch\ntorch.allclose(a, b)", [2]),
        ("frame.equals(other)", [1]),
        ("allclose(a, b)", [1]),
        ("a == b", [1]),
        ("assert torch.equal(a, b)", []),
        ("same = np.allclose(a, b)", []),
        ("torch.testing.assert_close(a, b)", []),
    ],
)
def test_a_thrown_away_comparison_is_seen(source, lines):
    assert list(discarded_comparisons(source)) == lines


def test_version_is_one():
    import interp

    assert interp.__version__ == PROJECT["version"]


def test_lock_pins_every_requirement_exactly():
    """Each line is `name==version`, with no host or path; each direct dependency is there, within bounds."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    versions = {pin.name.lower().replace("_", "-"): str(pin.specifier) for pin in pins}
    assert all(re.fullmatch(r"==[0-9][0-9a-z.]*", spec) for spec in versions.values())
    for wanted in map(Requirement, PROJECT["dependencies"]):
        assert wanted.specifier.contains(versions[wanted.name].removeprefix("==")), wanted


@pytest.mark.parametrize("name", ["torch", "transformers", "transformer-lens", "nnsight", "numpy", "pandas"])
def test_installed_version_is_allowed(name):
    wanted = next(req for req in map(Requirement, PROJECT["dependencies"]) if req.name == name)
    assert wanted.specifier.contains(installed_version(name), prereleases=True)
