"""Where attention rests when it has nowhere to go. Importing this registers the analyses."""

from probes.sinks._dormant_heads import dormant_heads
from probes.sinks._sink import sink
from probes.sinks._sink_calibration import sink_calibration

__all__ = [
    "dormant_heads",
    "sink",
    "sink_calibration",
]
