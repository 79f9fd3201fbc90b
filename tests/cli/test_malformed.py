"""Malformed input of every kind ends in one line and an exit code, and leaves every file as it was."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sys
import traceback
import warnings
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from dictionaries_made import random_dictionary
from malformed_inputs import cases, sample
from malformed_inputs.case import Case

from interp import zoo
from interp.cli import main as cli
from interp.dictionaries.training.files import write
from interp.measurement import registry
from interp.results.results import Result, frame

SECONDS = 60
"""That any of them may take."""
CODES = {0, 1, 2}
LARGE = 1 << 30
"""Bytes of a file that is mostly a hole: its size is what is compared."""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with a checkpoint, a dictionary of it and stored tables, all of which are right."""
    folder = tmp_path_factory.mktemp("base")
    model, tokenizer = zoo.load("planted-induction")
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    d = model.config.hidden_size
    write(random_dictionary("L0.resid_post", d_in=d, d_out=d, n=8), folder / "sae")
    (folder / "results").mkdir()
    result = Result(frame([{"analysis": "sink", "variant": "x", "value": 0.5, "component": "L0H1"}]), {"run_id": "abc"})
    for suffix in (".json", ".parquet"):
        result.save(folder / "results" / f"good{suffix}")
    return folder


@pytest.fixture
def few(monkeypatch):
    """Analyses ask few prompts: what they measure has its own tests."""
    real = registry.analyze

    def analyze(model, name, **options):
        return real(model, name, n_prompts=4, **options)

    monkeypatch.setattr(registry, "analyze", analyze)


def state(folder: Path) -> dict[str, str]:
    """What stands in a folder: kind and content of everything, by its path."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = os.fsencode(path.relative_to(folder)).hex()
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"  # noqa: PTH115
        elif path.is_file():
            size = path.stat().st_size
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if size < LARGE else str(size)
        else:
            found[name] = f"{path.stat().st_mode:o}"
    return found


@contextmanager
def deadline(seconds: int):
    """Raise in this thread after some seconds."""

    def stop(*_):
        raise TimeoutError(f"it took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fault(case: Case, base: Path, folder: Path, capfd) -> tuple[str | None, str]:
    """What is wrong with how a case ends, None if nothing; and how it ended."""
    shutil.copytree(base, folder, copy_function=os.link if case.kind == "option" else shutil.copy2)
    case.prepare(folder)
    before, here, code = state(folder), Path.cwd(), None
    capfd.readouterr()
    os.chdir(folder)
    sys.argv = ["interp", *case.arguments]
    try:
        with deadline(SECONDS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cli.main()
    except SystemExit as stopped:
        code = stopped.code
    except BaseException:
        return f"traceback\n{traceback.format_exc(limit=-4)}", "traceback"
    finally:
        os.chdir(here)
    out, err = capfd.readouterr()
    after = state(folder)
    changed = [name for name, content in before.items() if after.get(name) != content]
    lines = [line for line in err.splitlines() if not line.startswith(("skipped ", "left out: "))]
    problems = {
        f"exit code {code}": code not in CODES,
        "traceback": "Traceback" in err + out,
        "unexpected": "unexpected " in err and "(--debug shows" in err,
        "replaced a file": bool(changed),
        "half-written": code != 0
        and len(after) > len(before)
        or any(".interp-" in n for n in after.keys() - before.keys()),
        "no word": code != 0 and not (lines and lines[-1].startswith("interp: ")),
        "an escape": "\x1b" in out + err,
        "too long": code != 0 and lines and len(lines[-1]) > 3000,
    }
    wrong = [name for name, is_so in problems.items() if is_so]
    shutil.rmtree(folder)
    return (f"{', '.join(wrong)}: {err[-300:]}" if wrong else None), f"exit code {code}"


@pytest.fixture
def judge(base, few, tmp_path, capfd, monkeypatch):
    """Run cases; (faults by id, how they ended by class)."""
    monkeypatch.setattr(sys, "argv", ["interp"])

    def run(some: list[Case]) -> tuple[dict[str, str], Counter]:
        faults, ends = {}, Counter()
        for number, case in enumerate(some):
            wrong, end = fault(case, base, tmp_path / str(number), capfd)
            ends[case.kind, end] += 1
            if wrong:
                faults[case.id] = wrong
        return faults, ends

    return run


def test_some_malformed_inputs_of_every_class(judge):
    some = sample(56)
    faults, _ = judge(some)
    assert faults == {}
    assert len({case.kind for case in some}) == 14


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_all_malformed_inputs(judge, capfd):
    every = cases()
    faults, ends = judge(every)
    with capfd.disabled():
        for (kind, end), n in sorted(ends.items()):
            print(f"{kind:12} {end:14} {n:5}")  # noqa: T201
    assert faults == {}
    assert len(every) > 1000


def test_the_harness_sees_what_is_wrong(base, few, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["interp"])

    def bad(*_, **__):
        (Path.cwd() / "half.csv").write_text("half")
        (Path.cwd() / "model" / "config.json").write_text("{}")
        raise ZeroDivisionError("\x1b[2J")

    monkeypatch.setattr("interp.measurement.registry.detect", bad)
    case = Case("control", "all of it", ("detect", "zoo:planted-induction", "-a", "sink"))
    wrong, _ = fault(case, base, tmp_path / "x", capfd)
    assert np.all([word in str(wrong) for word in ("unexpected", "replaced a file", "half-written")])
