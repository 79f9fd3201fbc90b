"""`judge_features`: how faithful and complete the strongest nodes of a feature circuit are, beside random features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from circuits.evaluation._faithfulness import LEAST
from circuits.features.node_graph import ANALYSIS, EXTRA, FeatureCircuit, sites_of
from circuits.features.node_sets import NodeSetVerdict, judge, masks_of, random_nodes, share
from circuits.features.node_sites import Given
from interp.edits import Edit
from interp.errors import SchemaError, TaskError
from interp.model import Model
from interp.patching.case import Case
from interp.patching.places import places
from interp.results.provenance import recorded
from interp.results.results import Result, frame
from interp.results.stats import bootstrap
from interp.tasks import PromptTask
from interp.tasks.metrics import AnyMetric


@recorded
def judge_features(
    model: Model,
    task: PromptTask,
    circuit: FeatureCircuit,
    *,
    dictionaries: Given = None,
    sizes: Sequence[int] | None = None,
    errors: str = "nodes",
    ablation: str = "mean",
    reference: PromptTask | None = None,
    n_random: int = 20,
    metric: AnyMetric | None = None,
    batch_size: int = 16,
    seed: int = 0,
    edits: Sequence[Edit] = (),
) -> Result:
    """Faithfulness and completeness of the n strongest nodes, for several n, and of random features in their place.

    faithfulness = (m(C) - m(0)) / (m(M) - m(0)), means over prompts, with all other nodes taken out; completeness = 1 -
    the same of the model without C's features (error nodes stay). A random set has as many features at each site and
    place, drawn from those that change, and the same error nodes. Two rows for each size, variants "faithfulness" and
    "completeness": value with its bootstrap interval over prompts; null, the mean of random sets; p, the share of sets
    that come as near to 1, the circuit counted.

    Args:
        model: that the circuit is of.
        task: prompts to judge on, best others than those it was found on.
        circuit: as `feature_circuit` gives it.
        dictionaries: those that it was found with.
        sizes: numbers of nodes; None for the circuit's own.
        errors: whether error nodes of sites with a dictionary are "nodes" of sets, all "kept", or all "removed".
        ablation: what stands for nodes taken out: "mean", "resample" or "zero"; see `node_sets.judge`.
        reference: whose corrupted prompts means are taken over; the task's own otherwise.
        n_random: random sets for each size.
        metric: as the circuit's.
        batch_size: prompts at a time.
        seed: of random sets and the bootstrap.
        edits: changes under which the model runs.

    Raises:
        SchemaError: a circuit from a file or of other dictionaries, a size that there is not, no random set.
        TaskError: an unknown option, or a metric that is the same with every node taken out.
    """
    sites = sites_of(model, circuit, dictionaries)
    numbers = [len(circuit.nodes)] if sizes is None else list(sizes)
    if n_random < 1 or not numbers:
        raise SchemaError("expected n_random of 1 or more, and a size at least")
    case = Case.of(model, task, metric=metric)
    at = places(model, case.task, circuit.option("positions", None))
    sets = []
    for n in numbers:
        chosen, every = circuit.chosen(n), circuit.chosen(circuit.n_changing)
        draws = [random_nodes(chosen, every, seed=seed + i) for i in range(n_random)]
        sets += [masks_of(sites, len(at), own) for own in (chosen, *draws)]
    verdict = judge(case, sites, at, sets, errors=errors, ablation=ablation, reference=reference, batch_size=batch_size)
    if abs(verdict.full.mean() - verdict.empty.mean()) < LEAST:
        raise TaskError(f"{task.name}: {case.metric} is the same with every node taken out: there is nothing to judge")
    rows = verdict_rows(verdict, numbers, seed=seed).assign(analysis=ANALYSIS)
    return Result(frame(rows, extra=EXTRA), {"metric": case.metric, "errors": errors, "ablation": ablation})


def verdict_rows(verdict: NodeSetVerdict, sizes: Sequence[int], *, seed: int) -> pd.DataFrame:
    """Two rows for each size; sets stand in blocks, the circuit's before the random ones."""
    rows, block = [], len(verdict.values) // len(sizes)
    for variant, prompts, sign in (("faithfulness", verdict.values, 1), ("completeness", verdict.complements, -1)):
        every = getattr(verdict, variant)
        for i, size in enumerate(sizes):
            own, others = every[i * block], every[i * block + 1 : (i + 1) * block]
            values = prompts[i * block]
            low, high, _ = bootstrap(
                lambda w, v=values: share(w @ v, w @ verdict.full, w @ verdict.empty)[:, None],
                len(verdict.full),
                seed=seed,
            )
            ends = (float(low[0]), float(high[0]))
            near = np.abs(1 - others) <= abs(1 - own)
            rows.append(
                {
                    "variant": variant,
                    "component": f"{size} nodes",
                    "size": size,
                    "value": own,
                    "ci_low": ends[0] if sign > 0 else 1 - ends[1],
                    "ci_high": ends[1] if sign > 0 else 1 - ends[0],
                    "null": others.mean(),
                    "p": (1 + near.sum()) / (1 + len(others)),
                    "n": len(verdict.full),
                    "unit": "share of the metric",
                }
            )
    return pd.DataFrame(rows)
