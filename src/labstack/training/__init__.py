"""The pipeline: from rows of the store to a version of the registry."""
