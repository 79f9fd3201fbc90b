"""`HFModel`, the default backend: a transformers model run through its attention interface, left untouched."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from interp.attention import Recorder, Statistic, StopForward, intercept
from interp.backends.base import sliding_window
from interp.backends.checkpoint import Checkpoint
from interp.backends.hf.anatomy import observe
from interp.backends.hf.contexts import EditContexts
from interp.backends.hf.existence import NO_LOGITS, check_keys_of_source, missing_reason, traits
from interp.backends.hf.generation import generation, needs_attention
from interp.backends.hf.hooks import Hooks
from interp.backends.hf.padding import Padding
from interp.backends.hf.prefill import Portion, chunk_size, prefill
from interp.backends.hf.read_reads import read_reads
from interp.backends.hf.read_weights import read_weights
from interp.backends.hf.read_writes import read_writes
from interp.backends.hf.rewrite import connect
from interp.backends.hf.rotary import Rotary
from interp.backends.hf.shards import GRADIENTS
from interp.backends.hf.sharing import SharedPasses
from interp.backends.hf.stacks import Stack, probing, source_ids
from interp.backends.plan.arguments import check_mode, edit_list, layer_number, layer_tuple, statistics_by_name
from interp.backends.plan.budget import check_memory
from interp.backends.plan.capture import Pass, refuse
from interp.backends.plan.checks import check_reached, check_sites, check_span, check_visited, unreached
from interp.backends.plan.decoding import Decoding
from interp.backends.plan.places import Place, captures, changes, reached, unplaced
from interp.backends.turn import exclusive, turn_of
from interp.batch import Batch, Prompts
from interp.edits import Edit
from interp.errors import BackendError, SiteError
from interp.model import Capture, ModelInfo, Start, Steps
from interp.numerics import evaluating
from interp.parallel import cached_property
from interp.run import AttentionRun, MuteRun, Run
from interp.sites import SQUARE
from interp.weights.stream import Reads, Writes
from interp.weights.weights import Weights

PlanT = TypeVar("PlanT", bound=Pass)
SPREAD = "statistics of an edited pattern are not gathered from several processes; capture the pattern of this layer"


class HFModel(EditContexts):
    """A transformers model seen through the attention interface; implements `interp.model.Model`."""

    backend = "hf"
    prefills = True
    """Whether long prompts may be run in chunks, with a cache."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Observe the model's anatomy with a two-token pass.

        Raises:
            BackendError: the model is not a stack of layers that follow the attention interface.
        """
        self.torch_module = checkpoint.model
        turn_of(self.torch_module)
        self.tokenizer = checkpoint.tokenizer
        self._standing = []
        # Activations of inference mode have no version counter, by which writes in place are seen.
        with torch.inference_mode(False), torch.no_grad(), evaluating(self.torch_module):
            self.anatomy = observe(probing(self.torch_module))
        if isinstance(self.torch_module, Stack):
            self.torch_module.aside = self.anatomy.aside
        self.info = self._describe(checkpoint)

    @property
    def rank(self) -> int:
        """Which of the processes that the model is spread over this one is; 0 where it is not."""
        return 0 if self.anatomy.shards is None else self.anatomy.shards.rank

    def agree(self, numbers: tuple[int, ...], what: str) -> None:
        """Wait for the other processes, and compare numbers with them.

        Raises:
            BackendError: they have others.
        """
        if self.anatomy.shards is not None:
            self.anatomy.shards.agree(numbers, what)

    def _describe(self, checkpoint: Checkpoint) -> ModelInfo:
        parts = self.anatomy.attention
        config = self.torch_module.config.get_text_config()
        heads, groups = {p.n_heads for p in parts}, self.anatomy.n_kv_heads
        if len(heads) > 1 or any(groups % p.n_kv_heads for p in parts):
            numbers = sorted({(p.n_heads, p.n_kv_heads) for p in parts})
            raise BackendError(f"layers differ in their numbers of heads {numbers}; looked for one number throughout")
        embed = next(self.torch_module.get_input_embeddings().parameters())
        n_logits = 0 if self.anatomy.unembed is None else self.anatomy.n_logits
        own = self.torch_module if isinstance(self.torch_module, Stack) else None
        stack = None if own is None else own.stack
        windows = tuple(sliding_window(config, p.layer) for p in parts)
        return ModelInfo(
            name=checkpoint.name,
            family=type(self.torch_module if own is None else own.whole).__name__,
            commit=checkpoint.commit,
            dtype=str(embed.dtype).removeprefix("torch."),
            n_layers=len(self.anatomy.blocks),
            n_heads=parts[0].n_heads,
            n_kv_heads=groups,
            d_model=int(config.hidden_size),
            d_head=parts[0].d_head,
            d_vocab=int(embed.shape[0]),
            attention_layers=tuple(p.layer for p in parts),
            context=None if self.rotary.unlimited else getattr(config, "max_position_embeddings", None),
            windows=windows,
            softcap=parts[0].softcap,
            sink_logits=any(p.sink_logits for p in parts),
            weights_sha256=checkpoint.weights_sha256,
            causal=stack == "cross" or all(p.causal for p in parts),  # to a source: no later token is seen either
            softmax_share=parts[0].share,
            n_logits=n_logits if n_logits is not None and n_logits < len(embed) else None,
            stack=stack,
            source=None if own is None else own.source,
        )

    @exclusive
    def run(
        self,
        tokens: Prompts,
        *,
        capture: Capture = (),
        edits: Sequence[Edit] = (),
        start: Start | None = None,
        stop: int | None = None,
        gradients: bool = False,
        bos: str = "default",
    ) -> Run:
        """Logits and captured activations under edits; see `interp.model.Model.run`.

        Raises:
            SiteError: a site that this architecture lacks, that this run does not reach, or out of range; an edit
                whose value has the wrong shape.
            SchemaError: something that is no site or no edit.
            BackendError: the residual stream is not finite at some token; captures that will not fit in memory; a
                reducer that changes its activation; torch.autocast is on, or gradients are asked for under
                torch.inference_mode.
        """
        check_mode(self.torch_module, self.device, gradients=gradients)
        batch = self.batch(tokens, bos=bos)
        if gradients and self.anatomy.shards is not None:
            raise BackendError(f"{self.info.name}: {GRADIENTS}")
        first = check_span(self.info.n_layers, start=start, stop=stop)
        plan = self._plan(capture, edits, gradients=gradients, start=first, stop=stop)
        check_reached(plan, self.info.n_layers, start=start, stop=stop, shape=(*batch.ids.shape, self.info.d_model))
        if start is not None and "resid_pre" in self.anatomy.stream[start[0]].missing:
            raise SiteError(f"start at layer {start[0]}: {self.anatomy.stream[start[0]].missing['resid_pre']}")
        rows, n = batch.ids.shape
        check_memory(plan.captures, self.info, (rows, n), self.device, d_mlp=self._d_mlp, logits=stop is None)
        shared = None if start is not None or gradients else SharedPasses.of(self)
        if shared is not None:
            logits = shared.run(batch, plan, stop=stop)
        else:
            logits = self._forward(batch, plan, start=start, stop=stop)
        check_visited(plan, self.torch_module)
        if self.anatomy.unembed is None and stop is None:
            return MuteRun(plan.acts, f"{self.info.name}: {NO_LOGITS}", self.difference)
        return Run(logits, plan.acts, self.difference)

    @exclusive
    def attention(
        self,
        tokens: Prompts,
        statistics: Mapping[str, Statistic],
        *,
        method: str = "auto",
        layers: Sequence[int] | None = None,
        edits: Sequence[Edit] = (),
        chunk: int | None = None,
    ) -> AttentionRun:
        """Answers to `statistics`, each [layer batch head ...]; the pass ends after the last layer asked for.

        They are of attention as it is edited. Windows and rotary edits leave the memory at O(n); heads whose pattern
        another edit is of are asked densely. `chunk`: tokens of each prompt that are run at a time, with a cache; by
        itself from 128 MiB of MLP neurons on, see `interp.backends.hf.prefill.chunk_size`.

        Raises:
            SchemaError: something that is no statistic or no edit.
            SiteError: layers without attention.
            TaskError: a chunk that is no number of tokens.
            BackendError: attention is not finite; torch.autocast is on; a chunk, where prompts cannot be cut.
        """
        check_mode(self.torch_module, self.device)
        statistics, layers = statistics_by_name(statistics), layer_tuple(layers, self.info)
        batch = self.batch(tokens)
        plan = self._plan((), edits)
        for layer in layers:
            for kind in (kind for kind in SQUARE if self.anatomy.shards is not None and plan.edited(layer, kind)):
                raise refuse(plan.edits[kind, layer][0], SPREAD)
        recorder = Recorder(statistics, layers, method, last=max(layers), padded=batch.padded)
        size = chunk_size(self, batch, plan, chunk)
        if size < batch.ids.shape[1]:
            answers = prefill(self, batch, plan, recorder, size)
        else:
            answer = SharedPasses.answering(self)
            answer(batch, plan, recorder=recorder)
            answers = {layer: self.gathered(own) for layer, own in recorder.answers.items()}
        check_visited(plan, self.torch_module, end=max(layers))
        values = {name: torch.stack([answers[layer][name].cpu() for layer in layers]) for name in statistics}
        return AttentionRun(layers, values)

    def gathered(self, answers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Answers of all heads, where they are spread over processes; else as they are."""
        spread = self.anatomy.shards
        return dict(answers) if spread is None else {name: spread.gather(x, 1) for name, x in answers.items()}

    @exclusive
    def generate(
        self,
        prompts: Prompts,
        *,
        edits: Sequence[Edit] = (),
        steps: Steps | None = None,
        capture: Capture = (),
        text: bool = False,
        **options: Any,
    ) -> Any:
        """Token ids [batch pos], prompts included (padded on the left), from transformers' own `generate`.

        Edits with positions or per-token values are of the prompt's tokens; the others apply to new tokens as well;
        those of `steps` to one token each. With `capture` a `Generation`, with `text` the texts; see
        `interp.model.Model.generate`. `options` go to transformers; decoding is greedy unless they say otherwise, and
        without a cache where attention
        goes both ways, since each new token changes what is computed at all others.

        Raises:
            BackendError: a cache that does not keep every key as it is, where edits are of attention; more than one
                sequence for a prompt, where something is captured.
            SchemaError: steps that are no {step: edits}; a reducer whose results differ in their shapes.
            TaskError: text of a model without a tokenizer.
        """
        check_mode(self.torch_module, self.device)
        if self.anatomy.unembed is None:
            raise BackendError(f"{self.info.name}: {NO_LOGITS}")
        if not self.info.causal:
            options = {"use_cache": False, **options}
        batch = self.batch(Batch.of(prompts, self.tokenizer, side="left").padded_on("left"))
        plan = self._plan(capture, edits, kind=Decoding)
        plan.decode(steps, self.info)
        self._check(plan)
        with self._carrying(plan):
            self.rotary.check(batch)
            if batch.padded:
                with plan.resting():
                    self.padding.inputs(batch)
            output = generation(self.torch_module, batch, plan, options)
            check_visited(plan, self.torch_module)
        return self.outcome(output, batch, plan, text=text)

    def with_source(self, source: Prompts) -> HFModel:
        """The same decoder on another source text, given as one prompt; nothing is found or read anew.

        Raises:
            BackendError: the model is no decoder of an encoder-decoder, or edits stand.
            TaskError: more than one text, or one that cannot be run.
        """
        if self.info.source is None:
            raise BackendError(f"{self.info.name} reads no source: this is for stack='decoder' and 'cross'")
        if self._standing:
            raise BackendError("edits stand: leave the context of `editing` first")
        ids = source_ids(source, self.tokenizer, self.torch_module.whole)
        other: Any = copy.copy(self)
        for name in ("padding", "rotary"):
            other.__dict__.pop(name, None)
        other.torch_module, other._standing = self.torch_module.with_source(ids), []
        other.info = replace(self.info, source=ids)
        return other

    def _plan(
        self,
        capture: Capture,
        edits: Sequence[Edit],
        *,
        gradients: bool = False,
        start: int | None = None,
        stop: int | None = None,
        kind: type[PlanT] = Pass,
    ) -> PlanT:
        """Plan of a run: edits of `editing` contexts that it comes by, then its own edits and captures.

        Missing places are refused.
        """
        if self.info.source is not None:
            self.torch_module.check_alone()

        def has(place: Place) -> bool:
            return self._missing(place) is None and unreached(place, self.info.n_layers, start=start, stop=stop) is None

        by_place = captures(capture, self.info, has=has)
        edits_by_place, passed_by = changes(edits, self.info), set[Place]()
        for plan in self._standing[-1:]:
            outer = {p: x for p, x in plan.edits.items() if reached(p, self.info.n_layers, start=start, stop=stop)}
            own = edits_by_place
            edits_by_place = {p: [*outer.get(p, ()), *own.get(p, ())] for p in {**outer, **own}}
            passed_by = unplaced(outer, own, start=start, stop=stop)
        plan = kind(by_place, edits_by_place, gradients=gradients, clones=self.anatomy.overwrites)
        plan.standing, plan.passed_by = (*self.edits, *edit_list(edits)), passed_by
        self._check(plan)
        return plan

    def _check(self, plan: Pass) -> None:
        """Refuse places that the model lacks, and names that mean another tensor in it."""
        check_sites(plan, self._missing, self.traits)
        self._read_planes(plan)
        if self.info.stack == "cross":
            check_keys_of_source(plan)

    def _missing(self, place: Place, edit: bool = False) -> str | None:
        """Why a place does not exist here, or cannot be edited; None where it does and can."""
        return missing_reason(place, self.anatomy, self.torch_module, edit=edit)

    def traits(self, layer: int | None) -> frozenset[str]:
        """Traits at a layer that make names of TransformerLens mean another tensor; see `interp.sites.DIFFERENCES`."""
        return traits(self.anatomy, layer)

    def weights(self) -> Weights:
        """Matrices of every layer as they are now, read off the modules by feeding them a basis; edits are no part."""
        check_mode(self.torch_module, self.device)
        return read_weights(self.torch_module, self.anatomy, unedited=self._unedited)

    @contextlib.contextmanager
    def _unedited(self) -> Iterator[None]:
        """Context in which edits of `editing` rest: weights are those of the model without them."""
        with contextlib.ExitStack() as stack:
            for plan in self._standing:
                stack.enter_context(plan.resting())
            yield

    def writes(self, layer: int) -> Writes:
        """Linear maps of a layer's attention and MLP to the stream."""
        check_mode(self.torch_module, self.device)
        return read_writes(self.anatomy, layer_number(layer, self.info.n_layers), self.info.d_model)

    def reads(self, layer: int) -> Reads:
        """Norms through which a layer's attention and MLP read the stream."""
        check_mode(self.torch_module, self.device)
        return read_reads(self.anatomy, layer_number(layer, self.info.n_layers), self.info.d_model)

    def _forward(
        self,
        batch: Batch,
        plan: Pass,
        *,
        recorder: Recorder | None = None,
        start: Start | None = None,
        stop: int | None = None,
        portion: Portion | None = None,
    ) -> Tensor | None:
        """Logits, or None when the pass ended early; the model is as it was afterwards, whatever happens."""
        self.rotary.check(batch)
        ids = batch.ids if portion is None else batch.ids[:, portion.start : portion.stop]
        offset = 0 if portion is None else portion.start
        plan.begin(batch.mask, (ids.shape[0], ids.shape[1]), offset, spans=batch.spans)
        own = needs_attention(self.torch_module, plan, padded=batch.padded, gated=self.anatomy.gated)
        recorder = recorder or (Recorder(padded=batch.padded) if own else None)
        if recorder is not None:
            recorder.queries = batch.mask
        hooks = Hooks(self.torch_module, self.anatomy, plan)
        with contextlib.ExitStack() as stack:
            for other in self._standing[-1:]:
                stack.enter_context(other.resting())
            stack.enter_context(evaluating(self.torch_module))
            stack.enter_context(self.rotary.fresh())
            inputs = {"use_cache": False, **(self.padding.inputs(batch) if batch.padded else {})}
            inputs = inputs if portion is None else portion.inputs(batch, inputs)
            stack.enter_context(torch.set_grad_enabled(plan.gradients))
            if recorder is not None:
                stack.enter_context(intercept(self.torch_module, connect(recorder, plan, self.anatomy)))
            stack.enter_context(hooks.installed(start=start, stop=stop, finite=True))
            try:
                return self.torch_module(ids, **inputs).logits
            except StopForward:
                return None

    @cached_property
    def padding(self) -> Padding:
        """What the model makes of padding."""
        return Padding(self.torch_module)

    @cached_property
    def rotary(self) -> Rotary:
        """Rotary tables that depend on the length of a prompt."""
        return Rotary(self.torch_module)

    @cached_property
    def _d_mlp(self) -> int | None:
        """Width of the MLP; None where no one projection takes its neurons."""
        last = next((s.mlp_post for s in self.anatomy.stream if s.mlp_post is not None), None)
        return None if last is None else max(p.numel() for p in last.parameters()) // self.info.d_model
