"""`LensParts`: hook points of a TransformerBridge by site, each tested in a probe pass.

A bridge names its hook points alike for every architecture, but what they hold, and whether a change there reaches the
output, differs from adapter to adapter. So one short pass is run with noise added at every point used for editing, and
what the names promise is checked: the residual stream is the sum of what is said to be added to it, and a projection's
output is the projection of its changed input. A point that fails is not used, and its sites say so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from interp.backends.hf.neurons import routers
from interp.backends.lens.eager import EagerAttention
from interp.backends.plan.places import Place
from interp.errors import BackendError, InterpError
from interp.sites import DIVISORS

PROBE = 5  # tokens
POINTS = {  # kind -> hook point, as a path from the block
    "resid_pre": "hook_in",
    "resid_post": "hook_out",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "mlp_in": "mlp.hook_in",
    "mlp_post": "mlp.out.hook_in",
    "mlp_pre": "mlp.in.hook_out",  # of a gated MLP: see _GATED
    "norm_scale": "ln1.hook_scale",
    "mlp_norm_scale": "ln2.hook_scale",
    "attn_out_norm_scale": "ln1_post.hook_scale",
    "mlp_out_norm_scale": "ln2_post.hook_scale",
}
_GATED = {"mlp_pre": "mlp.gate.hook_out", "mlp_up": "mlp.in.hook_out"}
ENDS = {  # kind -> hook point, as a path from the bridge
    "norm_scale": "ln_final.hook_scale",
    "token_embed": "embed.hook_out",
    "pos_embed": "pos_embed.hook_out",
    "unembed_in": "unembed.hook_in",
}
_READS = {  # only looked at: before any noise of ours
    "mid": "hook_resid_mid",
    "mlp_first": "mlp.in.hook_in",
    "mlp_result": "mlp.out.hook_out",
    "normed": "ln1.hook_out",
    "raw q": "attn.q.hook_out",
    "raw k": "attn.k.hook_out",
    "raw v": "attn.v.hook_out",
    "raw z": "attn.o.hook_in",
    "raw attn_out": "attn.o.hook_out",
    "raw mlp_out": "mlp.hook_out",
}
_ABSENT = {
    "mlp_in": "the bridge has no hook point at the input of this layer's MLP",
    "mlp_post": "this layer's MLP has no single output projection (a mixture of experts, for one)",
    "mlp_out": "the bridge has no hook point at what this layer's MLP adds",
    "attn_out": "the bridge has no hook point at what this layer's attention adds",
    "norm_scale": "no norm stands before this layer's attention",
    "mlp_pre": "the bridge has no hook point at this layer's pre-activations",
    "mlp_up": "this layer's MLP has no gate: mlp_pre is its one pre-activation",
    "mlp_norm_scale": "no norm stands before this layer's MLP",
    "attn_out_norm_scale": "no norm stands behind this layer's attention",
    "mlp_out_norm_scale": "no norm stands behind this layer's MLP",
    "router_logits": "this layer has no mixture of experts whose router transformers names",
}
_NO_END = {
    "norm_scale": "the bridge has no norm before the unembedding",
    "token_embed": "the bridge has no hook point at the embedding of tokens",
    "pos_embed": "no positions are added to the embedding of tokens",
    "unembed_in": "the bridge has no hook point at the unembedding",
}
_LOST = "a change at the bridge's hook point does not reach the MLP"
_TRIED = ("attn_out", "mlp_out", "mlp_in", "mlp_post")
SHIFTED = (
    "with sink logits the softmax here takes scores less the largest of their row; load the model without a bridge"
)
PARALLEL = "attention and MLP read the same residual stream here (parallel), so there is none between them"


@dataclass(frozen=True, eq=False)
class LensParts:
    """Parts of a bridge, from one probe pass.

    Attributes:
        points: hook point of each (kind, layer); final norm under ("norm_scale", None).
        missing: why a (kind, layer) does not exist.
        attention: attention component of each layer that has one.
        tuples: layers whose block gives a tuple instead of a tensor.
        n_heads, n_kv_heads, d_head, d_value, d_model: sizes.
        sink_logits: whether the softmax has an extra slot.
        routers: module that scores the experts of a layer, and where in its output.
        traits: of each layer, and of the ends under None; keys of `interp.sites.DIFFERENCES`.
    """

    blocks: nn.ModuleList
    points: dict[Place, Any]
    missing: dict[Place, str]
    attention: dict[int, nn.Module]
    tuples: dict[int, int]
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_value: int
    d_model: int
    sink_logits: bool
    routers: dict[int, tuple[nn.Module, int]]
    traits: dict[int | None, frozenset[str]]


@dataclass
class _Probe:
    """Tensors of the probe pass by (name, layer)."""

    tensors: dict[tuple[str, int | None], Tensor] = field(default_factory=dict)
    slot: bool = False
    outputs: dict[int, Any] = field(default_factory=dict)
    logits: Any = None


def resolve(root: Any, path: str) -> Any:
    """The object at a dotted path, None where a step is missing."""
    for step in path.split("."):
        root = getattr(root, step, None)
        if root is None:
            return None
    return root


def observe(bridge: Any, run: Callable[[Tensor], Any]) -> LensParts:
    """Parts of a bridge; `run` is its forward pass for token ids.

    Raises:
        BackendError: no stack of blocks, or no softmax attention in them that can be seen.
    """
    blocks = resolve(bridge, "blocks")
    if blocks is None:
        raise BackendError(f"{type(bridge).__name__} has no `blocks`: looked for one stack of decoder layers")
    attention = {layer: block.attn for layer, block in enumerate(blocks) if resolve(block, "attn") is not None}
    if not attention:
        raise BackendError("no block of the bridge has attention: looked for `blocks.N.attn`")
    points, missing = _points(bridge, blocks)
    tokens = torch.arange(PROBE)[None] % int(bridge.cfg.d_vocab)
    heads = int(bridge.cfg.n_heads)
    kv_heads = int(getattr(bridge.cfg, "n_key_value_heads", None) or heads)
    probe = _run(bridge, points, attention, (heads, kv_heads), lambda: run(tokens))
    _check(blocks, points, missing, probe)
    d_model = probe.tensors["resid_pre", 0].shape[-1]
    d_head, d_value = (probe.tensors[kind, next(iter(attention))].shape[-1] for kind in "qv")
    tuples = {layer: len(out) for layer, out in probe.outputs.items() if isinstance(out, tuple)}
    sizes = (heads, kv_heads, d_head, d_value, d_model)
    if probe.slot:
        missing |= {("scores", layer): SHIFTED for layer in attention}
    routers = _routers(bridge, blocks, missing)
    return LensParts(
        blocks, points, missing, attention, tuples, *sizes, probe.slot, routers, _traits(bridge, blocks, missing, probe)
    )


def attention_hooks(mode: EagerAttention, attention: dict[int, nn.Module]) -> list[Any]:
    """Hooks that tell `mode` when each layer's attention begins and ends; to be removed by the caller."""

    def before(layer: int) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            candidates = (*args, *(kwargs.get(name) for name in ("hidden_states", "query_input")))
            hidden = next(x for x in candidates if isinstance(x, Tensor))
            mode.enter(layer, hidden.shape[0], hidden.shape[1])

        return hook

    handles = []
    for layer, module in attention.items():
        handles.append(module.register_forward_pre_hook(before(layer), with_kwargs=True, prepend=True))
        handles.append(module.register_forward_hook(lambda module, args, output: mode.leave()))
    return handles


def _points(bridge: Any, blocks: nn.ModuleList) -> tuple[dict[Place, Any], dict[Place, str]]:
    points: dict[Place, Any] = {}
    missing: dict[Place, str] = {}
    for layer, block in enumerate(blocks):
        gate = resolve(block, _GATED["mlp_pre"]) is not None
        if not gate:
            missing["mlp_up", layer] = _ABSENT["mlp_up"]
        for kind, path in {**POINTS, **(_GATED if gate else {})}.items():
            point = resolve(block, path)
            if point is None:
                missing[kind, layer] = _ABSENT[kind]
            else:
                points[kind, layer] = point
        if ("mlp_post", layer) in missing:
            for kind in ("mlp_pre", "mlp_up"):
                _drop(points, missing, (kind, layer), missing["mlp_post", layer])
    for kind, path in ENDS.items():
        point = resolve(bridge, path)
        if point is None:
            missing[kind, None] = _NO_END[kind]
        else:
            points[kind, None] = point
    return points, missing


def _routers(bridge: Any, blocks: nn.ModuleList, missing: dict[Place, str]) -> dict[int, tuple[nn.Module, int]]:
    """Router of each layer that has one, as transformers names it."""
    declared, result = routers(bridge.original_model), {}
    for layer, block in enumerate(blocks):
        modules = list(getattr(block, "original_component", block).modules())
        own = [(m, index) for kind, index in declared for m in modules if isinstance(m, kind)]
        if own:
            result[layer] = own[-1]
        else:
            missing["router_logits", layer] = _ABSENT["router_logits"]
    return result


def _traits(
    bridge: Any, blocks: nn.ModuleList, missing: dict[Place, str], probe: _Probe
) -> dict[int | None, frozenset[str]]:
    """Traits by layer: where what a projection gives is not what the site of that name holds."""
    unembedded = probe.tensors.get(("unembedded", None))
    capped = unembedded is None or not _close(unembedded, probe.logits)
    normed = resolve(bridge, "embed_ln") is not None
    result: dict[int | None, frozenset[str]] = {None: frozenset(["logits"] * capped + ["embed_norm"] * normed)}
    for layer, block in enumerate(blocks):
        tensors = {name: x for (name, at), x in probe.tensors.items() if at == layer}
        pairs = {kind: (tensors.get(f"raw {kind}"), tensors.get(kind)) for kind in "qkvz"}
        names = {
            kind for kind, (raw, x) in pairs.items() if raw is None or x is None or not _close(raw, x.transpose(1, 2))
        }
        for trait, kind in (("attn_post", "attn_out"), ("mlp_post", "mlp_out")):
            raw, x = tensors.get(f"raw {kind}"), tensors.get(f"given {kind}")
            names |= set() if raw is None or x is None or _close(raw.view_as(x), x) else {trait}
        names |= {trait for trait in ("attn_norm", "mlp_norm") if (_SCALES[trait], layer) in missing}
        names |= {"gated"} if resolve(block, _GATED["mlp_pre"]) is not None else set()
        result[layer] = frozenset(names)
    return result


_SCALES = {"attn_norm": "norm_scale", "mlp_norm": "mlp_norm_scale"}


def _run(
    bridge: Any,
    points: dict[Place, Any],
    attention: dict[int, nn.Module],
    heads: tuple[int, int],
    run: Callable[[], Any],
) -> _Probe:
    """One pass with noise at every point that may be edited, and all there is to compare kept."""
    probe, handles, blocks = _Probe(), [], bridge.blocks

    def keep(name: str, layer: int | None) -> Callable:
        def hook(x: Tensor, hook: Any) -> Tensor:
            probe.tensors[f"given {name}", layer] = x
            if name in _TRIED:
                noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
                x = x + 0.1 * x.float().std().to(x) * noise.to(x)
            probe.tensors[name, layer] = x
            return x

        return hook

    def visit(layer: int, kind: str, x: Tensor) -> Tensor:
        probe.tensors[kind, layer] = x
        probe.slot = probe.slot or mode.slot is not None
        return x

    mode = EagerAttention(visit, n_heads=heads[0], n_kv_heads=heads[1], check=True)
    for layer, block in enumerate(blocks):
        for kind in (kind for kind in POINTS if kind not in DIVISORS):
            if (kind, layer) in points:
                handles.append((points[kind, layer], points[kind, layer].add_hook(keep(kind, layer))))
        for name, path in _READS.items():
            point = resolve(block, path)
            if point is not None:
                handles.append((point, point.add_hook(keep(name, layer), prepend=True)))

        def note(module: nn.Module, args: tuple, output: Any, layer: int = layer) -> None:
            probe.outputs[layer] = output

        handles.append((None, block.register_forward_hook(note)))
    handles += [(None, handle) for handle in attention_hooks(mode, attention)]
    end = resolve(bridge, "unembed.hook_out")
    handles += [] if end is None else [(end, end.add_hook(keep("unembedded", None)))]
    try:
        with mode:
            probe.logits = run()
    except InterpError:
        raise
    except Exception as error:  # whatever the code around a bridge runs into
        raise BackendError(f"the bridge cannot be run on token ids alone ({type(error).__name__}: {error})") from error
    finally:
        for point, handle in handles:
            remove(point, handle)
    return probe


def remove(point: Any, handle: Any) -> None:
    """Take a hook off again, out of the point's own list as well."""
    if point is None:
        handle.remove()
        return
    handle.hook.remove()
    if handle in point.fwd_hooks:
        point.fwd_hooks.remove(handle)


def _check(blocks: nn.ModuleList, points: dict[Place, Any], missing: dict[Place, str], probe: _Probe) -> None:
    """Drop what does not hold what its name says, or where a change gets lost."""
    for layer, block in enumerate(blocks):
        tensors = {name: x for (name, at), x in probe.tensors.items() if at == layer}
        writes = [tensors[kind] for kind in ("attn_out", "mlp_out") if kind in tensors]
        if not {"resid_pre", "resid_post"} <= tensors.keys():
            raise BackendError(f"layer {layer}: the bridge's hook points at the residual stream are not passed")
        if not _close(sum(writes, tensors["resid_pre"]), tensors["resid_post"]):
            family = type(block.original_component).__name__
            for kind in ("attn_out", "mlp_out"):
                _drop(
                    points, missing, (kind, layer), f"the bridge's hook does not hold what {family} adds to the stream"
                )
        _check_heads(points, missing, layer, block)
        if "mid" not in tensors:
            missing["resid_mid", layer] = PARALLEL
        elif ("attn_out", layer) not in points or not _close(
            tensors["mid"], tensors["resid_pre"] + tensors["attn_out"]
        ):
            missing["resid_mid", layer] = "what the bridge calls resid_mid is not resid_pre + attn_out"
        if "mlp_in" in tensors and "mlp_first" in tensors and not _close(tensors["mlp_first"], tensors["mlp_in"]):
            if resolve(block, "mlp.gate") is None:  # no second reader: the projection's own input will do
                points["mlp_in", layer] = resolve(block, _READS["mlp_first"])
            else:
                _drop(points, missing, ("mlp_in", layer), _LOST)
        normed, read = tensors.get("normed"), tensors.get("given mlp_in")
        if ("mlp_norm_scale", layer) in missing and normed is not None and read is not None and _close(normed, read):
            del missing["mlp_norm_scale", layer]  # one norm for attention and MLP
            points["mlp_norm_scale", layer] = resolve(block, POINTS["norm_scale"])
        if "mlp_post" in tensors and "mlp_result" in tensors:
            with torch.no_grad():
                expected = resolve(block, "mlp.out.original_component")(tensors["mlp_post"])
            if not _close(expected.view_as(tensors["mlp_result"]), tensors["mlp_result"]):
                _drop(points, missing, ("mlp_post", layer), _LOST)


def _check_heads(points: dict[Place, Any], missing: dict[Place, str], layer: int, block: nn.Module) -> None:
    """Heads write through what attention adds and by one projection, or there is no such site."""
    if ("attn_out", layer) not in points:
        missing["head_out", layer] = missing["attn_out", layer]
    elif resolve(block, "attn.o.original_component") is None:
        missing["head_out", layer] = "the bridge has no one output projection of this layer's attention"


def _drop(points: dict[Place, Any], missing: dict[Place, str], place: Place, why: str) -> None:
    points.pop(place, None)
    missing[place] = why


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).norm() <= 1e-3 * b.norm().clamp(min=1e-6))
