"""Indices of the batch rows and columns that an edit or a capture names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.errors import SiteError
from interp.sites import Site


def row_index(rows: Any, batch: int, site: Site, device: torch.device | str) -> Int[Tensor, " rows"]:
    """Indices of the batch rows meant by `rows`; all of them for None."""
    if rows is None:
        return torch.arange(batch, device=device)
    index = torch.as_tensor([rows] if isinstance(rows, int) else rows)
    if index.dtype == torch.bool:
        if index.shape != (batch,):
            raise SiteError(f"{site}: rows as a mask has shape {tuple(index.shape)}; expected ({batch},)")
        index = index.nonzero()[:, 0]
    index = index.reshape(-1).to(torch.long)
    wrong = index[(index < 0) | (index >= batch)].tolist()
    if wrong:
        raise SiteError(f"{site}: row {wrong[0]} is out of range; the batch has {batch} rows")
    return index.to(device)


def single(positions: Any, site: Site) -> bool:
    """Whether one position per row is meant, so that the position axis is narrowed away."""
    if positions is None:
        return site.position is not None
    if isinstance(positions, Tensor):
        return positions.dtype != torch.bool
    return isinstance(positions, int)


def one_column(
    positions: Any, site: Site, mask: Bool[Tensor, "batch pos"], rows: Int[Tensor, " rows"]
) -> Int[Tensor, " rows"]:
    """Column of the one position meant in each of `rows`; see `single`."""
    place = torch.as_tensor(site.position if positions is None else positions, device=mask.device)
    if place.ndim == 0:
        place = place.expand(len(mask))
    if place.shape != (len(mask),):
        raise SiteError(f"{site}: positions of shape {tuple(place.shape)}; expected one per row, ({len(mask)},)")
    return _columns(place[rows], site, mask[rows])


def column_mask(
    positions: Any, site: Site, mask: Bool[Tensor, "batch pos"], rows: Int[Tensor, " rows"]
) -> Bool[Tensor, "rows pos"]:
    """True at the columns meant in each of `rows`; all of them for None."""
    if isinstance(positions, str):
        raise SiteError(f"{site}: {positions!r} is the name of a span; give its mask here, batch.span({positions!r})")
    if positions is None and site.position is None:
        return torch.ones_like(mask[rows])
    if isinstance(positions, Tensor) and positions.dtype == torch.bool:
        if positions.shape != mask.shape:
            shapes = f"{tuple(positions.shape)}; expected [batch pos] = {tuple(mask.shape)}"
            raise SiteError(f"{site}: a mask of positions has shape {shapes}")
        return positions.to(mask.device)[rows]
    if positions is None or single(positions, site):
        columns = [one_column(positions, site, mask, rows)]
    else:
        columns = [one_column(int(p), site, mask, rows) for p in positions]
    result = torch.zeros_like(mask[rows])
    for column in columns:
        result[torch.arange(len(rows), device=mask.device), column] = True
    return result


def pair_mask(
    pairs: Any, site: Site, mask: Bool[Tensor, "batch pos"], rows: Int[Tensor, " rows"]
) -> Bool[Tensor, "rows query key"]:
    """True at the (query, key) columns meant in each of `rows`."""
    batch, n = mask.shape
    if isinstance(pairs, Tensor):
        if pairs.dtype != torch.bool or tuple(pairs.shape) not in {(n, n), (batch, n, n)}:
            kind = f"{str(pairs.dtype).removeprefix('torch.')} of shape {tuple(pairs.shape)}"
            raise SiteError(f"{site}: pairs are {kind}; expected a bool mask [query key] = ({n}, {n}), or with batch")
        return pairs.to(mask.device).expand(batch, n, n)[rows]
    result = torch.zeros(len(rows), n, n, dtype=torch.bool, device=mask.device)
    local = torch.arange(len(rows), device=mask.device)
    for query, key in pairs:
        result[local, one_column(int(query), site, mask, rows), one_column(int(key), site, mask, rows)] = True
    return result


def site_heads(site: Site, heads: int) -> Sequence[int]:
    """Heads a site means."""
    return range(heads) if site.head is None else (site.head,)


def _columns(places: Tensor, site: Site, mask: Tensor) -> Tensor:
    """Columns of positions counted over real tokens; padding stands on one side only."""
    length = mask.sum(1)
    bad = (places >= length) | (places < -length)
    if bool(bad.any()):
        row = int(bad.nonzero()[0, 0])
        raise SiteError(
            f"{site}: position {int(places[row])} is out of range; the prompt has {int(length[row])} tokens"
        )
    return mask.long().argmax(1) + torch.where(places < 0, places + length, places)
