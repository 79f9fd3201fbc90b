"""What stands beside every map drawn from attention weights."""

CAUTION = (
    "Attention mass is not importance: a model can be trained to hide what it uses from its attention at hardly any "
    "cost (arXiv 1909.07913), and mass on a token whose value is small does nothing. Check with an intervention."
)
