"""A result in a few lines of text: what was measured, what was found, which head does what, what was left out."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Sequence

from interp.errors import SchemaError
from interp.measurement.declaration import PATTERN
from interp.results.results import Result
from interp.studies.atlas import atlas
from interp.studies.findings import Finding, calls, findings

__all__ = ["summary"]

LINES, WIDTH = 20, 80
INDENT = "  "
MOST = {"also": 3, "roles": 4, "nothing": 2, "left out": 2}
"""Lines of each part but the findings told in full, which take what is left."""


def summary(result: Result, *, lines: int = LINES, width: int = WIDTH, more: Sequence[str] = ()) -> list[str]:
    """At most `lines` lines of at most `width` columns; no sentence is cut.

    First what was measured, then findings as sentences, those whose removal does most first, then the roles of heads,
    the analyses that found nothing, and how many were left out for which reason. What does not fit is counted.

    Args:
        result: of `interp.detect` or `interp.analyze`.
        lines: of text.
        width: of a line; a longer word, such as the path of a model, stays whole.
        more: lines put last, such as how to see the rest; they count.

    >>> import interp
    >>> from interp.studies.summary import summary
    >>> result = interp.detect(interp.load("zoo:planted-induction"), ["previous_token", "duplicate_token"])
    >>> for line in summary(result):
    ...     print(line)
    zoo:planted-induction (2 layers x 8 heads): 2 analyses, seed 0
      1 previous-token head: L0H4
    Roles: 1 of 16 heads: L0H4 previous token
    Nothing found: duplicate-token heads
    """
    every = findings(result)
    found = [f for f in every if f.names]
    start = _wrapped(_measured(result), width)
    rest = [
        *_fitted("Roles: ", _roles(result), width, MOST["roles"], joint="; "),
        *_fitted("Nothing found: ", [_unfound(f) for f in every if not f.names], width, MOST["nothing"]),
        *_fitted(*_left_out(result), width, MOST["left out"], joint="; "),
        *more,
    ]
    for k in range(len(found), -1, -1):
        told = [line for f in found[:k] for line in _told(f, width)]
        also = _fitted("Also: ", [f.counted for f in found[k:]], width, MOST["also"])
        if len(start) + len(told) + len(also) + len(rest) <= lines or k == 0:
            return [*start, *told, *also, *rest]
    raise AssertionError("0 findings were told")


def reasons(result: Result) -> dict[str, int]:
    """Why analyses were left out -> how many were: of each reason the part before a colon or semicolon."""
    left_out = result.provenance.get("left_out", {})
    heads = (re.split(r"[:;]", " ".join(reason.split()))[0] for reason in left_out.values())
    return dict(Counter(heads).most_common())


def _measured(result: Result) -> str:
    """`zoo:default (4 layers x 12 heads): 27 analyses, seed 0`."""
    info, n = result.provenance.get("model", {}), result.table["analysis"].nunique()
    own = all(call.get("data", {}).get("task") == "prompts given" for call in calls(result).values())
    layers, heads = info.get("n_layers"), info.get("n_heads")
    size = f"{layers} layer{'s' * (layers != 1)} x {heads} head{'s' * (heads != 1)}"
    counted = f"{n} {'analysis' if n == 1 else 'analyses'}"
    return (
        f"{info.get('name')} ({size}): {counted}, seed {result.provenance.get('seed')}{', prompts of your own' * own}"
    )


def _told(finding: Finding, width: int) -> list[str]:
    sentence = finding.sentence().replace("\u2192", "->")  # a terminal may know ASCII alone
    return _wrapped(INDENT + sentence, width, indent=2 * INDENT)


def _unfound(finding: Finding) -> str:
    name = finding.counted.removeprefix("no ")
    return f"{name} ({finding.caution})" if finding.caution else name


def _roles(result: Result) -> list[str]:
    """`4 of 48 heads: L3H3, L3H4 induction, mover`, then likewise: heads with the same roles together, most first."""
    try:
        joined = atlas(result)
    except SchemaError:  # none of the analyses scores heads
        return []
    roles = joined.roles()
    functional = roles[roles["stage"] != PATTERN]
    shown = functional if len(functional) else roles
    if not len(shown):
        return []
    of_head = {str(head): tuple(dict.fromkeys(own["role"])) for head, own in shown.groupby("component", sort=False)}
    together: dict[tuple[str, ...], list[str]] = {}
    for head, own in of_head.items():
        together.setdefault(own, []).append(head)
    ranked = sorted(together.items(), key=lambda item: -len(item[0]))
    first, *others = (f"{_listed(heads)} {', '.join(own)}" for own, heads in ranked)
    return [f"{len(of_head)} of {len(joined.table)} heads: {first}", *others]


def _listed(heads: Sequence[str], most: int = 6) -> str:
    return ", ".join(heads[:most]) + (f" and {len(heads) - most} more" if len(heads) > most else "")


def _left_out(result: Result) -> tuple[str, list[str]]:
    counts = reasons(result)
    n = sum(counts.values())
    return f"Left out: {n}, as: ", [f"{reason} ({count})" for reason, count in counts.items()]


def _fitted(lead: str, items: Sequence[str], width: int, lines: int, *, joint: str = ", ") -> list[str]:
    """As many of the items as there is room for, and how many more there are."""
    for k in range(len(items), 0, -1):
        tail = f" and {len(items) - k} more" if k < len(items) else ""
        told = _wrapped(lead + joint.join(items[:k]) + tail, width)
        if len(told) <= lines or k == 1:
            return told
    return []


def _wrapped(text: str, width: int, *, indent: str = INDENT) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
