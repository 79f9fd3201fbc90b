"""Entry point of the default backend for `interp.load`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interp.backends.backend import Backend

if TYPE_CHECKING:
    from interp.backends.checkpoint import Checkpoint
    from interp.model import Model


def _make(checkpoint: Checkpoint, *, ours: bool) -> Model:
    from interp.backends.hf.model import HFModel

    return HFModel(checkpoint)


BACKEND = Backend("hf", _make)
