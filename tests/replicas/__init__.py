"""Tests of the replicas: real servers on loopback, real mounts, no sleeping."""
