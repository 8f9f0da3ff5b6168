"""Replicas: committed checkpoints copied to where they survive the machine, and brought back from there."""
