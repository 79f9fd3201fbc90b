"""Provenance as a reader needs it: the model, the software, every run with its data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interp.errors import SchemaError
from interp.model import Model
from interp.plots.rows import scores
from interp.reports.cells import DASH
from interp.results.results import Result

IDENTITY = ("n_layers", "n_heads", "d_model", "d_vocab", "commit", "weights_sha256")


def check_same_model(model: Model, result: Result) -> None:
    """Refuse results that were measured on another model than the one whose attention will be shown.

    Raises:
        SchemaError: sizes, commit or weights differ, or there is no such head.
    """
    check_identity(model, result.provenance.get("model") or {}, "these results are")
    for score in scores(result.table):
        strange = score.layer is not None and score.layer not in model.info.attention_layers
        if score.head is not None and (strange or score.head >= model.info.n_heads):
            raise SchemaError(f"these results are of another model: this one has no head {score.component}")


def check_identity(model: Model, identity: Mapping[str, Any], what: str) -> None:
    """Refuse what was measured on another model; its name does not matter, what both know does.

    Raises:
        SchemaError: sizes, commit or weights differ.
    """
    for name in IDENTITY:
        own, other = getattr(model.info, name), identity.get(name)
        if own is not None and other is not None and own != other:
            raise SchemaError(f"{what} of another model: {name} is {other!r} there and {own!r} here")


def short_name(name: str) -> str:
    """Name for a heading: a folder goes by its last part."""
    return Path(name).name if Path(name).is_absolute() else name


def software_facts(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Backend, device, seed and package versions."""
    packages = provenance.get("packages") or {}
    facts = {
        "Backend": provenance.get("backend"),
        "Device": provenance.get("device"),
        "Tokenizer": provenance.get("tokenizer") or "none",
        "Seed": provenance.get("seed"),
        "Packages": ", ".join(f"{name} {version}" for name, version in packages.items()),
        "Left out": "; ".join(f"{name}: {why}" for name, why in (provenance.get("left_out") or {}).items()),
    }
    return {term: str(value) for term, value in facts.items() if value not in {None, ""}}


def runs(provenance: Mapping[str, Any]) -> list[dict[str, str]]:
    """One line per analysis that was run: its data, BOS policy, hash, time and id."""
    return [_run({**provenance, **own}) for own in provenance.get("calls") or [provenance]]


def own_run(facts: Mapping[str, str]) -> dict[str, str]:
    """A line of the same table for what is no analysis: what is not known of it is a dash."""
    return dict.fromkeys(_run({}), DASH) | dict(facts)


def _run(run: Mapping[str, Any]) -> dict[str, str]:
    call, data = run.get("call") or {}, run.get("data") or {}
    options = {**call.get("defaults", {}), **call.get("passed", {})}
    lengths = data.get("lengths", data.get("length"))
    lengths = ", ".join(map(str, lengths)) if isinstance(lengths, list | tuple) else lengths
    seconds = run.get("seconds")
    line = {
        "analysis": call.get("analysis"),
        "data": data.get("task"),
        "prompts": data.get("n"),
        "lengths": lengths,
        "bos": data.get("bos"),
        "method": options.get("method"),
        "seed": run.get("seed"),
        "hash": data.get("sha256"),
        "when": str(run.get("created_utc", DASH)).replace("T", " ").rstrip("Z"),
        "seconds": None if seconds is None else f"{seconds:.2f}",
        "id": run.get("run_id"),
    }
    return {term: DASH if value is None else str(value) for term, value in line.items()}
