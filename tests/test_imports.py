"""What importing costs, and that everything can be imported."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("interp", "circuits", "probes")
HEAVY = ("torch", "transformers", "transformer_lens", "nnsight", "pandas", "plotly", "sklearn", "scipy")
OPTIONAL = {"triton", "duckdb", "submitit", "ray", "statsmodels"}  # extras: see pyproject.toml


def module_names():
    """Every module of the three packages, by its file: pkgutil would skip a broken subpackage's own."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if parts[-1] != "__main__":  # importing that is running it
                yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("name", list(module_names()))
def test_module_imports(name):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name in OPTIONAL:
            pytest.skip(f"{error.name} is optional and not installed")
        raise


@pytest.mark.parametrize("name", PACKAGES)
def test_import_is_cheap(name):
    code = f"import sys, {name}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True, text=True)
    assert out.stdout.split() == []


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
