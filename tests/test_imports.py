"""What importing costs, that everything can be imported in any order, and that public names are then what they say."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("interp", "circuits", "probes")
HEAVY = ("torch", "transformers", "transformer_lens", "nnsight", "pandas", "plotly", "sklearn", "scipy")
OPTIONAL = ["triton", "duckdb", "submitit", "ray", "statsmodels"]  # extras: see pyproject.toml
ORDERS = 2

CHILD = """
import beartype, importlib, inspect, json, os, random, sys
import torch, transformers, transformer_lens, nnsight, pandas, scipy.stats, sklearn  # once, before the forks

modules, packages, optional, orders = json.loads(sys.stdin.read())

def kind(thing):
    return next((k for k in ("module", "class", "function") if getattr(inspect, f"is{k}")(thing)), "value")

def state():
    for name in modules:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name not in optional:
                raise
    kinds = {}
    for package in packages:
        for name in importlib.import_module(package).__all__:
            thing = getattr(sys.modules[package], name)
            home = f"{thing.__module__}.{thing.__qualname__}" if kind(thing) in ("class", "function") else None
            kinds[f"{package}.{name}"] = [kind(thing), home]
    return kinds

for seed in range(orders):
    random.Random(seed).shuffle(modules)
    sys.stdout.flush()
    child = os.fork()
    if not child:
        print(json.dumps([modules[0], state()]), flush=True)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(f"importing all modules fails, order {seed}: {modules}")
"""
"""Imports every module in `orders` random orders, each in a process of its own, and prints for each a line of JSON: the
first module, and public name -> [kind, where it is defined]."""


def module_files():
    """Every module of the three packages, by its file: pkgutil would skip a broken subpackage's own."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if parts[-1] != "__main__":  # importing that is running it
                yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


FILES = dict(module_files())
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def public_names(package):
    """`__all__` of a package as its source has it, or None."""
    for node in TREES[package].body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return None


PUBLIC = {
    name: public_names(name)
    for name, path in FILES.items()
    if path.name == "__init__.py" and public_names(name) is not None
}
"""Package -> the names it hands out."""


def written(module, name):
    """What the source says a name is, [kind, where it is defined]; imports are followed, nothing is run."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.ImportFrom) and node.module in TREES:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return written(node.module, alias.name)
    for node in TREES[module].body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return ["class" if isinstance(node, ast.ClassDef) else "function", f"{module}.{name}"]
    return ["value", None]


@pytest.fixture(scope="module")
def imported():
    """What `CHILD` prints."""
    question = json.dumps([list(FILES), list(PUBLIC), OPTIONAL, ORDERS])
    command = [sys.executable, "-W", "error::SyntaxWarning", "-c", CHILD]
    done = subprocess.run(command, cwd=ROOT, input=question, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_module_can_be_imported_whatever_comes_first(imported):
    assert len({first for first, _ in imported}) == ORDERS


def test_public_names_are_what_their_source_says_whatever_was_imported_before(imported):
    says = {f"{package}.{name}": written(package, name) for package, names in PUBLIC.items() for name in names}
    assert [kind for kind, _ in says.values()].count("function") > 80
    for _, kinds in imported:
        assert kinds == says


def test_no_public_name_is_also_a_module():
    """The submodule would take the function's place in the package when it is imported."""
    both = {f"{package}.{name}" for package, names in PUBLIC.items() for name in names} & FILES.keys()
    assert both == set()


@pytest.mark.parametrize("name", PACKAGES)
def test_import_is_cheap(name):
    code = f"import sys, {name}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True, text=True)
    assert out.stdout.split() == []


def test_packages_are_reached_after_import_interp():
    code = """
import sys, interp
assert "interp.edits" not in sys.modules
print(interp.edits.Ablate.__name__, interp.attention.Entropy.__name__, interp.plots.head_map.__name__)
print(interp.circuits.circuit.__name__, interp.probes.__name__, interp.studies.__name__, "plots" in dir(interp))
"""
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True, text=True)
    assert out.stdout.split() == "Ablate Entropy head_map circuit probes interp.studies True".split()


def test_a_notebook_without_ipywidgets_hears_no_warning_of_bars():
    code = (
        "import interp, warnings; warnings.warn('IProgress not found. Please update jupyter'); warnings.warn('other')"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True, text=True)
    assert "IProgress" not in out.stderr
    assert "other" in out.stderr


def test_attention_runs_with_torch_and_transformers_alone():
    """A GPU machine may hold nothing else; what is not there is hidden from a fresh interpreter."""
    code = """
import sys
for name in ("jaxtyping", "pandas", "pandera", "plotly", "scipy", "sklearn", "pyarrow", "typer", "rich", "jinja2",
             "nnsight", "transformer_lens"):
    sys.modules[name] = None
import torch
from interp.attention import Call, CausalMask, Entropy, measure
q = torch.zeros(1, 2, 4, 8)
_, answers = measure(Call(q, q, q, 1.0, CausalMask(1, 4, 4)), {"entropy": Entropy()})
torch.testing.assert_close(answers["entropy"][0, 0], torch.tensor([1.0, 2.0, 3.0, 4.0]).log())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
