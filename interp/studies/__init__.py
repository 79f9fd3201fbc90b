"""Many analyses of a model, or one of many models: atlas, scoreboard, training dynamics, published scores, bench."""
