"""What an MLP adds to the stream, from which inputs, and which of it decides. Importing this registers the analyses."""

from probes.mlp._context_knob import context_knob
from probes.mlp._factual import factual
from probes.mlp._inputs import mlp_inputs
from probes.mlp._memory_injection import memory_injection
from probes.mlp._mixing import mlp_mixing
from probes.mlp._neurons import neurons
from probes.mlp._overconfidence import overconfidence
from probes.mlp._reading import neuron_examples, value_vectors
from probes.mlp._regression import mlp_regression
from probes.mlp._skill_table import skill_table
from probes.mlp._sources import mlp_sources
from probes.mlp.knob import IntentRuns, Knob, fit_knob
from probes.mlp.regression import Regression, regress

__all__ = [
    "IntentRuns",
    "Knob",
    "Regression",
    "context_knob",
    "factual",
    "fit_knob",
    "memory_injection",
    "mlp_inputs",
    "mlp_mixing",
    "mlp_regression",
    "mlp_sources",
    "neuron_examples",
    "neurons",
    "overconfidence",
    "regress",
    "skill_table",
    "value_vectors",
]
