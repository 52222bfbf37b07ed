"""Dagster assets and checks: thin steps over the rooms below."""
