"""A circuit as a value: its layout, its edges and scores, how edges are chosen, and how it is drawn and exported."""
