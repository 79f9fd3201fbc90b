"""Entry point of nnsight for `interp.load`, for models here and on a server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from interp.backends.backend import Backend

if TYPE_CHECKING:
    from interp.backends.checkpoint import Checkpoint
    from interp.model import Model


def _make(checkpoint: Checkpoint, *, ours: bool) -> Model:
    from interp.backends.nnsight.wrapping import wrap

    return wrap(checkpoint)


def _adopt(source: Any, *, remote: bool | str) -> Model:
    if remote:
        from interp.backends.nnsight.remote import RemoteModel

        return RemoteModel(source, remote)
    from interp.backends.nnsight.model import NNsightModel

    return NNsightModel(source)


BACKEND = Backend(
    "nnsight",
    _make,
    packages=("nnsight",),
    adopt=_adopt,
    remote="nnsight.TransformersModel(name), which needs no weights here",
)
