"""A version's package: its contract, its estimator's files, and how it predicts."""
