"""Probes: what does one component do? One file, one analysis; each registers itself in `interp.measurement`."""
