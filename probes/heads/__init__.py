"""Analyses of single attention heads. Importing this package registers them."""

from probes.heads.duplicate_token import duplicate_token
from probes.heads.induction import induction
from probes.heads.previous_token import previous_token
from probes.heads.retrieval import retrieval
from probes.heads.retrieval_classes import echo_induction, kv_budget
from probes.heads.retrieval_gates import retrieval_gates
from probes.heads.retrieval_grid import needle_grid
from probes.heads.sink import sink

__all__ = [
    "duplicate_token",
    "echo_induction",
    "induction",
    "kv_budget",
    "needle_grid",
    "previous_token",
    "retrieval",
    "retrieval_gates",
    "sink",
]
