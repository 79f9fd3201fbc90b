"""`LocalModel`: a model held where it bends, so that on one prompt it is affine in what dictionaries write.

Attention patterns, divisors of norms and gates of MLPs stay what they are on the prompt; MLPs' outputs are features,
an error that makes up for the rest, and constants. Carried out as edits, on any backend, with any attention kernel: no
pattern is formed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.features.edits import EMBED, check_edits, edits_at
from interp.batch import Prompts
from interp.dictionaries import Dictionaries, Dictionary, Gated
from interp.dictionaries.activations import EPS
from interp.edits import Apply, Edit, Replace, apply_edits
from interp.errors import NotApplicable, SchemaError, TaskError
from interp.model import Model
from interp.sites import Site
from interp.weights.stream import Reads, Writes

STREAM = ("resid_pre", "resid_mid", "resid_post")
READABLE = (*STREAM, "attn_in", "mlp_in", "mlp_post", "attn_out", "mlp_out")
"""Kinds that are affine in the stream once patterns, divisors and gates are held."""
WRITABLE = (*STREAM, "attn_out", "mlp_out")
AFFINE = 1e-3
"""Relative error to which the held model must be affine."""
HOLDS = ("patterns", "norms", "gates")
"""What bends and is held: attention patterns, divisors of norms, gates of MLPs."""


@dataclass(frozen=True, eq=False)
class Active:
    """Features of the prompt that are not 0: member of the set, position, number, value, each [active]."""

    member: Int[Tensor, " active"]
    pos: Int[Tensor, " active"]
    feature: Int[Tensor, " active"]
    value: Float[Tensor, " active"]

    def __len__(self) -> int:
        """How many."""
        return len(self.value)


class LocalModel:
    """The model on one prompt with its bends held; `run` carries it out with other values in place of what is written.

    Args:
        model: any backend.
        dictionary: what MLPs (or other places) are replaced by.
        prompt: one.

    Attributes:
        batch: the prompt. active: its features. clean: what stands at each cut, [pos d_model].
        errors: what the dictionaries leave out there, [pos d_model]; the whole output of an MLP that none stands for.
        cuts: sites in whose place values are written, embeddings first.

    Raises:
        NotApplicable: a layer that adds something beside attention and MLP, values behind a norm, an edit in force
            that has no place in a graph (`circuits.features.edits`), a dictionary at a site that does not become
            affine.
        TaskError: several prompts.
    """

    def __init__(self, model: Model, dictionary: Dictionary | Dictionaries, prompt: Prompts) -> None:
        self.model, self.batch = model, model.batch(prompt)
        if len(self.batch.ids) != 1 or self.batch.padded:
            raise TaskError(f"an attribution graph is of one prompt without padding; got {len(self.batch.ids)} rows")
        device = model.device
        self.members = tuple(d.to(device) for d in dictionary.members)
        self.n_layers = model.info.n_layers
        self.reads: list[Reads] = [model.reads(i) for i in range(self.n_layers)]
        self.writes: list[Writes] = [model.writes(i) for i in range(self.n_layers)]
        self._check()
        outs = [Site("mlp_out", i) for i in range(self.n_layers) if "mlp_out" not in self.writes[i].missing]
        outs += [site for d in self.members for site in d.sites_out]
        self.cuts: tuple[Site, ...] = (EMBED, *sorted(dict.fromkeys(outs), key=lambda s: (s.first, s.kind)))
        check_edits(model, self.cuts, {d.site_in for d in self.members})
        with torch.no_grad():
            self._run_clean()

    @property
    def n_pos(self) -> int:
        """Tokens of the prompt."""
        return self.batch.ids.shape[1]

    @property
    def last(self) -> Site:
        """The stream that the final norm reads."""
        return Site("resid_post", self.n_layers - 1)

    def depth(self, member: int) -> int:
        """Where a member reads: layers below count twice, so that attention stands before the MLP."""
        site = self.members[member].site_in
        assert site is not None and site.first is not None  # checked when this was made
        return 2 * site.first + (site.kind not in ("resid_pre", "attn_in"))

    def run(
        self,
        values: Mapping[Site, Float[Tensor, "batch pos d"]],
        *,
        held: Collection[str] = HOLDS,
        heads: bool = False,
    ) -> dict[Site, Float[Tensor, "batch pos d_in"]]:
        """What stands at each place that is read, where `values` stand at the cuts; gradients go back to these.

        What is not `held`, of `HOLDS`, is what the model itself makes of the values. With `heads`, values of attention
        (v) are among what is kept, and gradients go back to these and to resid_pre as well.
        """
        size = len(next(iter(values.values())))
        holder: dict[Site, Tensor] = {}
        edits = self._edits(values, holder, held)
        if heads:
            kept = [Site(kind, i) for i in self.model.info.attention_layers for kind in ("resid_pre", "v")]
            edits = [*(Apply(site, _keeper(holder, site)) for site in kept), *edits]
        attached = any(x.requires_grad for x in values.values())
        batch = self.batch.repeat(size)
        with self.model.frozen() if attached else torch.no_grad():
            self.model.run(batch, edits=edits, stop=self.n_layers - 1, gradients=attached)
        return holder

    def clean_values(self, size: int) -> dict[Site, Float[Tensor, "batch pos d"]]:
        """What stands at the cuts on the prompt, for `size` rows."""
        return {site: self.clean[site].expand(size, -1, -1) for site in self.cuts}

    def reading(self, member: int, pos: Int[Tensor, " n"], feature: Int[Tensor, " n"]) -> Float[Tensor, "n d_in"]:
        """Directions r with f = r . x + constant, at active features; divisors of the input are held."""
        d = self.members[member]
        r = d.w_enc[:, feature].mT
        if d.scaled:
            r = r * d.w_dec[feature].norm(dim=-1)[:, None]
        if isinstance(d.activation, Gated):
            r = r * d.activation.scale[feature].exp()[:, None]
        if d.normalisation.kind == "none":
            return r
        _, _, factor = d.normalisation.apply(self.inputs[member])
        if not isinstance(factor, Tensor):
            return r / factor
        if d.normalisation.kind == "layer_norm":
            return (r - r.mean(-1, keepdim=True)) / (factor[pos] + EPS)
        return r / factor[pos]

    def writing(
        self, member: int, out: int, pos: Int[Tensor, " n"], feature: Int[Tensor, " n"]
    ) -> Float[Tensor, "n d_out"]:
        """What one unit of a feature adds at its member's site of number `out`."""
        d = self.members[member]
        w = d.directions(feature, out=out)
        if d.normalisation.undo and d.normalisation.kind != "none":
            _, _, factor = d.normalisation.apply(self.inputs[member])
            w = w * (factor[pos] if isinstance(factor, Tensor) else factor)
        return w

    def logit_reading(self, ids: Int[Tensor, " token"], pos: int) -> Float[Tensor, "token d_model"]:
        """Directions at `last` of logits less the mean of all, before any soft-cap; the final norm's divisor held."""
        w = self.model.weights()
        direction = w.source.columns(ids.cpu()) - self._mean_column()
        norm = w.final_norm
        if norm is not None:
            direction = norm.transpose(direction)
        return (direction.to(self.model.device) / self.final_divisor[pos]).float()

    def _mean_column(self) -> Float[Tensor, " d_model"]:
        rows = torch.eye(self.model.info.d_model).split(64)
        return torch.cat([self.model.weights().unembed(r.to(self.model.device)).mean(-1).cpu() for r in rows]).float()

    def _check(self) -> None:
        for i, (w, r) in enumerate(zip(self.writes, self.reads, strict=True)):
            if w.rest or "attn_out" in w.missing or w.attn is None or "mlp_in" in r.missing:
                why = w.rest or w.missing.get("attn_out") or r.missing.get("mlp_in") or "attention is no linear write"
                raise NotApplicable(f"layer {i} cannot be held at its patterns and divisors: {why}")
        for d in self.members:
            if d.site_in is None or not d.sites_out:
                raise SchemaError(f"{d!r} does not say where it belongs; give its sites: dictionary.at(...)")
            for site, kinds in ((d.site_in, READABLE), *((s, WRITABLE) for s in d.sites_out)):
                if site.kind not in kinds or site.first is None or site.first != site.last:
                    raise NotApplicable(
                        f"{site}: a dictionary of an attribution graph stands at one of a layer's {', '.join(kinds)}"
                    )

    def _run_clean(self) -> None:
        divisors = [Site("norm_scale", i) for i, r in enumerate(self.reads) if r.attn is not None]
        divisors += [Site("mlp_norm_scale", i) for i, r in enumerate(self.reads) if r.mlp is not None]
        divisors += [
            Site("attn_out_norm_scale", i)
            for i, w in enumerate(self.writes)
            if w.attn is not None and w.attn.norm is not None
        ]
        divisors += [Site("norm_scale")] if self.model.weights().final_norm is not None else []
        queries = [Site(kind, i) for i in self.model.info.attention_layers for kind in "qk"]
        self.gates = {
            d.site_in.first: self._linear_part(d.site_in.first)
            for d in self.members
            if d.site_in is not None and d.site_in.kind == "mlp_post"
        }
        gates = [site for i, part in self.gates.items() for site in (part, Site("mlp_post", i))]
        reads = [d.site_in for d in self.members if d.site_in is not None]
        run = self.model.run(self.batch, capture=list(dict.fromkeys([*self.cuts, *divisors, *queries, *gates, *reads])))
        assert run.logits is not None  # there was no `stop`
        self.logits: Float[Tensor, "pos d_vocab"] = run.logits[0].float()
        self.held = {site: run.acts[site] for site in (*divisors, *queries)}
        self.ratio = {}
        for i, part in self.gates.items():
            linear, post = run.acts[part], run.acts[Site("mlp_post", i)]
            self.ratio[i] = torch.where(linear.abs() > 1e-12, post / linear, 0.0)
        self.clean = {site: run.acts[site][0].float() for site in self.cuts}
        one = torch.ones(self.n_pos, 1, device=self.model.device)
        self.final_divisor = self.held[Site("norm_scale")][0] if Site("norm_scale") in self.held else one
        self.inputs = [run.acts[site][0].float() for site in reads]
        self._encode()

    def _linear_part(self, layer: int | None) -> Site:
        """The factor of a neuron's activation that is linear in the MLP's input: gates, or f(x) / x, are held."""
        assert layer is not None  # a dictionary is of one layer
        missing = {**self.reads[layer].missing, **self.writes[layer].missing}
        kind = "mlp_pre" if "mlp_up" in missing else "mlp_up"
        if kind in missing:
            raise NotApplicable(f"layer {layer}: {missing[kind]}")
        return Site(kind, layer)

    def _encode(self) -> None:
        entries = []
        left = {site: self.clean[site].clone() for site in self.cuts}
        left[EMBED].zero_()
        for number, (d, x) in enumerate(zip(self.members, self.inputs, strict=True)):
            f = d.encode(x)
            pos, feature = f.nonzero().T
            entries.append((torch.full_like(pos, number), pos, feature, f[pos, feature]))
            for k, site in enumerate(d.sites_out):
                left[site] -= d.decode(f, x, out=k if d.w_dec.ndim == 3 else None)
        self.errors = {site: x for site, x in left.items() if site != EMBED}
        self.active = Active(*(torch.cat(column) for column in zip(*entries, strict=True)))

    def _edits(self, values: Mapping[Site, Tensor], holder: dict[Site, Tensor], held: Collection[str]) -> list[Edit]:
        edits: list[Edit] = [Apply(EMBED, values[EMBED].to)]
        for i in range(self.n_layers):
            edits += self._layer_edits(i, values, holder, held)
        return edits

    def _layer_edits(
        self, i: int, values: Mapping[Site, Tensor], holder: dict[Site, Tensor], held: Collection[str]
    ) -> list[Edit]:
        """What is replaced in one layer, in the order in which a pass comes by."""
        reads, write, own = self.reads[i], self.writes[i].attn, [d.site_in for d in self.members]
        at = {kind: Site(kind, i) for kind in READABLE}
        stream = at["resid_pre"] if reads.parallel else at["resid_mid"]
        need = {at["resid_pre"], stream, self.last, *own}
        edits: list[Edit] = []

        def place(site: Site, value: Callable[[Tensor], Tensor] | None = None) -> None:
            """At a site: replaced by a function, then read, then cut."""
            cut = site in values
            if value is None and site not in need and not cut:
                return

            def change(x: Tensor) -> Tensor:
                x = x if value is None else self._edited(site, value(x).to(x.dtype))
                if site in need and not (site.kind == "resid_pre" and site in holder):
                    holder[site] = x
                return (values[site] + self._skips(site, holder)).to(x.dtype) if cut else x

            edits.append(Apply(site, change))

        def norm(kind: str, scale: str, source: Site) -> Callable[[Tensor], Tensor] | None:
            n = reads.attn if kind == "attn_in" else reads.mlp
            if "norms" not in held or n is None:
                return None
            here, divisor = n.to(self.model.device), self.held[Site(scale, i)]
            return lambda x: here.linear(holder[source]) / divisor + here.bias

        place(at["resid_pre"])
        place(at["attn_in"], norm("attn_in", "norm_scale", at["resid_pre"]))
        if "patterns" in held and i in self.model.info.attention_layers:
            edits += [Replace(Site(kind, i), self.held[Site(kind, i)]) for kind in "qk"]
        assert write is not None  # checked when this was made
        after = None
        if "norms" in held and write.norm is not None:
            z, divisor = Site("z", i), self.held[Site("attn_out_norm_scale", i)]
            edits.append(Apply(z, _keeper(holder, z)))
            width = self.model.info.n_heads * self.model.info.d_head
            matrix, bias = write.matrix(width), write.bias(width, divisor)
            after = lambda x: (holder[z].flatten(-2) / divisor) @ matrix + bias  # noqa: E731
        place(at["attn_out"], after)
        place(at["resid_mid"])
        place(at["mlp_in"], norm("mlp_in", "mlp_norm_scale", stream))
        gate = None
        if i in self.gates:
            part, ratio = self.gates[i], self.ratio[i]
            edits.append(Apply(part, _keeper(holder, part)))
            gate = (lambda x: holder[part] * ratio) if "gates" in held else None
        place(at["mlp_post"], gate)
        place(at["mlp_out"])
        place(at["resid_post"])
        return edits

    def _edited(self, site: Site, x: Tensor) -> Tensor:
        """What edits in force make of a value that stands in place of the one they were applied to."""
        if site.kind == "mlp_post":
            return x  # among what the gate is held at
        return apply_edits(x, edits_at(self.model, site), layer=site.first)

    def _skips(self, site: Site, holder: Mapping[Site, Tensor]) -> Tensor | float:
        """What skip connections add at a site beyond what they add on the prompt."""
        total: Tensor | float = 0.0
        for d, clean in zip(self.members, self.inputs, strict=True):
            if d.skip is not None and d.sites_out[0] == site and d.site_in is not None:
                total = total + (holder[d.site_in] - clean) @ d.skip
        return total


def _keeper(holder: dict[Site, Tensor], site: Site) -> Callable[[Tensor], Tensor]:
    """Keeps a copy of what stands at a site and passes the copy on, so that gradients go back to it."""

    def keep(x: Tensor) -> Tensor:
        holder[site] = x = x.clone()
        return x

    return keep


def check_affine(local: LocalModel) -> float:
    """Largest relative departure of the held model from the clean run and from two straight lines, one to all zero.

    Raises:
        NotApplicable: it is more than `AFFINE`: something bends that is not held.
    """
    clean = local.clean_values(1)
    factor = torch.tensor([1.0, 0.5, 0.0], device=local.model.device)[:, None, None]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        values = {}
        for site, x in clean.items():
            one, other = (torch.randn(x.shape, generator=generator).to(x) * x.std() for _ in range(2))
            values[site] = torch.cat([x * factor, one, (one + other) / 2, other])
        read = local.run(values)
    pairs = [(d.site_in, x) for d, x in zip(local.members, local.inputs, strict=True)]
    worst = 0.0
    for site, x in pairs:
        assert site is not None
        worst = max(worst, float((read[site][0].float() - x).abs().max()) / (float(x.abs().max()) or 1.0))
    for site in {local.last, *(site for site, _ in pairs if site is not None)}:
        for first, middle, end in read[site].float().split(3):
            size = float(torch.stack([first, end]).abs().max()) or 1.0
            worst = max(worst, float((middle - (first + end) / 2).abs().max()) / size)
    if worst > AFFINE:
        what = "an edit in force" if local.model.edits else "something else in it"
        raise NotApplicable(
            f"{local.model.info.name} is not affine with patterns, divisors and gates held (relative error "
            f"{worst:.1e}, at most {AFFINE:.0e}): {what} bends, and edges would not add up"
        )
    return worst
