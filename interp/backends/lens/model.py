"""A TransformerLens bridge as a `Model`: hook points for the residual stream, the operations themselves for attention.

Also the way to architectures that do not follow transformers' attention interface (GPT-J, GPT-Neo, BLOOM, CodeGen,
Falcon, MPT). A bridge computes attention eagerly, so patterns are dense here: O(n^2) memory, which provenance says
(attention method "dense (lens)").

q, k, v, pattern and z are not taken from hook points: `hook_q` stands before the rotary embedding, and where a bridge
hands attention on to the wrapped module (GPT-J, GPT-Neo, OPT) a changed `hook_pattern` is discarded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from interp.attention import Statistic, StopForward
from interp.backends.base import ModuleModel
from interp.backends.hf.contexts import OUT_OF_ORDER
from interp.backends.hf.existence import LOST, no_module
from interp.backends.hf.generation import INSIDE, check_cache
from interp.backends.lens.dense import DenseStatistics
from interp.backends.lens.info import lens_info
from interp.backends.lens.parts import observe
from interp.backends.lens.passing import LensPass
from interp.backends.lens.visitor import DecodingVisitor, Visitor
from interp.backends.lens.weights import read_weights
from interp.backends.lens.writes import read_reads, read_writes
from interp.backends.plan.arguments import check_mode, edit_list, layer_number, layer_tuple, statistics_by_name
from interp.backends.plan.budget import check_memory
from interp.backends.plan.checks import check_reached, check_sites, check_span, check_visited, unreached
from interp.backends.plan.places import Place, changes
from interp.backends.turn import State, exclusive, taken, turn_of
from interp.batch import Batch, Prompts
from interp.edits import Edit
from interp.errors import BackendError
from interp.model import Capture, ModelInfo, Start, Steps
from interp.numerics import evaluating, modules_of, share
from interp.run import AttentionRun, Run
from interp.sites import MODULE, Site
from interp.weights.stream import Reads, Writes
from interp.weights.weights import Weights

METHOD = "dense (lens)"
SEEN = 1e-3
"""Share of the logits' spread that they change by where a token sees the next one."""
BOTH_WAYS = (
    'tokens see later ones, which patterns and nulls here are not made for; only backend "hf" takes attention both ways'
)


class LensModel(ModuleModel):
    """A TransformerBridge; implements `interp.model.Model`."""

    backend = "lens"

    def __init__(self, bridge: Any, *, name: str | None = None, commit: str | None = None) -> None:
        """Try out the bridge's hook points with a pass of a few tokens.

        Raises:
            BackendError: the bridge is not one stack of decoder blocks with softmax attention that can be seen, or a
                token sees later ones.
        """
        self.bridge = bridge
        self.tokenizer = bridge.tokenizer
        self.torch_module = bridge.original_model
        share(bridge, turn_of(self.torch_module).alone)
        self._standing: list[Edit] = []
        with evaluating(self.torch_module), torch.no_grad():
            self.parts = observe(bridge, self._call)
            logits = self._call(torch.tensor([[0, 0], [0, 1]]))[:, 0].float()
        if float((logits[0] - logits[1]).abs().max()) > SEEN * max(float(logits[0].std()), 1e-6):
            raise BackendError(BOTH_WAYS)
        self.info: ModelInfo = lens_info(bridge, self.parts, name=name, commit=commit, method=METHOD)

    def __repr__(self) -> str:
        """One line: name, family and sizes."""
        return f"{super().__repr__()[:-1]}, through TransformerLens>"

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
            SiteError: a site this architecture does not have (with the reason), or out of range.
        """
        check_mode(self.torch_module, self.device, gradients=gradients)
        batch = self.batch(tokens, bos=bos)
        first = check_span(self.info.n_layers, start=start, stop=stop)

        def has(place: Place) -> bool:
            there = self._missing(place) is None
            return there and unreached(place, self.info.n_layers, start=first, stop=stop) is None

        visitor = Visitor(self.info, capture, edit_list(edits), batch, gradients=gradients, has=has)
        visitor.precede(self._standing, self.info, start=first, stop=stop)
        self._check(visitor)
        shape = (*batch.ids.shape, self.info.d_model)
        check_reached(visitor, self.info.n_layers, start=start, stop=stop, shape=shape)
        check_memory(visitor.captures, self.info, visitor.shape, batch.ids.device, logits=stop is None)
        logits = self._forward(batch, LensPass(self.parts, visitor, self.torch_module, start=start, stop=stop))
        check_visited(visitor, self.bridge)
        return Run(logits, visitor.acts, self.difference)

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
        """Token ids [batch pos], prompt included, as transformers' `generate` gives them, under edits.

        See `interp.model.Model.generate`.
        """
        check_mode(self.torch_module, self.device)
        batch = self.batch(Batch.of(prompts, self.tokenizer, side="left").padded_on("left"))
        every = [*self._standing, *edit_list(edits)]
        visitor = DecodingVisitor(self.info, capture, every, batch, has=lambda place: self._missing(place) is None)
        visitor.decode(steps, self.info)
        self._check(visitor)
        if any(kind in INSIDE for kind, _ in (*visitor.edits, *visitor.captures)):
            check_cache(options)
        passing = LensPass(self.parts, visitor, self.torch_module, generating=True)
        with self._ready(gradients=False), passing.attached(self._masked):
            output = self.torch_module.generate(batch.ids, attention_mask=batch.mask.long(), **options)
        check_visited(visitor, self.bridge)
        ids = output if isinstance(output, Tensor) else output.sequences
        return self.outcome(ids, batch, visitor, text=text)

    @contextlib.contextmanager
    def editing(self, edits: Sequence[Edit]) -> Iterator[None]:
        """Context in which edits apply to everything the model does."""
        with taken(self):
            edits, count = edit_list(edits), len(self._standing)
            changes(edits, self.info)  # refused here, not at the first run
            self._standing += edits
            try:
                yield
            finally:
                inner = len(self._standing) - count - len(edits)
                del self._standing[count:]
                if inner > 0:
                    raise BackendError(OUT_OF_ORDER)

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """Context in which the edits of `editing` rest, as if there were none."""
        with taken(self):
            before = list(self._standing)
            self._standing.clear()
            try:
                yield
            finally:
                self._standing[:] = before

    def _in_force(self) -> tuple[Edit, ...]:
        return tuple(self._standing)

    def state(self) -> State:
        """What a run may change of the bridge and of the module inside, as it is now."""
        return State(modules_of(self.bridge, self.torch_module), [self._standing])

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
        """Answers to `statistics`, each [layer batch head ...], from dense patterns; ends after the last layer asked.

        Raises:
            BackendError: a method other than "auto" or "naive": a bridge has no fused attention, and runs whole
                prompts.
        """
        if chunk is not None:
            raise BackendError("a TransformerLens bridge runs whole prompts; leave `chunk` out")
        if method not in {"auto", "naive"}:
            raise BackendError(f"a TransformerLens bridge computes attention densely, not {method!r}; use 'auto'")
        check_mode(self.torch_module, self.device)
        statistics, layers = statistics_by_name(statistics), layer_tuple(layers, self.info)
        batch = self.batch(tokens)
        dense = DenseStatistics(statistics, layers, batch.mask)
        visitor = Visitor(self.info, (), [*self._standing, *edit_list(edits)], batch)
        self._check(visitor)
        self._forward(batch, LensPass(self.parts, visitor, self.torch_module, dense=dense))
        check_visited(visitor, self.bridge, end=max(layers))
        values = {name: torch.stack([dense.answers[layer][name] for layer in layers]) for name in statistics}
        return AttentionRun(layers, values)

    def traits(self, layer: int | None) -> frozenset[str]:
        """Traits at a layer that make names of TransformerLens mean another tensor; see `interp.sites.DIFFERENCES`."""
        return self.parts.traits[layer]

    def _missing(self, place: Place, edit: bool = False) -> str | None:
        """Why a place does not exist here, or cannot be edited; None where it does and can."""
        kind, layer = place
        if kind.startswith(MODULE):
            return no_module(Site(kind).module, self.torch_module)
        if edit and kind == "router_logits" and layer in self.parts.routers:
            return LOST
        return self.parts.missing.get(place)

    def _check(self, visitor: Visitor) -> None:
        """Refuse places that the bridge lacks, and names that mean another tensor in this model."""
        check_sites(visitor, self._missing, self.traits)
        self._read_planes(visitor)

    def weights(self) -> Weights:
        """Matrices of every layer as they are now, read off the bridge's modules by feeding them a basis."""
        check_mode(self.torch_module, self.device)
        return read_weights(self.bridge, self.parts, self.info.softcap)

    def writes(self, layer: int) -> Writes:
        """Linear maps of a layer's attention and MLP to the stream."""
        check_mode(self.torch_module, self.device)
        return read_writes(self.parts, layer_number(layer, self.info.n_layers))

    def reads(self, layer: int) -> Reads:
        """Norms through which a layer's attention and MLP read the stream."""
        check_mode(self.torch_module, self.device)
        return read_reads(self.parts, layer_number(layer, self.info.n_layers))

    def _forward(self, batch: Batch, passing: LensPass) -> Tensor | None:
        """Logits, or None when the pass ended early."""
        mask = batch.mask.long() if batch.padded else None
        with self._ready(gradients=passing.visitor.gradients), passing.attached(self._masked):
            try:
                logits = self._call(batch.ids, attention_mask=mask)
            except StopForward:
                return None
            return passing.visitor.visit("logits", None, logits)

    def _call(self, ids: Tensor, **options: Any) -> Tensor:
        return self.bridge(ids.to(self.device), use_cache=False, **options)

    @property
    def _masked(self) -> torch.dtype:
        return getattr(torch, self.info.dtype)

    @contextlib.contextmanager
    def _ready(self, *, gradients: bool) -> Iterator[None]:
        """Eval mode, gradients as asked; patterns that the bridge keeps of the last pass are let go of."""
        with evaluating(self.torch_module), torch.set_grad_enabled(gradients):
            try:
                yield
            finally:
                attention: Any
                for attention in self.parts.attention.values():
                    if getattr(attention, "_pattern", None) is not None:
                        attention._pattern = None  # [batch head query key] per layer, held until the next pass
