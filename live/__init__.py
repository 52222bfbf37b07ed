"""What touches the network or runs as a daemon: feed, journal, paper venue, worker."""
