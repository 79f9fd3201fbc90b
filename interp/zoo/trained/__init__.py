"""Models trained here and shipped: recipes, curriculum, the one training harness, and their cards."""
