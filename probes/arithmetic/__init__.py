"""How a model adds: key frequencies, clock or pizza, helices of numbers, mediators. Importing this registers them."""

from probes.arithmetic._helix import Fit, helix, helix_features
from probes.arithmetic._key_frequencies import key_frequencies, key_list
from probes.arithmetic._mechanism import addition_mechanism, circularity, distance_irrelevance
from probes.arithmetic._mediation import arithmetic_mediation
from probes.arithmetic._mediator_tuning import mediator_tuning
from probes.arithmetic._number_filters import number_filters
from probes.arithmetic._number_spectrum import number_spectrum

__all__ = [
    "Fit",
    "addition_mechanism",
    "arithmetic_mediation",
    "circularity",
    "distance_irrelevance",
    "helix",
    "helix_features",
    "key_frequencies",
    "key_list",
    "mediator_tuning",
    "number_filters",
    "number_spectrum",
]
