"""Public tests of what others add: `check_analysis` of an analysis, `check_backend` of a way to run models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp.measurement.checks.analysis import check_analysis as check_analysis
    from interp.measurement.checks.backend import check_backend as check_backend

_HOME = {
    "check_analysis": "interp.measurement.checks.analysis",
    "check_backend": "interp.measurement.checks.backend",
}

__all__ = ["check_analysis", "check_backend"]


def __getattr__(name: str) -> Any:
    """Import a check when it is first used: each brings what it tests with."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
