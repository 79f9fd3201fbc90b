"""What an analysis says of itself: `Stage` of the heads it labels, `PlantedTask` that judges it, and `Analysis` in all.

Whatever shows, joins or judges analyses reads these; none of it knows an analysis by name.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from interp.errors import SchemaError, nearest
from interp.results.figures import Draw, head_map
from interp.results.results import Result

if TYPE_CHECKING:
    from interp.model import ModelInfo
    from interp.zoo.planted.factory import Planted

RECALL, IDENTIFY = "knowledge recalling", "in-context identification"
REASON, PREPARE = "latent reasoning", "expression preparation"
PATTERN = "attention pattern"
STAGES = (RECALL, IDENTIFY, REASON, PREPARE, PATTERN)
"""The four stages of the survey arXiv 2409.03752, and "attention pattern", which is none of them: where a head looks,
which is no function."""

CAUSAL, TOKEN_LOGITS = "causal attention", "a logit per token"
ABSENT: Mapping[str, Callable[[ModelInfo], str | None]] = {
    CAUSAL: lambda info: None if info.causal else "presumes causal attention, and here queries see later tokens too",
    TOKEN_LOGITS: lambda info: (
        None
        if info.n_logits is None
        else "reads logits of tokens, and an encoder gives none"
        if info.n_logits == 0
        else f"reads logits as tokens, and here are {info.n_logits} logits for {info.d_vocab} tokens"
    ),
}
"""What an analysis may presume of a model, and why a model is not like that; None where it is."""

Section = Literal["analyses", "attention", "sinks", "knowledge"]


@dataclass(frozen=True)
class Stage:
    """Role that a label gives to a head, in the survey's words where it has them, and its stage in the survey.

    Attributes:
        role: such as "previous token".
        stage: one of `STAGES`; where the survey is silent it is the author's.
        kinds: what the column `role` of the table may say of a head -> the role and stage of such heads; this one holds
            for all others.

    Raises:
        SchemaError: an unknown stage.
    """

    role: str
    stage: str = PATTERN
    kinds: Mapping[str, Stage] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise SchemaError(f"unknown stage {self.stage!r} of {self.role!r}; {nearest(self.stage, STAGES)}")

    def of(self, kind: str | None) -> Stage:
        """Role and stage of a head whose column `role` says `kind`."""
        return self if kind is None else self.kinds.get(kind, self)


@dataclass(frozen=True)
class PlantedTask:
    """How models with planted mechanisms judge an analysis (`interp zoo verify`).

    Attributes:
        recovers: role or kind in `zoo.Truth` whose heads (neurons, inputs of an MLP) it has to label, and no others.
        options: (planted model, seed) -> options that the analysis is called with there, such as the prompts that ask
            for the mechanism (`interp.measurement.planted.planted_prompts`). A model without the mechanism is asked for
            it all the same. None: the defaults ask for it.
        beside: names of mechanisms without the role that the prompts need as well.
    """

    recovers: str
    options: Callable[[Planted, int], Mapping[str, Any]] | None = None
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Analysis:
    """A registered analysis and how to speak of it.

    Attributes:
        name, family, title: how it is called, grouped and headed.
        unit: kind of component it scores ("head").
        headline: variant that sums it up, the one that is mapped, ranked and labelled.
        needs: "tokens" if ids suffice, "text" if a tokenizer is required.
        presumes: what of `ABSENT` the model must have: most prompts, nulls and losses are of causal language models.
        columns: columns beyond the common ones, with their pandas types.
        means, misleads: what a high value means, and what it does not.
        reference: paper, with arXiv id.
        run: the function callers get, `(model, **options) -> Result`.
        order: place in tables and reports, low first; ties by name.
        stage: role and stage of the heads it labels; None where it scores no heads.
        two_sided: whether a score of either sign is one, so that heads are ranked by its size.
        planted: how planted models judge it; None where they cannot, which `exemptions` explain.
        figure: draws the rows of one variant; the first line of its docstring is the caption. Imports plotly inside.
        figures: variants that are drawn in another way.
        section: of the report. Every analysis has its part among "analyses"; "attention": its best labelled head is
            the one whose attention is shown first; "sinks": the model's attention sinks are read off its table;
            "knowledge": how the model knows a fact is.
        quick: options with which a run is short and still says something, for the checks of all analyses.
        exemptions: demand of `interp.measurement.checks.check_analysis` that cannot apply to it -> why.
        subject: "zoo:NAME" of the model that checks run it on where no planted task judges it; None for the usual one.
        default: whether `detect` runs it where none is named; not where it costs more than three passes over 1,024
            tokens on a model of GPT-2-small's shape.
        shares: name of the prompts that it measures on by itself, where others do too: `detect` runs these one behind
            the other, so that what was computed for one is there for the next.
    """

    name: str
    family: str
    title: str
    unit: str
    headline: str
    means: str
    misleads: str
    reference: str
    run: Callable[..., Result]
    order: int = 100
    needs: str = "tokens"
    presumes: tuple[str, ...] = (CAUSAL, TOKEN_LOGITS)
    columns: Mapping[str, str] = field(default_factory=dict)
    stage: Stage | None = None
    two_sided: bool = False
    planted: PlantedTask | None = None
    figure: Draw = head_map
    figures: Mapping[str, Draw] = field(default_factory=dict)
    section: Section = "analyses"
    quick: Mapping[str, Any] = field(default_factory=dict)
    exemptions: Mapping[str, str] = field(default_factory=dict)
    subject: str | None = None
    default: bool = True
    shares: str | None = None

    def __repr__(self) -> str:
        """Name and unit: a table of them is read as a whole."""
        return f"<{self.name}: {self.unit}>"

    def obstacle(self, info: ModelInfo, options: Mapping[str, Any]) -> str | None:
        """Why a model of this kind does not suit the analysis, None where it does.

        A caller's own `task` says itself what is asked where, and which logits are its answers.
        """
        if info.stack == "cross":
            return (
                "is of attention among a prompt's own tokens, and here it goes to a source: ask for statistics and "
                "patterns themselves (Model.attention, Model.run), or load stack='decoder'"
            )
        presumes = () if options.get("task") is not None else self.presumes
        return next((why for p in presumes if (why := ABSENT[p](info))), None)

    @property
    def quantity(self) -> str:
        """First line of the docstring: the quantity and its formula."""
        return (inspect.getdoc(self.run) or "").split("\n", 1)[0]

    @property
    def noun(self) -> str:
        """One of what the title names: "induction head"."""
        return singular(self.title)


def singular(title: str) -> str:
    """One of the things a title names: "Induction heads" -> "induction head".

    Where something follows the noun it is the noun that changes, and the verb of a clause: "Heads that look at both
    ends" -> "head that looks at both ends".
    """
    lower = title[:1].lower() + title[1:]
    if re.search(r"\b(head|sink)s\b.", lower):
        one = re.sub(r"\b(head|sink)s\b", r"\1", lower, count=1)
        return re.sub(r"\bthat ([a-z]+)( or ([a-z]+))?", _singular_verbs, one)
    return lower.removesuffix("s")


def _singular_verbs(clause: re.Match[str]) -> str:
    first, other = clause[1], clause[3]
    return f"that {first}s" + (f" or {_third(other)}" if other else "")


def _third(verb: str) -> str:
    return verb[:-1] + "ies" if verb.endswith("y") else verb + "s"
