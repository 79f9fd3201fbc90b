"""Which edits in force edges can be told apart under: what senders write must arrive in the stream as they wrote it."""

from __future__ import annotations

from interp.edits import Add, refuse_rows
from interp.errors import SiteError
from interp.model import Model

INSIDE = ("z", "pattern", "mlp_post", "mlp_out", "logits")
"""Kinds at which any edit will do: what senders write is observed behind it."""
STREAM = ("embed", "resid_pre", "resid_post", "attn_out", "head_out")
"""Kinds at which only something constant may be added: it cancels between two runs, and writes pass unchanged."""


def check_edits(model: Model) -> None:
    """Refuse edits in force under which the direct path from a sender to a slot is another than the stream.

    Raises:
        SiteError: names the edit.
    """
    refuse_rows(model.edits, "a circuit method")
    for edit in model.edits:
        kind = edit.site.kind
        if kind in INSIDE or (kind in STREAM and isinstance(edit, Add)):
            continue
        way_out = "edit z, mlp_out or the pattern instead"
        if kind in STREAM:
            why = "changes what earlier components wrote, so that edges carry something else than their senders' writes"
            way_out += ", or Add what is to be added"
        else:
            why = "stands between the stream and what reads it, where edges are computed from the weights"
            way_out += ", or Add to attn_out" if kind == "resid_mid" else ""
        raise SiteError(f"{edit.site}: {type(edit).__name__} {why}; {way_out}")
