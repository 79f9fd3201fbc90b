"""`prefill`: attention statistics of long prompts, a chunk of queries at a time, with a cache of keys and values.

What is held at once is the weights, the cache, the answers, and the activations of one chunk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from interp.attention import Recorder, Statistic
from interp.attention.chunks import Portions, count_rows, portion
from interp.attention.masks import BLOCK
from interp.backends.hf.generation import whole_cache
from interp.backends.hf.passes import Passes
from interp.backends.hf.stacks import Stack
from interp.backends.plan.capture import Pass
from interp.batch import Batch
from interp.edits import Ablate, Add, Edit, Replace, Scale
from interp.errors import BackendError, TaskError
from interp.sites import PER_HEAD, SQUARE

LARGE = 2**27
"""Bytes of MLP neurons of all tokens from which on prompts run in chunks by themselves."""
ROOM = 2**25
"""Bytes of MLP neurons of the tokens of one chunk, where its size is not given."""
PER_TOKEN = (Ablate, Add, Replace, Scale)
"""Edits that change tokens one by one, wherever a chunk ends."""


@dataclass(frozen=True)
class Portion:
    """Columns `start` to `stop` - 1 of a batch, and the cache of those before them."""

    start: int
    stop: int
    cache: DynamicCache

    def inputs(self, batch: Batch, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What the model is passed with, of what the whole batch would be."""
        own: dict[str, Any] = {"use_cache": True, "past_key_values": self.cache}
        if "attention_mask" in inputs:
            own["attention_mask"] = inputs["attention_mask"][:, : self.stop]
        if "position_ids" in inputs:
            own["position_ids"] = inputs["position_ids"][:, self.start : self.stop]
        return own


def chunk_size(model: Passes, batch: Batch, plan: Pass, chunk: int | None) -> int:
    """Tokens of each prompt that are run at a time; the prompts' width where they run whole.

    Without a `chunk`, prompts whose MLP neurons would take more than 128 MiB a layer run in chunks of 32 MiB, in
    multiples of 256 tokens, where the model and the edits allow it.

    Raises:
        TaskError: a chunk below one token.
        BackendError: a chunk smaller than the prompts, where they cannot be cut; says why.
    """
    rows, n = batch.ids.shape
    if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
        raise TaskError(f"chunk is {chunk!r:.40}; expected a number of tokens, at least 1, or None")
    if chunk is not None and chunk >= n:
        return n
    token = rows * (model._d_mlp or 4 * model.info.d_model) * getattr(torch, model.info.dtype).itemsize
    if chunk is None and n * token <= LARGE:
        return n
    reason = obstacle(model, batch, plan)
    if reason and chunk is not None:
        raise BackendError(f"{model.info.name}: prompts cannot be run in chunks: {reason}; leave `chunk` out")
    return n if reason else min(n, chunk or max(BLOCK, ROOM // token // BLOCK * BLOCK))


def obstacle(model: Passes, batch: Batch, plan: Pass) -> str | None:
    """Why prompts cannot be cut, None where they can."""
    module, n = model.torch_module, batch.ids.shape[1]
    if not model.prefills:
        return f"the backend {model.backend!r} runs whole prompts"
    if isinstance(module, Stack) or not model.info.causal:
        return "tokens see later ones, or another text"
    if any(isinstance(x, LinearAttentionCacheLayerMixin) for x in DynamicCache(config=module.config).layers):
        return "layers without attention carry a state, which is not continued by several tokens at a time"
    if any(limit < n for _, limit in model.rotary.limits):
        return "its rotary tables are those of the whole length"
    return _edit_in_the_way(plan)


def _edit_in_the_way(plan: Pass) -> str | None:
    """Why an edit has to see whole prompts, None where none has."""
    for (kind, _), edits in plan.edits.items():
        for edit in edits:
            if kind in SQUARE or not isinstance(edit, PER_TOKEN):
                return f"{edit.site}: {type(edit).__name__} may look at all tokens at once"
            if _of_tokens(edit):
                return f"{edit.site}: {type(edit).__name__} has a value of each token"
    return None


def _of_tokens(edit: Edit) -> bool:
    """Whether the value of an edit has an axis of positions; the leading one of a mean is of layers."""
    value = getattr(edit, "factor", None) if isinstance(edit, Scale) else getattr(edit, "value", None)
    rest = 2 if edit.site.kind in PER_HEAD and edit.site.head is None else 1
    if not isinstance(value, Tensor) or value.ndim <= rest:
        return False
    if isinstance(edit, Ablate) and edit.how == "mean":
        return edit.by is not None
    return value.shape[-rest - 1] != 1


def prefill(model: Passes, batch: Batch, plan: Pass, recorder: Recorder, size: int) -> dict[int, dict[str, Tensor]]:
    """Answers to a recorder's questions by layer, on the CPU, the prompts run `size` columns at a time.

    Raises:
        BackendError: the model does not keep the keys of what it has read.
        TaskError: a question that does not fit the prompts.
    """
    for statistic in recorder.questions.values():
        statistic.check(batch=len(batch.ids), n_query=batch.ids.shape[1], n_key=batch.ids.shape[1])
    n, layers, cache = batch.ids.shape[1], tuple(recorder.layers or ()), whole_cache(model.torch_module)
    answers = {i: {name: Portions(q, batch.mask) for name, q in recorder.questions.items()} for i in layers}
    for start in range(0, n, size):
        stop = min(n, start + size)
        counts: dict[tuple[str, int], Tensor] = {}
        part: dict[str, Statistic] = {name: portion(q, start, stop) for name, q in recorder.questions.items()}
        once = Recorder(part, layers, recorder.method, last=recorder.last, padded=recorder.padded)
        once.watch = count_rows(part, layers, counts)
        model._forward(batch, plan, recorder=once, portion=Portion(start, stop, cache))
        if cache.get_seq_length() != stop:
            raise BackendError(
                f"{model.info.name}: after {stop} tokens its cache has {cache.get_seq_length()}, so that prompts "
                "cannot be run in chunks"
            )
        for layer in layers:
            for name, answer in model.gathered(once.answers[layer]).items():
                answers[layer][name].add(answer, start, stop, counts.get((name, layer)))
    return {layer: {name: parts.answer() for name, parts in own.items()} for layer, own in answers.items()}
