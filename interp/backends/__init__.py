"""Ways to run a model; each implements `interp.model.Model`."""
