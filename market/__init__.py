"""What the venue says: settings, instruments, wire formats, captures, order book, bars, features."""
