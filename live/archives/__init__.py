"""The venue's public archives: downloaded, cut, and read as captures."""
