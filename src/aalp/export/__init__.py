"""Takes a trained classifier out of a run into what other programs load."""
