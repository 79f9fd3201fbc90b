"""Laws of models, each a function of a `Subject` that raises AssertionError where the law is broken.

`places` (what is captured), `running` (edits, starts, contexts), `attending` (patterns and statistics), `reading`
(weights, gradients, parameters). A model that refuses what a law needs raises InterpError.
"""
