"""Break one formula after the other and see a test fail: `python tests/mutations [NAME ...]`, `make slow`.

The tables beside this file hold the mutations. Each is made in a copy of the tree, alone; the tests that it names are
run there and have to fail. NAME is the beginning of a mutation's name or of the file that it breaks. The last line of
the output counts them; the exit status is 1 where one survives, 2 where a text is not there exactly once.

Every run is a fork of one process that has imported what is slow to import and is not ours.
"""

from __future__ import annotations

import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

os.environ.setdefault("TRITON_INTERPRET", "1")  # read when torch is imported below, before a test's conftest can say it

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LIMIT = 600
"""Seconds of processor time after which a mutated run counts as failed: a loop that does not end is no survivor."""
MODELS = "gpt2 gpt_neox gemma2 gpt_oss llama mistral olmo2 opt phi qwen2 qwen3".split()
PRELOADED = (
    *"beartype typeguard hypothesis.strategies pytest pandas plotly.graph_objects scipy.stats sklearn.metrics".split(),
    *("torch", "transformers"),
    *(f"transformers.models.{name}.modeling_{name}" for name in MODELS),
)
UNUSED = ("nbmake", "xdist", "anyio")
"""Plug-ins of pytest that take a second to load."""
KILLED, SURVIVED, NO_TEST = "killed", "SURVIVED", "NO TEST"


@dataclass(frozen=True)
class Mutation:
    """One formula, broken.

    Attributes:
        name: in the tables' order, unique.
        file: where it stands. old: text that stands there once. new: what it is replaced by.
        tests: arguments of pytest: the tests that have to fail.
        of: the analysis or circuit method that it breaks, by its registered name; empty for what several build on.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str
    of: str = ""

    def mutated(self, text: str) -> str:
        """The file's text with the formula broken.

        Raises:
            ValueError: the old text stands there no time, or several times, or nothing changes.
        """
        if text.count(self.old) != 1 or self.old == self.new:
            raise ValueError(f"{self.name}: {self.old!r} stands {text.count(self.old)} times in {self.file}")
        return text.replace(self.old, self.new)


def mutations() -> list[Mutation]:
    """All tables, one after the other."""
    tables = [tomllib.loads(path.read_text(encoding="utf-8")) for path in sorted(HERE.glob("*.toml"))]
    return [Mutation(name=name, **fields) for table in tables for name, fields in table.items()]


def copied(folder: Path) -> None:
    """The files that git tracks or would track, as they are now."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


@contextmanager
def broken(path: Path, mutation: Mutation) -> Iterator[None]:
    """The file with the mutation in it; afterwards as it was, time stamp included, which caches of bytecode look at."""
    text, times = path.read_text(encoding="utf-8"), path.stat()
    path.write_text(mutation.mutated(text), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(text, encoding="utf-8")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def preload() -> None:
    """Import what takes seconds and is not ours. nnsight stays out: pytest's plug-ins do not load after it."""
    os.environ.update({"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"})
    for name in PRELOADED:
        import_module(name)
    import_module("torch").set_num_threads(1)


class Failed:
    """A pytest plugin that writes down which test failed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Called by pytest after each phase of a test."""
        if report.failed:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{report.nodeid}\n")


class Bench:
    """A copy of the tree in which mutations are made and tests run."""

    def __init__(self, folder: Path) -> None:
        self.tree, self.log, self.failed = folder / "tree", folder / "log", folder / "failed"
        self.tree.mkdir()
        copied(self.tree)

    def text(self, mutation: Mutation) -> str:
        """What stands in the file that it breaks."""
        return (self.tree / mutation.file).read_text(encoding="utf-8")

    def killer(self, mutation: Mutation) -> str | None:
        """The first of its tests that fails; None where all pass.

        Raises:
            RuntimeError: the tests do not run, or there are none.
        """
        with broken(self.tree / mutation.file, mutation):
            failed = self.failing([*shlex.split(mutation.tests), "-x"])
        return failed[0] if failed else None

    def failing(self, arguments: Sequence[str], *, limit: int = LIMIT) -> list[str]:
        """The tests that fail in the copy, run by a fork of this process, whose output goes to the log.

        Raises:
            RuntimeError: pytest does not run, or selects nothing.
        """
        self.failed.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            self._child(arguments, limit)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == -signal.SIGXCPU:
            return ["(no end)"]
        failed = self.failed.read_text(encoding="utf-8").splitlines() if self.failed.exists() else []
        if status != bool(failed):
            raise RuntimeError(self.log.read_text(encoding="utf-8", errors="replace")[-800:])
        return failed

    def _child(self, arguments: Sequence[str], limit: int) -> NoReturn:
        status = 3
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 10))
            out = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1)
            os.dup2(out, 2)
            os.chdir(self.tree)
            os.environ["PYTHONPATH"] = str(self.tree)
            sys.path[:] = [str(self.tree), *(p for p in sys.path if p and Path(p) not in (ROOT, HERE))]
            import pytest

            plain = ["-q", "--tb=short", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib"]
            plain += [f"-pno:{name}" for name in UNUSED]
            plain += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
            status = int(pytest.main([*plain, *arguments], plugins=[Failed(self.failed)]))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)


def tried(bench: Bench, chosen: Sequence[Mutation]) -> Counter[str]:
    """Make each mutation and print what became of it; then run what failed once more, without any."""
    outcomes, killers = Counter[str](), dict[str, list[str]]()
    for m in chosen:
        started = time.monotonic()
        try:
            killer = bench.killer(m)
        except RuntimeError as error:
            how, by = NO_TEST, str(error)
        else:
            how, by = (SURVIVED, m.tests) if killer is None else (KILLED, killer.split("::", 1)[-1])
            if killer is not None and "::" in killer:
                killers.setdefault(killer, []).append(m.name)
        outcomes[how] += 1
        print(f"{how:8}  {time.monotonic() - started:6.1f} s  {m.name:48}  {by}", flush=True)
    for test in bench.failing(list(killers), limit=10 * LIMIT) if killers else ():
        fooled = killers.get(test, [])
        print(f"fails without any mutation: {test}, which was to kill {', '.join(fooled)}", flush=True)
        outcomes[NO_TEST] += len(fooled)
        outcomes[KILLED] -= len(fooled)
    return outcomes


def main(names: Sequence[str]) -> int:
    """Apply the mutations whose name or file begins so, or all."""
    chosen = [m for m in mutations() if not names or any(m.name.startswith(n) or m.file.startswith(n) for n in names)]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutations-") as temporary:
        bench = Bench(Path(temporary))
        for m in chosen:
            m.mutated(bench.text(m))  # all texts are there: said before an hour is spent
        preload()
        outcomes = tried(bench, chosen)
    counts = ", ".join(f"{n} {how}" for how, n in outcomes.items() if n)
    print(f"{len(chosen)} formulas broken: {counts or 'none'}; {time.monotonic() - began:.0f} s")
    return int(outcomes[KILLED] < len(chosen))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ValueError as error:
        print(f"mutations: {error}", file=sys.stderr)
        sys.exit(2)
