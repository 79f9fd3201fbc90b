"""`Knob`: one direction that says whether a model answers by its context or by what it knows; how it is found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.edits import Apply, Edit, Replace
from interp.errors import SchemaError, nearest
from interp.model import Model
from interp.patching.alignment import difference_span, distributed_alignment, exchanged
from interp.shapes import brief
from interp.sites import Site
from interp.tasks import PromptTask
from interp.tasks.metrics import logit_margin

ANSWERS = ("context", "memory")


@dataclass(frozen=True, eq=False)
class Knob:
    """A direction of the stream, and where it stands when the context or memory is asked for.

    Attributes:
        layer: behind which. direction: unit vector u.
        context, memory: mean of x . u over prompts that ask for the one and for the other.
        trained: whether u was trained; else it is the mean difference.
    """

    layer: int
    direction: Float[Tensor, " d_model"]
    context: float
    memory: float
    trained: bool = False

    __repr__ = brief

    @property
    def site(self) -> Site:
        """The stream behind the layer."""
        return Site("resid_post", self.layer)

    def edit(self, to: str) -> Edit:
        """x -> x + (c - x . u) u at the last token, c that of "context" or of "memory"; for any run of the model.

        Raises:
            SchemaError: neither of the two.
        """
        if to not in ANSWERS:
            raise SchemaError(f"a knob is turned to 'context' or 'memory'; got {to!r}: {nearest(str(to), ANSWERS)}")
        value = self.context if to == "context" else self.memory

        def turn(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
            u = self.direction.to(x)
            return x + (value - x @ u)[..., None] * u

        return Apply(self.site, turn, positions=-1)


@dataclass(frozen=True, eq=False)
class IntentRuns:
    """Streams of pairs of prompts that differ in what they ask for: clean the context, corrupt memory.

    Attributes:
        model: any. task: pairs; the right answer is the context's, the wrong one is known.
        clean, corrupt: the stream at END behind each layer.
        obeyed: pairs of which the model does as both prompts ask.
    """

    model: Model
    task: PromptTask
    clean: Float[Tensor, "layer pair d_model"]
    corrupt: Float[Tensor, "layer pair d_model"]
    obeyed: Bool[Tensor, " pair"]

    __repr__ = brief

    @classmethod
    @torch.no_grad()
    def of(cls, model: Model, task: PromptTask) -> IntentRuns:
        """One run of either kind."""
        sites = [Site("resid_post", layer) for layer in range(model.info.n_layers)]
        streams, prefers = [], []
        for batch in (task.clean, task.corrupt):
            run = model.run(batch, capture=sites)
            end = task.end.to(run.acts[sites[0]].device)
            at = torch.arange(len(task), device=end.device)
            streams.append(torch.stack([run.acts[s][at, end] for s in sites]).float().cpu())
            prefers.append(_context_first(run.logits, task))
        return cls(model, task, streams[0], streams[1], prefers[0] & ~prefers[1])

    def select(self, rows: Int[Tensor, " some"]) -> IntentRuns:
        """Some of the pairs."""
        task, model = self.task.select(rows), self.model
        return IntentRuns(model, task, self.clean[:, rows], self.corrupt[:, rows], self.obeyed[rows])

    def knob(self, layer: int, direction: Float[Tensor, " d_model"], *, trained: bool = False) -> Knob:
        """A knob along a direction, with its values on these pairs, turned so that the context is above."""
        high, low = (float((x[layer] @ direction).mean()) for x in (self.clean, self.corrupt))
        sign = 1.0 if high >= low else -1.0
        return Knob(layer, sign * direction, sign * high, sign * low, trained)

    @torch.no_grad()
    def swapped(self, layer: int, basis: Float[Tensor, "d_model rank"]) -> Float[np.ndarray, " pair"]:
        """Share (0, a half, 1) of a pair's two runs that give the other's answer once they exchange the subspace."""
        a, b = self.clean[layer], self.corrupt[layer]
        return self._flipped(layer, exchanged(b, a, basis), exchanged(a, b, basis))

    @torch.no_grad()
    def turned(self, knob: Knob) -> Float[np.ndarray, " pair"]:
        """The same where each run's knob is set to the value of the other intent, the same for all prompts."""
        runs = [self._prefers(batch, [knob.edit(to)]) for batch, to in self._ways()]
        return _share(runs[0], ~runs[1])

    def _ways(self) -> tuple[tuple[object, str], tuple[object, str]]:
        return (self.task.corrupt, "context"), (self.task.clean, "memory")

    def _flipped(self, layer: int, to_context: Tensor, to_memory: Tensor) -> Float[np.ndarray, " pair"]:
        site = Site("resid_post", layer)
        runs = [
            self._prefers(batch, [Replace(site, value, positions=self.task.end)])
            for batch, value in ((self.task.corrupt, to_context), (self.task.clean, to_memory))
        ]
        return _share(runs[0], ~runs[1])

    def _prefers(self, batch: object, edits: Sequence[Edit]) -> Bool[Tensor, " pair"]:
        logits = self.model.run(batch, edits=edits).logits  # type: ignore[arg-type]
        return _context_first(logits, self.task)


def fit_knob(runs: IntentRuns, layer: int, *, steps: int, n_random: int, train: bool, seed: int) -> Knob:
    """A knob of a layer: the direction whose exchange brings the context's answer into prompts that ask for memory.

    It is sought among the principal directions of the pairs' differences (`difference_span`), by `steps` of
    `distributed_alignment`. Without `train`, or where the mean difference flips more of these pairs, it is that.
    """
    difference = runs.clean[layer] - runs.corrupt[layer]
    direction = torch.nn.functional.normalize(difference.mean(0), dim=0)
    span = difference_span(runs.clean[layer], runs.corrupt[layer])
    if train and span.shape[1]:
        found = distributed_alignment(
            runs.model,
            runs.task,
            site=Site("resid_post", layer),
            rank=1,
            steps=steps,
            within=span,
            n_random=n_random,
            seed=seed,
        )
        flips, of_mean = (runs.swapped(layer, b).mean() for b in (found.basis, direction[:, None]))
        if flips >= of_mean:
            return runs.knob(layer, found.basis[:, 0], trained=True)
    return runs.knob(layer, direction)


def _share(to_context: Bool[Tensor, " pair"], to_memory: Bool[Tensor, " pair"]) -> Float[np.ndarray, " pair"]:
    return ((to_context.double() + to_memory.double()) / 2).numpy()


def _context_first(logits: Tensor | None, task: PromptTask) -> Bool[Tensor, " pair"]:
    """Whether the right answer is above every wrong one."""
    assert logits is not None  # no run here has a `stop`
    return (logit_margin(logits, task) > 0).cpu()
