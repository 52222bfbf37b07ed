"""Certification: the whole training pipeline over markets whose truth is known, seed by seed."""
