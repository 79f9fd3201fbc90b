"""Direct logit attribution: how much of a logit each component wrote, with the final norm's divisor frozen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.batch import Prompts
from interp.decompose.answers import Answers, mean_over, token_ids
from interp.decompose.head import LogitHead, read_head
from interp.decompose.stream import allowed, check, collect
from interp.decompose.stream_run import StreamRun, run_stream
from interp.decompose.terms import Term, place
from interp.errors import BackendError
from interp.model import Model
from interp.several import numbers
from interp.shapes import brief
from interp.weights.weights import Weights


@dataclass(frozen=True, eq=False)
class Attribution:
    """Direct effect of each component on a logit, or a difference of logits, at one position of each prompt.

    Attributes:
        terms: what `values` are of; last the biases of final norm and unembedding, where there are any.
        values: in logits; they sum to `logit`.
        logit: before a final soft-cap.
        capped: the same as the model gives it, after the soft-cap (equal to `logit` without one).
        softcap: c of logits = c tanh(x / c), None without.
        error: |sum - logit| over the prompt's largest logit, the largest over prompts.
    """

    terms: tuple[Term, ...]
    values: Float[Tensor, "component batch"]
    logit: Float[Tensor, " batch"]
    capped: Float[Tensor, " batch"]
    softcap: float | None
    error: float

    __repr__ = brief

    def __getitem__(self, name: str) -> Float[Tensor, " batch"]:
        """Of one component: `attribution["L3H5"]`."""
        return self.values[place(name, self.terms)]

    @property
    def heads(self) -> Float[Tensor, "layer head batch"]:
        """Of every head, sources summed; zeros where a layer has none."""
        places = [(i, c.layer, c.head) for i, c in enumerate(self.terms) if c.layer is not None and c.head is not None]
        n_layers = 1 + max((c.layer for c in self.terms if c.layer is not None), default=-1)
        totals = torch.zeros(n_layers, 1 + max((head for _, _, head in places), default=-1), self.values.shape[1])
        for i, layer, head in places:
            totals[layer, head] += self.values[i]
        return totals

    def table(self) -> pd.DataFrame:
        """One row per component and prompt, `value` in logits."""
        rows = [
            {**c.as_dict(), "prompt": b, "value": float(value), "unit": "logit"}
            for c, values in zip(self.terms, self.values, strict=True)
            for b, value in enumerate(values)
        ]
        return pd.DataFrame(rows).astype(dict.fromkeys(("layer", "head", "source", "neuron"), "Int64"))

    def top(self, k: int = 10) -> pd.DataFrame:
        """Components by the size of their mean over prompts, largest first; `value` keeps its sign."""
        names = [c.name for c in self.terms]
        mean = self.table().groupby("component", sort=False)["value"].mean().reindex(names)
        return mean.sort_values(key=abs, ascending=False, kind="stable").head(k).reset_index()


@torch.no_grad()
def attribute(
    model: Model,
    tokens: Prompts,
    answer: Answers,
    wrong: Answers | None = None,
    *,
    position: int = -1,
    heads: bool = True,
    sources: bool = False,
    neurons: Sequence[int] = (),
    tolerance: float | None = None,
) -> Attribution:
    """value(c) = gain c(x_c) . w / divisor, for x_c what c wrote and w = W_U[answer] (- W_U[wrong]); in logits.

    The divisor of the final norm is that of the whole stream, held fixed; centring (LayerNorm) acts on each component.
    So a value is the change of the logit when the component is taken out just before the final norm and the divisor
    stays. It is a direct effect: what later layers make of the component is theirs. A difference of logits is the
    better question: a single logit also has what raises all tokens alike. Under a soft-cap (Gemma-2) it is the logit
    before the cap that is attributed.

    Args:
        model: any backend.
        tokens: prompts.
        answer: token whose logit is attributed: an id, a text of one token, or one per prompt; ids [batch k] mean the
            mean over k (-1 fills up), as in a `PromptTask`.
        wrong: of the token it is compared with, if any.
        position: whose logits; counted from the prompt's start or (negative) its end.
        heads: split attention into heads, as in `decompose`.
        sources: split heads by the token they brought something from.
        neurons: layers whose MLP is split into neurons.
        tolerance: of the error relative to the largest logit; 1e-5 for float32, eight units of rounding below.

    Raises:
        InterpError: attributions do not sum to the logit, or the logits are no function of norm and unembedding that
            is known here.
        TaskError: an answer that is no token.
    """
    neurons = numbers(neurons, "neurons")
    right_ids = token_ids(model, answer, len(model.batch(tokens).ids))
    wrong_ids = None if wrong is None else token_ids(model, wrong, len(right_ids))
    stream = run_stream(
        model, tokens, layer=None, position=position, heads=heads, sources=sources, neurons=neurons, logits=True
    )
    weights, resid = model.weights(), stream.at("resid_post", stream.last).cpu()
    head = _head(stream, weights, resid[:, 0])
    w = _contrast(weights.source.columns, right_ids, wrong_ids) * head.multiplier
    norm = weights.final_norm
    direction = w[:, None] if norm is None else norm.transpose(w)[:, None] / norm.divisor(resid)
    components, values, errors = collect(stream, direction, heads=heads, neurons=neurons)
    scale = head.before.abs().amax(1)
    check((errors[..., 0] / scale).amax(1), model, tolerance, what="logits")
    unembed = _contrast(lambda ids: weights.b_u[ids], right_ids, wrong_ids) * head.multiplier
    ends = {"b_unembed": unembed} if norm is None else {"b_norm": w @ norm.bias, "b_unembed": unembed}
    ends = {name: x for name, x in ends.items() if bool(x.any())}
    components += [Term(name, "bias") for name in ends]
    parts = torch.cat([values[:, :, 0, 0], *(x[None].float() for x in ends.values())])
    logit, capped_logit = (_mean_logit(x, right_ids, wrong_ids) for x in (head.before, head.logits))
    error = float(((parts.double().sum(0) - logit).abs() / scale).max())
    limit = allowed(model) if tolerance is None else tolerance
    if not error <= limit:
        raise BackendError(
            f"{model.info.name}: attributions miss the logit by {error:.1e} of the largest, over {limit:.0e}"
        )
    return Attribution(tuple(components), parts, logit, capped_logit, head.softcap, error)


def _head(stream: StreamRun, weights: Weights, resid: Float[Tensor, "batch d_model"]) -> LogitHead:
    """Logits before and after what the model does to them behind the unembedding."""
    assert stream.run.logits is not None  # the run had no `stop`
    rows = torch.arange(len(resid))
    logits = stream.run.logits[rows, stream.columns[:, 0].to(stream.run.logits.device)].float().cpu()
    final = resid if weights.final_norm is None else weights.final_norm(resid)
    return read_head(weights.unembed(final) + weights.b_u, logits, slack=2 * allowed(stream.model))


def _contrast(
    columns: Callable[[Tensor], Tensor], right: Int[Tensor, "batch k"], wrong: Int[Tensor, "batch m"] | None
) -> Float[Tensor, "batch ..."]:
    """Mean of something per token over the right answers, less that over the wrong ones."""
    mean = mean_over(columns, right)
    return mean if wrong is None else mean - mean_over(columns, wrong)


def _mean_logit(
    logits: Float[Tensor, "batch d_vocab"], right: Int[Tensor, "batch k"], wrong: Int[Tensor, "batch m"] | None
) -> Float[Tensor, " batch"]:
    def of(ids: Int[Tensor, "batch k"]) -> Tensor:
        real = ids >= 0
        return (logits.gather(1, ids.clamp(min=0)) * real).sum(1) / real.sum(1)

    return of(right) if wrong is None else of(right) - of(wrong)
