"""The venue's frames: captures of them, and the way from text to event rows and back."""
