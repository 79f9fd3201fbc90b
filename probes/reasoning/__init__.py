"""How a conclusion comes about: heads that write or carry it, statements read by layer, the prior against the text.

Importing this registers the analyses.
"""

from probes.reasoning._flow import reasoning_flow
from probes.reasoning._prior import reasoning_prior
from probes.reasoning._reasoning import reasoning

__all__ = ["reasoning", "reasoning_flow", "reasoning_prior"]
