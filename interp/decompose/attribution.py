"""Direct attribution: how much of a logit, or of the stream along a direction, each component wrote."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.batch import Prompts
from interp.decompose.answers import Answers, mean_over, token_ids
from interp.decompose.half_layers import ATTENTION, ENTRY, STAGES, WHOLE, half_layer
from interp.decompose.head import LogitHead, read_head
from interp.decompose.lens import read_out
from interp.decompose.stream import allowed, check, collect
from interp.decompose.stream_run import StreamRun, run_stream
from interp.decompose.terms import Term, place
from interp.edits import Edit
from interp.errors import BackendError, SiteError, TaskError
from interp.model import Model, with_edits
from interp.several import numbers
from interp.shapes import brief
from interp.sites import Site

if TYPE_CHECKING:
    import plotly.graph_objects as go

LOGITS = "logits"
INDICES = ("layer", "head", "source", "neuron")


@dataclass(frozen=True, eq=False)
class Attribution:
    """Direct effect of each component on a logit, a difference of logits, or the stream along a direction.

    Tensors are [... batch] at one position of each prompt and [... batch pos] at all of them (`position=None`), pos
    being a column of the batch.

    Attributes:
        terms: what `values` are of; last the biases of final norm and unembedding, where there are any.
        values: in logits, or in the stream's own units along a direction; they sum to `logit`. NaN where `mask` is
            False.
        logit: what they sum to: the logit before a final soft-cap, or the stream's product with the direction.
        capped: the same as the model gives it, after the soft-cap (equal to `logit` without one).
        softcap: c of logits = c tanh(x / c), None without.
        error: |sum - logit| over the prompt's largest logit (along a direction: over the product of both lengths), the
            largest over prompts.
        positions: of the tokens attributed at, counted from each prompt's start.
        mask: where there is something to attribute: real tokens that have an answer.
        unit: "logit", or "stream" along a direction.
        model: its name.
        end: all logits at the one position that was attributed at; None at all of them, and along a direction.
    """

    terms: tuple[Term, ...]
    values: Float[Tensor, "component batch *pos"]
    logit: Float[Tensor, "batch *pos"]
    capped: Float[Tensor, "batch *pos"]
    softcap: float | None
    error: float
    positions: Int[Tensor, "batch *pos"]
    mask: Bool[Tensor, "batch *pos"]
    unit: str = field(default="logit")
    model: str = field(default="", repr=False)
    end: Float[Tensor, "batch d_vocab"] | None = field(default=None, repr=False)

    __repr__ = brief

    def __getitem__(self, name: str) -> Float[Tensor, "batch *pos"]:
        """Of one component: `attribution["L3H5"]`."""
        return self.values[place(name, self.terms)]

    @property
    def heads(self) -> Float[Tensor, "layer head batch *pos"]:
        """Of every head, sources summed; zeros where a layer has none."""
        places = [(i, c.layer, c.head) for i, c in enumerate(self.terms) if c.layer is not None and c.head is not None]
        n_layers = 1 + max((c.layer for c in self.terms if c.layer is not None), default=-1)
        n_heads = 1 + max((head for _, _, head in places), default=-1)
        totals = torch.zeros(n_layers, n_heads, *self.values.shape[1:])
        for i, layer, head in places:
            totals[layer, head] += self.values[i]
        return totals

    def table(self) -> pd.DataFrame:
        """One row per component, prompt and position, `value` in `unit`."""
        labels = [c.as_dict() for c in self.terms]
        return self._rows(labels, self.values).astype(dict.fromkeys(INDICES, "Int64"))

    def accumulated(self) -> pd.DataFrame:
        """Logit difference by layer and half-layer: value(s) = sum of what was written up to s, and the end's biases.

        One row per place in the stream ("L0.resid_pre", "L0.resid_mid", ..., the last "resid_post"), prompt and
        position. The final norm's divisor is that of the whole stream at all of them, so that the last value is `logit`
        and differences of neighbours are what attention and MLP of a layer wrote; TransformerLens's
        `accumulated_resid(incl_mid=True, apply_ln=True)` does the same. What a layer's stream would give with its own
        divisor is `attribute(..., layer=)`. Where attention and MLP of a layer run side by side, "resid_mid" is the
        stream with attention added; a layer that is not told apart has none.
        """
        last = max((c.layer for c in self.terms if c.layer is not None), default=-1)
        whole = {c.layer for c in self.terms if c.kind == "block"}
        whole -= {c.layer for c in self.terms if c.kind in STAGES}  # which add a third thing to both
        sites = [Site(ENTRY, 0)]
        for layer in range(last + 1):
            sites += [Site(kind, layer) for kind in (ATTENTION, WHOLE) if kind == WHOLE or layer not in whole]
        order = {site: i for i, site in enumerate(sites)}
        first = torch.tensor([order.get(half_layer(c), order.get(Site(WHOLE, c.layer), 0)) for c in self.terms])
        parts = torch.zeros(len(sites), *self.values.shape[1:], dtype=torch.float64)
        totals = parts.index_add(0, first, self.values.double()).cumsum(0).float()
        return self._rows([{"site": str(site), "layer": site.first} for site in sites], totals)

    def top(self, k: int = 10) -> pd.DataFrame:
        """Components by the size of their mean over prompts (and positions), largest first; `value` keeps its sign."""
        names = [c.name for c in self.terms]
        mean = self.table().groupby("component", sort=False)["value"].mean().reindex(names)
        return mean.sort_values(key=abs, ascending=False, kind="stable").head(k).reset_index()

    def plot(self, *, prompt: int | None = None) -> go.Figure:
        """Layers by heads, MLP and the rest, of one prompt or the mean over all; see `interp.plots.component_map`."""
        from interp.decompose.pictures import attribution_figure

        own = {"model": self.model, "unit": self.unit}
        return attribution_figure(self.terms, self.values, self.mask, **own, prompt=prompt)

    def _rows(self, labels: Sequence[dict[str, object]], values: Tensor) -> pd.DataFrame:
        where, unit = self.mask.nonzero().tolist(), {"unit": self.unit}
        at = [{"prompt": place[0], "position": int(self.positions[tuple(place)])} for place in where]
        rows = zip(labels, values[:, self.mask].tolist(), strict=True)
        return pd.DataFrame(
            [
                {**label, **here, "value": value, **unit}
                for label, own in rows
                for here, value in zip(at, own, strict=True)
            ]
        )


@with_edits
@torch.no_grad()
def attribute(
    model: Model,
    tokens: Prompts,
    answer: Answers | None = None,
    wrong: Answers | None = None,
    *,
    position: int | None = -1,
    direction: Tensor | None = None,
    layer: int | None = None,
    heads: bool = True,
    sources: bool = False,
    neurons: Sequence[int] = (),
    tolerance: float | None = None,
    edits: Sequence[Edit] = (),
) -> Attribution:
    """value(c) = gain c(x_c) . w / divisor, for x_c what c wrote and w = W_U[answer] (- W_U[wrong]); in logits.

    The divisor of the final norm is that of the whole stream, held fixed; centring (LayerNorm) acts on each component.
    So a value is the change of the logit when the component is taken out just before the final norm and the divisor
    stays. It is a direct effect: what later layers make of the component is theirs. A difference of logits is the
    better question: a single logit also has what raises all tokens alike. Under a soft-cap (Gemma-2) it is the logit
    before the cap that is attributed. Along a `direction` d it is value(c) = x_c . d, without any norm.

    Args:
        model: any backend.
        tokens: prompts.
        answer: token whose logit is attributed: an id, a text of one token, or one per prompt; ids [batch k] mean the
            mean over k (-1 fills up), as in a `PromptTask`. None: at each position the token that comes next in the
            prompt, which the last one lacks.
        wrong: of the token it is compared with, if any.
        position: whose logits; counted from the prompt's start or (negative) its end. None: all positions.
        direction: a vector of the stream, [d_model], or one for each prompt, [batch d_model], instead of an answer.
        layer: attribute the stream after this layer, read as if the model ended there; None for the last one.
        heads: split attention into heads, as in `decompose`.
        sources: split heads by the token they brought something from; at one position.
        neurons: layers whose MLP is split into neurons.
        tolerance: of the error relative to the largest logit; 1e-5 for float32, eight units of rounding below.
        edits: changes under which the model runs, beside those of an `editing` context. What they add to the stream is
            a component (`edit_resid_post3`); what they scale or ablate counts as it arrives.

    Raises:
        InterpError: attributions do not sum to the logit, or the logits are no function of norm and unembedding that
            is known here; an edit that is not affine, behind which there is no sum of parts.
        TaskError: an answer that is no token, neither or both of answer and direction, or no token that comes next.
        SiteError: a direction of another width than the stream's, or a layer or position out of range.

    >>> import interp
    >>> model = interp.load("zoo:planted-induction")
    >>> by_position = interp.attribute(model, [5, 6, 7, 5], position=None)  # of each next token
    >>> by_position["L1H0"].shape, by_position.mask.tolist()
    (torch.Size([1, 4]), [[True, True, True, False]])
    """
    if direction is not None and not (answer is None and wrong is None):
        raise TaskError("an attribution is of an answer's logit or along a direction: leave one of them out")
    neurons = numbers(neurons, "neurons")
    to_the_end = direction is None and layer in (None, model.info.n_layers - 1)
    parts = {"heads": heads, "sources": sources, "neurons": neurons}
    stream = run_stream(model, tokens, layer=layer, position=position, logits=to_the_end, **parts)
    if direction is not None:
        reading = _along(stream, direction)
    else:
        reading = _logits(stream, _head(stream, to_the_end=to_the_end), answer, wrong)
    return _attribution(stream, reading, heads=heads, neurons=neurons, tolerance=tolerance)


@torch.no_grad()
def attributions(
    model: Model,
    tokens: Prompts,
    contrasts: Sequence[tuple[Answers | None, Answers | None]],
    *,
    position: int | None = -1,
    heads: bool = True,
    sources: bool = False,
    neurons: Sequence[int] = (),
    tolerance: float | None = None,
) -> list[Attribution]:
    """`attribute` of several answers to the same prompts, in logits: the model runs once, whatever their number.

    Args:
        model: any backend.
        tokens: prompts.
        contrasts: pairs of `answer` and `wrong` of `attribute`.
        position: as in `attribute`, and so are the other options.
        heads: split attention into heads.
        sources: split heads by the token they brought something from.
        neurons: layers whose MLP is split into neurons.
        tolerance: of the error relative to the largest logit.

    Raises:
        InterpError: as in `attribute`.
        TaskError: an answer that is no token.
    """
    parts = {"heads": heads, "sources": sources, "neurons": neurons}
    stream = run_stream(model, tokens, layer=None, position=position, logits=True, **parts)
    head = _head(stream, to_the_end=True)
    return [
        _attribution(stream, _logits(stream, head, *c), heads=heads, neurons=neurons, tolerance=tolerance)
        for c in contrasts
    ]


def _attribution(
    stream: StreamRun, reading: _Reading, *, heads: bool, neurons: Sequence[int], tolerance: float | None
) -> Attribution:
    """What a run wrote along one reading."""
    components, values, errors = collect(stream, reading.direction, heads=heads, neurons=neurons)
    relative = (errors / reading.scale).masked_fill(~reading.mask, 0.0).flatten(1).amax(1)
    check(relative, stream.model, tolerance, what=reading.what)
    written, error = _complete(values[..., 0], reading, stream.model, tolerance)

    def at(x: Tensor) -> Tensor:
        return x if stream.position is None else x[..., 0]

    mask = reading.mask
    positions = stream.batch.positions.gather(1, stream.columns).cpu()
    return Attribution(
        (*components, *(Term(name, "bias") for name in reading.ends)),
        at(written.masked_fill(~mask, torch.nan)),
        at(reading.total.masked_fill(~mask, torch.nan)),
        at(reading.capped.masked_fill(~mask, torch.nan)),
        reading.softcap,
        error,
        at(positions),
        at(mask),
        "logit" if reading.what == LOGITS else "stream",
        stream.model.info.name,
        None if stream.position is None else reading.logits,
    )


def _complete(
    written: Float[Tensor, "component batch pos"], reading: _Reading, model: Model, tolerance: float | None
) -> tuple[Float[Tensor, "component_and_end batch pos"], float]:
    """What was written and the biases of the end, whose sum is held against the whole; and by how much it misses."""
    ends = [x.expand(written.shape[1:])[None].float() for x in reading.ends.values()]
    written = torch.cat([written, *ends])
    error = float(((written.double().sum(0) - reading.total).abs() / reading.scale)[reading.mask].max())
    limit = allowed(model) if tolerance is None else tolerance
    if not error <= limit:
        raise BackendError(
            f"{model.info.name}: attributions miss the {reading.what} by {error:.1e} of the largest, over {limit:.0e}"
        )
    return written, error


@dataclass(frozen=True, eq=False)
class _Reading:
    """What is read off the stream at the chosen positions: a direction to project on, and what that must give.

    Attributes:
        direction: what each position's writes are multiplied with. ends: what comes after the stream, by name.
        total, capped, softcap: as in `Attribution`. scale: what errors are relative to. mask: where there is something.
        what: what is read, as messages call it. logits: of the model, of the real tokens.
    """

    direction: Float[Tensor, "batch #pos d_model"]
    total: Float[Tensor, "batch pos"]
    capped: Float[Tensor, "batch pos"]
    scale: Float[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    ends: dict[str, Tensor] = field(default_factory=dict)
    softcap: float | None = None
    what: str = LOGITS
    logits: Float[Tensor, "token d_vocab"] | None = None


def _along(stream: StreamRun, direction: Tensor) -> _Reading:
    """The stream's product with a vector."""
    resid, mask = stream.at("resid_post", stream.last).cpu(), stream.mask.cpu()
    size, width = len(resid), stream.model.info.d_model
    if not isinstance(direction, Tensor) or direction.shape not in ((width,), (size, width)):
        shape = tuple(direction.shape) if isinstance(direction, Tensor) else type(direction).__name__
        raise SiteError(f"direction: expected a tensor [{width}] or [{size} {width}], d_model wide; got {shape}")
    d = direction.detach().cpu().to(resid).expand(size, width)[:, None]
    total = (resid * d).sum(-1)
    scale = (resid.norm(dim=-1) * d.norm(dim=-1)).clamp(min=torch.finfo(resid.dtype).tiny)
    return _Reading(d, total, total, scale, mask, what="stream along the direction")


def _logits(stream: StreamRun, head: LogitHead, answer: Answers | None, wrong: Answers | None) -> _Reading:
    """The logit of the answer, less that of the wrong one, with the final norm's divisor frozen."""
    model, weights, size = stream.model, stream.model.weights(), len(stream.batch.ids)
    right_ids = _next_ids(stream) if answer is None else token_ids(model, answer, size)[:, None]
    wrong_ids = None if wrong is None else token_ids(model, wrong, size)[:, None]
    resid, norm = stream.at("resid_post", stream.last).cpu(), weights.final_norm
    mask = stream.mask.cpu() & (right_ids >= 0).any(-1)
    w = _contrast(weights.source.columns, right_ids, wrong_ids) * head.multiplier
    direction = w if norm is None else norm.transpose(w) / norm.divisor(resid)
    unembed = _contrast(lambda ids: weights.b_u[ids], right_ids, wrong_ids) * head.multiplier
    ends = {"b_unembed": unembed} if norm is None else {"b_norm": w @ norm.bias, "b_unembed": unembed}
    real = stream.mask.cpu()
    own_ids = right_ids.expand(*real.shape, -1)[real]
    other_ids = None if wrong_ids is None else wrong_ids.expand(*real.shape, -1)[real]
    total, capped = (_spread(_mean_logit(x, own_ids, other_ids), real) for x in (head.before, head.logits))
    scale = _spread(head.before.abs().amax(-1), real)
    bias = {name: x.masked_fill(~mask, 0.0) for name, x in ends.items()}
    present = {name: x for name, x in bias.items() if bool(x.any())}
    direction = direction.masked_fill(~mask[..., None], 0.0)
    return _Reading(direction, total, capped, scale, mask, present, head.softcap, logits=head.logits)


def _next_ids(stream: StreamRun) -> Int[Tensor, "batch pos 1"]:
    """The token behind each chosen position; -1 where the prompt ends."""
    ids, real = stream.batch.ids.cpu(), stream.batch.mask.cpu()
    following = torch.nn.functional.pad(ids.masked_fill(~real, -1)[:, 1:], (0, 1), value=-1)
    following = following.masked_fill(~real, -1).gather(1, stream.columns.cpu())
    lacking = (following < 0) & stream.mask.cpu()
    if bool((following < 0).all()) or (stream.position is not None and bool(lacking.any())):
        raise TaskError(
            "no token comes next at the last position of a prompt: give `answer`, or position=None for all others"
        )
    return following[..., None]


def _spread(values: Float[Tensor, " token"], mask: Bool[Tensor, "batch pos"]) -> Float[Tensor, "batch pos"]:
    """Values of real tokens at their places; ones elsewhere."""
    return torch.ones(mask.shape, dtype=values.dtype).masked_scatter(mask, values)


def _head(stream: StreamRun, *, to_the_end: bool) -> LogitHead:
    """Logits of the real tokens before and after what the model does to them behind the unembedding."""
    mask, weights = stream.mask, stream.model.weights()
    resid = stream.at("resid_post", stream.last).cpu()[mask.cpu()]
    if to_the_end:
        assert stream.run.logits is not None  # the run had no `stop`
        rows = torch.arange(len(mask), device=stream.columns.device)[:, None].expand_as(mask)
        at = (rows[mask].to(stream.run.logits.device), stream.columns[mask].to(stream.run.logits.device))
        logits = stream.run.logits[at].float().cpu()
    else:
        logits = read_out(stream.model, resid).float().cpu()
    final = resid if weights.final_norm is None else weights.final_norm(resid)
    return read_head(weights.unembed(final) + weights.b_u, logits, slack=2 * allowed(stream.model))


def _contrast(
    columns: Callable[[Tensor], Tensor], right: Int[Tensor, "batch #pos k"], wrong: Int[Tensor, "batch 1 m"] | None
) -> Float[Tensor, "batch #pos ..."]:
    """Mean of something per token over the right answers, less that over the wrong ones."""

    def mean(ids: Tensor) -> Tensor:
        return mean_over(columns, ids.flatten(0, 1)).unflatten(0, ids.shape[:2])

    return mean(right) if wrong is None else mean(right) - mean(wrong)


def _mean_logit(
    logits: Float[Tensor, "token d_vocab"], right: Int[Tensor, "token k"], wrong: Int[Tensor, "token m"] | None
) -> Float[Tensor, " token"]:
    def of(ids: Tensor) -> Tensor:
        real = ids >= 0
        return (logits.gather(1, ids.clamp(min=0)) * real).sum(1) / real.sum(1)

    return of(right) if wrong is None else of(right) - of(wrong)
