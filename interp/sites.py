"""Places inside a transformer, and the one grammar that names them.

A `Site` is a kind of activation at some layers, heads and positions. It is written `L3.z`, `L3H5.z`, `L0-5.mlp_out`,
`H5.z` (head 5 of every layer), `resid_post` (every layer), `L3.resid_post@-1` (one position). A module of the model is
one by its own name: `module:transformer.h.0.mlp` is what it gives, `module:transformer.h.0.mlp:input` what it takes.
Components are written `L3H5`, `M3`, `embed`. No other file knows a name.

Names of TransformerLens, old and new, parse where they mean the same tensor (`LENS`); where that depends on the model,
the site remembers the name (`Site.alias`), and a run refuses it in a model in which it means another (`difference`).
"""

from __future__ import annotations

import operator
import re
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import lru_cache

from interp.errors import SiteError, UnknownSite, nearest

KINDS: dict[str, str] = {
    "embed": "token embedding, with positions where they are added [batch pos d_model]",
    "token_embed": "what the embedding of tokens gives, without positions [batch pos d_embed]",
    "pos_embed": "what the embedding of positions gives, where positions are added [batch pos d_model]",
    "resid_pre": "residual stream entering a layer [batch pos d_model]",
    "resid_mid": "residual stream between attention and MLP [batch pos d_model]",
    "resid_post": "residual stream leaving a layer [batch pos d_model]",
    "attn_in": "normalised input of attention: the norm's output, the stream where there is none [batch pos d_model]",
    "q": "queries after rotary and QK-norm [batch pos head d_head]",
    "k": "keys after rotary and QK-norm [batch pos kv_head d_head]",
    "v": "values [batch pos kv_head d_head]",
    "scores": "attention scores before the softmax, scaled and capped; -inf where not visible [batch head query key]",
    "pattern": "attention probabilities [batch head query key]",
    "z": "attention-weighted values of each head [batch pos head d_head]",
    "head_out": "each head's write to the residual stream, z W_O [batch pos head d_model]",
    "attn_out": "what attention adds to the residual stream [batch pos d_model]",
    "mlp_in": "normalised input of the MLP [batch pos d_model]",
    "router_logits": "scores of the experts in a mixture of experts, before any softmax [batch pos expert]",
    "mlp_pre": "input of the MLP's activation function; in a gated MLP that of the gate [batch pos d_mlp]",
    "mlp_up": "linear factor of a gated MLP: mlp_post = f(mlp_pre) * mlp_up [batch pos d_mlp]",
    "mlp_post": "neuron activations before the output projection [batch pos d_mlp]",
    "mlp_out": "what the MLP adds to the residual stream [batch pos d_model]",
    "norm_scale": "divisor of the final norm, or of a layer's attention norm [batch pos 1]",
    "mlp_norm_scale": "divisor of the norm before a layer's MLP [batch pos 1]",
    "attn_out_norm_scale": "divisor of the norm behind a layer's attention (post-norm) [batch pos 1]",
    "mlp_out_norm_scale": "divisor of the norm behind a layer's MLP (post-norm) [batch pos 1]",
    "unembed_in": "normalised input of the unembedding: the final norm's output [batch pos d_model]",
    "logits": "next-token logits [batch pos d_vocab]",
}
SQUARE = ("scores", "pattern")
"""Kinds with a query and a key axis."""
PER_HEAD = ("q", "k", "v", *SQUARE, "z", "head_out")
EMBEDDINGS = ("embed", "token_embed", "pos_embed")
UNLAYERED = (*EMBEDDINGS, "unembed_in", "logits")
DIVISORS = ("norm_scale", "mlp_norm_scale", "attn_out_norm_scale", "mlp_out_norm_scale")
"""Kinds that are read off a norm and not passed on: they cannot be edited and have no gradient."""
MODULE = "module:"
"""How the kind of a module's input or output begins."""
ALL = "all"
"""As a capture: every kind at every layer that the model has and the run comes by; modules by name are not among it."""

_SHORT = re.compile(
    r"^(?:(?:L(?P<first>\d+)(?:-(?P<last>\d+))?)?(?:H(?P<head>\d+))?\.)?(?P<kind>[a-z_]+)(?:@(?P<position>-?\d+))?$"
)
_MODULE = re.compile(r"^module:(?P<path>[^:@]+)(?::(?P<side>input|output))?(?:@(?P<position>-?\d+))?$")
_LENS = re.compile(r"^blocks\.(?P<layer>\d+)\.(?P<rest>[\w.]+)$")

DIFFERENCES: dict[str, str] = {
    "q": "there before rotary embedding, norm or scale of the queries; here after, as attention uses them",
    "k": "there before rotary embedding or norm of the keys; here after, as attention uses them",
    "v": "there before the norm of the values; here after",
    "z": "there what the output projection takes; here before the gate or norm that stands in front of it",
    "attn_post": "there before the norm behind attention; here behind it, as it is added to the stream",
    "attn_scale": "there before the residual multiplier; here as it is added to the stream",
    "mlp_post": "there before the norm behind the MLP; here behind it, as it is added to the stream",
    "mlp_scale": "there before the residual multiplier; here as it is added to the stream",
    "gated": "in a gated MLP it is the linear factor, here mlp_up",
    "attn_norm": "no norm stands before attention in this model",
    "mlp_norm": "no norm stands before the MLP in this model",
    "embed_norm": "there behind the norm of the embedding; here before it",
    "logits": "there before the soft-cap or multiplier of the logits; here behind it",
}
"""How a tensor of TransformerLens differs from the site of its name in models with a certain trait."""

_ATTN_OUT, _MLP_OUT = ("attn_post", "attn_scale"), ("mlp_post", "mlp_scale")
LENS: dict[str, tuple[str, ...]] = {
    "hook_embed": ("token_embed", "embed_norm"),
    "embed.hook_out": ("token_embed",),
    "hook_pos_embed": ("pos_embed",),
    "pos_embed.hook_out": ("pos_embed",),
    "blocks.hook_in": ("resid_pre",),
    "blocks.hook_resid_pre": ("resid_pre",),
    "blocks.hook_resid_mid": ("resid_mid",),
    "blocks.hook_out": ("resid_post",),
    "blocks.hook_resid_post": ("resid_post",),
    "blocks.ln1.hook_in": ("resid_pre", "attn_norm"),
    "blocks.ln1.hook_scale": ("norm_scale", "attn_norm"),
    "blocks.ln1.hook_out": ("attn_in", "attn_norm"),
    "blocks.attn.hook_in": ("attn_in",),
    "blocks.attn.q.hook_in": ("attn_in",),
    "blocks.attn.k.hook_in": ("attn_in",),
    "blocks.attn.v.hook_in": ("attn_in",),
    "blocks.attn.hook_q": ("q", "q"),
    "blocks.attn.q.hook_out": ("q", "q"),
    "blocks.attn.hook_rot_q": ("q",),
    "blocks.attn.hook_k": ("k", "k"),
    "blocks.attn.k.hook_out": ("k", "k"),
    "blocks.attn.hook_rot_k": ("k",),
    "blocks.attn.hook_v": ("v", "v"),
    "blocks.attn.v.hook_out": ("v", "v"),
    "blocks.attn.hook_attn_scores": ("scores",),
    "blocks.attn.hook_pattern": ("pattern",),
    "blocks.attn.hook_z": ("z", "z"),
    "blocks.attn.o.hook_in": ("z", "z"),
    "blocks.attn.hook_result": ("head_out", *_ATTN_OUT),
    "blocks.attn.o.hook_out": ("attn_out", *_ATTN_OUT),
    "blocks.attn.hook_out": ("attn_out", *_ATTN_OUT),
    "blocks.attn.hook_hidden_states": ("attn_out", *_ATTN_OUT),
    "blocks.hook_attn_out": ("attn_out", "attn_scale"),
    "blocks.ln1_post.hook_scale": ("attn_out_norm_scale",),
    "blocks.ln1_post.hook_out": ("attn_out", "attn_scale"),
    "blocks.ln2.hook_in": ("resid_mid", "mlp_norm"),
    "blocks.ln2.hook_scale": ("mlp_norm_scale", "mlp_norm"),
    "blocks.ln2.hook_out": ("mlp_in", "mlp_norm"),
    "blocks.mlp.hook_in": ("mlp_in",),
    "blocks.mlp.in.hook_in": ("mlp_in",),
    "blocks.mlp.gate.hook_in": ("mlp_in",),
    "blocks.mlp.hook_pre": ("mlp_pre",),
    "blocks.mlp.hook_pre_linear": ("mlp_up",),
    "blocks.mlp.in.hook_out": ("mlp_pre", "gated"),
    "blocks.mlp.gate.hook_out": ("mlp_pre",),
    "blocks.mlp.hook_post": ("mlp_post",),
    "blocks.mlp.out.hook_in": ("mlp_post",),
    "blocks.mlp.out.hook_out": ("mlp_out", *_MLP_OUT),
    "blocks.mlp.hook_out": ("mlp_out", *_MLP_OUT),
    "blocks.hook_mlp_out": ("mlp_out", "mlp_scale"),
    "blocks.ln2_post.hook_scale": ("mlp_out_norm_scale",),
    "blocks.ln2_post.hook_out": ("mlp_out", "mlp_scale"),
    "ln_final.hook_scale": ("norm_scale",),
    "ln_final.hook_out": ("unembed_in",),
    "unembed.hook_in": ("unembed_in",),
    "unembed.hook_out": ("logits", "logits"),
    "hook_unembed": ("logits", "logits"),
}
"""Names of TransformerLens, the layer left out: the kind of site, and in which models it is another tensor."""

_COPIES = "there the stream before the norm, a copy for each head; here resid_pre is the stream, attn_in what is read"
_TABLES = "tables of the rotary embedding, the same for every prompt, are no activation here"
_PLAIN = "there before the norm's gain and bias; here behind them: write {}, or the divisor {}"
_IDS = "token or position ids are no activation"
LENS_REFUSED: dict[str, str] = {
    "embed.hook_in": _IDS,
    "pos_embed.hook_in": _IDS,
    "rotary_emb.hook_in": "there the stream that the rotary embedding takes its type from; write L0.resid_pre",
    "rotary_emb.hook_out": _TABLES,
    "rotary_emb.hook_cos": _TABLES,
    "rotary_emb.hook_sin": _TABLES,
    "blocks.attn.hook_cos": _TABLES,
    "blocks.attn.hook_sin": _TABLES,
    **{f"blocks.{a}hook_{b}": _COPIES for a in ("", "attn.") for b in ("attn_in", "q_input", "k_input", "v_input")},
    "blocks.attn.qkv.hook_in": "never reached there; here attn_in",
    "blocks.attn.qkv.hook_out": "never reached there; here module:NAME of the joint projection",
    "blocks.hook_mlp_in": "there the stream before the norm: resid_mid here; what the MLP reads is mlp_in",
    "blocks.ln1.hook_normalized": _PLAIN.format("attn_in", "norm_scale"),
    "blocks.ln2.hook_normalized": _PLAIN.format("mlp_in", "mlp_norm_scale"),
    "blocks.ln1_post.hook_normalized": _PLAIN.format("attn_out", "attn_out_norm_scale"),
    "blocks.ln2_post.hook_normalized": _PLAIN.format("mlp_out", "mlp_out_norm_scale"),
    "blocks.ln1_post.hook_in": "there attention before the norm behind it; here module:NAME:input of that norm",
    "blocks.ln2_post.hook_in": "there the MLP before the norm behind it; here module:NAME:input of that norm",
    "ln_final.hook_in": "the stream behind the last layer; here resid_post of the last layer",
    "ln_final.hook_normalized": _PLAIN.format("unembed_in", "norm_scale"),
}
"""Names of TransformerLens that are no site here in any model, and why."""


@dataclass(frozen=True, order=True)
class Site:
    """A kind of activation, optionally narrowed to layers `first..last`, one head, one position.

    `first is None` means every layer (or, for `norm_scale`, the final norm). Negative positions count from the
    end; layers and heads are counted from 0 alone. `alias` is the name of TransformerLens that the site was written as,
    empty for our own; it is no part of what makes two sites equal.

    Raises:
        SiteError: an unknown kind, or what narrows it does not go with it.
    """

    kind: str
    first: int | None = None
    last: int | None = None
    head: int | None = None
    position: int | None = None
    alias: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        """Check the kind and that what narrows it makes sense for it."""
        if self.kind not in KINDS and not _MODULE.match(self.kind):
            raise UnknownSite(f"unknown site kind {self.kind!r}; {nearest(str(self.kind), KINDS)}")
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
        if self.first is not None and (self.kind in UNLAYERED or self.module):
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
    def module(self) -> str:
        """Name of the module whose input or output is meant; empty for every other kind."""
        return self.kind.removeprefix(MODULE).removesuffix(":input") if self.kind.startswith(MODULE) else ""

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


def difference(site: Site, traits: Collection[str]) -> str | None:
    """What a name of TransformerLens means in a model with these traits, if it is another tensor than ours; else None.

    Args:
        site: as it was written.
        traits: of the model (at the site's layer), keys of `DIFFERENCES`.
    """
    for trait in LENS[_stem(site.alias)][1:] if site.alias else ():
        if trait in traits:
            return f"{site.alias} is another tensor in TransformerLens: {DIFFERENCES[trait]}; for ours write {site}"
    return None


def _stem(name: str) -> str:
    """A name of TransformerLens without its layer."""
    match = _LENS.match(name)
    return name if match is None else f"blocks.{match['rest']}"


@lru_cache(maxsize=4096)
def _parse(text: str) -> Site:
    lens = _LENS.match(text)
    stem = _stem(text)
    if stem in LENS_REFUSED:
        raise SiteError(f"no site {text!r}: {LENS_REFUSED[stem]}")
    if stem in LENS and (lens is None) == (not stem.startswith("blocks.")):
        layer = None if lens is None else int(lens["layer"])
        return Site(LENS[stem][0], layer, alias=text)
    if lens:
        known = [name.removeprefix("blocks.") for name in LENS if name.startswith("blocks.")]
        raise UnknownSite(f"unknown site {text!r}: {nearest(lens['rest'], known)}")
    named = _MODULE.match(text)
    if named:
        side = ":input" if named["side"] == "input" else ""
        position = None if named["position"] is None else int(named["position"])
        return Site(f"{MODULE}{named['path']}{side}", position=position)
    short = _SHORT.match(text)
    if short is None:
        raise SiteError(
            f"cannot read site {text!r}; write it like L3.z, L3H5.z, L0-5.mlp_out, module:NAME, or blocks.3.attn.hook_z"
        )
    first, last, head, position = (
        None if short[g] is None else int(short[g]) for g in ("first", "last", "head", "position")
    )
    return Site(short["kind"], first, last, head, position)
