"""`PromptTask`: pairs of clean and corrupt prompts, right and wrong answers, and positions with roles."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.batch import Batch, Prompts
from interp.errors import TaskError, nearest
from interp.model import Model
from interp.shapes import brief
from interp.tasks import metrics
from interp.tasks.own import pair_parts

NONE = -1
"""No id, no position: what fills a ragged row."""
STOP = " STOP"
"""End of the name of a role that marks the last token of a statement: "RULE1 STOP"."""


@dataclass(frozen=True, eq=False)
class PromptTask:
    """Minimal pairs: prompt i and its corrupted twin have as many tokens, with the same roles at the same places.

    Attributes:
        name: task.
        corruption: how the twin was made.
        clean, corrupt: the prompts, padded on the right alike; spans that have a name stand at the same places in both.
        answers, wrong: ids that are right for the clean prompt and those they are compared with, one column each where
            the task has one of each; -1 fills rows with fewer.
        roles: name -> position of a token in each prompt, -1 where the prompt's template has none; "END" is the last
            token, whose logits are judged.
        template: number of each prompt's template in `templates`.
        metric: what the task is judged by unless told otherwise: a name in `interp.tasks.metrics.METRICS`,
            or a function (logits, task) -> [batch].
        split: "train" or "held-out".
        record: where the words came from, how many of them this tokenizer has, BOS policy, seed.
    """

    name: str
    corruption: str
    clean: Batch
    corrupt: Batch
    answers: Int[Tensor, "batch right"]
    wrong: Int[Tensor, "batch wrong"]
    roles: Mapping[str, Int[Tensor, " batch"]]
    template: Int[Tensor, " batch"]
    templates: tuple[str, ...]
    metric: metrics.AnyMetric
    split: str = "train"
    record: Mapping[str, Any] = field(default_factory=dict)

    __repr__ = brief

    def __post_init__(self) -> None:
        """Refuse pairs that do not stand side by side."""
        if not torch.equal(self.clean.mask, self.corrupt.mask):
            raise TaskError(f"{self.name}: clean and corrupt prompts differ in length")
        if "END" not in self.roles:
            raise TaskError(f"{self.name}: no role END, the position that is judged")

    @classmethod
    def of(
        cls,
        model: Model,
        *,
        clean: Prompts,
        corrupt: Prompts,
        answers: Any,
        wrong: Any = None,
        roles: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> PromptTask:
        """A task of one's own prompts: `interp.pair` under another name, with its options, checks and errors."""
        return collate(**pair_parts(model, clean, corrupt, answers, wrong, roles=roles, **options))

    def __len__(self) -> int:
        return len(self.clean.ids)

    @property
    def end(self) -> Int[Tensor, " batch"]:
        """Position of each prompt's last token."""
        return self.roles["END"]

    @property
    def contrasted(self) -> bool:
        """Whether every prompt has a wrong answer."""
        return bool((self.wrong >= 0).any(1).all())

    @property
    def metric_name(self) -> str:
        """What tables call its metric."""
        return metrics.name_of(self.metric)

    @property
    def lengths(self) -> Int[Tensor, " batch"]:
        """Real tokens of each prompt."""
        return self.clean.mask.sum(1)

    @property
    def groups(self) -> Int[Tensor, " batch"]:
        """Number of each prompt's (template, length): within a group, one position means the same everywhere.

        Means over prompts are taken within a group, never over prompts of different templates or lengths.
        """
        return torch.stack([self.template, self.lengths.to(self.template.device)], 1).unique(
            dim=0, return_inverse=True
        )[1]

    @property
    def sha256(self) -> str:
        """First 16 hex digits over everything a result depends on: prompts, answers, roles."""
        digest = hashlib.sha256()
        for name, tensor in {
            "clean": self.clean.ids,
            "corrupt": self.corrupt.ids,
            "mask": self.clean.mask,
            "answers": self.answers,
            "wrong": self.wrong,
            **dict(sorted(self.roles.items())),
            **{f"span {name}": span for name, span in sorted(self.clean.spans.items())},
        }.items():
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def role(self, name: str) -> Int[Tensor, " batch"]:
        """Positions of a role.

        Raises:
            TaskError: no prompt has it; names the nearest.
        """
        if name not in self.roles:
            raise TaskError(f"{self.name} has no role {name!r}; {nearest(name, self.roles)}")
        return self.roles[name]

    def value(self, logits: Float[Tensor, "..."]) -> Float[Tensor, " batch"]:
        """The task's own metric, one value per prompt, from logits [batch pos d_vocab] or [batch d_vocab]."""
        return metrics.function_of(self.metric)(logits, self)

    def select(self, rows: Sequence[int] | slice | Tensor) -> PromptTask:
        """Some of the prompts, in the order given; padding that none of them needs is cut off."""
        index = torch.arange(len(self))[rows]
        if not len(index):
            raise TaskError(f"{self.name}: no prompts selected")
        width = int(self.clean.mask[index].any(0).nonzero().max()) + 1
        return replace(
            self,
            clean=self.clean.select(index).cut(0, width),
            corrupt=self.corrupt.select(index).cut(0, width),
            answers=self.answers[index],
            wrong=self.wrong[index],
            roles={name: where[index] for name, where in self.roles.items()},
            template=self.template[index],
        )

    def to(self, device: torch.device | str) -> PromptTask:
        """The same task with its tensors on another device."""
        return replace(
            self,
            clean=self.clean.to(device),
            corrupt=self.corrupt.to(device),
            answers=self.answers.to(device),
            wrong=self.wrong.to(device),
            roles={name: where.to(device) for name, where in self.roles.items()},
            template=self.template.to(device),
        )

    def provenance(self) -> dict[str, Any]:
        """Plain values that fix the task, for a result's provenance."""
        return {
            "task": self.name,
            "corruption": self.corruption,
            "metric": self.metric_name,
            "split": self.split,
            "n_prompts": len(self),
            "templates": list(self.templates),
            "sha256": self.sha256,
            **self.record,
        }


def ragged(rows: Sequence[Sequence[int]]) -> Int[Tensor, "batch width"]:
    """Rows of different lengths as one tensor, filled with -1."""
    width = max((len(row) for row in rows), default=0)
    return torch.tensor([[*row, *[NONE] * (width - len(row))] for row in rows], dtype=torch.long).view(len(rows), width)


def collate(
    name: str,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    answers: Sequence[Sequence[int]],
    wrong: Sequence[Sequence[int]],
    roles: Sequence[Mapping[str, int]],
    templates: Sequence[str],
    spans: Mapping[str, Any] | None = None,
    **fields: Any,
) -> PromptTask:
    """A task from one entry per prompt; END is added where it is not given; `spans` as in `Batch.of`, for both twins.

    Raises:
        TaskError: a clean and a corrupt prompt of different lengths, or a role outside its prompt.
    """
    for clean, corrupt in pairs:
        if len(clean) != len(corrupt):
            raise TaskError(f"{name}: a clean prompt of {len(clean)} tokens has a corrupt one of {len(corrupt)}")
    ends = [{**of, "END": of.get("END", len(pair[0]) - 1)} for of, pair in zip(roles, pairs, strict=True)]
    for of, (clean, _) in zip(ends, pairs, strict=True):
        stray_roles = [role for role, at in of.items() if not 0 <= at < len(clean)]
        if stray_roles:
            raise TaskError(
                f"{name}: role {stray_roles[0]!r} stands at {of[stray_roles[0]]}, outside {len(clean)} tokens"
            )
    kinds = tuple(dict.fromkeys(templates))
    return PromptTask(
        name=name,
        clean=Batch.of([list(clean) for clean, _ in pairs], spans=spans),
        corrupt=Batch.of([list(corrupt) for _, corrupt in pairs], spans=spans),
        answers=ragged(answers),
        wrong=ragged(wrong),
        roles={
            role: torch.tensor([of.get(role, NONE) for of in ends])
            for role in dict.fromkeys(r for of in ends for r in of)
        },
        template=torch.tensor([kinds.index(kind) for kind in templates]),
        templates=kinds,
        **fields,
    )
