"""`LogitLens`: logits from the residual stream after each layer, as if the model ended there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.batch import Batch, Prompts
from interp.decompose.answers import Answers, token_ids
from interp.decompose.stream_run import position_columns
from interp.edits import Edit, Replace, of_tokens
from interp.errors import SchemaError, SiteError, nearest
from interp.model import Model, with_edits
from interp.several import numbers
from interp.shapes import brief
from interp.sites import Site
from interp.tokens.texts import token_texts

if TYPE_CHECKING:
    import plotly.graph_objects as go

Translate = Callable[[int, Tensor], Tensor]
"""From a layer and the stream after it to a stream in the last layer's terms."""
READINGS = {
    "token_p": ("probability", "p of the likeliest token"),
    "p": ("probability", "p of the answer"),
    "rank": ("rank", "rank of the answer"),
    "kl": ("nats", "KL from the model"),
}
"""What a lens is drawn by: unit, and words for it."""
ENTRIES = 2**26  # of logits made at one time


def read_out(
    model: Model, resid: Float[Tensor, "*batch d_model"], *, gradients: bool = False
) -> Float[Tensor, "*batch d_vocab"]:
    """Logits of a residual stream, taken for that before the final norm: all that the model does from there on.

    The model itself does it: each vector goes in as a prompt of one token at the last layer, whose output it replaces.
    Edits in force rest, but for those of the logits. With `gradients` they reach the vectors.

    Raises:
        SiteError: vectors of another width than the stream's, or none; an edit of the logits of some tokens alone.
    """
    d_model, last = model.info.d_model, model.info.n_layers - 1
    if not isinstance(resid, Tensor) or not resid.ndim or resid.shape[-1] != d_model or not resid.numel():
        shape = tuple(resid.shape) if isinstance(resid, Tensor) else type(resid).__name__
        raise SiteError(
            f"expected vectors [... d_model], some at least; the residual stream is {d_model} wide; got {shape}"
        )
    ends = logit_edits(model)
    parts = []
    for rows in resid.reshape(-1, 1, d_model).split(max(1, ENTRIES // model.info.d_vocab)):
        ids = torch.zeros(len(rows), 1, dtype=torch.long)
        batch = Batch(ids, torch.ones_like(ids, dtype=torch.bool))
        with model.resting():
            edits = [Replace(Site("resid_post", last), rows), *ends]
            run = model.run(batch, start=(last, rows.detach()), edits=edits, gradients=gradients)
        assert run.logits is not None  # the run has no `stop`
        parts.append(run.logits[:, 0])
    return torch.cat(parts).reshape(*resid.shape[:-1], -1)


def logit_edits(model: Model) -> list[Edit]:
    """Edits in force of the logits, which a stream that is unembedded by itself still passes.

    Raises:
        SiteError: one of some tokens or prompts alone: a stream by itself stands at none.
    """
    ends = [edit for edit in model.edits if edit.site.kind == "logits"]
    for edit in ends:
        if of_tokens(edit):
            raise SiteError(
                f"{edit.site}: {type(edit).__name__} changes some tokens' logits and not others', and streams are "
                "unembedded one by one here; leave its positions, rows and values of each token out"
            )
    return ends


@dataclass(frozen=True, eq=False)
class LogitLens:
    """Read-outs by layer, on the CPU.

    Attributes:
        layers: the stream after each of these was read.
        columns: column of each position in the batch. mask: which of them are real tokens.
        top_ids, top_p: the k likeliest tokens and their probabilities.
        kl: KL(p_model || p_layer) in nats; 0 at the last layer.
        p, rank: probability of the answer, and how many tokens are likelier (0 is first); NaN without an answer.
        texts: of every id in `top_ids`, if the model has a tokenizer.
        tokens: text of the token at each position; their ids where there is no tokenizer.
        model: its name.
    """

    layers: tuple[int, ...]
    columns: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    top_ids: Int[Tensor, "layer batch pos k"]
    top_p: Float[Tensor, "layer batch pos k"]
    kl: Float[Tensor, "layer batch pos"]
    p: Float[Tensor, "layer batch pos"]
    rank: Float[Tensor, "layer batch pos"]
    texts: dict[int, str]
    tokens: tuple[tuple[str, ...], ...] = field(default=(), repr=False)
    model: str = field(default="", repr=False)

    __repr__ = brief

    def table(self) -> pd.DataFrame:
        """One row per layer, prompt and real position: likeliest token and its p, KL, the answer's p and rank."""
        rows = []
        for n, layer in enumerate(self.layers):
            for b, i in self.mask.nonzero().tolist():
                token = int(self.top_ids[n, b, i, 0])
                at = {"layer": layer, "prompt": b, "position": int(self.columns[b, i])}
                first = {"token": token, "text": self.texts.get(token), "token_p": float(self.top_p[n, b, i, 0])}
                scores = {"kl": self.kl[n, b, i], "p": self.p[n, b, i], "rank": self.rank[n, b, i]}
                rows.append({**at, **first, **{name: float(x) for name, x in scores.items()}})
        return pd.DataFrame(rows)

    def plot(self, value: str | None = None, *, prompt: int = 0) -> go.Figure:
        """Layers by positions of one prompt, the likeliest token in each cell.

        Args:
            value: what is coloured: "token_p", the likeliest token's probability; "p" and "rank", the answer's; "kl".
                The answer's probability where there is an answer, else the likeliest token's.
            prompt: which of them.

        Raises:
            SchemaError: no such value or prompt.
        """
        from interp.plots.components import layer_map
        from interp.plots.titles import titled

        name = value or ("token_p" if self.p.isnan().all() else "p")
        if name not in READINGS:
            raise SchemaError(f"no reading {name!r}; {nearest(name, READINGS)}")
        if not 0 <= prompt < len(self.mask):
            raise SchemaError(f"prompt {prompt}: there are 0 to {len(self.mask) - 1}")
        unit, what = READINGS[name]
        real = self.mask[prompt]
        drawn = (self.top_p[..., 0] if name == "token_p" else getattr(self, name))[:, prompt, real]
        ids = self.top_ids[:, prompt, real, 0].tolist()
        words = [[self.texts.get(token, str(token)) for token in row] for row in ids]
        tokens = self.tokens[prompt] if self.tokens else [str(i) for i in self.columns[prompt].tolist()]
        names = [token for token, there in zip(tokens, real.tolist(), strict=True) if there]
        figure = layer_map(drawn.double().numpy(), self.layers, names, unit=unit, words=words)
        return titled(figure, [self.model, f"logit lens ({what})", f"prompt {prompt}", "cells: likeliest next token"])


@with_edits
@torch.no_grad()
def logit_lens(
    model: Model,
    tokens: Prompts,
    *,
    layers: Sequence[int] | None = None,
    positions: int | Sequence[int] | None = None,
    answer: Answers | None = None,
    top: int = 5,
    translate: Translate | None = None,
    edits: Sequence[Edit] = (),
) -> LogitLens:
    """softmax(cap(W_U norm(resid_post[l]))): the next-token distribution read off after each layer.

    What is far from the final distribution may still hold the answer, in a basis that the unembedding does not read:
    a high rank early on is no evidence of absence. Reference: nostalgebraist 2020, "interpreting GPT: the logit lens".

    Args:
        model: any backend.
        tokens: prompts.
        layers: whose output is read; None for all.
        positions: of real tokens, counted from the prompt's start or (negative) its end; None for all.
        answer: an id, a text of one token, or one per prompt; of several per prompt the first counts.
        top: likeliest tokens kept.
        translate: (layer, stream [batch pos d_model]) -> stream that is read in its place, such as a lens of
            `interp.lenses`.
        edits: changes under which the model runs; the read-out itself is the model's own.

    Raises:
        SiteError: a layer or position out of range.
    """
    batch = model.batch(tokens)
    layers = range(model.info.n_layers) if layers is None else numbers(layers, "layers")
    at = _columns(batch, positions)
    rows = torch.arange(len(at), device=at.device)[:, None]
    sites = [Site("resid_post", i) for i in layers]
    run = model.run(batch, capture=dict.fromkeys(sites, lambda x: x[rows.to(x.device), at.to(x.device)]))
    assert run.logits is not None  # the run has no `stop`
    final = run.logits[rows, at].float().log_softmax(-1)
    ids = None if answer is None else token_ids(model, answer, len(at))[:, :1].to(at.device)
    acts = zip(layers, (run.acts[s] for s in sites), strict=True)
    streams = [x if translate is None else translate(i, x) for i, x in acts]
    readings = [_layer_readout(model, resid, final, ids, min(top, model.info.d_vocab)) for resid in streams]
    top_ids, top_p, kl, p, rank = (torch.stack(x).cpu() for x in zip(*readings, strict=True))
    top_tokens = top_ids.unique().tolist() if model.tokenizer is not None else []
    texts = dict(zip(top_tokens, token_texts(top_tokens, model.tokenizer), strict=True))
    read = batch.ids.gather(1, at).tolist()
    tokens = tuple(tuple(token_texts(row, model.tokenizer)) for row in read)
    mask = batch.mask.gather(1, at).cpu()
    return LogitLens(
        tuple(layers), at.cpu(), mask, top_ids, top_p, kl, p, rank, texts, tokens=tokens, model=model.info.name
    )


def _layer_readout(model: Model, resid: Tensor, final: Tensor, ids: Tensor | None, top: int) -> tuple[Tensor, ...]:
    """(top ids, top p, kl, p, rank) of one layer."""
    log_p = read_out(model, resid).float().log_softmax(-1).to(final)
    likeliest = log_p.topk(top, dim=-1)
    kl = (final.exp() * (final - log_p)).sum(-1)
    if ids is None:
        nans = torch.full_like(kl, torch.nan)
        return likeliest.indices, likeliest.values.exp(), kl, nans, nans
    own = log_p.gather(2, ids[:, None].expand(-1, log_p.shape[1], -1))
    return likeliest.indices, likeliest.values.exp(), kl, own[..., 0].exp(), (log_p > own).sum(-1).float()


def _columns(batch: Batch, positions: int | Sequence[int] | None) -> Int[Tensor, "batch pos"]:
    if positions is None or isinstance(positions, int):
        return position_columns(batch, positions)
    return torch.cat([position_columns(batch, p) for p in positions], dim=1)
