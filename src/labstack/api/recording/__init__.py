"""Everything that happens with a prediction after it was answered."""
