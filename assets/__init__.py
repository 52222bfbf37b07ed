"""Dagster assets and checks: thin steps over the rooms below."""

import warnings

import dagster as dg

# Single-run backfills are "beta" and partitions of checks "preview" in the version that is pinned;
# both are used on purpose and under test, so the notices would only hide others.
warnings.filterwarnings("ignore", category=dg.BetaWarning)
warnings.filterwarnings("ignore", category=dg.PreviewWarning)
