"""What is installed here: versions and devices, for bug reports and provenance, and the plug-ins of packages."""

from __future__ import annotations

import functools
import logging
import os
import platform
from importlib import metadata

__version__ = "0.1.0"
log = logging.getLogger("interp")

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


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Installed version of each package, "not installed" without one."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


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
