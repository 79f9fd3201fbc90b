"""The default backend: a transformers model, its attention interface, and nothing else. The model is left untouched."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.attention import Call, Recorder, Statistic, StopForward, intercept
from interp.backends.anatomy import input_device, observe
from interp.backends.linear import output_matrix, value_matrices
from interp.backends.norms import gain
from interp.batch import Batch, Prompts
from interp.checkpoints import Checkpoint
from interp.edits import Ablate
from interp.errors import BackendError, SiteError, TaskError
from interp.model import OV, AttentionRun, ModelInfo, Run
from interp.sites import Site

CAPTURED = ("q", "k", "v", "z")


class HFModel:
    """A transformers causal decoder seen through the attention interface; implements `interp.model.Model`."""

    backend = "hf"

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Observe the model's anatomy with a two-token pass.

        Raises:
            BackendError: the model is not a causal decoder that follows the attention interface.
        """
        self.torch_module = checkpoint.model
        self.tokenizer = checkpoint.tokenizer
        with _evaluating(self.torch_module):
            self.anatomy = observe(self.torch_module)
        self.info = self._describe(checkpoint)

    def __repr__(self) -> str:
        """One line: name, family and sizes."""
        i = self.info
        return f"<{i.family} {i.name!r}: {i.n_layers} layers x {i.n_heads} heads, d_model {i.d_model}, {i.dtype}>"

    @property
    def device(self) -> torch.device:
        """Where token ids go in."""
        return input_device(self.torch_module)

    def _describe(self, checkpoint: Checkpoint) -> ModelInfo:
        parts = self.anatomy.attention
        config = self.torch_module.config.get_text_config()
        heads = {(p.n_heads, p.n_kv_heads) for p in parts}
        if len(heads) > 1:
            raise BackendError(
                f"layers differ in their numbers of heads {sorted(heads)}; looked for one number throughout"
            )
        embed = next(self.torch_module.get_input_embeddings().parameters())
        windows = tuple(_window(config, p.layer) for p in parts)
        return ModelInfo(
            name=checkpoint.name,
            family=type(self.torch_module).__name__,
            commit=checkpoint.commit,
            dtype=str(embed.dtype).removeprefix("torch."),
            n_layers=len(self.anatomy.blocks),
            n_heads=parts[0].n_heads,
            n_kv_heads=parts[0].n_kv_heads,
            d_model=int(config.hidden_size),
            d_head=parts[0].d_head,
            d_vocab=int(embed.shape[0]),
            attention_layers=tuple(p.layer for p in parts),
            context=getattr(config, "max_position_embeddings", None),
            windows=windows,
            softcap=parts[0].softcap,
            sink_logits=parts[0].sink_logits,
            weights_sha256=checkpoint.weights_sha256,
        )

    def batch(self, tokens: Prompts) -> Batch:
        """Tokens as a batch on the model's device.

        Raises:
            TaskError: empty, longer than the model's context, or ids outside its vocabulary.
        """
        batch = Batch.of(tokens, self.tokenizer).to(self.device)
        length = int(batch.mask.sum(1).max())
        if length == 0:
            raise TaskError("empty prompt: at least one token is needed in each")
        if self.info.context is not None and length > self.info.context:
            raise TaskError(f"prompt of {length} tokens is longer than the model's context of {self.info.context}")
        low, high = int(batch.ids.min()), int(batch.ids.max())
        if low < 0 or high >= self.info.d_vocab:
            raise TaskError(f"token id {low if low < 0 else high} is outside the vocabulary 0..{self.info.d_vocab - 1}")
        return batch

    def run(self, tokens: Prompts, *, capture: Sequence[Site | str] = (), edits: Sequence[Ablate] = ()) -> Run:
        """Logits and captured q, k, v or z, [batch pos head d_head] each, under edits of z.

        Raises:
            SiteError: a site this backend does not capture, or out of range.
        """
        batch = self.batch(tokens)
        sites = [Site.parse(s) if isinstance(s, str) else s for s in capture]
        wanted = {(site.kind, layer): site.at(layer) for site in sites for layer in self._layers_of(site)}
        acts: dict[Site, Tensor] = {}

        def watch(layer: int, call: Call) -> None:
            for kind, tensor in (("q", call.query), ("k", call.key), ("v", call.value)):
                if (kind, layer) in wanted:
                    acts[wanted[kind, layer]] = tensor.transpose(1, 2)

        edit = self._edit(edits)

        def after(layer: int, z: Tensor) -> Tensor:
            z = edit(layer, z)
            if ("z", layer) in wanted:
                acts[wanted["z", layer]] = z
            return z

        recorder = Recorder(watch=watch, edit=after, padded=batch.padded)
        return Run(self._forward(batch, recorder), acts)

    def attention(
        self,
        tokens: Prompts,
        statistics: Mapping[str, Statistic],
        *,
        method: str = "auto",
        layers: Sequence[int] | None = None,
        edits: Sequence[Ablate] = (),
    ) -> AttentionRun:
        """Answers to `statistics`, each [layer batch head ...]; the pass ends after the last layer asked for."""
        batch = self.batch(tokens)
        asked = self.info.attention_layers if layers is None else tuple(layers)
        if not asked:
            raise SiteError("no layers asked for; leave `layers` out for all of them")
        unknown = sorted(set(asked) - set(self.info.attention_layers))
        if unknown:
            raise SiteError(f"layer {unknown[0]} has no attention; layers with attention: {self.info.attention_layers}")
        recorder = Recorder(statistics, asked, method, edit=self._edit(edits), last=max(asked), padded=batch.padded)
        self._forward(batch, recorder)
        values = {name: torch.stack([recorder.answers[layer][name].cpu() for layer in asked]) for name in statistics}
        return AttentionRun(asked, values)

    def mean(self, tokens: Prompts, kind: str = "z") -> Float[Tensor, "layer head d_head"]:
        """Mean over real tokens of z (or q, k, v) for every layer and head."""
        batch = self.batch(tokens)
        acts = self.run(batch, capture=[kind]).acts
        weight = batch.mask[:, :, None, None].to(torch.float32) / batch.mask.sum()
        rows = [(acts[Site(kind, layer, layer)].float() * weight).sum((0, 1)) for layer in self.info.attention_layers]
        full = torch.zeros(self.info.n_layers, *rows[0].shape, device=rows[0].device)
        full[list(self.info.attention_layers)] = torch.stack(rows)
        return full

    def ov_circuits(self) -> OV:
        """Value and output matrices read off the modules themselves by feeding them a basis; see `OV`."""
        parts = self.anatomy.attention
        w_v = value_matrices(self.torch_module, parts)
        group = self.info.n_heads // self.info.n_kv_heads
        values, outputs = [], []
        for part in parts:
            before, after = gain(part.norm_before, self.info.d_model), gain(part.norm_after, self.info.d_model)
            values.append((before[:, None] * w_v[part.layer]).repeat_interleave(group, dim=0))
            outputs.append(output_matrix(part) * after)
        embed = next(self.torch_module.get_input_embeddings().parameters()).detach().float().cpu()
        unembed = next(self.anatomy.unembed.parameters()).detach().float().cpu()
        w_u = unembed.T * gain(self.anatomy.final_norm, self.info.d_model)[:, None]
        return OV(torch.stack(values), torch.stack(outputs), embed, w_u, tuple(p.layer for p in parts))

    def _layers_of(self, site: Site) -> Sequence[int]:
        if site.kind not in CAPTURED:
            raise SiteError(f"{site.kind!r} is not captured by the hf backend; it captures {', '.join(CAPTURED)}")
        layers = self.info.attention_layers if site.layers is None else site.layers
        for layer in layers:
            if layer not in self.info.attention_layers:
                raise SiteError(f"{site}: layer {layer} is out of range; the model has {self.info.n_layers} layers")
        if site.head is not None or site.position is not None:
            raise SiteError(f"{site}: captures are of whole layers; take the head or position from the result")
        return layers

    def _edit(self, edits: Sequence[Ablate]):
        """Function applying edits of z at a layer."""
        by_layer: dict[int, list[Ablate]] = {}
        for e in edits:
            if e.site.kind != "z" or e.site.position is not None:
                raise SiteError(f"{e.site}: edits are of z, at all positions")
            if e.site.head is not None and e.site.head >= self.info.n_heads:
                raise SiteError(f"{e.site}: head {e.site.head} is out of range; there are {self.info.n_heads} heads")
            layers = self.info.attention_layers if e.site.layers is None else e.site.layers
            for layer in layers:
                if layer not in self.info.attention_layers:
                    raise SiteError(
                        f"{e.site}: layer {layer} is out of range; the model has {self.info.n_layers} layers"
                    )
                by_layer.setdefault(layer, []).append(e)

        def apply(layer: int, z: Tensor) -> Tensor:
            for e in by_layer.get(layer, ()):
                where = slice(None) if e.site.head is None else e.site.head
                z = z.clone()
                z[:, :, where] = 0.0 if e.value is None else e.value.to(z)
            return z

        return apply

    def _forward(self, batch: Batch, recorder: Recorder) -> Tensor | None:
        """Logits, or None when the recorder ended the pass early."""
        inputs: dict[str, object] = {"use_cache": False}
        if batch.padded:
            inputs["attention_mask"] = batch.mask.long()
            if "position_ids" in self._accepts:
                inputs["position_ids"] = batch.positions
        with _evaluating(self.torch_module), torch.no_grad(), intercept(self.torch_module, recorder):
            try:
                return self.torch_module(batch.ids, **inputs).logits
            except StopForward:
                return None

    @cached_property
    def _accepts(self) -> frozenset[str]:
        return frozenset(inspect.signature(self.torch_module.forward).parameters)


def _window(config: object, layer: int) -> int | None:
    """Sliding window of a layer as its config states it (information only: masks are taken from the model itself)."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and kinds[layer] != "sliding_attention":
        return None
    if getattr(config, "use_sliding_window", True) is False:
        return None
    return getattr(config, "sliding_window", None)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside (no dropout), each module's own mode back afterwards."""
    training = [m for m in model.modules() if m.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
