"""What we believe: validation, ensemble, decay, manifest and the MLflow registry."""
