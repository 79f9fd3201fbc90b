"""Low-pass and high-pass filters over numbers: what becomes of sums with only slow or only fast waves of them left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from interp.batch import Batch
from interp.edits import Add, Apply, Edit
from interp.errors import NotApplicable, SchemaError
from interp.measurement.fourier import fourier_basis
from interp.measurement.registry import Findings, analysis
from interp.measurement.scoring import LEVEL, interval_columns
from interp.model import Model
from interp.results import stats
from interp.results.figures import dots
from interp.sites import Site
from interp.tasks import PromptTask
from interp.tasks.metrics import answer_logits
from interp.tasks.modular import FAMILY
from probes.arithmetic.numbers import LEAST, default_task, ids_of_numbers

SLOWEST_DIGIT = 10.0
"""Period up to which a wave tells last digits apart, and above which it tells sizes."""
MODULI = (2, 5, 10)
OUTPUTS = ("attn_out", "mlp_out")
RANK = 1e-6
"""Of the largest singular value, below which one is none."""
METRICS = ("exact", "error", *(f"mod {m}" for m in MODULI))


@analysis(
    name="number_filters",
    family="arithmetic",
    title="Filters over numbers",
    headline="exact",
    unit="place and filter",
    order=66,
    figure=dots,
    subject="zoo:modular-addition",
    columns={"site": "str", "role": "str", "filter": "str", "clean": "float64", "waves": "Int64", "label": "boolean"},
    presumes=(),
    quick={"n_prompts": 32, "n_shuffles": 5},
    exemptions={
        "planted": "numbers, of which planted models have none; tests write size and parity into an embedding",
        "scale": "where a filter leaves nothing right there is nothing to grow",
    },
    means="With only these waves of the numbers left at the place, so much of the sums is still right: exactly, by how "
    "much it is off, and modulo 2, 5 and 10. Slow waves carry the size of a number, fast ones its last digit.",
    misleads="A filter takes away as many directions as it has waves: compare with random orders of the numbers, which "
    "lose as many (`waves`, of the d_model that there are). Modulo p numbers are a cycle and have no size: `error` is "
    "then the distance around it.",
    reference="Zhou et al. 2024, arXiv 2406.03445",
)
def number_filters(
    model: Model,
    *,
    task: PromptTask | None = None,
    filters: Mapping[str, Sequence[int]] | None = None,
    n_prompts: int = 64,
    n_shuffles: int = 10,
    seed: int = 0,
) -> Findings:
    """Sums right with x_v' = mean + sum over kept k of the waves cos, sin of 2 pi k v / N of x_v, over numbers v < N.

    Places are the stream entering each layer at the operands, where x_v is what the number v has there (in the first
    prompt, with v in the operand's place) and x_v' - x_v is added; and everything that attention, or the MLPs, add to
    the stream at END ("attn_out", "mlp_out"), from which the part is taken that writes the other waves into the
    logits of the numbers: x' = x - U^+ U x, rows of U are the waves of W_U's columns of the numbers, through the gain
    of the final norm. The answer is the number with the largest logit. Variants, a row per place and filter, each
    beside the same without a filter (`clean`), with an interval over prompts:
      exact              share of sums that are right;
      error              mean |answer - right|, modulo p the shorter way around;
      mod 2, mod 5, mod 10  share of answers that have the right remainder.
    A filter of outputs that would take all directions of the stream away is left out (provenance: `takes_all`).
    Null: waves of the numbers in a random order, as many of them, mean over `n_shuffles`; p (two-sided) Student's
    prediction interval of these draws, q Benjamini-Hochberg over the rows of a variant; a label needs q < 0.01.

    Args:
        model: any model.
        task: prompts with operands x and y and answers of one token each; the model's own modular addition where it
            has one, else `arithmetic`.
        filters: frequencies k that each filter keeps, by name; "low" (periods N / k above 10) and "high" (10 and
            below) if not given.
        n_prompts: of the task, where it is not given.
        n_shuffles: random orders, 5 at least.
        seed: of prompts, orders and bootstrap.

    Raises:
        NotApplicable: operands or answers that are no numbers of one token each, or fewer than eight numbers.
        SchemaError: no filter, or one with a frequency that there is none of.

    Reference: Zhou et al. 2024 (arXiv 2406.03445), whose filters of outputs these are; those of operands, and nulls,
    are ours.
    """
    task = default_task(model, n=n_prompts, seed=seed) if task is None else task
    numbers = Numbers.of(model, task)
    kept = _filters(numbers.n, filters)
    places = _places(model, numbers)
    rng = np.random.default_rng(seed)
    orders = [torch.arange(numbers.n), *(torch.from_numpy(rng.permutation(numbers.n)) for _ in range(n_shuffles))]
    clean = numbers.measure(())
    rows, takes_all = [], []
    for place in places:
        for name, keep in kept.items():
            if isinstance(place, OutputPlace) and place.takes_all(keep):
                takes_all.append(f"{place.site}: {name}")
                continue
            draws = [numbers.measure(place.edits(numbers, keep, order)) for order in orders]
            labels = {"site": place.site, "role": place.role, "filter": name, "waves": _n_removed(numbers.n, keep)}
            labels |= {"component": f"{place.site} at {place.role}: {name}"}
            rows += [_row(metric, labels, draws, clean, seed) for metric in METRICS]
    table = pd.DataFrame(rows)
    for metric in METRICS:
        mask = table["variant"] == metric
        table.loc[mask, "q"] = stats.benjamini_hochberg(table.loc[mask, "p"].to_numpy(dtype=float))
        table.loc[mask, "label"] = table.loc[mask, "q"] < LEVEL
    table = table.sort_values("variant", key=lambda v: v.map(METRICS.index), kind="stable", ignore_index=True)
    facts: dict[str, object] = {"takes_all": takes_all, "n_numbers": numbers.n}
    facts["filters"] = {name: list(keep) for name, keep in kept.items()}
    return Findings(table, {**task.provenance(), **facts}, ability=task)


def filtered(
    x: Float[Tensor, "number d"], keep: Sequence[int], order: Int[Tensor, " number"] | None = None
) -> Float[Tensor, "number d"]:
    """Mean of the rows and their waves of the frequencies kept; with an order, waves over the rows in that order.

    >>> t = torch.arange(12.0)[:, None] * 2 * torch.pi / 12
    >>> x = torch.cat([t.cos(), (3 * t).cos()], 1)
    >>> bool(torch.allclose(filtered(x, [1]), x * torch.tensor([1.0, 0.0]), atol=1e-5))
    True
    """
    waves = fourier_basis(len(x)).to(x)[[0, *_columns(len(x), keep)]]
    if order is not None:
        waves = waves[:, order.argsort()]
    return waves.T @ (waves @ x)


def _columns(n: int, keep: Sequence[int]) -> list[int]:
    """Rows of `fourier_basis` of frequencies: cosine and sine, the last of an even n a cosine alone."""
    return [i for k in keep for i in (2 * k - 1, 2 * k) if i < n]


def _n_removed(n: int, keep: Sequence[int]) -> int:
    return n - 1 - len(_columns(n, keep))


def _filters(n: int, filters: Mapping[str, Sequence[int]] | None) -> dict[str, list[int]]:
    every = range(1, n // 2 + 1)
    if filters is None:
        low = [k for k in every if n / k > SLOWEST_DIGIT]
        return {"low": low, "high": [k for k in every if k not in low]}
    if not filters:
        raise SchemaError("filters: none is given; leave it out for the low and the high waves")
    for name, keep in filters.items():
        stray = sorted(set(keep) - set(every))
        if stray:
            raise SchemaError(f"filter {name!r}: there is no frequency {stray[0]}; they go from 1 to {n // 2}")
    return {name: sorted(set(keep)) for name, keep in filters.items()}


@dataclass(frozen=True, eq=False)
class Numbers:
    """A task of sums whose operands and answers are numbers of one token each.

    Attributes:
        operands: by role, the number of each prompt. ids: by role, the token of each number there.
        answers: the token of each number as an answer. right: the number that is right.
        cycle: p, where numbers go around; None where they do not.
    """

    model: Model
    task: PromptTask
    operands: Mapping[str, Int[Tensor, " prompt"]]
    ids: Mapping[str, Int[Tensor, " number"]]
    answers: Int[Tensor, " number"]
    right: Int[Tensor, " prompt"]
    cycle: int | None

    @property
    def n(self) -> int:
        """N."""
        return len(self.answers)

    @classmethod
    def of(cls, model: Model, task: PromptTask) -> Numbers:
        """Up to as many numbers as all places have.

        Raises:
            NotApplicable: a role or an answer that is no number of one token, or fewer than eight numbers.
        """
        if not {"x", "y"} <= set(task.roles) or bool((task.answers[:, :1] < 0).any()) or not task.answers.shape[1]:
            raise NotApplicable(f"{task.name} has no operands x and y, or a prompt without an answer")
        index = torch.arange(len(task))
        stand = {role: task.clean.ids.cpu()[index, task.role(role).cpu()] for role in ("x", "y")}
        stand["END"] = task.answers[:, 0].cpu()
        ids = {role: ids_of_numbers(model, own, f"{task.name}: tokens at {role}") for role, own in stand.items()}
        n = min(map(len, ids.values()))
        values = {r: torch.tensor([ids[r].tolist().index(i) for i in own.tolist()]) for r, own in stand.items()}
        if n < LEAST or max(int(v.max()) for v in values.values()) >= n:
            raise NotApplicable(f"{task.name}: only the numbers below {n} are one token each, at operands and answer")
        cycle = n if task.name == FAMILY else None
        operands = {role: values[role] for role in ("x", "y")}
        return cls(model, task, operands, {r: i[:n] for r, i in ids.items()}, ids["END"][:n], values["END"], cycle)

    def standing(self, role: str) -> Batch:
        """The first prompt with each number in an operand's place."""
        ids = self.task.clean.ids[:1].cpu().repeat(self.n, 1)
        mask = self.task.clean.mask[:1].cpu().repeat(self.n, 1)
        ids[:, int(self.task.role(role)[0])] = self.ids[role]
        return Batch(ids, mask)

    @torch.no_grad()
    def measure(self, edits: Sequence[Edit]) -> Float[ndarray, "metric prompt"]:
        """`METRICS` of each prompt."""
        logits = self.model.run(self.task.clean, edits=edits).logits
        if logits is None:
            raise NotApplicable("the model has no logits")
        answer = answer_logits(logits, self.task).float().cpu()[:, self.answers].argmax(1)
        off = (answer - self.right).abs()
        if self.cycle is not None:
            off = torch.minimum(off, self.cycle - off)
        right = [answer % m == self.right % m for m in MODULI]
        return torch.stack([answer == self.right, off, *right]).double().numpy()


@dataclass(frozen=True, eq=False)
class OperandPlace:
    """The stream entering a layer at both operands."""

    place: Site
    vectors: Mapping[str, Float[Tensor, "number d"]]
    role: str = "x y"

    @property
    def site(self) -> str:
        """As a table says it."""
        return str(self.place)

    def edits(self, numbers: Numbers, keep: Sequence[int], order: Int[Tensor, " number"]) -> list[Edit]:
        """x -> x + x_v' - x_v."""
        made: list[Edit] = []
        for role, x in self.vectors.items():
            change = (filtered(x, keep, order) - x)[numbers.operands[role]]
            made.append(Add(self.place, change, positions=numbers.task.role(role)))
        return made


@dataclass(frozen=True, eq=False)
class OutputPlace:
    """What attention, or the MLPs, of all layers add to the stream at END."""

    site: str
    layers: Sequence[int]
    columns: Float[Tensor, "number d"]
    role: str = "END"

    def takes_all(self, keep: Sequence[int]) -> bool:
        """Whether the waves taken out span the whole stream."""
        return len(self._basis(keep, torch.arange(len(self.columns)))) >= self.columns.shape[1]

    def edits(self, numbers: Numbers, keep: Sequence[int], order: Int[Tensor, " number"]) -> list[Edit]:
        """x -> x - U^+ U x, U the waves taken out."""
        basis = self._basis(keep, order)

        def take_out(x: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch d_model"]:
            own = basis.to(x.device)
            return x - ((x.float() @ own.T) @ own).to(x.dtype)

        return [Apply(Site(self.site, i), take_out, positions=numbers.task.end) for i in self.layers]

    def _basis(self, keep: Sequence[int], order: Int[Tensor, " number"]) -> Float[Tensor, "direction d"]:
        """Orthonormal directions that write the waves not kept."""
        n = len(self.columns)
        others = [i for i in range(1, n) if i not in set(_columns(n, keep))]
        waves = fourier_basis(n)[others][:, order.argsort()].double()
        span = torch.linalg.svd(waves @ self.columns.double(), full_matrices=False)
        return span.Vh[RANK * span.S.max() < span.S].float() if others else span.Vh.float()


@torch.no_grad()
def _places(model: Model, numbers: Numbers) -> list[OperandPlace | OutputPlace]:
    info = model.info
    sites = [Site("resid_pre", i) for i in range(info.n_layers)]
    vectors: dict[Site, dict[str, Tensor]] = {site: {} for site in sites}
    for role in ("x", "y"):
        at = int(numbers.task.role(role)[0])
        run = model.run(numbers.standing(role), capture={s: lambda x, at=at: x[:, at].float().cpu() for s in sites})
        for site in sites:
            vectors[site][role] = run.acts[site]
    weights = model.weights()
    columns, norm = weights.source.columns(numbers.answers), weights.final_norm
    columns = columns if norm is None else norm.transpose(columns)
    layers = {"attn_out": info.attention_layers, "mlp_out": range(info.n_layers)}
    outputs = [OutputPlace(kind, [i for i in layers[kind] if _exists(model, kind, i)], columns) for kind in OUTPUTS]
    return [*(OperandPlace(site, own) for site, own in vectors.items()), *(o for o in outputs if o.layers)]


def _exists(model: Model, kind: str, layer: int) -> bool:
    return kind not in model.writes(layer).missing


def _row(
    metric: str,
    labels: Mapping[str, object],
    draws: Sequence[Float[ndarray, "metric prompt"]],
    clean: Float[ndarray, "metric prompt"],
    seed: int,
) -> dict[str, object]:
    """One metric at a place with a filter; the first draw is that of the numbers in order."""
    i = METRICS.index(metric)
    own, *others = [draw[i] for draw in draws]
    null = np.array([x.mean() for x in others])
    p = float(stats.p_two_sided(np.array([own.mean()]), null[:, None])[0])
    columns = interval_columns(stats.bootstrap_mean(own[:, None], seed=seed))
    interval = {k: np.ravel(np.asarray(v))[0] for k, v in columns.items()}
    unit = "number" if metric == "error" else "fraction"
    return {
        "variant": metric,
        **labels,
        **interval,
        "unit": unit,
        "null": null.mean(),
        "p": p,
        "clean": clean[i].mean(),
    }
