"""One self-contained HTML file about a model: what its parts do, how sure that is, and how it was found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.files import atomic_write, writable_file
from interp.results.results import Result
from interp.several import several

if TYPE_CHECKING:
    from interp.measurement.registry import Analysis
    from interp.model import Model
    from interp.reports.features import FeatureView

__all__ = ["report"]
TEXT: Mapping[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace"}


def report(
    model: Model,
    *,
    results: Result | None = None,
    analyses: str | Sequence[str] | None = None,
    tasks: Any = (),
    method: str = "eap-ig",
    prompts: Any = (),
    prompt: Any = None,
    features: FeatureView | Sequence[FeatureView] = (),
    dictionary: Any = None,
    seed: int = 0,
    path: str | Path = "report.html",
    force: bool = False,
    command: str | None = None,
    bos: str | None = None,
    detecting: Mapping[str, Any] | None = None,
    progress: Callable[[Sequence[Analysis]], Any] | None = None,
    told: Callable[[str], Any] | None = None,
    left_out: Callable[[Mapping[str, str]], Any] | None = None,
) -> Path:
    """Write the attribution report of `model` and return its path.

    The file needs no network and no other file, and appears whole or not at all. All is checked before any is computed.

    Args:
        model: any loaded model.
        results: what `interp.detect` or an analysis returned for this model; detected anew if not given.
        analyses: names of the analyses to run, or to show of `results`; all that suit if not given.
        tasks: names of tasks whose circuit is found, tasks of one's own (one, or two: the second to judge on), or what
            `circuits.circuit` returned.
        method: how circuits are searched for, or components scored: one of `circuits.methods.names()`.
        prompts: whose answers are attributed: (text or ids, answer) or (..., answer, wrong answer), or a `Question`.
            Without an answer the likeliest token is explained; without a wrong one its logit less the mean of all.
        prompt: text or ids on which one head's attention is shown; else the first of `prompts`, or a repeated block.
        features: of dictionaries, as `interp.reports.features.feature_view` returns them.
        dictionary: with which each of `prompts` gets its attribution graph: one, a folder, a hub id, or "neurons".
        seed: of analyses, tasks and the sample prompt.
        path: file to write.
        force: replace a file that is not an earlier page.
        command: shell command that made the report, shown for copying.
        bos: policy of the analyses' random prompts: "default", "forced" or "none"; None leaves it to each.
        detecting: further arguments of `interp.detect`: `prompts` to measure on, `options` of single analyses.
        progress: may wrap the list of analyses in a progress bar.
        told: called with the name of each task when its circuit is begun.
        left_out: called with the analyses that were not run, {name: reason}, once the others are.

    Raises:
        InterpError: the path cannot be written, or the parts of a logit do not sum to it.
        SchemaError: an unknown analysis, or results or features of another model.
        TaskError: a task or prompt that the model cannot be run on, or an answer that is not one token.
        NotApplicable: a model or a dictionary of which there is no attribution graph.

    >>> import interp, tempfile, pathlib
    >>> model = interp.load("zoo:planted-induction")
    >>> page = pathlib.Path(tempfile.mkdtemp()) / "report.html"
    >>> path = interp.report(model, analyses=["previous_token"], prompts=[([5, 6, 7, 5, 6], 7)], path=page)
    """
    target = writable_file(path, force=force)
    from interp.measurement.registry import detect, find
    from interp.reports import circuits, graphs
    from interp.reports.features import views_of
    from interp.reports.page import render
    from interp.reports.questions import token_questions

    analyses = several(analyses, "names of analyses") or None
    views = views_of(model, features)
    tasks = [tasks] if hasattr(tasks, "provenance") else several(tasks, "tasks")  # one result of a search
    _ = [find(name) for name in analyses or () if results is None]  # refuses what is no analysis
    questions = token_questions(model, prompts)
    shown = _shown_prompt(model, prompt, questions)
    pairs = circuits.prompts(model, tasks, seed=seed, method=method)
    made = graphs.prompt_graphs(model, questions, dictionary, seed=seed)
    given = {"bos": bos, "progress": progress, **(detecting or {})}
    result = detect(model, analyses, seed=seed, **given) if results is None else results
    (left_out or dict)(result.provenance.get("left_out") or {})
    outcomes = circuits.find(model, pairs, seed=seed, method=method, told=told)
    parts = {"questions": questions, "circuits": outcomes, "graphs": made, "features": views}
    page = render(model, result, analyses=analyses, prompt=shown, **parts, seed=seed, command=command)
    return atomic_write(target, partial(Path.write_text, data=page, **TEXT), force=force)


def _shown_prompt(model: Model, prompt: Any, questions: Sequence[Any]) -> Any:
    """The prompt that is given, once the model takes it; else that of the first question."""
    if prompt is None:
        return list(questions[0].ids) if questions else None
    model.batch(prompt)
    return prompt
