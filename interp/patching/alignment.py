"""Distributed alignment search: the subspace of an activation whose exchange makes the model give the other answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from interp.edits import Edit, Replace
from interp.errors import NotFinite, SchemaError, SiteError, TaskError
from interp.model import Model
from interp.patching.case import Case
from interp.results.provenance import recorded
from interp.results.results import frame
from interp.results.stats import LEAST_NULLS, bootstrap_mean, p_against_nulls
from interp.sites import PER_HEAD, UNLAYERED, Site
from interp.tasks import PromptTask
from interp.tasks.metrics import answer_logits

if TYPE_CHECKING:
    import plotly.graph_objects as go

REFUSED = ("pattern", "norm_scale", *UNLAYERED)
WIDTH_COST = 1.0
"""What a boundless width costs in the loss, per share of the site's width."""


@dataclass(frozen=True, eq=False)
class Alignment:
    """A subspace and what its exchange does on held-out pairs, beside its controls.

    Attributes:
        basis: orthonormal columns of the site's space.
        site: where. role: token role of the task whose position it stands at.
        rows: one row per variant; what they are stands at `distributed_alignment`.
        losses: of each step.
        provenance: of the call.
    """

    basis: Float[Tensor, "d rank"]
    site: Site
    role: str
    rows: pd.DataFrame
    losses: tuple[float, ...]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        """One line."""
        value = float(self.rows["value"].iloc[0])
        return f"<Alignment {self.site} at {self.role}: rank {self.rank}, held-out accuracy {value:.3g}>"

    @property
    def rank(self) -> int:
        """Dimensions of the subspace."""
        return self.basis.shape[1]

    def table(self) -> pd.DataFrame:
        """One row per variant: the subspace first, then its controls."""
        return self.rows.copy()

    def exchange(self, base: Float[Tensor, "*batch d"], source: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """base + (source - base) B B^T: the base with the source's part in the subspace, for an edit of one's own."""
        return exchanged(base, source, self.basis.to(base))

    def angles(self, directions: Float[Tensor, "direction d"]) -> Float[Tensor, " angle"]:
        """Principal angles, in degrees, to the span of some vectors, smallest first; zeros where one holds the other.

        Raises:
            SiteError: vectors of another width than the site's.
        """
        vectors = torch.atleast_2d(torch.as_tensor(directions)).to(self.basis)
        if vectors.shape[-1] != len(self.basis):
            raise SiteError(f"{self.site} is {len(self.basis)} wide; got vectors of {vectors.shape[-1]}")
        span = torch.linalg.svd(vectors, full_matrices=False)
        other = span.Vh[span.S / span.S.max() > 1e-6]
        cosines = torch.linalg.svdvals(other.double() @ self.basis.double()).clamp(0, 1)
        return torch.rad2deg(torch.arccos(cosines)).float()

    def plot(self) -> go.Figure:
        """Interchange accuracy of the subspace and of its controls, with intervals."""
        from interp.plots import top_heads
        from interp.plots.titles import heading, titled

        of = f"distributed alignment ({self.site} at {self.role})"
        figure = top_heads(self.rows.assign(component=self.rows["variant"]))
        return titled(figure, heading(self.rows, self.provenance, of=of))


@recorded
def distributed_alignment(
    model: Model,
    task: PromptTask,
    *,
    site: str | Site,
    rank: int | None = 1,
    role: str = "END",
    held_out: float = 0.3,
    steps: int = 100,
    rate: float = 0.1,
    batch_size: int = 32,
    n_random: int = 20,
    within: Float[Tensor, "d width"] | None = None,
    seed: int = 0,
    edits: Sequence[Edit] = (),
) -> Alignment:
    """Share of held-out pairs in which x + (x' - x) B B^T brings the clean answer into the corrupted run, B learned.

    x and x' are the activation at a site, at a role, in the corrupted and in the clean run. B, orthonormal [d rank], is
    trained by Adam on -log p(clean answer), p the softmax over the right and the wrong answers; a pair counts when the
    right answer's logit is above that of every wrong one. With rank=None the width is learned as well (boundless): B is
    a rotation of the whole space, and column i is exchanged by the share sigmoid((w - i) / T), w learned with a cost
    per width and T falling, until columns 0 to w are what is exchanged. References: Geiger et al. 2023 (arXiv
    2303.02536), Wu et al. 2023 (arXiv 2305.08809).

    Training finds a subspace for almost any answer if there are directions enough (Makelov et al. 2023, arXiv
    2311.17030): the control trains as long on answers dealt out to other pairs, and random subspaces of the same rank
    say what any exchange of so many dimensions does. Of several things that a corruption moves, any may be found.

    Args:
        model: any backend with gradients.
        task: pairs; enough of them that a third can be held out.
        site: one layer and, for heads, one head: "L3.resid_post", "L2H5.z".
        rank: dimensions of the subspace; None: learned.
        role: of the task's token roles, whose position is exchanged.
        held_out: share of pairs that are not trained on.
        steps: of Adam.
        rate: of Adam, on a matrix of standard normal entries.
        batch_size: pairs of a step.
        n_random: random subspaces; five at least.
        within: orthonormal columns whose span B is sought in, as of `difference_span`; the whole space without.
        seed: of the split, B's start, the batches and the random subspaces.
        edits: changes under which the model runs.

    Returns:
        Rows by variant, value the accuracy with its 95 % interval over held-out pairs: "subspace" (null and p: of the
        random ones), "train" (on the pairs trained on), "whole" (all dimensions exchanged), "random" (mean of them),
        "shuffled" (trained and judged on other pairs' answers), "none" (the corrupted run as it is).

    Raises:
        SiteError: no such site, or several layers or heads.
        SchemaError: a rank beyond the width, columns that do not fit the site, or a share that leaves a side empty.
        TaskError: no such role, or too few random subspaces.
    """
    place = _place(model, site)
    _enough(n_random)
    pairs = _Pairs(Case.of(model, task), place, role, batch_size)
    width, rng = pairs.base.shape[-1], np.random.default_rng(seed)
    span = _columns(within, width, place, rank)
    n_test = round(held_out * len(task))
    if not 0 < n_test < len(task):
        raise SchemaError(f"held_out={held_out} of {len(task)} pairs leaves one side empty")
    order, deal = (torch.from_numpy(rng.permutation(len(task))) for _ in range(2))
    test, train, own = order[:n_test], order[n_test:], torch.arange(len(task))
    basis, losses = _trained(pairs, train, own, rank, (steps, rate), span, seed=seed)
    wrong_basis, _ = _trained(pairs, train, deal, basis.shape[1], (steps, rate), span, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    random = [torch.linalg.qr(torch.randn(basis.shape, generator=generator)).Q for _ in range(n_random)]
    draws = np.stack([pairs.right(test, own, b) for b in random])
    variants = {
        "subspace": (pairs.right(test, own, basis), basis.shape[1]),
        "train": (pairs.right(train, own, basis), basis.shape[1]),
        "whole": (pairs.right(test, own, torch.eye(width)), width),
        "random": (draws.mean(0), basis.shape[1]),
        "shuffled": (pairs.right(test, deal, wrong_basis), basis.shape[1]),
        "none": (pairs.right(test, own, torch.zeros(width, 1)), 0),
    }
    rows = [_row(place, name, *of, seed=seed) for name, of in variants.items()]
    rows[0] |= _significance(rows[0]["value"], draws.mean(1))
    return Alignment(basis, place, role, frame(rows, extra={"rank": "Int64"}), losses, {"method": "alignment-search"})


def exchanged(
    base: Float[Tensor, "*batch d"], source: Float[Tensor, "*batch d"], basis: Float[Tensor, "d rank"], share: Any = 1.0
) -> Float[Tensor, "*batch d"]:
    """base + (source - base) B diag(share) B^T."""
    return base + ((source - base) @ basis * share) @ basis.mT


def difference_span(
    clean: Float[Tensor, "pair d"], corrupt: Float[Tensor, "pair d"], *, least: float = 0.05
) -> Float[Tensor, "d width"]:
    """Principal directions of the differences between two runs whose singular values are `least` of the largest.

    The differences are taken as they are, their mean included. Zero columns where the runs do not differ.
    """
    parts = torch.linalg.svd((clean - corrupt).double(), full_matrices=False)
    keep = (least * parts.S.max() <= parts.S) & (parts.S > 0)
    return parts.Vh[keep].mT.float()


def _columns(within: Tensor | None, width: int, site: Site, rank: int | None) -> Float[Tensor, "d width"] | None:
    """The columns as they are used, once they are orthonormal, of the site's width, and as many as the rank."""
    room = width if within is None else within.shape[-1]
    if rank is not None and not 0 < rank <= room:
        raise SchemaError(f"rank {rank}: expected 1 to {room}, the width of {site if within is None else 'within'}")
    if within is None:
        return None
    if within.ndim != 2 or len(within) != width or within.shape[1] > width:  # noqa: PLR2004 - a matrix
        raise SchemaError(
            f"within: expected columns of {width} numbers, the width of {site}; got {tuple(within.shape)}"
        )
    columns = within.detach().float()
    if float((columns.mT @ columns - torch.eye(columns.shape[1]).to(columns)).abs().max()) > 1e-3:  # noqa: PLR2004
        raise SchemaError("within: its columns are not orthonormal; torch.linalg.qr(x).Q has columns that are")
    return columns


def _significance(value: float, null: Float[ndarray, " draw"]) -> dict[str, Any]:
    """Columns null, p and q of the one subspace there is."""
    return {"null": float(null.mean()), **dict.fromkeys("pq", p_against_nulls(np.array(value), null))}


def _enough(n_random: int) -> None:
    if n_random < LEAST_NULLS:
        raise TaskError(f"{n_random} random subspaces are too few for a test; take {LEAST_NULLS} at least")


def _place(model: Model, site: str | Site) -> Site:
    place = Site.parse(site) if isinstance(site, str) else site
    if place.kind in REFUSED or place.position is not None:
        raise SiteError(f"{place}: a subspace is of an activation inside a layer, and its token is said by `role`")
    if place.first is None or place.first != place.last:
        raise SiteError(f"{place}: name one layer, like L0.{place.kind}")
    if place.kind in PER_HEAD and place.head is None:
        raise SiteError(f"{place}: name one head, like L{place.first}H0.{place.kind}")
    model.info.layers_of(place)
    return place


class _Pairs:
    """Both runs of every pair, observed once: the activation at the role, and the corrupted stream that enters."""

    @torch.no_grad()
    def __init__(self, case: Case, site: Site, role: str, batch_size: int) -> None:
        self.case, self.site, self.role = case, site, role
        assert site.first is not None  # `_place` refuses others
        self.layer: int = site.first
        base, source, resid = [], [], []
        entry = Site("resid_pre", self.layer)
        for part in case.batches(batch_size):
            at = part.task.role(role)
            if bool((at < 0).any()):
                raise TaskError(f"{case.task.name}: not every prompt has the role {role!r}; select those that have")
            rows = torch.arange(len(part), device=at.device)
            corrupt = case.model.run(part.task.corrupt, capture=[site, entry], stop=self.layer)  # they may be one
            clean = case.model.run(part.task.clean, capture=[site], stop=self.layer)
            base.append(corrupt[site][rows.to(corrupt[site].device), at.to(corrupt[site].device)])
            source.append(clean[site][rows.to(clean[site].device), at.to(clean[site].device)])
            width = case.task.clean.ids.shape[1]
            resid.append(torch.nn.functional.pad(corrupt[entry], (0, 0, 0, width - corrupt[entry].shape[1])))
        self.base, self.source, self.resid = (torch.cat(x) for x in (base, source, resid))
        self.batch_size = batch_size

    def logits(self, rows: Int[Tensor, " some"], value: Tensor, *, gradients: bool) -> Float[Tensor, "some d_vocab"]:
        """Logits at END of the corrupted prompts with the activation at the role set."""
        part = self.case.task.select(rows)
        run = self.case.model.run(
            part.corrupt,
            start=(self.layer, self.resid[rows][:, : part.corrupt.ids.shape[1]]),
            edits=[Replace(self.site, value, positions=part.role(self.role))],
            gradients=gradients,
        )
        return answer_logits(run.logits, part)  # type: ignore[arg-type]  # no `stop`

    def candidates(
        self, rows: Int[Tensor, " some"], deal: Int[Tensor, " pair"]
    ) -> tuple[Int[Tensor, "some k"], Bool[Tensor, "some k"], int]:
        """Ids of right and wrong answers, which of them exist, and how many columns are right ones."""
        task = self.case.task
        ids = torch.cat([task.answers, task.wrong], 1)[deal[rows].to(task.answers.device)]
        return ids.clamp(min=0), ids >= 0, task.answers.shape[1]

    def loss(self, rows: Tensor, deal: Tensor, basis: Tensor, share: Any) -> Tensor:
        """-log of the right answers' share among right and wrong ones, mean over pairs."""
        value = exchanged(self.base[rows], self.source[rows], basis.to(self.base), share)
        ids, real, n_right = self.candidates(rows, deal)
        chosen = self.logits(rows, value, gradients=True).float().gather(1, ids).masked_fill(~real, -torch.inf)
        return (chosen.logsumexp(1) - chosen[:, :n_right].logsumexp(1)).mean()

    @torch.no_grad()
    def right(self, rows: Tensor, deal: Tensor, basis: Tensor) -> Float[ndarray, " some"]:
        """1 where the best right answer is above every wrong one, for each pair."""
        verdicts = []
        for part in rows.split(self.batch_size):
            value = exchanged(self.base[part], self.source[part], basis.to(self.base))
            ids, real, n_right = self.candidates(part, deal)
            chosen = self.logits(part, value, gradients=False).float().gather(1, ids).masked_fill(~real, -torch.inf)
            verdicts.append(chosen[:, :n_right].amax(1) > chosen[:, n_right:].amax(1))
        return torch.cat(verdicts).double().cpu().numpy()


def _trained(
    pairs: _Pairs,
    rows: Tensor,
    deal: Tensor,
    rank: int | None,
    schedule: tuple[int, float],
    within: Float[Tensor, "d width"] | None,
    *,
    seed: int,
) -> tuple[Float[Tensor, "d rank"], tuple[float, ...]]:
    """A basis after so many steps of Adam, and the losses; with rank=None as wide as its learned boundary."""
    (steps, rate), batch_size = schedule, pairs.batch_size
    outer = None if within is None else within.to(pairs.base.device)
    width = pairs.base.shape[-1] if outer is None else outer.shape[1]
    generator = torch.Generator().manual_seed(seed)
    free = torch.randn(width, rank or width, generator=generator).to(pairs.base.device, torch.float32).requires_grad_()
    boundary = torch.tensor(0.5, device=free.device, requires_grad=True)  # in shares of the width
    groups = [{"params": [free]}, *([] if rank else [{"params": [boundary], "lr": rate / 10}])]
    optimizer = torch.optim.Adam(groups, lr=rate)
    places = torch.arange(width, device=free.device) + 0.5
    losses: list[float] = []
    queue = rows[:0]
    with pairs.case.model.frozen():
        for step in range(steps):
            if len(queue) < min(batch_size, len(rows)):
                queue = torch.cat([queue, rows[torch.randperm(len(rows), generator=generator)]])
            part, queue = queue[:batch_size], queue[batch_size:]
            inner = torch.linalg.qr(free).Q
            basis = inner if outer is None else outer @ inner
            share: Any = 1.0
            if rank is None:
                temperature = width * 0.1 ** (1 + 2 * step / max(steps - 1, 1))  # from a tenth to a thousandth of it
                share = ((boundary * width - places) / temperature).sigmoid()
            loss = pairs.loss(part, deal, basis, share)
            if not bool(loss.isfinite()):
                raise NotFinite(f"the loss of step {step} is {float(loss.detach())}; take a smaller rate")
            optimizer.zero_grad()
            (loss if rank else loss + WIDTH_COST * boundary).backward()
            optimizer.step()
            boundary.data.clamp_(1 / width, 1.0)
            losses.append(float(loss.detach()))
    inner = torch.linalg.qr(free.detach()).Q
    basis = (inner if outer is None else outer @ inner).cpu()
    if rank is None:
        basis = basis[:, : max(1, min(width, round(float(boundary.detach()) * width)))]
    return basis, tuple(losses)


def _row(site: Site, variant: str, right: Float[ndarray, " pair"], rank: int, *, seed: int) -> dict[str, Any]:
    mean = bootstrap_mean(right[:, None], seed=seed)
    return {
        "analysis": "distributed_alignment",
        "variant": variant,
        "layer": site.first,
        "head": site.head,
        "component": str(site),
        "value": float(mean.mean[0]),
        "se": float(mean.se[0]),
        "ci_low": float(mean.low[0]),
        "ci_high": float(mean.high[0]),
        "n": mean.n,
        "unit": "fraction",
        "rank": rank,
    }
