"""Searches under simulated time, workers and faults: one seed is one history, and replays exactly."""
