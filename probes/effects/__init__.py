"""What is lost when heads are removed, alone or in sets. Importing this registers the analyses."""

from probes.effects._answer_mass import answer_mass
from probes.effects._dose import dose_response
from probes.effects._importance import importance
from probes.effects._pruning import pruning_curve
from probes.effects._undifferentiated import undifferentiated
from probes.effects._undifferentiated_sets import undifferentiated_sets

__all__ = [
    "answer_mass",
    "dose_response",
    "importance",
    "pruning_curve",
    "undifferentiated",
    "undifferentiated_sets",
]
