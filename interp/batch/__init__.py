"""Prompts as token ids with their padding mask, and the spans in them that have a name."""

from interp.batch.halves import check_text
from interp.batch.prompts import BOS_POLICIES, Batch
from interp.batch.prompts import Prompts as Prompts
from interp.batch.reading import warn
from interp.batch.spans import Span as Span

__all__ = [
    "BOS_POLICIES",
    "Batch",
    "check_text",
    "warn",
]
