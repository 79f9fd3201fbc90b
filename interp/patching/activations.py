"""Activation patching: put one activation of another run into a run and see what becomes of the metric."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from interp.edits import Edit, Replace
from interp.errors import SiteError, TaskError, nearest
from interp.model import Model, ModelInfo
from interp.patching.case import Case
from interp.patching.effect_table import COLUMNS, MODES, Mode, checked, effects
from interp.patching.names import component_of
from interp.patching.places import Place, Positions, places
from interp.patching.readout import Exit
from interp.results.provenance import recorded
from interp.results.results import Result, frame
from interp.sites import DIVISORS, PER_HEAD, UNLAYERED, Site
from interp.tasks import PromptTask
from interp.tasks.metrics import AnyMetric

NODES = {
    "heads": "z",
    "mlps": "mlp_out",
    "mlp": "mlp_out",
    "attn": "attn_out",
    "resid": "resid_pre",
    "q": "q",
    "k": "k",
    "v": "v",
    "z": "z",
    "pattern": "pattern",
}
"""Kinds of site by name; those before "q" are called by what they are the output of."""
REFUSED = ("scores", *DIVISORS, *UNLAYERED)
Nodes = str | Site | Sequence[Site | str]
EXTRA = COLUMNS | {"token": "str"}


@recorded
def activation_patching(
    model: Model,
    task: PromptTask | Sequence[PromptTask],
    *,
    nodes: Nodes = "heads",
    positions: Positions = None,
    mode: str = "denoising",
    metric: AnyMetric | None = None,
    batch_size: int = 64,
    seed: int = 0,
    edits: Sequence[Edit] = (),
) -> Result:
    """E = mean over prompts of m(base | a := a_other) - m(base), for every node a; normalised by m(other) - m(base).

    "denoising" patches clean activations into the corrupted run: what is enough to bring the answer back. "noising"
    patches corrupted ones into the clean run: what the answer needs. Components that can stand in for each other are
    seen by the first and missed by the second, links of a chain by either. `normalised` is a ratio of means,
    (m_patched - m_corrupt) / (m_clean - m_corrupt) when denoising and (m_clean - m_patched) / (m_clean - m_corrupt)
    when noising: 0 for no effect, 1 where the run behaves as the other does, beyond these where a node works against
    the rest. Effects of nodes do not add up.

    Cost: one run over both prompts of each pair, then for a node in layer l of L the layers l to L of one more; nodes
    of a layer, each with its own edit, share forwards of `batch_size` rows, and only END is unembedded: over all heads
    about half of one forward per node.

    What misleads: a probability cannot show what works against an answer that has none; which names a corruption
    exchanges decides what is found (Zhang & Nanda 2023, arXiv 2309.16042), so give several and compare.

    Args:
        model: any backend.
        task: prompts and their corrupted twins; several, one per corruption, are variants of one result.
        nodes: "heads" (their z), "mlps", "attn" (whole layers), "resid" (the stream entering each layer), "q", "k",
            "v", "z", "pattern" (what each head looks at, its values being the run's own), sites ("L3H5.z",
            "L0-4.mlp_out"), or several of these: ("resid", "attn", "mlps"). k and v are of key-value heads. Patterns of
            all layers are held at once, prompts times heads times tokens squared.
        positions: None patches every token at once; "all" one position at a time, counted from the prompt's start;
            "roles" one of the task's token roles at a time, or name some. A prompt that lacks one is left out of it.
            Those of a pattern are its queries.
        mode: "denoising" or "noising".
        metric: a name in `interp.tasks.metrics` or a function (logits, task) -> [batch]; the task's own otherwise.
        batch_size: rows of a forward, prompts times nodes; changes nothing but memory.
        seed: of the bootstrap.
        edits: changes under which the model runs, as in an `editing` context; provenance lists them.

    Returns:
        One row per corruption, node and position: value (in the metric's units), its 95 % interval over prompts,
        normalised, and n, the prompts that have the position.

    Raises:
        SiteError: no such site, or one that cannot be set.
        TaskError: no such role or metric.
        SchemaError: no such mode.

    >>> import interp
    >>> from interp.tasks import planted_task
    >>> from interp.zoo.planted import factory
    >>> planted = factory.plant([factory.Induction()], seed=0)
    >>> model = interp.load(planted.model, tokenizer=planted.tokenizer)
    >>> result = activation_patching(model, planted_task(planted, "induction", n=4), nodes="heads")
    >>> bool(result.table["normalised"].max() > 0.5)
    True
    """
    tasks = tuple(task) if isinstance(task, Iterable) else (task,)
    if not tasks:
        raise TaskError("no tasks to patch")
    way = checked(mode)
    cases = [Case.of(model, each, metric=metric) for each in tasks]
    sites = _sites(nodes, model.info)
    rows: list[dict[str, object]] = []
    for case in cases:
        at = places(model, case.task, positions)
        values, base, other = patched_values(case, sites, at, mode=way, batch_size=batch_size)
        statistics = effects(values, base, other, seed=seed)
        for i, effect in enumerate(statistics):
            where = at[i % len(at)]
            rows.append({**_row_labels(sites[i // len(at)], where, case), "mode": mode, **effect})
    return Result(frame(rows, extra=EXTRA), {"method": "activation-patching", "metric": cases[0].metric})


@torch.no_grad()
def patched_values(
    case: Case, sites: Sequence[Site], places: Sequence[Place], *, mode: Mode, batch_size: int
) -> tuple[Float[ndarray, "node prompt"], Float[ndarray, " prompt"], Float[ndarray, " prompt"]]:
    """m(base | node := other) of every site at every place, m(base), and m(other); NaN where a prompt lacks a place."""
    parts, first, way_out = [], 0, None
    for part in case.batches(batch_size):
        rows, width = slice(first, first + len(part)), part.task.clean.ids.shape[1]
        part_places = [place.part(rows, width) for place in places]
        portion = _Portion(part, sites, mode)
        way_out = way_out or Exit.of(part, portion.base_end)
        parts.append(portion.values(part_places, batch_size, way_out))
        first += len(part)
    values, base, other = (torch.cat(x, -1).cpu().double().numpy() for x in zip(*parts, strict=True))
    return values, base, other


class _Portion:
    """Some prompts: both runs, observed once, and patched runs in batches of rows."""

    def __init__(self, part: Case, sites: Sequence[Site], mode: Mode) -> None:
        self.part, self.sites, self.n = part, sites, len(part)
        task, self.last = part.task, part.model.info.n_layers - 1
        self.base, other = (task.clean, task.corrupt) if mode == MODES[0] else (task.corrupt, task.clean)
        both = self.base.joined(other)
        entry_sites = [Site("resid_pre", layer) for layer in {_layer(site) for site in sites}]
        exit_site = Site("resid_post", self.last)
        captures = list(dict.fromkeys([*entry_sites, *map(_whole, sites), exit_site]))
        acts = part.model.run(both, capture=captures, stop=self.last).acts
        self.resid = {_layer(site): acts[site][: self.n] for site in entry_sites}
        self.other = {_whole(site): acts[_whole(site)][self.n :] for site in sites}
        self.end = acts[exit_site][torch.arange(len(both.ids)), task.end.repeat(2)]

    @property
    def base_end(self) -> Float[Tensor, "prompt d_model"]:
        """The stream behind the last layer at END, in the run that is patched."""
        return self.end[: self.n]

    def values(
        self, places: Sequence[Place], batch_size: int, way_out: Exit
    ) -> tuple[Float[Tensor, "node prompt"], Float[Tensor, " prompt"], Float[Tensor, " prompt"]]:
        """Patched, base and other, of these prompts."""
        jobs = [(site, place) for site in self.sites for place in places]
        metric_values = torch.full((len(jobs), self.n), torch.nan, dtype=torch.float64, device=self.end.device)
        by_layer: dict[int, list[int]] = {}
        for i, (site, _) in enumerate(jobs):
            by_layer.setdefault(_layer(site), []).append(i)
        size = max(1, batch_size // self.n)
        for layer, members in sorted(by_layer.items()):
            for first in range(0, len(members), size):
                block = members[first : first + size]
                resid = self._patched_stream(layer, [jobs[i] for i in block])
                metric_values[block] = way_out.values(self.part, resid).double()
        for i, (_, place) in enumerate(jobs):
            if place.mask is not None:
                metric_values[i, ~place.mask.any(1)] = torch.nan
        ends = way_out.values(self.part, self.end.unflatten(0, (2, self.n)))
        return metric_values, ends[0], ends[1]

    def _patched_stream(self, layer: int, jobs: Sequence[tuple[Site, Place]]) -> Float[Tensor, "node prompt d_model"]:
        """The stream behind the last layer at END, one block of rows for every node."""
        times = len(jobs)
        batch = self.base.repeat(times)
        exit_site = Site("resid_post", self.last)
        ends = self.part.task.end.repeat(times)
        run = self.part.model.run(
            batch,
            start=(layer, self.resid[layer].repeat(times, 1, 1)),
            stop=self.last,
            edits=[self._edit(i, times, *job) for i, job in enumerate(jobs)],
            capture={exit_site: lambda x: x[torch.arange(len(x)), ends]},
        )
        return run.acts[exit_site].unflatten(0, (times, self.n))

    def _edit(self, block: int, times: int, site: Site, place: Place) -> Edit:
        other = self.other[_whole(site)]
        value = other if site.head is None else other.select(1 if site.kind == "pattern" else 2, site.head)
        rows = torch.arange(self.n) + block * self.n
        mask = None if place.mask is None else place.mask.repeat(times, 1)
        return Replace(site, value, rows=rows, positions=mask)


def _layer(site: Site) -> int:
    assert site.first is not None  # `_sites` names one layer each
    return site.first


def _whole(site: Site) -> Site:
    """The site of which a head or a position is narrowed."""
    return Site(site.kind, site.first)


def _sites(nodes: Nodes, info: ModelInfo) -> list[Site]:
    """One site per node: each at one layer, each head alone where a group is named."""
    if isinstance(nodes, str) and nodes not in NODES:
        raise SiteError(f"unknown nodes {nodes!r}; {nearest(nodes, NODES)}, or give a list of sites")
    sites: list[Site] = []
    for each in nodes if isinstance(nodes, Iterable) and not isinstance(nodes, str) else [nodes]:
        group = NODES.get(each) if isinstance(each, str) else None
        site = Site.parse(group or each) if isinstance(each, str) else each
        if not isinstance(site, Site):
            raise SiteError(f"nodes are names ({', '.join(NODES)}) or sites; got {type(site).__name__} {site!r:.40}")
        if site.kind in REFUSED:
            raise SiteError(f"{site}: cannot be patched; choose an activation inside a layer: {', '.join(NODES)}")
        for layer in info.layers_of(site):
            assert layer is not None  # sites outside the layers are refused
            heads = info.n_kv_heads if site.kind in ("k", "v") else info.n_heads
            every = group is not None and site.kind in PER_HEAD
            sites.extend(replace(site.at(layer), head=head) for head in (range(heads) if every else (site.head,)))
    sites = list(dict.fromkeys(sites))
    if not sites:
        raise SiteError("no nodes to patch")
    return sites


def _row_labels(site: Site, where: Place, case: Case) -> dict[str, object]:
    info = case.model.info
    return {
        "analysis": "activation_patching",
        "variant": case.task.corruption,
        "site": str(site),
        "layer": site.first,
        "head": site.head,
        "component": component_of(site, group=info.n_heads // info.n_kv_heads),
        **where.labels,
        **({} if site.position is None else {"position": site.position}),
        "unit": case.metric,
    }
