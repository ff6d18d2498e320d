"""From a request's rows to a prediction."""
