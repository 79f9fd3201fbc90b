"""The page: everything measured put into the template. All text is escaped there, none here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

import pandas as pd

from interp.environment import __version__
from interp.errors import TaskError
from interp.model import Model
from interp.reports import facts
from interp.reports.attention import attention
from interp.reports.circuits import run_line, task_circuit
from interp.reports.direct import direct
from interp.reports.effects import task_effects
from interp.reports.features import FeatureView
from interp.reports.graphs import PromptGraph
from interp.reports.knowledge import knowledge
from interp.reports.questions import TokenQuestion, question_line
from interp.reports.roles import roles
from interp.reports.sections import Section, sections
from interp.reports.sinks import sinks
from interp.reports.templates import environment
from interp.reports.viewer import View, p_str
from interp.results.results import Result
from interp.studies.findings import findings

KINDS = 5  # named in the first sentence
FINDINGS = 3  # told before anything else


def render(
    model: Model,
    result: Result,
    *,
    analyses: Sequence[str] | None = None,
    prompt: Any = None,
    questions: Sequence[TokenQuestion] = (),
    circuits: Sequence[Any] = (),
    features: Sequence[FeatureView] = (),
    graphs: Sequence[PromptGraph] = (),
    seed: int = 0,
    command: str | None = None,
) -> str:
    """HTML text of the report; the same inputs give the same text."""
    from plotly.offline import get_plotlyjs

    from circuits.graph.circuit_page import asset

    facts.check_same_model(model, result)
    parts = sections(result, analyses)
    in_sections = [name in {s.name for s in parts} for name in result.table["analysis"]]
    result = Result(cast(pd.DataFrame, result.table[in_sections]), result.provenance, result.interventions)
    answers = [direct(model, question) for question in questions]
    atlas, known = roles(result), knowledge(result)
    heads = None if atlas is None else atlas.table
    tasks = [task_circuit(outcome, roles=heads) for outcome in circuits if not isinstance(outcome, Result)]
    effects = [task_effects(outcome) for outcome in circuits if isinstance(outcome, Result)]
    view, refusal = _view(model, result, prompt, seed=seed)
    return (
        environment()
        .get_template("template.html")
        .render(
            name=facts.short_name(model.info.name),
            summary=summary(model, parts),
            findings=[f.sentence() for f in findings(result) if f.names][:FINDINGS],
            shape=model.info.shape,
            sections=parts,
            answers=answers,
            circuits=tasks,
            circuit_style=asset("circuit.css") if tasks else "",
            circuit_script=asset("circuit.js") if tasks else "",
            effects=effects,
            graphs=graphs,
            atlas=atlas,
            features=features,
            sinks=sinks(result),
            knowledge=known,
            figures=_figures(parts, answers, graphs, *([x] for x in (atlas, known) if x is not None)),
            view=view,
            p_str=p_str,
            refusal=refusal,
            model_facts=model.info.facts,
            software=facts.software_facts(result.provenance),
            runs=[
                *facts.runs(result.provenance),
                *(facts.own_run(question_line(q)) for q in questions),
                *(facts.own_run(run_line(outcome)) for outcome in circuits),
            ],
            command=command,
            version=__version__,
            plotly=get_plotlyjs(),
        )
    )


def summary(model: Model, parts: Sequence[Section]) -> str:
    """One line: the size of the model and what was found in it."""
    labels = [s.counted for s in parts if s.counted and s.found]
    if labels:
        more = len(labels) - KINDS
        kinds = ", ".join(labels[:KINDS]) + (f" and heads of {more} more kinds" if more > 0 else "")
        return f"{model.info.shape}. Detected: {kinds}."
    absent = ", ".join(s.counted for s in parts if s.counted)
    return f"{model.info.shape}. Detected: {absent or 'these analyses give scores, not labels'}."


def _view(model: Model, result: Result, prompt: Any, *, seed: int) -> tuple[View | None, str]:
    """The attention to show, or the reason why there is none. A prompt that was asked for must work."""
    try:
        return attention(model, result, prompt, seed=seed), ""
    except TaskError as error:
        if prompt is not None:
            raise
        return None, str(error)


def _figures(*groups: Sequence[Any]) -> dict[str, Any]:
    """Plain data of every figure by the id of its place: the template turns it into JSON that cannot end a script.

    A kind of figure belongs to one kind of part, so that kind and number make an id.
    """
    return {
        f"{kind}-{i}": json.loads(str(figure.to_json()))
        for group in groups
        for i, part in enumerate(group)
        for kind, figure in part.figures.items()
    }
