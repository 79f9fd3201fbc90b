"""Searches for a circuit: ACDC, learned masks, contextual decomposition, singular directions of attention."""
