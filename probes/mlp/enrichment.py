"""What MLPs write at a subject's last token: how much the answer needs it, and which attribute can be read there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from interp.decompose import read_out
from interp.edits import Replace
from interp.measurement.answers import AnswerDirections, derangements
from interp.numerics import wide
from interp.patching.case import Case
from interp.shapes import brief
from interp.sites import Site
from interp.tasks import PromptTask
from interp.tasks.metrics import answer_logits, logit_diff


@dataclass(frozen=True, eq=False)
class SubjectWrites:
    """MLP writes and streams at one token of each prompt, whose answers are contrasted with the other attributes.

    Attributes:
        case: model and task. at: the token. layers: those whose MLP is told apart.
        writes: of each of these MLPs. streams: behind each of these layers. last: behind the last layer.
    """

    case: Case
    at: Int[Tensor, " batch"]
    layers: tuple[int, ...]
    writes: Float[Tensor, "layer batch d_model"]
    streams: Float[Tensor, "layer batch d_model"]
    last: Float[Tensor, "batch d_model"]

    __repr__ = brief

    @classmethod
    @torch.no_grad()
    def of(cls, case: Case, at: Int[Tensor, " batch"]) -> SubjectWrites:
        """One run, which stops behind the last layer."""
        model, last = case.model, case.model.info.n_layers - 1
        layers = tuple(i for i in range(last + 1) if "mlp_out" not in model.writes(i).missing)
        sites = [Site(kind, i) for i in layers for kind in ("mlp_out", "resid_post")]
        acts = model.run(case.task.clean, capture=[*sites, Site("resid_post", last)], stop=last).acts

        def here(site: Site) -> Float[Tensor, "batch d_model"]:
            x = acts[site]
            rows = torch.arange(len(case), device=x.device)
            return wide(x[rows, at.to(x.device)]).cpu()

        width = model.info.d_model
        parts = {k: [here(Site(k, i)) for i in layers] for k in ("mlp_out", "resid_post")}
        stacked = {k: torch.stack(x) if x else torch.zeros(0, len(case), width) for k, x in parts.items()}
        return cls(case, at, layers, stacked["mlp_out"], stacked["resid_post"], here(Site("resid_post", last)))

    @torch.no_grad()
    def needed(
        self, tasks: Sequence[PromptTask], *, at: Int[Tensor, " batch"] | None = None
    ) -> list[Float[ndarray, "batch row"]]:
        """Logits lost for each task's answers with writes at a token set to their mean over prompts.

        A column for each MLP, and a last one for all of them together.
        """
        places = self.at if at is None else at
        own = self if at is None else SubjectWrites.of(self.case, at)
        edits = [
            Replace(Site("mlp_out", layer), written.mean(0, keepdim=True).expand_as(written), positions=places)
            for layer, written in zip(self.layers, own.writes, strict=True)
        ]
        clean = self._logits([])
        runs = [self._logits(some) for some in (*([edit] for edit in edits), edits)]
        return [
            torch.stack([logit_diff(clean, t) - logit_diff(run, t) for run in runs], 1).double().cpu().numpy()
            for t in tasks
        ]

    def readable(self, *, draws: int, seed: int) -> list[Float[ndarray, "batch layer"]]:
        """Logits of the right over the other attributes in each write, by the unembedding; then of exchanged answers.

        The final norm's divisor is that of the stream behind the last layer at the same token.
        """
        directions = AnswerDirections.of(self.case, self.last, draws=draws, seed=seed)
        return [(self.writes * w).sum(-1).T.double().numpy() for w in (directions.own, *directions.others)]

    @torch.no_grad()
    def ranks(self) -> Float[ndarray, "batch layer"]:
        """Other attributes with a larger logit than the right one in the stream behind each layer, read as the last."""
        found = []
        for stream in self.streams:
            logits = read_out(self.case.model, stream).float().cpu()
            right, others = attribute_logits(logits, self.case.task)
            found.append((others > right[:, None]).sum(1))
        return torch.stack(found, 1).double().numpy()

    def _logits(self, edits: Sequence[Replace]) -> Float[Tensor, "batch d_vocab"]:
        logits = self.case.model.run(self.case.task.clean, edits=edits).logits
        assert logits is not None  # the run has no `stop`
        return answer_logits(logits, self.case.task).float()


def exchanged_tasks(task: PromptTask, *, draws: int, seed: int) -> list[PromptTask]:
    """The same prompts with other prompts' answers and the attributes these are compared with."""
    device = task.answers.device
    orders = [order.to(device) for order in derangements(len(task), draws=draws, seed=seed)]
    return [replace(task, answers=task.answers[o], wrong=task.wrong[o]) for o in orders]


def attribute_logits(
    logits: Float[Tensor, "batch d_vocab"], task: PromptTask
) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch other"]]:
    """The best right answer's logit, and those of the wrong ones, minus infinity where there are fewer."""

    def of(ids: Tensor) -> Tensor:
        ids = ids.cpu()
        return logits.cpu().gather(1, ids.clamp(min=0)).masked_fill(ids < 0, -torch.inf)

    return of(task.answers).amax(1), of(task.wrong)


def attribute_areas(logits: Float[Tensor, "batch d_vocab"], task: PromptTask) -> Float[ndarray, " batch"]:
    """Share of a prompt's other attributes whose logit is below the right one's, ties by half: 1 best, 1/2 chance."""
    right, others = attribute_logits(logits, task)
    real = task.wrong.cpu() >= 0
    below = (others < right[:, None]).double() + 0.5 * (others == right[:, None]).double()
    return np.asarray(((below * real).sum(1) / real.sum(1)).numpy())


def other_token(task: PromptTask, at: Int[Tensor, " batch"], *, seed: int) -> Int[Tensor, " batch"] | None:
    """A random token of each prompt that is neither this one nor END, the first only where there is no other."""
    mask = task.clean.mask.cpu()
    column = torch.arange(mask.shape[1])
    free = mask & (column != at.cpu()[:, None]) & (column != task.end.cpu()[:, None])
    if not bool(free.any(1).all()):
        return None
    first = column == task.clean.first.cpu()[:, None]
    chance = torch.rand(mask.shape, generator=torch.Generator().manual_seed(seed))
    score = chance.masked_fill(first, -1.0).masked_fill(~free, -2.0)
    return score.argmax(1).to(at.device)
