"""Path patching: what senders tell receivers directly, and what becomes of the answer if they tell something else.

Two quantities go by this name, and differ by as much as they are large:

`mlps="frozen"`, the edges S -> R alone: at each receiver the stream x_w becomes x_w + sum_S (u_other - u_base), and
nothing else hears of it (`run_edges` with these edges removed). What receivers make of it is live. Into the logits this
is exact without a forward: the base run's last stream plus what S writes more, through the final norm, the unembedding
and any soft-cap, at END.

`mlps="live"`, Wang et al. 2022 (arXiv 2211.00593): all paths from S to R through MLPs and no other head. With every
head held at the base run but those of S, MLPs run on the changed stream and what R reads is noted; then R is set to
that in the base run. Receivers in several layers do not hear of each other at these ports.

A hypothesis of several paths at once (Goldowsky-Dill et al. 2023, arXiv 2304.05969) is a mask for `run_edges`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from circuits.graph.graph import Graph
from circuits.graph.layout import Layout
from circuits.methods import circuit_method
from circuits.patching.paired_runs import Both
from circuits.patching.path_runs import Path, Reach
from circuits.wiring.case import Case
from interp.components import LOGITS, Component, Kind, kind, parse_slot, slot_name
from interp.edits import Edit, of_tokens
from interp.errors import SchemaError, nearest
from interp.model import Model
from interp.patching.effect_table import COLUMNS, Mode, checked, effects
from interp.patching.readout import Exit
from interp.results.provenance import recorded
from interp.results.results import Result, frame
from interp.tasks import PromptTask
from interp.tasks.metrics import AnyMetric

Policy = Literal["frozen", "live"]
POLICIES: tuple[Policy, ...] = ("frozen", "live")
GROUPS: dict[str, tuple[Kind, ...]] = {"heads": ("head",), "mlps": ("mlp",), "nodes": ("embed", "head", "mlp")}
"""Senders by name, each alone."""
AT_ONCE = 16
"""Prompts of which every sender's writes are held at one time, where all tokens matter."""
Senders = str | Sequence[str | tuple[str, ...]]
Receivers = str | Sequence[str | tuple[str, str]]


@recorded
def path_patching(
    model: Model,
    task: PromptTask,
    *,
    senders: Senders = "heads",
    receivers: Receivers = LOGITS,
    mlps: str = "frozen",
    final_norm: str = "live",
    mode: str = "noising",
    metric: AnyMetric | None = None,
    batch_size: int = 64,
    seed: int = 0,
    edits: Sequence[Edit] = (),
) -> Result:
    """E(S -> R) = mean over prompts of m(base | what R hears of S is the other run's) - m(base), for sender sets S.

    Which paths count is said by `mlps`: "frozen" is the direct edge, "live" also goes through MLPs in between; these
    are different quantities (see above). Cost: two runs for all frozen paths into the logits; besides, for live ones,
    MLPs and projections at END alone; into a receiver in layer l of L, (L - l)/L of a forward per sender set, many in
    one batch.

    What misleads: an effect of zero may be a head whose work another does just as well, or one that speaks through
    heads in between. Sets of senders are needed for the first, `trace` for the second. Effects do not add up, but for
    `final_norm="frozen"`.

    Args:
        model: any backend with its weights at hand.
        task: prompts and their corrupted twins.
        senders: "heads", "mlps" or "nodes" (the embedding too), each alone; or names, or tuples of names that are
            patched together. Of a group, those that no receiver can hear are left out.
        receivers: "logits", or slots that hear it together: "L9H6.q", "L1KV0.k" (a key-value head; "L1H1.k" means
            the one that it shares), "M3", "logits".
        mlps: "frozen" or "live".
        final_norm: "frozen" keeps the base run's divisor and leaves a soft-cap out, so that the effect on a difference
            of logits is the difference of two attributions. Receivers must be the logits.
        mode: "noising", the clean run hears the corrupted sender; "denoising", the other way round.
        metric: a name in `interp.tasks.metrics` or a function (logits, task) -> [batch]; the task's own otherwise.
        batch_size: rows of a forward, prompts times sender sets; changes nothing but memory.
        seed: of the bootstrap.
        edits: changes under which the model runs, as in an `editing` context; provenance lists them.

    Returns:
        One row per sender set: value in the metric's units, its 95 % interval over prompts, and normalised, a ratio of
        means: 0 for no effect, 1 for that of the other run.

    Raises:
        SchemaError: no such component, policy or mode; a receiver that none of the senders named comes before.
        SiteError: a receiver that is not written like one, or without the port that is named.
        TaskError: a frozen norm with a metric that is not of the answers' logits.

    >>> import interp
    >>> from interp.tasks import planted_task
    >>> from interp.zoo.planted import factory
    >>> planted = factory.plant([factory.Induction()], seed=0)
    >>> model = interp.load(planted.model, tokenizer=planted.tokenizer)
    >>> result = path_patching(model, planted_task(planted, "induction", n=4))
    >>> best = result.table.loc[result.table["normalised"].idxmax()]
    >>> (int(best["layer"]), int(best["head"])) == planted.truth.roles["induction"][0]
    True
    """
    case, way, policy = Case.of(model, task, metric=metric), checked(mode), policy_of(mlps)
    if final_norm not in POLICIES:
        raise SchemaError(f"unknown final_norm {final_norm!r}; {nearest(final_norm, POLICIES)}")
    slots = slots_of(case.layout, receivers)
    if final_norm == "frozen" and slots != (len(case.layout.slots) - 1,):
        raise SchemaError("a frozen final norm is for paths into the logits alone")
    names = sets_of(case.layout, senders, slots)
    paths, is_frozen = [path_of(case.layout, own, slots) for own in names], final_norm == "frozen"
    values = path_values(case, paths, policy=policy, mode=way, batch_size=batch_size, frozen_norm=is_frozen)
    to = ", ".join(slot_name(*case.layout.slots[i]) for i in slots)
    labels = {"receivers": to, "variant": f"mlps {policy}", "mode": way, "unit": case.metric}
    rows = [
        {"analysis": "path_patching", **_component_fields(own), **labels, **effect}
        for own, effect in zip(names, effects(*values, seed=seed), strict=True)
    ]
    return Result(frame(rows, extra=COLUMNS), {"method": "path-patching", "metric": case.metric})


@recorded
def all_edges_exact(
    model: Model,
    task: PromptTask,
    *,
    mode: str = "noising",
    metric: AnyMetric | None = None,
    batch_size: int = 64,
    seed: int = 0,
    edits: Sequence[Edit] = (),
) -> Graph:
    """S[u, w] = mean over prompts of m(base | edge u -> w carries the other run's u) - m(base), every edge by itself.

    What approximations of edge effects are judged by: noising has the sign of edge attribution, m at the corrupted
    edge less m at the clean one. Only the edge changes; norms, heads and MLPs above it are live. Edges into the logits
    cost nothing, the others (L - l)/L of a forward each, many in one batch: for small models, or for patience.

    Args:
        model: as in `path_patching`, like `task`, `mode`, `metric`, `batch_size` and `seed`.
        task: prompts and their corrupted twins.
        mode: "noising" or "denoising".
        metric: a name in `interp.tasks.metrics` or a function (logits, task) -> [batch]; the task's own otherwise.
        batch_size: rows of a forward, prompts times edges.
        seed: of the bootstrap.
        edits: changes under which the model runs, as in an `editing` context; provenance lists them.

    Returns:
        Every edge, with columns se, ci_low, ci_high over prompts and normalised.
    """
    case, way = Case.of(model, task, metric=metric), checked(mode)
    layout = case.layout
    places = np.argwhere(layout.exists)
    paths = [path_of(layout, (layout.senders[u],), (w,)) for u, w in places.tolist()]
    patched_values, base, other = path_values(case, paths, policy="frozen", mode=way, batch_size=batch_size)
    statistics = effects(patched_values, base, other, seed=seed)
    columns = {
        name: np.full(layout.exists.shape, np.nan) for name in ("value", "se", "ci_low", "ci_high", "normalised")
    }
    for (u, w), effect in zip(places.tolist(), statistics, strict=True):
        for name, array in columns.items():
            array[u, w] = effect[name]
    own = {"method": "exact", "metric": case.metric}
    return Graph.full(layout, columns.pop("value"), provenance=own, columns=columns)


def path_values(
    case: Case,
    paths: Sequence[Path],
    *,
    policy: Policy,
    mode: Mode,
    batch_size: int,
    frozen_norm: bool = False,
) -> tuple[Float[ndarray, "path prompt"], Float[ndarray, " prompt"], Float[ndarray, " prompt"]]:
    """The metric of each prompt with each path patched, in the base run, and in the other."""
    logits = len(case.layout.slots) - 1
    only_end = all(path.slots == (logits,) for path in paths) and not any(map(of_tokens, case.model.edits))
    parts = []
    for part in case.batches(batch_size if only_end else min(batch_size, AT_ONCE)):
        both = Both.of(part, mode, only_end=only_end)
        way_out = Exit.of(part, both.end[0])
        reach = Reach(both, way_out, live=policy == "live", batch_size=batch_size, frozen_norm=frozen_norm)
        ends = way_out.values(part, both.end, divisor=reach.divisor)
        parts.append((reach.values(paths), ends[0], ends[1]))
    patched_values, base, other = (torch.cat(x, -1).cpu().double().numpy() for x in zip(*parts, strict=True))
    return patched_values, base, other


def slots_of(layout: Layout, receivers: Receivers) -> tuple[int, ...]:
    """Columns of receivers.

    Raises:
        SchemaError: no such receiver, or none.
        SiteError: one that is not written like a slot.
    """
    entries = (receivers,) if isinstance(receivers, str) else receivers
    columns = dict.fromkeys(slot_of(layout, *(parse_slot(each) if isinstance(each, str) else each)) for each in entries)
    if not columns:
        raise SchemaError("no receivers")
    return tuple(sorted(columns))


def sets_of(layout: Layout, senders: Senders, slots: Sequence[int]) -> list[tuple[str, ...]]:
    """Sets of senders; those of a group that some receiver can hear.

    Raises:
        SchemaError: no such sender or group, or a named set that no receiver can hear.
    """
    audible: ndarray = np.any(layout.exists[:, list(slots)], axis=1)
    if isinstance(senders, str) and senders in GROUPS:
        kinds = GROUPS[senders]
        return [
            (name,)
            for name, is_audible in zip(layout.senders, audible, strict=True)
            if is_audible and kind(name) in kinds
        ]
    entries = (senders,) if isinstance(senders, str) else senders
    sets = [(each,) if isinstance(each, str) else tuple(each) for each in entries]
    if not sets:
        raise SchemaError("no senders")
    for own in sets:
        unknown = [name for name in own if name not in layout.sender_index]
        if unknown or not own:
            wrong = unknown[0] if unknown else ""
            raise SchemaError(f"no sender {wrong!r}; {nearest(wrong, (*GROUPS, *layout.senders))}")
        if not any(audible[layout.sender_index[name]] for name in own):
            raise SchemaError(f"no receiver is read after {', '.join(own)} is written")
    return sets


def path_of(layout: Layout, senders: Sequence[str], slots: Sequence[int]) -> Path:
    """Senders that are patched together, and what hears them."""
    mask = torch.zeros(len(layout.senders), dtype=torch.bool)
    mask[[layout.sender_index[name] for name in senders]] = True
    return Path(mask, tuple(slots))


def policy_of(mlps: str) -> Policy:
    """The policy, if there is one of that name."""
    if mlps not in POLICIES:
        raise SchemaError(f"unknown policy mlps={mlps!r}; {nearest(mlps, POLICIES)}")
    return "live" if mlps == "live" else "frozen"


def slot_of(layout: Layout, name: str, port: str) -> int:
    """Column of a receiver; k and v of a head mean those of its key-value head."""
    column = layout.slot_index.get((layout.shared(name, port), port))
    if column is None:
        wrong, options = slot_name(name, port), [slot_name(*slot) for slot in layout.slots]
        raise SchemaError(f"no receiver {wrong!r}; {nearest(wrong, options)}")
    return column


def _component_fields(senders: Sequence[str]) -> dict[str, object]:
    """Component, and its layer and head where it is one."""
    component = Component.parse(senders[0]) if len(senders) == 1 else None
    layer, head = (None, None) if component is None else (component.layer, component.index)
    return {"component": " + ".join(senders), "layer": layer, "head": head}


@circuit_method(
    name="exact",
    title="Every edge patched by itself",
    gives="scores",
    costs="a share of a forward pass for every edge",
    means="With this one edge from the other run the metric changes by so much.",
    misleads="Edges that stand in for each other score nothing; effects do not add up.",
    reference="Conmy et al. 2023, arXiv 2304.14997; `all_edges_exact`",
    order=60,
    goal=1.0,
)
def _exact(
    model: Model,
    task: PromptTask,
    *,
    metric: AnyMetric | None = None,
    batch_size: int = 64,
    seed: int = 0,
    mode: str = "noising",
) -> Graph:
    """All edges; the rows of a forward are at least as many as by default."""
    return all_edges_exact(model, task, mode=mode, metric=metric, batch_size=max(64, batch_size), seed=seed)


@circuit_method(
    name="path-patching",
    title="Path patching",
    gives="table",
    costs="2 forward passes into the logits; else a share of one for every sender",
    means="When the receivers hear the other run's sender, on these paths alone, the metric changes by so much.",
    misleads="A head that speaks through other heads, or that another stands in for, has no effect here.",
    reference="Wang et al. 2022, arXiv 2211.00593; Goldowsky-Dill et al. 2023, arXiv 2304.05969",
    order=100,
    judged="nodes",
)
def _path_patching(
    model: Model,
    task: PromptTask,
    *,
    metric: AnyMetric | None = None,
    batch_size: int = 64,
    seed: int = 0,
    senders: Senders = "nodes",
    receivers: Receivers = LOGITS,
    mlps: str = "frozen",
    mode: str = "noising",
) -> Result:
    """Every component's direct effect on the logits, or on the receivers named."""
    return path_patching(
        model,
        task,
        senders=senders,
        receivers=receivers,
        mlps=mlps,
        mode=mode,
        metric=metric,
        batch_size=batch_size,
        seed=seed,
    )
