"""@analysis: how an analysis becomes known to `interp.analyze`, the command line, the report and the docs.

A registered function takes a model and keyword options and returns `Findings`; callers get a `Result`, with the
provenance filled in. Packages announce modules of analyses under the entry-point group `interp.analyses`.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec

import pandas as pd
import torch

from interp.attention import methods_used
from interp.attention.shared import sharing
from interp.batch import Batch, Prompts
from interp.components import head_name, mlp_name
from interp.edits import Edit
from interp.environment import load_plugins
from interp.errors import (
    BackendError,
    CheckError,
    InterpError,
    NotApplicable,
    NotFinite,
    SchemaError,
    UnknownEntry,
    nearest,
)
from interp.measurement.ability import Ability, Asked, abilities
from interp.measurement.declaration import CAUSAL, TOKEN_LOGITS, Analysis, PlantedTask, Section, Stage
from interp.measurement.options import checked_options, other_prompts, why_no_prompts
from interp.model import Model, with_edits
from interp.results.figures import GROUP, Draw, declare, head_map
from interp.results.provenance import provenance as _provenance
from interp.results.results import Result, frame
from interp.several import several
from interp.tasks.spell import MUTE
from interp.tasks.synthetic import bos_id

P = ParamSpec("P")
ASKED = {"prompts", "task", "temporal_task", "texts", "normal"}
"""Options by which a caller says himself what an analysis asks."""
BY_NAME = "run only by name: it costs more than three passes over 1,024 tokens"
"""Why `detect` leaves a dear analysis out."""
PLAIN = 16  # random prompts, and tokens of each, that show whether a model gives numbers at all


@dataclass(frozen=True)
class Findings:
    """What the body of an analysis returns.

    Attributes:
        rows: observations, with the columns of `interp.results.results.COLUMNS` that apply (`analysis` and
            `component` are filled in) and those the analysis declared.
        data: what was run on: task, sizes, hash, BOS policy.
        interventions: rows of the second table.
        ability: how well the model does the task that the prompts ask, of every analysis of prompts with answers: by
            the task's name where that is known, else the case, or the task, which takes a pass more.
    """

    rows: Sequence[Mapping[str, Any]] | pd.DataFrame
    data: Mapping[str, Any] = field(default_factory=dict)
    interventions: Sequence[Mapping[str, Any]] = ()
    ability: Asked | Mapping[str, Ability] = field(default_factory=dict)


_registry: dict[str, Analysis] = {}


def analysis(
    *,
    name: str,
    family: str,
    title: str,
    headline: str,
    means: str,
    misleads: str,
    reference: str,
    unit: str = "head",
    order: int = 100,
    needs: str = "tokens",
    presumes: tuple[str, ...] = (CAUSAL, TOKEN_LOGITS),
    columns: Mapping[str, str] | None = None,
    stage: Stage | None = None,
    two_sided: bool = False,
    planted: PlantedTask | None = None,
    figure: Draw = head_map,
    figures: Mapping[str, Draw] | None = None,
    section: Section = "analyses",
    quick: Mapping[str, Any] | None = None,
    exemptions: Mapping[str, str] | None = None,
    subject: str | None = None,
    default: bool = True,
    shares: str | None = None,
) -> Callable[[Callable[Concatenate[Model, P], Findings]], Callable[Concatenate[Model, P], Result]]:
    """Register an analysis; the decorated function then returns a `Result` with provenance.

    What the arguments are is said at `Analysis`.
    """

    def decorate(body: Callable[Concatenate[Model, P], Findings]) -> Callable[Concatenate[Model, P], Result]:
        @functools.wraps(body)
        def run(model: Model, *args: P.args, **options: P.kwargs) -> Result:
            by_name: dict[str, Any] = checked_options(name, body, args, options)
            if obstacle := _registry[name].obstacle(model.info, by_name):
                raise NotApplicable(f"{name!r} {obstacle}")
            start = time.perf_counter()
            with methods_used() as attention:
                findings = body(model, **by_name)  # type: ignore[call-arg]  # pyright: all of P by name
            provenance = _provenance(model, name, body, by_name, findings.data, time.perf_counter() - start)
            return _result(model, findings, provenance | {"attention": sorted(attention)}, name, columns or {})

        run.__annotations__ = {**body.__annotations__, "return": "Result"}
        declare(name, figure, figures or {})
        _registry[name] = Analysis(
            name=name,
            family=family,
            title=title,
            unit=unit,
            headline=headline,
            means=means,
            misleads=misleads,
            reference=reference,
            run=run,
            order=order,
            needs=needs,
            presumes=presumes,
            columns=dict(columns or {}),
            stage=stage,
            two_sided=two_sided,
            planted=planted,
            figure=figure,
            figures=dict(figures or {}),
            section=section,
            quick=dict(quick or {}),
            exemptions=dict(exemptions or {}),
            subject=subject,
            default=default,
            shares=shares,
        )
        return run

    return decorate


def _result(
    model: Model, findings: Findings, provenance: dict[str, Any], name: str, columns: Mapping[str, str]
) -> Result:
    """Findings as tables that are checked, with how well the model does what it was asked."""
    table = _full_table(findings.rows, name, columns)
    interventions = pd.DataFrame(list(findings.interventions))
    interventions.insert(0, "analysis", name)
    able = abilities(model, findings.ability)
    if able:
        provenance["ability"] = {task: own.as_dict() for task, own in able.items()}
    return Result(table, provenance, frame(interventions, interventions=True))


def analyses() -> dict[str, Analysis]:
    """Every registered analysis by name, built-in ones and plug-ins, in the order they are shown."""
    load_plugins(GROUP)
    return dict(sorted(_registry.items(), key=lambda item: (item[1].order, item[0])))


def find(name: str) -> Analysis:
    """Analysis by name.

    Raises:
        SchemaError: no such analysis; names the nearest.
    """
    specs = analyses()
    if not isinstance(name, str):
        raise SchemaError(f"an analysis is named by a string; got {type(name).__name__} {name!r:.40}")
    if name not in specs:
        raise UnknownEntry(f"unknown analysis {name!r}; {nearest(name, specs)}")
    return specs[name]


@with_edits
def analyze(model: Model, name: str, *, edits: Sequence[Edit] = (), **options: Any) -> Result:
    """Run one analysis by name, of the model under `edits` where there are any; the other options are its own.

    Activations are those of the edited model, weights those of the model itself; provenance lists the edits.

    >>> import interp
    >>> result = interp.analyze(interp.load("zoo:planted-induction"), "previous_token", seed=1)
    >>> bool(result.top("previous_token", k=1)["value"].iloc[0] > 0.9)
    True
    """
    spec = find(name)
    parameters = [p for p in inspect.signature(spec.run).parameters if p != "model"]
    for option in options:
        if option not in parameters:
            hint = why_no_prompts(spec.run) if option == "prompts" else nearest(option, parameters)
            raise SchemaError(f"{name!r} has no option {option!r}; {hint}")
    obstacle = _obstacle(spec, model, options)
    if obstacle:
        raise NotApplicable(f"{name!r} {obstacle}")
    return spec.run(model, **options)


def _obstacle(spec: Analysis, model: Model, options: Mapping[str, Any] | None = None) -> str | None:
    """Why the model cannot be given to this analysis at all, None where it can."""
    mute = spec.needs == "text" and model.tokenizer is None
    return MUTE if mute else spec.obstacle(model.info, options or {})


@with_edits
def detect(
    model: Model,
    names: str | Sequence[str] | None = None,
    *,
    edits: Sequence[Edit] = (),
    prompts: Prompts | None = None,
    seed: int = 0,
    bos: str | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    progress: Callable[[Sequence[Analysis]], Any] | None = None,
) -> Result:
    """Every head analysis that suits the model as one result, or those named, each of which must suit it.

    Those that cost more than three passes over 1,024 tokens run by name only, or on a caller's `prompts`. Analyses that
    ask for the same prompts share passes (`interp.attention.shared`); what is kept for that is freed at the end.

    With `prompts` (text, ids or a batch, spans included) those that measure on a caller's own prompts run on them; the
    others are left out, since what they measure is defined on prompts that they make.

    Provenance says under `left_out` which analyses were not run, and why: {name: reason}. One that cannot be run leaves
    the others alone, whatever it raises. `bos` is the policy of analyses whose random prompts may start with a BOS
    ("default": as the tokenizer does by itself, "forced", "none"); None leaves it to each. `edits` are in
    force meanwhile, as in `analyze`. `options` are of single analyses, {name: {option: value}}, and go before all
    others. `progress` may wrap the list of analyses in a progress bar.

    Raises:
        NotApplicable: an analysis asked for by name does not suit the model, or none does.
        TaskError: an unknown policy, or a BOS forced on a model that has none.
        NotFinite: the model gives no numbers on plain random tokens.
        InterpError: what else keeps an analysis asked for by name, or all of them, from being run; `CheckError` where
            it is a fault of the analysis.
    """
    names = several(names, "names of analyses")
    if bos is not None:
        bos_id(model, bos)
    heads = [a for a in analyses().values() if a.unit == "head"]
    dear = {} if names or prompts is not None else {a.name: BY_NAME for a in heads if not a.default}
    specs = [find(n) for n in names] if names else [a for a in heads if a.name not in dear]
    batch = None if prompts is None else model.batch(prompts)
    options = options or {}
    obstacles = {
        a.name: _obstacle(a, model, options.get(a.name)) or _no_prompts(a, batch, options.get(a.name, {}))
        for a in specs
    }
    left_out = {name: reason for name, reason in obstacles.items() if reason}
    for name, reason in left_out.items():
        if names:
            raise NotApplicable(f"{name!r} {reason}")
    left_out |= dear
    suitable = beside([a for a in specs if a.name not in left_out])
    results, errors = {}, []
    with sharing():
        for spec in progress(suitable) if progress else suitable:
            try:
                takes_bos = bos is not None and "bos" in inspect.signature(spec.run).parameters
                own: dict[str, Any] = {"bos": bos} if takes_bos else {}
                own |= {} if batch is None or not _takes_prompts(spec) else {"prompts": batch}
                results[spec.name] = analyze(model, spec.name, **{"seed": seed, **own, **options.get(spec.name, {})})
            except Exception as error:  # a fault of one analysis, a stranger's perhaps, must not take the others down
                if isinstance(error, NotFinite):
                    _check_numbers(model, seed=seed)
                refusal = _refusal(error)
                if names:
                    raise type(refusal)(f"{spec.name!r}: {refusal}") from error
                left_out[spec.name] = str(refusal)
                errors.append(refusal)
    if not results:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        others = [type(e) for e in errors if not isinstance(e, NotApplicable)]
        if others:
            raise others[0](f"no analysis could be run on {model.info.name!r}: {reasons}") from errors[0]
        raise NotApplicable(f"no analysis suits {model.info.name!r}: {reasons}")
    result = Result.concat([results[a.name] for a in specs if a.name in results])
    result.provenance["left_out"] = left_out
    return result


def beside(specs: Sequence[Analysis]) -> list[Analysis]:
    """Analyses in the order in which they are run: those that share prompts one behind the other, at the first's place.

    What was computed for the one is then still there for the next.
    """
    first = {a.shares: i for i, a in reversed(list(enumerate(specs))) if a.shares is not None}
    order = sorted(enumerate(specs), key=lambda item: (first[item[1].shares] if item[1].shares else item[0], item[0]))
    return [a for _, a in order]


def _takes_prompts(spec: Analysis) -> bool:
    return "prompts" in inspect.signature(spec.run).parameters


def _no_prompts(spec: Analysis, prompts: Batch | None, options: Mapping[str, Any]) -> str | None:
    """Why an analysis cannot be run on a caller's prompts, None where it can, is given others, or there are none."""
    if prompts is None or set(options) & ASKED:
        return None
    if not _takes_prompts(spec):
        return f"takes no prompts of one's own: {why_no_prompts(spec.run)}"
    other = other_prompts(spec.run, prompts)
    return f"takes no text as its prompts, but {other}" if other else None


def _refusal(error: Exception) -> InterpError:
    """The error as one of ours: what was not raised on purpose is named as such."""
    if isinstance(error, InterpError):
        return error
    what = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return BackendError(f"it ran out of memory ({what}); take fewer or shorter prompts, or another device")
    return CheckError(f"it ended with {what}; this is a fault of the analysis: please report it with the traceback")


def _check_numbers(model: Model, *, seed: int) -> None:
    """Run plain random tokens: where they give no numbers either, it is not an analysis that is at fault.

    Raises:
        NotFinite: they do not.
    """
    length = min(PLAIN, model.info.context or PLAIN)
    batch = torch.randint(model.info.d_vocab, (PLAIN, length), generator=torch.Generator().manual_seed(seed))
    model.run(batch)


def _full_table(rows: Sequence[Mapping[str, Any]] | pd.DataFrame, name: str, extra: Mapping[str, str]) -> pd.DataFrame:
    table = pd.DataFrame(rows)
    table["analysis"] = name
    if {"layer", "head"} <= set(table.columns):
        names = [
            None if pd.isna(layer) else mlp_name(int(layer)) if pd.isna(head) else head_name(int(layer), int(head))
            for layer, head in zip(table["layer"], table["head"], strict=True)
        ]
        given = table.get("component")
        table["component"] = names if given is None else given.where(given.notna() | table["head"].isna(), names)
    return frame(table, extra=extra)
