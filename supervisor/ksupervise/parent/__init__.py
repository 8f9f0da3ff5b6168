"""Everything that touches the machine on the parent's side. The way in is `loop.py`."""
