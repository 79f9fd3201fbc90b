"""Shares of attention that keys receive, what uniform attention gives them, and keys by the kind of token they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp import tasks
from interp.attention import Received
from interp.batch import Batch, Prompts
from interp.errors import NotApplicable
from interp.measurement.prompts import no_window_both_ways, prompt_set, text_prompts
from interp.model import Model
from interp.shapes import brief
from interp.tokens.texts import token_texts

DELIMITERS = frozenset(".,;:!?\n")
SHORTEST = 16
"""Tokens below which nothing is said of a sink: half of the prompt's other keys are what the first is compared with."""


@dataclass(frozen=True, eq=False)
class Shares:
    """What each key receives, over the queries that can see it: alpha_k = sum_i p_ik / n_k; NaN at padding.

    Attributes:
        alpha: [prompt layer head key].
        uniform: the same under uniform attention, [prompt layer key].
        seen: n_k, queries that can see the key, [prompt layer key]; 0 at padding.
        position: of each key within its own prompt, -1 at padding.
    """

    alpha: Float[np.ndarray, "prompt layer head key"]
    uniform: Float[np.ndarray, "prompt layer key"]
    seen: Float[np.ndarray, "prompt layer key"]
    position: Int[np.ndarray, "prompt key"]

    __repr__ = brief

    def of(self, keys: Bool[np.ndarray, "prompt key"]) -> Float[np.ndarray, "prompt layer head"]:
        """Share of a set of keys: what they receive together over the queries that can see the first; NaN for none."""
        return self._of(np.where(np.isnan(self.alpha), 0, self.alpha) * self.seen[:, :, None], keys)

    def uniform_of(self, keys: Bool[np.ndarray, "prompt key"]) -> Float[np.ndarray, "prompt layer one"]:
        """The same under uniform attention."""
        return self._of((np.where(np.isnan(self.uniform), 0, self.uniform) * self.seen)[:, :, None], keys)

    def _of(self, mass: Float[np.ndarray, "prompt layer head key"], keys: Bool[np.ndarray, "prompt key"]) -> np.ndarray:
        first = keys.argmax(1)
        queries = np.take_along_axis(self.seen, first[:, None, None], 2)[..., 0]
        total = (mass * keys[:, None, None]).sum(-1)
        some = np.broadcast_to(keys.max(1)[:, None, None], total.shape)
        return np.divide(total, queries[..., None], out=np.full(total.shape, np.nan), where=some)

    def at(self, position: int) -> Bool[np.ndarray, "prompt key"]:
        """The key at a position of each prompt."""
        return self.position == position

    def where(self, keys: Bool[np.ndarray, "prompt key"]) -> int | None:
        """Position of the first of these keys; None where prompts differ in it, or lack them."""
        at = np.where(keys, self.position, self.position.size).min(1)
        return int(at[0]) if len(set(at)) == 1 and keys.any(1).all() else None

    @property
    def reach(self) -> int:
        """Positions that are compared with one another: half of the shortest prompt, where many queries see a key."""
        return int((self.position.max(1) + 1).min()) // 2


def shares(model: Model, batch: Batch, *, method: str = "auto") -> Shares:
    """What every key of every head receives, in O(n) memory.

    Raises:
        NotApplicable: attention both ways within a window.
    """
    no_window_both_ways(model)
    mass = model.attention(batch, {"received": Received()}, method=method)["received"]
    mask = batch.mask.cpu()
    position = batch.positions.cpu().masked_fill(~mask, -1).numpy()
    sizes = mask.sum(1).numpy()
    pairs = [uniform_shares(position, sizes, window=w, causal=model.info.causal) for w in model.info.windows]
    uniform, seen = (np.stack(side, axis=1) for side in zip(*pairs, strict=True))
    received = mass.double().transpose(0, 1).cpu().numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        alpha = received / seen[:, :, None]
    return Shares(np.where(seen[:, :, None] > 0, alpha, np.nan), uniform, seen, position)


def uniform_shares(
    position: Int[np.ndarray, "prompt key"], sizes: Int[np.ndarray, " prompt"], *, window: int | None, causal: bool
) -> tuple[Float[np.ndarray, "prompt key"], Float[np.ndarray, "prompt key"]]:
    """alpha_k under uniform attention and n_k, for keys at these positions of prompts of these sizes.

    Causal: alpha_k = (1 / n_k) sum_{i = k}^{k + n_k - 1} 1 / min(i + 1, w), n_k = min(T - k, w), so H_T / T at the
    first key without a window. Both ways: 1 / T, n_k = T. NaN and 0 at padding (position -1).
    """
    real, length = position >= 0, sizes[:, None].astype(float)
    if not causal:
        return np.where(real, 1 / length, np.nan), np.where(real, length, 0.0)
    width = int(sizes.max()) if window is None else window
    weights = 1 / np.minimum(np.arange(1, int(sizes.max()) + 1), width)
    below = np.concatenate([[0.0], weights.cumsum()])
    start = np.where(real, position, 0)
    stop = np.minimum(length, start + width).astype(int)
    seen = (stop - start).astype(float)
    return np.where(real, (below[stop] - below[start]) / seen, np.nan), np.where(real, seen, 0.0)


def inputs(
    model: Model, prompts: Prompts | None, *, n_prompts: int, length: int, bos: str, seed: int
) -> tuple[dict[str, Batch], dict[str, str]]:
    """Prompts by kind, "random", "repeated" and "text", or "given"; and why a kind is missing.

    "random": distinct random tokens. "repeated": one random token, again and again, behind a BOS where `bos` puts one.
    "text": stretches of text that the zoo's models never saw.

    Raises:
        NotApplicable: no room for 16 distinct tokens.
        TaskError: prompts of one's own of fewer than 16 tokens.
    """
    if prompts is not None:
        own = prompt_set(model, prompts, n_prompts=1, length=SHORTEST, bos=bos, seed=seed, least=SHORTEST)
        return {"given": own.batch}, {}
    options = {"n_prompts": n_prompts, "length": length, "bos": bos, "seed": seed}
    random = prompt_set(model, None, **options, least=SHORTEST)  # type: ignore[arg-type]  # of several types
    repeated = random.batch.ids.clone()
    repeated[:, random.start + 1 :] = repeated[:, random.start : random.start + 1]
    found, missing = {"random": random.batch, "repeated": Batch.of(repeated)}, {}
    try:
        found["text"] = text_prompts(model, None, n=n_prompts, length=length, bos=bos, seed=seed).batch
    except NotApplicable as refusal:
        missing["text"] = str(refusal)
    return found, missing


def starts_with_bos(model: Model, batch: Batch) -> bool:
    """Whether every prompt begins with the model's BOS."""
    first = tasks.bos_id(model, "default")
    return first is not None and bool((batch.ids[range(len(batch.ids)), batch.first] == first).all())


def places(model: Model, batch: Batch) -> dict[str, Bool[np.ndarray, "prompt key"]]:
    """Keys of each kind: "first" (the first real token), "delimiter" (the first later one in each prompt), and spans.

    A delimiter is a token of `DELIMITERS` and spaces alone. Kinds that no prompt has are left out; a prompt without one
    has no True.
    """
    mask = batch.mask.cpu()
    first = torch.nn.functional.one_hot(batch.first.cpu(), mask.shape[1]).bool()
    found: dict[str, Tensor] = {"first": first}
    later = delimiters(model, batch) & ~first
    if bool(later.any()):
        found["delimiter"] = later & (later.long().cumsum(1) == 1)
    return {name: x.numpy() for name, x in (found | {k: v.cpu() for k, v in batch.spans.items()}).items()}


def delimiters(model: Model, batch: Batch) -> Bool[Tensor, "prompt key"]:
    """Which tokens are punctuation or line ends; none without a tokenizer."""
    ids = batch.ids.cpu()
    if model.tokenizer is None:
        return torch.zeros_like(ids, dtype=torch.bool)
    unique, inverse = ids.unique(return_inverse=True)
    texts = token_texts(unique.tolist(), model.tokenizer)
    return torch.tensor([_delimits(text) for text in texts])[inverse] & batch.mask.cpu()


def _delimits(text: str) -> bool:
    return bool(text) and (set(text) - {" "}) <= DELIMITERS and bool(text.strip(" "))


def random_keys(
    found: Shares, taken: Mapping[str, Bool[np.ndarray, "prompt key"]], size: int, *, draws: int, seed: int
) -> list[Bool[np.ndarray, "prompt key"]]:
    """Sets of `size` random keys of each prompt, after the first and within `Shares.reach`, that are of no named kind.

    Empty where a prompt has fewer than that.
    """
    rng, free = np.random.default_rng(seed), (found.position >= 1) & (found.position < found.reach)
    for keys in taken.values():
        free &= ~keys
    if (free.sum(1) < size).any():
        return []
    noise = (np.where(free, rng.random(free.shape), 2.0) for _ in range(draws))
    return [x <= np.sort(x, axis=1)[:, size - 1 : size] for x in noise]
