"""`EditContexts`: edits that stand for a while, carried out by the module's own hooks whoever calls it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from interp.backends.base import ModuleModel
from interp.backends.hf.anatomy import Anatomy
from interp.backends.hf.generation import standing
from interp.backends.plan.capture import Pass
from interp.backends.turn import State, taken
from interp.edits import Edit
from interp.errors import BackendError
from interp.numerics import evaluating, modules_of

OUT_OF_ORDER = "contexts of `editing` are closed in the reverse of the order in which they were opened; all are now"


class EditContexts(ModuleModel):
    """A model whose module carries out the plans of open contexts; the innermost plan has those of the outer ones."""

    torch_module: Any
    anatomy: Anatomy
    _standing: list[Pass]

    @contextlib.contextmanager
    def editing(self, edits: Sequence[Edit]) -> Iterator[None]:
        """Context in which edits apply to `run`, `attention`, `generate`, and calls of `torch_module` itself."""
        with taken(self), self._carrying(self._plan((), edits)):
            yield

    @contextlib.contextmanager
    def _carrying(self, plan: Pass) -> Iterator[None]:
        """Context in which every pass of the module carries out a plan, in place of those that stand."""
        with taken(self):
            before = self.state()
            outer = self._standing[-1:]
            for other in outer:
                other.on = False
            self._standing.append(plan)
            alone = self.torch_module.alone() if self.info.source is not None else contextlib.nullcontext()
            try:
                with alone, evaluating(self.torch_module), standing(self.torch_module, self.anatomy, plan):
                    yield
            finally:
                self._close(plan, before)
                for other in outer:
                    other.on = True

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """Context in which the edits of `editing` rest, as if there were none."""
        with taken(self):
            before, outer, plan = self.state(), self._standing[-1:], Pass({}, {})
            for other in outer:
                other.on = False
            self._standing.append(plan)
            try:
                yield
            finally:
                self._close(plan, before)
                for other in outer:
                    other.on = True

    def _in_force(self) -> tuple[Edit, ...]:
        return self._standing[-1].standing if self._standing else ()

    def _close(self, plan: Pass, before: State) -> None:
        """End the edits of a context. One that is closed before those inside it ends them too, and says so."""
        if plan.ended is not None:
            plan.ended.restore()
        elif not any(other is plan for other in self._standing):
            return  # an interrupt had the model put right before
        elif self._standing[-1] is plan:
            self._standing.pop()
        else:
            at = next(i for i, other in enumerate(self._standing) if other is plan)
            for other in self._standing[at:]:
                other.on, other.ended = False, before
            before.restore()
            raise BackendError(OUT_OF_ORDER)

    def state(self) -> State:
        """What a run may change of the model, as it is now."""
        return State(modules_of(self.torch_module), [self._standing, *getattr(self.torch_module, "lists", ())])

    def _plan(self, capture: Any, edits: Sequence[Edit]) -> Pass:
        """Plan of a pass with these edits, those that stand included."""
        raise NotImplementedError
