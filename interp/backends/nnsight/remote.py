"""An nnsight model that runs elsewhere: every run is one `model.trace(..., remote=...)`, every step of it plain data.

What has been exercised: nnsight's `remote="local"`, which serialises a trace as for a server, reads it back with this
package hidden, and runs it here; and a process without this package that reads the payload and runs it. A real server
(NDIF) has not been: none can be reached from the tests.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from interp.attention import Recorder, Statistic
from interp.backends.checkpoint import Checkpoint
from interp.backends.hf.anatomy import Anatomy
from interp.backends.hf.model import HFModel
from interp.backends.hf.prefill import Portion
from interp.backends.nnsight.program import Program
from interp.backends.nnsight.replica import chart
from interp.backends.nnsight.served import carry_out
from interp.backends.plan.arguments import edit_list
from interp.backends.plan.capture import Pass
from interp.backends.plan.places import Place
from interp.batch import Batch, Prompts
from interp.edits import Edit
from interp.errors import BackendError, NotFinite
from interp.model import Capture, Start
from interp.numerics import evaluating
from interp.run import AttentionRun, Run
from interp.sites import MODULE, SQUARE
from interp.weights.stream import Reads, Writes
from interp.weights.weights import Weights

INSIDE = (
    "a model served elsewhere runs its own attention function, and q, k, v and patterns are the input or output of no "
    "module; load the weights here for them (capture z, attn_out or the stream remotely)"
)
PER_HEAD = "what one head writes is computed with its output matrix, which is not here; capture z or attn_out instead"
SENT = "this place is not among those that a remote trace is made of here; load the weights here for it"
NOT_SENT = ("token_embed", "pos_embed", "unembed_in", "router_logits")
GATED = "z is changed between attention and the output projection, so that no module takes it; " + INSIDE
BACKWARD = (
    "gradients need the autograd graph, which stays where the model is: the tensors that come back have none; load the "
    "weights here for gradients=True"
)


class RemoteModel(HFModel):
    """An nnsight `TransformersModel` whose runs are remote traces; implements `interp.model.Model` as far as it goes.

    Captures of the stream, of attention's and the MLP's reads and writes, z and norm scales; activation edits; `start`
    and `stop`. Whole activations come back (narrowed to a site's head and position); reducers are applied here.
    """

    backend = "nnsight"

    def __init__(self, model: Any, remote: bool | str, *, name: str | None = None) -> None:
        """Chart the model: on itself where its weights are here, on a replica of its configuration otherwise.

        Args:
            model: an nnsight `TransformersModel`, dispatched or not.
            remote: as nnsight takes it: True (its configured server), an address, or "local" (serialised, run here).
            name: what to call it; the configuration's name otherwise.

        Raises:
            BackendError: a wrapper that no server knows by name, or parts that cannot be found without weights.
        """
        if not hasattr(model, "to_model_key"):
            raise BackendError(
                f"remote={remote!r}: a plain {type(model).__name__} wrapper has no name a server could know it by; "
                "expected an nnsight.TransformersModel"
            )
        self.nnsight_model, self.remote = model, remote
        self.torch_module = module = model._module
        self.tokenizer = getattr(model, "tokenizer", None)
        self._standing: list[Pass] = []
        self._chart = chart(module)
        self.anatomy = _without_insides(self._chart.anatomy)
        label = name or getattr(module.config, "_name_or_path", "") or type(module).__name__
        commit = getattr(module.config, "_commit_hash", None)
        self.info = self._describe(Checkpoint(label, module, self.tokenizer, commit))

    def __repr__(self) -> str:
        """One line: name, family, sizes and where it runs."""
        return f"{super().__repr__()[:-1]}, through nnsight with remote={self.remote!r}>"

    @property
    def device(self) -> torch.device:
        """Device of token ids and results, on this machine."""
        home = super().device
        return torch.device("cpu") if home.type == "meta" else home

    def run(
        self,
        tokens: Prompts,
        *,
        capture: Capture = (),
        edits: Sequence[Edit] = (),
        start: Start | None = None,
        stop: int | None = None,
        gradients: bool = False,
        bos: str = "default",
    ) -> Run:
        """Logits and captured activations under edits, as one remote trace; see `interp.model.Model.run`.

        Raises:
            SiteError: as `hf`, and q, k, v, pattern and head_out, which no module of the model gives.
            BackendError: gradients; a residual stream that is not finite.
        """
        if gradients:
            raise BackendError(f"{self.info.name}: {BACKWARD}")
        return super().run(tokens, capture=capture, edits=edits, start=start, stop=stop, bos=bos)

    def attention(
        self,
        tokens: Prompts,
        statistics: Mapping[str, Statistic],
        *,
        method: str = "auto",
        layers: Sequence[int] | None = None,
        edits: Sequence[Edit] = (),
        chunk: int | None = None,
    ) -> AttentionRun:
        """Refused: statistics are of our attention function, which no server has."""
        raise BackendError(f"{self.info.name}: attention statistics: {INSIDE}")

    def generate(self, prompts: Prompts, *, edits: Sequence[Edit] = (), **options: Any) -> Tensor:
        """Refused: edits of generated tokens are hooks on the module, which is not here."""
        raise BackendError(
            f"{self.info.name}: generate() puts hooks on the wrapped module, and this one runs elsewhere; use "
            "nnsight's own `model.generate(..., remote=True)`, or load the weights here"
        )

    @contextlib.contextmanager
    def editing(self, edits: Sequence[Edit]) -> Iterator[None]:
        """Context in which edits apply to `run`."""
        plan = self._plan((), edits)
        plan.standing = (*self.edits, *edit_list(edits))
        self._standing.append(plan)
        try:
            yield
        finally:
            self._standing.pop()

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """Context in which the edits of `editing` rest, as if there were none."""
        self._standing.append(Pass({}, {}))
        try:
            yield
        finally:
            self._standing.pop()

    def _missing(self, place: Place, edit: bool = False) -> str | None:
        """Why a place does not exist here, or is not part of a trace; None where it does and is."""
        if place[0] in NOT_SENT or place[0].startswith(MODULE):
            return SENT
        return super()._missing(place, edit)

    def weights(self) -> Weights:
        """Matrices of every layer, where the weights are here as well."""
        self._need_weights()
        return super().weights()

    def writes(self, layer: int) -> Writes:
        """Writes of a layer to the stream, where the weights are here as well."""
        self._need_weights()
        return super().writes(layer)

    def reads(self, layer: int) -> Reads:
        """Reads of a layer from the stream, where the weights are here as well."""
        self._need_weights()
        return super().reads(layer)

    def _need_weights(self) -> None:
        if any(p.is_meta for p in self.torch_module.parameters()):
            raise BackendError(f"{self.info.name}: its weights are not here, only its runs can be had")

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
        plan.begin(batch.mask, (int(batch.ids.shape[0]), int(batch.ids.shape[1])), spans=batch.spans)
        program = Program(self._chart, plan, self._sizes())
        steps = program.write(start=start, stop=stop)
        with evaluating(self.nnsight_model._module), torch.no_grad():
            results = self._trace(batch, steps, stopping=stop is not None)
        bad = ~results["finite"].to(batch.mask.device) & batch.mask
        if bool(bad.any()):
            last = self.info.n_layers - 1 if stop is None else stop
            count, position = int(bad.sum()), int(bad.nonzero()[0, 1])
            raise NotFinite(
                f"residual stream not finite after layer {last} at {count} of {int(batch.mask.sum())} tokens (first at "
                f"position {position}): NaN or infinite weights or edits, or overflow"
            )
        for i, capture in enumerate(program.captures):
            value = results[i].to(self.device)
            plan.acts[capture.site] = value if capture.reducer is None else capture.reducer(value)
        plan.visited.update(plan.captures, plan.edits)  # a trace that misses one of its steps raises
        return None if stop is not None else results["logits"].to(self.device)

    def _trace(self, batch: Batch, program: list[dict[str, Any]], *, stopping: bool) -> dict[Any, Any]:
        """One trace: its block, and all that the block names, are what travels."""
        from nnsight import register, save  # here: whoever made the model has imported it already

        register(carry_out.__module__)  # its source travels: a server has no interp
        inputs: dict[str, Any] = {"use_cache": False}
        if batch.padded:
            inputs["attention_mask"] = batch.mask.long()
            if self.padding.takes_positions:
                inputs["position_ids"] = batch.positions
        model, run, results = self.nnsight_model, carry_out, {}
        if stopping:
            with model.trace(batch.ids, remote=self.remote, **inputs) as tracer:
                results = save(run(model, program))
                tracer.stop()
        else:
            with model.trace(batch.ids, remote=self.remote, **inputs):
                results = save(run(model, program))
        return results

    def _sizes(self) -> dict[str, tuple[int, ...]]:
        i = self.info
        sizes = {"resid_pre": (i.d_model,), "logits": (i.d_vocab,)}
        if self._d_mlp is not None:
            sizes |= dict.fromkeys(("mlp_pre", "mlp_up", "mlp_post"), (self._d_mlp,))
        part = self.anatomy.attention[0]
        return {**sizes, "z": (part.n_heads, part.d_value)}


def _without_insides(anatomy: Anatomy) -> Anatomy:
    """The anatomy with the sites refused that only our own attention function reaches."""
    stream = []
    for layer, part in enumerate(anatomy.stream):
        missing = {**part.missing, **dict.fromkeys(("q", "k", "v", *SQUARE), INSIDE)}
        if part.mlp_pre is part.mlp_up and part.mlp_pre is not None:
            missing |= dict.fromkeys(("mlp_pre", "mlp_up"), SENT)
        missing.setdefault("head_out", PER_HEAD)
        own = anatomy.part(layer)
        if own is not None and not own.direct:
            missing["z"] = GATED
        stream.append(replace(part, missing=missing))
    return replace(anatomy, stream=tuple(stream))
