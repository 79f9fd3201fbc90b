"""`RotaryPlanes`: pairs of channels that positions turn, read off a map; and edits of their angles, carried out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.edits.reshape import RotaryBase, RotaryEdit, RotaryPlane
from interp.edits.where import column_mask, row_index, site_heads
from interp.errors import BackendError, SiteError
from interp.shapes import brief

OFFSETS = (1, 8, 64, 512, 4096)
"""Distances at which planes are read: near ones tell fast planes apart, far ones slow ones."""
SEEN, SEEN_HALF = 1e-4, 3e-2
"""Sine of an angle, from which on a plane is told from rounding; in half precision."""


@dataclass(frozen=True, eq=False)
class RotaryPlanes:
    """Planes of one layer's rotary embedding, the fastest first.

    Attributes:
        first, second: channels of each plane; a position p turns `first` towards `second` by p * angle.
        angle: theta of each plane, in radians a token.
        complete: whether all planes are known; where channels stand in neighbouring pairs, slow planes may turn too
            little within the context to be seen.
    """

    first: Int[Tensor, " plane"]
    second: Int[Tensor, " plane"]
    angle: Float[Tensor, " plane"]
    complete: bool = True

    __repr__ = brief

    def __len__(self) -> int:
        """How many planes turn."""
        return len(self.angle)

    def __getitem__(self, chosen: Sequence[int]) -> RotaryPlanes:
        """Some of the planes."""
        index = list(chosen)
        return RotaryPlanes(self.first[index], self.second[index], self.angle[index], self.complete)

    def angles(self, edit: RotaryBase) -> Float[Tensor, " plane"]:
        """theta of each plane under another base or factor.

        Raises:
            BackendError: a base, and it is not known how many planes there are.
        """
        if edit.base is None:
            return self.angle / edit.factor
        if not self.complete:
            raise BackendError(
                f"{edit.site}: the slowest rotary planes turn too little within this context to be counted, so "
                "that the angles of another base are not known; use `factor`"
            )
        place = torch.arange(len(self), dtype=torch.float64) / len(self)
        return float(edit.base) ** -place / edit.factor


def read_planes(
    turn: Callable[[int], Float[Tensor, "d_head d_head"]], *, limit: int | None, where: str, half: bool = False
) -> RotaryPlanes:
    """Planes of the maps T(o) with q_i . k_j = q_i(0) T(i - j) k_j(0), read at a few distances.

    Args:
        turn: T of a distance.
        limit: context length; distances stay below it.
        where: what to name in errors.
        half: whether the model's tables are in half precision.

    Raises:
        SiteError: nothing turns.
        BackendError: what turns is not a set of planes.
    """
    seen = SEEN_HALF if half else SEEN
    far = OFFSETS[-1] if limit is None else min(OFFSETS[-1], limit - 1)
    maps = {o: turn(o).double() for o in sorted({*(o for o in OFFSETS if o < far), far}) if o > 0}
    sine = torch.stack([m - m.diagonal().diag() for m in maps.values()]) if maps else torch.zeros(1, 1, 1)
    size = sine.abs().amax(0)
    mate, channels = size.argmax(1), (size.amax(1) > seen).nonzero()[:, 0]
    if not len(channels):
        raise SiteError(f"{where}: positions turn no queries and keys, so that there are no rotary planes to edit")
    _check_planes(size, mate, channels, where)
    pairs = [(a, b) for a, b in zip(channels.tolist(), mate[channels].tolist(), strict=True) if a < b]
    apart = {b - a for a, b in pairs}
    halves = len(apart) == 1 and apart != {1} and all(a < b - a for a, b in pairs)
    if halves:  # channel i turns with i + n: the slow ones, too, that are not seen to turn
        n = apart.pop()
        pairs = [(i, i + n) for i in range(n)]
    angle = torch.tensor([_angle(maps, a, b) for a, b in pairs], dtype=torch.float64)
    order = angle.abs().argsort(descending=True, stable=True)
    angle = angle[order]
    back = angle < 0
    first, second = torch.tensor(pairs)[order].T
    first, second = torch.where(back, second, first), torch.where(back, first, second)
    next_angle = angle[-1].abs() * (angle[-1] / angle[-2]).abs() if len(angle) > 1 else angle[-1].abs()
    return RotaryPlanes(
        first, second, angle.abs(), halves or len(pairs) * 2 == len(size) or float(next_angle) * far > seen
    )


def _check_planes(size: Tensor, mate: Tensor, channels: Tensor, where: str) -> None:
    others = size.clone()
    others[torch.arange(len(size)), mate] = 0.0
    mutual = mate[mate[channels]] == channels
    if not bool(mutual.all()) or float(others.max()) > 0.05 * float(size.max()):  # noqa: PLR2004  rounding of half
        raise BackendError(f"{where}: what positions do to queries and keys is no turn of separate planes")


def _angle(maps: dict[int, Tensor], a: int, b: int) -> float:
    """theta from near distances to far ones, each with the number of whole turns that the nearer ones say."""
    angle = 0.0
    for distance, turn in maps.items():
        part = float(torch.atan2(turn[a, b] - turn[b, a], turn[a, a] + turn[b, b]))
        turns = round((angle * distance - part) / (2 * torch.pi)) if distance > min(maps) else 0
        angle = (part + 2 * torch.pi * turns) / distance
    return angle


def turn_queries(
    query: Float[Tensor, "batch head query d"],
    planes: RotaryPlanes,
    edits: Sequence[RotaryEdit],
    mask: Bool[Tensor, "batch prompt"],
    offset: int,
) -> Float[Tensor, "batch head query d"]:
    """Queries behind rotary edits, in the order given; they stand at columns from `offset` on."""
    place = torch.arange(offset, offset + query.shape[2], device=query.device)
    for edit in edits:
        hits = _hits(edit, query)
        if isinstance(edit, RotaryBase):
            delta = (planes.angles(edit) - planes.angle).to(query.device)
            query = _turned(query, planes, place[:, None] * delta, 1.0, hits[:, :, None])
        elif isinstance(edit, RotaryPlane):
            some = planes[_planes(edit, len(planes))]
            rows = torch.arange(len(query), device=query.device)
            columns = column_mask(edit.positions, edit.site, mask, rows)
            everywhere = edit.positions is None and edit.site.position is None
            columns = torch.nn.functional.pad(
                columns, (0, max(0, offset + query.shape[2] - columns.shape[1])), value=everywhere
            )[:, offset : offset + query.shape[2]]
            angle = torch.full((1, 1), edit.angle, dtype=torch.float64, device=query.device)
            query = _turned(query, some, angle, edit.scale, hits[:, :, None] & columns[:, None])
    return query


def turn_keys(
    key: Float[Tensor, "batch head key d"], planes: RotaryPlanes, edits: Sequence[RotaryEdit]
) -> Float[Tensor, "batch head key d"]:
    """Keys behind rotary edits: those of another base alone change them; one head of keys for each that is edited."""
    place = torch.arange(key.shape[2], device=key.device)
    for edit in edits:
        if isinstance(edit, RotaryBase):
            delta = (planes.angles(edit) - planes.angle).to(key.device)
            key = _turned(key, planes, place[:, None] * delta, 1.0, _hits(edit, key)[:, :, None])
    return key


def _hits(edit: RotaryEdit, x: Tensor) -> Bool[Tensor, "batch head"]:
    hits = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
    rows = row_index(edit.rows, len(x), edit.site, x.device)
    hits[rows[:, None], torch.tensor(site_heads(edit.site, x.shape[1]), device=x.device)] = True
    return hits


def _planes(edit: RotaryPlane, n: int) -> list[int]:
    wrong = [p for p in edit.planes if not -n <= p < n]  # type: ignore[union-attr]  # a tuple from its making on
    if wrong:
        raise SiteError(f"{edit.site}: plane {wrong[0]} is out of range; the layer has {n} rotary planes")
    return [p % n for p in edit.planes]  # type: ignore[union-attr]


def _turned(
    x: Tensor, planes: RotaryPlanes, angle: Float[Tensor, "place plane"], scale: float, where: Bool[Tensor, "..."]
) -> Tensor:
    """x with its planes turned by an angle and scaled, where `where` [batch head place] says so."""
    first, second = planes.first.to(x.device), planes.second.to(x.device)
    wide = torch.promote_types(x.dtype, torch.float32)
    cos, sin = (scale * f(angle).to(wide) for f in (torch.cos, torch.sin))
    a, b = x[..., first].to(wide), x[..., second].to(wide)
    new = x.clone()
    new[..., first], new[..., second] = (a * cos - b * sin).to(x.dtype), (a * sin + b * cos).to(x.dtype)
    return torch.where(where[..., None], new, x)
