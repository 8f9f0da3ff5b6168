"""What people look at. Reads a run's directory; never writes to it."""
