"""TransformerLens bridges as models: `LensModel`, and `boot`, which makes a bridge of a transformers model."""

from interp.backends.lens.booting import boot
from interp.backends.lens.model import LensModel

__all__ = ["LensModel", "boot"]
