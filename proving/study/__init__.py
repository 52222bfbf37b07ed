"""The execution study: algorithms on the same parent orders in the synthetic market, and its goals."""
