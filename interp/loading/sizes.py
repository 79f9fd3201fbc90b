"""Sizes: a configuration held against the files beside it, before a model of its sizes is made."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from interp.environment import human_bytes
from interp.errors import ModelLoadError
from interp.loading.shards import header

LARGEST = 2**31 - 1
"""No size, count or id of a model is larger."""
COUNTED = re.compile(r"(^|_)(layers?|blocks|experts|routed_experts)$")
"""Ends of the names of what there is a module or a row of weights for, each."""
SPARE_FACTOR, SPARE_BYTES = 16, 2**29
"""How much larger than its files a model may be: buffers, tied weights, a file in four bits."""


def check_sizes(name: str, config: Any, auto_class: Any, files: Sequence[Path]) -> None:
    """Refuse a configuration whose model cannot be the one in the files, by its size alone.

    Raises:
        ModelLoadError: a number that no model has, more layers or experts than there are tensors, or a model that is
            many times as large as its files.
    """
    shapes = [shape for file in files for _, shape in header(file).values()]
    widest = max((size for shape in shapes for size in shape), default=0)
    for field, value in _integers(config.to_dict()):
        if value > LARGEST:
            raise ModelLoadError(f"{name!r}: {field} is {value:.3g} by config.json, which no model has")
        if COUNTED.search(field) and value > max(len(shapes), widest):
            raise ModelLoadError(
                f"{name!r}: {field} is {value} by config.json, and the files hold {len(shapes)} tensors"
            )
    if any(value > widest for _, value in _integers(config.to_dict())):
        _check_bytes(name, config, auto_class, sum(file.stat().st_size for file in files))


def _integers(values: Mapping[Any, Any], within: str = "") -> Iterator[tuple[str, int]]:
    """Whole numbers of a configuration and of the mappings in it, by name."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _integers(value, f"{within}{key}.")
        elif isinstance(value, int) and not isinstance(value, bool):
            yield f"{within}{key}", value


def _check_bytes(name: str, config: Any, auto_class: Any, in_files: int) -> None:
    try:
        with torch.device("meta"):
            model = auto_class.from_config(config, trust_remote_code=False)
    except Exception:  # said with the weights, where it can be said better
        return
    size = sum(4 * x.numel() for x in (*model.parameters(), *model.buffers()))
    if size > SPARE_FACTOR * in_files + SPARE_BYTES:
        raise ModelLoadError(
            f"{name!r}: by config.json the model has {human_bytes(size)}, and its files {human_bytes(in_files)}: one "
            "of its sizes is wrong"
        )
