"""One file for each revision. What a released revision does never changes."""
