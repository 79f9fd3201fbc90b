"""What single attention heads do. Importing this registers the analyses."""

from probes.heads._conflict import conflict
from probes.heads._copy_suppression import copy_suppression
from probes.heads._copying import copying
from probes.heads._direct_attribution import direct_attribution
from probes.heads._duplicate_token import duplicate_token
from probes.heads._echo_induction import echo_induction, kv_budget
from probes.heads._induction import induction
from probes.heads._movers import movers
from probes.heads._needle_grid import needle_grid
from probes.heads._previous_token import previous_token
from probes.heads._relations import relations
from probes.heads._retrieval import retrieval
from probes.heads._retrieval_gates import retrieval_gates
from probes.heads._successor import successor
from probes.heads._successor_features import successor_features
from probes.heads._temporal import temporal

__all__ = [
    "conflict",
    "copy_suppression",
    "copying",
    "direct_attribution",
    "duplicate_token",
    "echo_induction",
    "induction",
    "kv_budget",
    "movers",
    "needle_grid",
    "previous_token",
    "relations",
    "retrieval",
    "retrieval_gates",
    "successor",
    "successor_features",
    "temporal",
]
