"""What the rest sees of a model: `ModelInfo`, its sizes and traits; `Model`, the protocol."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from interp.attention import Statistic
from interp.batch import Batch, Prompts
from interp.edits import Edit
from interp.errors import SiteError
from interp.run import AttentionRun, Run
from interp.shapes import brief
from interp.sites import DIVISORS, PER_HEAD, SQUARE, UNLAYERED, Site
from interp.tokens.methods import TokenMethods
from interp.weights.ov import OV

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from interp.weights.stream import Reads, Writes
    from interp.weights.weights import Weights

P = ParamSpec("P")
R = TypeVar("R")
Reducer = Callable[[Tensor], Tensor]
Capture = Sequence[Site | str] | Mapping[Site | str, Reducer | None]
Start = tuple[int, Tensor]
Steps = Mapping[int, Sequence[Edit]]  # edits by step of a generation

STACKS = {
    "encoder": "the encoder of an encoder-decoder: attention both ways within the source, no logits",
    "decoder": "the decoder of an encoder-decoder: attention within what is written",
    "cross": "the decoder of an encoder-decoder: attention of what is written to the source",
}
"""What a model is of an encoder-decoder, by what `interp.load(..., stack=)` takes."""
NEEDS_ATTENTION = (
    *PER_HEAD,
    "attn_in",
    "attn_out",
    "attn_out_norm_scale",
    "resid_mid",
)  # kinds that exist only at layers with attention


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
        causal: whether no query sees a later key; False in attention both ways (encoders).
        softmax_share: part of attention that is softmax, the rest one constant weight; 0 where weights are the ReLU of
            scores; see `interp.attention.Call`.
        n_logits: logits of a token where they are fewer than the vocabulary, so that not each is a token's; 0 where it
            has none (an encoder); else None.
        stack: what the model is of an encoder-decoder: "encoder", "decoder" (attention within what is written) or
            "cross" (the decoder's attention to the source); None where it is the whole.
        source: ids of the text that a decoder reads; None where it reads none.
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
    causal: bool = True
    softmax_share: float = 1.0
    n_logits: int | None = None
    stack: str | None = None
    source: tuple[int, ...] | None = None

    __repr__ = brief

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for provenance."""
        return asdict(self)

    def layers_of(self, site: Site) -> Sequence[int | None]:
        """Layers that a site means in this model: [None] for what stands outside the layers.

        Raises:
            SiteError: a head or a layer out of range.
        """
        heads = self.n_kv_heads if site.kind in {"k", "v"} else self.n_heads
        if site.head is not None and site.head >= heads:
            kind = "key-value heads" if heads != self.n_heads else "heads"
            raise SiteError(f"{site}: head {site.head} is out of range; there are {heads} {kind}")
        if site.kind in UNLAYERED or site.module or (site.kind == "norm_scale" and site.first is None):
            return [None]
        exist = self.attention_layers if site.kind in NEEDS_ATTENTION else tuple(range(self.n_layers))
        if site.layers is None:
            return exist
        for layer in site.layers:
            if layer >= self.n_layers:
                raise SiteError(f"{site}: layer {layer} is out of range; the model has {self.n_layers} layers")
            if layer not in exist:
                raise SiteError(f"{site}: layer {layer} has no attention; layers with attention: {exist}")
        return site.layers

    def activation_bytes(self, site: Site, shape: tuple[int, int], *, d_mlp: int | None = None) -> int:
        """Bytes of a site's activation at one layer, for prompts of `shape` [batch pos]; d_mlp is 4 d_model if None."""
        batch, pos = shape
        rows = batch * (pos if site.position is None else 1)
        width = {
            **dict.fromkeys(SQUARE, (1 if site.head is not None else self.n_heads) * pos),
            **dict.fromkeys(DIVISORS, 1),
            **dict.fromkeys(("mlp_pre", "mlp_up", "mlp_post"), d_mlp or 4 * self.d_model),
            "z": self.n_heads * self.d_head,
            "q": self.n_heads * self.d_head,
            "k": self.n_kv_heads * self.d_head,
            "v": self.n_kv_heads * self.d_head,
            "head_out": self.n_heads * self.d_model,
            "logits": self.d_vocab,
        }.get(site.kind, self.d_model)
        return rows * width * getattr(torch, self.dtype).itemsize

    @property
    def shape(self) -> str:
        """Layers and heads in a few words: "12 layers x 12 heads"."""
        layers = f"{self.n_layers} layer{'s' * (self.n_layers != 1)}"
        if len(self.attention_layers) != self.n_layers:
            layers += f" ({len(self.attention_layers)} with attention)"
        return f"{layers} \u00d7 {self.n_heads} head{'s' * (self.n_heads != 1)}"

    @property
    def facts(self) -> dict[str, str]:
        """All that is known of the model, as terms and descriptions."""
        groups = "" if self.n_kv_heads == self.n_heads else f", {self.n_kv_heads} key-value heads"
        sizes = f"d_model {self.d_model}, d_head {self.d_head}, vocabulary {self.d_vocab}"
        known = f"sha256 {self.weights_sha256}" if self.weights_sha256 else f"commit {self.commit}"
        whence = known if self.weights_sha256 or self.commit else "made in memory, or not hashed"
        facts = {
            "Name": self.name,
            "Class": self.family,
            "Sizes": f"{self.shape}{groups}; {sizes}",
            "Context": "unlimited" if self.context is None else f"{self.context} tokens",
            "Weights": f"{self.dtype}, {whence}",
        }
        if self.stack is not None:
            source = "" if self.source is None else f"; a source of {len(self.source)} tokens"
            facts["Stack"] = STACKS[self.stack] + source
        if self.n_logits == 0:
            facts["Logits"] = "none"
        elif self.n_logits is not None:
            facts["Logits"] = f"{self.n_logits}, fewer than the vocabulary"
        if not self.causal:
            facts["Attention"] = "both ways: queries see later tokens too"
        if self.softmax_share != 1.0:
            facts["Attention weights"] = (
                f"{self.softmax_share:g} of softmax, and {1 - self.softmax_share:g} for every key"
                if self.softmax_share
                else "the ReLU of each score, without a softmax"
            )
        limited = [w for w in self.windows if w is not None]
        if limited:
            widths = ", ".join(map(str, sorted(set(limited))))
            facts["Sliding window"] = f"{widths} tokens in {len(limited)} of {len(self.windows)} layers"
        if self.softcap is not None:
            facts["Soft-cap on scores"] = f"{self.softcap:g}"
        if self.sink_logits:
            facts["Sink logits"] = "yes: a learned extra slot in every softmax"
        return facts


@runtime_checkable
class Model(TokenMethods, Protocol):
    """A model that can be looked into. Backends implement it; whoever stands outside them uses nothing else.

    `interp.measurement.checks.check_backend` says whether an implementation keeps to what is written here.

    Attributes:
        info: sizes and traits.
        backend: name of the backend that runs it.
        tokenizer: None where ids are all there is.
    """

    info: ModelInfo
    backend: str
    tokenizer: PreTrainedTokenizerBase | None

    @property
    def device(self) -> torch.device:
        """Where token ids go in."""
        ...

    @property
    def bos_id(self) -> int | None:
        """Id that starts a prompt by the model's configuration, None without; a tokenizer may say something else."""
        ...

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids that the configuration sets apart (start, end, padding), those inside the vocabulary."""
        ...

    @property
    def rank(self) -> int:
        """Which of the processes that a model is spread over this one is; 0 where one process has all of it."""
        ...

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
        """Forward pass with captures and edits; the model is unchanged afterwards.

        Args:
            tokens: prompts, as `batch` takes them.
            capture: sites, or site -> function applied to each activation as soon as it exists, so that only its
                result is kept. A head or a position that the site names is narrowed away. "all" is every site that
                the model has and the run comes by, but modules by their names.
            edits: applied in the order given, each before its site is captured.
            start: (layer, residual [batch pos d_model]): the residual enters at the layer, those below do not run. It
                is the stream behind the edits that an `editing` context has there: these do not happen once more.
            stop: last layer to run; logits are None.
            gradients: keep the autograd graph, with the activations attached to it.
            bos: what stands in front of a text: "default", "forced" or "none"; see `TokenMethods`.
        """
        ...

    def generate(
        self,
        prompts: Prompts,
        *,
        edits: Sequence[Edit] = (),
        steps: Steps | None = None,
        capture: Capture = (),
        text: bool = False,
        **options: Any,
    ) -> Any:
        """Token ids [batch pos], prompt included, as the model's own `generate` gives them, under edits.

        Args:
            prompts: as `batch` takes them; padded on the left.
            edits: of every pass. Positions and values of single tokens are of the prompt; others of new tokens too.
            steps: further edits by step: those of step 0 are of the prompt, those of step s > 0 of the s-th new token
                alone, as it is read. (The last new token is not read.)
            capture: sites, kept for all tokens read, so that a `Generation` is returned.
            text: return the texts, prompt included and special tokens left out, one a prompt, instead of ids.
            options: of transformers' `generate`.
        """
        ...

    def editing(self, edits: Sequence[Edit]) -> AbstractContextManager[None]:
        """Context in which edits apply to everything the model does, generation included.

        A run that does not come by a place (it starts above or stops below) leaves the edit there out. Weights are read
        as if there were none.
        """
        ...

    def resting(self) -> AbstractContextManager[None]:
        """Context in which the edits of `editing` rest, as if there were none."""
        ...

    @property
    def edits(self) -> tuple[Edit, ...]:
        """Edits in force: those of every `editing` context that is open, outer ones first."""
        ...

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
        """Attention statistics without attention matrices; ends the pass at the last layer asked for.

        `chunk`: tokens of each prompt that are run at a time, with a cache; None leaves it to the backend.
        """
        ...

    def mean(
        self, tokens: Prompts, kind: str = "z", *, by: str | None = None
    ) -> Float[Tensor, "layer head d_head"] | Float[Tensor, "layer position head d_head"]:
        """Mean of a per-head activation over all real tokens, or, `by="position"`, over those at each position."""
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

    def batch(self, tokens: Prompts, *, bos: str = "default") -> Batch:
        """Tokens as a checked batch on the model's device."""
        ...

    def frozen(self) -> AbstractContextManager[None]:
        """Context in which no parameter takes a gradient, so that nothing is kept for theirs; then as before."""
        ...

    def fingerprint(self) -> Hashable:
        """A value that is another one once a parameter has changed: for keeping what was read of the weights."""
        ...

    def agree(self, numbers: tuple[int, ...], what: str) -> None:
        """Wait for the other processes of a model that is spread over several, and compare numbers with them.

        Raises:
            BackendError: they have others; `what` says of what.
        """
        ...


def with_edits(body: Callable[P, R]) -> Callable[P, R]:
    """`body(model, ..., edits=())` as a function that is carried out inside `model.editing(edits)`."""

    @functools.wraps(body)
    def run(*args: P.args, **options: P.kwargs) -> R:
        edits: Any = options.pop("edits", ())
        model: Any = args[0] if args else options["model"]
        if isinstance(edits, tuple | list) and not edits:
            return body(*args, **options)
        with model.editing(edits):
            return body(*args, **options)

    return run


def editing(model: Model, edits: Sequence[Edit]) -> AbstractContextManager[None]:
    """Context in which edits apply to everything the model does: `run`, `attention`, `generate`.

    >>> import interp
    >>> model = interp.load("zoo:planted-induction")
    >>> with interp.model.editing(model, interp.ablate_heads(["L1H0"])):
    ...     ablated = model.run([1, 2, 3]).logits
    """
    return model.editing(edits)
