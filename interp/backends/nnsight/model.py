"""An nnsight model as a `Model`: captures and edits are steps of a trace, on the envoys' inputs and outputs.

Where a site is a module's input or output, that envoy is read and written. q, k, v and patterns are no module's: our
registered attention function runs inside the trace and passes its inputs and its output through identity modules that
have envoys of their own, so that no op label of nnsight's (which change with transformers' source) is needed.

Runs are local; `remote.RemoteModel` is for a model served elsewhere, which has no weights here, and whose server has no
attention function of ours. `generate` and `editing` use torch hooks on the wrapped module.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from interp.attention import Recorder, StopForward, intercept
from interp.backends.checkpoint import Checkpoint
from interp.backends.hf.generation import needs_attention
from interp.backends.hf.model import HFModel
from interp.backends.hf.prefill import Portion
from interp.backends.hf.rewrite import connect
from interp.backends.nnsight.steps import Step, Steps, Taps, execution_order
from interp.backends.plan.capture import Pass
from interp.batch import Batch
from interp.errors import BackendError
from interp.model import Start
from interp.numerics import evaluating


class NNsightModel(HFModel):
    """An nnsight `TransformersModel` (or `NNsight` wrapper) of a decoder; implements `interp.model.Model`."""

    backend = "nnsight"
    prefills = False

    def __init__(self, model: Any, *, name: str | None = None, commit: str | None = None) -> None:
        """Observe the wrapped module with short passes of its own.

        Raises:
            BackendError: weights that are not here, or a module that is not a decoder of the attention interface.
        """
        module = model._module
        if any(p.is_meta for p in module.parameters()):
            raise BackendError(
                "this nnsight model has no weights here (it is served elsewhere, or not dispatched yet); make it with "
                "dispatch=True to run it here, or interp.load(..., remote=True) to run it where it is served"
            )
        self.nnsight_model = model
        label = name or getattr(module.config, "_name_or_path", "") or type(module).__name__
        tokenizer = getattr(model, "tokenizer", None)
        super().__init__(Checkpoint(label, module, tokenizer, commit or getattr(module.config, "_commit_hash", None)))
        self._taps = Taps(self.anatomy)
        with evaluating(module):
            self._order = execution_order(module, self._taps)
        self._envoys = {id(envoy._module): envoy for envoy in model.modules()}
        self._envoys |= {id(tap): _envoy(model, path, tap) for path, tap in self._taps.modules}

    def __repr__(self) -> str:
        """One line: name, family and sizes."""
        return f"{super().__repr__()[:-1]}, through nnsight>"

    def _forward(
        self,
        batch: Batch,
        plan: Pass,
        *,
        recorder: Recorder | None = None,
        start: Start | None = None,
        stop: int | None = None,
        portion: Portion | None = None,  # prompts are not cut here: `chunk_size` refuses
    ) -> Tensor | None:
        """Logits, or None when the trace ended early."""
        plan.begin(batch.mask, (int(batch.ids.shape[0]), int(batch.ids.shape[1])), spans=batch.spans)
        own = needs_attention(self.torch_module, plan, padded=batch.padded)
        recorder = recorder or (Recorder(padded=batch.padded) if own else None)
        inner = None if recorder is None else connect(Recorder(), plan, asked=recorder)
        steps = Steps(self.torch_module, self.anatomy, plan, width=self.info.d_model).collect(
            self._order, self._taps, inner, start=start, stop=stop
        )
        with contextlib.ExitStack() as stack:
            for other in self._standing[-1:]:
                stack.enter_context(other.resting())
            if batch.padded:
                self.padding.inputs(batch)  # tried here, where no recorder stands yet
            stack.enter_context(evaluating(self.torch_module))
            stack.enter_context(torch.set_grad_enabled(plan.gradients))
            if recorder is not None:
                recorder.revise = None if inner is None else inner.revise
                stack.enter_context(intercept(self.torch_module, self._taps.pass_through(recorder)))
            try:
                return self._trace(batch, plan, steps, None if start is None else start[1], stopping=stop is not None)
            except StopForward:
                return None

    def _trace(
        self, batch: Batch, plan: Pass, steps: Sequence[Step], resid: Tensor | None, *, stopping: bool
    ) -> Tensor | None:
        inputs: dict[str, Any] = {"use_cache": False, **(self.padding.inputs(batch) if batch.padded else {})}
        self.rotary.check(batch)
        from nnsight import save  # here: whoever made the model has imported it already

        model, envoys, logits = self.nnsight_model, self._envoys, None
        with model.trace(batch.ids, **inputs) as tracer:
            if _walk(steps, envoys, resid):
                tracer.stop()
            logits = save(plan.visit("logits", None, model.output.logits))
        return None if stopping else logits


def _walk(steps: Sequence[Step], envoys: dict[int, Any], resid: Tensor | None) -> bool:
    """Inside a trace: every step in turn; whether the pass is to end there."""
    for step in steps:
        module, port = step.port
        envoy = envoys[id(module)]
        if port == "skip":
            envoy.skip(resid)
            continue
        value = envoy.input if port == "input" else envoy.output
        try:
            result = step.change(value)
        except StopForward:
            return True
        if result is not value and port == "input":
            envoy.input = result
        elif result is not value:
            envoy.output = result
    return False


def _envoy(model: Any, path: str, module: Any) -> Any:
    """An envoy for a module of ours, served by the same interleaver as the model's own."""
    from nnsight.intervention.envoy import Envoy

    return Envoy(module, path=f"interp.{path}", interleaver=model.interleaver, parent=model)
