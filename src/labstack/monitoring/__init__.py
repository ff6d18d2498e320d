"""Pure functions on counts: what a version saw and said, how far that is from training, and whether a canary holds."""
