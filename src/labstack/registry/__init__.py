"""The registry: the client of MLflow's models, versions and aliases, and the rules for moving roles."""
