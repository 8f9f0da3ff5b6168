"""What is decided, and nothing else: no os, no time, no threads. See `decide.py`."""
