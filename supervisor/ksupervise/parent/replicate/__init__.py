"""Keeps replicas of a run: one process for each place, and what a machine without the run gets from there."""
