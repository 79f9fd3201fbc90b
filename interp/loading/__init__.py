"""From whatever the user holds to a `Model`: a checkpoint is read, and a backend chosen for it."""
