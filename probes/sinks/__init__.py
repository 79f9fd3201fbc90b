"""Where attention rests when it has nowhere to go. Importing this registers the analyses."""

from probes.sinks._sink import sink

__all__ = [
    "sink",
]
