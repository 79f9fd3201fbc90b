"""Checkpoints in TransformerLens's HookedTransformer layout, and Tracr's: configs and tensors read, and a decoder."""
