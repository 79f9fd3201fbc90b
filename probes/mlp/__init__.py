"""What an MLP adds to the stream, from which inputs, and which of it decides. Importing this registers the analyses."""

from probes.mlp._neurons import neurons
from probes.mlp._reading import neuron_examples, value_vectors
from probes.mlp._skill_table import skill_table

__all__ = ["neuron_examples", "neurons", "skill_table", "value_vectors"]
