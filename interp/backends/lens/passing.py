"""`LensPass`: one forward pass of a bridge, with a hook at each place of the plan, removed afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from interp.attention import StopForward
from interp.backends.lens.dense import DenseStatistics, HeadOutputs
from interp.backends.lens.eager import EagerAttention
from interp.backends.lens.parts import ENDS, LensParts, attention_hooks, remove, resolve
from interp.backends.lens.visitor import Visitor, as_site
from interp.backends.plan.checks import check_finite
from interp.edits import RotaryBase, turn_keys, turn_queries
from interp.errors import SiteError
from interp.model import Start
from interp.sites import DIVISORS, MODULE, Site

INSIDE = {"q", "k", "v", "scores", "pattern", "z"}  # kinds that are taken from the operations of attention
SIMPLE = (
    "resid_post",
    "mlp_in",
    "mlp_pre",
    "mlp_up",
    "mlp_post",
    "mlp_out",
    *DIVISORS,
)  # kinds that are their hook point, no more


class LensPass:
    """Hooks of one pass (or, while generating, of one after another).

    Args:
        parts: of the bridge. model: the module inside.
        visitor: what to do with each activation.
        start, stop: as in `Model.run`.
        dense: attention statistics to answer; the pass ends after the last layer they ask about.
        generating: whether the module inside is called, so that its logits are met here.
    """

    def __init__(
        self,
        parts: LensParts,
        visitor: Visitor,
        model: nn.Module,
        *,
        start: Start | None = None,
        stop: int | None = None,
        dense: DenseStatistics | None = None,
        generating: bool = False,
    ) -> None:
        self.parts, self.visitor, self.model = parts, visitor, model
        self.start, self.stop, self.dense, self.generating = start, stop, dense, generating
        self._length = 0  # tokens that have passed: while generating, what the cache holds
        self._resid: dict[int, Tensor] = {}
        self._z: dict[int, Tensor] = {}
        self._writes: dict[int, HeadOutputs] = {}
        self._handles: list[tuple[Any, Any]] = []

    @contextlib.contextmanager
    def attached(self, dtype: torch.dtype) -> Iterator[None]:
        """Every hook in place; all of them gone afterwards, whatever happened."""
        mode = EagerAttention(self._inside, n_heads=self.parts.n_heads, n_kv_heads=self.parts.n_kv_heads, dtype=dtype)
        prefix = range(0 if self.start is None else self.start[0])
        try:
            self._attach()
            for layer in prefix:
                # not by assignment: a bridge component hands unknown attributes on to what it wraps
                self.parts.blocks[layer].__dict__["forward"] = _passing_through(self.parts.tuples.get(layer))
            self._mode = mode
            with mode if self._handles_attention(mode) else contextlib.nullcontext():
                yield
        finally:
            for layer in prefix:
                self.parts.blocks[layer].__dict__.pop("forward", None)
            for point, handle in self._handles:
                remove(point, handle)
            self._handles.clear()

    def _handles_attention(self, mode: EagerAttention) -> bool:
        """Watch the attention of the layers where something happens inside it."""
        dense_layers = {} if self.dense is None else dict.fromkeys(self.dense.layers)
        inner = INSIDE | {"head_out"}
        modules = {a: m for a, m in self.parts.attention.items() if a in dense_layers or self.visitor.kinds(a) & inner}
        self._handles += [(None, handle) for handle in attention_hooks(mode, modules)]
        return bool(modules)

    def _attach(self) -> None:
        points = self.parts.points
        self._on(points["resid_pre", 0], self._entering)
        for layer in range(len(self.parts.blocks)):
            kinds = self.visitor.kinds(layer)
            starts = self.start is not None and layer == self.start[0]
            if starts or kinds & {"resid_pre", "resid_mid"}:
                self._on(points["resid_pre", layer], lambda x, a=layer: self._resid_pre(a, x))
            if kinds & {"attn_out", "resid_mid", "head_out"}:
                self._on(points["attn_out", layer], lambda x, a=layer: self._attn_out(a, x))
            for kind in kinds.intersection(SIMPLE):
                visit = self._look if kind in DIVISORS else self.visitor.spread
                self._on(points[kind, layer], lambda x, k=kind, a=layer, visit=visit: visit(k, a, x))
            if "attn_in" in kinds:
                self._before(
                    self.parts.attention[layer], lambda x, a=layer: self.visitor.spread("attn_in", a, x.view_as(x))
                )
            if "router_logits" in kinds:
                module, at = self.parts.routers[layer]
                self._after(module, lambda x, a=layer: self.visitor.spread("router_logits", a, x), at)
        for kind in self.visitor.kinds(None).intersection(ENDS):
            self._on(points[kind, None], lambda x, k=kind: self._end(k, x))
        if self.generating and "logits" in self.visitor.kinds(None):
            self._handles.append((None, self.model.register_forward_hook(self._logits)))
        for kind in (kind for kind in self.visitor.kinds(None) if kind.startswith(MODULE)):
            attach = self._before if kind.endswith(":input") else self._after
            attach(self.model.get_submodule(Site(kind).module), self.visitor.tolerant(kind))
        end = self.stop if self.dense is None else max(self.dense.layers)
        last = len(self.parts.blocks) - 1 if end is None else end
        self._on(points["resid_post", last], lambda x: self._leaving(last, x))
        if end is not None:
            self._on(points["resid_post", end], _end)

    def _on(self, point: Any, visit: Callable[[Tensor], Tensor]) -> None:
        """Hook a point; a hook that changes nothing says so by giving None, as bridges expect."""

        def hook(x: Tensor, hook: Any) -> Tensor | None:
            result = visit(x)
            return None if result is x else result

        self._handles.append((point, point.add_hook(hook)))

    def _before(self, module: Any, visit: Callable[[Any], Any]) -> None:
        def hook(_: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
            names = ("hidden_states", "query_input", *kwargs)
            name = next((n for n in names if isinstance(kwargs.get(n), Tensor)), None)
            if args or name is None:
                return (visit(args[0]), *args[1:]), kwargs
            return args, {**kwargs, name: visit(kwargs[name])}

        self._handles.append((None, module.register_forward_pre_hook(hook, with_kwargs=True)))

    def _after(self, module: Any, visit: Callable[[Any], Any], at: int = 0) -> None:
        def hook(_: Any, args: tuple, output: Any) -> Any:
            if isinstance(output, tuple):
                return (*output[:at], visit(output[at]), *output[at + 1 :])
            return visit(output)

        self._handles.append((None, module.register_forward_hook(hook)))

    def _look(self, kind: str, layer: int | None, x: Tensor) -> Tensor:
        """What is read off and not passed on."""
        self.visitor.spread(kind, layer, x)
        return x

    def _end(self, kind: str, x: Tensor) -> Tensor:
        """A place outside the layers; positions are embedded once for all prompts."""
        return self._visit(kind, None, x.expand(self.visitor.shape[0], *x.shape[-2:]) if kind == "pos_embed" else x)

    def _logits(self, module: nn.Module, args: tuple, output: Any) -> Any:
        output.logits = self._visit("logits", None, output.logits)
        return output

    def _visit(self, kind: str, layer: int | None, x: Tensor) -> Tensor:
        return self.visitor.visit(kind, layer, x)

    def _entering(self, x: Tensor) -> Tensor:
        """The stream's first appearance: where the pass stands among the tokens of a cache, and `embed`."""
        anew = x.shape[1] > self._length  # every token is read again: no cache
        self._length = 0 if anew else self._length
        self.visitor.begin(None, (x.shape[0], x.shape[1]), self._length)
        self._length += x.shape[1]
        return self._visit("embed", None, x)

    def _leaving(self, layer: int, x: Tensor) -> Tensor:
        """NaN anywhere before the last layer has ended up here."""
        if x.shape[:2] == self.visitor.mask.shape:
            check_finite(x, self.visitor.mask, layer)
        return x

    def _resid_pre(self, layer: int, x: Tensor) -> Tensor:
        if self.start is not None and layer == self.start[0]:
            x = self.start[1].to(x)
        x = self._resid[layer] = self._visit("resid_pre", layer, x)
        return x

    def _attn_out(self, layer: int, x: Tensor) -> Tensor:
        """`head_out`, `attn_out` and `resid_mid`, all of them by way of what attention adds."""
        kinds, visitor = self.visitor.kinds(layer), self.visitor
        if "head_out" in kinds:
            before = self._write(layer)(self._z.pop(layer))
            heads = self._visit("head_out", layer, before)
            if heads is not before or visitor.gradients:
                x = x + (heads - before).sum(2)
        if "attn_out" in kinds:
            x = self._visit("attn_out", layer, x)
        if "resid_mid" in kinds:
            resid = self._resid.pop(layer)
            middle = resid + x
            result = self._visit("resid_mid", layer, middle)
            if result is not middle or visitor.gradients:
                x = result - resid  # no module gives resid_mid: both of its readers see it through what attention adds
        return x

    def _write(self, layer: int) -> HeadOutputs:
        if layer not in self._writes:
            block = self.parts.blocks[layer]
            self._writes[layer] = HeadOutputs(
                self.parts.attention[layer],
                resolve(block, "ln1_post.original_component"),
                self.parts.n_heads,
                self.parts.d_value,
            )
        return self._writes[layer]

    def _inside(self, layer: int, kind: str, x: Tensor) -> Tensor:
        """Visit q, k, v or z, [batch head pos d], or the scores, [batch head query key], inside attention."""
        visitor, mode = self.visitor, self._mode
        if kind == "scores":
            return visitor.scores(layer, x, mode.visible)
        if kind == "pattern":
            x = visitor.pattern(layer, x, mode.visible)
            if self.dense is not None:
                self.dense.ask(layer, x, mode.visible, mode.slot)
            return x
        if kind in "qk" and visitor.active and visitor.rotary(layer):
            return self._turned(layer, kind, x)
        if kind not in visitor.kinds(layer) and (kind != "z" or "head_out" not in visitor.kinds(layer)):
            return x
        return self._inner_site(layer, kind, x)

    def _turned(self, layer: int, kind: str, x: Tensor) -> Tensor:
        """Queries or keys behind the edits of their own, and then those of the rotary embedding."""
        visitor = self.visitor
        edits, planes = visitor.rotary(layer), visitor.planes[layer]
        x = self._inner_site(layer, kind, x) if kind in visitor.kinds(layer) else x
        if kind == "q":
            return turn_queries(x, planes, edits, visitor.mask, visitor.offset)
        bases = [e for e in edits if isinstance(e, RotaryBase)]
        shared = x.shape[1] != self.parts.n_heads
        for edit in (e for e in bases if shared and e.site.head is not None):
            raise SiteError(
                f"{edit.site}: a bridge hands on keys that several heads share; edit the whole layer, or use backend hf"
            )
        return turn_keys(x, planes, bases) if bases else x

    def _inner_site(self, layer: int, kind: str, x: Tensor) -> Tensor:
        """Visit q, k, v or z inside attention, [batch head pos d]."""
        visitor = self.visitor
        activation = as_site(x)
        # keys and values come with those of the cache in front of them
        result = visitor.visit(kind, layer, activation, offset=0 if kind in {"k", "v"} else None)
        if kind == "z":
            self._z[layer] = result
        return x if result is activation and not visitor.gradients else as_site(result)


def _passing_through(outputs: int | None) -> Callable:
    """A block's forward that gives back its input, in the form in which the block gives its output."""

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return hidden_states if outputs is None else (hidden_states, *(None,) * (outputs - 1))

    return forward


def _end(x: Tensor) -> Tensor:
    raise StopForward
