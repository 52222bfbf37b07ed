"""What proves the product: a market whose truth is known, a venue on loopback, studies, benchmarks."""
