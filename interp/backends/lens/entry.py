"""Entry point of TransformerLens for `interp.load`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from interp.backends.backend import Backend

if TYPE_CHECKING:
    from interp.backends.checkpoint import Checkpoint
    from interp.model import Model


def _make(checkpoint: Checkpoint, *, ours: bool) -> Model:
    from interp.backends.lens.booting import boot

    return boot(checkpoint, ours=ours)


def _adopt(source: Any, *, remote: bool | str) -> Model:
    from interp.backends.lens.model import LensModel
    from interp.backends.lens.own_tokenizer import own_tokenizer

    model = LensModel(source)
    model.tokenizer = own_tokenizer(source)
    return model


def _fits(checkpoint: Checkpoint) -> bool:
    from interp.backends.lens.booting import fits

    return fits(checkpoint)


BACKEND = Backend("lens", _make, packages=("transformer_lens",), adopt=_adopt, fits=_fits)
