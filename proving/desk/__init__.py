"""The desk against the frozen profile `legacy`: the same seeds and recordings, traded by both."""
