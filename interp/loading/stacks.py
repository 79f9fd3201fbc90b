"""Which stack of an encoder-decoder a model is."""

from __future__ import annotations

import logging
from dataclasses import replace

from interp.backends import Checkpoint
from interp.backends.hf.stacks import source_ids, stack_of
from interp.batch import Prompts
from interp.errors import ModelLoadError
from interp.loading.choose import DEFAULT

log = logging.getLogger("interp")


def one_stack(checkpoint: Checkpoint, stack: str | None, source: Prompts, backend: str) -> Checkpoint:
    """The checkpoint with one stack in place of an encoder-decoder; every other one as it is.

    Raises:
        ModelLoadError: a stack of what has none, an unknown one, or another backend than the one that runs stacks.
        TaskError: a source that cannot be run.
    """
    whole = checkpoint.model
    if not getattr(whole.config, "is_encoder_decoder", False):
        if stack is not None or source is not None:
            raise ModelLoadError(f"{checkpoint.name} is no encoder-decoder: leave stack= and source_text= out")
        return checkpoint
    if backend != DEFAULT:
        raise ModelLoadError(
            f"{checkpoint.name} is an encoder-decoder, of which backend {backend!r} runs no stack; use {DEFAULT!r}"
        )
    if stack is None and source is None:
        log.warning(
            "%s is an encoder-decoder: its encoder is loaded (stack='encoder'); for the decoder say stack='decoder', "
            "for its attention to the source stack='cross', and give source_text=",
            checkpoint.name,
        )
    stack = stack or ("encoder" if source is None else "decoder")
    ids = None if source is None else source_ids(source, checkpoint.tokenizer, whole)
    return replace(checkpoint, model=stack_of(whole, stack, ids))
