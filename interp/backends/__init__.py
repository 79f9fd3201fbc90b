"""Ways to run a model, each an implementation of `interp.model.Model`.

`hf` (a transformers model), `lens` (a TransformerLens bridge), `nnsight` (an nnsight model); `base` and `plan` are what
they share: what needs no pass, and a forward pass as captures and edits at places, checked before it runs. A backend of
another package joins by an entry point of the group `interp.backends`: a `Backend`, which makes a model of a
`Checkpoint`.
"""

from interp.backends.backend import Backend
from interp.backends.checkpoint import Checkpoint

__all__ = ["Backend", "Checkpoint"]
