"""`Passes`: what chunked and shared passes use of the model that runs them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from interp.attention import Recorder
from interp.backends.hf.anatomy import Anatomy
from interp.backends.plan.capture import Pass
from interp.batch import Batch, Prompts
from interp.model import ModelInfo, Start


@runtime_checkable
class Passes(Protocol):
    """A model whose forward passes may begin, end and be cut where they are told to; `HFModel` is one.

    Attributes:
        prefills: whether long prompts may be run in chunks. rotary: its tables, `rotary.Rotary`.
        _d_mlp: width of the MLP, None where it is not known. _standing: edits in force.
    """

    torch_module: Any
    anatomy: Anatomy
    info: ModelInfo
    backend: str
    prefills: bool
    rotary: Any
    _d_mlp: Any
    _standing: Any

    @property
    def device(self) -> torch.device:
        """Of its weights."""
        ...

    def batch(self, tokens: Prompts, *, bos: str = "default") -> Batch:
        """Tokens as a checked batch."""
        ...

    def fingerprint(self) -> Hashable:
        """Another value once a parameter has changed."""
        ...

    def gathered(self, answers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Answers of all heads, where they are spread over processes."""
        ...

    def _forward(
        self,
        batch: Batch,
        plan: Pass,
        *,
        recorder: Recorder | None = None,
        start: Start | None = None,
        stop: int | None = None,
        portion: Any = None,
    ) -> Tensor | None: ...
