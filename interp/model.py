"""What an analysis sees of a model, and `load`, which makes one of whatever the user holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from interp.attention import Statistic
from interp.batch import Batch, Prompts
from interp.edits import Edit
from interp.errors import SiteError, nearest
from interp.sites import Site
from interp.weights.weights import OV

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from interp.weights.stream import Reads, Writes
    from interp.weights.weights import Weights

Reducer = Callable[[Tensor], Tensor]
Capture = Sequence[Site | str] | Mapping[Site | str, Reducer | None]
Start = tuple[int, Tensor]


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
    """Outcome of a forward pass: logits [batch pos d_vocab] and captured activations by site.

    `acts` holds one tensor per captured site and layer, its key the site at that layer (`Site("L3.z")`).
    """

    logits: Float[Tensor, "batch pos d_vocab"] | None
    acts: dict[Site, Tensor] = field(default_factory=dict)

    def __getitem__(self, site: Site | str) -> Tensor:
        """Activation of one site: `run["L3.z"]`."""
        key = Site.parse(site) if isinstance(site, str) else site
        if key not in self.acts:
            raise SiteError(f"{str(key)!r} was not captured; {nearest(str(key), map(str, self.acts))}")
        return self.acts[key]

    def stack(self, site: Site | str) -> Tensor:
        """Activations of a site at every layer captured, in order of layer, [layer ...]."""
        key = Site.parse(site) if isinstance(site, str) else site
        found = sorted(s for s in self.acts if s.first is not None and key == (s if key.first is not None else _any(s)))
        if not found:
            raise SiteError(f"{str(key)!r} was not captured; {nearest(str(key), map(str, self.acts))}")
        return torch.stack([self.acts[s] for s in found])


def _any(site: Site) -> Site:
    """The site without its layer."""
    return Site(site.kind, head=site.head, position=site.position)


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

    def run(
        self,
        tokens: Prompts,
        *,
        capture: Capture = (),
        edits: Sequence[Edit] = (),
        start: Start | None = None,
        stop: int | None = None,
        gradients: bool = False,
    ) -> Run:
        """Forward pass with captures and edits; the model is unchanged afterwards.

        Args:
            tokens: prompts, as `batch` takes them.
            capture: sites, or site -> function applied to each activation as soon as it exists, so that only its
                result is kept. A head or a position that the site names is narrowed away.
            edits: applied in the order given, each before its site is captured.
            start: (layer, residual [batch pos d_model]): the residual enters at the layer, those below do not run.
            stop: last layer to run; logits are None.
            gradients: keep the autograd graph, with the activations attached to it.
        """
        ...

    def generate(self, prompts: Prompts, *, edits: Sequence[Edit] = (), **options: Any) -> Tensor:
        """Token ids [batch pos], prompt included, as the model's own `generate` gives them, under edits."""
        ...

    def editing(self, edits: Sequence[Edit]) -> AbstractContextManager[None]:
        """Context in which edits apply to everything the model does, generation included."""
        ...

    def attention(
        self,
        tokens: Prompts,
        statistics: Mapping[str, Statistic],
        *,
        method: str = "auto",
        layers: Sequence[int] | None = None,
        edits: Sequence[Edit] = (),
    ) -> AttentionRun:
        """Attention statistics without attention matrices; ends the pass at the last layer asked for."""
        ...

    def mean(self, tokens: Prompts, kind: str = "z") -> Float[Tensor, "layer head d_head"]:
        """Mean of a per-head activation over all real tokens."""
        ...

    def weights(self) -> Weights:
        """Matrices of every layer as they are now, each read when it is first asked for."""
        ...

    def writes(self, layer: int) -> Writes:
        """What a layer's attention and MLP write to the stream, as linear maps."""
        ...

    def reads(self, layer: int) -> Reads:
        """How a layer's attention and MLP read the stream: the norms in between."""
        ...

    def ov_circuits(self) -> OV:
        """Value and output matrices of every head, and the embeddings around them."""
        ...

    def batch(self, tokens: Prompts) -> Batch:
        """Tokens as a checked batch on the model's device."""
        ...


def editing(model: Model, edits: Sequence[Edit]) -> AbstractContextManager[None]:
    """Context in which edits apply to everything the model does: `run`, `attention`, `generate`.

    >>> import interp
    >>> model = interp.load("zoo:planted-induction")
    >>> with interp.model.editing(model, interp.ablate_heads(["L1H0"])):
    ...     ablated = model.run([1, 2, 3]).logits
    """
    return model.editing(edits)
