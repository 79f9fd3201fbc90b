"""Places inside a transformer, and the one grammar that names them.

A `Site` is a kind of activation at some layers, heads and positions. It is written `L3.z`, `L3H5.z`, `L0-5.mlp_out`,
`H5.z` (head 5 of every layer), `resid_post` (every layer), `L3.resid_post@-1` (one position); TransformerLens's names,
old and new, parse as well. Components are written `L3H5`, `M3`, `embed`. No other file knows a name.
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass, replace
from functools import lru_cache

from interp.errors import SiteError, nearest

KINDS: dict[str, str] = {
    "embed": "token embedding, with positions where they are added [batch pos d_model]",
    "resid_pre": "residual stream entering a layer [batch pos d_model]",
    "resid_mid": "residual stream between attention and MLP [batch pos d_model]",
    "resid_post": "residual stream leaving a layer [batch pos d_model]",
    "q": "queries after rotary and QK-norm [batch pos head d_head]",
    "k": "keys after rotary and QK-norm [batch pos kv_head d_head]",
    "v": "values [batch pos kv_head d_head]",
    "pattern": "attention probabilities [batch head query key]",
    "z": "attention-weighted values of each head [batch pos head d_head]",
    "head_out": "each head's write to the residual stream, z W_O [batch pos head d_model]",
    "attn_out": "what attention adds to the residual stream [batch pos d_model]",
    "mlp_in": "normalised input of the MLP [batch pos d_model]",
    "mlp_post": "neuron activations before the output projection [batch pos d_mlp]",
    "mlp_out": "what the MLP adds to the residual stream [batch pos d_model]",
    "norm_scale": "divisor of the final norm, or of a layer's attention norm [batch pos 1]",
    "logits": "next-token logits [batch pos d_vocab]",
}
PER_HEAD = ("q", "k", "v", "pattern", "z", "head_out")
UNLAYERED = ("embed", "logits")

_SHORT = re.compile(
    r"^(?:(?:L(?P<first>\d+)(?:-(?P<last>\d+))?)?(?:H(?P<head>\d+))?\.)?(?P<kind>[a-z_]+)(?:@(?P<position>-?\d+))?$"
)
_LENS = re.compile(r"^blocks\.(?P<layer>\d+)\.(?P<rest>[\w.]+)$")
_LENS_LAYERED = {
    "hook_in": "resid_pre",
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_out": "resid_post",
    "hook_resid_post": "resid_post",
    "attn.hook_q": "q",
    "attn.q.hook_out": "q",
    "attn.hook_k": "k",
    "attn.k.hook_out": "k",
    "attn.hook_v": "v",
    "attn.v.hook_out": "v",
    "attn.hook_pattern": "pattern",
    "attn.hook_z": "z",
    "attn.hook_result": "head_out",
    "attn.hook_out": "attn_out",
    "hook_attn_out": "attn_out",
    "hook_mlp_in": "mlp_in",
    "mlp.hook_in": "mlp_in",
    "mlp.hook_post": "mlp_post",
    "mlp.hook_out": "mlp_out",
    "hook_mlp_out": "mlp_out",
    "ln1.hook_scale": "norm_scale",
}
_LENS_UNLAYERED = {
    "hook_embed": "embed",
    "embed.hook_out": "embed",
    "ln_final.hook_scale": "norm_scale",
    "unembed.hook_out": "logits",
}


@dataclass(frozen=True, order=True)
class Site:
    """A kind of activation, optionally narrowed to layers `first..last`, one head, one position.

    `first is None` means every layer (or, for `norm_scale`, the final norm). Negative positions count from the
    end; layers and heads are counted from 0 alone.

    Raises:
        SiteError: an unknown kind, or what narrows it does not go with it.
    """

    kind: str
    first: int | None = None
    last: int | None = None
    head: int | None = None
    position: int | None = None

    def __post_init__(self) -> None:
        """Check the kind and that what narrows it makes sense for it."""
        if self.kind not in KINDS:
            raise SiteError(f"unknown site kind {self.kind!r}; {nearest(str(self.kind), KINDS)}")
        for name in ("first", "last", "head", "position"):
            if type(getattr(self, name)) is not int and getattr(self, name) is not None:
                object.__setattr__(self, name, _number(name, getattr(self, name)))
        for name, value in (("layer", self.first), ("layer", self.last), ("head", self.head)):
            if value is not None and value < 0:
                raise SiteError(
                    f"{name} {value} of a site: layers and heads are counted from 0; -1 is not the last one"
                )
        if self.first is None and self.last is not None:
            raise SiteError(f"a site that ends at layer {self.last} needs a first layer as well")
        if self.first is not None and self.last is None:
            object.__setattr__(self, "last", self.first)
        if self.first is not None and self.kind in UNLAYERED:
            raise SiteError(f"{self.kind!r} belongs to no layer; write {self.kind!r}")
        if self.first is not None and self.last is not None and self.last < self.first:
            raise SiteError(f"layer range {self.first}-{self.last} runs backwards")
        if self.head is not None and self.kind not in PER_HEAD:
            raise SiteError(f"{self.kind!r} has no heads; kinds with heads: {', '.join(PER_HEAD)}")

    @classmethod
    def parse(cls, text: str) -> Site:
        """Site named by `text`, in our short form or TransformerLens's old or new one.

        >>> Site.parse("blocks.3.attn.hook_z")
        Site('L3.z')
        >>> Site.parse("L3H5.z").head
        5
        """
        return _parse(text)

    @property
    def layers(self) -> range | None:
        """Layers named, or None for all of them."""
        return None if self.first is None or self.last is None else range(self.first, self.last + 1)

    def at(self, layer: int) -> Site:
        """The same site at one layer."""
        return replace(self, first=layer, last=layer)

    def __str__(self) -> str:
        """Short form; `Site.parse` gives the site back."""
        where = "" if self.first is None else f"L{self.first}"
        where += "" if self.first == self.last else f"-{self.last}"
        where += "" if self.head is None else f"H{self.head}"
        at = "" if self.position is None else f"@{self.position}"
        return f"{where}.{self.kind}{at}" if where else f"{self.kind}{at}"

    def __repr__(self) -> str:
        """Short form in quotes."""
        return f"Site({str(self)!r})"


def _number(name: str, value: object) -> int:
    """A whole number of any type (numpy's, a tensor's) as Python's."""
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise SiteError(f"{name} {value!r:.40} of a site: expected a whole number") from None


@lru_cache(maxsize=4096)
def _parse(text: str) -> Site:
    if text in _LENS_UNLAYERED:
        return Site(_LENS_UNLAYERED[text])
    lens = _LENS.match(text)
    if lens:
        kind = _LENS_LAYERED.get(lens["rest"])
        if kind is None:
            raise SiteError(f"unknown site {text!r}: {nearest(lens['rest'], _LENS_LAYERED)}")
        return Site(kind, int(lens["layer"]))
    short = _SHORT.match(text)
    if short is None:
        raise SiteError(f"cannot read site {text!r}; write it like L3.z, L3H5.z, L0-5.mlp_out, or blocks.3.attn.hook_z")
    first, last, head, position = (
        None if short[g] is None else int(short[g]) for g in ("first", "last", "head", "position")
    )
    return Site(short["kind"], first, last, head, position)
