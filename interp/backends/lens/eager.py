"""q, k, v, pattern and z of any eager attention, from the tensor operations it makes.

Attention that does not follow transformers' interface still has to compute softmax(q k' + ...) v somewhere. While a
layer's attention module runs, a torch function mode sees each operation: the product that has the shape of scores is
q k', the softmax after it gives the pattern, the next product is pattern times values. What is seen is what is used,
after rotary embedding and QK-norm, under whatever name the code gives it; what is changed there reaches the output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from interp.errors import BackendError

# (layer, kind, tensor) -> the tensor to go on with. Kinds, in the order they come: q, k, scores, pattern, v, z.
Visit = Callable[[int, str, Tensor], Tensor]

_SOFTMAX = (torch.softmax, Tensor.softmax, functional.softmax)
_PRODUCT = (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm)
_ADDED_PRODUCT = (torch.baddbmm, Tensor.baddbmm)
_FUSED = (functional.scaled_dot_product_attention,)


class EagerAttention(TorchFunctionMode):
    """Hands q, k, scores, pattern, v and z of each layer's attention to `visit`, and goes on with what it returns.

    Shapes given to `visit`: q [batch head query d_head]; k, v [batch kv_head key d], one per key-value head also
    where the code has repeated them; scores and pattern [batch head query key], with the mask already in the scores
    and without the extra slot of sink logits (`slot` holds its probability [batch head query]); z like q.

    Call `enter(layer, batch, n_query)` before a layer's attention module and `leave()` after it. While `scores` and
    `pattern` are visited, `visible` [batch query key] says which keys the mask leaves.

    Args:
        visit: called with (layer, kind, tensor).
        n_heads, n_kv_heads: of every layer.
        dtype: the model's, whose lowest number stands for masked scores.
        check: whether to see that keys and values are shared, and are those of tokens, as it is said here.
    """

    def __init__(
        self,
        visit: Visit,
        *,
        n_heads: int,
        n_kv_heads: int,
        dtype: torch.dtype = torch.float32,
        check: bool = False,
    ) -> None:
        super().__init__()
        self.check = check
        self.visit, self.n_heads, self.n_kv_heads = visit, n_heads, n_kv_heads
        self.masked = torch.finfo(dtype).min / 2
        self.layer: int | None = None
        self.stage = "done"
        self.slot: Tensor | None = None
        self.visible = torch.ones(0, 0, 0, dtype=torch.bool)

    def enter(self, layer: int, batch: int, n_query: int) -> None:
        """A layer's attention begins, for `n_query` tokens of `batch` prompts."""
        self.layer, self.batch, self.n_query, self.stage = layer, batch, n_query, "scores"

    def leave(self) -> None:
        """It has ended.

        Raises:
            BackendError: its scores, softmax or weighted sum were not seen.
        """
        layer, stage = self.layer, self.stage
        self.layer, self.slot, self.visible = None, None, self.visible[:0]
        if stage != "done":
            raise BackendError(f"layer {layer}: its attention ran without a {_LOOKED_FOR[stage]} that could be seen")

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Pass every operation on, with the three that make up attention taken apart."""
        kwargs = kwargs or {}
        if self.layer is None or self.stage == "done":
            return func(*args, **kwargs)
        if func in _FUSED:
            raise BackendError(
                f"layer {self.layer}: attention runs fused (sdpa), which keeps no pattern; set the model's attention "
                "to eager (boot_transformers does)"
            )
        if func in _PRODUCT or func in _ADDED_PRODUCT:
            return self._product(func, args, kwargs)
        if func in _SOFTMAX and self.stage == "pattern":
            return self._softmax(func, args, kwargs)
        return func(*args, **kwargs)

    def _product(self, func: Any, args: tuple, kwargs: dict) -> Any:
        operands = [*args]
        names = ("batch1", "batch2") if func in _ADDED_PRODUCT else ("input", "other")
        inputs = {**dict(zip(("input", *names) if func in _ADDED_PRODUCT else names, operands, strict=False)), **kwargs}
        left, right = inputs.get(names[0]), inputs.get(names[1], inputs.get("mat2"))
        if not isinstance(left, Tensor) or not isinstance(right, Tensor) or not self._is_attention_shaped(left):
            return func(*args, **kwargs)
        if self.stage == "scores" and left.shape[-2] == self.n_query and right.shape[-1] >= self.n_query:
            self.stage = "pattern"
            left, right = self._through("q", left), self._keys("k", right.mT).mT
        elif self.stage == "values":
            self.stage = "done"
            right = self._keys("v", right)
        else:
            return func(*args, **kwargs)
        if func in _ADDED_PRODUCT:
            factors = {k: v for k, v in inputs.items() if k in ("beta", "alpha")}
            out = func(inputs["input"], left, right, **factors)
        else:
            out = func(left, right)
        return self._through("z", out) if self.stage == "done" else out

    def _softmax(self, func: Any, args: tuple, kwargs: dict) -> Any:
        scores, n_key = self._heads(args[0]), self._n_key
        visible = scores[..., :n_key] > self.masked
        self.visible = visible[:, 0]
        result = self.visit(self._layer, "scores", scores[..., :n_key])
        is_edited = result.data_ptr() != scores.data_ptr()
        if is_edited:  # keys knocked out are -inf: no mass, and none for the masked either when no key is left
            visible = visible & ~torch.isneginf(result)
            result = result.masked_fill(~visible.any(-1, keepdim=True), 0.0)
            scores = torch.cat([result, scores[..., n_key:]], -1)
        full = self._heads(func(scores.reshape(args[0].shape), *args[1:], **kwargs))
        self.slot = full[..., n_key] if full.shape[-1] > n_key else None
        pattern = full[..., :n_key].masked_fill(~visible, 0.0) if is_edited else full[..., :n_key]
        pattern = self.visit(self._layer, "pattern", pattern)
        self.stage = "values"
        pattern = pattern if self.slot is None else torch.cat([pattern, full[..., n_key:]], -1)
        return pattern.reshape(args[0].shape)

    @property
    def _layer(self) -> int:
        return -1 if self.layer is None else self.layer

    def _is_attention_shaped(self, x: Tensor) -> bool:
        lead = x.shape[:-2].numel()
        return x.ndim >= 3 and lead in (self.batch * self.n_heads, self.batch * self.n_kv_heads)

    def _heads(self, x: Tensor) -> Tensor:
        """[batch head ...] of a tensor that may have its leading axes merged, as `bmm` needs them."""
        return x if x.ndim == 4 else x.view(self.batch, -1, *x.shape[-2:])

    def _through(self, kind: str, x: Tensor) -> Tensor:
        return self.visit(self._layer, kind, self._heads(x)).reshape(x.shape)

    def _keys(self, kind: str, x: Tensor) -> Tensor:
        """Keys or values through `visit` one per group, and back to as many as the code has made of them."""
        view = self._heads(x)
        times = view.shape[1] // self.n_kv_heads
        if kind == "k":
            self._n_key = view.shape[2]
        if self.check and view.shape[2] != self.n_query:
            raise BackendError(
                f"layer {self.layer}: attention has {view.shape[2]} keys for {self.n_query} tokens, so that keys are "
                "not tokens"
            )
        if times <= 1:
            return self.visit(self._layer, kind, view).reshape(x.shape)
        narrow = view[:, ::times]
        if self.check and not torch.equal(narrow.repeat_interleave(times, 1), view):
            raise BackendError(
                f"layer {self.layer}: heads do not share keys and values in consecutive groups of {times}; which head "
                "reads which is not told apart"
            )
        result = self.visit(self._layer, kind, narrow)
        return x if result is narrow and not x.requires_grad else result.repeat_interleave(times, 1).reshape(x.shape)


_LOOKED_FOR = {
    "scores": "product of queries and keys",
    "pattern": "softmax of the scores",
    "values": "product of pattern and values",
}
