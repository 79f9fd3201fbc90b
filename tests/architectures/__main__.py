"""Every causal class of the installed transformers, tried: `python tests/architectures [TYPE ...]`, `make slow`.

Builds a tiny random model of each type, loads it (backend "hf", then "lens" where hf refuses) and tries what
`things.THINGS` lists. Without types, writes docs/architectures.csv, of which docs/_generate.py makes
docs/reference/architectures.md; with types, prints their rows. The last lines count outcomes; the exit status is 1
where there is a raw error or a wrong number.

Each type is a fork of one process that has imported what is slow to import, with a limit on its time.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TABLE = ROOT / "docs" / "architectures.csv"
LIMIT = 60.0
"""Seconds after which a type counts as a fault."""
sys.path[:0] = [str(HERE), str(ROOT)]


def main(chosen: Sequence[str]) -> int:
    """Try the chosen types, or all of them."""
    import building
    from outcomes import OUTCOMES, RAW, WRONG, as_row
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as FAMILIES  # noqa: N811

    start, rows = time.monotonic(), []
    for name in chosen or building.names():
        row = in_a_fork(name, FAMILIES[name])
        rows.append(row)
        sys.stdout.write(f"{row['type']}\t{row['outcome']}\t{row['backend']}\t{row['lacks']}\n")
        sys.stdout.flush()
    if not chosen:
        with TABLE.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    counts = Counter(row["outcome"] for row in rows)
    summary = ", ".join(f"{counts[kind]} {kind}" for kind in OUTCOMES)
    sys.stdout.write(f"{len(rows)} types in {time.monotonic() - start:.0f} s: {summary}\n")
    del as_row
    return int(bool(counts[RAW] + counts[WRONG]))


def in_a_fork(name: str, family: str) -> dict[str, str]:
    """The row of a type, made in a process of its own."""
    from outcomes import RAW, Outcome, as_row, outcome

    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        child = os.fork()
        if child == 0:
            quiet()
            Path(file.name).write_text(json.dumps(as_row(outcome(name, family))), encoding="utf-8")
            os._exit(0)
        status = wait(child)
        text = Path(file.name).read_text(encoding="utf-8")
    if text:
        return json.loads(text)
    why = f"no end within {LIMIT:g} s" if status is None else f"the process ended with status {status}"
    return as_row(Outcome(name, family, RAW, "", why))


def wait(child: int) -> int | None:
    """Exit status of a process; None, and its end, once the time is up."""
    until = time.monotonic() + LIMIT
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def quiet() -> None:
    """Without warnings and reports of other libraries."""
    from transformers.utils import logging

    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)


if __name__ == "__main__":
    import torch

    import interp.backends.lens.booting  # noqa: F401  (slow to import: once, before the forks)

    torch.set_num_threads(1)
    sys.exit(main(sys.argv[1:]))
