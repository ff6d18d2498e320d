"""The assessment of the versions that are served, and the moves of canaries that follow from it."""
