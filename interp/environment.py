"""What this machine has: versions, devices, free memory, and the plug-ins of installed packages."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__version__ = "0.1.0"
log = logging.getLogger("interp")
CIRCUIT_METHODS = "interp.circuit_methods"
"""Entry points of modules that hold circuit methods, each by the name of one (see `circuits.methods`)."""

PACKAGES = (
    "interp-toolkit",
    "torch",
    "transformers",
    "transformer-lens",
    "nnsight",
    "numpy",
    "pandas",
    "scipy",
    "plotly",
    "triton",
)

CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat", "inactive_file"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
        "total_inactive_file",
    ),
)


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Without transformers' bar over the tensors that it loads, which a notebook shows in red.

    Whether bars are on, of transformers and of the hub, is left as it is, and a hook of one's own is put back.
    """
    from transformers.utils import logging as own

    before = own.set_tqdm_hook(lambda _, args, options: own.EmptyTqdm(*args, **options))
    try:
        yield
    finally:
        own.set_tqdm_hook(before)


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Installed version of each package, "not installed" without one."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def plugin_names(group: str) -> tuple[str, ...]:
    """Names that installed packages announce under an entry-point group, sorted; nothing is imported."""
    return tuple(sorted({entry.name for entry in metadata.entry_points(group=group)}))


@functools.cache
def load_plugins(group: str) -> None:
    """Import what installed packages announce under an entry-point group, once; what does not import is left out.

    One broken plug-in does not take the others down: it is named in a warning of the logger "interp".
    """
    for entry in metadata.entry_points(group=group):
        try:
            entry.load()
        except ImportError as error:
            log.warning("%s of %s are left out: %s", group.rpartition(".")[2], entry.name, error)


def describe() -> dict[str, str]:
    """Python, packages, processor, threads, accelerators, and where Hugging Face looks for models."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        **versions(),
        "cpu threads": str(torch.get_num_threads()),
        "gpus": ", ".join(gpus) or "none",
        "hub": "offline" if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"} else "online",
    }


def free_bytes(device: torch.device) -> int:
    """Free bytes: of a CUDA device, its own cache included; else of this machine within its container's limit."""
    import psutil
    import torch

    if device.type == "cuda":
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + idle
    return min([int(psutil.virtual_memory().available), *_contained()])


def _contained() -> list[int]:
    """What the container leaves, where there is one with a limit; file cache that can be dropped counts as free."""
    for limit, used, stat, cache in CGROUPS:
        try:
            text = Path(limit).read_text().strip()
            if text == "max":
                continue
            lines = dict(line.split() for line in Path(stat).read_text().splitlines())
            return [max(0, int(text) - int(Path(used).read_text()) + int(lines.get(cache, 0)))]
        except (OSError, ValueError):
            continue
    return []


def human_bytes(size: int | float) -> str:
    """Bytes for people: 1.5 GB (10^9).

    >>> human_bytes(1_500_000_000)
    '1.5 GB'
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:.3g} {unit}"
        size /= 1000
    raise AssertionError
