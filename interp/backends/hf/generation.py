"""Edits during generation: positions are absolute, with a cache and without."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from interp.attention import Recorder, intercept
from interp.backends.hf.anatomy import Anatomy
from interp.backends.hf.hooks import Hooks
from interp.backends.hf.rewrite import INSIDE, connect, goes_inside
from interp.backends.hf.stacks import EncoderStack
from interp.backends.plan.capture import Pass
from interp.batch import Batch
from interp.errors import BackendError


def needs_attention(model: PreTrainedModel, plan: Pass, *, padded: bool, gated: frozenset[int] = frozenset()) -> bool:
    """Whether attention has to be ours: asked for, padded (masks are then checked), or eager otherwise (n x n)."""
    return goes_inside(plan, gated) or padded or model.config._attn_implementation == "eager"


@contextlib.contextmanager
def standing(model: PreTrainedModel, anatomy: Anatomy, plan: Pass) -> Iterator[None]:
    """Context in which every forward pass of the model, whoever calls it, carries out the edits of a pass."""

    def begin(module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        if not plan.on:
            return
        plan.passing = True
        tokens = args[0] if args else kwargs.get("input_ids")
        tokens = kwargs["inputs_embeds"] if tokens is None else tokens
        cache, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
        offset = 0 if cache is None else int(cache.get_seq_length())
        shape = (int(tokens.shape[0]), int(tokens.shape[1]))
        new = offset == 0 and not plan.frozen
        real = torch.ones(shape, dtype=torch.bool, device=tokens.device)
        if new and isinstance(mask, Tensor) and mask.ndim == 2:
            real = mask[:, : shape[1]].bool()
        plan.begin(real if new else None, shape, offset)

    def end(module: Any, args: tuple, output: Any) -> None:
        plan.passing = False

    plan.passing = False
    handle = model.register_forward_pre_hook(begin, with_kwargs=True)
    try:
        with contextlib.ExitStack() as stack:
            if goes_inside(plan, anatomy.gated):
                recorder = stack.enter_context(intercept(model, connect(Recorder(), plan, anatomy)))
                if isinstance(model, EncoderStack):
                    stack.enter_context(model.recorded(recorder))
            stack.enter_context(Hooks(model, anatomy, plan).installed())
            stack.callback(model.register_forward_hook(end, always_call=True).remove)  # behind that of the logits
            yield
    finally:
        handle.remove()


def check_cache(options: Mapping[str, Any]) -> None:
    """Refuse caches that let keys go, or hold places for keys that do not exist yet: edits speak of any of them.

    Raises:
        BackendError: with what was given.
    """
    cache = options.get("past_key_values")
    given = options.get("cache_implementation") or (None if cache is None else type(cache).__name__)
    if options.get("cache_implementation") not in (None, "dynamic") or not isinstance(cache, DynamicCache | None):
        raise BackendError(
            f"edits of attention need a cache that keeps every key as it is; leave cache {given!r} out, or pass "
            "use_cache=False"
        )


def generation(model: PreTrainedModel, batch: Batch, plan: Pass, options: dict[str, Any]) -> Tensor:
    """Token ids from transformers' `generate`, the prompts' positions fixed for its whole course."""
    ids = batch.ids
    inside = any(kind in INSIDE for kind, _ in (*plan.edits, *plan.captures))
    cached = options.get("use_cache", model.generation_config.use_cache) is not False
    if inside:
        check_cache(options)
    if inside and cached and options.get("past_key_values") is None:
        options = {k: v for k, v in options.items() if k != "cache_implementation"}
        options["past_key_values"] = DynamicCache()  # every key kept: edits may speak of any of them
    if "pad_token_id" not in options and model.generation_config.pad_token_id is None:
        options = {**options, "pad_token_id": 0}
    plan.begin(batch.mask, (int(ids.shape[0]), int(ids.shape[1])), spans=batch.spans)
    plan.frozen = True
    try:
        with torch.no_grad():
            generate: Any = model.generate
            output = generate(ids, **{"attention_mask": batch.mask.long(), "do_sample": False, **options})
    except (AttributeError, KeyError, NotImplementedError, TypeError, ValueError) as error:
        raise BackendError(f"{type(model).__name__}.generate cannot go on: {type(error).__name__}: {error}") from error
    finally:
        plan.frozen = False
    return output if isinstance(output, Tensor) else output.sequences
