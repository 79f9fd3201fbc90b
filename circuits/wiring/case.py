"""A model on a task: what every method of this package works on, with what all of them need computed once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.graph.layout import Layout
from circuits.wiring.edges import Sent, sent
from circuits.wiring.ports import Ports, ports
from interp.batch import Batch
from interp.model import Model
from interp.tasks import PromptTask, metrics


@dataclass(frozen=True, eq=False)
class Case:
    """A model, the prompts of a task, and how an answer is judged.

    Attributes:
        model: any backend with its weights at hand.
        task: clean prompts and their corrupted twins, on the model's device.
        metric: name of what is measured, one value per prompt (see `interp.tasks.metrics`).
        ports: how the model's slots read the stream.
        reference: logits at END [batch d_vocab] that `kl` is measured against: the clean run's.
    """

    model: Model
    task: PromptTask
    metric: str
    ports: Ports
    reference: Float[Tensor, "batch d_vocab"] | None = None

    @classmethod
    def of(cls, model: Model, task: PromptTask, *, metric: str | None = None) -> Case:
        """The task's own metric where none is named.

        Raises:
            TaskError: no such metric, or a prompt the model cannot take.
            BackendError: a model whose layers cannot be told apart, with the reason.
        """
        metrics.find(metric or task.metric)
        here = task.to(model.batch(task.clean).ids.device)
        case = cls(model, here, metric or task.metric, ports(model))
        if case.metric != "kl":
            return case
        with torch.no_grad():
            logits = model.run(here.clean).logits
        assert logits is not None  # no `stop`
        return replace(case, reference=metrics.judged(logits, here))

    def __len__(self) -> int:
        return len(self.task)

    @property
    def layout(self) -> Layout:
        """Senders and slots of the model."""
        return self.ports.layout

    def select(self, rows: slice | list[int] | Tensor) -> Case:
        """The same case on some of its prompts."""
        part = self.task.select(rows)
        kept = None if self.reference is None else self.reference[torch.arange(len(self))[rows]]
        return replace(self, task=part, reference=kept)

    def batches(self, size: int) -> Iterator[Case]:
        """The prompts in portions, in order: a value per prompt does not depend on the size."""
        for first in range(0, len(self), size):
            yield self.select(slice(first, first + size))

    def repeated(self, times: int) -> Case:
        """Every prompt `times` over, one block after another, so that each block can carry edits of its own."""
        return self.select(torch.arange(len(self)).repeat(times))

    def value(self, logits: Float[Tensor, "..."] | None) -> Float[Tensor, " batch"]:
        """The metric of each prompt, from logits [batch pos d_vocab] or [batch d_vocab]."""
        assert logits is not None  # callers run to the end
        if self.metric == "kl":
            assert self.reference is not None  # set by `of`
            return metrics.kl(logits, self.task, reference=self.reference)
        return metrics.find(self.metric)(logits, self.task)

    @torch.no_grad()
    def measured(self, batch: Batch) -> Float[Tensor, " batch"]:
        """The metric on prompts that stand in the place of the task's."""
        return self.value(self.model.run(batch).logits)

    @cached_property
    def clean(self) -> Float[Tensor, " batch"]:
        """m(clean), one value per prompt."""
        return self.measured(self.task.clean)

    @cached_property
    def corrupt(self) -> Float[Tensor, " batch"]:
        """m(corrupt), one value per prompt."""
        return self.measured(self.task.corrupt)

    @cached_property
    def sent_clean(self) -> Sent:
        """What every sender writes on the clean prompts."""
        return sent(self.model, self.ports, self.task.clean)

    @cached_property
    def sent_corrupt(self) -> Sent:
        """What every sender writes on the corrupted prompts."""
        return sent(self.model, self.ports, self.task.corrupt)
