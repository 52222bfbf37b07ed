"""`l2 bench`: speed and memory, side by side with a peer in the same run, against stated goals."""
