"""Ways to run a model, each an implementation of `interp.model.Model`.

`hf` (a transformers model), `lens` (a TransformerLens bridge), `nnsight` (an nnsight model); `plan` is what they share:
a forward pass as captures and edits at places, checked before it runs.
"""
