"""How components are joined: what each writes, how each slot reads it, and a forward pass with some edges cut."""
