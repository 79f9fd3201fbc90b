"""Edge attribution: gradients at the slots of a model, contracted with what components write, and the cost."""
