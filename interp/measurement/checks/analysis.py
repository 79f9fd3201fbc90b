"""`check_analysis(name)`: whether an analysis keeps what `interp` promises of every analysis.

A demand is a function that yields a sentence for each promise that is broken. An analysis that a demand cannot apply to
says so in its declaration: `@analysis(exemptions={"significance": "it has a rank, no null"})`.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.testing import assert_frame_equal

from interp.errors import CheckError, InterpError, NotApplicable, SchemaError, TaskError, nearest
from interp.measurement.checks.case import Case, state, tiny_model, unshown
from interp.measurement.registry import analyze, find
from interp.results.results import COLUMNS, Result
from interp.results.runs import runs

SCALE = 1.4
"""How far the largest value may move when there are twice as many prompts; a sum in place of a mean moves it by 2."""
PROVENANCE = ("schema_version", "run_id", "call", "model", "backend", "seed", "packages", "device", "created_utc")
Faults = Iterator[str]


def check_analysis(
    name: str, *, demands: Sequence[str] | None = None, options: Mapping[str, Any] | None = None
) -> tuple[str, ...]:
    """Run a registered analysis against every demand of `DEMANDS`; the names of those that it was held to.

    It runs on a small planted model with what it should recover and on an inert one, for a few seconds; on the shipped
    model where it needs text that planted models do not know; and on one that is too small for most questions.

    Args:
        name: of a registered analysis.
        demands: some of `DEMANDS`, for work on one of them; all if not given.
        options: for every run, over the declared ones (`PlantedTask.options`, `quick`).

    Raises:
        SchemaError: no such analysis or demand.
        CheckError: the demands that it does not meet, each with the reason.

    >>> from interp.measurement.checks import check_analysis
    >>> "seed" in check_analysis("previous_token")
    True
    """
    case = Case(find(name), options or {})
    for demand in demands or ():
        if demand not in DEMANDS:
            raise SchemaError(f"unknown demand {demand!r}; {nearest(demand, DEMANDS)}")
    names = [d for d in demands or DEMANDS if d not in case.spec.exemptions]
    faults = [f"{demand}: {reason}" for demand in names for reason in _reasons(DEMANDS[demand], case)]
    if faults:
        raise CheckError(f"analysis {name!r} does not meet:\n" + "\n".join(f"  {line}" for line in faults))
    return tuple(names)


def _reasons(demand: Callable[[Case], Faults], case: Case) -> list[str]:
    """What a demand finds broken; an error on the way is one of them."""
    try:
        return list(demand(case))
    except Exception as error:  # whatever a stranger's code raises is to be told, not to end the check
        return [f"{type(error).__name__}: {' '.join(str(error).split())}"]


def declaration(case: Case) -> Faults:
    """The declaration is complete: quantity, meaning, limits, source, stage, caption, seed, judge."""
    spec, parameters = case.spec, inspect.signature(case.spec.run).parameters
    for what in ("family", "title", "unit", "headline", "means", "misleads", "reference"):
        if not getattr(spec, what).strip():
            yield f"`{what}` is empty"
    if not spec.quantity.endswith((".", ":")):
        yield f"the docstring's first line states no quantity, as a sentence: {spec.quantity!r}"
    if spec.unit.startswith("head") and spec.stage is None:
        yield "`stage` is missing: the role of the heads it labels, and its stage in the survey"
    if not inspect.getdoc(spec.figure):
        yield "the function that draws it has no docstring, whose first line is the caption"
    if "seed" not in parameters:
        yield "it takes no `seed`"
    positional = [p.name for p in list(parameters.values())[1:] if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    if positional:
        yield f"options are keyword-only; {', '.join(positional)} can be given by position"
    for demand, why in spec.exemptions.items():
        if demand not in DEMANDS:
            yield f"exempt from an unknown demand {demand!r}; {nearest(demand, DEMANDS)}"
        if not why.strip():
            yield f"exempt from {demand!r} without a reason"
    if spec.planted is None and "planted" not in spec.exemptions:
        yield 'no `planted` task judges it; say why in `exemptions={"planted": ...}`'


def table(case: Case) -> Faults:
    """The table is as declared: its columns alone, the headline first, a unit and a component in every row, n >= 1."""
    rows, spec = case.result.table, case.spec
    columns = [*COLUMNS, *spec.columns]
    if list(rows.columns) != columns:
        yield f"columns are {list(rows.columns)}, declared are {columns}"
    if set(rows["analysis"]) != {spec.name}:
        yield f"the column `analysis` says {sorted(set(rows['analysis']))}"
    if rows["variant"].iloc[0] != spec.headline:
        yield f"the first variant is {rows['variant'].iloc[0]!r}, the headline {spec.headline!r}"
    bare = rows.loc[rows["unit"].isna() | (rows["unit"] == ""), "variant"]
    if len(bare):
        yield f"no unit is stated for {sorted(set(bare))}"
    if rows.loc[rows["variant"] == spec.headline, "value"].isna().all():
        yield "no value of the headline is known"
    for column in ("p", "q"):
        if not rows[column].dropna().between(0, 1).all():
            yield f"{column} outside of 0 to 1"
    if (rows["n"].dropna() < 1).any():
        yield "n below 1"


def null(case: Case) -> Faults:
    """What is expected by chance stands beside every score."""
    yield from _beside(case, "null")


def significance(case: Case) -> Faults:
    """p and q (Benjamini-Hochberg over components) stand beside every score, q not below p."""
    yield from _beside(case, "p", "q")
    rows = _headline(case.result, case.spec.headline)
    if (rows["q"] < rows["p"] - 1e-12).any():
        yield "q is below p"


def interval(case: Case) -> Faults:
    """Standard error, 95 % interval around the value and number of independent units stand beside every score."""
    yield from _beside(case, "se", "ci_low", "ci_high", "n")
    rows = _headline(case.result, case.spec.headline).dropna(subset=["ci_low", "ci_high", "value"])
    if not ((rows["ci_low"] <= rows["value"]) & (rows["value"] <= rows["ci_high"])).all():
        yield "a value outside of its own interval"


def seed(case: Case) -> Faults:
    """The same seed gives the same table and run id."""
    first, again = case.shorter, case.run(**case.fewer)
    try:
        assert_frame_equal(first.table, again.table, check_exact=True)
        assert_frame_equal(first.interventions, again.interventions, check_exact=True)
    except AssertionError as error:
        yield f"two runs with seed 0 differ: {' '.join(str(error).split())}"
    if first.provenance["run_id"] != again.provenance["run_id"]:
        yield "two runs with seed 0 have different run ids: what stands in the data differs"


def sample(case: Case) -> Faults:
    """Another seed draws another sample."""
    other = case.run(seed=1, **case.fewer)
    if _hashes(case.shorter.provenance["data"]) == _hashes(other.provenance["data"]):
        yield "seeds 0 and 1 draw the same data (`sha256` in the provenance)"


def provenance(case: Case) -> Faults:
    """Provenance is complete: who measured what on which data, when, where, and how long it took."""
    facts = case.result.provenance
    for key in PROVENANCE:
        if facts.get(key) is None:
            yield f"{key} is missing"
    if facts.get("seconds") is None:
        yield "seconds is missing"
    if not _hashes(facts["data"]):
        yield "`data` of its `Findings` has no `sha256` of what was run on (`interp.tasks.fingerprint`)"


def ability(case: Case) -> Faults:
    """Provenance of an analysis of prompts with answers says how well the model does the task (`Findings.ability`)."""
    facts = case.result.provenance
    needles = "questions" in facts["data"] and "task" in inspect.signature(case.spec.run).parameters
    if (needles or _asks_a_task(facts["data"])) and not facts.get("ability"):
        yield "its prompts have answers, and `ability` of its `Findings` does not say whether the model gives them"


def planted(case: Case) -> Faults:
    """Every planted head or neuron is labelled and no other; nothing is labelled where nothing is planted."""
    task = case.spec.planted
    if task is None or case.planted is None:
        return
    truth, labels = set(case.planted.truth.parts(task.recovers)), _labelled(case.result, case.spec.headline)
    if not truth:
        yield f"no mechanism of the zoo has the role {task.recovers!r}"
    if truth - labels:
        yield f"missed of {task.recovers!r}: {_names(truth - labels)}"
    if labels - truth:
        yield f"labelled without the role {task.recovers!r}: {_names(labels - truth)}"
    try:
        noise = _labelled(case.inert, case.spec.headline)
    except NotApplicable:
        return
    if noise:
        yield f"labelled in a model without any mechanism: {_names(noise)}"


def refusal(case: Case) -> Faults:
    """A model that it does not suit is refused with NotApplicable: too small a context, or no tokenizer."""
    try:
        result = analyze(tiny_model(), case.spec.name, **case.options)
    except NotApplicable:
        return
    except TaskError as error:
        yield f"a context of 8 tokens is no mistake of the caller's: NotApplicable, not {type(error).__name__}: {error}"
    except InterpError as error:
        yield f"{type(error).__name__} on a context of 8 tokens: {error}"
    else:
        if result.table.empty:
            yield "an empty table of a context of 8 tokens: refuse it with NotApplicable"


def scale(case: Case) -> Faults:
    """Values do not grow with the number of prompts."""
    n = case.n_prompts
    if n is None:
        return
    n, pair = (n // 2, (case.shorter, case.result)) if case.fewer else (n, (case.result, case.run(n_prompts=2 * n)))
    few, many = (_reach(r, case.spec.headline) for r in pair)
    if not few / SCALE <= many <= few * SCALE:
        yield f"the largest value is {few:.3g} with {n} prompts and {many:.3g} with {2 * n}"


def keeping(case: Case) -> Faults:
    """The result can be saved, listed, loaded and drawn; the figure is returned, not shown, without a warning."""
    import plotly.graph_objects as go

    with tempfile.TemporaryDirectory() as folder, unshown():
        back = Result.load(case.result.save(Path(folder) / "result.parquet"))
        listed = runs(folder).table.to_dict("records")
        case.result.plot(case.spec.name, variant=case.spec.headline)
        rows = case.result.top(case.spec.name, variant=case.spec.headline, k=len(case.result.table))
        figure = case.spec.figure(rows)  # the title makes a figure of anything
    facts = case.result.provenance
    wanted = {key: facts.get(key) for key in ("seed", "device", "seconds")} | {"run": facts.get("run_id")}
    wanted |= {"analyses": case.spec.name, "created": facts.get("created_utc"), "rows": len(case.result.table)}
    if [{key: row[key] for key in wanted} for row in listed] != [wanted]:
        yield f"`interp runs` lists the saved result as {listed}, not with {wanted}"
    try:
        assert_frame_equal(case.result.table, back.table, check_exact=True)
    except AssertionError as error:
        yield f"the loaded table differs: {' '.join(str(error).split())}"
    if back.provenance != case.result.provenance:
        yield "the loaded provenance differs"
    if not isinstance(figure, go.Figure):
        yield f"its `figure` returns {type(figure).__name__}, not a plotly figure"


def intact(case: Case) -> Faults:
    """The model is left as it was: parameters, modes, gradients, hooks."""
    before = state(case.model)
    if case.result.table.empty:
        yield "an empty table"
    if state(case.model) != before:
        yield "the model is changed after a run"


DEMANDS: Mapping[str, Callable[[Case], Faults]] = {
    "intact": intact,
    "declaration": declaration,
    "table": table,
    "null": null,
    "significance": significance,
    "interval": interval,
    "seed": seed,
    "sample": sample,
    "provenance": provenance,
    "ability": ability,
    "planted": planted,
    "refusal": refusal,
    "scale": scale,
    "keeping": keeping,
}
"""Demand -> what yields a sentence for each way in which it is not met. `declaration` is never waived."""


def _headline(result: Result, variant: str) -> pd.DataFrame:
    rows = result.table[result.table["variant"] == variant]
    if rows.empty:
        raise SchemaError(f"no rows of the headline {variant!r}")
    return rows


def _beside(case: Case, *columns: str) -> Faults:
    rows = _headline(case.result, case.spec.headline)
    rows = rows[rows["value"].notna()]
    for column in columns:
        if rows[column].isna().any():
            yield f"no {column} beside {int(rows[column].isna().sum())} of {len(rows)} values of {case.spec.headline!r}"


def _hashes(data: Mapping[str, Any]) -> list[str]:
    """Every hash of data in these facts, and in facts inside of them."""
    inner = [h for value in data.values() if isinstance(value, Mapping) for h in _hashes(value)]
    return [str(data["sha256"]), *inner] if data.get("sha256") else inner


def _asks_a_task(data: Mapping[str, Any]) -> bool:
    """Whether data, or some in them, are what a `PromptTask` says of itself."""
    inner = any(_asks_a_task(value) for value in data.values() if isinstance(value, Mapping))
    return inner or {"task", "corruption", "metric"} <= set(data)


def _labelled(result: Result, variant: str) -> set[str]:
    rows = _headline(result, variant)
    return set(rows.loc[rows["label"].fillna(False).astype(bool), "component"])


def _reach(result: Result, variant: str) -> float:
    return float(np.nanmax(np.abs(_headline(result, variant)["value"].to_numpy(dtype=float))))


def _names(components: set[str]) -> str:
    return ", ".join(sorted(components, key=lambda name: (len(name), name)))
