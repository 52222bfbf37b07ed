"""Execution algorithms on the same parents in the synthetic market's engine, and whether goals hold."""
