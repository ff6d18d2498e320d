"""The registry: MLflow's models, versions and aliases, and what may be done with them."""
