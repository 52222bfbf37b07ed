"""What we do about it: orders, algorithms, account arithmetic, simulator, transaction cost analysis."""
