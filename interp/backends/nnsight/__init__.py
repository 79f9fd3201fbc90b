"""nnsight models as models: `model.NNsightModel`; `wrapping.wrap` makes an nnsight model of a checkpoint.

Nothing is imported here: nnsight adds a method to `object`, after which beartype cannot be imported any more, so that
who imports which of them first is left to the two modules.
"""
