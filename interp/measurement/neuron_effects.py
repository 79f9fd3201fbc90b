"""What single neurons do to a task: directly, to first order, and exactly when they are removed; sets of them as edits.

An MLP writes sum_i a_i W_out[i] and a bias: a neuron is an activation and a row. In a mixture of experts an activation
has its expert's weight in it, and neurons are numbered expert by expert (`interp.decompose.experts`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.batch import Prompts
from interp.components import neuron_name
from interp.decompose.attribution import attribute
from interp.decompose.experts import ExpertUnits, expert_units, silenced
from interp.edits import Add, Apply, Edit
from interp.edits.values import HOW
from interp.errors import NotApplicable, SiteError, nearest
from interp.model import Model
from interp.numerics import wide
from interp.parallel import cached_property
from interp.patching.case import Case
from interp.patching.metric_gradients import metric_gradients
from interp.patching.readout import Exit, at_end
from interp.shapes import brief
from interp.sites import Site
from interp.weights.stream import Write

ROWS = 64
"""Of a batch: prompts times neurons that are removed in one forward pass."""
Neuron = tuple[int, int]
"""(layer, neuron)."""


@dataclass(frozen=True, eq=False)
class LayerNeurons:
    """Neurons of one layer on the clean prompts of a case.

    Attributes:
        layer: of the MLP.
        activations: a. gradient: d metric / d a, through everything that follows.
        behind: the stream behind the layer.
        write: the projection that takes them; None in a mixture of experts, which `units` are then of.
        units: rows of the experts.
    """

    layer: int
    activations: Float[Tensor, "batch pos neuron"]
    gradient: Float[Tensor, "batch pos neuron"]
    behind: Float[Tensor, "batch pos d_model"]
    write: Write | None
    units: ExpertUnits | None = None

    __repr__ = brief

    @property
    def width(self) -> int:
        """Neurons."""
        return self.activations.shape[-1]

    def rows(self, at: Int[Tensor, " row"] | None = None) -> Float[Tensor, "row d_model"]:
        """W_out of some neurons, or of all, before the norm behind the projection where there is one."""
        if self.write is not None:
            return self.write.rows(self.width, at)
        assert self.units is not None  # one of the two
        return self.units.matrix if at is None else self.units.matrix[at.to(self.units.matrix.device)]

    def change(
        self, neuron: int, row: Float[Tensor, " d_model"], value: Float[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """What the stream behind the layer gains when the neuron is set to a value; exact."""
        step = (value - self.activations[..., neuron])[..., None] * row.to(self.behind)
        if self.write is None or self.write.norm is None:
            return step if self.write is None else step * self.write.scale
        norm = self.write.norm.to(step.device)
        return (norm(self._raw + step) - norm(self._raw)) * self.write.scale

    @cached_property
    def _raw(self) -> Float[Tensor, "batch pos d_model"]:
        """What the projection gives, before the norm behind it."""
        assert self.write is not None  # asked before
        rows, rest = self.write.rows(self.width), self.write.rest(self.width)
        return self.activations @ rows.to(self.activations) + rest.to(self.activations)


@dataclass(frozen=True, eq=False)
class NeuronEffects:
    """Every neuron of a model on a task.

    Attributes:
        case: model and task. layers: neurons of each layer that has some that can be told apart.
        missing: layers that have none, and why.
        end: the clean stream behind the last layer at END.
    """

    case: Case
    layers: tuple[LayerNeurons, ...]
    missing: Mapping[int, str]
    end: Float[Tensor, "batch d_model"]

    __repr__ = brief

    @classmethod
    def of(cls, case: Case, layers: Sequence[int] | None = None) -> NeuronEffects:
        """One forward and one backward pass; in a mixture of experts one more gradient of its MLP for each token.

        Raises:
            NotApplicable: no layer has neurons.
            SiteError: edits in force at or behind an MLP's output within a layer.
        """
        model = case.model
        _refuse_edits(model)
        wanted = range(model.info.n_layers) if layers is None else layers
        missing = {i: why for i in wanted if (why := _missing(model, i))}
        own = [i for i in wanted if i not in missing]
        if not own:
            raise NotApplicable(
                f"{model.info.name}: no MLP whose neurons can be told apart: {'; '.join(missing.values())}"
            )
        mixed = [i for i in own if model.writes(i).mlp is None]
        sites = [Site("mlp_out" if i in mixed else "mlp_post", i) for i in own]
        last = Site("resid_post", model.info.n_layers - 1)
        beside = [last, *(Site("resid_post", i) for i in own), *(Site("mlp_in", i) for i in mixed)]
        run = metric_gradients(case, sites, beside=beside)
        parts = []
        for i, site in zip(own, sites, strict=True):
            behind, grad = wide(run.acts[Site("resid_post", i)]), run.sites[site]
            if i in mixed:
                units = expert_units(model.reads(i), wide(run.acts[Site("mlp_in", i)]), i)
                slopes = grad @ units.matrix.to(grad).mT
                parts.append(LayerNeurons(i, units.activations.to(grad), slopes, behind, None, units))
            else:
                a = wide(run.acts[site]).reshape(*grad.shape[:2], -1)
                parts.append(LayerNeurons(i, a, grad.reshape(a.shape), behind, model.writes(i).mlp))
        return cls(case, tuple(parts), missing, at_end(case, run.acts[last]))

    @property
    def names(self) -> list[Neuron]:
        """(layer, neuron) of every neuron, in the order of all arrays here."""
        return [(part.layer, i) for part in self.layers for i in range(part.width)]

    def values(self, how: str) -> dict[int, Float[Tensor, "batch pos neuron"]]:
        """What removed neurons are set to, by layer: 0, their mean over the clean prompts' tokens, or their twins'.

        Raises:
            SiteError: an unknown way.
        """
        if how not in HOW:
            raise SiteError(f"unknown ablation {how!r}; {nearest(how, HOW)}")
        if how == "zero":
            return {part.layer: torch.zeros_like(part.activations) for part in self.layers}
        if how == "resample":
            return activations(self.case.model, self.case.task.corrupt, [part.layer for part in self.layers])
        mask = self.case.task.clean.mask
        return {
            part.layer: part.activations[mask.to(part.activations.device)].mean(0).expand_as(part.activations)
            for part in self.layers
        }

    def first_order(self, how: str = "mean") -> Float[np.ndarray, "prompt neuron"]:
        """sum_t (a - v)[t] . dm / da[t]: to first order what removing each neuron costs, in the metric."""
        values = self.values(how)
        parts = [((p.activations - values[p.layer].to(p.activations)) * p.gradient).sum(1) for p in self.layers]
        return torch.cat(parts, 1).double().cpu().numpy()

    def direct(self) -> Float[np.ndarray, "prompt neuron"]:
        """a_i W_out[i] . w at END: the logits of right less wrong answers that each neuron writes; see `attribute`."""
        task, layers = self.case.task, [part.layer for part in self.layers]
        wrong = task.wrong if task.contrasted else None
        found = attribute(self.case.model, task.clean, task.answers, wrong, heads=False, neurons=layers)
        at = [i for i, term in enumerate(found.terms) if term.kind == "neuron"]
        return found.values[at].T.double().cpu().numpy()

    def norms(self) -> Float[np.ndarray, " neuron"]:
        """Root mean square over tokens of |a_i W_out[i]|, the length of what each neuron writes."""
        acts = {part.layer: part.activations for part in self.layers}
        return written_norms(self.case.model, acts, self.case.task.clean.mask)[1]

    @torch.no_grad()
    def removal(
        self, neurons: Sequence[Neuron], how: str = "mean", *, rows: int = ROWS
    ) -> Float[np.ndarray, "prompt neuron"]:
        """m(clean) - m(one neuron removed), each in turn; exact: what follows the layer is run again, as batches."""
        values, n = self.values(how), len(self.case)
        effects = np.zeros((n, len(neurons)))
        clean = self.case.clean.double().cpu().numpy()[:, None]
        for part in self.layers:
            own = [j for j, (layer, _) in enumerate(neurons) if layer == part.layer]
            if not own:
                continue
            index = torch.tensor([neurons[j][1] for j in own])
            written = part.rows(index)
            for chunk in torch.arange(len(own)).split(max(1, rows // n)):
                changes = [
                    part.change(int(index[c]), written[c], values[part.layer][..., int(index[c])].to(part.behind))
                    for c in chunk.tolist()
                ]
                found = self._behind(part, torch.stack(changes))
                effects[:, [own[c] for c in chunk.tolist()]] = clean - found.double().cpu().numpy().T
        return effects

    def _behind(
        self, part: LayerNeurons, changes: Float[Tensor, "copy batch pos d_model"]
    ) -> Float[Tensor, "copy batch"]:
        """The metric when the stream behind the layer is changed, one change a copy of the prompts."""
        model, k = self.case.model, len(changes)
        stream, last = part.behind + changes, model.info.n_layers - 1
        many = self.case.repeated(k)
        flat = stream.flatten(0, 1)
        if part.layer < last:
            site = Site("resid_post", last)
            start = (part.layer + 1, flat.to(getattr(torch, model.info.dtype)))
            flat = model.run(many.task.clean, capture=[site], start=start, stop=last).acts[site]
        end = at_end(many, flat)
        exit_ = Exit.of(many, end)
        return exit_.values(self.case, end.unflatten(0, (k, len(self.case))))


def activations(model: Model, batch: Prompts, layers: Sequence[int]) -> dict[int, Float[Tensor, "batch pos neuron"]]:
    """Neurons of some layers on some prompts, those of experts with the experts' weights in them."""
    mixed = [i for i in layers if model.writes(i).mlp is None]
    sites = [Site("mlp_in" if i in mixed else "mlp_post", i) for i in layers]
    acts = model.run(batch, capture=sites, stop=max(layers)).acts
    found = {}
    for i, site in zip(layers, sites, strict=True):
        x = wide(acts[site])
        found[i] = expert_units(model.reads(i), x, i).activations if i in mixed else x.reshape(*x.shape[:2], -1)
    return found


def neuron_edits(
    model: Model, neurons: Sequence[Neuron], values: Mapping[int, Float[Tensor, " neuron"]] | None = None
) -> list[Edit]:
    """Edits that set neurons to zero, or to `values` [neuron] by layer, at every token; for any run of the model.

    Raises:
        SiteError: a layer without neurons that can be told apart.
    """
    edits: list[Edit] = []
    for layer in sorted({layer for layer, _ in neurons}):
        why = _missing(model, layer)
        if why:
            raise SiteError(why)
        at = torch.tensor(sorted({i for own, i in neurons if own == layer}))
        value = torch.zeros(len(at)) if values is None else values[layer].detach().cpu()[at]
        if model.writes(layer).mlp is not None:
            edits.append(Apply(Site("mlp_post", layer), _setter(at, value)))
        else:
            edits += _expert_edits(model, layer, at, value)
    return edits


def keep_only_edits(model: Model, kept: Sequence[Neuron], values: Mapping[int, Float[Tensor, " neuron"]]) -> list[Edit]:
    """Edits that set all neurons of the layers in `values` but the kept ones to these."""
    kept_set = set(kept)
    others = [(layer, i) for layer, x in values.items() for i in range(len(x)) if (layer, i) not in kept_set]
    return neuron_edits(model, others, values)


def experts_apart(model: Model, layer: int) -> Callable[[Tensor], ExpertUnits]:
    """`expert_units` of what a layer's MLP takes, for use within a run of the model.

    Read off a copy of the MLP: its own modules carry the run's hooks meanwhile.
    """
    reads = model.reads(layer)
    apart = replace(reads, whole=copy.deepcopy(reads.whole))
    return lambda mlp_in: expert_units(apart, wide(mlp_in), layer)


def value_rows(model: Model, layer: int, at: Int[Tensor, " row"] | None = None) -> Float[Tensor, "row d_model"]:
    """W_out of some neurons of a layer, or of all; with the gain of a norm behind the MLP, its divisor left at 1.

    Raises:
        SiteError: a layer without neurons that can be told apart, or a neuron that it does not have.
    """
    why = _missing(model, layer) if 0 <= layer < model.info.n_layers else f"layer {layer} is out of range"
    if why:
        raise SiteError(why)
    write = model.writes(layer).mlp
    site = Site("mlp_in" if write is None else "mlp_post", layer)
    x = wide(model.run([[0]], capture=[site], stop=layer).acts[site])
    matrix = None if write is not None else expert_units(model.reads(layer), x, layer).matrix
    width = x.flatten(2).shape[-1] if matrix is None else len(matrix)
    if at is not None and int(at.max()) >= width:
        raise SiteError(f"layer {layer} has neurons 0 to {width - 1}; got {int(at.max())}")
    if matrix is not None:
        return matrix if at is None else matrix[at.to(matrix.device)]
    assert write is not None  # one of the two
    rows = write.rows(width, at)
    return write.scale * (rows if write.norm is None else write.norm.to(rows.device).linear(rows))


def written_norms(
    model: Model, acts: Mapping[int, Float[Tensor, "batch pos width"]], mask: Bool[Tensor, "batch pos"]
) -> tuple[list[Neuron], Float[np.ndarray, " neuron"]]:
    """Neurons of some layers, and the root mean square over tokens of the length of what each writes."""
    names, sizes = [], []
    for layer, a in acts.items():
        rms = a[mask.to(a.device)].square().mean(0).sqrt()
        sizes.append((rms * value_rows(model, layer).norm(dim=1).to(rms)).double().cpu().numpy())
        names += [(layer, i) for i in range(a.shape[-1])]
    return names, np.concatenate(sizes)


def neuron_names(neurons: Sequence[Neuron]) -> list[str]:
    """`M3N17` of (layer, neuron) pairs."""
    return [neuron_name(*place) for place in neurons]


def matched_neurons(
    chosen: Sequence[Neuron],
    names: Sequence[Neuron],
    norms: Float[np.ndarray, " neuron"],
    *,
    n_sets: int,
    seed: int,
    nearest_of: int = 10,
) -> list[list[Neuron]]:
    """Random sets like the chosen one: for each neuron one of its layer, not chosen, of the `nearest_of` next in norm.

    No neuron twice in a set. A layer with too few others gives what it has.
    """
    rng = np.random.default_rng(seed)
    place, log = {name: i for i, name in enumerate(names)}, np.log(np.maximum(norms, 1e-30))
    layer_of, taken = np.array([layer for layer, _ in names]), np.zeros(len(names), dtype=bool)
    taken[[place[c] for c in chosen]] = True
    sets = []
    for _ in range(n_sets):
        free = ~taken
        for c in rng.permutation(len(chosen)).tolist():
            own = place[chosen[c]]
            pool = np.flatnonzero(free & (layer_of == chosen[c][0]))
            if len(pool):
                near = pool[np.argsort(np.abs(log[pool] - log[own]), kind="stable")[:nearest_of]]
                free[rng.choice(near)] = False
        sets.append([names[i] for i in np.flatnonzero(~free & ~taken).tolist()])
    return sets


def _missing(model: Model, layer: int) -> str:
    """Why a layer's neurons cannot be told apart; empty where they can."""
    writes = model.writes(layer)
    if "mlp_out" in writes.missing or "attn_out" in writes.missing:
        return writes.missing.get("mlp_out") or writes.missing["attn_out"]
    if writes.mlp is None and not model.reads(layer).whole:
        return writes.missing.get("mlp_post", f"layer {layer} has no single set of neurons")
    return ""


def _refuse_edits(model: Model) -> None:
    """What is added to the stream leaves a difference as it is; other edits there would change it."""
    for edit in model.edits:
        passed = ("mlp_post",) if isinstance(edit, Add) else ("mlp_out", "mlp_post", "resid_post")
        if edit.site.kind in passed:
            raise SiteError(
                f"an edit in force at {edit.site}: what a removed neuron takes from the stream passes it; measure "
                "outside of it, or give the edit at another place"
            )


def _setter(at: Int[Tensor, " chosen"], value: Float[Tensor, " chosen"]) -> Callable[[Tensor], Tensor]:
    def change(x: Tensor) -> Tensor:
        x = x.clone()
        flat = x.view(*x.shape[:2], -1) if x.ndim > 2 else x
        flat[..., at.to(x.device)] = value.to(x)
        return x

    return change


def _expert_edits(
    model: Model, layer: int, at: Int[Tensor, " chosen"], value: Float[Tensor, " chosen"]
) -> Iterator[Edit]:
    """What the MLP takes is kept as it passes; what it writes without these neurons, and at their values, is put in.

    Copies of the MLP are run: its own modules carry the run's hooks meanwhile.
    """
    x = wide(model.run([[0]], capture=[Site("mlp_in", layer)], stop=layer).acts[Site("mlp_in", layer)])
    reads = model.reads(layer)
    whole, without = replace(reads, whole=copy.deepcopy(reads.whole)), silenced(reads, x, at)
    constant, taken = value.to(x) @ value_rows(model, layer, at).to(x), {}

    def keep(x: Tensor) -> Tensor:
        taken["x"] = x
        return x

    def change(out: Tensor) -> Tensor:
        before, after = (r.mlp_of(taken["x"]) for r in (whole, without))
        assert before is not None  # the layer has neurons
        assert after is not None
        return out + (after - before) + constant.to(out)

    yield Apply(Site("mlp_in", layer), keep)
    yield Apply(Site("mlp_out", layer), change)
