"""A version's package: its contract, the files of its estimator, and the predictor that loads them."""
