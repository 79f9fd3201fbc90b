"""Where attention rests when it has nowhere to go. Importing this registers the analyses."""

from probes.sinks._dormant_heads import dormant_heads
from probes.sinks._massive_activations import massive_activations
from probes.sinks._sink import sink
from probes.sinks._sink_calibration import sink_calibration
from probes.sinks._sink_prefixes import sink_prefixes
from probes.sinks._sinks import sinks

__all__ = [
    "dormant_heads",
    "massive_activations",
    "sink",
    "sink_calibration",
    "sink_prefixes",
    "sinks",
]
