"""How components work together.

Each module here holds one method that finds, scores or reads a circuit: activation and path patching, edge
attribution, automatic circuit search, contextual decomposition, sparse-autoencoder features, the graph that
they all return, and how faithful such a graph is to the model. A method takes a model and a task and returns
a Result, like every analysis of the toolkit; it builds on `interp` and knows nothing of `probes`.
"""
