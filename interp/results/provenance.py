"""Provenance: where a result came from, as plain data."""

from __future__ import annotations

import hashlib
import inspect
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from interp.environment import versions
from interp.model import Model
from interp.results.results import SCHEMA_VERSION


def provenance(
    model: Model,
    name: str,
    body: Callable[..., Any],
    passed: Mapping[str, Any],
    data: Mapping[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """Who measured what of which model, on what data, when and how long: plain values."""
    parameters = inspect.signature(body).parameters
    defaults = {k: plain(p.default) for k, p in parameters.items() if p.default is not p.empty and k not in passed}
    call = {"analysis": name, "passed": {k: plain(v) for k, v in passed.items()}, "defaults": defaults}
    info = plain(model.info.as_dict())
    identity = json.dumps([SCHEMA_VERSION, call, info, plain(dict(data))], sort_keys=True)
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": hashlib.sha256(identity.encode()).hexdigest()[:16],
        "call": call,
        "model": info,
        "backend": model.backend,
        "tokenizer": None if model.tokenizer is None else type(model.tokenizer).__name__,
        "data": plain(dict(data)),
        "seed": passed.get("seed", defaults.get("seed")),
        "packages": versions(),
        "device": _device(model),
        "created_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(seconds, 3),
    }


def _device(model: Model) -> str:
    import torch

    return torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else str(model.device)


def plain(value: Any) -> Any:
    """JSON-able form of an option or of sizes."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list | range):
        return [plain(v) for v in value]
    return value if isinstance(value, str | int | float | bool | None) else repr(value)
