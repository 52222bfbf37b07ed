"""The venue's public archives: download, depth truncation, conversion to captures."""
