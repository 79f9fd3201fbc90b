"""Models trained here and shipped: recipes of what each learns, the one loop that runs them, and their cards."""
