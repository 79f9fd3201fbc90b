"""Path patching: what senders write to receivers directly, and what the answer becomes if they write something else."""
