"""How a layer reads the stream: the norms before its attention and its MLP, and which stream the MLP takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from interp.backends.anatomy import Anatomy
from interp.backends.norms import Norm, read_norm
from interp.backends.shards import MATRICES
from interp.backends.visit import evaluating
from interp.errors import BackendError


@dataclass(frozen=True, eq=False)
class Reads:
    """One layer's two reads.

    Attributes:
        attn, mlp: the norm in between; None where the stream is read as it is.
        parallel: both read the stream that enters the layer; otherwise the MLP reads what attention has added to.
        missing: why a kind of site does not exist here.
        whole: modules that, called one after another, make `mlp_out` of `mlp_in` but for `scale`; none where that is
            not so simple.
        scale: what the last of them is multiplied by.
    """

    attn: Norm | None
    mlp: Norm | None
    parallel: bool
    missing: Mapping[str, str]
    whole: tuple[nn.Module, ...] = ()
    scale: float = 1.0

    def mlp_of(self, read: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"] | None:
        """What the MLP writes for what it reads, `mlp_in`, without a pass of the model; None where `whole` is empty."""
        if not self.whole:
            return None
        x = read.flatten(0, -2)[None]
        with evaluating(self.whole[0]):
            for module in self.whole:
                given = module(x)
                x = given if isinstance(given, Tensor) else given[0]
        return (x * self.scale if self.scale != 1.0 else x).view(read.shape)


def read_reads(anatomy: Anatomy, layer: int, d_model: int) -> Reads:
    """The reads of one layer of a transformers model.

    Raises:
        BackendError: the model is spread over processes.
    """
    if anatomy.shards is not None:
        raise BackendError(f"layer {layer}: {MATRICES}")
    part, stream = anatomy.part(layer), anatomy.stream[layer]
    before = None if part is None else part.norm_before
    attn, mlp = (None if norm is None else read_norm(norm, d_model) for norm in (before, stream.mlp_norm))
    parallel = "resid_mid" in stream.missing and "mlp_out" not in stream.missing
    return Reads(attn, mlp, parallel, stream.missing, stream.mlp_whole, stream.mlp_scale)
