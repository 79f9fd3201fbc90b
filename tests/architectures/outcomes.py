"""`Outcome` of a model type: what works, what is refused with a reason, and what is a fault."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from building import build, scaled, small
from things import THINGS, Case
from transformers import PreTrainedModel

import interp
from interp.errors import InterpError, PromptWarning

WORKS, PARTLY, REFUSED, RAW, WRONG, UNBUILT = "works", "partly", "refused", "raw error", "wrong", "not built"
OUTCOMES = (WORKS, PARTLY, REFUSED, RAW, WRONG, UNBUILT)
LONGEST = 240
"""Letters of a reason that are kept."""


@dataclass(frozen=True)
class Outcome:
    """A row of the table.

    Attributes:
        type, family: model type and class of transformers.
        outcome: one of `OUTCOMES`; the worst of what was tried.
        backend: which one loads it; empty where none does.
        lacks: what is refused or a fault, with the reason.
    """

    type: str
    family: str
    outcome: str
    backend: str
    lacks: str

    @classmethod
    def columns(cls) -> tuple[str, ...]:
        """Names of the columns of the table."""
        return tuple(field.name for field in fields(cls))


def outcome(model_type: str, family: str) -> Outcome:
    """What comes of one model type."""
    try:
        module = build(model_type, small(model_type))
    except Exception as error:  # whatever a configuration of ours runs into is no fault of the toolkit
        return Outcome(model_type, family, UNBUILT, "", said(error))
    reasons: dict[str, str] = {}
    for backend in ("hf", "lens"):
        try:
            model = interp.load(copy.deepcopy(module), backend=backend)
        except InterpError as error:
            reasons[backend] = said(error)
        except Exception as error:  # a fault: recorded, not raised, so that the other types are tried
            return Outcome(model_type, family, RAW, "", f"load ({backend}): {said(error)}")
        else:
            return _judged(model_type, family, backend, trials(Case(model, module, _scaled(model_type, backend))))
    if 'backend="lens"' in reasons["hf"]:
        return Outcome(model_type, family, RAW, "", f"recommends lens, which says: {reasons['lens']}")
    return Outcome(model_type, family, REFUSED, "", reasons["hf"])


def _scaled(model_type: str, backend: str) -> PreTrainedModel | None:
    """The type under dynamic rotary scaling, where the backend is that of transformers and it can be built."""
    try:
        return scaled(model_type) if backend == "hf" else None
    except Exception:  # a configuration of ours that the class does not take
        return None


def trials(case: Case) -> dict[str, tuple[str, str]]:
    """(outcome, reason) of everything that does not work."""
    failures: dict[str, tuple[str, str]] = {}
    for name, thing in THINGS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PromptWarning)
            try:
                thing(case)
            except InterpError as refusal:
                failures[name] = REFUSED, said(refusal)
            except AssertionError as wrong:
                failures[name] = WRONG, said(wrong)
            except Exception as error:  # a fault: recorded, so that the rest is tried
                failures[name] = RAW, said(error)
    return failures


def _judged(model_type: str, family: str, backend: str, failures: Mapping[str, tuple[str, str]]) -> Outcome:
    kinds = {kind for kind, _ in failures.values()}
    if failures.get("logits", ("", ""))[0] == REFUSED:  # it loads, and nothing can be run
        return Outcome(model_type, family, REFUSED, "", failures["logits"][1])
    worst = WRONG if WRONG in kinds else RAW if RAW in kinds else PARTLY if kinds else WORKS
    by_reason: dict[tuple[str, str], list[str]] = {}
    for name, failure in failures.items():
        by_reason.setdefault(failure, []).append(name)
    lacks = [
        f"{', '.join(names)}: {why}" if kind == REFUSED else f"{', '.join(names)}: {kind.upper()}: {why}"
        for (kind, why), names in by_reason.items()
    ]
    return Outcome(model_type, family, worst, backend, "; ".join(lacks))


def said(error: BaseException) -> str:
    """First line of an error; its kind too where it is none of the toolkit's."""
    lines = str(error).strip().splitlines() or [""]
    line = " ".join(lines[0].split())[:LONGEST]
    return line if isinstance(error, InterpError | AssertionError) else f"{type(error).__name__}: {line}"


def as_row(row: Outcome) -> dict[str, Any]:
    """The outcome as a mapping, for a CSV."""
    return {name: getattr(row, name) for name in Outcome.columns()}
