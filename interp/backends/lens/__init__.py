"""TransformerLens bridges as models: `model.LensModel`; `booting.boot` makes a bridge of a transformers model."""
