"""What each layer writes to the stream, term by term, and what edits in force do to all that was written before."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from interp.batch import Batch
from interp.decompose.edit_maps import EditMap, EditMaps
from interp.decompose.experts import expert_units
from interp.decompose.stream_run import StreamRun
from interp.decompose.terms import (
    Term,
    attention_of,
    edit_of,
    embed,
    head_edits_of,
    heads_of,
    mlp_of,
    neurons_of,
    sources_of,
)
from interp.errors import SiteError
from interp.model import Model
from interp.sites import Site

Direction = Float[Tensor, "batch #pos d_model"] | None
"""Written vectors are projected onto it; None keeps them as they are."""
Contribution = tuple[list[Term], Float[Tensor, "component batch pos out"]]
STAGES = ("resid_pre", "resid_mid", "resid_post")


class LayerTerms:
    """Terms of a run's stream, in the order in which they are written.

    Among them stand the maps of edits of the stream: each acts on all terms before it. Along a direction it has been
    taken into account already, since each term is projected onto what later edits make of the direction.
    """

    def __init__(self, stream: StreamRun, direction: Direction, *, heads: bool) -> None:
        self.stream, self.maps, self.heads = stream, EditMaps(stream), heads
        self.before: dict[tuple[str, int | None], Direction] = {}
        self.behind: dict[tuple[str, int | None], Direction] = {}
        for layer in reversed(range(stream.last + 1)):
            for kind in reversed(STAGES):
                direction = self._note(kind, layer, direction)
        self._note("embed", None, direction)

    def _note(self, kind: str, layer: int | None, direction: Direction) -> Direction:
        """The direction before a place of the stream, from that behind it."""
        self.behind[kind, layer] = direction
        edit = self._stream_map(kind, layer)
        self.before[kind, layer] = _pulled_back(edit, direction)
        return self.before[kind, layer]

    def _stream_map(self, kind: str, layer: int | None) -> EditMap | None:
        return self.maps.at(kind, layer, self.stream.at("embed") if layer is None else self._resid(layer))

    def _resid(self, layer: int) -> Tensor:
        return self.stream.at("resid_post", layer)

    def embedding(self) -> Iterator[Contribution | EditMap]:
        """Input of the first layer: token embedding and, where the model adds learned positions, those apart.

        Positions are told by what they do: what is left of the input when the tokens' rows of W_E are taken off must
        not change with the tokens. Where it does (an embedding norm, a multiplier), the input stays in one piece.
        """
        stream, direction = self.stream, self.before["embed", None]
        model, full = stream.model, stream.at("embed")
        if stream.edits_at("embed"):
            full = _at_rest(stream, stream.batch).to(full)
        rest = _rest(model, stream.ids, full)
        positions = rest is not None and bool((rest.abs() > 1e-6 * full.abs().max()).any())
        if rest is not None and positions:
            other = Batch((stream.batch.ids[:1] + 1) % model.info.d_vocab, stream.batch.mask[:1])
            probe = _rest(model, (stream.ids[:1] + 1) % model.info.d_vocab, _at_rest(stream, other).to(full))
            moved = None if probe is None else (probe - rest[:1])[stream.mask[:1]]
            positions = moved is not None and float(moved.abs().max()) <= 1e-5 * float(full.abs().max())
        if rest is None or not positions:
            yield [embed()], along(full, direction)[None]
        else:
            yield [embed()], along(full - rest, direction)[None]
            yield [Term("pos", "pos")], along(rest, direction)[None]
        yield from self._edit("embed", None)

    def layer(self, layer: int, *, neurons: bool) -> Iterator[Contribution | EditMap]:
        """Everything a layer writes."""
        missing = self.stream.writes[layer].missing
        yield from self._edit("resid_pre", layer)
        if "attn_out" in missing:
            yield from self._edit("resid_post", layer)
            yield [Term(f"B{layer}", "block", layer)], self._block(layer)[None]
            return
        yield from self._written("attn_out", layer, self.before["resid_mid", layer], neurons=False)
        yield from self._edit("resid_mid", layer)
        if self.stream.writes[layer].rest:
            yield [Term(f"B{layer}", "block", layer)], along(self._third(layer), self.before["resid_post", layer])[None]
        if "mlp_out" not in missing:
            yield from self._written("mlp_out", layer, self.before["resid_post", layer], neurons=neurons)
        yield from self._edit("resid_post", layer)

    def _edit(self, kind: str, layer: int | None) -> Iterator[Contribution | EditMap]:
        """Edits of the stream, and what they add."""
        edit = self._stream_map(kind, layer)
        if edit is not None:
            yield edit
            yield from _added([edit_of(kind, layer)], edit.constant[None], self.behind[kind, layer])

    def _written(self, kind: str, layer: int, direction: Direction, *, neurons: bool) -> Iterator[Contribution]:
        """What attention or the MLP writes, behind the edits of its output."""
        edit = self.maps.at(kind, layer, self.stream.at(kind, layer))
        own = _pulled_back(edit, direction)
        terms = self._attention(layer, own) if kind == "attn_out" else self._mlp(layer, own, neurons=neurons)
        for names, x in terms:
            yield names, x if edit is None or direction is not None else edit.linear(x)
        if edit is not None:
            yield from _added([edit_of(kind, layer)], edit.constant[None], direction)

    def _block(self, layer: int) -> Tensor:
        """A layer that is one piece: what it makes of its input, behind the edits of its output."""
        before, after = self.stream.at("resid_pre", layer), self._resid(layer)
        edit = self._stream_map("resid_post", layer)
        if edit is None:
            return along(after - before, self.behind["resid_post", layer])
        if self.behind["resid_post", layer] is None:
            return after - edit(before)
        whole = along(after - edit.constant, self.behind["resid_post", layer])
        return whole - along(before, self.before["resid_post", layer])

    def _third(self, layer: int) -> Float[Tensor, "batch pos d_model"]:
        """What a layer adds beside attention and MLP: the difference that is left.

        Raises:
            SiteError: edits of the stream within the layer, which the difference would hold as well.
        """
        for kind in ("resid_mid", "resid_post"):
            if self.stream.edits_at(kind, layer):
                raise SiteError(
                    f"layer {layer} adds more to the stream than attention and MLP, by difference, and an edit changes "
                    f"{Site(kind, layer)} there; edit another layer's stream, or attn_out or mlp_out of this one"
                )
        rest = self._resid(layer) - self.stream.at("resid_pre", layer) - self.stream.at("attn_out", layer)
        return rest if "mlp_out" in self.stream.writes[layer].missing else rest - self.stream.at("mlp_out", layer)

    def _mlp(self, layer: int, direction: Direction, *, neurons: bool) -> Iterator[Contribution]:
        write = self.stream.writes[layer].mlp
        whole, edited = self.stream.at("mlp_out", layer), bool(self.stream.edits_at("mlp_out", layer))
        if write is None:
            out = self._unedited("mlp_out", layer) if edited else whole
            if neurons:
                yield from self._experts(layer, out, direction)
            else:
                yield [mlp_of(layer)], along(out, direction)[None]
            return
        a = self.stream.at("mlp_post", layer).reshape(*whole.shape[:2], -1)
        divisor = write.divisor(a)
        bias = write.bias(a.shape[-1], divisor).to(whole)
        if neurons and direction is not None:
            slopes = write.pull_back(direction, a.shape[-1]).to(a)
            yield neurons_of(layer, a.shape[-1]), (a / divisor * slopes).movedim(-1, 0)[..., None]
        elif neurons:
            matrix = write.matrix(a.shape[-1])[:, None]
            yield neurons_of(layer, a.shape[-1]), _projected((a / divisor)[..., None], matrix, direction)
        else:
            out = (a / divisor) @ write.matrix(a.shape[-1]).to(a) + bias if edited else whole
            yield [mlp_of(layer)], along(out - bias, direction)[None]
        yield from _bias(f"b_mlp{layer}", layer, bias, direction)

    def _experts(self, layer: int, out: Tensor, direction: Direction) -> Iterator[Contribution]:
        """Neurons of a mixture of experts, and what the experts write beside."""
        units = expert_units(self.stream.model.reads(layer), self.stream.at("mlp_in", layer), layer)
        a, count = units.activations.to(out), len(units.matrix)
        yield neurons_of(layer, count), _projected(a[..., None], units.matrix.to(out)[:, None], direction)
        yield from _bias(f"b_mlp{layer}", layer, units.bias.to(out), direction)

    def _attention(self, layer: int, direction: Direction) -> Iterator[Contribution]:
        """Heads, or their sources, and the bias; attention in one piece where heads cannot be told apart."""
        stream, write = self.stream, self.stream.writes[layer].attn
        out, edited = stream.at("attn_out", layer), bool(stream.edits_at("attn_out", layer))
        if write is None:
            out = self._unedited("attn_out", layer) if edited else out
            yield [attention_of(layer)], along(out, direction)[None]
            return
        z = stream.at("z", layer)
        n_heads, width = z.shape[2:]
        divisor = write.divisor(z.flatten(2))
        bias = write.bias(n_heads * width, divisor).to(out)
        matrix = write.matrix(n_heads * width).unflatten(0, (n_heads, width))
        changed = stream.edits_at("head_out", layer)
        if self.heads and layer in stream.patterns:
            yield from self._sources(layer, matrix, divisor, direction)
        elif changed or self.heads or edited:
            if changed:
                writes = along(stream.at("head_out", layer).movedim(2, 0), direction)
            else:
                writes = _projected(z / divisor[..., None], matrix, direction)
            whole = [attention_of(layer)], writes.sum(0, keepdim=True)
            yield (heads_of(layer, n_heads), writes) if self.heads else whole
        else:
            yield [attention_of(layer)], along(out - bias, direction)[None]
        yield from _bias(f"b_attn{layer}", layer, bias, direction)

    def _sources(self, layer: int, matrix: Tensor, divisor: Tensor, direction: Direction) -> Iterator[Contribution]:
        """p_ij v_j W_O[h] of one query, behind the edits of z and head_out: keys stand where positions otherwise do."""
        stream, v = self.stream, self.stream.values(layer)
        p = stream.patterns[layer].to(v).transpose(1, 2)[..., None]  # batch key head 1
        n_heads, n, z = v.shape[2], v.shape[1], stream.at("z", layer)
        parts, added = p * v, None
        edit = self.maps.at("z", layer, z)
        if edit is not None:
            parts = edit.linear(parts.transpose(0, 1)[:, :, None])[:, :, 0].transpose(0, 1)
            added = _projected(edit.constant / divisor[..., None], matrix, None)
        out = (
            self.maps.at("head_out", layer, stream.at("head_out", layer))
            if stream.edits_at("head_out", layer)
            else None
        )
        writes = _projected(parts / divisor[..., None], matrix, direction if out is None else None)
        if out is not None:  # head batch key d -> key batch 1 head d, and back
            by_key = out.linear(writes.permute(2, 1, 0, 3)[:, :, None])[:, :, 0].permute(2, 1, 0, 3)
            writes = along(by_key, direction)
            added = out.constant.movedim(2, 0) if added is None else out(added.movedim(0, 2)).movedim(2, 0)
        yield sources_of(layer, n_heads, n), writes.transpose(1, 2).flatten(0, 1)[:, :, None]
        if added is not None:
            yield from _added(head_edits_of(layer, n_heads), added, direction)

    def _unedited(self, kind: str, layer: int) -> Tensor:
        """What stood at a place before the edits there, from a run without these."""
        stream = self.stream
        own = [e for e in stream.edits if not (e.site.kind == kind and layer in stream.model.info.layers_of(e.site))]
        site = Site(kind, layer, position=stream.position)
        with stream.model.resting(), stream.model.editing(own):
            x = stream.model.run(stream.batch, capture=[site], stop=stream.last).acts[site]
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return x if stream.position is None else x[:, None]


def _at_rest(stream: StreamRun, batch: Batch) -> Float[Tensor, "batch pos d_embed"]:
    """Input of the first layer without edits, at the chosen positions."""
    site = Site("embed", position=stream.position)
    with stream.model.resting():
        x = stream.model.run(batch, capture=[site], stop=0).acts[site]
    return x if stream.position is None else x[:, None]


def _rest(model: Model, ids: Tensor, full: Tensor) -> Tensor | None:
    """Input of the first layer less the token's row of W_E; None where that is of another width."""
    rows = model.weights().source.embed(ids.flatten().cpu()).to(full).unflatten(0, ids.shape)
    return full - rows if rows.shape == full.shape else None


def _bias(name: str, layer: int, bias: Tensor, direction: Direction) -> Iterator[Contribution]:
    if bool(bias.any()):
        yield [Term(name, "bias", layer)], along(bias, direction)[None]


def _added(
    terms: list[Term], x: Float[Tensor, "term batch pos d_model"], direction: Direction
) -> Iterator[Contribution]:
    """What edits add, those terms of it that are anything."""
    kept = [i for i, part in enumerate(x) if bool(part.any())]
    if kept:
        yield [terms[i] for i in kept], along(x[kept], direction)


def _pulled_back(edit: EditMap | None, direction: Direction) -> Direction:
    return direction if edit is None or direction is None else edit.pull_back(direction)


def along(x: Float[Tensor, "*part batch pos d_model"], direction: Direction) -> Float[Tensor, "*part batch pos out"]:
    """The vector, or its product with a direction."""
    return x if direction is None else (x * direction.to(x)).sum(-1, keepdim=True)


def _projected(
    x: Float[Tensor, "batch pos k width"], matrix: Float[Tensor, "k width d_model"], direction: Direction
) -> Float[Tensor, "k batch pos out"]:
    """x_k matrix_k for each k; with a direction the matrices are projected first and no vector is made."""
    if direction is None:
        return torch.einsum("bpkw,kwd->kbpd", x, matrix.to(x))
    projection = torch.einsum("kwd,bpd->bpkw", matrix.to(x), direction.to(x))
    return (x * projection).sum(-1).movedim(2, 0)[..., None]
