"""The MLflow server's container, and the lab's archives."""
