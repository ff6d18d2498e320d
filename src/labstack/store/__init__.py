"""Our own database: one module per table family."""
