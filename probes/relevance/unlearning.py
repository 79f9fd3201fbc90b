"""Forgetting by a few weights: those of largest gradient moved once or trained, beside as many at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from interp.edits import Edit
from interp.measurement.removal import intervention_rows
from interp.measurement.tuning import Entries, tune
from interp.model import Model
from interp.shapes import brief
from interp.weights.changes import Matrix, WeightMatrices
from probes.relevance.gradient_parts import summed_gradient
from probes.relevance.paragraphs import Paragraphs

FORGOTTEN = 0.1
"""Exact match at which a step is long enough."""
SIZES = [2.0 ** (k / 2) for k in range(-12, 5)]
"""Steps that are tried, in root mean squares of all weights."""
ENOUGH = 1.0
"""Nats of loss at which a paragraph counts as forgotten in training."""
KEEP = 3.0
"""Weight of the others' loss in training."""
RATE = 0.3
"""Learning rate of training, in root mean squares of all weights."""


@dataclass(frozen=True, eq=False)
class Unlearning:
    """The weights of largest |d NLL(known) / d w|, the mean over paragraphs, and what moving them does.

    Attributes:
        known: paragraphs to be forgotten. used, held_out: others; training has the first half alone.
        gradient: of NLL(known). top: entries of largest gradient. step: how far each is moved.
        before: losses of the paragraphs known, and of those held out, as the model is.
    """

    model: Model
    matrices: WeightMatrices
    known: Paragraphs
    used: Paragraphs
    held_out: Paragraphs
    gradient: Mapping[Matrix, Float[Tensor, "..."]]
    top: Entries
    step: float
    before: tuple[Float[ndarray, " paragraph"], Float[ndarray, " other"]]

    __repr__ = brief

    @classmethod
    def of(
        cls, model: Model, matrices: WeightMatrices, known: Paragraphs, others: Paragraphs, *, share: float, seed: int
    ) -> Unlearning:
        """With the shortest step, of those tried, after which fewer than one in ten of the paragraphs are known."""
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(others)))
        used, held_out = (others.select(rows) for rows in order.tensor_split(2))
        mean = np.full(len(known), 1 / len(known))
        gradient = {k: x.cpu() for k, x in summed_gradient(model, matrices, known, mean).items()}
        n = sum(x.numel() for x in gradient.values())
        top = Entries.largest(gradient, max(1, round(share * n)))
        before = known.measure(model)[1], held_out.measure(model)[1]
        rms = (sum(float(x.square().sum()) for x in matrices.values.values()) / n) ** 0.5
        made = cls(model, matrices, known, used, held_out, gradient, top, 0.0, before)
        matches = []
        for size in SIZES:
            matches.append(float(known.measure(model, made.moved(top, size * rms))[0].mean()))
            if matches[-1] < FORGOTTEN:
                break
        step = SIZES[int(np.argmin(matches))] * rms
        return cls(model, matrices, known, used, held_out, gradient, top, step, before)

    @property
    def n_weights(self) -> int:
        """Entries of all matrices."""
        return sum(x.numel() for x in self.gradient.values())

    def random(self, rng: np.random.Generator) -> Entries:
        """As many entries of each matrix, none of the top ones while there are others."""
        return self.top.matched(self.gradient, rng)

    def moved(self, entries: Entries, step: float) -> list[Edit]:
        """Edits that move each entry by a step up the gradient."""
        signs = [self.gradient[name].flatten()[at].sign() for name, at in entries.index.items()]
        return self.matrices.edits(entries.filled(self.matrices.values, step * torch.cat(signs)))

    def selective(self, entries: Entries) -> Float[ndarray, " paragraph"]:
        """Rise of each known paragraph's NLL less the mean rise of those held out."""
        edits = self.moved(entries, self.step)
        rise, other = (
            part.measure(self.model, edits)[1] - before
            for part, before in zip((self.known, self.held_out), self.before, strict=True)
        )
        return rise - other.mean()

    def trained(self, entries: Entries, n_steps: int) -> list[Edit]:
        """Edits of the entries after training: NLL(known) up to one nat, NLL(used others) as it was."""

        def loss(edits: Sequence[Edit]) -> Tensor:
            forget, keep = (part.losses(_logits(self.model, part, edits)) for part in (self.known, self.used))
            return (ENOUGH - forget).clamp(min=0).mean() + KEEP * keep.mean()

        rms = (sum(float(x.square().sum()) for x in self.matrices.values.values()) / self.n_weights) ** 0.5
        changes = tune(self.model, self.matrices, entries, loss, steps=n_steps, learning_rate=RATE * rms)
        return self.matrices.edits(changes)

    def metrics(self, edits: Sequence[Edit] = ()) -> dict[str, float]:
        """What the intervention table says."""
        known, loss = self.known.measure(self.model, edits)
        other = self.held_out.measure(self.model, edits)[1]
        return {"exact_match": known.mean(), "known_loss": loss.mean(), "other_loss": other.mean()}

    def rows(self, *, n_steps: int, n_random: int, seed: int) -> list[dict[str, object]]:
        """Intervention rows: moved, and trained, beside random sets."""
        rng, clean = np.random.default_rng(seed), self.metrics()
        sets = [self.random(rng) for _ in range(n_random)]
        rows: list[dict[str, object]] = []
        control = "as many of each matrix" if sets else "none"
        for name, change in (("moved", self._once), ("trained", lambda entries: self.trained(entries, n_steps))):
            if name == "trained" and not n_steps:
                continue
            edited, *controls = [self.metrics(change(entries)) for entries in (self.top, *sets)]
            rows += intervention_rows(
                f"{name}: {len(self.top)} weights", len(self.top), control, clean, edited, controls
            )
        return rows

    def _once(self, entries: Entries) -> list[Edit]:
        return self.moved(entries, self.step)


def _logits(model: Model, part: Paragraphs, edits: Sequence[Edit]) -> Tensor:
    logits = model.run(part.batch, edits=edits, gradients=True).logits
    assert logits is not None  # no `stop`
    return logits
