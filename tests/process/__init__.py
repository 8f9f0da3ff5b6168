"""The command line and the parent, end to end: real processes, no TensorFlow, no waiting without a reason."""
