"""Our own database: one module for each family of tables."""
