"""A model on a task: prompts in pairs and how an answer is judged, what patching and attribution both start from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.batch import Batch
from interp.edits import refuse_rows
from interp.errors import TaskError
from interp.model import Model
from interp.parallel import cached_property
from interp.shapes import brief
from interp.tasks import PromptTask, metrics
from interp.weights.weights import Weights

Own = TypeVar("Own", bound="Case")
"""A case of the same class; `Self` is refused by beartype, which checks shapes in tests."""


@dataclass(frozen=True, eq=False)
class Case:
    """A model, the prompts of a task, and how an answer is judged.

    Attributes:
        model: any backend.
        task: clean prompts and their corrupted twins, on the model's device.
        metric: name of what is measured, one value per prompt (see `interp.tasks.metrics`).
        reference: logits at END [batch d_vocab] that `kl` is measured against: the clean run's.
        own: the function behind `metric` where it is the caller's own; None for those of `interp.tasks.metrics`.
    """

    model: Model
    task: PromptTask
    metric: str
    reference: Float[Tensor, "batch d_vocab"] | None = None
    own: metrics.Metric | None = None

    __repr__ = brief

    @classmethod
    def of(cls: type[Own], model: Model, task: PromptTask, *, metric: metrics.AnyMetric | None = None) -> Own:
        """The task's own metric where none is named or passed.

        Raises:
            TaskError: no such metric, a prompt the model cannot take, or what is no task.
            SiteError: an edit in force that is of rows of one batch.
        """
        if not isinstance(task, PromptTask):
            raise TaskError(
                f"a task is a PromptTask; got {type(task).__name__}: make one of two prompts of your own by "
                "interp.pair(model, clean, corrupt, answer, wrong)"
            )
        refuse_rows(model.edits, "patching")
        chosen = task.metric if metric is None else metric
        function, name = metrics.function_of(chosen), metrics.name_of(chosen)
        device_task = task.to(model.batch(task.clean).ids.device)
        case = cls(model, device_task, name, own=None if name in metrics.METRICS else function)
        if case.metric != "kl":
            return case
        with torch.no_grad():
            logits = model.run(device_task.clean).logits
        assert logits is not None  # no `stop`
        return replace(case, reference=metrics.answer_logits(logits, device_task))

    def __len__(self) -> int:
        return len(self.task)

    def select(self: Own, rows: slice | list[int] | Tensor) -> Own:
        """The same case on some of its prompts."""
        part = self.task.select(rows)
        reference = None if self.reference is None else self.reference[torch.arange(len(self))[rows]]
        return replace(self, task=part, reference=reference)

    def batches(self: Own, size: int) -> Iterator[Own]:
        """The prompts in portions, in order: a value per prompt does not depend on the size."""
        for first in range(0, len(self), size):
            yield self.select(slice(first, first + size))

    def repeated(self: Own, times: int) -> Own:
        """Every prompt `times` over, one block after another, so that each block can carry edits of its own."""
        return self.select(torch.arange(len(self)).repeat(times))

    def value(self, logits: Float[Tensor, "..."] | None) -> Float[Tensor, " batch"]:
        """The metric of each prompt, from logits [batch pos d_vocab] or [batch d_vocab]."""
        assert logits is not None  # callers run to the end
        if self.own is not None:
            return self.own(logits, self.task)
        if self.metric == "kl":
            assert self.reference is not None  # set by `of`
            return metrics.kl(logits, self.task, reference=self.reference)
        return metrics.by_name(self.metric)(logits, self.task)

    @torch.no_grad()
    def metric_values(self, batch: Batch) -> Float[Tensor, " batch"]:
        """The metric on prompts that stand in the place of the task's."""
        return self.value(self.model.run(batch).logits)

    @cached_property
    def clean(self) -> Float[Tensor, " batch"]:
        """m(clean), one value per prompt."""
        return self._clean[0]

    @cached_property
    def right(self) -> Bool[Tensor, " batch"]:
        """Whether each clean prompt is answered right (`interp.tasks.metrics.right`), of the same pass as `clean`."""
        return self._clean[1]

    @cached_property
    @torch.no_grad()
    def _clean(self) -> tuple[Float[Tensor, " batch"], Bool[Tensor, " batch"]]:
        logits = self.model.run(self.task.clean).logits
        assert logits is not None  # no `stop`
        return self.value(logits), metrics.right(logits, self.task)

    @cached_property
    def corrupt(self) -> Float[Tensor, " batch"]:
        """m(corrupt), one value per prompt."""
        return self.metric_values(self.task.corrupt)

    @property
    def weights(self) -> Weights:
        """Matrices, each layer read when first asked for."""
        return self.model.weights()
