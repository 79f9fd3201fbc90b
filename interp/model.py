"""What an analysis sees of a model, and `load`, which makes one of whatever the user holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from interp.attention import Statistic
from interp.batch import Batch, Prompts
from interp.edits import Ablate
from interp.errors import BackendError, ModelLoadError, nearest
from interp.sites import Site

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BACKENDS = ("hf",)


@dataclass(frozen=True)
class ModelInfo:
    """Sizes and traits of an architecture, as observed in the model itself.

    Attributes:
        name: what the user called it.
        family: class of the model.
        commit: resolved revision on the hub, None for local and in-memory models.
        dtype: of the weights.
        n_layers, n_heads, n_kv_heads, d_model, d_head, d_vocab: sizes; heads are query heads.
        attention_layers: layers that have softmax attention (hybrid models have others too).
        context: longest prompt the model takes, None if unlimited.
        windows: sliding window of each attention layer, None where it sees everything.
        softcap: soft-cap on attention scores, None without.
        sink_logits: whether heads have a learned extra slot in the softmax.
        weights_sha256: of the weight files when they are local and below 256 MiB.
    """

    name: str
    family: str
    commit: str | None
    dtype: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_vocab: int
    attention_layers: tuple[int, ...]
    context: int | None
    windows: tuple[int | None, ...]
    softcap: float | None
    sink_logits: bool
    weights_sha256: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for provenance."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Run:
    """Outcome of a forward pass: logits [batch pos d_vocab] and captured activations by site."""

    logits: Float[Tensor, "batch pos d_vocab"] | None
    acts: dict[Site, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class AttentionRun:
    """Answers by name, each [layer batch head ...] on the CPU; `layers[i]` is the layer of row i."""

    layers: tuple[int, ...]
    values: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        """Answer by name."""
        return self.values[name]


@runtime_checkable
class Model(Protocol):
    """A model that can be looked into. Backends implement it; analyses use nothing else."""

    info: ModelInfo
    backend: str
    tokenizer: PreTrainedTokenizerBase | None

    def run(self, tokens: Prompts, *, capture: Sequence[Site | str] = (), edits: Sequence[Ablate] = ()) -> Run:
        """Forward pass with captures and edits; the model is unchanged afterwards."""
        ...

    def attention(
        self,
        tokens: Prompts,
        statistics: Mapping[str, Statistic],
        *,
        method: str = "auto",
        layers: Sequence[int] | None = None,
        edits: Sequence[Ablate] = (),
    ) -> AttentionRun:
        """Attention statistics without attention matrices; ends the pass at the last layer asked for."""
        ...

    def mean(self, tokens: Prompts, kind: str = "z") -> Float[Tensor, "layer head d_head"]:
        """Mean of a per-head activation over all real tokens."""
        ...

    def ov_circuits(self) -> OV:
        """Value and output matrices of every head, and the embeddings around them."""
        ...

    def batch(self, tokens: Prompts) -> Batch:
        """Tokens as a checked batch on the model's device."""
        ...


@dataclass(frozen=True, eq=False)
class OV:
    """Per-head linear maps, with norm gains folded in: what a head writes for what it attends to.

    A head moves a token's embedding by `x W_V W_O`; `W_V` is the matrix of its key-value group.

    Attributes:
        w_v: [layer head d_model d_head]; the gain of the norm before attention is folded in.
        w_o: [layer head d_head d_model]; the gain of a norm after attention, if any, is folded in.
        w_e: [d_vocab d_model]. w_u: [d_model d_vocab] with the final norm's gain folded in.
        layers: layer of each row.
    """

    w_v: Float[Tensor, "layer head d_model d_head"]
    w_o: Float[Tensor, "layer head d_head d_model"]
    w_e: Float[Tensor, "d_vocab d_model"]
    w_u: Float[Tensor, "d_model d_vocab"]
    layers: tuple[int, ...]


def load(
    source: Any,
    *,
    backend: str = "hf",
    tokenizer: PreTrainedTokenizerBase | None = None,
    revision: str | None = None,
    dtype: str | torch.dtype = "float32",
    device: str | None = None,
    device_map: str | dict[str, Any] | None = None,
) -> Model:
    """Model from a hub id, a local folder, `zoo:NAME`, or a transformers model in memory.

    Offline rules and cache are Hugging Face's own (HF_HOME, HF_HUB_OFFLINE). Weights are read from safetensors only
    and no code from a repository is run. An in-memory model keeps its dtype and device.

    Raises:
        ModelLoadError: nothing there, unreadable files, or not a causal decoder; says what was looked for.

    >>> import interp
    >>> interp.load("zoo:planted-induction").info.n_layers
    2
    """
    if backend not in BACKENDS:
        raise ModelLoadError(f"unknown backend {backend!r}; {nearest(backend, BACKENDS)}")
    from interp.backends.hf import HFModel
    from interp.checkpoints import read

    checkpoint = read(source, tokenizer=tokenizer, revision=revision, dtype=dtype, device=device, device_map=device_map)
    try:
        return HFModel(checkpoint)
    except BackendError as error:
        raise ModelLoadError(f"{checkpoint.name}: {error}") from error
