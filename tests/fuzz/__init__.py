"""Hostile input: every reader either reads a file or refuses it in one line. `python -m tests.fuzz --help`."""
