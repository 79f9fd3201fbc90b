"""`Decomposition`: residual stream = embedding + what each head, MLP and bias wrote; the sum is checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.batch import Prompts
from interp.decompose.edit_maps import EditMap
from interp.decompose.layer_terms import Direction, LayerTerms, along
from interp.decompose.stream_run import StreamRun, run_stream
from interp.decompose.terms import Term, place
from interp.edits import Edit
from interp.errors import BackendError
from interp.model import Model, with_edits
from interp.several import numbers
from interp.shapes import brief

if TYPE_CHECKING:
    import plotly.graph_objects as go

TOLERANCE = 1e-5  # of a sum in float32, relative to what it should be
ROUNDING = 8  # in half precision: units of rounding


@dataclass(frozen=True, eq=False)
class Decomposition:
    """Contribution of each component to the residual stream, on the CPU.

    Attributes:
        terms: what `vectors` are of, in the order in which they are written.
        vectors: [component batch d_model] at one position, [component batch pos d_model] at all.
        residual: their sum as the model has it, [batch (pos) d_model].
        mask: real tokens among these, [batch (pos)].
        layer: the residual is that after this layer.
        error: |sum - residual| / |residual|, the largest over real tokens.
        model: its name.
    """

    terms: tuple[Term, ...]
    vectors: Float[Tensor, "component batch *pos d_model"]
    residual: Float[Tensor, "batch *pos d_model"]
    mask: Bool[Tensor, "batch *pos"]
    layer: int
    error: float
    model: str = field(default="", repr=False)
    names: tuple[str, ...] = field(init=False)

    __repr__ = brief

    def __post_init__(self) -> None:
        """Names beside the terms."""
        object.__setattr__(self, "names", tuple(c.name for c in self.terms))

    def __getitem__(self, name: str) -> Float[Tensor, "batch *pos d_model"]:
        """Contribution of one component: `parts["L3H5"]`."""
        return self.vectors[place(name, self.terms)]

    def table(self) -> pd.DataFrame:
        """Per component: mean over real tokens of its norm, and of its share <c, r> / <r, r> of the residual r.

        Shares sum to 1 and may be negative. They say how much of the stream's length a component makes up, not what
        later layers do with it.
        """
        square = self.residual.double().square().sum(-1)
        rows = []
        for c, vector in zip(self.terms, self.vectors, strict=True):
            share = (vector.double() * self.residual).sum(-1) / square
            rows.append(
                {**c.as_dict(), "norm": _mean(vector.norm(dim=-1), self.mask), "share": _mean(share, self.mask)}
            )
        return pd.DataFrame(rows).astype(dict.fromkeys(("layer", "head", "source", "neuron"), "Int64"))

    def plot(self) -> go.Figure:
        """Each component's share of the residual: layers by heads, MLP and the rest."""
        from interp.plots.components import component_map
        from interp.plots.titles import titled

        rows = self.table().assign(value=lambda table: table["share"])
        of = f"after layer {self.layer}, {int(self.mask.sum())} tokens"
        return titled(component_map(rows, unit="share"), [self.model, "share of the residual stream", of, "no null"])


@with_edits
@torch.no_grad()
def decompose(
    model: Model,
    tokens: Prompts,
    *,
    layer: int | None = None,
    position: int | None = -1,
    heads: bool = True,
    sources: bool = False,
    neurons: Sequence[int] = (),
    tolerance: float | None = None,
    edits: Sequence[Edit] = (),
) -> Decomposition:
    """r = embed + pos + sum_l (sum_h z_h W_O[h] + b_attn + MLP + b_mlp): the residual stream as a sum of writes.

    Norms behind attention or MLP (Gemma-2, OLMo-2) are passed with their divisor frozen; residual multipliers are
    folded in. What a layer adds beside the two (a decoder's attention to its source, a state space) is one component
    `B3`, the difference that is left, and a layer that is no such sum (norms behind the additions) is one as a whole.

    Args:
        model: any backend.
        tokens: prompts.
        layer: the stream after this layer; None for the stream before the final norm.
        position: of a real token, counted from the prompt's start or (negative) its end; None for all of them.
        heads: split attention into heads; without, one component `A3` per layer.
        sources: split each head by the token it brought something from, p_ij v_j W_O (components `L3H5<j`, j a column
            of the batch). Needs one position: only its rows of the patterns are computed.
        neurons: layers whose MLP is split into neurons, a_i W_out[i]; those of a mixture of experts have their expert's
            weight in a_i, and cost one gradient of the MLP for each token (`interp.decompose.experts`).
        tolerance: of the relative error; 1e-5 for float32, eight units of rounding below.
        edits: changes under which the model runs, as in `attribute`.

    Raises:
        InterpError: the sum misses the residual; says at which layer.
        SiteError: a layer or position out of range, or neurons of a layer where they cannot be told apart; an
            edit that is not affine.
    """
    neurons = numbers(neurons, "neurons")
    stream = run_stream(model, tokens, layer=layer, position=position, heads=heads, sources=sources, neurons=neurons)
    terms, vectors, errors = collect(stream, None, heads=heads, neurons=neurons)
    scale = torch.stack([stream.at("resid_post", i).cpu().norm(dim=-1) for i in range(stream.last + 1)])
    relative = (errors / scale).masked_fill(~stream.mask.cpu(), 0.0).flatten(1).amax(1)
    check(relative, model, tolerance)
    residual, mask = stream.at("resid_post", stream.last).cpu(), stream.mask.cpu()
    if position is not None:
        vectors, residual, mask = vectors[:, :, 0], residual[:, 0], mask[:, 0]
    return Decomposition(tuple(terms), vectors, residual, mask, stream.last, float(relative[-1]), model.info.name)


def check(
    relative: Float[Tensor, " layer"], model: Model, tolerance: float | None, *, what: str = "residual stream"
) -> None:
    """Refuse a sum that misses.

    Raises:
        BackendError: names the first layer after which it does.
    """
    limit = allowed(model) if tolerance is None else tolerance
    if float(relative[-1]) <= limit:
        return
    layer = int((~(relative <= limit)).nonzero()[0])
    raise BackendError(
        f"{model.info.name}: components miss the {what} by {float(relative[-1]):.1e} of it (allowed: "
        f"{limit:.0e}); first after layer {layer} ({float(relative[layer]):.1e}), which adds what was not found"
    )


def allowed(model: Model) -> float:
    """Relative error that rounding may cause."""
    dtype = getattr(torch, model.info.dtype, torch.float32)
    return max(TOLERANCE, ROUNDING * torch.finfo(dtype).eps) if dtype.itemsize < 4 else TOLERANCE


def collect(
    stream: StreamRun, direction: Direction, *, heads: bool, neurons: Sequence[int]
) -> tuple[list[Term], Float[Tensor, "component batch pos out"], Float[Tensor, "layer batch pos"]]:
    """Components, what they wrote (along `direction`), and after each layer the length by which the sum misses.

    Edits in force act on what was written before them, and what they add is a component of its own.
    """
    terms = LayerTerms(stream, direction, heads=heads)
    components, parts, errors = [], [], []
    total = torch.zeros(())
    for layer in range(stream.last + 1):
        steps = [*(terms.embedding() if layer == 0 else ()), *terms.layer(layer, neurons=layer in neurons)]
        for step in steps:
            if not isinstance(step, EditMap):
                components += step[0]
                parts.append(step[1].cpu())
                total = total + parts[-1].double().sum(0)
            elif direction is None:
                parts = [step.linear(x.to(step.constant)).cpu() for x in parts]
                total = torch.stack([x.double().sum(0) for x in parts]).sum(0)
        resid = along(stream.at("resid_post", layer), terms.behind["resid_post", layer])
        errors.append((total - resid.cpu()).norm(dim=-1).float())
    return components, torch.cat(parts).float(), torch.stack(errors)


def _mean(x: Tensor, mask: Tensor) -> float:
    return float(x[mask].mean())
