"""Versions and devices, for bug reports and provenance."""

from __future__ import annotations

import os
import platform
from importlib import metadata

__version__ = "0.1.0"

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
