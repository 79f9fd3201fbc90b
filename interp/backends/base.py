"""`ModuleModel`: the part of `interp.model.Model` that all backends of a torch module share."""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.backends.plan.capture import Pass
from interp.backends.plan.decoding import Decoding
from interp.backends.plan.validate import check_batch
from interp.backends.turn import State, taken, turn_of
from interp.batch import Batch, Prompts
from interp.edits import Edit, RotaryPlanes, read_planes
from interp.edits.values import check_by
from interp.errors import SiteError, TaskError
from interp.model import Capture, ModelInfo, Start
from interp.numerics import device_of, modules_of
from interp.run import Generation, Run
from interp.sites import SQUARE, Site, difference
from interp.tokens.methods import TokenMethods
from interp.weights.ov import OV
from interp.weights.weights import Weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


class ModuleModel(TokenMethods, ABC):
    """A model around a transformers module; the passes and what they plan are the backend's own.

    Attributes:
        torch_module: the module that is run. info, backend, tokenizer: as in `interp.model.Model`.
    """

    backend: str
    torch_module: Any
    info: ModelInfo
    tokenizer: PreTrainedTokenizerBase | None

    @abstractmethod
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
        """Forward pass with captures and edits; see `interp.model.Model.run`."""

    @abstractmethod
    def weights(self) -> Weights:
        """Matrices of every layer as they are now."""

    def __repr__(self) -> str:
        """One line: name, family and sizes."""
        i = self.info
        stack = "" if i.stack is None else f", {i.stack} stack"
        return (
            f"<{i.family} {i.name!r}{stack}: {i.n_layers} layers x {i.n_heads} heads, d_model {i.d_model}, {i.dtype}>"
        )

    def _repr_html_(self) -> str:
        """Its facts as a table, for a notebook."""
        return _html(self.info, backend=self.backend)

    @property
    def device(self) -> torch.device:
        """Device of the token ids."""
        return device_of(self.torch_module.get_input_embeddings())

    @property
    def bos_id(self) -> int | None:
        """Id that starts a prompt by the model's configuration, None without."""
        bos = getattr(self.torch_module.config, "bos_token_id", None)
        return bos if isinstance(bos, int) and 0 <= bos < self.info.d_vocab else None

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids that the configuration sets apart, those inside the vocabulary."""
        values = [getattr(self.torch_module.config, name, None) for name in SPECIAL]
        ids = [i for v in values if v is not None for i in (v if isinstance(v, list) else [v])]
        return tuple(i for i in ids if 0 <= i < self.info.d_vocab)

    @property
    def rank(self) -> int:
        """0: one process has all of the model."""
        return 0

    def agree(self, numbers: tuple[int, ...], what: str) -> None:  # noqa: B027  (not abstract: most have nothing to do)
        """Nothing: no other process shares the model."""

    def batch(self, tokens: Prompts, *, bos: str = "default") -> Batch:
        """Tokens as a batch on the model's device.

        Raises:
            TaskError: empty, longer than the model's context, or ids outside its vocabulary; see `Batch.of` of `bos`.
        """
        batch = Batch.of(tokens, self.tokenizer, keep_end=not self.info.causal, bos=bos)
        return check_batch(batch.to(self.device), self.info)

    def _read_planes(self, plan: Pass) -> None:
        """Rotary planes of the layers at which a plan edits them; each layer's are read once.

        Raises:
            SiteError: the layer has none. BackendError: they cannot be read off.
        """
        layers = plan.turned()
        if not layers:
            return
        known: dict[int, RotaryPlanes] = vars(self).setdefault("_planes", {})
        missing = sorted(layers - known.keys())
        weights = self.weights() if missing else None
        for layer in missing:
            assert weights is not None
            limit, half = weights.source.context, weights.source.half
            turn = partial(weights.rotation, layer)
            known[layer] = read_planes(turn, limit=limit, where=f"layer {layer}", half=half)
        plan.planes = {layer: known[layer] for layer in layers}

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Context in which no parameter takes a gradient; each is as it was afterwards."""
        with taken(self):
            trainable = [p for p in self.torch_module.parameters() if p.requires_grad]
            try:
                for parameter in trainable:
                    parameter.requires_grad = False
                yield
            finally:
                for parameter in trainable:
                    parameter.requires_grad = True

    @property
    def edits(self) -> tuple[Edit, ...]:
        """Edits in force: those of every `editing` context that this thread has open, outer ones first."""
        owner = turn_of(self.torch_module).owner
        return self._in_force() if owner in (None, threading.get_ident()) else ()

    @abstractmethod
    def _in_force(self) -> tuple[Edit, ...]:
        """Edits of every open context, whichever thread opened it."""

    def state(self) -> State:
        """What a run may change of the model, as it is now."""
        return State(modules_of(self.torch_module))

    def fingerprint(self) -> Hashable:
        """Version and address of every parameter: a change in place counts up the one, another tensor has another."""
        return tuple(x for p in self.torch_module.parameters() for x in (_version(p), p.data_ptr()))

    def mean(self, tokens: Prompts, kind: str = "z", *, by: str | None = None) -> Float[Tensor, "layer ..."]:
        """Mean over real tokens of a kind of activation, [layer head d_head] or [layer d]; zeros where it has none.

        With `by="position"` over the tokens at each position of their prompt, [layer position ...]: position p is the
        mean over the prompts that have it.

        Raises:
            SiteError: layers differ in their sizes; a kind that is no vector at each token; an unknown `by`.
        """
        check_by(by)
        if kind in SQUARE:
            raise SiteError(f"{kind}: rows of different tokens have different keys, so that they have no mean")
        batch = self.batch(tokens)
        weight = (batch.mask / batch.mask.sum())[None]
        if by is not None:
            place = torch.arange(int(batch.mask.sum(1).max()), device=batch.mask.device)[:, None, None]
            weight = ((batch.mask.cumsum(1) - 1 == place) & batch.mask).float()
            weight = weight / weight.sum((1, 2), keepdim=True)

        def reduce(x: Tensor) -> Tensor:
            means = weight.flatten(1).to(x.device) @ x.float().flatten(0, 1).flatten(1)
            return means.view(-1, *x.shape[2:]) if by is not None else means.view(x.shape[2:])

        acts = self.run(batch, capture={Site(kind): reduce}).acts
        rows = {site.first: mean for site, mean in acts.items()}
        first = next(iter(rows.values()))
        if any(mean.shape != first.shape for mean in rows.values()):
            raise SiteError(
                f"{kind}: layers differ in their sizes, so that there is no one table; capture one at a time"
            )
        full = torch.zeros(self.info.n_layers, *first.shape, device=first.device)
        for layer, mean in rows.items():
            full[layer] = mean.to(full.device)
        return full

    def texts(self, ids: Tensor, batch: Batch) -> list[str]:
        """The texts of generated tokens, prompts included, special tokens left out.

        Args:
            ids: [batch pos], as generated from `batch`.
            batch: the prompts, padded on the left.

        Raises:
            TaskError: the model has no tokenizer.
        """
        if self.tokenizer is None:
            raise TaskError(f"{self.info.name} has no tokenizer, so that there is no text; leave text=True out")
        times = len(ids) // len(batch.ids)
        starts = batch.first.repeat_interleave(times).tolist()
        rows = [row[start:] for row, start in zip(ids.tolist(), starts, strict=True)]
        return [str(self.tokenizer.decode(row, skip_special_tokens=True)) for row in rows]

    def outcome(self, ids: Tensor, batch: Batch, plan: Decoding, *, text: bool) -> Any:
        """What `generate` returns: ids, texts, or a `Generation` where something was captured."""
        texts = self.texts(ids, batch) if text else None
        if plan.captures:
            return Generation(None, plan.activations(), self.difference, ids, texts)
        return ids if texts is None else texts

    def difference(self, site: Site) -> str | None:
        """Why a name of TransformerLens means another tensor in this model; None where it does not."""
        there = site.first is None or site.first < self.info.n_layers
        return difference(site, self.traits(site.first)) if there else None

    @abstractmethod
    def traits(self, layer: int | None) -> frozenset[str]:
        """Traits of the model at a layer, keys of `interp.sites.DIFFERENCES`."""

    def ov_circuits(self) -> OV:
        """Value and output matrices of every head; see `OV`."""
        return self.weights().ov_circuits()


def _version(parameter: Tensor) -> int | float:
    """Number of changes in place; of tensors made under inference mode, which torch does not count, the sum instead."""
    return float(parameter.float().sum()) if parameter.is_inference() else parameter._version


def sliding_window(config: object, layer: int) -> int | None:
    """Sliding window of a layer as its config states it (information only: masks are taken from the model itself)."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and kinds[layer] != "sliding_attention":
        return None
    if getattr(config, "use_sliding_window", True) is False:
        return None
    return getattr(config, "sliding_window", None)


def _html(info: ModelInfo, *, backend: str) -> str:
    """Table of a model's facts for notebooks, one a row."""
    facts = {**info.facts, "Backend": backend}
    cells = "".join(
        f'<tr><th style="text-align: left">{escape(term)}</th><td style="text-align: left">{escape(fact)}</td></tr>'
        for term, fact in facts.items()
    )
    return f"<table>{cells}</table>"
