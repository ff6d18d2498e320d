"""What is known of the versions that are served, and canaries that move by it."""
