"""Analyses of single attention heads. Importing this package registers them."""

from probes.heads.conflict import conflict
from probes.heads.copy_suppression import copy_suppression
from probes.heads.copying import copying
from probes.heads.direct_attribution import direct_attribution
from probes.heads.dose import dose_response
from probes.heads.duplicate_token import duplicate_token
from probes.heads.importance import importance
from probes.heads.induction import induction
from probes.heads.movers import movers
from probes.heads.previous_token import previous_token
from probes.heads.pruning import pruning_curve
from probes.heads.relations import relations
from probes.heads.retrieval import retrieval
from probes.heads.retrieval_classes import echo_induction, kv_budget
from probes.heads.retrieval_gates import retrieval_gates
from probes.heads.retrieval_grid import needle_grid
from probes.heads.sink import sink
from probes.heads.successor import successor
from probes.heads.successor_features import successor_features
from probes.heads.temporal import temporal

__all__ = [
    "conflict",
    "copy_suppression",
    "copying",
    "direct_attribution",
    "dose_response",
    "duplicate_token",
    "echo_induction",
    "importance",
    "induction",
    "kv_budget",
    "needle_grid",
    "movers",
    "previous_token",
    "pruning_curve",
    "relations",
    "retrieval",
    "retrieval_gates",
    "sink",
    "successor",
    "successor_features",
    "temporal",
]
