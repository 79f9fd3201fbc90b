"""Analyses of single attention heads. Importing this package registers them."""

from probes.heads.duplicate_token import duplicate_token
from probes.heads.induction import induction
from probes.heads.previous_token import previous_token
from probes.heads.sink import sink

__all__ = ["duplicate_token", "induction", "previous_token", "sink"]
