"""How much each token matters through all layers: rollout, flow, gradients, occlusion, and tests of such maps."""

from probes.relevance._divergence import DivergenceMap, divergence_map
from probes.relevance._flow import flow, rollout
from probes.relevance._gradient_relevance import gradient_relevance
from probes.relevance._memorisation import memorisation
from probes.relevance._perturbation import Perturbation, perturbation
from probes.relevance._relevance import Relevance, agreement, occlusion

__all__ = [
    "DivergenceMap",
    "Perturbation",
    "Relevance",
    "agreement",
    "divergence_map",
    "flow",
    "gradient_relevance",
    "memorisation",
    "occlusion",
    "perturbation",
    "rollout",
]
