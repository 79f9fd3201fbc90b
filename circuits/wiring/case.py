"""A case with its wiring: what every method of this package works on, with what all of them need computed once."""

from __future__ import annotations

from dataclasses import dataclass, field

from circuits.graph.layout import Layout
from circuits.wiring.edges import Sent, sent
from circuits.wiring.edited import check_edits
from circuits.wiring.ports import Ports, ports
from interp.model import Model
from interp.parallel import cached_property
from interp.patching import case
from interp.tasks import PromptTask, metrics
from interp.weights.weights import Weights


@dataclass(frozen=True, eq=False)
class Case(case.Case):
    """A model, the prompts of a task, how an answer is judged, and which edges the model has.

    Attributes:
        ports: how the model's slots read the stream. The others are those of `interp.patching.case.Case`.
    """

    ports: Ports = field(kw_only=True)

    @classmethod
    def of(cls, model: Model, task: PromptTask, *, metric: metrics.AnyMetric | None = None) -> Case:
        """The task's own metric where none is named or passed.

        Raises:
            TaskError: no such metric, or a prompt the model cannot take.
            BackendError: a model whose layers cannot be told apart, with the reason.
            SiteError: an edit in force under which edges are not those of the stream; see `check_edits`.
        """
        check_edits(model)
        wiring = ports(model)
        light = case.Case.of(model, task, metric=metric)
        return cls(light.model, light.task, light.metric, light.reference, light.own, ports=wiring)

    @property
    def layout(self) -> Layout:
        """Senders and slots of the model."""
        return self.ports.layout

    @property
    def weights(self) -> Weights:
        """Matrices, each layer read when first asked for; one copy for all cases of a model."""
        return self.ports.weights

    @cached_property
    def sent_clean(self) -> Sent:
        """What every sender writes on the clean prompts."""
        return sent(self.model, self.ports, self.task.clean)

    @cached_property
    def sent_corrupt(self) -> Sent:
        """What every sender writes on the corrupted prompts."""
        return sent(self.model, self.ports, self.task.corrupt)
