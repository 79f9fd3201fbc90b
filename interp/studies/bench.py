"""`interp bench`: speed against the plain forward pass and against peers. The benchmarks are in the source checkout."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from interp.errors import InterpError


def folder() -> Path:
    """Where the benchmarks are.

    Raises:
        InterpError: this is an installed copy, which does not contain them.
    """
    path = Path(__file__).resolve().parents[2] / "tests" / "bench"
    if not (path / "__main__.py").is_file():
        raise InterpError("benchmarks need the source checkout: clone the repository and run `make bench` there")
    return path


def run(cases: Sequence[str] = (), *, quick: bool = False, out: str | Path | None = None) -> int:
    """Run benchmarks (all unless named) in a process of their own, printing as they go; returns its exit status.

    Rows are added to `out`, or to each benchmark's record under tests/bench/results; a quick run records nothing
    unless `out` is given. The status is 0 unless a benchmark failed; a missed target is printed and is no failure.
    """
    command = [sys.executable, str(folder()), *cases]
    if quick:
        command.append("--quick")
    if out is not None:
        command += ["--out", str(out)]
    return subprocess.run(command, check=False).returncode
