"""The simulated venue: recorded events, our orders in the queue, clocks and latencies."""
