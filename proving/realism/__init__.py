"""Whether a synthetic market is like a recorded one: statistics, ranges, verdicts."""
