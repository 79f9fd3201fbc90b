"""`Recorder`: one attention function that transformers calls in place of its own, for every architecture.

`intercept(model, recorder)` switches the model to our attention and mask functions, hands each layer's `Call` to the
recorder, and puts back every setting it touched, also after an exception.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from interp.attention._measure import measure
from interp.attention.call import Call
from interp.attention.masks import ApartMask, CausalMask, causal, everything, lazy_mask
from interp.attention.statistics import Statistic
from interp.errors import BackendError

NAME = "interp"  # under which both functions are registered with transformers
POSITIONS = ("position_ids", "cache_position", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
"""Tensors handed to an attention function of which no score is made; any other may change the pattern unseen."""

_layers: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()


def number_layers(layers: Mapping[nn.Module, int]) -> None:
    """Say at which layer attention modules stand; without, it is their own `layer_idx`, or their place in the order."""
    _layers.update(layers)


_active: ContextVar[Recorder | None] = ContextVar("interp_recorder", default=None)


def current_recorder() -> Recorder | None:
    """What attention is handed to in this thread; None outside of `intercept`."""
    return _active.get()


def set_recorder(recorder: Recorder | None) -> None:
    """Put back what `current_recorder` gave, after an interrupt that came in the middle of `intercept`."""
    _active.set(recorder)


Watch = Callable[[int, Call], None]
Change = Callable[[int, Call], Call]
Edit = Callable[[int, Tensor], Tensor]
Mix = Callable[[int, Call, Tensor], Tensor]
Revise = Callable[[int, Call, Mapping[str, Statistic], dict[str, Tensor]], dict[str, Tensor]]


class StopForward(Exception):  # noqa: N818 - control flow, like StopIteration
    """Raised inside a forward pass to end it early; not an error. `intercept` callers catch it."""


@dataclass
class Recorder:
    """What to do at each layer's attention during one forward pass.

    Attributes:
        questions: statistics to answer at every layer in `layers` (every layer when None).
        method: implementation used where questions are asked; see `measure`.
        watch: called with (layer, call) before attention; to look at q, k, v.
        change: called next; returns the call that attention is then computed for.
        revise: called with (layer, call, questions, answers); returns the answers, those of heads with edited patterns
            put in.
        mix: called with (layer, call, z [batch, query, head, d_value]) after it; returns z, with heads whose pattern is
            edited put in.
        edit: called with (layer, z) at last; returns z, changed or not.
        last: end the forward pass once this layer has been answered.
        padded: whether the batch has padding, so that a lost mask is noticed.
        reads: whether the model reads a source besides its prompts, so that some attention goes there.
        apart: whether that is the one that is looked at: keys are of another text than queries.
        queries: which queries are real tokens there; None where all are.
        aside: attention modules that are computed and not looked at: those of the other kind, in layers with two.
        answers: layer -> name -> tensor, filled as the pass runs.
        modules: the attention module of each layer, in call order.
    """

    questions: Mapping[str, Statistic] = field(default_factory=dict)
    layers: Sequence[int] | None = None
    method: str = "auto"
    watch: Watch | None = None
    change: Change | None = None
    revise: Revise | None = None
    mix: Mix | None = None
    edit: Edit | None = None
    last: int | None = None
    padded: bool = False
    reads: bool = False
    apart: bool = False
    queries: Tensor | None = None
    aside: frozenset[nn.Module] = frozenset()
    answers: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    modules: dict[int, nn.Module] = field(default_factory=dict)

    def __call__(self, module: nn.Module, call: Call) -> Tensor:
        """Attention output z [batch, query, head, d_value] for one layer, with everything asked for done on the way."""
        if module in self.aside:
            return measure(call, {}, method="auto")[0].transpose(1, 2).contiguous()
        if self.apart:
            call = replace(call, mask=ApartMask(call.mask, self.queries))
        index = _layers.get(module, getattr(module, "layer_idx", None))
        layer = index if isinstance(index, int) else len(self.modules)
        self.modules[layer] = module
        if self.watch is not None:
            self.watch(layer, call)
        if self.change is not None:
            call = self.change(layer, call)
        questions = self.questions if self.asks(layer) else {}
        try:
            output, answers = measure(call, questions, method=self.method)
        except BackendError as error:
            raise type(error)(f"layer {layer}: {error}") from error
        if questions:
            self.answers[layer] = answers if self.revise is None else self.revise(layer, call, questions, answers)
        z = output.transpose(1, 2).contiguous()
        if self.mix is not None:
            z = self.mix(layer, call, z)
        if self.edit is not None:
            z = self.edit(layer, z)
        if self.last is not None and layer >= self.last:
            raise StopForward
        return z

    def asks(self, layer: int) -> bool:
        """Whether there are questions about a layer."""
        return bool(self.questions) and (self.layers is None or layer in self.layers)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: CausalMask | Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    share: float = 1.0,
    position_bias: Tensor | None = None,
    relu: bool = False,
    **extra: object,
) -> tuple[Tensor, None]:
    """Attention function for `transformers.AttentionInterface`: builds the `Call` and hands it to the recorder."""
    recorder = _active.get()
    recorder = Recorder() if recorder is None else recorder
    for name, given in extra.items():
        if isinstance(given, Tensor) and name not in POSITIONS:
            raise BackendError(f"{type(module).__name__} makes its scores with {name!r} too; this cannot be measured")
    mask = _mask(module, query, key, attention_mask, recorder, extra.get("is_causal"))
    if mask.n_key != key.shape[2]:
        raise BackendError(
            f"{type(module).__name__} attends to {key.shape[2]} keys where its mask is for {mask.n_key} tokens: keys "
            "that are no tokens cannot be measured"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    bias = _bias(module, query, key, position_bias)
    return recorder(module, Call(query, key, value, scale, mask, softcap, s_aux, share, bias, relu)), None


def _bias(module: nn.Module, query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor | None:
    """What is added to scores, [#batch #head query key]; None where it is nothing, as in attention to a source."""
    if bias is None or not (bias.requires_grad or bool(bias.any())):
        return None
    batch, heads = query.shape[:2]
    fits = bias.ndim == 4 and bias.shape[0] in (1, batch) and bias.shape[1] in (1, heads)  # noqa: PLR2004
    if not fits or bias.shape[2:] != (query.shape[2], key.shape[2]):
        raise BackendError(
            f"{type(module).__name__} adds a bias of shape {tuple(bias.shape)} to its scores; expected one number per "
            f"head, query and key, {(heads, query.shape[2], key.shape[2])}"
        )
    return bias


def _mask(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    mask: CausalMask | Tensor | None,
    recorder: Recorder,
    is_causal: object,
) -> CausalMask:
    if isinstance(mask, CausalMask):
        last = torch.tensor(mask.n_key - 1, device=mask.device)
        apart = mask.n_query != mask.n_key and mask.offset == 0
        return ApartMask(mask) if apart and bool(mask.predicate(0 * last, 0 * last, 0 * last, last)) else mask
    name = type(module).__name__
    if mask is not None:
        raise BackendError(
            f"{name} was handed a dense mask of shape {tuple(mask.shape)}; pass padding masks [batch, pos]"
        )
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    n_query, n_key = query.shape[2], key.shape[2]
    if recorder.reads and not is_causal and (recorder.apart or module in recorder.aside or n_query != n_key):
        sizes = (query.shape[0], n_query, n_key)
        return ApartMask(CausalMask(*sizes, predicate=everything, device=query.device))
    if recorder.padded:
        raise BackendError(f"{name} ignores the padding mask; run its prompts one length at a time")
    if not is_causal and n_query != n_key:
        raise BackendError(f"{name} attends from {n_query} queries to {n_key} keys of something else (cross-attention)")
    predicate = causal if is_causal else everything
    return CausalMask(query.shape[0], n_query, n_key, predicate=predicate, offset=n_key - n_query, device=query.device)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, lazy_mask)


@contextlib.contextmanager
def intercept(model: PreTrainedModel, recorder: Recorder) -> Iterator[Recorder]:
    """Route the model's attention through `recorder` inside the block; every setting is put back after it.

    Raises:
        BackendError: the architecture does not follow transformers' attention interface, or ignores the request.
    """
    recorder.aside = getattr(model, "aside", recorder.aside)
    recorder.reads = getattr(model, "source", None) is not None
    recorder.apart = recorder.reads and getattr(model, "stack", None) == "cross"
    configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}
    before = {key: config._attn_implementation for key, config in configs.items()}
    token = _active.set(recorder)
    try:
        _switch(model)
        yield recorder
    finally:
        if _active.get() is recorder:  # else put back already: an interrupt had this block ended late, by the collector
            _active.reset(token)
            for key, config in configs.items():
                config._attn_implementation_internal = before[key]


def _follows(model: PreTrainedModel) -> bool:
    follows = getattr(model, "_can_set_attn_implementation", None)
    return follows is not None and bool(follows())


def _switch(model: PreTrainedModel) -> None:
    family = type(model).__name__
    # A model may follow the interface in one of its parts alone: the text tower beside one for images, say.
    inside = [m for m in model.modules() if isinstance(m, PreTrainedModel) and m is not model]
    switched = [model] if _follows(model) else [m for m in inside if _follows(m)]
    for part in switched:
        part.set_attn_implementation(NAME)
    if not any(part.config._attn_implementation == NAME for part in switched):
        raise BackendError(
            f"{family} does not follow transformers' attention interface, so its attention cannot be measured without "
            "storing it"
        )
