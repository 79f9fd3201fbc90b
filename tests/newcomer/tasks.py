"""What a newcomer types, run as typed in a folder of one's own: what it cost, what it said, what is wrong with it."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WIDTH, LIMIT = 80, 600
"""Columns of the terminal, and seconds that a task may take."""
PATCH = """\
import interp
from circuits import activation_patching

model = interp.load("zoo:default")
clean = "While Skozul and Moxgax stayed at the market , Skozul passed a cake to"
corrupt = "While Rivlim and Zanlim stayed at the market , Quasov passed a cake to"
task = interp.pair(model, clean, corrupt, "Moxgax", "Skozul")
effects = activation_patching(model, task, nodes="heads")
print(effects.table.sort_values("value").tail(3)[["component", "value"]])
"""
LOOK = ('import interp\nmodel = interp.load("zoo:default")', 'interp.analyze(model, "induction", causal=False)')


@dataclass(frozen=True)
class Task:
    """A task of tasks.toml, by the names it has there."""

    want: str
    type: str
    says: list[str]
    code: int = 0
    makes: list[str] = field(default_factory=list)
    lines: int | None = None
    steps: int | None = None
    dear: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a task: seconds of the clock and of processors, and what is wrong with it, if anything is."""

    wall: float
    cpu: float
    faults: list[str]
    output: str


TASKS = [Task(**task) for task in tomllib.loads((HERE / "tasks.toml").read_text(encoding="utf-8"))["task"]]


def prepare(place: Path) -> None:
    """What the newcomer has: a prompt, pairs, scores, two files of Python, and checkpoints."""
    import folders

    for kind in folders.KINDS:
        folders.write_folder(kind, place / kind)
    (place / "prompt.txt").write_text(" ".join(folders.SENTENCES), encoding="utf-8")
    pair = {
        "clean": "While Skozul and Moxgax stayed at the market , Skozul passed a cake to",
        "corrupt": "While Rivlim and Zanlim stayed at the market , Quasov passed a cake to",
        "answer": "Moxgax",
        "wrong": "Skozul",
    }
    (place / "pairs.jsonl").write_text("\n".join([json.dumps(pair)] * 8) + "\n", encoding="utf-8")
    rows = [f"prefix_matching,{layer},{head},{layer * 12 + head}" for layer in range(4) for head in range(12)]
    (place / "scores.csv").write_text("\n".join(["score,layer,head,value", *rows]) + "\n", encoding="utf-8")
    (place / "patch.py").write_text(PATCH, encoding="utf-8")
    cells = [
        {"cell_type": "code", "id": f"c{i}", "execution_count": None, "metadata": {}, "outputs": [], "source": source}
        for i, source in enumerate(LOOK)
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    book = {"nbformat": 4, "nbformat_minor": 5, "metadata": kernel, "cells": cells}
    (place / "look.ipynb").write_text(json.dumps(book), encoding="utf-8")


def run(task: Task, place: Path) -> Outcome:
    """Type it; the shell finds the commands of the environment that this runs in."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "COLUMNS": str(WIDTH)}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    ended = subprocess.run(
        ["bash", "-c", task.type],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Outcome(time.monotonic() - start, cpu, _faults(task, ended, place), ended.stdout + ended.stderr)


def _faults(task: Task, ended: subprocess.CompletedProcess[str], place: Path) -> list[str]:
    said = " ".join((ended.stdout + ended.stderr).split())
    faults = [f"exit status {ended.returncode}, not {task.code}"] if ended.returncode != task.code else []
    faults += [f"does not say {text!r}" for text in task.says if " ".join(text.split()) not in said]
    faults += [f"says {text!r}" for text in ("Traceback", "interp: unexpected") if text in said]
    faults += [f"{name} is not there" for name in task.makes if not (place / name).is_file()]
    if task.lines is not None and len(ended.stdout.splitlines()) > task.lines:
        faults.append(f"{len(ended.stdout.splitlines())} lines, not {task.lines}")
    long = [line for line in ended.stdout.splitlines() if len(line) > WIDTH]
    return faults + [f"a line of {len(line)} characters: {line[:40]} .." for line in long[:1]]
