"""Compiles the kernels for an H200 without having one: registers, spills and shared memory, as CSV on stdout.

`python tests/gpu/compiled.py [--least]`; exit status 1 where a kernel spills that must not (heads of up to 128).
"""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # as Triton has done up to now

import triton
import triton.compiler
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget

from interp.attention.triton import kernels
from interp.attention.triton.op import _blocks

ARCHITECTURE, WARP = 90, 32
FLOATS = {"query", "key", "value", "output"}
WHOLE = {"low", "high", "start", "offsets", "best_key", "first_query", "last_query"}
SINGLE = {
    "slot",
    "readout",
    "lse",
    "entropy",
    "distance",
    "squares",
    "best",
    "mass",
    "pairs",
    "weight",
    "received",
}
CASES = [("bf16", 64), ("bf16", 128), ("bf16", 256), ("fp32", 64), ("fp32", 128), ("fp32", 256)]
MUST_FIT = 128
EVERYTHING = {"ENTROPY": True, "DISTANCE": True, "SQUARES": True, "BEST": True, "READOUTS": 3, "R": 16, "OFFSETS": 2}
NOTHING = {**dict.fromkeys(EVERYTHING, False), "READOUTS": 0, "R": 16, "OFFSETS": 0}


def compiled(name: str, dtype: str, width: int, asked: dict[str, Any]) -> dict[str, Any]:
    """A row about one kernel."""
    kernel = getattr(kernels, name)
    m, n, launch = _blocks(width, 2 if dtype == "bf16" else 4)
    every = {
        "WIDTH": width, "V_WIDTH": width, "D": width, "DV": width, "M": m, "N": n,
        "PRECISION": "ieee" if dtype == "fp32" else "tf32", "WIDE": False,
        "CAPPED": False, "SLOT": False, "FIRST": False, **asked,
    }  # fmt: skip
    names = [parameter.name for parameter in kernel.params]
    constants = {key: value for key, value in every.items() if key in names}
    signature = {key: _type(key, dtype, constants) for key in names}
    aligned = [
        i for i, key in enumerate(names) if signature[key].startswith("*") or key[1:] in ("_row", "_head", "_batch")
    ]
    source = triton.compiler.ASTSource(
        fn=kernel,
        signature=signature,
        constexprs=constants,
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    binary = triton.compile(source, target=GPUTarget("cuda", ARCHITECTURE, WARP), options=launch)
    registers, spilled = _resources(binary.asm["ptx"])
    return {
        "kernel": name, "dtype": dtype, "width": width, "statistics": bool(asked.get("ENTROPY")),
        "queries": m, "keys": n, **launch, "registers": registers, "spilled_bytes": spilled,
        "shared_bytes": binary.metadata.shared, "triton": triton.__version__,
    }  # fmt: skip


def _type(name: str, dtype: str, constants: dict[str, Any]) -> str:
    if name in constants:
        return "constexpr"
    if name in FLOATS:
        return f"*{dtype}"
    if name in WHOLE or name in SINGLE:
        return "*i32" if name in WHOLE else "*fp32"
    return "fp32" if name in ("scale", "cap") else "i32"


def _resources(ptx: str) -> tuple[int, int]:
    """Registers of a thread, and bytes that did not fit into them, by NVIDIA's assembler."""
    tools = Path(nvidia.__file__).parent / "bin"
    said = ""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        for tool in sorted(tools.glob("ptxas*")):  # the one that knows this version of PTX
            command = [str(tool), "-v", f"-arch=sm_{ARCHITECTURE}a", file.name, "-o", os.devnull]
            said = subprocess.run(command, capture_output=True, text=True, check=False).stderr
            if "Used" in said:
                break
    (registers,), (spilled,) = re.findall(r"Used (\d+) registers", said), re.findall(r"(\d+) bytes spill stores", said)
    return int(registers), int(spilled)


def main() -> int:
    """Exit status."""
    cases = CASES[:2] if "--least" in sys.argv else CASES
    rows = [
        compiled(name, dtype, width, asked)
        for dtype, width in cases
        for name, asked in (("attend_kernel", NOTHING), ("attend_kernel", EVERYTHING), ("received_kernel", {}))
    ]
    table = csv.DictWriter(sys.stdout, rows[0])
    table.writeheader()
    table.writerows(rows)
    return int(any(row["spilled_bytes"] for row in rows if row["width"] <= MUST_FIT))


if __name__ == "__main__":
    sys.exit(main())
