"""What path patching needs of two runs: what senders write more in the one than in the other, and the first's stream.

At END alone, where nothing but the logits is asked for, heads' writes are made from z of that token; the run itself
stays a plain one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.graph.layout import Layout
from circuits.wiring.case import Case
from interp.batch import Batch
from interp.numerics import exactly, input_dtype
from interp.patching.effect_table import MODES, Mode
from interp.run import Run
from interp.sites import Site
from interp.weights.stream import Write


@dataclass(frozen=True, eq=False)
class Both:
    """Two runs of some prompts. `pos` is every token, or END alone.

    Attributes:
        part: the prompts. base: those of the run that is patched.
        gap: what each sender writes in the other run, less what it writes in the base run.
        pre: the stream that enters each layer of the base run. attn, mlp: what attention and MLP add to it.
        end: the stream behind the last layer at END, of the base run and of the other.
    """

    part: Case
    base: Batch
    gap: Float[Tensor, "sender batch pos d_model"]
    pre: Float[Tensor, "layer batch pos d_model"]
    attn: dict[int, Float[Tensor, "batch pos d_model"]]
    mlp: dict[int, Float[Tensor, "batch pos d_model"]]
    end: Float[Tensor, "2 batch d_model"]

    @property
    def layout(self) -> Layout:
        """Senders and slots of the model."""
        return self.part.layout

    @property
    def only_end(self) -> bool:
        """Whether END is the only token that is kept."""
        return self.gap.shape[2] == 1 < self.base.ids.shape[1]

    def stream_change(self, senders: Bool[Tensor, " sender"]) -> Float[Tensor, "batch pos d_model"]:
        """What a stream gains that gets the other run's writes of some senders in the place of the base run's."""
        return self.gap[senders].sum(0)

    @classmethod
    @torch.no_grad()
    def of(cls, part: Case, mode: Mode, *, only_end: bool) -> Both:
        """Run both prompts of each pair side by side."""
        task, info, layout = part.task, part.model.info, part.layout
        base, other = (task.clean, task.corrupt) if mode == MODES[0] else (task.corrupt, task.clean)
        both = base.joined(other)
        n, rows, ends = len(part), torch.arange(len(both.ids)), task.end.repeat(2)
        last = Site("resid_post", info.n_layers - 1)

        def cut(x: Tensor) -> Tensor:
            return x[rows, ends][:, None] if only_end else x

        def of_base(x: Tensor) -> Tensor:
            return cut(x)[:n].clone()

        def of_both(x: Tensor) -> Tensor:
            return cut(x).clone()

        def less(x: Tensor) -> Tensor:
            return x[n:] - x[:n]

        layers = [i for i in range(info.n_layers) if layout.has_heads(i)]
        heads = {Site("z" if only_end else "head_out", i): of_both if only_end else less for i in layers}
        captures: dict[Site | str, Callable[[Tensor], Tensor] | None] = {
            **{Site("resid_pre", i): of_base if i else of_both for i in range(info.n_layers)},
            **heads,
            **{Site("attn_out", i): of_base for i in layers},
            **({Site("mlp_out", i): of_both for i in range(info.n_layers)} if layout.mlps else {}),
            last: lambda x: x[rows, ends],
        }
        run = part.model.run(both, capture=captures, stop=info.n_layers - 1)
        pre = [run.acts[Site("resid_pre", i)] for i in range(info.n_layers)]
        return cls(
            part,
            base,
            _gap(part, run, less(pre[0])[None], only_end=only_end),
            torch.stack([pre[0][:n], *pre[1:]]),
            {i: run.acts[Site("attn_out", i)] for i in layers},
            {i: run.acts[Site("mlp_out", i)][:n] for i in range(info.n_layers) if layout.mlps},
            run.acts[last].unflatten(0, (2, n)),
        )


def _gap(
    part: Case, run: Run, embed: Float[Tensor, "1 batch pos d_model"], *, only_end: bool
) -> Float[Tensor, "sender batch pos d_model"]:
    """In the order of the layout."""
    gaps = [embed]
    for layer in range(part.model.info.n_layers):
        if part.layout.has_heads(layer):
            kind = "z" if only_end else "head_out"
            x = run.acts[Site(kind, layer)]
            gaps.append(_head_gaps(part, layer, x) if only_end else x.permute(2, 0, 1, 3))
        if part.layout.mlps:
            x = run.acts[Site("mlp_out", layer)]
            gaps.append((x[len(part) :] - x[: len(part)])[None])
    return torch.cat(gaps)


def _head_gaps(
    part: Case, layer: int, z: Float[Tensor, "both 1 head d_value"]
) -> Float[Tensor, "head batch 1 d_model"]:
    """What each head writes more in the other run, from z at one token of both."""
    write = part.model.writes(layer).attn
    assert write is not None  # the layout has heads in this layer
    heads = torch.arange(z.shape[2], device=z.device)
    z_by_head = z.new_zeros(*z.shape[:3], *z.shape[2:])
    z_by_head[:, :, heads, heads] = z
    n, divisor = len(z) // 2, write.divisor(z.flatten(2))
    if write.norm is None:  # linear: the difference of z is enough
        out = _linear(write, (z_by_head[n:] - z_by_head[:n]).flatten(3))
        return out.permute(2, 0, 1, 3)
    out = _linear(write, z_by_head.flatten(3)) / divisor[:, :, None].to(z.device)
    return (out[n:] - out[:n]).permute(2, 0, 1, 3)


def _linear(write: Write, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch d_model"]:
    """`write` without its biases and divisor."""
    flat = x.reshape(-1, x.shape[-1]).to(input_dtype(write.projection))
    out = exactly(write.projection, torch.cat([flat, torch.zeros_like(flat[:1])]))
    out = (out[:-1] - out[-1:]).to(torch.promote_types(out.dtype, torch.float32)).view(*x.shape[:-1], -1)
    return write.scale * (out if write.norm is None else write.norm.to(out.device).linear(out))
