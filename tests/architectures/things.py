"""What is tried on a model: each thing a function of a `Case` that raises AssertionError where a number is wrong."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import interp
from interp.batch import Batch
from interp.decompose import decompose
from interp.edits import Ablate
from interp.errors import InterpError
from interp.measurement.checks.laws.attending import statistics_are_those_of_the_pattern
from interp.measurement.checks.laws.reading import paired_activations
from interp.measurement.checks.laws.subject import Subject, apart, close, require, run_logits
from interp.model import Model
from interp.sites import PER_HEAD, Site

LENGTHS, LOW, HIGH = (12, 12, 7), 3, 60
LOOSE = 1e-4
"""Share of the largest by which float32 numbers may differ that were made in another order."""
SLOPES = 2e-3
PROJECTIONS = ("o_proj", "out_proj", "c_proj", "dense", "out_lin", "wo", "attn_out", "proj", "linear_out")


class Attending(Subject):
    """A subject whose last layer is the last with attention: hybrids end with others."""

    @property
    def last(self) -> int:
        """The last layer with attention."""
        return self.model.info.attention_layers[-1]


@dataclass(frozen=True, eq=False)
class Case:
    """A model and a module with the same parameters that nothing of ours has touched.

    `scaled` is a module of the type with dynamic rotary scaling beyond 16 tokens, None where it has no rotary tables.
    """

    model: Model
    module: PreTrainedModel
    scaled: PreTrainedModel | None = None

    @property
    def rows(self) -> list[list[int]]:
        """Prompts of the lengths `LENGTHS`."""
        generator = torch.Generator().manual_seed(1)
        return [torch.randint(LOW, HIGH, (n,), generator=generator).tolist() for n in LENGTHS]

    @cached_property
    def whole(self) -> Attending:
        """Two prompts of one length."""
        return Attending(self.model, self.module, Batch.of(torch.tensor(self.rows[:2])))

    def plain(self, ids: Tensor) -> Tensor:
        """Logits of the module's own pass."""
        takes = inspect.signature(self.module.forward).parameters
        with torch.no_grad():
            return self.module(ids, **({"use_cache": False} if "use_cache" in takes else {})).logits


def logits(case: Case) -> None:
    """Logits of a run are those of the plain forward pass."""
    ids = case.whole.batch.ids
    close(run_logits(case.model.run(ids)), case.plain(ids), "logits", share=LOOSE)


def capture(case: Case, kind: str) -> None:
    """A site is there at each of its layers, finite and of its shape."""
    info, ids = case.model.info, case.whole.batch.ids
    acts = case.model.run(ids, capture=[kind]).acts
    layers = info.layers_of(Site(kind))
    require(
        [s.first for s in acts] == list(layers), f"{kind}: captured at {[s.first for s in acts]}, not {list(layers)}"
    )
    for site, x in acts.items():
        heads = info.n_kv_heads if kind in ("k", "v") else info.n_heads
        start = (len(ids), heads, ids.shape[1], ids.shape[1]) if kind == "pattern" else (*ids.shape, heads)
        start = start if kind in PER_HEAD else tuple(ids.shape)
        require(x.shape[: len(start)] == start, f"{site}: shape {tuple(x.shape)}")
        require(bool(torch.isfinite(x).all()), f"{site}: not finite")


def residual(case: Case) -> None:
    """Streams follow one another: resid_post of a layer is resid_pre of the next."""
    capture(case, "resid_pre")
    capture(case, "resid_post")
    run = case.model.run(case.whole.batch.ids, capture=["resid_pre", "resid_post"])
    for i in range(1, case.model.info.n_layers):
        close(run[f"L{i}.resid_pre"], run[f"L{i - 1}.resid_post"], f"L{i}.resid_pre", share=LOOSE)


def head_out(case: Case) -> None:
    """attn_out less the writes of the heads is one vector, the same at every token."""
    capture(case, "head_out")
    capture(case, "attn_out")
    run = case.model.run(case.whole.batch.ids, capture=["head_out", "attn_out"])
    for i in case.model.info.attention_layers:
        heads = run[f"L{i}.head_out"]
        rest = (run[f"L{i}.attn_out"] - heads.sum(2)).flatten(0, 1)
        close(
            rest, rest[:1].expand_as(rest), f"L{i}.attn_out less its heads", scale=float(heads.abs().max()), share=LOOSE
        )


def mixture(case: Case) -> None:
    """The pattern mixes the values into z, and is of no more than one."""
    info, run = case.model.info, case.model.run(case.whole.batch, capture=["pattern", "v", "z"])
    for i in info.attention_layers:
        pattern, v, z = (run[Site(kind, i)] for kind in ("pattern", "v", "z"))
        values = v.repeat_interleave(info.n_heads // info.n_kv_heads, 2)
        close(torch.einsum("bhqk,bkhd->bqhd", pattern, values), z, f"L{i}: pattern v, against z", share=LOOSE)
        require(float(pattern.sum(-1).max()) < 1 + LOOSE, f"L{i}.pattern: a row has more than one")


def statistics(case: Case) -> None:
    """Statistics are those of the dense pattern."""
    statistics_are_those_of_the_pattern(case.whole)


def ablation(case: Case) -> None:
    """A head taken out of z is what a hook at the output projection makes of it."""
    info, ids = case.model.info, case.whole.batch.ids
    last = info.attention_layers[-1]
    ours = run_logits(case.model.run(ids, edits=[Ablate(Site("z", last, head=1))]))
    clean = case.plain(ids)
    apart(ours, clean, f"logits without L{last}H1")
    z = case.model.run(ids, capture=[f"L{last}.z"])[f"L{last}.z"]
    width = z.shape[-1]
    projection = _projection(case.module, info.n_heads * width, len(info.attention_layers))
    if projection is None:
        return

    taken: list[Tensor] = []

    def hook(module: nn.Module, args: tuple) -> tuple:
        taken.append(args[0])
        x = args[0].clone()
        x[..., width : 2 * width] = 0.0
        return (x, *args[1:])

    handle = projection.register_forward_pre_hook(hook)
    try:
        by_hand = case.plain(ids)
    finally:
        handle.remove()
    if torch.allclose(taken[0].reshape(z.shape), z, rtol=1e-3, atol=1e-5):  # no norm or gate in between
        close(ours, by_hand, f"logits without L{last}H1, against a hook", share=LOOSE)


def _projection(module: nn.Module, width: int, layers: int) -> nn.Module | None:
    """The last layer's output projection by its usual names; None where there is not one for each layer."""
    fitting: dict[str, list[nn.Module]] = {}
    for path, part in module.named_modules():
        weight = getattr(part, "weight", None)
        last = path.rpartition(".")[2]
        attends = "att" in path.lower() and "cross" not in path and "encoder_attn" not in path
        if last in PROJECTIONS and attends and isinstance(weight, Tensor) and weight.ndim == 2:
            taken = weight.shape[0] if type(part).__name__ == "Conv1D" else weight.shape[1]
            if taken == width:
                fitting.setdefault(last, []).append(part)
    found = [parts for parts in fitting.values() if len(parts) == layers]
    return found[0][-1] if len(found) == 1 else None


def padded(case: Case, side: str) -> None:
    """Every prompt of a padded batch is as alone."""
    batch = Batch.of(case.rows, side=side)
    sites = [kind for kind in ("resid_post",) if case.whole.refusal(kind) is None]
    run = case.model.run(batch, capture=sites)
    for row, ids in enumerate(case.rows):
        alone = case.model.run(torch.tensor([ids]), capture=sites)
        real = batch.mask[row]
        close(run_logits(run)[row, real], run_logits(alone)[0], f"logits of prompt {row}", share=LOOSE)
        for site, x in alone.acts.items():
            close(run[site][row, real], x[0], f"{site} of prompt {row}", share=LOOSE)


def dynamic_rotary(case: Case) -> None:
    """Beyond the context under dynamic scaling, a prompt is as the module alone runs it, whatever was run before."""
    if case.scaled is None:
        return
    long, less, short = ([case.rows[0] * 2, case.rows[0] * 2, case.rows[0]][i][:n] for i, n in enumerate((24, 20, 12)))
    model = interp.load(copy.deepcopy(case.scaled))
    for ids in (long, less, short):
        own = Case(model, copy.deepcopy(case.scaled)).plain(torch.tensor([ids]))
        close(run_logits(model.run([ids])), own, f"logits of {len(ids)} tokens", share=LOOSE)
    try:
        run = model.run(Batch.of([long, short]))
    except InterpError:
        return
    close(run_logits(run)[1, : len(short)], own[0], "logits beside a longer prompt", share=LOOSE)


def weights(case: Case) -> None:
    """Matrices, norms and turns make q, k, v of the stream, and attention's write of z where heads write that."""
    gated = any("head_out" in case.model.reads(i).missing for i in case.model.info.attention_layers)
    for what, (ours, theirs) in paired_activations(case.whole).items():
        if not (gated and what.endswith("attn_out")):
            close(ours, theirs, f"{what} by the weights", share=LOOSE)


def decomposition(case: Case) -> None:
    """Components sum to the residual stream."""
    parts = decompose(case.model, case.whole.batch, position=None, tolerance=LOOSE)
    close(parts.vectors.sum(0), parts.residual, "sum of components", share=LOOSE)


def generation(case: Case) -> None:
    """Greedy continuation is the module's own."""
    prompt = [case.rows[0]]
    ours = case.model.generate(prompt, max_new_tokens=3)
    ids = torch.tensor(prompt)
    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        own = case.module.generate(ids, attention_mask=torch.ones_like(ids), **options)
    require(torch.equal(ours, own), f"generated {ours.tolist()}, not {own.tolist()}")


def gradients(case: Case) -> None:
    """Gradients at parameters, and at z where its place is known, are those of the module's own pass."""
    info, ids = case.model.info, case.whole.batch.ids
    last = info.attention_layers[-1]
    here, there = (dict(m.named_parameters()) for m in (case.model.torch_module, case.module))
    names = [n for n, p in here.items() if p.requires_grad and n in there and p.shape == there[n].shape]
    site, parameters = Site("z", last), [here[name] for name in names]
    run = case.model.run(ids, capture=[site], gradients=True)
    z, z_ours, *ours = run[site], *_slopes(run_logits(run), [run[site], *parameters])
    require(z_ours is not None and bool(z_ours.any()), f"no gradient at {site}")
    projection = _projection(case.module, z.shape[2] * z.shape[3], len(info.attention_layers))
    taken: list[Tensor] = []
    handle = None if projection is None else projection.register_forward_pre_hook(lambda m, args: taken.append(args[0]))
    own_logits = case.module(ids).logits
    if handle is not None:
        handle.remove()
    plain = _slopes(own_logits, [*taken, *(there[name] for name in names)])
    for x, y in zip(ours, plain[len(taken) :], strict=True):
        require((x is None) == (y is None), "a parameter has a gradient here and none there")
        if x is not None and y is not None:
            close(x, y, "gradient of a parameter", share=SLOPES, scale=max(1e-3, float(y.abs().max())))
    if taken and torch.allclose(taken[0].reshape(z.shape), z, rtol=1e-3, atol=1e-5):  # no gate in between
        close(z_ours.flatten(), plain[0].flatten(), f"gradient at {site}", share=SLOPES)


def _slopes(logits: Tensor, at: list[Tensor]) -> list[Tensor | None]:
    return list(torch.autograd.grad(logits[:, -1, 5].sum(), at, allow_unused=True))


THINGS: dict[str, Callable[[Case], None]] = {
    "logits": logits,
    "resid": residual,
    **{kind: partial(capture, kind=kind) for kind in ("z", "q", "k", "v", "pattern", "attn_out", "mlp_out")},
    "head_out": head_out,
    "pattern of values": mixture,
    "statistics": statistics,
    "ablation": ablation,
    "left padding": partial(padded, side="left"),
    "right padding": partial(padded, side="right"),
    "dynamic rotary": dynamic_rotary,
    "weights": weights,
    "decomposition": decomposition,
    "generation": generation,
    "gradients": gradients,
}
"""What is tried, by the name it has in the table."""
