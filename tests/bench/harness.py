"""What every benchmark needs: timing in turns, peak memory of a fresh process, and rows of one tidy CSV."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the hub client reads it once, when first imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import csv
import ctypes
import gc
import platform
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

RESULTS = Path(__file__).parent / "results"
T = TypeVar("T")
PACKAGES = ("torch", "transformers", "transformer-lens")


@dataclass(frozen=True)
class Row:
    """One provider at one size. Seconds are wall time; None where a quantity was not measured."""

    case: str
    provider: str
    size: int
    median_s: float | None
    p20_s: float | None
    p80_s: float | None
    ratio_to_plain: float | None
    peak_extra_mb: float | None
    max_abs_diff: float | None
    rounds: int
    device: str
    threads: int
    versions: str
    time_utc: str


def append(path: Path, rows: list[Row]) -> None:
    """Add rows to a CSV, with a header where the file is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows({k: _text(v) for k, v in asdict(row).items()} for row in rows)


def read(path: Path) -> list[Row]:
    """Rows of a CSV that `append` wrote."""
    whole, words = ("size", "rounds", "threads"), ("case", "provider", "device", "versions", "time_utc")
    with path.open(newline="") as file:
        return [Row(**{k: _value(k, v, whole, words) for k, v in line.items()}) for line in csv.DictReader(file)]


def _text(value: object) -> object:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value


def _value(name: str, text: str, whole: tuple[str, ...], words: tuple[str, ...]) -> Any:
    if name in words:
        return text
    if name in whole:
        return int(text)
    return float(text) if text else None


def now() -> str:
    """UTC time to the second; all rows of a run carry the time it began."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def versions(packages: tuple[str, ...] = PACKAGES) -> str:
    """Installed versions of the packages compared."""
    return "; ".join(f"{name} {version(name)}" for name in packages)


def cpu() -> str:
    """CPU model and number of cores this process may use."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{names[0] if names else platform.machine()}, {cores} cores"


def fresh(function: Callable[..., T], *args: object) -> T:
    """Call a module-level function in a new process that ends with it; one at a time."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        return pool.submit(function, *args).result()


def take_turns(
    runs: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    after: Callable[[str, int, object], None],
    clock: str = "wall",
) -> dict[str, list[float]]:
    """Seconds of each run in each round, all of them once per round, the first round dropped as a warm-up.

    The order is shifted by one every round. `after(name, round, result)` is called outside the timed part, to check
    the result and free what was kept; the warm-up is round 0. `clock`: "wall", or "cpu" for the time of this process's
    threads, which other work on the machine lengthens far less.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    time_of = {"wall": time.perf_counter, "cpu": time.process_time}[clock]
    for turn in range(rounds + 1):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            gc.collect()
            begin = time_of()
            result = runs[name]()
            took = time_of() - begin
            after(name, turn, result)
            del result
            if turn > 0:
                seconds[name].append(took)
    return seconds


def spread(seconds: list[float]) -> tuple[float, float, float]:
    """Median, 20th and 80th percentile."""
    median, low, high = np.percentile(seconds, [50, 20, 80])
    return float(median), float(low), float(high)


def peak_extra_mb(run: Callable[[], object]) -> float | None:
    """Peak resident memory of a call above what was resident before it, in MB (10^6 bytes); Linux only."""
    if not Path("/proc/self/status").exists():
        return None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # else freed pages of model loading would be reused without being counted
    _forget_peak()
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before) / 1e6


def _status(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def _forget_peak() -> None:
    """Set VmHWM back to VmRSS where the kernel allows it, so that a peak while loading does not count."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        print(f"peak memory includes model loading ({error.strerror or error})")
