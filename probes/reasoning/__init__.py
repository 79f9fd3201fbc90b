"""How a conclusion comes about: heads that write or carry it. Importing this registers the analyses."""

from probes.reasoning._reasoning import reasoning

__all__ = ["reasoning"]
