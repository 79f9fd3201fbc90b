"""Attention as science: what patterns are like, and how far that may be read. Importing this registers the analyses."""

from probes.attention.distraction import Spans, distraction, spans
from probes.attention.divergence import DivergenceMap, divergence_map
from probes.attention.entropy import entropy
from probes.attention.flow import flow, rollout
from probes.attention.gradient_relevance import gradient_relevance
from probes.attention.icl import icl_score
from probes.attention.lags import lag_profile
from probes.attention.offsets import offset_profile
from probes.attention.perturbation import Perturbation, perturbation
from probes.attention.relevance import Relevance, agreement, occlusion
from probes.attention.text_matching import text_induction
from probes.attention.undifferentiated import undifferentiated
from probes.attention.undifferentiated_sets import undifferentiated_sets

__all__ = [
    "DivergenceMap",
    "Perturbation",
    "Relevance",
    "Spans",
    "agreement",
    "distraction",
    "divergence_map",
    "entropy",
    "flow",
    "gradient_relevance",
    "icl_score",
    "lag_profile",
    "occlusion",
    "offset_profile",
    "perturbation",
    "rollout",
    "spans",
    "text_induction",
    "undifferentiated",
    "undifferentiated_sets",
]
