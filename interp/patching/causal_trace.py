"""Causal tracing: noise the subject's embeddings, put one clean state back, and see how much of the answer returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from interp.batch import Batch, Prompts
from interp.decompose.answers import Answers, token_ids
from interp.edits import Add, Edit, Replace
from interp.errors import SiteError, TaskError
from interp.model import Model
from interp.patching.effect_table import COLUMNS, effects
from interp.patching.names import component_of
from interp.results.provenance import recorded
from interp.results.results import Result, frame
from interp.sites import Site
from interp.tasks import fingerprint

KINDS = ("resid_post", "resid_mid", "resid_pre", "attn_out", "mlp_out")
TIMES = 3.0
"""Standard deviation of the noise, in those of the subjects' embeddings (Meng et al. 2022)."""
EXTRA = COLUMNS | {"token": "str"}
Subject = Any
"""Text that stands once in the prompt, positions, or a list of either with one for each prompt."""


@recorded
def causal_tracing(
    model: Model,
    prompts: Prompts,
    answer: Answers,
    *,
    subject: Subject,
    kind: str = "resid_post",
    window: int = 1,
    sd: float | None = None,
    n_noise: int = 10,
    batch_size: int = 64,
    seed: int = 0,
    edits: Sequence[Edit] = (),
) -> Result:
    """p(answer | noise, a := a_clean) - p(answer | noise), a one layer's state at one token; and its share.

    The subject's tokens are embedded with Gaussian noise added. Then a state of the clean run is put back, layer by
    layer and token by token: `value` is the indirect effect, `normalised` = (p_restored - p_noise) / (p_clean -
    p_noise), 0 where nothing comes back and 1 where all does. Columns `base` (noise alone), `other` (clean) and
    `patched` (restored) stand beside it. With a window of w layers the state is put back in the w layers around each.
    Reference: Meng et al. 2022 (arXiv 2202.05262), whose Figure 1 has w = 1 for the stream and 10 for MLP and
    attention. What misleads: the outcome depends on the noise (Zhang & Nanda 2023, arXiv 2309.16042), so try another
    `sd`; a state put back late at the last token is the answer itself; and where a fact can be restored is not where
    editing it works best (Hase et al. 2023, arXiv 2301.04213).

    Args:
        model: any backend.
        prompts: one, or several of one template: means are over prompts that have the position.
        answer: an id, a text of one token, or one per prompt.
        subject: a text that stands once in each prompt, positions, or a list with one of either for each prompt.
        kind: "resid_post" (the stream), "attn_out", "mlp_out", "resid_mid" or "resid_pre".
        window: layers put back together.
        sd: of the noise; three times that of the subjects' embeddings without.
        n_noise: draws, the same for every state; 2 at least.
        batch_size: rows of a forward, draws times positions; changes nothing but memory.
        seed: of noise and bootstrap.
        edits: changes under which the model runs.

    Returns:
        One row per layer and position, with intervals over prompts, or over draws of the noise where there is one
        prompt (`n` counts them).

    Raises:
        SiteError: no such kind, a subject outside the prompt.
        TaskError: a subject that is not there once, or one draw alone.

    >>> import interp
    >>> from circuits import causal_tracing
    >>> model = interp.load("zoo:planted-induction")
    >>> result = causal_tracing(model, [0, 5, 9, 17, 5], 9, subject=[2], n_noise=4)
    >>> float(result.table["normalised"].max()) > 0.9
    True
    """
    if kind not in KINDS:
        raise SiteError(f"{kind!r} cannot be traced; choose one of {', '.join(KINDS)}")
    if n_noise < 2 or window < 1:
        raise TaskError(f"n_noise={n_noise}, window={window}: two draws of noise and one layer at least")
    batch = model.batch(prompts)
    ids = token_ids(model, answer, len(batch.ids))[:, 0]
    rows = [batch.ids[i : i + 1][:, mask] for i, mask in enumerate(batch.mask)]
    places = _subjects(model, rows, subject)
    spread = _spread(model, rows, places) if sd is None else float(sd)
    longest = int(batch.mask.sum(1).max())
    layers = [i for i in model.info.layers_of(Site(kind)) if i is not None]
    traces = [
        _Trace(model, own, _noise(own, where, model.info.d_model, spread, n_noise, seed + b), int(ids[b]), kind, layers)
        for b, (own, where) in enumerate(zip(rows, places, strict=True))
    ]
    patched, base, other = _values(traces, window, batch_size, longest)
    statistics = effects(patched, base, other, seed=seed)
    table = [
        {**_labels(model, kind, layers[i // longest], i % longest, rows), "mode": "denoising", **effect}
        for i, effect in enumerate(statistics)
    ]
    data = {"task": "prompts of the caller's", "n_prompts": len(rows), "sha256": fingerprint([batch])}
    facts = {"method": "causal-tracing", "metric": "probability", "noise_sd": spread, "data": data, "subject": places}
    return Result(frame(table, extra=EXTRA), facts)


def _noise(
    ids: Tensor, where: Sequence[int], d_model: int, sd: float, n_noise: int, seed: int
) -> Float[Tensor, "draw pos d_model"]:
    """What is added to the embeddings of a prompt: Gaussian at the subject, nothing elsewhere."""
    noise = torch.zeros(n_noise, ids.shape[1], d_model)
    noise[:, where] = sd * torch.randn(n_noise, len(where), d_model, generator=torch.Generator().manual_seed(seed))
    return noise


def _values(
    traces: Sequence[_Trace], window: int, batch_size: int, longest: int
) -> tuple[Float[ndarray, "node unit"], Float[ndarray, " unit"], Float[ndarray, " unit"]]:
    """p restored of every layer and position, p with noise, p clean; units are draws of one prompt, or prompts."""
    one = len(traces) == 1
    n_layers, n_units = len(traces[0].layers), traces[0].n if one else len(traces)
    patched = np.full((n_layers, longest, n_units), np.nan)
    base, other = np.full(n_units, np.nan), np.full(n_units, np.nan)
    for b, trace in enumerate(traces):
        values = np.stack([trace.restored(i, window, batch_size) for i in range(n_layers)])
        slot: Any = slice(None) if one else b
        patched[:, : trace.length, slot] = values if one else values.mean(-1)
        base[slot], other[slot] = trace.noised if one else trace.noised.mean(), trace.clean
    return patched.reshape(-1, n_units), base, other


class _Trace:
    """One prompt: its clean run, and runs with noise, observed once; then runs in which a state is put back."""

    @torch.no_grad()
    def __init__(
        self, model: Model, ids: Tensor, noise: Float[Tensor, "draw pos d"], answer: int, kind: str, layers: list[int]
    ) -> None:
        self.model, self.ids, self.answer, self.kind, self.layers = model, ids, answer, kind, layers
        self.n, self.length = noise.shape[:2]
        sites = [Site(kind, i) for i in layers]
        clean = model.run(Batch.of(ids), capture=sites)
        self.states = [clean.acts[s][0] for s in sites]
        self.clean = float(self._p(clean.logits)[0])
        entries = [Site("resid_pre", i) for i in layers]
        rows = Batch.of(ids.repeat(self.n, 1))
        run = model.run(rows, capture=entries, edits=[Add(Site("embed"), noise.to(ids.device))])
        self.entries = [run.acts[s] for s in entries]
        self.noised = self._p(run.logits).double().cpu().numpy()

    def _p(self, logits: Tensor | None) -> Float[Tensor, " row"]:
        assert logits is not None  # runs go to the end
        return logits[:, -1].float().softmax(-1)[:, self.answer]

    @torch.no_grad()
    def restored(self, number: int, window: int, batch_size: int) -> Float[ndarray, "pos draw"]:
        """p(answer) with the clean states of the layers around number put back at each position."""
        first = max(0, number - (window - 1) // 2)
        last = min(len(self.layers), number + window // 2 + 1)
        parts = []
        for positions in torch.arange(self.length).split(max(1, batch_size // self.n)):
            at = positions.repeat_interleave(self.n).to(self.ids.device)
            back = [
                Replace(Site(self.kind, self.layers[i]), self.states[i][at.to(self.states[i].device)], positions=at)
                for i in range(first, last)
            ]
            start = (self.layers[first], self.entries[first].repeat(len(positions), 1, 1))
            run = self.model.run(Batch.of(self.ids.repeat(len(at), 1)), start=start, edits=back)
            parts.append(self._p(run.logits).unflatten(0, (-1, self.n)))
        return torch.cat(parts).double().cpu().numpy()


def _labels(model: Model, kind: str, layer: int, position: int, rows: Sequence[Tensor]) -> dict[str, Any]:
    """What row of the table it is; the token's text where all prompts that have the position agree."""
    site = Site(kind, layer)
    here = {int(row[0, position]) for row in rows if position < row.shape[1]}
    text = str(model.tokenizer.decode(list(here))) if len(here) == 1 and model.tokenizer is not None else None
    return {
        "analysis": "causal_tracing",
        "variant": kind,
        "site": str(site),
        "layer": layer,
        "component": component_of(site, group=1),
        "position": position,
        "token": text,
        "unit": "probability",
    }


@torch.no_grad()
def _spread(model: Model, rows: Sequence[Tensor], places: Sequence[list[int]]) -> float:
    """Three times the standard deviation of what the subjects' tokens are embedded as, over all channels."""
    embeddings = [
        model.run(Batch.of(row), capture=["embed"], stop=0)["embed"][0, where].float().cpu()
        for row, where in zip(rows, places, strict=True)
    ]
    return TIMES * float(torch.cat(embeddings).std())


def _subjects(model: Model, rows: Sequence[Tensor], subject: Subject) -> list[list[int]]:
    """Positions of each prompt's subject.

    Raises:
        TaskError: not one for each prompt, or a text that is not there once.
        SiteError: a position outside its prompt.
    """
    each = isinstance(subject, list | tuple) and bool(subject) and not isinstance(subject[0], int)
    if each and len(subject) != len(rows):
        raise TaskError(f"{len(subject)} subjects for {len(rows)} prompts; give one, or one for each")
    places = []
    for row, own in zip(rows, subject if each else [subject] * len(rows), strict=True):
        n = row.shape[1]
        where = _span(model, row[0].tolist(), own) if isinstance(own, str) else [int(p) for p in own]
        if not where or not all(-n <= p < n for p in where):
            raise SiteError(f"subject at {where}: expected positions of a prompt of {n} tokens")
        places.append(sorted({p % n for p in where}))
    return places


def _span(model: Model, ids: list[int], text: str) -> list[int]:
    """Positions of the tokens that make up a text, spaces around it aside."""
    if model.tokenizer is None:
        raise TaskError("this checkpoint has no tokenizer: give the subject's positions instead of text")
    n = len(ids)
    spans = [
        list(range(i, j))
        for i in range(n)
        for j in range(i + 1, n + 1)
        if str(model.tokenizer.decode(ids[i:j])).strip() == text.strip()
    ]
    shortest = [s for s in spans if not any(set(o) < set(s) for o in spans)]
    if len(shortest) != 1:
        raise TaskError(f"subject {text!r} stands {len(shortest)} times in the prompt; give its positions")
    return shortest[0]
