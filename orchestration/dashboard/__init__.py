"""`l2 dashboard`: a page over the worker's state stream, to watch it and to stop it."""
