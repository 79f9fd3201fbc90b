"""The page: sections, attention and provenance put into the template. All text is escaped there, none here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pandas as pd

from interp import __version__
from interp.errors import TaskError
from interp.model import Model
from interp.report import facts
from interp.report.attention import TokenView, token_view
from interp.report.sections import Section, sections
from interp.results import Result


def render(
    model: Model,
    result: Result,
    *,
    analyses: Sequence[str] | None = None,
    prompt: Any = None,
    seed: int = 0,
    command: str | None = None,
) -> str:
    """HTML text of the report; the same inputs give the same text."""
    import jinja2
    from plotly.offline import get_plotlyjs

    facts.check_same_model(model, result)
    parts = sections(result, analyses)
    shown = [name in {s.name for s in parts} for name in result.table["analysis"]]
    result = Result(cast(pd.DataFrame, result.table[shown]), result.provenance, result.interventions)
    view, refusal = _view(model, result, prompt, seed=seed)
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    env = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return env.get_template("template.html").render(
        name=facts.short_name(model.info.name),
        summary=summary(model, parts),
        shape=facts.shape(model.info),
        sections=parts,
        figures=_figures(parts),
        view=view,
        rows=None if view is None else [_script(view, i) for i in range(len(view.queries))],
        refusal=refusal,
        model_facts=facts.model_facts(model.info),
        software=facts.software_facts(result.provenance),
        runs=facts.runs(result.provenance),
        command=command,
        version=__version__,
        plotly=get_plotlyjs(),
    )


def summary(model: Model, parts: Sequence[Section]) -> str:
    """One line: the size of the model and what was found in it."""
    found = [s.counted for s in parts if s.counted and s.found]
    if found:
        return f"{facts.shape(model.info)}. Detected: {', '.join(found)}."
    looked = ", ".join(s.counted for s in parts if s.counted)
    return f"{facts.shape(model.info)}. Detected: {looked or 'these analyses give scores, not labels'}."


def _view(model: Model, result: Result, prompt: Any, *, seed: int) -> tuple[TokenView | None, str]:
    """The attention to show, or the reason why there is none. A prompt that was asked for must work."""
    try:
        return token_view(model, result, prompt, seed=seed), ""
    except TaskError as error:
        if prompt is not None:
            raise
        return None, str(error)


def _figures(parts: Sequence[Section]) -> dict[str, Any]:
    """Plain data of every figure by the id of its place: the template turns it into JSON that cannot end a script."""
    return {
        f"{kind}-{i}": json.loads(str(figure.to_json()))
        for i, s in enumerate(parts)
        for kind, figure in s.figures.items()
    }


def _script(view: TokenView, i: int) -> dict[str, Any]:
    query = view.queries[i]
    return {"at": query.position, "target": query.target, "p": query.values, "summary": query.summary}
