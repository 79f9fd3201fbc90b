"""`SharedPasses`: passes of one model that share what was computed before, see `interp.attention.shared`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from interp.attention import Call, Recorder, measure
from interp.attention.shared import KeptPass, Memory, shared_memory
from interp.backends.hf.passes import Passes
from interp.backends.hf.rewrite import connect
from interp.backends.plan.capture import Pass
from interp.batch import Batch
from interp.errors import BackendError

BEHIND = ("logits", "unembed_in")
"""Places behind the last layer."""
INPUTS = ("q", "k", "v")
EVERY = 2  # layers between those whose stream is kept
TRIED = 16  # tokens on which it is tried whether a pass from the middle gives the same


class SharedPasses:
    """A model's passes inside `interp.attention.shared.sharing`.

    Attention without edits is answered from what is kept of these prompts; a pass whose edits and captures begin at a
    layer starts at the last kept stream below it. What is not known yet is run whole, and kept.
    """

    def __init__(self, model: Passes, memory: Memory) -> None:
        self.model, self.memory = model, memory
        self.owner: Hashable = (id(model.torch_module), model.fingerprint(), str(model.device))

    @classmethod
    def of(cls, model: Passes) -> SharedPasses | None:
        """None outside of `sharing`, and where passes cannot be told apart or kept.

        That is under edits that stand, on several processes, with a source text, and where modules write in place.
        """
        memory = shared_memory()
        alone = memory is None or model._standing or model.anatomy.shards is not None or model.anatomy.overwrites
        if alone or model.info.source is not None or torch.is_inference_mode_enabled():
            return None
        if any(p.is_inference() for p in model.torch_module.parameters()):  # whose changes torch does not count
            return None
        assert memory is not None
        return cls(model, memory)

    @classmethod
    def answering(cls, model: Passes) -> Callable[..., Any]:
        """What runs prompts so that a recorder's questions are answered: shared passes where there are any."""
        shared = cls.of(model)
        return model._forward if shared is None else shared.answer

    def answer(self, batch: Batch, plan: Pass, recorder: Recorder) -> None:
        """Fill the recorder's answers: of kept calls, of a pass from the lowest edit, or of a whole pass."""
        key, layers = self._key(batch), list(recorder.layers or ())
        kept, lowest = self.memory.find(key), _lowest(plan)
        if kept is not None and not plan.edits and all(layer in kept.calls for layer in layers):
            self._from_kept(kept, recorder, layers)
            return
        entry = None if kept is None or not plan.edits else self._entry(kept, lowest, None)
        if kept is not None and entry is not None and all(i in kept.calls for i in layers if i < entry[0]):
            self._from_kept(kept, recorder, [layer for layer in layers if layer < entry[0]])
            if any(layer >= entry[0] for layer in layers):
                self.model._forward(batch, plan, recorder=recorder, start=entry)
            return
        with self._keeping(key, batch, recorder) if not plan.edits else contextlib.nullcontext():
            self.model._forward(batch, plan, recorder=recorder)

    def run(self, batch: Batch, plan: Pass, *, stop: int | None) -> Tensor | None:
        """Logits, as `HFModel._forward` gives them; captures are in the plan."""
        asked = {place for place, things in plan.captures.items() if things}
        key, lowest = self._key(batch), _lowest(plan)
        kept = self.memory.find(key)
        inputs = stop is not None and asked and all(kind in INPUTS for kind, _ in asked) and not plan.edits
        if kept is not None and inputs and all(layer in kept.calls for _, layer in asked):
            self._replay(kept, batch, plan, sorted({layer for _, layer in asked if layer is not None}))
            return None
        entry = self._known(batch, kept, lowest)
        if entry is not None and (stop is None or stop >= entry[0]):
            return self.model._forward(batch, plan, start=entry, stop=stop)
        if plan.edits or stop is not None:
            return self.model._forward(batch, plan, stop=stop)
        recorder = Recorder(padded=batch.padded)
        with self._keeping(key, batch, recorder):
            return self.model._forward(batch, plan, recorder=recorder, stop=stop)

    def _known(self, batch: Batch, kept: KeptPass | None, lowest: int) -> tuple[int, Tensor] | None:
        """Where a run of these prompts may start: from their own pass, or from one that has them among others."""
        if kept is not None:
            return self._entry(kept, lowest, None)
        held = self.memory.holding(self.owner, _rows(batch))
        return None if held is None else self._entry(held[0], lowest, held[1])

    def _entry(self, kept: KeptPass, lowest: int, rows: Sequence[int] | None) -> tuple[int, Tensor] | None:
        below = [layer for layer in kept.stream if layer <= lowest]
        if not below or not self._exact():
            return None
        stream = kept.stream[max(below)]
        return max(below), stream if rows is None else stream[list(rows)]

    def _from_kept(self, kept: KeptPass, recorder: Recorder, layers: Sequence[int]) -> None:
        with torch.no_grad():
            for layer in layers:
                try:
                    answers = measure(kept.calls[layer], recorder.questions, method=recorder.method)[1]
                except BackendError as error:
                    raise type(error)(f"layer {layer}: {error}") from error
                recorder.answers[layer] = answers

    def _replay(self, kept: KeptPass, batch: Batch, plan: Pass, layers: Sequence[int]) -> None:
        """Let a plan look at kept queries, keys and values."""
        plan.begin(batch.mask, (batch.ids.shape[0], batch.ids.shape[1]), spans=batch.spans)
        change = connect(Recorder(), plan, self.model.anatomy).change
        assert change is not None
        with torch.no_grad():
            for layer in layers:
                change(layer, kept.calls[layer])

    @contextlib.contextmanager
    def _keeping(self, key: Hashable, batch: Batch, recorder: Recorder) -> Iterator[None]:
        """Context in which a pass is kept, if it comes to its end."""
        info, kept = self.model.info, KeptPass({} if batch.padded else {r: i for i, r in enumerate(_rows(batch))})
        self.memory.room(self._size(batch))
        streams = {*range(1, info.n_layers, EVERY), info.n_layers - 1} - {0}
        blocks = self.model.anatomy.blocks
        there = [i for i in streams if "resid_pre" not in self.model.anatomy.stream[i].missing]

        def watch(layer: int, call: Call) -> None:
            if kept.complete:
                kept.calls[layer] = call
                self._check(kept)

        recorder.watch = watch
        with contextlib.ExitStack() as stack:
            for layer in there if self.model.anatomy.unembed is not None else ():
                stack.callback(_on_entry(blocks[layer], layer, kept).remove)
            yield
        if info.n_layers and kept.calls:
            self.memory.keep(key, kept)

    def _check(self, kept: KeptPass) -> None:
        """Let a pass go as soon as it is larger than all that may be kept."""
        if kept.nbytes > self.memory.budget:
            kept.complete = False
            kept.calls.clear()
            kept.stream.clear()

    def _size(self, batch: Batch) -> int:
        """About the bytes of a pass: queries, keys, values, and the stream of some layers."""
        info = self.model.info
        width = (info.n_heads + 2 * info.n_kv_heads) * info.d_head * len(info.attention_layers)
        return (
            batch.ids.numel() * (width + info.d_model * (info.n_layers // EVERY)) * getattr(torch, info.dtype).itemsize
        )

    def _exact(self) -> bool:
        """Whether passes that start at a kept stream give the very same logits, tried on a few tokens."""
        if self.owner not in self.memory.exact:
            self.memory.exact[self.owner] = self._tried()
        return self.memory.exact[self.owner]

    def _tried(self) -> bool:
        model = self.model
        if model.anatomy.unembed is None:
            return False
        n, layer = min(TRIED, model.info.context or TRIED), model.info.n_layers - 1
        batch = model.batch(torch.arange(n)[None] % model.info.d_vocab)
        kept = KeptPass({})
        handles = [_on_entry(model.anatomy.blocks[i], i, kept) for i in range(1, layer + 1)]
        try:
            whole = model._forward(batch, Pass({}, {}))
        finally:
            for handle in handles:
                handle.remove()
        assert whole is not None
        parts = [model._forward(batch, Pass({}, {}), start=(i, x)) for i, x in kept.stream.items() if i in {1, layer}]
        return all(part is not None and torch.equal(part, whole) for part in parts)

    def _key(self, batch: Batch) -> tuple[Hashable, ...]:
        ids, mask = batch.ids.cpu(), batch.mask.cpu()
        return (self.owner, tuple(ids.shape), ids.numpy().tobytes(), mask.numpy().tobytes())


def _lowest(plan: Pass) -> int:
    """Lowest layer that a pass has something to do at; 0 where that is in front of the layers, or not known."""
    places = [place for place, things in (*plan.captures.items(), *plan.edits.items()) if things]
    inside = [layer for kind, layer in places if not (layer is None and kind in BEHIND)]
    return min((0 if layer is None else layer for layer in inside), default=2**31)


def _rows(batch: Batch) -> list[bytes]:
    """Ids of each prompt; none where some are padded, since their columns are no positions then."""
    return [] if batch.padded else [row.tobytes() for row in batch.ids.cpu().numpy()]


def _on_entry(block: nn.Module, layer: int, kept: KeptPass) -> Any:
    """Keep what enters a layer."""

    def hook(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if kept.complete:
            kept.stream[layer] = args[0] if args else next(v for v in kwargs.values() if isinstance(v, Tensor))

    return block.register_forward_pre_hook(hook, with_kwargs=True)
