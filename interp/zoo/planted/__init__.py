"""Models into whose weights a mechanism is written, and what is known of them because of it."""
