"""Results: tidy tables with one provenance, their files, the runs of a folder, and the statistics in them."""
