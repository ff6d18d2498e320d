"""Pure functions on counts: the counts of what versions read and predict, their drift, and verdicts on canaries."""
